"""Which settings suit a recording?

`--preset auto` finds them, and is the default. No set of flags suits every recording: what keeps a
network from learning noise by heart where frames are few leaves too little where they are many. So
the settings follow what is there: frames, repetition time, sampling rate. The brain knows seconds,
files know frames: context is given in seconds. How many steps are right is not known before; so it
trains once with the last training run left out, on which the checkpoint and the closed form's share
are chosen, and then anew on all training runs for as long.

Seam    none: it sets train.py's flags
Source  ours; the numbers are measured, see docs/choices.md
Gain    real-format session, direct: MSE 2.63 (the paper's settings) -> 0.770
"""

import copy
import os
import time

import torch

import people

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
    many = frames >= ENOUGH or a.adapt  # (of a group, which knows how it was trained)
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
    if a.adapt:
        why = f"the group's network is tuned, at --lr {a.lr:g}"
    C = subject.eeg.shape[1]
    stages = plan(a, subject, frames)
    ours = sum(stages.values())
    if a.again > 1:
        stages["the same on all runs"] = a.again * ours
    said = ", ".join(f"{stage} {minutes:.1f}" for stage, minutes in stages.items())
    say(
        f"auto: {frames:,} training frames (many: {ENOUGH:,}), so {why}; {C} channels; EEG of "
        f"{a.context} frames ({a.context * subject.tr:.1f} s) around windows. Closed form, stacked "
        f"with a network of width {a.width}, depth {a.depth}, {a.steps:,} steps\n"
        f"plan, in minutes, about: {said}; together {sum(stages.values()):.0f} "
        "(--steps 0: without the network)"
    )


def plan(a, subject, frames):
    """Minutes that each stage of training takes, about: reading all twice at 0.5 GB/s, products of
    matrices at half the speed of one here, and 40 ms a step."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(2048, 2048, device=a.device or best)
    began = time.time()
    float((x @ x).sum())
    speed = 2048**3 / (time.time() - began) / 2  # multiplications, each with an addition, a second

    T, V = subject.fmri.shape
    _, C, W = subject.eeg.shape
    some = min(frames, 8192)  # of which the autoencoder is found
    latents = V * (some**2 / 2 + (some + T) * a.latent_dim)
    read = T * (V + C * W) / 6e7  # s: 8 bytes a value
    features = min(2560, 120 * C)  # of the closed form
    forms = 1 + len(getattr(subject, "people", []))  # of all; and of each person
    ridge = 6 * features**2 * (frames + 10 * features * forms)  # of five folds and of all frames
    batch = a.batch_size * a.frames
    # Forward and backward are three multiplications a weight and token.
    network = 48 * a.width**2 * a.depth * batch
    encoder = 12 * 64 * C * 180 * (batch + 2 * a.context * a.batch_size)
    return {
        "reading and latents": (read + latents / speed) / 60,
        "closed form": (5e-5 * C * frames + ridge / speed) / 60,
        "network": a.steps * (0.04 + (network + encoder) / speed) / 60,
    }


def passes(a):
    """Settings to train with, one after the other: a; and if a run was left out to choose by, the
    same on all training runs, for as long as was best."""
    if not a.resume:
        people.adapt.settle(a)
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
