"""What if only a part of a frame was observed?

This is what a linear decoder is for: x = D z + mean holds vertex by vertex, so that the vertices O
of a frame say D_O z = x_O - mean_O. With the singular values D_O = U S Q^T,

    A = Q^T [r,d],      y = S^-1 U^T (x_O - mean_O),      A z = y + what latents leave out

is the pseudo-inverse of the decoder's observed rows; where they are more than latents, it is the
least-squares fit. Directions that O hardly shows (S below 1e-3 of the largest) are left out of A.
As D z is not all of x, y - A z = S^-1 U^T (x - D z - mean)_O has a covariance R, measured on frames
that PCA has not seen, if there are any: where it is large, the model is believed more than y. With
W = Cov[z | z_n] over frames and latents (weighted_projection),

    z0 <- z0 + W A^T (A W A^T + R)^-1 (y - A z0)

Without weights each frame is on its own: W = (1 - abar) I. The inverse is that of a matrix of all
frames and latents, which would take gigabytes: conjugate gradients solve it without.

Seam    project(z0, abar)
Source  the Kalman gain; pseudo-inverse guidance (Song et al. 2023)
Gain    synthetic, a quarter of the vertices observed: MSE of the others 0.562 -> 0.286; without
        weights 0.594
"""

import os

import numpy as np
import torch

from .weighted_projection import posterior


def observe(rows, name, rois):
    """rows bool [period,V], what is observed of frames again and again, and of them also a region
    `name` of rois, or the mask of a file, bool [V] or [period of its own,V]. ValueError if there is
    none."""
    V = rows.shape[1]
    if name in rois:
        mask = rois[name]
    elif os.path.exists(name):
        mask = np.load(name, allow_pickle=False)
    else:
        known = ", ".join(rois) or "it has none (data.py --parcels)"
        raise ValueError(f"neither a file nor a region of the subject: {known}")
    mask = np.atleast_2d(mask)
    if mask.dtype != bool or mask.shape[1:] != (V,):
        found = f"{mask.dtype} of shape {mask.shape}"
        raise ValueError(f"holds {found}; expected boolean, [{V}] or [frames, {V}]")
    frame = np.arange(np.lcm(len(rows), len(mask)))
    return rows[frame % len(rows)] | mask[frame % len(mask)]


