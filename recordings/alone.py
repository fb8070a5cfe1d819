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


def known(folder):
    """The content of subject.json there."""
    path = os.path.join(folder, "subject.json")
    if not os.path.exists(path):
        fail(f"--like {folder}: no prepared subject there; name the one that train.py was given")
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def nothing(a, recording):
    """A Bold of zeros, of as many volumes as a Recording has time for."""
    tr = known(a.like)["tr"]
    V = np.load(os.path.join(a.like, "fmri.npy"), mmap_mode="r").shape[1]
    seconds = recording.samples / recording.fs - (a.start or 0)

    def rows(volumes):
        return np.zeros((volumes.stop - volumes.start, V), np.float32)

    return Bold(recording.path, (int(seconds / tr), V), tr, load_space(a.like), rows)


def settle(a, recordings):
    """Fail if EEG is not what a model of --like knows: rate and channels, which are put in order.
    Returns what subject.json is to say of it."""
    there = known(a.like)
    names = there["eeg"].get("channels")
    for r in recordings:
        if r.fs != there["fs"]:
            fail(f"{r.path}: {r.fs:g} samples a second, {a.like} {there['fs']:g}; --resample")
        if names and not set(names) <= set(r.names or []):
            fail(f"{r.path}: has not the channels of {a.like}: {', '.join(names)}")
        for what in ("highpass", "lowpass", "reference"):
            values = r.said.get(what), there["eeg"].get(what)
            if values[0] != values[1]:
                print(f"note: {r.path}: {what} is {values[0]}, of {a.like} {values[1]}")
        if names:
            r.picks = r.names = r.said["channels"] = names
    return {"eeg_alone": True}


def copy_regions(a, folder):
    path = os.path.join(a.like, "rois.npz")
    if os.path.exists(path):
        shutil.copy(path, folder)
