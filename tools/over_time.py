"""How well is each vertex followed in time, and each run?

A score per frame, over vertices, asks for the right picture at each moment. Much of what is
published asks for the right course at each place: Pearson's r over time, of each vertex, or of a
region's mean (as encoding models are scored, Huth et al. 2016).

    r[v] = sum over runs of cov(x_hat[v], x[v])
           / sqrt(sum of var(x_hat[v]) * sum of var(x[v]))

Each run's own mean is taken out, or else runs that differ by an offset would make an r of their
own. What was observed is left out. What of it is due to the EEG? r minus that with shuffled EEG.
And did one run spoil the scores per frame? Those of each run stand by themselves.
"""

import numpy as np

from .files import named

AT_ONCE = 2**22  # values of a series [T,n]: 34 MB
NAMES = "recon", "shuffled", "truth"
METHODS = ("neuroframes", "shuffled_eeg", "difference")


def deviations(results):
    """Some vertices after the other: recon, shuffled and truth [3,T,n], each run less its mean of
    what was not seen, 0 where it was seen; and their shares [n,regions] in the mean of a region.

    results: a report.Results, when all is written."""
    timeline = results.timeline
    masks = np.stack(list(results.regions.values()), 1)  # [V,regions]
    T = len(timeline.pattern)
    step = AT_ONCE // T
    for v in range(0, len(masks), step):
        columns = slice(v, v + step)
        free = ~results.seen[timeline.pattern, columns]  # [T,n]
        x = np.empty((3, *free.shape))  # [3,T,n]
        for i in range(0, T, 256):
            arrays = results.arrays  # anew: few pages are mapped at a time
            few = slice(i, i + 256)
            x[:, few] = [arrays[name][few, columns] for name in NAMES]
        for low, high in timeline.stretches:
            run = x[:, low:high]  # [3,t,n], a view
            here = free[low:high]  # [t,n]
            run *= here
            run -= here * (run.sum(1, keepdims=True) / here.sum(0).clip(1))
        yield x, masks[columns] / masks.sum(0)


def correlation(x):
    """r over time [2,n] of the first two of deviations [3,T,n] with the third."""
    lengths = np.einsum("itn,itn->in", x, x) ** 0.5  # [3,n]
    r = np.einsum("itn,tn->in", x, x[2]) / (lengths * lengths[2]).clip(1e-6)  # less is rounding
    return r[:2]


def look(results, others):
    """r [2,V] with the EEG and with shuffled EEG, NaN where nothing is scored, 0 where something
    does not vary; and {method: {region: {"r_vertices", "r_mean_course"}}}. others: they `add`
    deviations too, which are computed once."""
    r = []
    means = 0
    courses = 0
    for x, share in deviations(results):
        r.append(correlation(x))
        means = means + r[-1] @ share  # [2,regions]
        courses = courses + x @ share  # [3,T,regions]
        for other in others:
            other.add(x, share)
    r = np.concatenate(r, 1)
    r[:, ~results.regions["whole"]] = np.nan

    own, shuffled = np.stack([means, correlation(courses)], 2)  # [regions,2] each
    table = own, shuffled, own - shuffled
    return r, named(table, METHODS, results.regions, ("r_vertices", "r_mean_course"))
