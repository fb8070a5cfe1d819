"""Results in the lab's own format, as a BIDS derivative, and pictures of them."""

import functools
import importlib.util
import os

import numpy as np
from nibabel.cifti2 import BrainModelAxis

from tools import files
from tools.errors import fail

from . import formats, page, pictures
from .space import load_space
from .surfaces import Surfaces

# What is written of each test run: {array: what it is}.
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

    @functools.cached_property
    def space(self):
        subject = self.study.subject
        return load_space(getattr(subject, "people", [subject])[0].folder)  # all have the same

    def write(self, folder, arrays, r, missing, title):
        """Where there is a space, series and maps in it; if asked for, plot.png and surfaces.png.
        arrays {"truth", "recon", "std": [T,V]} at the frames; r [2,V] over time, with the EEG and
        with shuffled EEG; missing: places of frames that were not seen whole."""
        if self.study.subject.space is not None:
            self.write_all_series(folder, arrays)
            self.write_maps(folder, arrays, r, missing)
        if self.a.plot:
            pictures.carpet(f"{folder}/plot.png", arrays, title)
        if self.surfaces:
            self.surfaces.draw_median(
                f"{folder}/surfaces.png", arrays, missing, self.timeline.rows, title
            )
        if importlib.util.find_spec("matplotlib"):
            self.write_page(folder, arrays, r, title)

    def write_all_series(self, folder, names):
        """Of arrays of these names; and what they are."""
        for name in SERIES.keys() & names:
            self.write_series(folder, name)
        self.write_about(folder)

    def write_series(self, folder, name):
        """An array, with its points between frames, in raw units: a file for each run, from its
        first test frame to the last; NaN where a frame between is none (it moved, say)."""
        subject = self.study.subject
        rows = self.timeline.rows
        space = self.space
        z = np.load(f"{folder}/{name}.npy", mmap_mode="r")
        points = len(z) // len(rows)  # to a frame
        z = z.reshape(len(rows), -1)  # [T,points V]
        tr = subject.tr / points
        runs = np.array([subject.when(row)[0] for row in rows])  # [T]
        for run in np.unique(runs):
            here = rows[runs == run]
            span = np.arange(here[0], here[-1] + 1)  # [t] of fmri.npy's rows
            place = np.searchsorted(rows, span)  # of each, or of the next that is there
            x = z[place]  # [t,points V]
            x[rows[place] != span] = np.nan
            x = x.reshape(-1, len(space))  # [t points,V]
            units = [self.study.normaliser]
            if hasattr(subject, "people"):
                units.append(subject.own(subject.person(here[0])))
            for unit in units:
                x = x * unit.std if name == "std" else unit.raw(x)
            _, start = subject.when(here[0])
            run_name = subject.meta["names"][run - 1] if "names" in subject.meta else f"run-{run}"
            path = f"{folder}/{run_name}_desc-{name}_bold"
            formats.save_series(space, path, x, tr, start)
            about = {
                "RepetitionTime": tr,
                "StartTime": start,
                "Description": SERIES[name] + subject.meta.get("units", ""),
                "Sources": [source_of(subject.meta, run)],
            }
            files.save_json(f"{path}.json", about)

    def write_maps(self, folder, arrays, r, missing):
        """r over time, and the squared error in z-scores of what was not observed."""
        total = 0
        count = 0
        for k in missing:
            error = arrays["recon"][k] - arrays["truth"][k]  # [V]; 0 exactly where observed
            total = total + error**2
            count = count + (error != 0)
        own, shuffled = r  # [V] each
        mse = np.where(np.isnan(own), np.nan, total / np.maximum(count, 1))
        maps = {"r": own, "r, shuffled EEG": shuffled, "difference": own - shuffled, "MSE": mse}
        formats.save_maps(self.space, f"{folder}/desc-r_statmap", maps)

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
