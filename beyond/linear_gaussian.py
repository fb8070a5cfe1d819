"""What does a closed form know?

BOLD is a linear function of the power of EEG rhythms, late and smeared by the haemodynamic
response. Ridge regression finds that function in seconds. Of every channel, power in about forty
bands; or its logarithm; averaged over the EEG of some seconds with a Gaussian's weights:

    p_t = sum over lags l of g(l) power_{t+l},      m = E[z | EEG] = B p + b

When the Gaussian's centre is and how wide, log or plain, and the penalty of each latent are what
predicts best runs that were left out. What those predictions miss, r = z - m, is taken for a
Gaussian process with the autocovariance C that it has there. So the noise is known exactly,

    E[eps | z_n, EEG] = sqrt(1 - abar) (abar C + (1 - abar) I)^-1 (z_n - sqrt(abar) m)

and with it direct reconstruction (m itself), missing frames and the spread: `train.py --steps 0`.

Seam    eps_model(z_n, n)
Source  ridge regression on EEG band power; the denoiser: gaussian_prior, around a mean
Gain    real-format session, direct: MSE 1.140 (mean frame) -> 0.818, in seconds
"""

import math

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
        return X.T.double() @ U, power.clamp(min=0), U.T @ z.double()
    power, U = torch.linalg.eigh((X.T @ X).double())  # [F], [F,F]
    return U, power.clamp(min=0), U.T @ (X.T @ z).double()


