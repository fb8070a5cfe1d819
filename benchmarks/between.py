"""Are the points that `sample.py --upsample 2` puts between two frames right? On the synthetic subject, where the BOLD half
a TR after each frame is known, without the scanner's noise.

    python benchmarks/between.py                       from EEG alone
    python benchmarks/between.py --interrecon --gap 9  (flags are sample.py's)

Rivals: cubic interpolation (through the four nearest frames) of the model's own frames one TR apart, as
`sample.py` gives them without --upsample, and of the anchors.
"""
import json
import os
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data  # noqa: E402
import sample as sampling  # noqa: E402
from tools.errors import fail, script  # noqa: E402


def cubic(seen, times):
    """Weights [len(times), len(seen)] of the cubic through the four nearest `seen`; held constant beyond them."""
    if len(seen) < 4:
        fail(f"{len(seen)} anchors a run: expected four or more for a cubic")
    times, weight = np.clip(times, seen[0], seen[-1]), np.zeros((len(times), len(seen)))
    first = np.clip(np.searchsorted(seen, times, side="right") - 2, 0, len(seen) - 4)
    for i in range(4):
        others = [j for j in range(4) if j != i]
        weight[np.arange(len(times)), first + i] = np.prod(
            [(times - seen[first + j]) / (seen[first + i] - seen[first + j]) for j in others], 0)
    return weight


@script
def main(argv=None):
    flags = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(flags):
        sys.exit(__doc__)
    a = sampling.parse(argv)
    ckpt, _, _, normaliser = sampling.load(a.ckpt, "cpu")
    subject, mode = data.Subject(a.data or ckpt["subject"]), "interrecon" if a.interrecon else "direct"
    if subject.between is None:
        fail(f"{subject.folder}: no between.npy; only the synthetic subject has one")
    with tempfile.TemporaryDirectory() as folder:
        recon = {}
        for u in (1, 2):
            sampling.main([*flags, "--upsample", str(u), "--out", folder])
            recon[u] = np.load(os.path.join(folder, mode, "recon.npy"))
        truth, metrics = np.load(os.path.join(folder, mode, "truth.npy")), json.load(open(os.path.join(folder, mode, "metrics.json")))
    segments, K = subject.segments("test"), metrics["frames"]
    guesses = {"NeuroFrames, --upsample 2": recon[2][1::2]}
    guesses["cubic of its own frames"], anchors, last = np.zeros_like(truth), np.zeros_like(truth), []
    first = 0
    for low, high in segments:
        T, rows = high - low, slice(first, first + high - low)
        guesses["cubic of its own frames"][rows] = cubic(np.arange(T), np.arange(T) + 0.5) @ recon[1][rows]
        if metrics["gap"] and not metrics["anchors"]:
            seen = np.flatnonzero(np.arange(T) % K % metrics["gap"] == 0)
            anchors[rows] = cubic(seen, np.arange(T) + 0.5) @ truth[rows][seen]
            guesses["cubic of the anchors"] = anchors
        first += T
        last.append(first - 1)  # half a TR after the last frame nothing can be interpolated
    t = np.delete(np.concatenate([np.arange(low, high) for low, high in segments]), last)
    between = torch.from_numpy(normaliser.zscore(subject.between[t]))
    print(f"\n{'half a TR after each frame':28}{'MSE':>9}{'r':>8}")
    for name, guess in guesses.items():
        mse, r, _ = sampling.frame_scores(torch.from_numpy(np.delete(guess, last, 0)), between).mean(0)
        print(f"{name:28}{mse:9.4f}{r:8.4f}")


if __name__ == "__main__":
    main()
