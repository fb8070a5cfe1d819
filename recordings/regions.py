"""Regions of interest, from an HCP MMP 1.0 .dlabel.nii or from boolean masks."""

import os

import nibabel as nib
import numpy as np

from tools import files
from tools.errors import fail

from . import cifti

# Parcels of HCP MMP 1.0 whose sizes add up to the paper's regions exactly: 8,405 grayordinates for
# its "V1" (which is far more than V1, so we call it visual) and 18,946 for its "V1+A1".
VISUAL = [
    *("V1", "V2", "V3", "V3A", "V3B", "V3CD", "V4", "LO1", "LO2", "LO3", "PIT", "V4t", "V6"),
    *("V6A", "V7", "V8", "PH", "FFC", "IP0", "MT", "MST", "FST", "VVC", "VMV1", "VMV2", "VMV3"),
    *("PHA1", "PHA2", "PHA3"),
]
AUDIO = [
    *("4", "IPS1", "A1", "7Pm", "7m", "7AL", "7Am", "7PL", "7PC", "8BM", "p32", "47m", "8Av"),
    *("8Ad", "9p", "10d", "8C", "44", "45", "46", "9a", "10v", "STGa", "STSda", "STSdp", "STSvp"),
    *("TPOJ1", "TPOJ2", "TPOJ3", "PGp"),
]
REGIONS = {
    "visual": [f"{side}_{parcel}" for side in "LR" for parcel in VISUAL],
    "visual+audio": [f"{side}_{parcel}" for side in "LR" for parcel in VISUAL + AUDIO]
    + ["R_s32", "R_STSva"],
}


def save(out, parcels, space, V):
    """space.dscalar.nii and rois.npz of a prepared subject, as far as files say them."""
    if space is not None:
        cifti.save_space(out.path("space.dscalar.nii"), space)
    found = find_regions(parcels, space, V)
    if found:
        np.savez(out.path("rois.npz"), **found)
        print("regions: " + ", ".join(f"{name} {mask.sum():,}" for name, mask in found.items()))


def find_regions(parcels, space, V):
    """{region: bool [V]} of the files `parcels`; space: the brain-model axis of the V vertices."""
    regions = {}
    for path in parcels or []:
        if path.endswith(".npy"):
            name = os.path.basename(path)[:-4]
            if name in (*regions, "whole", "file"):
                fail(
                    f"--parcels {path}: there is a region {name} already, or the name is taken; "
                    "rename the file"
                )
            regions[name] = read_mask(path, V)
        else:
            found = read_parcels(path, space, V)  # [V] names
            regions |= {region: np.isin(found, names) for region, names in REGIONS.items()}
            if not regions["visual"].any():
                fail(
                    f"--parcels {path}: has parcels such as {sorted(set(found))[:5]}; expected "
                    "those of HCP MMP 1.0, such as L_V1_ROI"
                )
    return regions


def read_mask(path, V):
    mask = files.load_npy(path, 1, kinds="b")
    if mask.shape != (V,):
        fail(f"--parcels {path}: has shape {mask.shape}; expected ({V},), one for each vertex")
    return np.array(mask)


def places(axis):
    """A place is a structure and a vertex index, or a structure and a voxel's i, j, k."""
    return zip(axis.name, axis.vertex, map(tuple, axis.voxel))


def read_parcels(path, space, V):
    """The name of each vertex's parcel [V], "" where there is none."""
    try:
        image = nib.load(path)
        labels = image.header.get_axis(0).label[0]
        models = image.header.get_axis(1)
    except Exception as error:  # nibabel raises many kinds
        fail(
            f"--parcels {path}: not readable as a CIFTI-2 .dlabel.nii ({error}); expected that, or "
            f"a boolean .npy [{V}]",
            error,
        )
    values = np.asarray(image.dataobj[0])
    names = np.array([labels[int(value)][0].removesuffix("_ROI") for value in values])
    if space is None:
        same_surfaces = len(models) == V
    else:
        same_surfaces = models.nvertices.items() <= space.nvertices.items()
    if not same_surfaces:
        fail(
            f"--parcels {path}: its surfaces are not those of the frames, or theirs are unknown; "
            "give .npy masks"
        )
    if space is None:
        return names
    name_at = dict(zip(places(models), names))
    return np.array([name_at.get(place, "") for place in places(space)])
