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

Without weights each frame is on its own: W = (1 - abar) I. Frames that were seen whole have R = 0:
they go first, exactly, and what is left of W is the others' (weighted_projection). Of a frame seen
in part only F = L^-1 A is kept, with R = L L^T: the noise of F z = L^-1 y is white, and

    z0 <- z0 + W F^T (F W F^T + I)^-1 F (y - z0),     y in latents, A^T y

The matrix of all frames and latents would take gigabytes: conjugate gradients solve it without.
Where W makes neighbouring frames nearly equal, many steps are needed to tell them apart, if nothing
near the inverse is known. If all frames were seen alike, each row of F makes a small system of
those frames [K,K]. If they were not, rows of one F have nothing to do with those of another; then
with W = S S^T the same is solved for v, of which each latent makes a small system:

    z0 <- z0 + S v,     (I + S^T F^T F S) v = S^T F^T F (y - z0)

With the inverses of the small systems the steps are few.

Seam    project(z0, abar)
Source  the Kalman gain; pseudo-inverse guidance (Song et al. 2023)
Gain    synthetic, a quarter of the vertices observed: MSE of the others 0.562 -> 0.286; without
        weights 0.594
"""

import os

import numpy as np
import torch

from .weighted_projection import gain, over_frames, posterior

TOLERANCE = 1e-3  # of how far z0 moves; samples are then 0.02% of their spread away


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
    """Frames seen in part, whole or not at all, as linear systems in their latents.

    rows       bool [patterns,V]: which vertices were seen. A frame's pattern is an index into rows,
               or -1: nothing was seen
    left_out   [V] variance of what latents leave out of frames, x - D z - mean, times the number of
               vertices that they leave out in unison
    residuals  blocks [n,V] of what they leave out, on which R is measured; may be none
    fits       {pattern: (F [d,d], S^2 [r])} of those that are not seen whole; for directions that
               are left out of A the last rows of F are 0
    """

    @torch.no_grad()
    def __init__(self, autoencoder, rows, left_out, residuals):
        self.autoencoder, self.rows = autoencoder, rows
        d = autoencoder.latent_dim
        decoded = autoencoder.decode(torch.eye(d + 1, d, device=rows.device))  # [d+1,V]
        self.zero = decoded[-1]  # [V] the frame of z = 0
        self.D = (decoded[:-1] - self.zero).T  # [V,d]
        residuals = list(residuals)
        self.fits = {
            pattern: self.system(row, left_out, residuals)
            for pattern, row in enumerate(rows)
            if not row.all()
        }

    def system(self, row, left_out, residuals):
        """(F [d,d], S^2 [r]) of frames of which row [V] was seen."""
        D = self.D[row]  # [O,d]
        power, Q = torch.linalg.eigh((D.T @ D).cpu().double())  # [d], [d,d]
        shown = power > 1e-6 * power[-1]
        power = power[shown]  # [r]
        A = Q.T[shown]  # [r,d]
        fit = A.T / power  # [d,r]: y = x_O^T D_O fit

        # What it were if such patches were left out independently counts as one frame.
        weighted = D * left_out[row, None]  # [O,d]
        R = fit.T @ (D.T @ weighted).cpu().double() @ fit
        for u in residuals:
            y = (u[:, row] @ D).cpu().double() @ fit  # [n,r]
            R += y.T @ y
        count = 1 + sum(map(len, residuals))
        R /= count

        # Of few frames R would be singular: the fewer, the more it is drawn to its diagonal.
        r = len(R)
        R = torch.lerp(R, R.diag().diag(), r / (r + count))
        F = torch.linalg.solve_triangular(torch.linalg.cholesky(R), A, upper=False)
        nothing = F.new_zeros(len(Q) - r, len(Q))
        return torch.cat([F, nothing]).to(D), power.to(D)

    def latents(self, x, pattern):
        """A^T y [n,d] of frames x [n,V] of one pattern."""
        if pattern not in self.fits:
            return self.autoencoder.encode(x)
        row = self.rows[pattern]
        F, power = self.fits[pattern]
        # A's rows are orthonormal, and L^-1 is triangular: A is Q of F's decomposition.
        Q = torch.linalg.qr(F[: len(power)].T.cpu()).Q.to(F)  # [d,r]
        return (x - self.zero)[:, row] @ self.D[row] @ Q / power @ Q.T

    def projection(self, patterns, prior, times):
        """(z0 [B,K,d], A^T y [B,K,d], abar) -> z0, weighted by the prior's covariance between the
        frames' times [K]; without a prior each of the frames is on its own."""
        K = len(patterns)
        whole = torch.tensor([p >= 0 and p not in self.fits for p in patterns])  # [K]
        kinds = set(patterns) & self.fits.keys()
        eye = torch.eye(K).double()

        def project(z0, y, abar):
            d = z0.shape[-1]
            W = (1 - abar) * eye.expand(d, K, K)
            if prior is not None:
                W = posterior(prior, times, abar)
            if whole.any():
                held = gain(W, whole)
                z0 = z0 + over_frames(held.to(z0), y - z0)
                rest = (~whole).double()  # [K]
                W = rest[:, None] * (W - held @ W) * rest
            nothing = [z0.new_zeros(d, d)]  # F of a frame that was seen whole, or not at all
            F = torch.stack([self.fits.get(p, nothing)[0].to(z0) for p in patterns])  # [K,d,d]
            S = torch.linalg.cholesky(W + 1e-7 * (1 - abar) * eye)  # [d,K,K]
            root = S.to(z0)

            def forth(v):  # F S v [B,K,d]
                return torch.einsum("krd,bkd->bkr", F, over_frames(root, v))

            def back(u):  # S^T F^T u [B,K,d]
                return over_frames(root.mT, torch.einsum("krd,bkr->bkd", F, u))

            # Of the system what lies between frames: row by row of F, or latent by latent.
            squares = F.cpu().square()  # [K,d,d]
            alike = len(kinds) == 1
            if alike:
                seen = squares.amax((1, 2)) > 0  # [K]
                blocks = torch.einsum(
                    "rd,dkl->rkl", squares.amax(0).double(), seen[:, None] * W * seen
                )
            else:
                blocks = S.mT @ (squares.sum(1).T[..., None] * S)  # [d,K,K]
            near = torch.linalg.inv(eye + blocks).to(z0)
            u = torch.einsum("krd,bkd->bkr", F, y - z0)
            if alike:
                v = back(conjugate_gradients(lambda u: forth(back(u)), u, near))
            else:
                v = conjugate_gradients(lambda v: back(forth(v)), back(u), near)
            return z0 + over_frames(root, v)

        return project


def conjugate_gradients(system, b, near):
    """u with u + system(u) = b [B,K,d], for a system that is symmetric and has no negative
    eigenvalues (Hestenes and Stiefel 1952): as a matrix it would not fit into memory. near [d,K,K]:
    roughly the inverse, between frames."""

    def dot(u, v):  # [B,1,1]
        return (u * v).sum((1, 2), keepdim=True)

    u = step = torch.zeros_like(b)
    left = b  # b - u - system(u)
    before = 1.0
    enough = TOLERANCE**2 * dot(b, over_frames(near, b))
    for _ in range(500):
        scaled = over_frames(near, left)
        size = dot(left, scaled)
        if (size <= enough).all():
            break
        step = scaled + size / before * step
        change = step + system(step)
        length = size / dot(step, change).clamp(min=1e-30)
        u = u + length * step
        left = left - length * change
        before = size.clamp(min=1e-30)
    return u


def add_flags(add):
    add(
        "--observe",
        help="a region, or mask.npy bool [V] or [frames,V]; row 0: a stretch's first frame",
    )
