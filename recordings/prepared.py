"""Writes a prepared subject in pieces; it is there only when it is complete."""

import contextlib
import hashlib
import os

import numpy as np

from tools import files
from tools.checks import check_channels
from tools.errors import fail


class Writer:
    """fmri.npy and eeg.npy, frame after frame, and subject.json at the end; see `writing`."""

    def __init__(self, folder, meta, V, C, W):
        self.folder, self.meta = folder, meta
        lengths = meta.pop("frames_per_run")
        T = sum(lengths)
        self.fmri = files.NpyWriter(self.path("fmri.npy"), (T, V))
        self.eeg = files.NpyWriter(self.path("eeg.npy"), (T, C, W))
        self.checksums = {name: hashlib.blake2b(digest_size=8) for name in ("fmri", "eeg")}
        self.stops = np.cumsum(lengths).tolist()
        self.written = 0
        self.extremes = np.inf, -np.inf  # least and greatest EEG [C] of this run so far

    def path(self, name):
        return os.path.join(self.folder, name)

    def add(self, fmri, eeg, eeg_path="eeg"):
        """The next frames of a run: fmri [t,V] in raw units, eeg [t,C,W]."""
        fmri = self.fmri.add(fmri)
        eeg = self.eeg.add(eeg)
        self.checksums["fmri"].update(fmri.data)
        self.checksums["eeg"].update(eeg.data)
        low, high = self.extremes
        self.extremes = np.minimum(low, eeg.min((0, 2))), np.maximum(high, eeg.max((0, 2)))
        self.written += len(fmri)
        if self.written in self.stops:  # the end of a run
            check_channels(eeg_path, *self.extremes)
            self.extremes = np.inf, -np.inf

    def finish(self):
        self.fmri.close()
        self.eeg.close()
        self.meta["runs"] = [list(run) for run in zip([0] + self.stops[:-1], self.stops)]
        self.meta["checksums"] = {name: h.hexdigest() for name, h in self.checksums.items()}
        files.save_json(self.path("subject.json"), self.meta)


@contextlib.contextmanager
def writing(folder, meta, V, C, W):
    """A Writer of a subject of V vertices, C channels and W samples a frame.

    meta: what subject.json will say, and `frames_per_run`, which it will say as `runs`.
    """
    if not folder or os.path.realpath(folder) == os.path.realpath(os.getcwd()):
        fail(f"--out {folder}: cannot be the folder that this is run in; name a new folder")
    there = os.path.isdir(folder) and os.listdir(folder)
    if there and not os.path.exists(os.path.join(folder, "subject.json")):
        fail(f"--out {folder}: holds files, but is no prepared subject; name a new folder")
    with files.whole(folder) as partial:
        out = Writer(partial, meta, V, C, W)
        yield out
        out.finish()
