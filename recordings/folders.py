"""Folders with one .npy a frame, {i}.npy, as CineBrain distributes them: fMRI [V], EEG [>= C, W].

Their authors cut the fMRI late already, by --delay: file i of one folder belongs to file i of the
other, and no delay is applied here. A run ends where numbers are missing, and every
--frames-per-run.

A folder of EEG goes with whole runs of BOLD too: --times says when in each scan the video ran, and
the volumes of that time, later by the delay, are numbered through all runs, as the files are.
"""

import csv
import json
import os
import re

import numpy as np

from spaces import regions
from spaces.space import Space
from tools import files
from tools.checks import check_finite
from tools.errors import fail

from .bold import Bold, open_bold
from .eeg import Recording
from .pairs import Pair


class Folder:
    """The arrays of a folder's files NUMBER.npy, all of one shape, by their numbers."""

    def __init__(self, path, axes, rows=None):
        names = [name for name in os.listdir(path) if re.fullmatch(r"\d+\.npy", name)]
        self.paths = {int(name[:-4]): os.path.join(path, name) for name in names}
        self.path = path
        self.axes = axes
        self.rows = rows  # how many are wanted, the first; None: all
        self.shape = None  # that of the first one that is read

    def __getitem__(self, number):
        path = self.paths[number]
        array = files.load_npy(path, self.axes)[: self.rows]
        self.shape = self.shape or array.shape
        if array.shape != self.shape or len(array) < (self.rows or 1):
            rows = f", with --channels {self.rows}" if self.rows else ""
            fail(f"{path}: has shape {array.shape}{rows}; expected {self.shape}")
        check_finite(array, path, array, "vertex or channel", "sample")
        return array


def runs_of(a):
    """A Pair of each run of two folders: its `eeg` are the numbers of its frames."""
    bold = a.frames.paths.keys()
    eeg = a.windows.paths.keys()
    both = bold & eeg
    counts = f"{a.frames.path} has {len(bold):,} files NUMBER.npy, {a.windows.path} {len(eeg):,}"
    if not both:
        fail(f"{counts}; expected files that share a number")
    print(f"{counts}; {len(both):,} are in both, {min(both)} to {max(both)}, and are taken")
    begin = min(bold | eeg)
    per_run = a.frames_per_run or max(both) + 1
    own = []
    for number in sorted(both):
        volume = (number - begin) % per_run
        if volume == 0 or number - 1 not in both:
            own.append(Pair(f"run-{len(own) + 1}", "", a.bold, [], volume))
        own[-1].eeg.append(number)
    return own


def open_frames(a, pair):
    """The Bold of such a run."""
    begin = pair.eeg[0] - pair.first  # number of its volume 0

    def rows(volumes):
        return np.stack([a.frames[begin + i] for i in range(volumes.start, volumes.stop)])

    volumes = pair.first + len(pair.eeg)
    return Bold(a.bold[0], (volumes, len(a.frames[pair.eeg[0]])), None, None, rows)


def open_windows(a, tr):
    """A Recording: what begins at a number is the window in the file of that number."""
    if not a.windows.paths:
        fail(f"--eeg {a.windows.path}: has 0 files NUMBER.npy; expected one a volume")
    C, W = a.windows[min(a.windows.paths)].shape

    def source(_, number, stop):
        return a.windows[number]

    # 0 samples: none are in one piece, so that there is no offset to take out.
    return Recording(a.windows.path, source, range(C), None, W / tr, 0, {}, [])


def read_space(a, V):
    """The Space of V grayordinates of a .dtseries.nii: of all, or of those in --space-mask."""
    space = open_bold([a.space], a).space
    if space and a.space_mask:
        name = os.path.basename(a.space_mask).removesuffix(".npy")
        atlases = [path for path in a.parcels or [] if not path.endswith(".npy")]
        paths = atlases if name == a.space_mask else [a.space_mask]
        masks = regions.find_regions(paths, a.labels, space, len(space))
        if name not in masks:
            fail(f"--space-mask {name}: is neither a file nor a region of --parcels: {[*masks]}")
        space = Space(space.axis[masks[name]], space.kind)
    if space is None or len(space) != V:
        fail(
            f"--space {a.space}: has {len(space or ()):,} grayordinates, the frames have {V:,}; "
            "expected a .dtseries.nii of them, or --space-mask that says which they are"
        )
    return space


# ---- Whole runs of BOLD ----------------------------------------------------------------


def when(a, pair, volumes, tr, before):
    """(First volume that has EEG, numbers of the files of its windows and of those that follow)."""
    if a.frames:
        return pair.first, pair.eeg
    path = pair.eeg
    try:
        with open(path, encoding="utf-8-sig") as f:
            if path.endswith(".json"):
                row = json.load(f)
            else:
                row = next(csv.DictReader(f, delimiter="," if path.endswith(".csv") else "\t"))
        start, stop = (float(row[name]) for name in ("videoStartTime", "videoStopTime"))  # s
        first, end = (int((time + a.delay) / tr) + 1 for time in (start, stop))
    except Exception as error:  # of many kinds
        fail(
            f"{path}: says no videoStartTime and videoStopTime, in s ({error!r}); expected a .tsv "
            "or .csv with these columns, or a .json",
            error,
        )
    if not 0 <= first < end <= volumes:
        fail(
            f"{path}: {start:g} to {stop:g} s are volumes {first} to {end} (--delay {a.delay:g}); "
            f"its run has {volumes} of {tr:g} s; expected times in s from its first volume on"
        )
    begin = min(a.windows.paths) + before
    return first, range(begin, begin + end - first)


def told(a, runs):
    """What subject.json is to say of the files' numbers."""
    numbers = [number for run in runs for number in run.starts]
    there = a.windows.paths.keys()
    wrong = sorted(there ^ {*numbers})
    if a.times and wrong:
        counts = ", ".join(f"{run.pair.name} {len(run.starts):,}" for run in runs)
        fail(
            f"{a.windows.path}: has {len(there):,} files NUMBER.npy, from {min(there)} on, but by "
            f"--times there are {len(numbers):,} volumes ({counts}); expected as many; only one of "
            f"both has {wrong[:8]}"
        )
    meta = {"first_number": [run.starts[0] for run in runs]}
    if a.frames:
        meta |= {"delay": 0.0, "delay_in_files": a.delay}
    if a.split:
        meta["split"] = read_split(a.split, numbers)
    return meta


def read_split(path, numbers):
    """{"train": [places], "test": [places]} in `numbers` of frames, by a CineBrain JSON of test
    clips: a list of {"fmri": [paths], "eeg": [paths], ...}; the number in a path is the frame's."""
    try:
        with open(path, encoding="utf-8") as f:
            paths = [path for clip in json.load(f) for path in clip["fmri"]]
        clips = [int(re.search(r"(\d+)\.npy$", path)[1]) for path in paths]
    except Exception as error:  # of many kinds
        fail(
            f'--split {path}: not a list of clips {{"fmri": [".../NUMBER.npy", ...]}} ({error!r})',
            error,
        )
    test = np.isin(numbers, clips)  # bool [frames]
    if test.all() or not test.any():
        fail(f"--split {path}: names {test.sum()} of {len(test)} frames; expected some, not all")
    return {"train": np.flatnonzero(~test).tolist(), "test": np.flatnonzero(test).tolist()}
