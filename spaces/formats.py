"""How are values written in the recording's own format and space?"""

import csv
import gzip
import re

import nibabel as nib
import numpy as np
from nibabel.cifti2 import ScalarAxis, SeriesAxis

from tools import files

from .space import SIDES, save_cifti


def save_series(space, path, frames, tr, start):
    """Frames [T,V] in raw units; start in seconds after the first volume. path: without its suffix,
    such as out/run-1_desc-recon_bold: hemi-L and hemi-R go before desc."""
    write(space, path + space.kind, frames, SeriesAxis(start, tr, len(frames), "SECOND"))


def save_maps(space, path, maps):
    """Maps {name: [V]}, and their names in a JSON beside them: NIfTI has no place for them."""
    values = np.stack(list(maps.values()))  # [maps,V]
    suffix = space.kind.replace("tseries", "scalar")
    write(space, path + suffix, values, ScalarAxis(list(maps)))
    files.save_json(f"{path}.json", {"Maps": list(maps)})


def write(space, path, values, rows):
    """Values [rows,V]; rows: their axis, of times or of names."""
    formats = {".nii.gz": save_nifti, ".func.gii": save_gifti, ".tsv": save_regions}
    with files.writing(path):
        formats.get(space.kind, save_cifti)(path, values, rows, space.axis)


def save_nifti(path, values, rows, axis):
    """0 where there is no value. Volume by volume: all of a run may not fit into memory."""
    volume = np.zeros(axis.volume_shape, np.float32)
    header = nib.Nifti1Image(volume, axis.affine).header
    header.set_data_shape((*volume.shape, len(values)))
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][4] = getattr(rows, "step", 0)
    header.set_data_offset(352)  # 348 bytes of header, and 4 that announce no more of it
    with gzip.open(path, "wb", 1) as f:
        f.write(header.binaryblock + bytes(4))
        for frame in values:
            volume[tuple(axis.voxel.T)] = frame
            f.write(volume.tobytes("F"))


def save_gifti(path, values, rows, axis):
    """A file for each hemisphere; NaN where there is no value."""
    for side, structure in SIDES.items():
        here = axis.name == structure
        image = nib.GiftiImage()
        names = rows.name if isinstance(rows, ScalarAxis) else rows.time.astype(str)
        for name, frame in zip(names, values):
            surface = np.full(axis.nvertices[structure], np.nan, np.float32)
            surface[axis.vertex[here]] = frame[here]
            part = nib.gifti.GiftiDataArray(surface, meta={"Name": name})
            image.add_gifti_data_array(part)
        nib.save(image, re.sub(r"(?=desc-[^/]*$)", f"hemi-{side}_", path))


def save_regions(path, values, rows, axis):
    """A series: a line a frame. Maps, which have names: a line a region. n/a: as BIDS has it."""
    values = np.where(np.isnan(values), "n/a", values)
    lines = [axis.name, *values]
    if isinstance(rows, ScalarAxis):
        lines = [["name", *rows.name], *zip(axis.name, *values)]
    save_table(path, lines)


def save_table(path, lines):
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f, delimiter="\t", lineterminator="\n").writerows(lines)
