"""What do latents leave out of frames, x - D z - mean?

Scanner noise mostly. No sample has it, but the truth does: intervals that are to hold the truth
need its variance (evidence/calibration.py), observations of single vertices its covariance
(any_vertices.py).

Seam    after sampling: a spread over samples -> that of the truth
Source  the noise that probabilistic PCA adds to each vertex (Tipping and Bishop 1999)
Gain    synthetic, every second frame observed: 90% intervals that hold the truth in 31% of cases ->
        in 90%
"""

import torch


def residuals(frames, autoencoder, splits):
    """What latents leave out [n,V], block by block: of the validation run, because PCA leaves out
    less of frames that it was fitted to; of those all the same, if there are no others.

    frames: rows -> frames in z-scores [n,V]."""
    for low, high in splits["val"] or splits["train"]:
        for rows in torch.arange(low, high).split(128):
            x = frames(rows).to(autoencoder.E.device)
            yield x - autoencoder.decode(autoencoder.encode(x))


def variance(frames, autoencoder, splits):
    """The variance [V] of that; and how many vertices are left out in unison, V tr(C^2) / tr(C)^2
    with its covariance C: 1 if each is on its own. tr(C^2) is the mean of (u_s u_t)^2 over pairs of
    frames."""
    total = count = alike = pairs = 0
    for u in residuals(frames, autoencoder, splits):
        total += u.square().sum(0)  # [V]
        count += len(u)
        products = (u @ u.T).fill_diagonal_(0)  # [n,n]
        alike += products.square().sum()
        pairs += len(u) * (len(u) - 1)
    power = total / count  # [V]
    unison = len(power) * alike / max(1, pairs) / power.sum() ** 2
    return power, unison.clamp(min=1)
