"""What does a closed form know?

BOLD is a linear function of the power of EEG rhythms, late and smeared by the haemodynamic
response. Ridge regression finds that function in seconds. Of every channel, power in about forty
bands; or its logarithm; averaged over the EEG of some seconds with a Gaussian's weights:

    p_t = sum over lags l of g(l) power_{t+l},      m = E[z | EEG] = B p + b

Where the Gaussian's centre is and how wide it is, log or plain, and the penalty of each latent are
chosen by what best predicts runs that were left out. What those predictions miss, z - m, is taken
for a Gaussian process with the autocovariance C that it has there. So the noise is known exactly,

    E[eps | z_n, EEG] = sqrt(1 - abar) (abar C + (1 - abar) I)^-1 (z_n - sqrt(abar) m)

and with it direct reconstruction (m itself), missing frames and the spread: `train.py --steps 0`.

Seam    eps_model(z_n, n)
Source  ridge regression on EEG band power; the denoiser: gaussian_prior, around a mean
Gain    real-format session, direct: MSE 1.140 (mean frame) -> 0.823, in seconds
"""

import math
from argparse import BooleanOptionalAction

import torch
import torch.nn.functional as F
from torch import nn

from .band_power import spectra
from .gaussian_prior import GaussianPrior
from .windows import around

SPAN = 3  # windows of a spectrum
LATE = (4.0, 5.0, 6.0, 7.0)  # s by which BOLD follows EEG: the Gaussian's centre
WIDTH = (1.0, 1.5, 2.0, 2.5)  # s, its standard deviation
RATIOS = 10.0 ** torch.arange(-1, 4.5, 0.5).double()  # penalties, over the features' variance
ENOUGH = 1500  # frames, to choose centre and width


def ridge(X, z):
    """(left [F,r], power [r], right [r,d]) such that left @ (right / (power + penalty)) are the
    weights from X [T,F] to z [T,d] at any penalty. Solved in frames or features, the fewer."""
    if len(X) < X.shape[1]:
        power, U = torch.linalg.eigh((X @ X.T).double())  # [T], [T,T]
        return X.T.double() @ U, power, U.T @ z.double()
    power, U = torch.linalg.eigh((X.T @ X).double())  # [F], [F,F]
    return U, power, U.T @ (X.T @ z).double()


def predictions(X, z, fold):
    """z [T,d] as ridge predicts it from X [T,F] of all folds but a frame's own, fold [T], at every
    penalty: [ratios,T,d]."""
    found = torch.empty(len(RATIOS), *z.shape)
    for k in fold.unique():
        held = fold == k
        mean = X[~held].mean(0)
        offset = z[~held].mean(0)
        left, power, right = ridge(X[~held] - mean, z[~held] - offset)
        side = (X[held] - mean).double() @ left  # [held,r]
        for i, penalty in enumerate(RATIOS * X.var(0).sum()):
            guess = side @ (right / (power[:, None] + penalty))  # [held,d]
            found[i, held] = guess.to(z) + offset
    return found


def borders(segments):
    """Of each of the T frames of segments, one after the other: the first and last frame of its
    segment, and which of at most five folds it is in, [T] each. Folds are of whole segments; of
    fewer than three, quarters of all frames."""
    length = torch.tensor([high - low for low, high in segments])
    run = torch.arange(len(length)).repeat_interleave(length)  # [T]
    last = length.cumsum(0)[run] - 1
    first = last - length[run] + 1
    fold = run % 5 if len(length) > 2 else torch.arange(len(run)) * 4 // len(run)
    return first, last, fold


