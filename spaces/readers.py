"""How is a series of BOLD read? Each reader opens a file, and returns

    (function of a slice of volumes -> [t,V], shape, TR in seconds or None, axis of V or None)

.dtseries.nii, .ptseries.nii    CIFTI-2
.nii.gz, .nii                   volumes, and a mask of voxels
.func.gii                       two hemispheres
.tsv, .csv                      [volumes, regions], below a row of names
.npy                            [volumes, V]
"""

import csv
import functools

import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, ParcelsAxis, ScalarAxis, SeriesAxis

from tools import files
from tools.errors import fail

from .space import SIDES, check_grid, load


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
