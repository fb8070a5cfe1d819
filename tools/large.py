"""The autoencoder's closed form for frames that do not fit into memory."""

import math

import numpy as np
import torch

from .ranks import say


class Columns:
    """Frames of a subject as one z-scored [T,V] array that reads the columns it is sliced for."""

    def __init__(self, subject, normaliser, index):
        self.subject, self.normaliser, self.index = subject, normaliser, index
        self.shape = (len(index), subject.fmri.shape[1])

    def __getitem__(self, key):
        columns, n = key[1], self.normaliser
        pieces = np.array_split(self.index, 1 + len(self.index) // 1024)  # map few pages at a time
        rows = [np.asarray(self.subject.fmri[piece, columns], np.float32) for piece in pieces]
        return (np.concatenate(rows) - n.mean[columns]) * n.inverse[columns]


def eigenvectors(gram, count):
    """The leading `count` eigenvalues and eigenvectors of a large float64 matrix, ascending.

    Of 8,192 all take half a minute, and an eighth is wanted: so half as many more than are wanted
    are iterated, w = gram @ basis (Halko et al. 2011), until a round captures no more than 1e-5 of
    the whole more; and a small problem in float64 tells them apart."""
    size = min(len(gram), 3 * count // 2 + 32)
    start = torch.randn(len(gram), size, generator=torch.Generator().manual_seed(0))
    rounded = gram.float()
    captured = -1.0
    more = 1.0
    while more > 3e-4:
        basis = torch.linalg.qr(start)[0]
        start = rounded @ basis
        before = captured
        captured = (basis * start).sum() / rounded.trace()
        more = captured - before
    basis = torch.linalg.qr(start.double())[0]
    power, turn = torch.linalg.eigh(basis.T @ gram @ basis)
    return power[-count:], basis @ turn[:, -count:]


def fit(autoencoder, subject, normaliser, rows):
    """LinearAutoencoder.fit to the frames `rows` of a subject; says what it found."""
    asked = autoencoder.latent_dim
    columns = Columns(subject, normaliser, rows)
    if columns.shape[1] <= 4096:
        frames = torch.from_numpy(columns[:, :]).to(autoencoder.mean.device)
        kept = autoencoder.fit(frames)
    else:
        kept = fit_in_blocks(autoencoder, columns)
    say(
        f"autoencoder: {autoencoder.latent_dim} latents (of {asked} asked for) keep {kept:.1%} of "
        f"the variance of {len(rows):,} training frames; {(~normaliser.valid).sum():,} vertices do "
        "not vary"
    )


@torch.no_grad()
def fit_in_blocks(autoencoder, frames, block=4096):
    """LinearAutoencoder.fit for `frames` [T,V], anything that slices like an array: the same sums,
    a block of vertices at a time, and the eigenvectors of x x^T [T,T]. (The covariance of 91,282
    vertices would be 33 GB, 8,192 frames themselves are 3 GB.) block: also the largest T for which
    all eigenvectors are computed in float64."""
    T, V = frames.shape
    mean = torch.zeros_like(autoencoder.mean)
    spans = [slice(i, min(i + block, V)) for i in range(0, V, block)]

    def columns(span):
        x = torch.as_tensor(frames[:, span]).to(mean)  # [T,v]
        mean[span] = x.mean(0)
        return x - mean[span]

    # x x^T is symmetric: what lies right of its diagonal's blocks need not be computed.
    gram = torch.zeros(T, T, dtype=torch.float64)
    rows = [slice(i, min(i + 1024, T)) for i in range(0, T, 1024)]
    for span in spans:
        x = columns(span)
        for some in rows:
            gram[some, : some.stop] += (x[some] @ x[: some.stop].T).cpu()
    gram = gram.tril() + gram.tril(-1).T
    if len(gram) <= block:
        power, basis = torch.linalg.eigh(gram)
    else:
        power, basis = eigenvectors(gram, autoencoder.latent_dim)

    d = min(autoencoder.latent_dim, int((power > 1e-6 * power[-1]).sum()))
    scale = power[-d:].flip(0).sqrt()  # [d]
    weight = (basis[:, -d:].flip(1) / scale).T.float().to(mean.device)  # [d,T]
    E = mean.new_empty(d, V)
    for span in spans:
        E[:, span] = weight @ columns(span)
    autoencoder.set_axes(E, mean, scale / math.sqrt(T))
    return float(power[-d:].sum() / gram.trace())
