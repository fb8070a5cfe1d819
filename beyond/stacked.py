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
Gain    real-format session, direct: MSE 0.8 -> 0.7
"""

import torch

LEVELS = 8


def share_at(share, n, steps):
    """a [d] at step n of `steps`, between the levels [levels,d]."""
    place = (n / steps * len(share) - 0.5).clamp(0, len(share) - 1)
    low = place.long()
    high = (low + 1).clamp(max=len(share) - 1)
    return torch.lerp(share[low], share[high], (place - low).to(share))


def stacked(model, network, m, times):
    """(z_n [SB,K,d], n) -> eps of both, for S samples of B windows whose frames, at times [K], the
    closed form expects at m [B,K,d]. network: (z_n, n) -> eps."""

    def eps(z_n, n):
        repeated = m.repeat(len(z_n) // len(m), 1, 1)  # [SB,K,d]
        share = share_at(model.share, n[0], model.schedule.steps)  # [d]
        linear = model.linear.eps(z_n, n[:1], model.schedule, repeated, times)
        if share.min() == 1:
            return linear
        return torch.lerp(network(z_n, n), linear, share)

    return eps


@torch.no_grad()
def expected(model, batches):
    """m [T,d] of the frames of the validation run; else 0."""
    m = torch.zeros(batches.frames, model.linear.bias.shape[0], device=batches.where)
    for low, high in batches.splits["val"]:
        m[low:high] = model.linear.expected(batches.read_eeg, low, high)
    return m


@torch.no_grad()
def fit(model, m, batches):
    """Set model.share by the validation windows of train.Batches, of whose frames the closed form
    expects m [T,d]."""
    schedule, size = model.schedule, batches.a.batch_size
    windows = batches.validation_windows
    if not windows:
        return
    fits = torch.zeros(2, LEVELS, m.shape[1], device=m.device)
    for i in range(0, len(windows), size):
        some = windows[i : i + size]
        z, eeg, times, _ = batches.read(some)
        rows = torch.tensor([w.start for w in some])[:, None] + torch.arange(z.shape[1])
        h = model.encoder(eeg)  # [B,L,d_e]
        for level in range(LEVELS):
            g = torch.Generator().manual_seed(level)
            n = torch.full((len(z),), int((level + 0.5) / LEVELS * schedule.steps)).to(z.device)
            eps = torch.randn(z.shape, generator=g).to(z)
            z_n = schedule.add_noise(z, n, eps)
            network = model(z_n, n, h, times)  # [B,K,d]
            linear = model.linear.eps(z_n, n, schedule, m[rows], torch.arange(z.shape[1]))
            gap = linear - network
            fits[0, level] += ((eps - network) * gap).sum((0, 1))
            fits[1, level] += gap.square().sum((0, 1))
    common = fits.mean(2, keepdim=True)  # of all latents
    product, square = fits + common
    model.share.copy_((product / square).clamp(0, 1))
