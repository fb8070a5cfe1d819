"""How near does InterRecon come to the exact posterior? A Gaussian process over 10 frames whose
noise predictor is known.

    python benchmarks/posterior.py

For anchors at every second frame and at the two ends: the squared bias of the conditional mean and
the variance of the samples, which the exact posterior has as 0 and as given. The experiment is that
of test_neuroframes.py.
"""

import math
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from beyond import second_order
from beyond.gaussian_prior import GaussianPrior
from beyond.weighted_projection import weighted_projection
from test_neuroframes import EVERY_SECOND, interrecon_experiment


def time_travel(eps_model, project, draw, shape, schedule, reuse_eps, repeats, steps):
    """RePaint's time travel (Lugmayr et al. 2022) with DDIM: each step is taken `repeats` times,
    with noise put back in between. Arguments as of neuroframes.denoise."""
    visited = torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().long()
    abars = schedule.alpha_bar[visited].tolist() + [1.0]
    z = draw(shape)
    for n, abar, after in zip(visited.tolist(), abars[:-1], abars[1:]):
        for repeat in range(repeats):
            eps = eps_model(z, torch.full((shape[0],), n))
            z0 = project((z - math.sqrt(1 - abar) * eps) / math.sqrt(abar), abar)
            if not reuse_eps:
                eps = (z - math.sqrt(abar) * z0) / math.sqrt(1 - abar)
            z = math.sqrt(after) * z0 + math.sqrt(1 - after) * eps
            if repeat + 1 < repeats:
                z = math.sqrt(abar / after) * z + math.sqrt(1 - abar / after) * draw(shape)
    return z


def weighted(C, seen, y):
    """The projection of beyond/weighted_projection.py, whose prior knows the covariance C [K,K]."""
    prior = GaussianPrior(1, lags=len(C)).double()
    prior.autocovariance[:, 0] = C[0]
    mask = torch.zeros(len(C), dtype=torch.bool).index_fill(0, seen, True)
    project = weighted_projection(prior, mask, torch.arange(len(C)))
    return lambda z0, abar: project(z0, y, abar)


PRIOR = {"project_of": weighted, "reuse_eps": False}
SECOND = {**PRIOR, "sampler": second_order.denoise, "eta": 0.0}
TRAVEL = {"sampler": time_travel, "repeats": 2, "steps": 50}
ROWS = {
    "recompute eps, DDIM": {"reuse_eps": False},
    "recompute eps, Algorithm 1 (1000 calls)": {"reuse_eps": False, "eta": 1.0, "steps": 1000},
    "keep eps, DDIM: the paper's A^+": {"reuse_eps": True},
    "keep eps, eta 1": {"reuse_eps": True, "eta": 1.0},
    "keep eps, DDIM, 100 calls": {"reuse_eps": True, "steps": 100},
    "keep eps, time travel x 2, 100 calls": {"reuse_eps": True, **TRAVEL},
    "recompute eps, time travel x 2, 100 calls": {"reuse_eps": False, **TRAVEL},
    "weighted by the prior": PRIOR,
    "weighted, 100 calls": {**PRIOR, "steps": 100},
    "weighted, eta 1": {**PRIOR, "eta": 1.0},
    "weighted, second order, 10 calls": {**SECOND, "steps": 10},
    "weighted, second order, 15 calls (default)": {**SECOND, "steps": 15},
    "weighted, second order, 20 calls": {**SECOND, "steps": 20},
}


def main():
    heading = f"{'50 calls where not said':44}{'0,2,4,6,8: bias':>16}{'variance':>10}"
    print(f"{heading}{'0,9: bias':>14}{'variance':>10}")
    for name, settings in ROWS.items():
        exact, bias, variance = interrecon_experiment(EVERY_SECOND, **settings)
        exact_ends, bias_ends, variance_ends = interrecon_experiment([0, 9], **settings)
        row = f"{name:44}{bias:16.5f}{variance:10.3f}{bias_ends:14.5f}{variance_ends:10.3f}"
        print(row, flush=True)
    print(f"{'exact posterior':44}{0:16.5f}{exact:10.3f}{0:14.5f}{exact_ends:10.3f}")


if __name__ == "__main__":
    main()
