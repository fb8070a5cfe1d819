"""The autoencoder's closed form for frames that do not fit into memory."""

import math

import numpy as np
import torch

from .device import bfloat16_pays
from .ranks import say


def leading(gram, count):
    """An orthonormal basis [T,count] of what the leading eigenvectors of gram [T,T] span, nearly.

    All eigenvectors of 8,192 frames take a minute, and an eighth or less is wanted: so a basis of
    half as many more is multiplied by the matrix again and again, until once more captures less
    than 3e-4 of the whole more (subspace iteration, Halko et al. 2011). All eigenvectors would
    capture 5e-7 of the whole more if power falls like 1/i, and 6e-4 if it hardly falls."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(gram), 3 * count // 2 + 32, generator=generator)
    before, captured = -1.0, 0.0
    while captured - before > 3e-4:
        before = captured
        basis = torch.linalg.qr(start)[0]
        start = gram @ basis
        captured = float((basis * start).sum() / gram.trace())
    _, turn = torch.linalg.eigh(basis.T @ start)
    return basis @ turn[:, -count:]


def fit(autoencoder, subject, normaliser, rows):
    """LinearAutoencoder.fit to the frames `rows` of a subject; says what it found."""
    asked = autoencoder.latent_dim
    V = subject.fmri.shape[1]
    pieces = np.array_split(rows, 1 + len(rows) // 1024)  # map few pages at a time

    def columns(span):  # [T,v] in z-scores
        parts = [normaliser.zscore(subject.fmri[piece, span], span) for piece in pieces]
        return torch.from_numpy(np.concatenate(parts)).to(autoencoder.mean)

    if V <= 4096:
        kept = autoencoder.fit(columns(slice(V)))
    else:
        kept = fit_in_blocks(autoencoder, columns, len(rows))
    say(
        f"autoencoder: {autoencoder.latent_dim} latents (of {asked} asked for) keep {kept:.1%} of "
        f"the variance of {len(rows):,} training frames; {(~normaliser.valid).sum():,} vertices do "
        "not vary"
    )


@torch.no_grad()
def fit_in_blocks(autoencoder, columns, T, block=4096):
    """LinearAutoencoder.fit for T frames that come as columns(slice of vertices) -> [T,v], a block
    of vertices at a time. (The covariance of 91,282 vertices would be 33 GB, 8,192 frames
    themselves are 3 GB.) block: also the largest T for which all eigenvectors of x x^T are
    computed, and the fit is the same.

    Of more frames x x^T is made in bfloat16 where that is faster: its leading eigenvectors span
    what captures hardly less. Within this span all is found anew, from frames that are not rounded:
    u = basis^T x = turn diag(s) E, with turn and s^2 from u u^T, has orthonormal axes E. (Even
    latents of noise, which nothing tells apart, have a variance of 1 to four digits.)"""
    mean = torch.zeros_like(autoencoder.mean)
    spans = [slice(i, i + block) for i in range(0, len(mean), block)]
    exact = block >= T

    # x x^T is symmetric: of its blocks those right of the diagonal need not be computed.
    gram = torch.zeros(T, T)
    for span in spans:
        x = columns(span)
        mean[span] = x.mean(0)
        x -= mean[span]
        if not exact and bfloat16_pays(x.device, T):
            x = x.bfloat16()
        for i in range(0, T, 1024):
            gram[i : i + 1024, : i + 1024] += (x[i : i + 1024] @ x[: i + 1024].T).cpu()
    gram = gram.tril() + gram.tril(-1).T
    d = autoencoder.latent_dim
    basis = torch.linalg.eigh(gram.double())[1][:, -d:] if exact else leading(gram, d)

    along = basis.T.to(mean)  # [d,T]
    u = torch.cat([along @ (columns(span) - mean[span]) for span in spans], 1)  # [d,V]
    power, turn = torch.linalg.eigh((u @ u.T).cpu().double())

    d = int((power > 1e-6 * power[-1]).sum())
    scale = power[-d:].flip(0).sqrt()  # [d]
    E = (turn[:, -d:].flip(1) / scale).T.to(u) @ u
    autoencoder.set_axes(E, mean, scale / math.sqrt(T))
    return float(power[-d:].sum() / gram.trace())
