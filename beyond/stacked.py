"""Which of two answers?

The closed form needs few frames and finds what is linear in band power; the network finds more
where frames are many. Neither need be chosen: both say what the noise in z_n is, and

    eps = a eps_linear + (1 - a) eps_network,      or the same of z0, which is linear in eps

with shares a in [0,1] for each latent and level of noise, which fit a run best that neither was
trained on:

    a = sum of (eps - eps_network) (eps_linear - eps_network) / sum of (eps_linear - eps_network)^2

A latent's own share is noisy where the run is short; so it is drawn towards that of all latents
at this level, as if a run of an average latent said so too. And where the closed form found, in all
training runs, that the EEG tells nothing, one validation run must not be enough to believe a
network: shares are 1 at all levels where they are not right in windows that they were not fitted
to. What it has learned by heart would add up over the steps of sampling.

Seam    eps_model(z_n, n)
Source  stacking (Wolpert 1992, Breiman 1996)
Gain    real-format session, direct: MSE 0.823 (closed form), 0.797 (network) -> 0.771 (50 calls)
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


def share_of(sums):
    """a [..,d] of the two sums of the equation above, [2,..,d]."""
    products, squares = sums + sums.mean(-1, keepdim=True)  # and of an average latent
    return (products / squares).clamp(0, 1)


@torch.no_grad()
def fit(model, batches):
    """Set model.share by the validation windows of train.Batches, of whose frames the closed form
    expects batches.expected [T,d]. Without any it stays."""
    schedule = model.schedule
    every = batches.validation_windows
    sums = model.share.new_zeros(2, LEVELS, len(every), model.share.shape[1])
    for (z, n, eps, eeg, times), _, windows in batches.validation(schedule):
        frames = torch.arange(z.shape[1])
        rows = torch.tensor([window.start for window in windows])[:, None] + frames  # [B,K]
        m = batches.expected[rows].to(z)  # [B,K,d]
        z_n = schedule.add_noise(z, n, eps)
        of_network = model(z_n, n, model.encoder(eeg), times)  # [B,K,d]
        gap = model.linear.eps(z_n, n, schedule, m, frames) - of_network  # [B,K,d]
        missed = eps - of_network  # [B,K,d]
        places = [every.index(window) for window in windows]
        parts = torch.stack([missed * gap, gap.square()]).sum(2)  # [2,B,d]
        sums[:, level_of(n, schedule), places] = parts
    if dist.is_initialized():
        dist.all_reduce(sums)  # torchrun's processes have seen a share of the windows each
    if not sums.any():
        return

    total = sums.sum(2, keepdim=True)  # [2,LEVELS,1,d]
    model.share.copy_(share_of(total)[:, 0])
    if model.linear.weight.any():
        return

    # The EEG tells nothing. At which levels does the network add something all the same, in windows
    # that the shares were not fitted to? It must be three standard errors above nothing.
    others = share_of(total - sums)  # [LEVELS,windows,d]
    products, squares = sums
    gain = ((1 - others) * ((1 + others) * squares - 2 * products)).sum(2)  # [LEVELS,windows]
    deviation = gain.std(1, correction=0) / (len(every) - 1) ** 0.5  # of one window it is not known
    adds = gain.mean(1) > 3 * deviation  # [LEVELS]
    model.share[~adds] = 1
