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
import torch.nn.functional as F
from torch import nn


class JointAutoencoder(nn.Module):
    """neuroframes.LinearAutoencoder, but for `fit`: trained by `reconstruction_loss`."""

    def __init__(self, vertices, latent_dim):
        super().__init__()
        self.E = nn.Parameter(torch.empty(latent_dim, vertices).normal_(std=vertices**-0.5))
        self.D = nn.Parameter(self.E.detach().T.clone())  # transposed at first, then on its own
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_scale", torch.ones(latent_dim))

    @property
    def latent_dim(self):
        return len(self.E)

    def encode(self, x):  # [...,V]
        return (F.linear(x, self.E) - self.latent_mean) / self.latent_scale  # [...,d]

    def decode(self, z):  # [...,d]
        return F.linear(z * self.latent_scale + self.latent_mean, self.D)  # [...,V]

    def reconstruction_loss(self, x, momentum=0.01):
        """(loss of E and D on x [B,K,V], z [B,K,d] for the denoiser: of variance 1, and
        detached)."""
        u = F.linear(x, self.E).float()  # [B,K,d]
        loss = (F.linear(u, self.D) - x).square().mean()  # scalar
        with torch.no_grad():
            self.latent_mean.lerp_(u.mean((0, 1)), momentum)
            self.latent_scale.lerp_(u.std((0, 1)).clamp(min=1e-6), momentum)
        return loss, (u.detach() - self.latent_mean) / self.latent_scale


def latents(autoencoder, read):
    """A function from rows of frames [B,K] to (z [B,K,d], the loss of E and D): training updates
    the running means, validation (without gradient) does not, and gives a loss for each window
    [B].

    read: rows [B,K] -> frames in z-scores [B,K,V].
    """

    def of_rows(rows):
        x = read(rows)
        if torch.is_grad_enabled():
            loss, z = autoencoder.reconstruction_loss(x)
            return z, loss
        z = autoencoder.encode(x)
        return z, (autoencoder.decode(z) - x).square().mean((1, 2))

    return of_rows


def start(a, subject, normaliser, saved, where):
    """(autoencoder, new or as `saved`; its latents) of train.py's flags a."""
    d = len(saved["E"]) if saved else a.latent_dim
    V = subject.fmri.shape[1]
    autoencoder = JointAutoencoder(V, d).to(where)

    def read(rows):
        return torch.from_numpy(normaliser.zscore(subject.fmri[rows])).to(where)  # [B,K,V]

    return autoencoder, latents(autoencoder, read)


def refusal(a, processes):
    """Latents that move have no covariance for a prior, D is not orthonormal, as --loss vertex
    needs it, and the loss of E and D is of one process."""
    alone = a.prior in (None, "none") and a.loss in (None, "latent") and processes == 1
    if a.autoencoder == "joint" and not alone:
        return "--autoencoder joint goes with --prior none and --loss latent, and without torchrun"


def add_flags(add):
    add("--autoencoder", choices=["pca", "joint"], help="in closed form, or trained along (slow)")
