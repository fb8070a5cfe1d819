"""Which windows should the network see?

A frame's BOLD reflects the EEG of ten seconds and more, so that of `context` frames before and
after the window is shown too, each token at its true time. Windows of K/3 to 3K frames, as many
frames a step, teach one network every length; and the EEG of a frame may be cut at any time
between two frames, late by a share s of a frame:

    window k, late by s:  samples [(k + s) W, (k + 1 + s) W) of the recording

Seam    data.window_indices(windows, context), and what train.py reads of it
Source  ours
Gain    EEG around them: real-format session, direct: MSE 0.869 -> 0.807. Any length: synthetic,
        first and last of 10 frames observed: 0.249 -> 0.211, with all other chapters there
"""

from argparse import BooleanOptionalAction

import numpy as np


def draw_length(rng, K, W):
    """(frames a window, samples that the EEG is cut late) of a step: K/3 to 3K, and 0 or W / 2: in
    between one can be asked too, but what the EEG's spectra are need be computed twice only."""
    length = max(1, round(K * 3 ** rng.uniform(-1, 1)))
    return length, int(rng.integers(2)) * (W // 2)


def cut(eeg, samples):
    """EEG windows that follow one another, [B,L+1,C,W] -> [B,L,C,W], cut `samples` later. Together
    they are the recording (but for a sample now and then, where TR x fs is not whole)."""
    L = eeg.shape[1] - 1
    W = eeg.shape[-1]
    recording = eeg.transpose(1, 2).flatten(2)  # [B,C,(L+1) W]
    recording = recording[..., samples : samples + L * W]  # [B,C,L W]
    return recording.unflatten(-1, (L, W)).transpose(1, 2)  # [B,L,C,W]


def late(read):
    """A function from rows [B,L+1] and samples to EEG [B,L,C,W], cut so late; not late, from [B,L].
    read: rows -> EEG."""
    return lambda rows, samples: cut(read(rows), samples) if samples else read(rows)


def around(read, low, high, late=0, block=64):
    """EEG [t+2,C,W] of every t frames of a stretch, and of one before and after them; cut `late`
    samples late. Past the stretch its first and last are repeated. read: rows -> [rows,C,W]."""
    for i in range(low, high, block):
        rows = np.arange(i - 1, min(i + block, high) + 2).clip(low, high - 1)
        yield cut(read(rows)[None], late)[0]


def add_flags(add):
    add("--context", type=int, help="EEG windows shown before and after the K frames")
    add(
        "--vary",
        action=BooleanOptionalAction,
        help="windows of K/3 to 3K frames, EEG cut between frames too",
    )
