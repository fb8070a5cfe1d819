"""Runs: BOLD and EEG of each -> a prepared subject.

Continuous EEG begins with the first volume (--start says otherwise), or each volume is marked in it
(--trigger). Of files with one frame or window each, folders.py says which belong together.
"""

import copy
import os
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from spaces import regions
from spaces.space import common_mask
from tools.checks import check_finite, check_tr
from tools.errors import fail

from . import alone, confounds, eeg, folders, pairs, prepared
from .bold import open_bold


class Run(NamedTuple):
    pair: pairs.Pair
    read: object  # rows -> BOLD frames [t,V]
    recording: object  # its EEG
    first: int  # volume that has EEG
    starts: list  # first EEG sample of each kept volume's window; of folders its number
    unusable: np.ndarray  # bool: of those volumes, which are left out of training and scores
    cleaned: dict  # what was taken out of BOLD
    alike: dict  # what all runs must share


def prepare(a, eeg_windows):
    """Write the subjects, and return their folders. eeg_windows: data.py's rule that pairs volumes
    with EEG."""
    people = [(a.out, folders.runs_of(a))] if a.frames else pairs.people(a)
    if a.times and people[1:]:
        fail(f"--eeg {a.windows.path}: is of one person, --bold of {len(people)}; one at a time")
    for folder, own in people:
        prepare_one(a, folder, own, eeg_windows)
    return [folder for folder, _ in people]


def prepare_one(a, folder, own, eeg_windows):
    """One person's subject, of their Pairs."""
    a = copy.copy(a)  # a mask is that of one person
    if a.mask == "auto":
        a.mask = common_mask([pair.bold[0] for pair in own])
    runs = []
    for pair in own:
        before = sum(len(run.starts) for run in runs)  # frames
        runs.append(look_at(a, pair, eeg_windows, before))
        check_alike(runs[-1], runs[0])
    recordings = [run.recording for run in runs]
    eeg.channels_in_common(alone.with_known(a, recordings), a.bad_channels)

    V, tr, fs, _, space = runs[0].alike.values()
    W = round(tr * fs)
    unusable = np.flatnonzero(np.concatenate([run.unusable for run in runs]))
    meta = {
        "tr": tr,
        "fs": fs,
        "delay": a.delay,
        "names": [run.pair.name for run in runs],
        "first_volume": [run.first for run in runs],
        "unusable": unusable.tolist(),
        "eeg": recordings[0].said,
        "taken_out": [run.cleaned for run in runs],
        "jitter": [r.jitter for r in recordings],
        "source": [[*map(os.path.abspath, [*run.pair.bold, run.recording.path])] for run in runs],
        "frames_per_run": [len(run.starts) for run in runs],
    }
    if a.windows:
        meta |= folders.told(a, runs)
    if a.space:
        space = folders.read_space(a, V)
    if a.like:
        meta |= alone.settle(a, recordings)
        meta["split"] = {"test": list(range(sum(meta["frames_per_run"])))}
    C = len(recordings[0].names or recordings[0].picks)
    with prepared.writing(folder, meta, V, C, W) as out:
        regions.save(out, a.parcels, space, V, a.labels)
        if a.like:
            alone.copy_regions(a, out.folder)
        for run in runs:
            write_run(out, run, W)


def look_at(a, pair, eeg_windows, before):
    """The Run of a Pair. before: frames of the runs before it."""
    path = (pair.bold or [pair.eeg])[0]
    recording = None if a.windows else eeg.open_eeg(pair.eeg, a)
    if a.frames:
        series = folders.open_frames(a, pair)
    else:
        series = open_bold(pair.bold, a) if pair.bold else alone.nothing(a, recording)
    tr = a.tr or series.tr
    check_tr("--tr" if a.tr else path, tr)
    if a.tr and series.tr and 0.05 <= series.tr <= 20 and abs(a.tr - series.tr) > 1e-3:
        fail(f"--tr {a.tr:g}: {path} says {series.tr:g} s; leave --tr out")
    volumes, V = series.shape

    if a.windows:
        recording = folders.open_windows(a, tr)
        first, starts = folders.when(a, pair, volumes, tr, before)
    else:
        first, starts = when(a, recording, path, volumes, tr, eeg_windows)
    unusable = eeg.check_continuous(recording, starts, round(tr * recording.fs))
    read = series.read
    cleaned = {}
    if a.confounds or a.high_pass:
        matrix, good, cleaned = confounds.design(confounds.find(path, a), a, volumes, tr)
        read = confounds.cleaned(series.read, matrix, good)
        unusable |= ~good[first : first + len(starts)]
    print(
        f"{pair.name}: {len(starts)} of {volumes} volumes have EEG, {unusable.sum()} of those are "
        "not used"
    )
    alike = {
        "vertices": V,
        "s TR": tr,
        "Hz of EEG": recording.fs,
        "EEG channels": 0 if recording.names else len(recording.picks),
        "places": series.space,
    }
    return Run(pair, read, recording, first, starts, unusable, cleaned, alike)