class LinearGaussian(nn.Module):
    """Latents given the EEG, in closed form.

    cycles, bands  the highest frequency, in cycles a window, and bands up to there: F = C bands
    tr, delay      of the subject, in seconds: a frame's EEG in files is `delay` older
    """

    def __init__(self, latent_dim, channels, cycles, bands, tr, delay):
        super().__init__()
        self.cycles, self.bands, self.tr, self.delay = cycles, bands, tr, delay
        features = channels * bands
        self.register_buffer("chosen", torch.zeros(3))  # log or not, late, width
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("weight", torch.zeros(features, latent_dim))  # B^T
        self.register_buffer("bias", torch.zeros(latent_dim))  # b
        self.residual = GaussianPrior(latent_dim)  # C

    # ---- From EEG to m -----------------------------------------------------------------

    def power(self, read, low, high, late=0):
        """[high - low,F] of a stretch, whose EEG is cut `late` samples late: the mean power in each
        band of each channel. read: rows -> EEG [rows,C,W]."""
        bins = SPAN * self.cycles
        band = F.one_hot(torch.arange(bins) * self.bands // bins, self.bands)  # [bins,bands]
        mean = (band / band.sum(0)).to(self.mean)
        found = []
        for eeg in around(read, low, high, late):
            u = spectra(eeg.to(self.mean)[None], bins, SPAN)[0]  # [t,C,bins]
            u = (u.real**2 + u.imag**2) @ mean  # [t,C,bands]
            found.append(u.flatten(1))
        return torch.cat(found)

    def standardised(self, power):
        x = torch.log(power + 1e-30) if self.chosen[0] else power
        return ((x - self.mean) / self.std).clamp(-6, 6)  # a bad moment may not decide

    def smooth(self, x, rows, first, last):
        """p [rows,F] of some rows of x [T,F], whose stretches have the rows first to last."""
        _, late, width = (self.chosen / self.tr).tolist()  # in frames
        centre = self.delay / self.tr - 0.5 - late  # from the middle of a window
        p = 0
        for lag in range(math.floor(centre - 2.5 * width), math.ceil(centre + 2.5 * width) + 1):
            g = math.exp(-0.5 * ((lag - centre) / width) ** 2)
            p = p + g * x[(rows + lag).clamp(first, last)]
        return p

    def expected(self, read, low, high, late=0):
        """m [high - low,d] of a stretch."""
        power = self.power(read, low, high, late)
        rows = torch.arange(len(power), device=power.device)
        p = self.smooth(self.standardised(power), rows, rows[0], rows[-1])
        return p @ self.weight + self.bias

    def eps(self, z_n, n, schedule, m, times):
        """E[eps | z_n, EEG] for z_n [B,K,d] at step n [B], with m [B,K,d] at times [K]."""
        signal, _ = schedule.signal_noise(n, z_n)  # [B,1,1]
        return self.residual(z_n - signal * m, n, schedule, "eps", times)

    # ---- The fit -----------------------------------------------------------------------

    def standardise(self, power, logarithm):
        """power [T,F], or its logarithm, of mean 0 and variance 1."""
        self.chosen[0] = logarithm
        x = torch.log(power + 1e-30) if logarithm else power
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0).clamp(min=1e-30))
        return self.standardised(power)

    @torch.no_grad()
    def fit(self, read, segments, z):
        """To latents z [T,d] of training segments [low, high). Returns what is expected of them
        when their run is left out [T,d], and what was found, in words."""
        power = torch.cat([self.power(read, low, high) for low, high in segments])  # [T,F]
        every = torch.arange(len(power))
        first, last, fold = borders(segments)

        # Which settings predict best? Some frames tell: log or plain, then late, then width.
        some = every[:: 1 + len(every) // ENOUGH]

        def error(x, late, width):
            self.chosen[1:] = torch.tensor([late, width])
            p = self.smooth(x, some, first[some], last[some])
            missed = predictions(p, z[some], fold[some]) - z[some]  # [ratios,some,d]
            return missed.square().mean(1).amin(0).mean()

        logarithm = min((0, 1), key=lambda kind: error(self.standardise(power, kind), 5.0, 1.5))
        x = self.standardise(power, logarithm)
        late = min(LATE, key=lambda late: error(x, late, 1.5))
        width = min(WIDTH, key=lambda width: error(x, late, width))
        self.chosen[1:] = torch.tensor([late, width])

        # All frames: the penalty of each latent, what predictions miss, and the weights.
        p = self.smooth(x, every, first, last)  # [T,F]
        found = predictions(p, z, fold)  # [ratios,T,d]
        best = torch.stack([(guess - z).square().mean(0) for guess in found]).argmin(0)  # [d]
        missed = z - found[best, :, torch.arange(len(best))].T  # [T,d]
        told = missed.square().sum() < z.square().sum()  # or the mean frame says more
        if not told:
            missed = z
        self.residual.fit(missed.split([high - low for low, high in segments]))
        left, scale, right = ridge(p - p.mean(0), z - z.mean(0))
        penalty = RATIOS[best] * p.var(0).sum()  # [d]
        self.weight.copy_(left @ (right / (scale[:, None] + penalty)))
        if not told:
            self.weight.zero_()
        self.bias.copy_(z.mean(0) - p.mean(0) @ self.weight)

        return z - missed, (
            f"closed form: {'log power' if logarithm else 'power'} {late:g} +- {width:g} s before "
            f"BOLD explains {1 - missed.square().mean() / z.square().mean():.1%} of the latents' "
            "variance in runs that were left out"
        )


def settings(config, subject):
    """What LinearGaussian is made with, of a network's `config`."""
    channels, tr = config["channels"], subject.tr
    cycles = min(round(75 * tr), config["samples"] // 2)  # up to 75 Hz
    return {
        "channels": channels,
        "cycles": cycles,
        "bands": min(40, 2560 // channels, SPAN * cycles),
        "tr": tr,
        "delay": subject.meta.get("delay_in_files", subject.meta.get("delay", 4.0)),
    }


def add_flags(add):
    add(
        "--closed-form",
        action=BooleanOptionalAction,
        help="ridge on band power, stacked with the network",
    )
