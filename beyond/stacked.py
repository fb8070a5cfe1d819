"""Which of two answers?

The closed form needs few frames and finds what is linear in band power; the network finds more
where frames are many. Neither need be chosen: both say what the noise in z_n is, and

    eps = a eps_linear + (1 - a) eps_network,      or the same of z0, which is linear in eps

with shares a in [0,1] for each latent and level of noise, which fit a run best that neither was
trained on:

    a = sum of (eps - eps_network) (eps_linear - eps_network) / sum of (eps_linear - eps_network)^2

A latent's own share is noisy where the run is short; so it is drawn towards that of all latents
at this level, as if a run of an average latent said so too.

Seam    eps_model(z_n, n)
Source  stacking (Wolpert 1992, Breiman 1996)
Gain    real-format session, direct: MSE 0.823 (closed form), 0.797 (network) -> 0.771
"""

import torch
import torch.distributed as dist

LEVELS = 8


def level_of(n, schedule):
    """Of steps n [B], all of which are in one."""
    return n[0] * LEVELS // schedule.steps


def stacked(model, network, expected):
    """(z_n [SB,K points,d], n) -> eps of both, for S samples of B windows of which the closed form
    expects [B,points,K,d]. network: (z_n, n) -> eps."""
    m = expected.transpose(1, 2).flatten(1, 2)  # [B,K points,d]
    times = torch.arange(m.shape[1]) / expected.shape[1]  # in frames

    def eps(z_n, n):
        repeated = m.repeat(len(z_n) // len(m), 1, 1)  # [SB,K,d]
        share = model.share[level_of(n, model.schedule)]  # [d]
        linear = model.linear.eps(z_n, n[:1], model.schedule, repeated, times)
        if share.min() == 1:
            return linear
        return torch.lerp(network(z_n, n), linear, share)

    return eps


@torch.no_grad()
def fit(model, batches):
    """Set model.share by the validation windows of train.Batches, of whose frames the closed form
    expects batches.expected [T,d]. Without any it stays."""
    schedule = model.schedule
    products = torch.zeros_like(model.share)
    squares = torch.zeros_like(model.share)
    for (z, n, eps, eeg, times), _, windows in batches.validation(schedule):
        frames = torch.arange(z.shape[1])
        rows = torch.tensor([window.start for window in windows])[:, None] + frames  # [B,K]
        m = batches.expected[rows].to(z)  # [B,K,d]
        z_n = schedule.add_noise(z, n, eps)
        of_network = model(z_n, n, model.encoder(eeg), times)  # [B,K,d]
        gap = model.linear.eps(z_n, n, schedule, m, frames) - of_network  # [B,K,d]
        level = level_of(n, schedule)
        products[level] += ((eps - of_network) * gap).sum((0, 1))
        squares[level] += gap.square().sum((0, 1))
    for part in (products, squares) if dist.is_initialized() else ():
        dist.all_reduce(part)  # torchrun's processes have seen a share of the windows each
    if squares.any():
        common = products.mean(1, keepdim=True)  # of an average latent
        share = (products + common) / (squares + squares.mean(1, keepdim=True))
        model.share.copy_(share.clamp(0, 1))
