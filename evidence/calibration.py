"""How sure is it, and is it right about that?

The samples spread only within the latents. What latents leave out, scanner noise mostly, is in the
truth as well; its variance is measured on the validation run. Is the truth as far from the mean as
both say? With w = |error| / std,

    coverage    share of w in Student's intervals of 50% and 90%
    CRPS        std (w erf(w / sqrt 2) + (sqrt 2 exp(-w^2 / 2) - 1) / sqrt pi), for a normal of that
                std; lower is better

Why Student's? A std over few samples is rough itself. S samples in opposite pairs are S/2 distances
from their mean, which has no error of its own: S/2 degrees of freedom. S single ones have S - 1,
and their mean's error adds 1/S to the variance. With a variance v that is known, of what latents
leave out, the sum s^2 + v is less rough: degrees of freedom times ((s^2 + v) / s^2)^2 (Welch and
Satterthwaite), for each vertex of each frame.

--calibrate multiplies std by one number, fitted on the validation run: error over spread there. It
is fitted to so many values that it leaves the degrees of freedom as they are.

Where there are more than 10,000 vertices, every n-th of them tells, spread over the whole brain: of
millions of values, shares are exact to a tenth of a percent all the same.

Seam    after sampling: samples -> their mean and how sure it is
Source  CRPS: Gneiting and Raftery 2007; Student's quantiles: Wallace 1959
Gain    synthetic, every second frame observed: 90% intervals that hold the truth in 31% of cases ->
        in 90%
"""

import torch

VERTICES = 10_000  # of which coverage and CRPS are


def as_normal(w, degrees):
    """The size of a normal number that is as rare as Student's w. Wallace's formula: 90% intervals
    hold 0.1% more with 4 degrees of freedom, 1.5% more with one."""
    return (8 * degrees + 1) / (8 * degrees + 3) * (degrees * (w**2 / degrees).log1p()).sqrt()


class Spread:
    """Collects what is claimed of the samples' spread, and how far the truth is.

    left_out  [V] variance of what latents leave out
    valid     bool [V]: vertices that vary
    samples   of which std is taken
    lost      degrees of freedom lost to their mean: 1, or 0 of opposite pairs
    points    to a frame; of the first of them the truth is known
    """

    def __init__(self, left_out, valid, samples, lost, points=1):
        self.left_out, self.valid, self.points = left_out, valid, points
        self.degrees = samples - 1 if lost else samples / 2
        self.with_mean = 1 + lost / samples  # variance of truth - mean, in that of a sample
        # What is claimed: how much of what latents leave out is added, and what multiplies the std.
        self.claims = {"samples": (0, 1), "and what latents leave out": (1, 1)}
        self.sums = {}  # of each claim: within 50%, within 90%, CRPS, std^2, error^2, 1

    def add(self, x, mask, mean, std):
        """Frames x [K,V], what of them was observed, bool [K,V], which does not count; mean and std
        over samples [K points,V]."""
        frames = slice(None, None, self.points)
        some = slice(None, None, 1 + x.shape[1] // VERTICES)
        free = (~mask & self.valid)[:, some]
        error = (mean[frames] - x)[:, some][free]  # [m]
        std = std[frames, some][free].clamp(min=1e-6)  # [m]
        own = self.with_mean * std**2  # [m]
        left_out = self.left_out.expand_as(x)[:, some][free]  # [m]
        for name, (share, scale) in self.claims.items():
            variance = own + share * left_out  # [m]
            sigma = scale * variance.sqrt()  # [m]
            w = error / sigma
            tail = (2**0.5 * torch.exp(-0.5 * w**2) - 1) / torch.pi**0.5
            crps = sigma * (w * torch.erf(w / 2**0.5) + tail)
            size = as_normal(w, self.degrees * (variance / own) ** 2)
            parts = [size < 0.67449, size < 1.64485, crps, sigma**2, error**2, torch.ones_like(w)]
            self.sums[name] = self.sums.get(name, 0) + torch.stack(
                [part.sum(dtype=torch.float64) for part in parts]
            )

    def fit_scale(self, decoded):
        """From blocks of the validation run, as sample.reconstruct yields them."""
        for _, x, mask, drawn in decoded:
            self.add(x, mask, *drawn["neuroframes"][:2])
        if self.sums:  # of torchrun's processes only the first decodes
            scale = 1 / self.summary()["and what latents leave out"]["spread_to_error"]
            self.claims[f"times {scale:.2f}, from the validation run"] = 1, scale
        self.sums = {}

    def summary(self):
        """What the sums say, for metrics.json."""
        table = {}
        for name, found in self.sums.items():
            in_50, in_90, crps, spread, error = (found[:-1] / found[-1]).tolist()
            table[name] = {
                "coverage_50": in_50,
                "coverage_90": in_90,
                "crps": crps,
                "spread_to_error": (spread / error) ** 0.5,
            }
        return table


def of(sampler):
    """A Spread of the samples that a beyond.WholeRuns draws; None of one sample, which has none,
    and of the paper's."""
    a = sampler.a
    if a.paper or a.samples == 1:
        return None
    valid = torch.from_numpy(sampler.study.normaliser.valid)
    return Spread(sampler.left_out(), valid, a.samples, sampler.correction, a.upsample)


def add_flags(add):
    add("--calibrate", action="store_true", help="fit a scale for the spread on the validation run")
