"""Where do the V values of a frame lie, and how are results written there, in the lab's own format?

Whatever the format, a space is an axis of CIFTI-2: such axes can name vertices of surfaces, voxels
of a grid, and parcels. So a prepared subject has one file for all kinds, space.dscalar.nii.
"""

import csv
import gzip
import os
import re
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.cifti2 import ParcelsAxis, ScalarAxis, SeriesAxis

from tools import files
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

    def save_series(self, path, frames, tr, start):
        """Frames [T,V] in raw units; start in seconds after the first volume. path: without its
        suffix, such as out/run-1_desc-recon_bold: hemi-L and hemi-R go before desc."""
        self.write(path + self.kind, frames, SeriesAxis(start, tr, len(frames), "SECOND"))

    def save_maps(self, path, maps):
        """Maps {name: [V]}, and their names in a JSON beside them: NIfTI has no place for them."""
        values = np.stack(list(maps.values()))  # [maps,V]
        suffix = self.kind.replace("tseries", "scalar")
        self.write(path + suffix, values, ScalarAxis(list(maps)))
        files.save_json(f"{path}.json", {"Maps": list(maps)})

    def write(self, path, values, rows):
        """Values [rows,V]; rows: their axis, of times or of names."""
        formats = {".nii.gz": save_nifti, ".func.gii": save_gifti, ".tsv": save_regions}
        with files.writing(path):
            formats.get(self.kind, save_cifti)(path, values, rows, self.axis)


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
    """A series: a line a frame. Maps, which have names: a line a region."""
    lines = [axis.name, *values]
    if isinstance(rows, ScalarAxis):
        lines = [["name", *rows.name], *zip(axis.name, *values)]
    save_table(path, lines)


def save_table(path, lines):
    with open(path, "w", encoding="utf-8", newline="") as f:
        csv.writer(f, delimiter="\t", lineterminator="\n").writerows(lines)
