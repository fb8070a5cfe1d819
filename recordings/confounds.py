"""What of a run's BOLD is motion, breathing and drift, and what remains without it?

One least-squares fit a run, over its good volumes, of confounds and slow cosines together:

    x[t,v] = sum_k X[t,k] beta[k,v] + rest[t,v]        X: a constant, cosines, confounds
    y[t,v] = 100 rest[t,v] / mean[v]                   in percent; mean over good volumes

Two fits, one after the other, would bring back some of what the first took out, because confounds
drift as well (Lindquist et al. 2019). The cosines cos(pi k (t + 1/2) / T) have periods of
--high-pass seconds or more: k = 1 to 2 T TR / high-pass.

Columns are fMRIPrep's, strategies nilearn's (load_confounds; compared by Wang et al. 2024):

    motion   six parameters, their derivatives, and the squares of both ("full")
    wm_csf   the means of white matter and of cerebrospinal fluid ("basic")
    global   the mean of the brain ("basic")
    compcor  the first six components of matter and fluid together (Behzadi et al. 2007;
             "anat_combined", n_compcor 6). fMRIPrep takes them from BOLD without drift: they need
             the cosines

Bad volumes came before the steady state, or moved more than --fd mm from the volume before
(framewise displacement, Power et al. 2012). They have no part in the fit; their y is interpolated
linearly in time from the good volumes before and after, and at the ends that of the nearest.
"""

import glob
import os
import re

import numpy as np

from tools.checks import check_finite
from tools.errors import fail

STRATEGIES = {  # which columns, and how many at least
    "motion": ("(trans|rot)_[xyz](_derivative1)?(_power2)?", 24),
    "wm_csf": ("csf|white_matter", 2),
    "global": ("global_signal", 1),
    "compcor": ("a_comp_cor_0[0-5]", 1),
}


def find(bold_path, a):
    """The file of confounds of a run, by the entities in its name; None without --confounds."""
    if not a.confounds:
        return None
    start = re.sub(r"(_(space-|desc-|hemi-|bold)|\.)[^/\\]*$", "_desc-confounds_", bold_path)
    name = os.path.basename(start)
    paths = a.confounds
    if paths == ["auto"]:
        paths = glob.glob(glob.escape(start) + "*.tsv")
    found = [path for path in paths if os.path.basename(path).startswith(name)]
    if len(found) != 1:
        fail(
            f"{bold_path}: --confounds {' '.join(a.confounds)[:99]} has {len(found)} files for it; "
            f"expected one, {name}timeseries.tsv or {name}regressors.tsv (auto: beside it)"
        )
    return found[0]


def design(path, a, volumes, tr):
    """(X [T,p], good volumes bool [T], what subject.json will say of them) of a run. path: its file
    of confounds, or None."""
    names = []
    good = np.ones(volumes, bool)
    angle = np.pi * (np.arange(volumes) + 0.5) / volumes  # [T]
    order = int(2 * volumes * tr / (a.high_pass or np.inf))
    columns = [np.cos(k * angle) for k in range(order + 1)]  # the first is constant

    if path:
        table = np.genfromtxt(path, delimiter="\t", names=True, invalid_raise=False)
        there = table.dtype.names
        if table.size != volumes:
            fail(f"{path}: has {table.size} rows, its BOLD {volumes} volumes; expected as many")
        for strategy in a.strategy.split(","):
            pattern, least = STRATEGIES.get(strategy, ("", 1))
            found = [name for name in there if re.fullmatch(pattern, name)]
            if len(found) < least:
                fail(
                    f"{path}: has {len(found)} of {least} columns of --strategy {strategy} (there "
                    f"are {', '.join(STRATEGIES)}); it has {', '.join(there)}"
                )
            names += found
        if "a_comp_cor_00" in names and "c_comp_cor_00" not in there:
            fail(
                f"{path}: has a_comp_cor, but no c_comp_cor: before fMRIPrep 21 they mixed several "
                "masks; leave compcor out of --strategy, or run a later fMRIPrep"
            )
        columns += [table[name] for name in names]
        for name in there:
            if "non_steady_state" in name:
                good &= table[name] == 0
        if a.fd:
            good &= ~(table["framewise_displacement"] > a.fd)  # the first one's is n/a

    matrix = np.stack(columns, 1)
    matrix[0] = np.nan_to_num(matrix[0])  # n/a: the first volume has no derivatives
    check_finite(matrix, path, matrix, "volume", "column")
    if len(columns) >= good.sum():
        fail(f"{path}: {len(columns)} columns for {good.sum()} good volumes; expected fewer")
    # Squared angles are 1e-10, means of tissues 1e4: the fit could not tell small from rounded.
    matrix /= np.linalg.norm(matrix, axis=0) + 1e-300
    return matrix, good, {"confounds": path, "columns": names, "cosines": order}


def cleaned(read, matrix, good, block=256):
    """A function as `read`, slice of volumes -> [t,V], whose BOLD is cleaned, in percent.

    All is read once, `block` volumes at a time, and then what is asked for. A vertex whose mean is
    not above its standard deviation (no BOLD, or without its mean) is 0.
    """
    T = len(good)
    fit = np.linalg.pinv(matrix * good[:, None], 1e-10)  # [p,T], 0 at bad volumes
    share = good / good.sum()  # [T]
    beta = square = 0
    for start in range(0, T, block):
        rows = slice(start, min(start + block, T))
        x = read(rows).astype(float)  # [t,V]
        beta = beta + fit[:, rows] @ x  # [p,V]
        square = square + share[rows] @ x**2  # [V]
    mean = share @ matrix @ beta  # [V]; on the whole, rest is 0
    usable = mean > np.sqrt(square / 2)
    percent = 100 * usable / np.maximum(mean, 1e-300)  # [V]

    time = np.arange(T)
    line = np.transpose([np.interp(time, time[good], hat[good]) for hat in np.eye(T)])
    # [T,T] row t: of which good volumes frame t is made

    def read_clean(rows):
        used = np.flatnonzero(line[rows].any(0))
        near = slice(used[0], used[-1] + 1)
        rest = read(near) - matrix[near] @ beta  # [n,V]
        frames = line[rows, near] @ rest * percent
        return frames.round(6)  # where nothing varies, 0 instead of rounding errors

    return read_clean
