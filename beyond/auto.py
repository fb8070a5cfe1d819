"""Which settings suit a recording?

`--preset auto` finds them, and is the default. No set of flags suits every recording: what keeps a
network from learning noise by heart where frames are few leaves too little where they are many. So
the settings follow what is there: frames, repetition time, sampling rate. The brain knows seconds,
files know frames: context is given in seconds. How many steps are right is not known before; so it
trains once with the last training run left out, on which the checkpoint and the closed form's share
are chosen, and then anew on all training runs for as long.

Seam    none: it sets train.py's flags
Source  ours; the numbers are measured, see docs/choices.md
Gain    real-format session, direct: MSE 2.63 (the paper's settings) -> 0.771
"""

import copy
import os
import time

import torch

from .network import say

TINY = {  # --preset tiny, and what the default begins with
    "autoencoder": "pca",
    "eeg_encoder": "bandpower",
    "predict": "v",
    "prior": "gaussian",
    "loss": "latent",
    "context": 6,
    "vary": True,
    "closed_form": False,
}
FEW = {  # the encoder held back, latents counted as they move vertices
    "loss": "vertex",
    "vary": False,
    "latent_dim": 128,
    "eeg_filters": 64,
    "eeg_bands": 40,
    "eeg_power": "log",
    "eeg_dropout": 0.9,
    "lr": 2e-3,
    "warmup": 50,
    "ema": 0.99,
    "epochs": 160,
}
ENOUGH = 2500  # training frames, from which on they are many
WIDE = 10_000  # from which on twice the width pays, and four times no more
AROUND = 4.8  # s of EEG shown before and after the frames of a window


def choose(a, subject, frames, sizes):
    """Fill in the flags of train.py that are not given; say what was chosen, and why. sizes: what
    the network is like where nothing speaks against it."""
    many = frames >= ENOUGH
    recipe = sizes | TINY | ({} if many else FEW)
    recipe["closed_form"] = True
    recipe["context"] = max(1, round(AROUND / subject.tr))
    recipe["width"] = 128 if frames < WIDE else 256
    for name, value in recipe.items():
        if getattr(a, name) is None:
            setattr(a, name, value)
    if a.steps is None:
        a.steps = max(1, a.epochs * frames // (a.frames * a.batch_size))
    # So many times the steps without a run left out.
    a.again = sum(high - low for low, high in subject.segments("train", validation=False)) / frames

    why = "windows vary in length" if many else "the EEG encoder is held back"
    C = subject.eeg.shape[1]
    ours = (1 + a.again * (a.again > 1)) * minutes(a, a.width, a.depth, a.steps, C)
    paper = minutes(a, 1024, 6, 200 * frames // 320, C)
    say(
        f"auto: {frames:,} training frames (many: {ENOUGH:,}), so {why}; {C} channels; EEG of "
        f"{a.context} frames ({a.context * subject.tr:.1f} s) around windows. Closed form, stacked "
        f"with a network of width {a.width}, depth {a.depth}, {a.steps:,} steps: about {ours:.0f} "
        f"minutes here (--steps 0, the closed form alone: one or two; the paper's sizes: "
        f"{paper:,.0f})"
    )


def minutes(a, width, depth, steps, channels):
    """What training takes, about: 40 ms a step, and twice what its products of matrices would at
    the speed of one here. (Forward and backward are six operations a weight and token.)"""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(2048, 2048, device=a.device or best)
    began = time.time()
    float((x @ x).sum())
    speed = 2 * 2048**3 / (time.time() - began)  # operations a second

    frames = a.batch_size * a.frames
    network = 6 * 16 * width**2 * depth * frames
    encoder = 24 * 64 * channels * 180 * (frames + 2 * a.context * a.batch_size)
    return steps * (0.04 + 2 * (network + encoder) / speed) / 60


def passes(a):
    """Settings to train with, one after the other: a; and if a run was left out to choose by, the
    same on all training runs, for as long as was best."""
    if a.steps == 0:
        a.no_validation = True
    yield a
    if a.preset != "auto" or a.no_refit or a.again == 1:
        return
    found = torch.load(os.path.join(a.out, "ckpt.pt"), map_location="cpu", weights_only=True)
    again = copy.copy(a)
    again.no_validation = True
    again.resume = False
    again.steps = max(1, round(found["step"] * a.again))
    if a.closed_form:
        share = found["model"]["share"]
        again.share = share.tolist()
        if share.min() == 1:
            say(
                "on the run left out the network adds nothing to the closed form: that stands alone"
            )
            again.steps = 0
    say(f"now on all training runs, {again.steps:,} steps (--no-refit leaves it at what there is)")
    yield again


def add_flags(add):
    add("--no-refit", action="store_true", help="auto: do not train anew on all runs in the end")