def when(a, recording, path, volumes, tr, eeg_windows):
    """(First volume that has continuous EEG, samples at which windows of EEG start)."""
    if recording.names and a.channels:
        fail(f"--channels {a.channels}: is for .npy; {recording.path} names them; leave it out")
    if not a.trigger:
        check_lengths(path, volumes, tr, recording, a)
    fs = recording.fs
    onsets = eeg.volume_onsets(recording, a, volumes, tr) / fs  # [volumes] s
    first, starts = eeg_windows(recording.samples, onsets, tr, fs, a.delay)
    if not starts:
        fail(
            f"{recording.path}: 0 frames have a whole window of EEG (--delay {a.delay:g}); "
            "expected some"
        )
    return first, starts


def write_run(out, run, W):
    """Its frames, and a window of W samples of EEG for each."""
    offset = mean_of(run.recording)
    # CIFTI keeps time contiguous: small blocks are slow.
    for i in tqdm(range(0, len(run.starts), 256), run.pair.name, unit=" x 256 frames"):
        starts = run.starts[i : i + 256]
        windows = np.stack([run.recording.read(start, start + W) for start in starts])  # [t,C,W]
        frames = run.read(slice(run.first + i, run.first + i + len(starts)))  # [t,V]
        out.add(frames, windows - offset, run.recording.path)


def mean_of(recording, block=2**16):
    """[C,1] over all samples: an offset, which amplifiers have, leaks into the slowest rhythms of
    every window."""
    total = 0
    for i in range(0, recording.samples, block):
        eeg = recording.read(i, min(i + block, recording.samples))  # [C,t]
        check_finite(eeg, f"{recording.path}, from sample {i} on", eeg, "channel", "sample")
        total = total + eeg.sum(1)[:, None]
    return total / max(1, recording.samples)


# ---- Checks ----------------------------------------------------------------------------


def check_alike(run, other):
    """Fail if a run has not what the first one has."""
    for what, value in run.alike.items():
        same = other.alike[what]
        if value != same:
            numbers = f" ({value:g}, {same:g})" if what != "places" else " in the brain"
            fail(
                f"{'+'.join(run.pair.bold)}, {run.recording.path}: other {what} than "
                f"{'+'.join(other.pair.bold)}, {other.recording.path}{numbers}; expected runs alike"
            )


def check_lengths(path, volumes, tr, recording, a):
    """Fail if BOLD and EEG that begins --start seconds before the first volume
    cannot be of one run; say so if they look as if they were not."""
    channels = len(recording.picks)
    samples = recording.samples
    if channels > samples:
        fail(
            f"{recording.path}: has shape [{channels}, {samples}]; expected [channels, samples]: "
            "save its transpose"
        )
    scan = volumes * tr
    recorded = samples / recording.fs - (a.start or 0)  # s
    if recorded < scan - a.delay - tr or recorded > 1.5 * scan + 60:
        fail(
            f"{recording.path}: {samples:,} samples of {channels} channels last {recorded:.1f} s "
            f"at --fs {recording.fs:g}, but {path} {scan:.1f} s, {volumes} volumes of {tr:g} s; "
            "expected the same run, the right rate, and BOLD as [volumes, V]"
        )
    if abs(recorded - scan) > 2 * tr:
        print(
            f"note: {recording.path} lasts {recorded:.1f} s at {recording.fs:g} Hz, its BOLD "
            f"{scan:.1f} s: right only if it was recorded on after the last volume, or broken off "
            "before; else --fs or --tr is wrong"
        )
