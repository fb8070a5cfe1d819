"""Whole runs: one BOLD file and one continuous EEG .npy [channels, samples] each.

EEG sample 0 is the onset of the first volume.
"""

import glob
import os
import re
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tools import files
from tools.checks import check_finite, check_tr
from tools.errors import fail

from . import prepared, regions
from .bold import common_mask, open_bold


class Run(NamedTuple):
    bold_path: str
    eeg_path: str
    bold: object  # [volumes,V], reads when sliced
    first: int  # volume that has EEG
    starts: list  # first EEG sample of each kept volume's window


def natural(path):
    """A key that sorts run-2 before run-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def prepare(a, eeg_windows):
    """Write the subject a.out. eeg_windows: data.py's rule that pairs volumes with EEG."""
    bolds, eegs = (sorted(glob.glob(pattern), key=natural) for pattern in (a.bold, a.eeg))
    if not bolds or len(bolds) != len(eegs):
        fail(
            f"--bold {a.bold} finds {len(bolds)} files, --eeg {a.eeg} {len(eegs)}; expected one of "
            "each a run"
        )
    if a.mask == "auto":
        a.mask = common_mask(bolds)
    runs, same = [], None
    for bold_path, eeg_path in zip(bolds, eegs):
        found, run = look_at(a, bold_path, eeg_path, eeg_windows)
        same = same or found
        check_alike(found, same, f"{bold_path}, {eeg_path}", f"{bolds[0]}, {eegs[0]}")
        runs.append(run)
        print(
            f"{bold_path} + {eeg_path}: {len(run.starts)} of {run.bold.shape[0]} volumes have EEG"
        )

    tr = same["s TR"]
    C = same["EEG channels"]
    V = same["grayordinates"]
    space = same["places"]
    W = round(tr * a.fs)
    meta = {
        "tr": tr,
        "fs": a.fs,
        "delay": a.delay,
        "first_volume": [run.first for run in runs],
        "source": [[os.path.abspath(run.bold_path), os.path.abspath(run.eeg_path)] for run in runs],
        "frames_per_run": [len(run.starts) for run in runs],
    }
    with prepared.writing(a.out, meta, V, C, W) as out:
        regions.save(out, a.parcels, space, V, a.labels)
        with tqdm(total=sum(len(run.starts) for run in runs), unit="frame") as bar:
            for run in runs:
                write_run(out, run, C, W, bar)


def look_at(a, bold_path, eeg_path, eeg_windows):
    """({what all runs must share}, Run) of a pair of files."""
    bold = open_bold([bold_path], a)
    bold_tr = bold.tr
    tr = a.tr or bold_tr or fail(f"{bold_path}: says no TR; give it with --tr, in seconds")
    check_tr("--tr" if a.tr else bold_path, tr)
    if a.tr and bold_tr and 0.05 <= bold_tr <= 20 and abs(a.tr - bold_tr) > 1e-3:
        fail(f"--tr {a.tr:g}: {bold_path} says {bold_tr:g} s; leave --tr out")
    (volumes, V), (C, samples) = bold.shape, files.load_npy(eeg_path, 2).shape
    check_names(bold_path, eeg_path)
    check_lengths(bold_path, eeg_path, (volumes, tr), (C, samples, a.fs), a.delay)
    first, starts = eeg_windows(samples, volumes, tr, a.fs, a.delay)
    if not starts or (a.channels or 1) > C:
        fail(
            f"{eeg_path}: has {C} channels, and {len(starts)} frames with a whole window of EEG "
            f"(--delay {a.delay:g}); expected {a.channels or 1} (--channels) or more, and one "
            "frame or more"
        )
    found = {"grayordinates": V, "s TR": tr, "EEG channels": a.channels or C, "places": bold.space}
    return found, Run(bold_path, eeg_path, bold, first, starts)


def write_run(out, run, C, W, bar):
    eeg = files.load_npy(run.eeg_path, 2)[:C]
    # An offset, which amplifiers have, leaks into the slowest rhythms of every window.
    offset = eeg.mean(1, dtype=np.float64)[:, None]  # [C,1]
    check_finite(offset, run.eeg_path, eeg, "channel", "sample")
    for i in range(0, len(run.starts), 256):  # CIFTI keeps time contiguous: small blocks are slow
        starts = run.starts[i : i + 256]
        eeg = files.load_npy(run.eeg_path, 2)  # opened anew: the pages read so far are let go
        windows = np.stack([eeg[:C, start : start + W] for start in starts])  # [t,C,W]
        rows = slice(run.first + i, run.first + i + len(starts))
        frames = run.bold.read(rows)  # [t,V]
        out.add(frames, windows - offset, run.eeg_path)
        bar.update(len(starts))


# ---- Checks ----------------------------------------------------------------------------


def check_alike(found, same, files_now, files_first):
    for what in found:
        if found[what] != same[what]:
            numbers = f" ({found[what]:g}, {same[what]:g})" if what != "places" else " in the brain"
            fail(f"{files_now}: other {what} than {files_first}{numbers}; expected runs alike")


def check_names(bold_path, eeg_path):
    """Fail if the names of two files that came together say that they are of two runs."""
    paths = bold_path, eeg_path
    bold, eeg = (re.findall(r"run-?(\d+)", os.path.basename(path))[-1:] for path in paths)
    if bold and eeg and int(bold[0]) != int(eeg[0]):
        fail(
            f"{bold_path}, {eeg_path}: run {bold[0]} and run {eeg[0]} came together, by the order "
            "of their names; expected the same runs of both: is one missing?"
        )


def check_lengths(bold_path, eeg_path, bold, eeg, delay):
    """Fail if BOLD (volumes, TR) and EEG (channels, samples, rate) cannot be of one run; say so if
    they look as if they were not."""
    (volumes, tr), (channels, samples, fs) = bold, eeg
    if channels > samples:
        fail(
            f"{eeg_path}: has shape [{channels}, {samples}]; expected [channels, samples]: save "
            "its transpose"
        )
    scan = volumes * tr
    recorded = samples / fs
    if recorded < scan - delay - tr or recorded > 1.5 * scan + 60:
        fail(
            f"{eeg_path}: {samples:,} samples of {channels} channels last {recorded:.1f} s at "
            f"--fs {fs:g}, but {bold_path} {scan:.1f} s, {volumes} volumes of {tr:g} s; expected "
            "the same run, the right rate, and BOLD as [volumes, V]"
        )
    if abs(recorded - scan) > 2 * tr:
        print(
            f"note: {eeg_path} lasts {recorded:.1f} s at {fs:g} Hz, its BOLD {scan:.1f} s: right "
            "only if it was recorded on after the last volume, or broken off before; else --fs or "
            "--tr is wrong"
        )
