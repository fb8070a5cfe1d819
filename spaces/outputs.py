"""Results in the lab's own format, as a BIDS derivative, and pictures of them."""

import importlib.util
import os

import numpy as np
from nibabel.cifti2 import BrainModelAxis

from tools import files
from tools.errors import fail

from . import formats, page, pictures
from .space import load_space
from .surfaces import Surfaces

# What is written of each test stretch: {array: what it is}.
SERIES = {
    "recon": "reconstruction from EEG, mean of samples",
    "truth": "what was measured",
    "std": "standard deviation over samples",
}


class Outputs:
    """Of a subject that has a space, or of which a picture is asked for. a, study, timeline: as
    sample.py has them."""

    def __init__(self, a, study, timeline):
        self.a, self.study, self.timeline = a, study, timeline
        self.surfaces = None
        if a.plot:
            pictures.pyplot()  # if it is missing, say so now and not at the end
        if a.surfaces:
            subject = study.subject
            if not isinstance(subject.space, BrainModelAxis):
                fail(
                    f"--surfaces: {subject.folder} is of parcels, or has no space.dscalar.nii, so "
                    "that nobody knows where its vertices lie; leave it, or prepare it from "
                    ".dtseries.nii files"
                )
            self.surfaces = Surfaces(a.surfaces, subject.space, subject.folder)

    def write(self, folder, arrays, r, missing, title):
        """Where there is a space, series and maps in it; if asked for, plot.png and surfaces.png.
        arrays {"truth", "recon", "std": [T,V]} at the frames; r [2,V] over time, with the EEG and
        with shuffled EEG; missing: places of frames that were not seen whole."""
        if self.study.subject.space is not None:
            self.write_all_series(folder, arrays)
            self.write_maps(folder, arrays, r, missing)
        if self.a.plot:
            pictures.carpet(os.path.join(folder, "plot.png"), arrays, title)
        if importlib.util.find_spec("matplotlib"):
            self.write_page(folder, arrays, r, title)
        if self.surfaces:
            path = os.path.join(folder, "surfaces.png")
            self.surfaces.draw_median(path, arrays, missing, self.timeline.rows, title)

    def write_all_series(self, folder, names):
        """Of arrays of these names; and what they are."""
        space = load_space(self.study.subject.folder)
        for name in SERIES.keys() & names:
            self.write_series(space, folder, name)
        self.write_about(folder)

    def write_series(self, space, folder, name):
        """An array, with its points between frames, in raw units: a file for each stretch, for a
        series has one start time, and cannot skip frames."""
        subject, normaliser = self.study.subject, self.study.normaliser
        z = np.load(f"{folder}/{name}.npy", mmap_mode="r")
        points = len(z) // len(self.timeline.rows)  # to a frame
        tr = subject.tr / points
        runs = []
        for low, high in self.timeline.stretches:
            run, start = subject.when(self.timeline.rows[low])
            runs.append(run)
            chunk = f"_chunk-{runs.count(run)}" if run in runs[:-1] else ""
            x = z[low * points : high * points]  # [points,V]
            x = x * normaliser.std if name == "std" else normaliser.raw(x)
            run_name = subject.meta["names"][run - 1] if "names" in subject.meta else f"run-{run}"
            path = f"{folder}/{run_name}{chunk}_desc-{name}_bold"
            formats.save_series(space, path, x, tr, start)
            about = {"RepetitionTime": tr, "StartTime": start, "Description": SERIES[name]}
            files.save_json(f"{path}.json", {**about, "Sources": [source_of(subject.meta, run)]})

    def write_maps(self, folder, arrays, r, missing):
        """r over time, and the squared error in z-scores of what was not observed."""
        total = 0
        count = 0
        for k in missing:
            error = arrays["recon"][k] - arrays["truth"][k]  # [V]; 0 exactly where observed
            total = total + error**2
            count = count + (error != 0)
        mse = np.where(np.isnan(r[0]), np.nan, total / np.maximum(count, 1))
        maps = {"r": r[0], "r, shuffled EEG": r[1], "difference": r[0] - r[1], "MSE": mse}
        space = load_space(self.study.subject.folder)
        formats.save_maps(space, f"{folder}/desc-r_statmap", maps)

    def write_page(self, folder, arrays, r, title):
        """report.html."""
        subject = self.study.subject
        figures = {
            "Vertices by time": pictures.vertices_by_time(arrays, title),
            "r over time": page.r_over_time(r, subject.space),
        }
        page.write(folder, subject, os.path.dirname(self.a.ckpt), figures)

    def write_about(self, folder):
        """dataset_description.json, and which frame each row of truth.npy is."""
        subject = self.study.subject
        about = {
            "Name": "fMRI frames from EEG",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "NeuroFrames"}],
        }
        files.save_json(f"{folder}/dataset_description.json", about)
        lines = [("row", "run", "volume", "seconds", "source")]
        for row in self.timeline.rows:
            run, seconds = subject.when(row)
            volume = round(seconds / subject.tr)
            lines.append((row, run, volume, round(seconds, 6), source_of(subject.meta, run)))
        formats.save_table(f"{folder}/frames.tsv", lines)


def source_of(meta, run):
    """The BOLD file of a run, or of all runs the folder, if they are known."""
    source = meta.get("source", [""])
    return source[run - 1][0] if isinstance(source[0], list) else source[0]


def add_flags(add):
    """Those of sample.py for pictures."""
    add("--plot", action="store_true", help="draw plot.png, vertices by time (needs matplotlib)")
    add("--surfaces", nargs=2, metavar=("LEFT", "RIGHT"), help="two .surf.gii: draw surfaces.png")
