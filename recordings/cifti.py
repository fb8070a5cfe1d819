"""CIFTI-2, in and out: dense series of BOLD, and where each of their grayordinates lies."""

import nibabel as nib
import numpy as np

from tools import files
from tools.checks import check_finite
from tools.errors import fail


def open_bold(path):
    """Array-like [volumes,V] that reads when sliced; TR and brain-model axis, or None for .npy."""
    if path.endswith(".npy"):
        return files.load_npy(path, 2), None, None
    try:
        image = nib.load(path, mmap=False)  # mapped pages would count as memory
        series = image.header.get_axis(0)
        space = image.header.get_axis(1)
    except Exception as error:  # nibabel raises many kinds
        fail(
            f"{path}: not readable as CIFTI-2 ({str(error)[:150]}); expected a .dtseries.nii or "
            ".npy [volumes, V] (CIFTI-1: wb_command -file-convert -cifti-version-convert OLD 2 "
            "NEW)",
            error,
        )
    series_axis, space_axis = nib.cifti2.SeriesAxis, nib.cifti2.BrainModelAxis
    if not isinstance(series, series_axis) or not isinstance(space, space_axis):
        fail(
            f"{path}: has axes {type(series).__name__} and {type(space).__name__}; expected a "
            "dense series (.dtseries.nii): SeriesAxis and BrainModelAxis"
        )
    if series.unit != "SECOND":
        fail(f"{path}: its series is in {series.unit}; expected SECOND")
    return image.dataobj, float(series.step), space


def read_bold(path, bold, rows):
    """Frames [t,V] of an open_bold array, checked."""
    try:
        frames = np.asarray(bold[rows])  # [t,V]
    except Exception as error:  # of many kinds
        fail(f"{path}: is cut short or damaged ({error}); copy it again", error)
    check_finite(frames, path, bold, "volume", "vertex")
    return frames


def save_cifti(path, values, rows, space):
    """Write values [rows,V] with the axes `rows` and `space` as CIFTI-2."""
    image = nib.Cifti2Image(np.asarray(values, np.float32), (rows, space))
    kind = "SERIES" if isinstance(rows, nib.cifti2.SeriesAxis) else "SCALARS"
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_" + kind)
    nib.imageglobals.logger.setLevel(40)  # nibabel warns of voxel sizes, which CIFTI has not
    with files.writing(path):
        nib.save(image, path)


def save_maps(path, maps, space):
    """Maps {name: [V]} as dense scalars."""
    values = np.stack(list(maps.values()))  # [maps,V]
    save_cifti(path, values, nib.cifti2.ScalarAxis(list(maps)), space)


def save_space(path, space):
    """A map of zeros, whose axis says where the grayordinates lie."""
    save_maps(path, {"space": np.zeros(len(space))}, space)


def save_dtseries(path, frames, space, tr, start):
    """Frames [T,V] in raw units as dense series; start in seconds after the first volume."""
    save_cifti(path, frames, nib.cifti2.SeriesAxis(start, tr, len(frames), "SECOND"), space)
