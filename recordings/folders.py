"""Folders with one .npy a frame, {i}.npy, as CineBrain distributes them: fMRI [V], EEG [>= C, W].

Their authors cut the fMRI 4 s late already: file i of one folder belongs to file i of the other,
and no delay is applied here. A run ends where numbers are missing, and every --frames-per-run."""

import json
import os
import re

import numpy as np
from tqdm import tqdm

from spaces import regions
from tools import files
from tools.checks import check_finite, check_tr
from tools.errors import fail

from . import prepared
from .bold import open_bold


def numbered(folder):
    """{number: path} of the files NUMBER.npy."""
    matches = [(re.fullmatch(r"(\d+)\.npy", name), name) for name in os.listdir(folder)]
    return {int(match[1]): os.path.join(folder, name) for match, name in matches if match}


def prepare(a):
    """Write the subject a.out, and return its folder in a list."""
    bold_folder = a.bold[0]
    eeg_folder = a.eeg[0]
    bold = numbered(bold_folder)
    eeg = numbered(eeg_folder)
    numbers = sorted(bold.keys() & eeg.keys())
    counts = f"{bold_folder} has {len(bold):,} files NUMBER.npy, {eeg_folder} {len(eeg):,}"
    if not numbers:
        fail(f"{counts}; expected files that share a number")
    print(f"{counts}; {len(numbers):,} are in both, {numbers[0]} to {numbers[-1]}")
    if len(numbers) < max(len(bold), len(eeg)):
        print("note: the others are left out; do both folders count from the same number?")
    check_tr("--tr", a.tr)

    place = np.array(numbers) - min(bold.keys() | eeg.keys())  # in the session
    per_run = a.frames_per_run or place[-1] + 1
    ends = (np.diff(place) > 1) | (np.diff(place // per_run) > 0)
    edges = [0, *(np.flatnonzero(ends) + 1).tolist(), len(place)]
    V = len(files.load_npy(bold[numbers[0]], 1))
    C, W = files.load_npy(eeg[numbers[0]], 2).shape
    C = a.channels or C
    space = read_space(a, V)
    meta = {
        "tr": a.tr,
        "fs": W / a.tr,
        "delay": 0.0,
        "delay_in_files": a.delay,
        "first_number": [numbers[i] for i in edges[:-1]],
        "first_volume": [int(place[i] % per_run) for i in edges[:-1]],
        "frames_per_run": np.diff(edges).tolist(),
        "source": [os.path.abspath(bold_folder), os.path.abspath(eeg_folder)],
    }
    if a.split:
        meta["split"] = read_split(a.split, numbers)
    with prepared.writing(a.out, meta, V, C, W) as out:
        regions.save(out, a.parcels, space, V)
        for i in tqdm(numbers, unit="frame"):
            out.add(*read_frame(bold[i], eeg[i], V, C, W), eeg[i])
    return [a.out]


def read_frame(bold_path, eeg_path, V, C, W):
    """Frame [1,V] and EEG [1,C,W], checked."""
    x = files.load_npy(bold_path, 1)
    eeg = files.load_npy(eeg_path, 2)
    if x.shape != (V,) or eeg.shape[0] < C or eeg.shape[1] != W:
        fail(
            f"{bold_path}, {eeg_path}: shapes {x.shape}, {eeg.shape}; expected {(V,)}, "
            f"({C} or more, {W})"
        )
    check_finite(x, bold_path, x, "vertex")
    check_finite(eeg[:C], eeg_path, eeg, "channel", "sample")
    return x[None], eeg[None, :C]


def read_space(a, V):
    """The Space of a .dtseries.nii of V grayordinates."""
    path = a.space
    if not path:
        return None
    space = open_bold([path], a).space
    if space is None or len(space) != V:
        fail(
            f"--space {path}: has {len(space or ()):,} grayordinates, the frames have {V:,}; "
            "expected a .dtseries.nii of them"
        )
    return space


def read_split(path, numbers):
    """{"train": [places], "test": [places]} in `numbers` of frames, by a CineBrain JSON of test
    clips: a list of {"fmri": [paths], "eeg": [paths], ...}; the number in a path is the frame's."""
    try:
        with open(path, encoding="utf-8") as f:
            paths = [path for clip in json.load(f) for path in clip["fmri"]]
        test = {int(re.search(r"(\d+)\.npy$", path)[1]) for path in paths}
    except (OSError, ValueError, TypeError, KeyError) as error:
        fail(
            f'--split {path}: not a list of clips {{"fmri": [".../NUMBER.npy", ...]}} ({error!r})',
            error,
        )
    split = {
        "train": [i for i, number in enumerate(numbers) if number not in test],
        "test": [i for i, number in enumerate(numbers) if number in test],
    }
    if not split["test"] or not split["train"]:
        found = f"names {len(split['test'])} of {len(numbers)} frames"
        fail(f"--split {path}: {found}; expected some, not all")
    return split