class Observation:
    """Frames seen in part, whole or not at all, as linear systems A z = y in their latents.

    rows       bool [patterns,V]: which vertices were seen. A frame's pattern is an index into rows,
               or -1: nothing was seen
    left_out   [V] variance of what latents leave out of frames, x - D z - mean, times the number of
               vertices that they leave out in unison
    residuals  blocks [n,V] of what they leave out, on which R is measured; may be none
    A, R       of each pattern [d,d]. A frame seen whole has A = I, R = 0. Directions that are left
               out of A are rows of zeros, and in R of the identity
    fits       {pattern: (row [V], S^2 [d])} of those that are not seen whole
    """

    @torch.no_grad()
    def __init__(self, autoencoder, rows, left_out, residuals):
        self.autoencoder = autoencoder
        d = autoencoder.latent_dim
        decoded = autoencoder.decode(torch.eye(d + 1, d, device=rows.device))  # [d+1,V]
        self.zero = decoded[-1]  # [V] the frame of z = 0
        self.D = (decoded[:-1] - self.zero).T  # [V,d]
        identity = torch.eye(d).to(self.D)
        self.A = [identity] * len(rows) + [0 * identity]  # -1: nothing was seen
        self.R = [0 * identity] * len(rows) + [identity]
        self.fits = {}
        for pattern, row in enumerate(rows):
            if not row.all():
                self.A[pattern], power = directions(self.D[row])
                self.fits[pattern] = row, power
                # What it were if such patches were left out independently counts as one frame.
                of_each = self.D[row] * left_out[row, None].sqrt()  # [O,d]
                self.R[pattern] = self.squared(of_each, pattern)

        count = 1
        for u in residuals:
            count += len(u)
            for pattern, (row, _) in self.fits.items():
                self.R[pattern] += self.squared(u[:, row] @ self.D[row], pattern)

        # Of few frames R would be singular: the fewer, the more it is drawn to its diagonal.
        for pattern, (_, power) in self.fits.items():
            R = self.R[pattern] / count
            r = int(power.isfinite().sum())
            R = torch.lerp(R, R.diag().diag(), r / (r + count)).to(self.D)
            self.R[pattern] = R + torch.diag(power.isinf()).to(R)

    def fit(self, x, pattern):
        """y [n,d] = S^-1 U^T x_O, of x_O^T D_O [n,d]."""
        return x @ self.A[pattern].T / self.fits[pattern][1]

    def squared(self, x, pattern):
        """Sum of y y^T [d,d] over frames, in float64 on the CPU."""
        y = self.fit(x, pattern).cpu().double()
        return y.T @ y

    def latents(self, x, pattern):
        """A^T y [n,d] of frames x [n,V] of one pattern."""
        if pattern not in self.fits:
            return self.autoencoder.encode(x)
        row = self.fits[pattern][0]
        return self.fit((x - self.zero)[:, row] @ self.D[row], pattern) @ self.A[pattern]

    def projection(self, patterns, prior, times):
        """(z0 [B,K,d], A^T y [B,K,d], abar) -> z0, weighted by the prior's covariance between the
        frames' times [K]; without a prior each of the frames is on its own."""
        places = {p: [k for k, q in enumerate(patterns) if q == p] for p in set(patterns)}

        def times_own(u, matrices, transposed=False):  # [B,K,d], by each frame's matrix
            out = torch.empty_like(u)
            for p, frames in places.items():
                matrix = matrices[p].to(u)
                out[:, frames] = u[:, frames] @ (matrix.T if transposed else matrix)
            return out

        def project(z0, y, abar):
            K, d = z0.shape[1:]
            W = (1 - abar) * torch.eye(K).expand(d, K, K)
            if prior is not None:
                W = posterior(prior, times, abar)
            W = W.to(z0)  # [d,K,K]

            def WA(u):  # W A^T u
                return torch.einsum("dkl,bld->bkd", W, times_own(u, self.A))

            def system(u):  # (A W A^T + R) u
                return times_own(WA(u), self.A, transposed=True) + times_own(u, self.R)

            diagonal = torch.empty(K, d).to(z0)  # of A W A^T + R
            for k, p in enumerate(patterns):
                diagonal[k] = self.A[p].square() @ W[:, k, k].to(self.D) + self.R[p].diag()
            error = times_own(y - z0, self.A, transposed=True)  # y - A z0
            return z0 + WA(conjugate_gradients(system, error, diagonal))

        return project


def directions(D):
    """(A [d,d], S^2 [d]) of a decoder's observed rows D [O,d]; of what they hardly show, 0 and
    infinity."""
    power, Q = torch.linalg.eigh((D.T @ D).cpu().double())  # [d], [d,d]
    shown = power > 1e-6 * power[-1]
    return (Q * shown).T.to(D), power.where(shown, torch.inf).to(D)


def conjugate_gradients(system, b, diagonal, tolerance=1e-5):
    """u with system(u) = b [B,K,d], for a positive definite system with this diagonal [K,d]
    (Hestenes and Stiefel 1952): the system as a matrix would not fit into memory."""

    def dot(u, v):  # [B,1,1]
        return (u * v).sum((1, 2), keepdim=True)

    u = torch.zeros_like(b)
    left = b  # b - system(u)
    step = left / diagonal
    size = dot(left, step)
    enough = tolerance**2 * size
    for _ in range(500):
        if (size <= enough).all():
            break
        change = system(step)
        length = size / dot(step, change).clamp(min=1e-30)
        u = u + length * step
        left = left - length * change
        scaled = left / diagonal
        before = size
        size = dot(left, scaled)
        step = scaled + size / before.clamp(min=1e-30) * step
    return u


def add_flags(add):
    add(
        "--observe",
        help="a region, or mask.npy bool [V] or [frames,V]; row 0: a stretch's first frame",
    )
