"""The autoencoder's closed form for frames that do not fit into memory."""

import math

import numpy as np
import torch

from .ranks import say


def eigenvectors(gram, count):
    """The leading `count` eigenvalues and eigenvectors of a large float64 matrix, ascending.

    Of 8,192 all take a minute, and an eighth or less is wanted: so a basis of half as many more is
    multiplied by the matrix again and again, until once more captures less than 3e-4 of the whole
    more (subspace iteration, Halko et al. 2011). All eigenvectors would capture 3e-6 of the whole
    more if power falls like 1/i, and 5e-4 if it hardly falls."""
    rounded = gram.float()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(gram), min(len(gram), 3 * count // 2 + 32), generator=generator)
    before, captured = -1.0, 0.0
    while captured - before > 3e-4:
        before = captured
        basis = torch.linalg.qr(start)[0]
        start = rounded @ basis
        captured = float((basis * start).sum() / rounded.trace())
    basis = torch.linalg.qr(start.double())[0]
    power, turn = torch.linalg.eigh(basis.T @ gram @ basis)
    return power[-count:], basis @ turn[:, -count:]


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
    """LinearAutoencoder.fit for T frames that come as columns(slice of vertices) -> [T,v]: the same
    sums, a block of vertices at a time, and the eigenvectors of x x^T [T,T]. (The covariance of
    91,282 vertices would be 33 GB, 8,192 frames themselves are 3 GB.) block: also the largest T for
    which all eigenvectors are computed in float64."""
    V = len(autoencoder.mean)
    mean = torch.zeros_like(autoencoder.mean)
    spans = [slice(i, min(i + block, V)) for i in range(0, V, block)]

    # x x^T is symmetric: of its blocks those right of the diagonal need not be computed.
    gram = torch.zeros(T, T, dtype=torch.float64)
    for span in spans:
        x = columns(span)
        mean[span] = x.mean(0)
        x -= mean[span]
        for i in range(0, T, 1024):
            gram[i : i + 1024, : i + 1024] += (x[i : i + 1024] @ x[: i + 1024].T).cpu()
    gram = gram.tril() + gram.tril(-1).T
    if block >= T:
        power, basis = torch.linalg.eigh(gram)
    else:
        power, basis = eigenvectors(gram, autoencoder.latent_dim)

    d = min(autoencoder.latent_dim, int((power > 1e-6 * power[-1]).sum()))
    scale = power[-d:].flip(0).sqrt()  # [d]
    weight = (basis[:, -d:].flip(1) / scale).T.float().to(mean.device)  # [d,T]
    E = mean.new_empty(d, V)
    for span in spans:
        E[:, span] = weight @ (columns(span) - mean[span])
    autoencoder.set_axes(E, mean, scale / math.sqrt(T))
    return float(power[-d:].sum() / gram.trace())
