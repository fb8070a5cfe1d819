"""EEG without fMRI: a subject like another one, in which frames are missing.

A model that was trained on `--like` then says what BOLD would have been. Where that would be,
fmri.npy is 0, and subject.json says so: sample.py scores nothing.
"""

import json
import os
import shutil

import numpy as np

from spaces.space import load_space
from tools.errors import fail

from .bold import Bold
from .eeg import Recording


def known(folder):
    """The content of subject.json there."""
    path = f"{folder}/subject.json"
    if not os.path.exists(path):
        fail(f"--like {folder}: no prepared subject there; name the one that train.py was given")
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def nothing(a, recording):
    """A Bold of zeros, of as many volumes as a Recording has time for."""
    tr = known(a.like)["tr"]
    _, V = np.load(f"{a.like}/fmri.npy", mmap_mode="r").shape
    seconds = recording.samples / recording.fs - (a.start or 0)
    zeros = np.broadcast_to(np.float32(0), (int(seconds / tr), V))  # without memory
    return Bold(recording.path, zeros.shape, tr, load_space(a.like), zeros.__getitem__)


def with_known(a, recordings):
    """Recordings with no channels but those that a model of --like knows; and before them one that
    has all of these, in its order, to put them in common with."""
    said = known(a.like).get("eeg", {}) if a.like else {}
    names = said.get("channels")
    if not names:
        return recordings
    for r in recordings:
        have = r.names or []
        missing = [name for name in names if name not in have]
        if missing and a.bad_channels != "interpolate":
            fail(
                f"{r.path}: has no channel {', '.join(missing)}, as {a.like} has; expected all of "
                "its channels; --bad-channels interpolate makes some from the others"
            )
        r.picks = r.names = [name for name in have if name in names]
    return [Recording(a.like, None, names, names, 0, 0, said, []), *recordings]


def settle(a, recordings):
    """Fail if EEG is not of the rate that a model of --like knows. Returns what subject.json is to
    say of it."""
    fs = known(a.like)["fs"]
    for r in recordings:
        if r.fs != fs:
            fail(f"{r.path}: {r.fs:g} samples a second, {a.like} {fs:g}; --resample")
    return {"eeg_alone": True}


def copy_regions(a, folder):
    path = f"{a.like}/rois.npz"
    if os.path.exists(path):
        shutil.copy(path, folder)
