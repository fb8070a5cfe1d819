"""How few calls of the network tell the spread as well as the mean?

DDIM takes z0 for constant during a step, an error of first order: the mean bears steps as long as
one likes, but samples lie too close together. DPM-Solver++(2M) extrapolates z0 to the middle of the
step, by what it was at the step before. With the logarithm of signal over noise,

    lambda = log sqrt(abar / (1 - abar)),      h = lambda_next - lambda
    z0*    = z0 + h / (2 h_before) (z0 - z0_before)

and DDIM's step from z0*, with the eps that belongs to it. The first step and the last, whose h is
infinite, take z0 as it is. Steps are even in lambda: even in n, 900 of 1,000 would be at high
noise, and z0 too far apart to be extrapolated. (Either change alone is worse than none.)

Seam    project(z0, abar)
Source  DPM-Solver++(2M) (Lu et al. 2022)
Gain    real-format session, direct: 50 calls -> 15, with an MSE of the mean of 0.771 -> 0.770, and
        spread over error 0.96 -> 1.01
"""

import torch

from neuroframes import denoise as first_order

CALLS = 15


def default_calls(a):
    """Of flags a; 50 where the solver does not apply, see `denoise`."""
    return 50 if a.eta or a.projection == "plain" else CALLS


def even_steps(schedule, calls):
    """(n LongTensor [calls], their lambda [calls]), from noise to nearly none. (Where there are not
    as many n, fewer.)"""
    lambdas = torch.logit(schedule.alpha_bar) / 2  # [N] descending
    even = torch.linspace(lambdas[-1], lambdas[0], calls, dtype=torch.float64)  # [calls]
    nearest = (lambdas[:, None] - even).abs().argmin(0)  # [calls]
    visited = nearest.unique().flip(0)
    return visited, lambdas[visited]


def extrapolated(project, lambdas):
    """project, and then z0*. To be called once a step."""
    h = lambdas.diff()  # [calls - 1]
    ratios = iter([0.0, *(h[1:] / h[:-1] / 2).tolist(), 0.0])  # [calls]
    z0_before = None

    def project_ahead(z0, abar):
        nonlocal z0_before
        z0 = z0 if project is None else project(z0, abar)
        ratio = next(ratios)
        ahead = z0 + ratio * (z0 - z0_before) if ratio else z0
        z0_before = z0
        return ahead

    return project_ahead


def denoise(eps_model, project, draw, shape, schedule, steps, eta, reuse_eps):
    """neuroframes.denoise, in steps of second order. But of first order with fresh noise, for which
    they are not made, and where observed frames go on with an eps that is not that of z0
    (reuse_eps: --projection plain)."""
    if eta or reuse_eps:
        return first_order(eps_model, project, draw, shape, schedule, steps, eta, reuse_eps)
    visited, lambdas = even_steps(schedule, steps)
    ahead = extrapolated(project, lambdas)
    return first_order(eps_model, ahead, draw, shape, schedule, visited, eta, False)
