"""Are the points that `sample.py --upsample 2` puts between two frames right? On the synthetic
subject, where the BOLD half a TR after each frame is known, without the scanner's noise.

    python benchmarks/between.py                       from EEG alone
    python benchmarks/between.py --interrecon --gap 9  (flags are sample.py's)

Rivals: cubic interpolation (through the four nearest frames) of the model's own frames one TR
apart, as `sample.py` gives them without --upsample, and of the anchors.
"""

import json
import os
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data
import sample as sampling
from tools.errors import fail, script


def cubic(seen, times):
    """Weights [len(times), len(seen)] of the cubic through the four nearest `seen`; held constant
    beyond them."""
    if len(seen) < 4:
        fail(f"{len(seen)} anchors a run: expected four or more for a cubic")
    times = np.clip(times, seen[0], seen[-1])
    weight = np.zeros((len(times), len(seen)))
    first = np.clip(np.searchsorted(seen, times, side="right") - 2, 0, len(seen) - 4)
    for i in range(4):
        here = seen[first + i]
        others = [seen[first + j] for j in range(4) if j != i]
        lagrange = np.prod([(times - there) / (here - there) for there in others], 0)
        weight[np.arange(len(times)), first + i] = lagrange
    return weight


def drawn(flags, mode):
    """What sample.py makes with --upsample 1 and 2: {points a frame: recon}, truth, metrics."""
    recon = {}
    with tempfile.TemporaryDirectory() as folder:
        for points in (1, 2):
            sampling.main([*flags, "--upsample", str(points), "--out", folder])
            recon[points] = np.load(os.path.join(folder, mode, "recon.npy"))
        truth = np.load(os.path.join(folder, mode, "truth.npy"))
        with open(os.path.join(folder, mode, "metrics.json")) as f:
            metrics = json.load(f)
    return recon, truth, metrics


def interpolated(frames, segments, seen):
    """Frames [T,V] of the segments -> the cubic half a TR after each [T,V], through those where
    `seen` bool [T] of each segment's own time."""
    found = np.zeros_like(frames)
    first = 0
    for low, high in segments:
        rows = slice(first, first + high - low)
        t = np.arange(high - low)
        known = t[seen(t)]
        found[rows] = cubic(known, t + 0.5) @ frames[rows][known]
        first = rows.stop
    return found


@script
def main(argv=None):
    flags = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(flags):
        sys.exit(__doc__)
    a = sampling.parse(argv)
    ckpt, _, _, normaliser = sampling.load(a.ckpt, "cpu")
    subject = data.Subject(a.data or ckpt["subject"])
    if subject.between is None:
        fail(f"{subject.folder}: no between.npy; only the synthetic subject has one")
    recon, truth, metrics = drawn(flags, "interrecon" if a.interrecon else "direct")
    segments = subject.segments("test")
    K = metrics["frames"]
    gap = metrics["gap"]

    guesses = {"NeuroFrames, --upsample 2": recon[2][1::2]}
    guesses["cubic of its own frames"] = interpolated(recon[1], segments, lambda t: t >= 0)
    if gap and not metrics["anchors"]:
        anchors = interpolated(truth, segments, lambda t: t % K % gap == 0)
        guesses["cubic of the anchors"] = anchors

    # Half a TR after the last frame of a run nothing can be interpolated.
    last = np.cumsum([high - low for low, high in segments]) - 1
    t = np.concatenate([np.arange(low, high) for low, high in segments])
    between = normaliser.zscore(subject.between[np.delete(t, last)])
    print(f"\n{'half a TR after each frame':28}{'MSE':>9}{'r':>8}")
    for name, guess in guesses.items():
        guess = torch.from_numpy(np.delete(guess, last, 0))
        mse, r, _ = sampling.frame_scores(guess, torch.from_numpy(between)).mean(0)
        print(f"{name:28}{mse:9.4f}{r:8.4f}")


if __name__ == "__main__":
    main()
