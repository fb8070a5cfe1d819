"""Where do the V values of a frame lie?

Whatever the format, a space is an axis of CIFTI-2: such axes can name vertices of surfaces, voxels
of a grid, and parcels. So a prepared subject has one file for all kinds, space.dscalar.nii.
"""

import os
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.cifti2 import ParcelsAxis, ScalarAxis, SeriesAxis

from tools.errors import fail

SIDES = {"L": "CIFTI_STRUCTURE_CORTEX_LEFT", "R": "CIFTI_STRUCTURE_CORTEX_RIGHT"}


@dataclass
class Space:
    """axis  of V: BrainModelAxis of vertices and voxels; of parcels a ParcelsAxis, or, where no
          more than their names is known, a ScalarAxis
    kind  the suffix of series: .dtseries.nii, .ptseries.nii, .nii.gz, .func.gii or .tsv
    """

    axis: object
    kind: str

    def __len__(self):
        return len(self.axis)

    def save(self, folder):
        """A map of zeros, whose name is the kind, and whose axis says where values lie."""
        zeros = np.zeros((1, len(self)))
        save_cifti(f"{folder}/space.dscalar.nii", zeros, ScalarAxis([self.kind]), self.axis)


def load_space(folder):
    """The Space of a prepared subject, or None."""
    path = f"{folder}/space.dscalar.nii"
    if os.path.exists(path):
        header = load(path, nib.Cifti2Image).header
        # Subjects that were prepared when there was but one kind call it "space".
        kind = header.get_axis(0).name[0].replace("space", ".dtseries.nii")
        return Space(header.get_axis(1), kind)


def load(path, kind, **how):
    """The image in a file, of a class of nibabel's."""
    try:
        return kind.from_filename(path, mmap=False, **how)  # mapped pages would count as memory
    except Exception as error:  # nibabel raises many kinds
        fail(
            f"{path}: not readable ({str(error)[:150]}); expected a {kind.__name__} (CIFTI-1: "
            "wb_command -file-convert -cifti-version-convert OLD 2 NEW makes CIFTI-2 of it)",
            error,
        )


# ---- Formats: values [rows,V], and the axes of both ------------------------------------


def save_cifti(path, values, rows, axis):
    image = nib.Cifti2Image(np.asarray(values, np.float32), (rows, axis))
    kind = "DENSE_SERIES" if isinstance(rows, SeriesAxis) else "DENSE_SCALARS"
    if isinstance(axis, ParcelsAxis):
        kind = kind.replace("DENSE", "PARCELLATED").replace("SCALARS", "SCALAR")
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_" + kind)
    nib.imageglobals.logger.setLevel(40)  # nibabel warns of voxel sizes, which CIFTI has not
    nib.save(image, path)


# ---- Grids of voxels -------------------------------------------------------------------


def common_mask(paths):
    """A NIfTI image of the voxels that are in fMRIPrep's brain masks of all BOLD files `paths`."""
    names = [path.replace("_desc-preproc_bold", "_desc-brain_mask") for path in paths]
    for name in set(names) & set(paths):
        fail(f"--mask auto: {name} is not called ..._desc-preproc_bold, as fMRIPrep's; name a mask")
    masks = [load(name, nib.Nifti1Image) for name in names]
    for mask in masks:
        check_grid(mask, masks[0])
    count = np.sum([mask.get_fdata() > 0 for mask in masks], 0)  # [x,y,z] of runs
    common = count == len(masks)
    print(f"--mask auto: {common.sum():,} voxels; {(count > 0).sum() - common.sum():,} dropped")
    image = nib.Nifti1Image(np.uint8(common), masks[0].affine)
    image.set_filename(names[0])
    return image


def check_grid(image, other):
    same = image.shape[:3] == other.shape[:3]
    if not same or not np.allclose(image.affine, other.affine, atol=1e-3):
        fail(
            f"{image.get_filename()}: its grid, {image.shape[:3]} voxels, is not that of "
            f"{other.get_filename()}, {other.shape[:3]}, or lies elsewhere; expected one grid"
        )
