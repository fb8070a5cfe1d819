"""How sure is it, and is it right about that?

The samples spread only within the latents. What latents leave out, scanner noise mostly, is in the
truth as well; its variance is measured on training frames. Is the truth as far from the mean as
both say? With w = |error| / std, for a normal of that std,

    coverage    share of w below 0.674 (50%) and 1.645 (90%)
    CRPS        std (w erf(w / sqrt 2) + (sqrt 2 exp(-w^2 / 2) - 1) / sqrt pi), lower is better

--calibrate multiplies std by one number, fitted on the validation run: error over spread there.

Seam    after sampling: samples -> their mean and how sure it is
Source  CRPS: Gneiting and Raftery 2007
Gain    synthetic, every second frame observed: 90% intervals that hold the truth in 31% of cases ->
        in 90%
"""

import math

import torch


def sums(error, std):
    """[6] sums over errors [m] and the deviations claimed for them: within 50%, within 90%, CRPS,
    std^2, error^2, 1."""
    error = error.double().abs()
    std = std.double().clamp(min=1e-12)
    w = error / std
    tail = (math.sqrt(2) * torch.exp(-0.5 * w**2) - 1) / math.sqrt(math.pi)
    crps = std * (w * torch.erf(w / math.sqrt(2)) + tail)
    parts = [w < 0.67449, w < 1.64485, crps, std**2, error**2, torch.ones_like(w)]
    return torch.stack([part.double().sum() for part in parts])


def summary(found):
    """What sums say, for metrics.json."""
    in_50, in_90, crps, spread, error, count = found.tolist()
    return {
        "coverage_50": in_50 / count,
        "coverage_90": in_90 / count,
        "crps": crps / count,
        "spread_to_error": math.sqrt(spread / error),
    }


class Spread:
    """Collects what is claimed of the samples' spread, and how far the truth is.

    left_out  [V] variance of what latents leave out, in training frames
    valid     bool [V]: vertices that vary
    points    to a frame; of the first of them the truth is known
    """

    def __init__(self, left_out, valid, points=1):
        self.left_out, self.valid, self.points = left_out, valid, points
        self.scale, self.sums = None, {}

    def add(self, x, mask, mean, std):
        """Frames x [K,V], what of them was observed, bool [K,V], which does not count; mean and std
        over samples [K points,V]."""
        free = ~mask & self.valid
        error = (mean[:: self.points] - x)[free]
        std = std[:: self.points]
        wider = (std**2 + self.left_out).sqrt()[free]
        claims = {"samples": std[free], "and what latents leave out": wider}
        if self.scale is not None:
            name = f"times {self.scale:.2f}, from the validation run"
            claims[name] = self.scale * wider
        for name, claim in claims.items():
            self.sums[name] = self.sums.get(name, 0) + sums(error, claim)

    def fit_scale(self, decoded):
        """From blocks of the validation run, as sample.reconstruct yields them."""
        for _, x, mask, drawn in decoded:
            mean, std, _ = drawn["neuroframes"]
            self.add(x, mask, mean, std)
        if self.sums:  # of torchrun's processes only the first decodes
            self.scale = 1 / list(self.summary().values())[-1]["spread_to_error"]
        self.sums = {}

    def summary(self):
        return {name: summary(found) for name, found in self.sums.items()}


def refusal(a):
    if a.calibrate and a.samples < 2:
        return f"--samples {a.samples}: --calibrate needs 2 or more, to have a spread"


def add_flags(add):
    add("--calibrate", action="store_true", help="fit a scale for the spread on the validation run")
