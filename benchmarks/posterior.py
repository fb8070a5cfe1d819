"""How near does InterRecon come to the exact posterior? A Gaussian process over 10 frames whose noise predictor is known.

    python benchmarks/posterior.py

For anchors at every second frame and at the two ends: the squared bias of the conditional mean and the variance of
the samples, which the exact posterior has as 0 and as given. The experiment is that of test_neuroframes.py.
"""
import math
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import test_neuroframes as tests  # noqa: E402
from neuroframes import range_null_projection, sample  # noqa: E402


def time_travel(eps_model, shape, schedule, reuse_eps, y, mask, repeats, steps, antithetic=False, generator=None):
    """RePaint's time travel (Lugmayr et al. 2022) with DDIM: each step is taken `repeats` times, with noise put back
    in between."""
    def draw():
        noise = torch.randn(shape[0] // (1 + antithetic), *shape[1:], generator=generator, dtype=y.dtype)
        return torch.cat([noise, -noise]) if antithetic else noise
    visited = torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    z = draw()
    for i, n in enumerate(visited):
        abar = schedule.alpha_bar[n].item()
        after = schedule.alpha_bar[visited[i + 1]].item() if i + 1 < steps else 1.0
        for repeat in range(repeats):
            eps = eps_model(z, torch.full((shape[0],), n))
            z0 = range_null_projection((z - math.sqrt(1 - abar) * eps) / math.sqrt(abar), y, mask[:, None])
            if not reuse_eps:
                eps = (z - math.sqrt(abar) * z0) / math.sqrt(1 - abar)
            z = math.sqrt(after) * z0 + math.sqrt(1 - after) * eps
            if repeat + 1 < repeats:
                z = math.sqrt(abar / after) * z + math.sqrt(1 - abar / after) * draw()
    return z


def main():
    rows = [("recompute eps, DDIM", dict(reuse_eps=False)), ("recompute eps, Algorithm 1 (1000 calls)", dict(reuse_eps=False, eta=1.0, steps=1000)),
            ("keep eps, DDIM: the paper's A^+", dict(reuse_eps=True)), ("keep eps, eta 1", dict(reuse_eps=True, eta=1.0)),
            ("keep eps, DDIM, 100 calls", dict(reuse_eps=True, steps=100)),
            ("keep eps, time travel x 2, 100 calls", dict(reuse_eps=True, repeats=2, steps=50)),
            ("recompute eps, time travel x 2, 100 calls", dict(reuse_eps=False, repeats=2, steps=50)),
            ("weighted by the prior (default)", dict(weighted=True)), ("weighted, 100 calls", dict(weighted=True, steps=100)),
            ("weighted, eta 1", dict(weighted=True, eta=1.0))]
    print(f"{'50 calls where not said':44}{'0,2,4,6,8: bias':>16}{'variance':>10}{'0,9: bias':>14}{'variance':>10}")
    exact = []
    for name, settings in rows:
        line = f"{name:44}"
        for seen in (tests.EVERY_SECOND, [0, 9]):
            tests.sample = time_travel if "repeats" in settings else sample
            posterior, bias, variance = tests.interrecon_experiment(seen, **settings)
            exact.append(posterior)
            line += f"{bias:{16 if len(seen) > 2 else 14}.5f}{variance:10.3f}"
        print(line, flush=True)
    print(f"{'exact posterior':44}{0:16.5f}{exact[0]:10.3f}{0:14.5f}{exact[1]:10.3f}")


if __name__ == "__main__":
    main()
