"""What did the brain do between two frames?

Times are real numbers for the network, and the Gaussian prior knows the covariance between any
times. Yet the network was only ever asked about frames one TR apart: asked about u points a frame
at once, it says everything u times. So it is asked about u sets of points, each one TR apart, each
with EEG cut at its own times, and the prior puts the sets together. What the EEG says, a mean m of
z, adds

    -sqrt(abar (1 - abar)) (abar C + (1 - abar) I)^-1 m

to eps. A set alone, with 1/u of the points, sees smooth components of C with 1/u of the power; so
each component is multiplied by

    (abar power / u + 1 - abar) / (abar power + 1 - abar)

which turns the inverse of one set into that of all points together.

Seam    eps_model(z_n, n), at u points a frame
Source  ours
Gain    synthetic, every second frame observed, half a TR after each: MSE 0.044 by cubic
        interpolation of its frames -> 0.004
"""

import torch

from .computed_once import once


def interleave(prior, out, abar):
    """The network's answers for u sets of frames, [B,u,K,d] -> [B,Ku,d], for all their points."""
    u = out.shape[1]
    out = out.transpose(1, 2).flatten(1, 2)  # [B,Ku,d]

    def gain(power):
        return (abar * power / u + 1 - abar) / (abar * power + 1 - abar)

    return prior.filter(out, torch.arange(out.shape[1]) / u, gain)


def eps_model(model, tokens, eeg_times):
    """(z_n [SB,Ku,d], n) -> eps at u points a frame, of S samples of B windows, with EEG tokens
    [B,u,L,d_e] of each set at eeg_times [B,L]. model: a beyond.Network with a prior."""
    u = tokens.shape[1]
    answer = once(model.dit, tokens.flatten(0, 1), eeg_times.repeat_interleave(u, 0))

    def eps(z_n, n):
        sets = z_n.unflatten(1, (-1, u)).transpose(1, 2).flatten(0, 1)  # [SBu,K,d]
        out = answer(sets, n).unflatten(0, (-1, u))  # [SB,u,K,d]
        out = interleave(model.prior, out, model.schedule.alpha_bar[n[0]].item())  # [SB,Ku,d]
        return model.finish(out, z_n, n[:1], torch.arange(z_n.shape[1]) / u)

    return eps


def add_flags(add):
    add("--upsample", type=int, help="points a frame: 2 for the BOLD every half TR (default: 1)")
