"""What sample.py writes of its results: arrays, scores, metrics.json."""

import os
import time

import numpy as np

from . import files, over_time
from .ranks import RANK

METRICS = ("mse", "r", "cos")
NAMES = {
    "neuroframes": "NeuroFrames, mean of {}",
    "neuroframes_1": "NeuroFrames, one sample",
    "shuffled_eeg": "  with shuffled EEG, mean of {}",
    "other_eeg": "  with another person's, mean of {}",
    "no_null_space": "  without null space, mean of {}",
    "mean_frame": "mean training frame",
    "same_moment": "others at the same moment",
    "linear": "linear interpolation",
    "gaussian": "Gaussian conditional",
    "linear_gaussian": "linear-Gaussian, with EEG",
    "ceiling": "all that the EEG can tell",
}


def where(mask):
    """An index of what is True; of all a slice, which copies nothing."""
    return slice(None) if mask.all() else np.flatnonzero(mask)


class Scores:
    """Scores of every frame, by method and region, of what was not observed: masked arrays
    [T,metrics], whose means are of the frames that have something to score.

    regions   {name: bool [V]}
    timeline  a data.Timeline
    seen      bool [patterns,V]: which vertices are observed
    score     (x_hat, x [V]) of a frame -> [metrics]
    """

    def __init__(self, regions, timeline, seen, score):
        self.regions, self.timeline, self.score = regions, timeline, score
        self.free = [[where(mask & ~row) for mask in regions.values()] for row in seen]
        self.frames = {}

    def add(self, method, x_hat, x, k):
        """Frames x_hat, x [K,V] at places k [K]."""
        shape = len(self.regions), len(self.timeline.rows), len(METRICS)
        frames = self.frames.setdefault(method, np.ma.masked_all(shape))
        # One frame at a time: two of them stay in the CPU's cache while they are scored.
        for place, guess, truth in zip(k, x_hat, x):
            for i, index in enumerate(self.free[self.timeline.pattern[place]]):
                part = truth[index]
                if len(part):
                    frames[i, place] = self.score(guess[index], part)

    def summary(self):
        """{method: {region: {metric: {mean over frames, std over windows}}}}"""
        cells = []
        for frames in self.frames.values():
            windows = np.ma.stack([frames[:, block].mean(1) for block in self.timeline.blocks])
            cells.append(np.stack([frames.mean(1), windows.std(0)], 2))  # [regions,metrics,2]
        return files.named(cells, self.frames, self.regions, METRICS, ("mean", "std"))

    def runs(self, when):
        """Of each run (numbered from 1, with the seconds at which its test frames start: when) the
        scores of the whole brain; None where none of its frames has something to score."""
        found = []
        methods = "neuroframes", "mean_frame"
        whole = np.ma.concatenate([self.frames[method][0] for method in methods], 1)  # [T,3 + 3]
        names = *METRICS, "mean_frame_mse"
        for low, high in self.timeline.stretches:
            run, start = when(self.timeline.rows[low])
            row = {"run": run, "start": start, "frames": high - low}
            found.append(row | dict(zip(names, whole[low:high].mean(0).tolist())))
        return found


class Results:
    """recon.npy, shuffled.npy and std.npy [T points,V], truth.npy [T,V], written as they come; and
    their scores.

    a, study  sample.py's flags, and what it has opened
    timeline  a data.Timeline
    seen      bool [patterns,V]: which vertices were observed
    score     sample.frame_scores
    folder    where it all goes
    """

    def __init__(self, a, study, timeline, seen, score, folder):
        self.a, self.timeline, self.seen, self.folder = a, timeline, seen, folder
        self.subject, self.began = study.subject, time.time()
        self.before = []
        self.after = []  # errors at what was observed, of the last projection
        free = study.normaliser.valid & ~seen[np.unique(timeline.pattern)].all(0)
        masks = {"whole": free, **study.subject.rois}
        self.regions = {name: mask & free for name, mask in masks.items() if (mask & free).any()}
        self.scores = Scores(self.regions, timeline, seen, score)
        points = a.upsample
        rows = {"recon": points, "shuffled": points, "truth": 1, "std": points}  # to a frame
        if a.samples == 1:
            del rows["std"]
        self.writers = {}
        for name, count in rows.items() if RANK == 0 else ():
            shape = count * len(timeline.rows), len(free)
            self.writers[name] = files.NpyWriter(self.path(f"{name}.npy"), shape)

    def path(self, name):
        return os.path.join(self.folder, name)

    @property
    def arrays(self):
        """{name: [T,V]} of what was written, at the frames. Opened anew each time: the pages read
        so far, which count as this process's memory, are let go."""
        found = {name: np.load(self.path(f"{name}.npy"), mmap_mode="r") for name in self.writers}
        T = len(self.timeline.rows)
        return {name: array[:: len(array) // T] for name, array in found.items()}

    def write(self, **frames):
        """The next recon, shuffled, truth and std, [K or K points,V] each."""
        for name, writer in self.writers.items():
            writer.add(frames[name])

    def add_residual(self, before, after):
        """A block's errors [m] at what was observed, before and after the last projection."""
        if len(before):
            self.before.append(before.square().mean().item())
            self.after.append(after.abs().max().item())

    def finish(self, spread, outputs, look_back):
        """r_time*.npy, frames.npy, metrics.json; returns what evidence/table prints. spread: a
        Spread of evidence/calibration, or None; outputs: writes the lab's own formats and pictures,
        or None; look_back: evidence.helped.Helped, or None."""
        points, rows = self.a.upsample, self.timeline.rows
        for writer in self.writers.values():
            writer.close()
        if points > 1:
            rows = (rows[:, None] + np.arange(points) / points).ravel()
        files.save_array(self.path("frames.npy"), rows)
        metrics = self.metrics(spread)
        looks_back = [look_back(self, metrics)] if look_back else []
        r, metrics["over_time"] = over_time.look(self, looks_back)
        for name, values in zip(("r_time", "r_time_shuffled"), r):
            files.save_array(self.path(f"{name}.npy"), values)
        lines = [line for looked in looks_back for line in looked.tell()]
        files.save_json(self.path("metrics.json"), metrics)
        if outputs:
            missing = np.flatnonzero(~self.seen.all(1)[self.timeline.pattern])
            title = f"{metrics['mode']}, samples averaged: {self.a.samples}"
            outputs.write(self.folder, self.arrays, r, missing, title)
        return metrics, lines

    def metrics(self, spread):
        """The content of metrics.json."""
        a = self.a
        asked = (
            "mode paper frames gap anchors observe projection steps eta samples seed window "
            "overlap upsample null_space"
        )
        return {
            **{name: getattr(a, name) for name in asked.split()},
            "test_frames": len(self.timeline.rows),
            "scored_frames": int(self.scores.frames["neuroframes"][0, :, 0].count()),
            "scores": self.scores.summary(),
            "runs": self.scores.runs(self.subject.when),
            "residual_before": float(np.mean(self.before)) ** 0.5 if self.before else None,
            "anchor_residual": max(self.after) if self.after else None,
            "calibration": spread.summary() if spread else {},
            "seconds": round(time.time() - self.began, 1),
        }
