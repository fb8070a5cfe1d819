"""Atlases and masks: which of the V values of a frame are in which region?"""

import csv
import os
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel.cifti2 import BrainModelAxis, ScalarAxis

from tools import files
from tools.errors import fail

from .space import Space, load

# Parcels of HCP MMP 1.0 whose sizes add up to the paper's regions exactly: 8,405 grayordinates for
# its "V1" (which is far more than V1, so we call it visual) and 18,946 for its "V1+A1".
VISUAL = (
    "V1 V2 V3 V3A V3B V3CD V4 LO1 LO2 LO3 PIT V4t V6 V6A V7 V8 PH FFC IP0 MT MST FST VVC "
    "VMV1 VMV2 VMV3 PHA1 PHA2 PHA3"
)
AUDIO = (
    "4 IPS1 A1 7Pm 7m 7AL 7Am 7PL 7PC 8BM p32 47m 8Av 8Ad 9p 10d 8C 44 45 46 9a 10v STGa "
    "STSda STSdp STSvp TPOJ1 TPOJ2 TPOJ3 PGp"
)
REGIONS = {
    "visual": [f"{side}_{parcel}" for side in "LR" for parcel in VISUAL.split()],
    "visual+audio": [f"{side}_{parcel}" for side in "LR" for parcel in f"{VISUAL} {AUDIO}".split()]
    + ["R_s32", "R_STSva"],
}


def save(out, parcels, space, V, labels=None):
    """space.dscalar.nii and rois.npz of a prepared subject, as far as files say them."""
    if space is not None:
        space.save(out.folder)
    found = find_regions(parcels, labels, space, V)
    if found:
        np.savez(out.path("rois.npz"), **found)
        print("regions: " + ", ".join(f"{name} {mask.sum():,}" for name, mask in found.items()))


def find_regions(parcels, labels, space, V):
    """{region: bool [V]} of the files `parcels`: masks; of HCP MMP 1.0 the regions above; of any
    other atlas each label. space: where the V values lie, or None."""
    regions = {}
    for path in parcels or []:
        if path.endswith(".npy"):
            found = {os.path.basename(path)[:-4]: read_mask(path, V)}
        else:
            found = find_labels(path, labels, space, V)
            large = dict.fromkeys(REGIONS, np.zeros(V, bool))
            for region, names in REGIONS.items():
                for name in found.keys() & {f"{name}_ROI" for name in names}:
                    large[region] = large[region] | found[name]
            if large["visual"].any():
                found = large
        taken = found.keys() & {*regions, "whole", "file"}
        if taken:
            fail(f"--parcels {path}: region {min(taken)} is there already, or a word; rename it")
        regions |= found
    return regions


def read_mask(path, V):
    mask = files.load_npy(path, 1, kinds="b")
    if mask.shape != (V,):
        fail(f"{path}: has shape {mask.shape}; expected ({V},), one for each vertex")
    return np.array(mask)


def averaged(bold, atlas, labels):
    """A Bold of the means over an atlas's labels."""
    masks = find_labels(atlas, labels, bold.space, bold.shape[1])
    columns = [np.flatnonzero(mask) for mask in masks.values()]
    print(f"{atlas}: {len(columns)} parcels of {sum(map(len, columns)):,} of {bold.shape[1]:,}")

    def rows(volumes):
        frames = bold[volumes]  # [t,V]
        return np.stack([frames[:, index].mean(1) for index in columns], 1)  # [t,parcels]

    space = Space(ScalarAxis(list(masks)), ".tsv")
    return replace(bold, shape=(bold.shape[0], len(columns)), space=space, rows=rows)


# ---- Labels ----------------------------------------------------------------------------


def find_labels(path, table, space, V):
    """{name: bool [V]} of the labels of an atlas, or of the one of a mask, a .dlabel.nii or NIfTI.
    table: a .tsv with columns index and name, or None."""
    axis = space and space.axis
    if path.endswith(".dlabel.nii"):
        numbers, names = read_dlabel(path, axis, V)
    else:
        numbers = read_volume(path, axis)
        names = {number: str(number) for number in np.unique(numbers).tolist()}
        if len(names) == 2:  # 0 and another: a mask
            names[max(names)] = os.path.basename(path).split(".")[0]
    names |= read_names(table) if table else {}
    there = [number for number in sorted(names) if number and (numbers == number).any()]
    if not 0 < len(there) <= 400:
        fail(f"{path}: has {len(there)} labels where the frames are; expected 1 to 400")
    found = {re.sub(r"[^\w+-]+", "_", names[number]): numbers == number for number in there}
    if len(found) < len(there):
        fail(f"{path}: {len(there)} labels have {len(found)} names; expected one each; rename them")
    return found


def read_names(path):
    try:
        with open(path, encoding="utf-8-sig") as f:
            return {int(row["index"]): row["name"] for row in csv.DictReader(f, delimiter="\t")}
    except (ValueError, KeyError, TypeError) as error:
        fail(f"--labels {path}: not a .tsv with columns index and name ({error!r})", error)


def read_volume(path, axis):
    """Labels [V] of a NIfTI, 0 where there is none, as at vertices."""
    image = load(path, nib.Nifti1Image)
    voxels = isinstance(axis, BrainModelAxis) and axis.volume_shape == image.shape
    if not voxels or not np.allclose(axis.affine, image.affine, atol=1e-3):
        fail(f"{path}: its grid, {image.shape} voxels, is not that of the frames; resample it")
    labels = image.get_fdata()[tuple(axis.voxel.T)]
    return np.where(axis.volume_mask, labels, 0).astype(int)


def places(axis):
    """A place is a structure and a vertex index, or a structure and a voxel's i, j, k."""
    return zip(axis.name, axis.vertex, map(tuple, axis.voxel))


def read_dlabel(path, axis, V):
    """(Labels [V], 0 where there is none; {label: name})."""
    image = load(path, nib.Cifti2Image)
    models = image.header.get_axis(1)
    if axis is None:
        same_surfaces = len(models) == V
    else:
        dense = isinstance(axis, BrainModelAxis)
        shared = dense and models.nvertices.keys() & axis.nvertices.keys()
        same_surfaces = shared and all(models.nvertices[x] == axis.nvertices[x] for x in shared)
    if not same_surfaces:
        fail(
            f"{path}: its surfaces are not those of the frames, or theirs are unknown; give .npy "
            "masks"
        )
    names = {label: name for label, (name, _) in image.header.get_axis(0).label[0].items()}
    labels = np.asarray(image.dataobj[0]).astype(int)
    if axis is not None:
        label_at = dict(zip(places(models), labels))
        labels = np.array([label_at.get(place, 0) for place in places(axis)])
    return labels, names
