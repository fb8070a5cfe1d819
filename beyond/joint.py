"""What if the autoencoder is trained along with the rest, as the paper does?

The best that linear maps can reach is PCA (see neuroframes.LinearAutoencoder), so that nothing is
gained; this shows what it takes. E and D are free. Their loss is the reconstruction error

    mean of (D E x - x)^2

and the diffusion loss must not reach E: predicting the noise is easiest where z is 0, so that z
would shrink and D grow to undo it. So z is detached, and divided by its running deviation, for the
noise schedule assumes variance 1. Then the two losses share no weights, so that E and D can take
their steps as soon as frames are read, and one after the other: at 91,282 vertices the gradient of
each takes 374 MB, and is gone before the next one is there. And every step reads whole frames,
which cached latents spare.

Seam    autoencoder: x <-> z, linear
Source  Section 3.3 and 3.4 of the paper, and a stopped gradient
Gain    none: synthetic, direct: MSE 0.618, with PCA 0.615
"""

import torch
from torch import nn

from neuroframes import LinearAutoencoder


class JointAutoencoder(LinearAutoencoder):
    """Its E and D are free: see `learn`. mean stays 0, which is the mean of z-scores."""

    def __init__(self, vertices, latent_dim):
        super().__init__(vertices, latent_dim)
        E = torch.randn(latent_dim, vertices) / vertices**0.5
        del self.E  # a buffer, in whose place comes
        self.E = nn.Parameter(E)
        # Transposed at first, then on its own. Contiguous, or AdamW makes a copy at each step.
        self.D = nn.Parameter(E.T.contiguous())

    def decode(self, z):  # [...,d]
        return (z * self.latent_scale) @ self.D.T  # [...,V]


def learn(autoencoder, z, losses, summed):
    """One step of E and D down the mean of their losses [B]; latent_scale follows the deviations of
    latents z [B,K,d], whose mean is 0.

    summed: adds up a tensor over torchrun's processes, each of which has some of the windows."""
    count = summed(losses.new_full((), len(losses)))  # scalar
    (losses.sum() / count).backward()
    variance = summed(z.square().mean(1).sum(0)) / count  # [d] 1, if latent_scale is right
    autoencoder.latent_scale *= 0.99 + 0.01 * variance.sqrt()


def settle(a):
    """What flags of train.py leave open; ValueError if they do not go with it: latents that move
    have no covariance for a prior or a closed form, and D is not orthonormal, as --loss vertex
    needs it."""
    if a.prior == "gaussian" or a.loss == "vertex" or a.closed_form:
        raise ValueError(
            "--autoencoder joint goes with --prior none, --loss latent and --no-closed-form"
        )
    a.prior, a.loss, a.closed_form = "none", "latent", False


def start(a, subject, normaliser, saved, where, summed):
    """Of train.py's flags a: an autoencoder, new or of the size of `saved`, and a function: rows of
    frames [B,K] -> (z [B,K,d] for the denoiser, reconstruction errors [B]). In training it takes a
    step of E and D.

    train.py is to set autoencoder.optimizer, in which E and D are among other weights."""
    d = len(saved["E"]) if saved else a.latent_dim
    # (torchrun's processes draw the same weights, from the same seed.)
    autoencoder = JointAutoencoder(subject.fmri.shape[1], d).to(where)

    def descend(weights):  # of E or D alone: no other weight has a gradient then
        summed(weights.grad)
        autoencoder.optimizer.step()
        weights.grad = None

    for weights in autoencoder.parameters():
        weights.register_post_accumulate_grad_hook(descend)

    def latents(rows):
        x = torch.from_numpy(normaliser.zscore(subject.fmri[rows])).to(where)  # [B,K,V]
        z = autoencoder.encode(x)  # [B,K,d]
        losses = (autoencoder.decode(z) - x).square().mean((1, 2))  # [B]
        z = z.detach()
        del x  # it need not lie beside the gradients
        if torch.is_grad_enabled():
            learn(autoencoder, z, losses, summed)
        return z, losses

    return autoencoder, latents


def add_flags(add):
    add("--autoencoder", choices=["pca", "joint"], help="in closed form, or trained along (slow)")
