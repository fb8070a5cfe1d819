"""What if the autoencoder is trained along with the rest, as the paper does?

The best that linear maps can reach is PCA (see neuroframes.LinearAutoencoder), so that nothing is
gained; this shows what it takes. E and D are free. Their loss is the reconstruction error

    mean of (D E x - x)^2

and the diffusion loss must not reach E: predicting the noise is easiest where z is 0, so that z
would shrink and D grow to undo it. So z is detached, and standardised by running means, for the
noise schedule assumes variance 1. And every step reads whole frames, which cached latents spare.

Seam    autoencoder: x <-> z, linear
Source  Section 3.3 and 3.4 of the paper, and a stopped gradient
Gain    none: synthetic, direct: MSE 0.608, with PCA 0.604
"""

import torch
from torch import nn


class JointAutoencoder(nn.Module):
    """neuroframes.LinearAutoencoder, but for `fit`: trained by `reconstruction_loss`."""

    def __init__(self, vertices, latent_dim):
        super().__init__()
        self.E = nn.Parameter(torch.randn(latent_dim, vertices) / vertices**0.5)
        # Transposed at first, then on its own. Contiguous, or AdamW makes a copy at each step.
        self.D = nn.Parameter(self.E.detach().T.contiguous())
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_scale", torch.ones(latent_dim))

    @property
    def latent_dim(self):
        return len(self.E)

    def encode(self, x):  # [...,V]
        return (x @ self.E.T - self.latent_mean) / self.latent_scale  # [...,d]

    def decode(self, z):  # [...,d]
        return (z * self.latent_scale + self.latent_mean) @ self.D.T  # [...,V]

    def reconstruction_loss(self, x):
        """(z [B,K,d] of x [B,K,V] for the denoiser: of variance 1, and detached; the loss of E and
        D). Training updates the running means; validation, without gradient, does not, and gives a
        loss for each window [B]."""
        u = (x @ self.E.T).float()  # [B,K,d]
        loss = (u @ self.D.T - x).square().mean((1, 2))  # [B]
        u = u.detach()
        if torch.is_grad_enabled():
            loss = loss.mean()  # scalar
            self.latent_mean.lerp_(u.mean((0, 1)), 0.01)
            self.latent_scale.lerp_(u.std((0, 1)).clamp(min=1e-6), 0.01)
        return (u - self.latent_mean) / self.latent_scale, loss


def settle(a, processes):
    """What flags of train.py leave open; ValueError if they do not go with it: latents that move
    have no covariance for a prior or a closed form, D is not orthonormal, as --loss vertex needs
    it, and the loss of E and D is of one process."""
    a.prior = a.prior or "none"
    a.loss = a.loss or "latent"
    a.closed_form = a.closed_form or False
    if a.prior != "none" or a.loss != "latent" or a.closed_form or processes > 1:
        raise ValueError(
            "--autoencoder joint goes with --prior none, --loss latent and --no-closed-form, and "
            "without torchrun"
        )


def start(a, subject, normaliser, saved, where):
    """Of train.py's flags a: an autoencoder, new or of the size of `saved`, and a function from
    rows of frames [B,K] to (z [B,K,d], the loss of E and D)."""
    d = len(saved["E"]) if saved else a.latent_dim
    autoencoder = JointAutoencoder(subject.fmri.shape[1], d).to(where)

    def latents(rows):
        x = torch.from_numpy(normaliser.zscore(subject.fmri[rows])).to(where)  # [B,K,V]
        return autoencoder.reconstruction_loss(x)

    return autoencoder, latents


def add_flags(add):
    add("--autoencoder", choices=["pca", "joint"], help="in closed form, or trained along (slow)")
