"""Which runs are for training, which for validation, which for the test?"""

import re

import numpy as np

from tools.errors import fail


def names(subject):
    """Of a subject's runs."""
    return subject.meta.get("names") or [f"run-{i + 1}" for i in range(len(subject.runs))]


def by_names(subject, flags):
    """{split: frames}, of the runs that flags {"test", "val"} name by some parts of their names,
    such as ses-2 or task-rest_run-2. The others are for training; if no test is named, it stays."""
    several = hasattr(subject, "name")  # one of several people: it may be another's run
    given = subject.meta.get("split")
    label = np.full(len(subject.fmri), "none" if given else "train", "U5")  # [T]
    for frames in (given or {}).values():
        label[frames] = "train"
    for start, stop in [] if flags.get("test") else subject.segments("test"):
        label[start:stop] = "test"
    for split in ("val", "test"):  # what is named by both is for the test
        for part in flags.get(split) or ():
            found = [
                run
                for run, name in zip(subject.runs, names(subject))
                if set(part.split("_")) <= set(name.split("_"))
            ]
            if not found and not several:
                listed = ", ".join(names(subject))
                fail(f"--{split} {part}: {subject.folder} has no such run; it has {listed}")
            for start, stop in found:
                label[start:stop] = split
    if "test" not in label and not several:
        fail(f"--val: names all test runs of {subject.folder}; name another for it with --test")
    return {split: np.flatnonzero(label == split).tolist() for split in ("train", "val", "test")}


def tell(subject):
    """Print what was prepared, and which runs are for what."""
    T, V = subject.fmri.shape
    _, C, W = subject.eeg.shape
    print(f"{subject.folder}: {T:,} frames x {V:,} vertices, EEG {C} x {W}, TR {subject.tr:g} s")
    tasks = {}
    for split in ("train", "val", "test"):
        segments = subject.segments(split)
        runs = dict.fromkeys(names(subject)[subject.when(low)[0] - 1] for low, _ in segments)
        tasks[split] = set(re.findall("task-[A-Za-z0-9]+", " ".join(runs)))
        frames = sum(high - low for low, high in segments)
        print(f"  {split:5} {frames:6,} frames, stretches: {len(segments)} ({', '.join(runs)})")
    if tasks["test"] - tasks["train"]:
        print("note: the test runs are of a task that no training run is of (train.py --test)")
    # Two subjects with one checksum are one: this has happened in a public release.
    print("  checksums " + ", ".join(f"{k} {v}" for k, v in subject.meta["checksums"].items()))
