"""What sample.py writes and says of its results: arrays, scores, metrics.json, the table."""

import os
import time

import numpy as np
import torch

from . import files
from .ranks import RANK

METRICS = ("mse", "r", "cos")


class Scores:
    """Scores [frames,metrics] a window, for every method and region, of what was not observed.

    regions  {name: bool [V]}
    seen     bool [patterns,V]: which vertices are observed
    score    (x_hat, x [frames,V]) -> [frames,metrics]
    """

    def __init__(self, regions, seen, score):
        self.score = score
        self.windows = {}
        self.free = []
        for row in seen:
            free = {name: np.flatnonzero(mask & ~row) for name, mask in regions.items()}
            self.free.append({name: torch.from_numpy(index) for name, index in free.items()})

    def add(self, method, x_hat, x, pattern):
        """One window's frames x_hat, x [frames,V], observed as pattern [frames] says."""
        found = {}
        for row in np.unique(pattern):
            guess = x_hat[pattern == row]
            truth = x[pattern == row]
            for region, index in self.free[row].items():
                if len(index):
                    scores = self.score(guess[:, index], truth[:, index]).numpy()
                    found.setdefault(region, []).append(scores)
        for region, scores in found.items():
            windows = self.windows.setdefault(method, {}).setdefault(region, [])
            windows.append(np.concatenate(scores))

    def summary(self):
        """{method: {region: {metric: {mean over frames, std over windows}}}}"""
        table = {}
        for method, regions in self.windows.items():
            for region, windows in regions.items():
                every = np.concatenate(windows)  # [frames,metrics]
                row = {}
                for i, metric in enumerate(METRICS):
                    deviation = np.std([scores[:, i].mean() for scores in windows])
                    row[metric] = {"mean": float(every[:, i].mean()), "std": float(deviation)}
                table.setdefault(method, {})[region] = row
        return table


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
        self.whole = seen.all(1)  # [patterns]
        self.before = []
        self.after = []  # errors at what was observed, of the last projection
        valid = study.normaliser.valid
        masks = {"whole": valid, **study.subject.rois}
        self.regions = {name: mask & valid for name, mask in masks.items()}
        self.scores = Scores(self.regions, seen, score)
        points = a.upsample
        rows = {"recon": points, "shuffled": points, "truth": 1, "std": points}  # to a frame
        if a.samples == 1:
            del rows["std"]
        self.writers = {}
        for name, count in rows.items() if RANK == 0 else ():
            shape = count * len(timeline.rows), len(valid)
            self.writers[name] = files.NpyWriter(self.path(f"{name}.npy"), shape)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, **frames):
        """The next recon, shuffled, truth and std, [K or K points,V] each."""
        for name, writer in self.writers.items():
            writer.add(frames[name])

    def add_score(self, method, guess, x, k):
        self.scores.add(method, guess, x, self.timeline.pattern[k])

    def add_residual(self, before, after):
        """A block's errors [m] at what was observed, before and after the last projection."""
        if len(before):
            self.before.append(before.square().mean().item())
            self.after.append(after.abs().max().item())

    def finish(self, spread, outputs, look_back):
        """frames.npy, metrics.json, plot.png; returns what `show` prints. spread: a
        calibration.Spread, or None; outputs: writes the lab's own formats, or None; look_back:
        beyond.look_back, or None."""
        for writer in self.writers.values():
            writer.close()
        points, rows = self.a.upsample, self.timeline.rows
        if points > 1:
            rows = (rows[:, None] + np.arange(points) / points).ravel()
        files.save_array(self.path("frames.npy"), rows)
        metrics = self.metrics(spread)
        arrays = {}
        for name in self.writers:
            array = np.load(self.path(f"{name}.npy"), mmap_mode="r")
            arrays[name] = array[:: len(array) // len(self.timeline.rows)]
        maps, lines = look_back(arrays, self, metrics) if look_back else ({}, [])
        for name, values in maps.items():
            files.save_array(self.path(f"{name}.npy"), values)
        files.save_json(self.path("metrics.json"), metrics)
        if outputs:
            missing = np.flatnonzero(~self.whole[self.timeline.pattern])
            r = tuple(maps.values())
            outputs.write(self.folder, arrays, r, missing, title(metrics))
        return metrics, [*lines, spread.told()] if spread else lines

    def metrics(self, spread):
        """The content of metrics.json."""
        a = self.a
        asked = "gap anchors observe projection steps eta samples seed window overlap upsample"
        return {
            "mode": "interrecon" if a.interrecon else "direct",
            "paper": a.paper,
            "frames": a.frames,
            **{name: getattr(a, name) for name in asked.split()},
            "null_space": a.interrecon and not a.no_null_space,
            "test_frames": len(self.timeline.rows),
            "scored_frames": sum(map(len, self.scores.windows["neuroframes"]["whole"])),
            "scores": self.scores.summary(),
            "residual_before": float(np.mean(self.before)) ** 0.5 if self.before else None,
            "anchor_residual": max(self.after) if self.after else None,
            "calibration": spread.summary() if spread else {},
            "seconds": round(time.time() - self.began, 1),
        }


def add_flags(add):
    """Those of sample.py for pictures."""
    add("--plot", action="store_true", help="draw plot.png, vertices by time (needs matplotlib)")
    add("--surfaces", nargs=2, metavar=("LEFT", "RIGHT"), help="two .surf.gii: draw surfaces.png")


# ---- What is printed -------------------------------------------------------------------

NAMES = {
    "neuroframes": "NeuroFrames, mean of {}",
    "neuroframes_1": "NeuroFrames, one sample",
    "shuffled_eeg": "  with shuffled EEG, mean of {}",
    "no_null_space": "  without null space, mean of {}",
    "mean_frame": "mean training frame",
    "linear": "linear interpolation",
    "gaussian": "Gaussian conditional",
    "linear_gaussian": "linear-Gaussian, with EEG",
    "ceiling": "all that the EEG can tell",
}


def title(metrics):
    n = metrics["samples"]
    return f"{metrics['mode']}, " + (f"mean of {n} samples" if n > 1 else "one sample")


def show(metrics, lines):
    """Print the table of sample.py, and what it says in plain words. metrics: of metrics.json;
    lines: of beyond."""
    summary = metrics["scores"]
    print(
        f"\n{metrics['mode']}: {metrics['scored_frames']:,} of {metrics['test_frames']:,} test "
        f"frames scored, in windows of {metrics['frames']}; {metrics['steps']} steps, eta "
        f"{metrics['eta']:g}\n"
        "mean over frames +- standard deviation over windows, in z-scores"
    )
    for region in summary["neuroframes"]:
        print(f"\n{region:34}{'MSE':>15}{'r':>17}{'cos':>17}")
        for method, name in NAMES.items():
            if method in summary:
                row = summary[method][region].values()
                cells = [f"{cell['mean']:10.3f} +- {cell['std']:.3f}" for cell in row]
                print(f"{name.format(metrics['samples']):34}" + "".join(cells))
    print("", *lines, sep="\n")
    if metrics["residual_before"] is not None:
        whole = {method: regions["whole"] for method, regions in summary.items()}
        print(null_space(whole, metrics))


def null_space(whole, metrics):
    """What the projection was worth, beside interpolations, which need no EEG."""
    names = {
        "neuroframes": "with the projection",
        "no_null_space": "without it",
        "linear": "by linear interpolation",
        "gaussian": "by the Gaussian conditional",
    }
    mse = [f"{whole[m]['mse']['mean']:.3f} {name}" for m, name in names.items() if m in whole]
    before = metrics["residual_before"]
    after = metrics["anchor_residual"]
    return (
        f"MSE of what was missing: {', '.join(mse)}.\nWhat was observed is put back: {before:.3f} "
        f"(rms) off before that, {after:g} after."
    )