def folds(lengths):
    """Which of at most five folds each frame is in, [t] a stretch: by whole stretches; of fewer
    than three, by quarters of all frames."""
    n, total = len(lengths), sum(lengths)
    if n >= 3:
        return [torch.full((t,), i * min(n, 5) // n) for i, t in enumerate(lengths)]
    return list((torch.arange(total) * 4 // total).split(lengths))


def predictions(X, z, fold):
    """What ridge says of each frame from the other folds, at every penalty: [ratios,T,d]. fold [T]:
    whole numbers."""
    found = torch.empty(len(RATIOS), *z.shape)
    for k in fold.unique():
        held = fold == k
        mean = X[~held].mean(0)
        offset = z[~held].mean(0)
        left, power, right = ridge(X[~held] - mean, z[~held] - offset)
        side = (X[held] - mean).double() @ left  # [held,r]
        variance = X[~held].var(0).sum()
        for i, ratio in enumerate(RATIOS):
            guess = side @ (right / (power[:, None] + ratio * variance))
            found[i, held] = guess.to(z) + offset
    return found


class LinearGaussian(nn.Module):
    """Latents given the EEG, in closed form.

    features  C bands;   cycles, bands  see band_power
    reach     lags, in frames, on each side
    """

    def __init__(self, latent_dim, features, cycles, bands, reach):
        super().__init__()
        self.cycles, self.bands, self.reach = cycles, bands, reach
        self.register_buffer("logarithm", torch.tensor(True))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.register_buffer("lags", torch.zeros(2 * reach + 1))  # g(l), l = -reach ... reach
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

    def transformed(self, power):
        return torch.log(power + 1e-30) if self.logarithm else power

    def standardised(self, power):
        x = self.transformed(power)
        return ((x - self.mean) / self.std).clamp(-6, 6)  # a bad moment may not decide

    def smooth(self, x, rows):
        """Sum over lags of g(l) x[row + l] for some rows of a stretch x [t,F]."""
        total = torch.zeros(len(rows), x.shape[1], device=x.device)
        for lag, g in enumerate(self.lags.tolist(), -self.reach):
            if g:
                total += g * x[(rows + lag).clamp(0, len(x) - 1)]
        return total

    def expected(self, read, low, high, late=0):
        """m [high - low,d] of a stretch."""
        x = self.standardised(self.power(read, low, high, late))
        p = self.smooth(x, torch.arange(len(x), device=x.device))
        return p @ self.weight + self.bias

    def eps(self, z_n, n, schedule, m, times):
        """E[eps | z_n, EEG] for z_n [B,K,d] at step n [B], with m [B,K,d] at times [K]."""
        signal, _ = schedule.signal_noise(n, z_n)  # [B,1,1]
        return self.residual(z_n - signal * m, n, schedule, "eps", times)

    # ---- The fit -----------------------------------------------------------------------

    def features(self, x, rows):
        """p [T,F] of some rows of each stretch x [t,F], one stretch after the other."""
        return torch.cat([self.smooth(part, row) for part, row in zip(x, rows)])

    def respond(self, late, width, tr, delay):
        """g(l): the EEG of a window's middle comes to BOLD `late` s later, +- `width` s."""
        seconds = tr * torch.arange(-self.reach, self.reach + 1) + tr / 2 - delay  # [lags]
        g = torch.exp(-0.5 * ((seconds + late) / width) ** 2)
        self.lags.copy_(torch.where(g > 0.03, g, 0.0))

    def standardise(self, power, logarithm):
        """x, a list of [t,F]: power or its logarithm, of mean 0 and variance 1."""
        self.logarithm.fill_(logarithm)
        self.mean.zero_()
        self.std.fill_(1.0)
        x = torch.cat([self.transformed(p) for p in power])
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0).clamp(min=1e-30))
        return [self.standardised(p) for p in power]

    @torch.no_grad()
    def fit(self, read, segments, z, tr, delay):
        """To latents z, a list of [t,d], of training segments [low, high). tr, and delay, by which
        the EEG in files is early already, in seconds. Returns a line that says what was chosen."""
        power = [self.power(read, low, high).cpu() for low, high in segments]
        lengths = [len(p) for p in power]
        fold = folds(lengths)
        z = [part.cpu() for part in z]

        # Which settings predict best? Some frames tell.
        step = -(-sum(lengths) // ENOUGH)
        some = [torch.arange(0, t, step) for t in lengths]
        some_z = torch.cat([part[::step] for part in z])
        some_fold = torch.cat([part[::step] for part in fold])

        def error(x, late, width):
            self.respond(late, width, tr, delay)
            found = predictions(self.features(x, some), some_z, some_fold)
            return float((found - some_z).square().mean(1).min(0)[0].mean())

        kinds = {logarithm: self.standardise(power, logarithm) for logarithm in (False, True)}
        logarithm = min(kinds, key=lambda kind: error(kinds[kind], 5.0, 1.5))
        x = self.standardise(power, logarithm)
        grid = [(late, width) for late in LATE for width in WIDTH]
        late, width = min(grid, key=lambda pair: error(x, *pair))

        # All frames: the penalty of each latent, what predictions miss, and the weights.
        self.respond(late, width, tr, delay)
        X = self.features(x, [torch.arange(t) for t in lengths])  # [T,F]
        z = torch.cat(z)  # [T,d]
        found = predictions(X, z, torch.cat(fold))  # [ratios,T,d]
        best = (found - z).square().mean(1).argmin(0)  # [d]
        guess = found[best, :, torch.arange(z.shape[1])].T  # [T,d]
        self.residual.fit((z - guess).split(lengths))
        left, scale, right = ridge(X - X.mean(0), z - z.mean(0))
        penalty = RATIOS[best] * X.var(0).sum()  # [d]
        self.weight.copy_(left @ (right / (scale[:, None] + penalty)))
        self.bias.copy_(z.mean(0) - X.mean(0) @ self.weight)
        missed = float((z - guess).square().mean() / z.square().mean())
        kind = "log power" if logarithm else "power"
        return (
            f"closed form: {kind} {late:g} +- {width:g} s before BOLD; explains {1 - missed:.1%} of "
            "latents' variance in runs that were left out"
        )


def delay(subject):
    """Seconds by which the EEG in files is paired with later frames."""
    meta = subject.meta
    return meta.get("delay_in_files", meta.get("delay", 4.0))


def settings(config, subject):
    """What LinearGaussian is made with, of a network's `config`."""
    cycles = min(round(75 * subject.tr), config["samples"] // 2)  # up to 75 Hz
    bands = min(40, 2560 // config["channels"], SPAN * cycles)
    seconds = max(abs(late - delay(subject)) for late in LATE) + 2 * max(WIDTH)
    return {
        "features": config["channels"] * bands,
        "cycles": cycles,
        "bands": bands,
        "reach": math.ceil(seconds / subject.tr),
    }


def add_flags(add, switch):
    add("--closed-form", action=switch, help="ridge on band power, stacked with the network")
