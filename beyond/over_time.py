"""How well is each vertex followed in time?

A score per frame, over vertices, asks for the right picture at each moment. Much of what is
published asks for the right course at each place: Pearson's r over time, of each vertex, or of a
region's mean.

    r[v] = sum over runs of cov(x_hat[v], x[v])
           / sqrt(sum of var(x_hat[v]) * sum of var(x[v]))

Each run's own mean is taken out, or else runs that differ by an offset would make an r of their
own. What was observed is left out. What of it is due to the EEG? r minus that with shuffled EEG.
And did one run spoil the scores per frame? Those of each run stand by themselves.

Seam    after sampling: what was written -> r of each vertex, and of each region's mean course
Source  as encoding models are scored (Huth et al. 2016)
Gain    none in what is drawn: numbers that can stand beside others
"""

import numpy as np

WRITTEN = {"neuroframes": "recon", "shuffled_eeg": "shuffled"}


def within_runs(runs):
    """r [n] over the frames of all runs, each of which comes in blocks (x_hat, x, counts), [t,n]
    each. NaN where x does not vary at frames that count, 0 where x_hat does not."""
    pooled = 0
    for run in runs:
        sums = 0
        for x_hat, x, counts in run:
            y = counts * np.float64(x_hat)
            x = counts * np.float64(x)
            sums = sums + np.array([s.sum(0) for s in (counts, y, x, y * x, y * y, x * x)])  # [6,n]
        count, y, x, *squares = sums
        around = squares - np.array([y * x, y * y, x * x]) / np.maximum(count, 1)  # the means
        rounding = 1e-10 * np.abs(squares)
        pooled = pooled + np.where(np.abs(around) > rounding, around, 0)  # [3,n]
    covariance, variance_hat, variance = pooled
    r = covariance / np.sqrt(np.maximum(variance_hat * variance, 1e-300))
    return np.where(variance > 0, r, np.nan)


def of_vertices(run, name, seen):
    """The blocks of a run's vertices, of what was not seen, bool [patterns,V]."""
    for i in range(0, len(run["pattern"]), 64):
        rows = slice(i, i + 64)
        yield run[name][rows], run["truth"][rows], ~seen[run["pattern"][rows]]


def of_regions(blocks, regions):
    """The blocks of regions [V,regions]: means over what of them was not seen."""
    for x_hat, x, free in blocks:
        count = free @ regions  # [t,regions]
        means = [(free * part) @ regions / np.maximum(count, 1) for part in (x_hat, x)]
        yield *means, count > 0


def look(runs, regions, seen):
    """{method: {region: {"r_vertices", "r_mean_course"}}}, and r [V] of each method. runs hold
    "recon", "shuffled", "truth" [T,V] and "pattern" [T]; regions {name: bool [V]}."""
    masks = np.stack(list(regions.values()), 1).astype(float)  # [V,regions]
    scores = {}
    maps = []
    for method, name in WRITTEN.items():
        blocks = [of_vertices(run, name, seen) for run in runs]
        r = within_runs(blocks)
        maps.append(r)
        blocks = [of_regions(of_vertices(run, name, seen), masks) for run in runs]
        courses = np.nan_to_num(within_runs(blocks))
        scores[method] = {}
        for region, course in zip(regions, courses.tolist()):
            known = r[regions[region] & ~np.isnan(r)]
            if len(known):
                row = {"r_vertices": known.mean().item(), "r_mean_course": course}
                scores[method][region] = row
    own, shuffled = scores.values()
    scores["difference"] = {
        region: {what: r - shuffled[region][what] for what, r in row.items()}
        for region, row in own.items()
    }
    return scores, maps


def lines(scores):
    """The scores of each region, in words."""
    said = []
    for region in scores["neuroframes"]:
        own, shuffled = ("{:.3f}, {:.3f}".format(*scores[m][region].values()) for m in WRITTEN)
        said.append(f"{region:34}{own}; with shuffled EEG {shuffled}")
    return ["r over time, mean over vertices and of a region's mean course:", *said]


def of_runs(results):
    """Of each run (numbered from 1, with the seconds at which its test frames start) the scores
    per frame of the whole brain. results: tools.report.Results."""
    timeline = results.timeline
    free = (results.regions["whole"] & ~results.seen).any(1)[timeline.pattern]  # [T]: is scored
    own, mean_frame = (
        np.concatenate(results.scores.windows[method]["whole"])  # [scored,3]
        for method in ("neuroframes", "mean_frame")
    )
    found = []
    end = 0
    for low, high in timeline.stretches:
        run, start = results.subject.when(timeline.rows[low])
        begin = end
        end += free[low:high].sum()
        row = {"run": run, "start": start, "frames": high - low}
        if end > begin:
            mse, r, cos = own[begin:end].mean(0).tolist()
            row.update(mse=mse, r=r, cos=cos, mean_frame_mse=mean_frame[begin:end, 0].mean().item())
        found.append(row)
    return found
