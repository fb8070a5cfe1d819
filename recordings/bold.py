"""BOLD as it comes: what are the frames of a run, its TR, and where do their values lie?

.dtseries.nii, .ptseries.nii    CIFTI-2
.nii.gz, .nii                   volumes, and a mask of voxels
.func.gii                       two hemispheres
.tsv, .csv                      [volumes, regions], below a row of names
.npy                            [volumes, V]
"""

import csv
import functools
import json
import os
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, ParcelsAxis, ScalarAxis, SeriesAxis

from spaces.regions import averaged
from spaces.space import SIDES, Space, check_grid, load
from tools import files
from tools.checks import check_finite
from tools.errors import fail


@dataclass
class Bold:
    """A run, array-like: a slice of its volumes is read when it is asked for."""

    path: str
    shape: tuple  # volumes, V
    tr: float  # s, or None
    space: Space  # or None
    rows: object  # function of a slice -> [t,V]

    def __getitem__(self, rows):
        return self.rows(rows)

    def read(self, rows):
        """Frames [t,V], checked. To read on is fast; to go back in a .gz is to begin anew."""
        try:
            frames = np.asarray(self[rows])  # [t,V]
        except Exception as error:  # of many kinds
            fail(f"{self.path}: is cut short or damaged ({error}); copy it again", error)
        check_finite(frames, self.path, self, "volume", "vertex")
        return frames


def open_bold(paths, a):
    """A run's Bold. paths: its file, or hemi-L and hemi-R. Of a: mask, of volumes, a file or what
    common_mask gives; atlas, with labels: what to average over, or None."""
    path = paths[0]
    suffix = next((suffix for suffix in READERS if path.endswith(suffix)), ".dtseries.nii")
    rows, shape, tr, axis = READERS[suffix](path, a.mask)
    kind = {".nii": ".nii.gz", ".csv": ".tsv"}.get(suffix, suffix)
    space = axis and Space(axis, kind)
    bold = Bold(path, shape, repetition_time(path, suffix, tr), space, rows)
    return averaged(bold, a.atlas, a.labels) if a.atlas else bold


def repetition_time(path, suffix, tr):
    """Seconds, by the file (tr, perhaps None) and by the JSON beside it, which must agree."""
    beside = path.removesuffix(suffix) + ".json"
    if not os.path.exists(beside):
        return tr
    try:
        with open(beside, encoding="utf-8") as f:
            said = float(json.load(f).get("RepetitionTime", tr or 0))
    except (ValueError, TypeError, AttributeError) as error:
        fail(f"{beside}: says no RepetitionTime that can be read ({error}); mend it", error)
    if tr and abs(tr - said) > 1e-3:
        fail(f"{path}: its TR is {tr:g} s, but {beside} says {said:g}; mend the one that is wrong")
    return said


# ---- Formats: (function of rows -> [t,V], shape, TR or None, axis of V or None) --------


def open_npy(path, _):
    array = files.load_npy(path, 2)
    return array.__getitem__, array.shape, None, None


def open_cifti(path, _):
    image = load(path, nib.Cifti2Image)
    series = image.header.get_axis(0)
    axis = image.header.get_axis(1)
    expected = ParcelsAxis if path.endswith(".ptseries.nii") else BrainModelAxis
    if not isinstance(series, SeriesAxis) or not isinstance(axis, expected):
        fail(
            f"{path}: has axes {type(series).__name__} and {type(axis).__name__}; expected those "
            f"of a .dtseries.nii or .ptseries.nii: SeriesAxis and {expected.__name__}"
        )
    if series.unit != "SECOND":
        fail(f"{path}: its series is in {series.unit}; expected SECOND")
    return image.dataobj.__getitem__, image.shape, float(series.step), axis


def open_gifti(path, _):
    """Without the medial wall: vertices that are 0 or NaN throughout."""
    kept = [(np.nan_to_num(side) != 0).any(0) for side in read_sides(path)]
    left, right = map(BrainModelAxis.from_mask, kept, SIDES.values())
    axis = left + right

    def rows(slice_of_volumes):
        sides = zip(read_sides(path), kept)
        return np.hstack([side[slice_of_volumes, here] for side, here in sides])

    return rows, (len(read_sides(path)[0]), len(axis)), None, axis


@functools.lru_cache(1)  # GIFTI cannot be read in parts: of one run at a time all is kept
def read_sides(path):
    """[volumes, vertices] of the left side and of the right."""
    paths = path, path.replace("hemi-L", "hemi-R")
    images = [load(side, nib.GiftiImage) for side in paths]
    left, right = ([part.data for part in image.darrays] for image in images)
    if len(left) != len(right) or "hemi-L" not in path:
        fail(f"{', '.join(paths)}: {len(left)} and {len(right)} volumes; expected hemi-L, hemi-R")
    return np.stack(left), np.stack(right)


def open_table(path, _):
    separator = "," if path.endswith(".csv") else "\t"
    try:
        with open(path, encoding="utf-8-sig") as f:
            names = next(csv.reader(f, delimiter=separator))
            frames = np.loadtxt(f, delimiter=separator, ndmin=2)
    except (ValueError, StopIteration) as error:
        fail(f"{path}: is no table of numbers below a row of names ({error})", error)
    if len({*names} - {""}) != frames.shape[1]:
        fail(f"{path}: {frames.shape[1]} columns; expected as many names, each once, in row 1")
    return frames.__getitem__, frames.shape, None, ScalarAxis(names)


def open_nifti(path, mask):
    if mask is None:
        fail(f"{path}: which of its voxels? Give --mask FILE, or --mask auto for fMRIPrep's masks")
    if isinstance(mask, str):
        mask = load(mask, nib.Nifti1Image)
    # Kept open, for a .gz can only be read on, or from its beginning.
    image = load(path, nib.Nifti1Image, keep_file_open=True)
    check_grid(image, mask)
    inside = np.asarray(mask.dataobj) > 0  # [x,y,z]
    if image.ndim != 4 or inside.ndim != 3 or not inside.any():
        found = f"have shapes {image.shape}, {mask.shape}, {inside.sum()} voxels are in the mask"
        fail(f"{path}, {mask.get_filename()}: {found}; expected 4 axes, 3, and some voxels")
    axis = BrainModelAxis.from_mask(inside, affine=mask.affine)

    def rows(slice_of_volumes):
        numbers = range(image.shape[3])[slice_of_volumes]
        return np.stack([np.asarray(image.dataobj[..., t])[inside] for t in numbers])

    unit = image.header.get_xyzt_units()[1]
    tr = float(image.header.get_zooms()[3]) * {"msec": 1e-3, "usec": 1e-6}.get(unit, 1)
    return rows, (image.shape[3], len(axis)), round(tr, 6), axis  # in the header it is float32


READERS = {
    ".npy": open_npy,
    ".dtseries.nii": open_cifti,
    ".ptseries.nii": open_cifti,
    ".func.gii": open_gifti,
    ".tsv": open_table,
    ".csv": open_table,
    ".nii.gz": open_nifti,
    ".nii": open_nifti,
}
