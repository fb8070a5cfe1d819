"""Did the EEG help, or was it luck?

Reconstruction and truth are smooth in time, and may drift: two series that know nothing of each
other are then often alike by chance. So what is slow is taken out of each run (its mean, what has
periods over 128 s, and a little more), and the rest is compared with what chance makes of such
series:

    EEG alone   S(lags) = sum over runs, frames and vertices of x_hat[t - lag of the run] x[t]
                p = share of lags, 0 among them, whose S is no less than S(0)
    InterRecon  D[block] = sum of error^2 with shuffled EEG - error^2 with its own, from one noise
                p = share of signs +-1 of the blocks that make sum(+-D) no less than sum(D)

A reconstruction that is shifted within its run, by 30 frames and more, is as smooth as before, and
of another time. And if the EEG says nothing, D is as often below 0 as above.

Seam    after sampling: what was written -> p of each region, and a sentence
Source  shifts and signs as permutations (Winkler et al. 2014)
Gain    runs with offsets or drifts, EEG that has nothing to do with them: said to help in 12 to 21%
        of cases, where windows with a higher r are counted -> in 2 to 4%
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from . import people, spread

PAIR = "neuroframes", "shuffled_eeg"
LEAST = 30  # frames: the shortest shift, the shortest block


def without_drift(x, tr):
    """Series [3,T,n] of a run without what is slow, as fitted to the frames that are not all 0, as
    those are that were seen whole."""
    T = x.shape[1]
    # A cosine of k half waves has a period of 2 T / k. Two that are faster than 128 s are taken out
    # too, or else a wave as long as the run would stay, where runs are short.
    waves = np.arange(2 * T * tr // 128 + 3)
    cosines = np.cos(np.pi / T * np.outer(np.arange(T) + 0.5, waves))  # [T,waves]
    cosines[~x.any((0, 2))] = 0
    return x - cosines @ (np.linalg.pinv(cosines) @ x)


def likeness(x, share):
    """S [T,regions] at every lag, of a run's recon, shuffled and truth [3,T,n], whose vertices have
    such a share [n,regions] in the mean of each region."""
    recon, truth = np.fft.rfft(x[::2], axis=1)  # [T/2 + 1,n] each
    return np.fft.irfft((recon.conj() * truth) @ share, x.shape[1], axis=0)


def advantage(x, share):
    """D [T,regions], frame by frame, of a run's recon, shuffled and truth [3,T,n]."""
    own, shuffled = np.square(x[:2] - x[2])
    return (shuffled - own) @ share


def p_of(sums, possible):
    """The share of sums [.,regions] that are no less than the first, the true one: a list, of None
    if so few are possible that no share could be as low as 0.02."""
    return (sums >= sums[0]).mean(0).tolist() if possible >= 50 else [None] * sums.shape[1]


def p_of_shifts(runs):
    """p of each region, of S [T,regions] of each run."""
    rng = np.random.default_rng(0)
    possible = 1
    sums = 0
    for S in runs:
        T = len(S) if len(S) > 8 else 1  # of less, drifts leave almost one shape only: S(0) stays
        least = min(LEAST, T // 3)
        lags = np.arange(T)[least : T - least + 1]
        possible *= len(lags)
        if len(runs) > 1:
            lags = rng.choice(lags, 999)
        sums = sums + S[np.append(0, lags)]  # [1 + shifts,regions]
    return p_of(sums, possible)


def p_of_signs(runs, block):
    """p of each region, of D [T,regions] of each run, put into blocks."""
    D = [np.add.reduceat(run, np.arange(0, len(run), block)) for run in runs]
    D = np.concatenate(D)  # [blocks,regions]
    signs = np.random.default_rng(0).choice([-1, 1], (5000, len(D)))
    signs[0] = 1
    return p_of(signs @ D, 2 ** len(D))


class Helped:
    """Did it, in these results (a tools.report.Results)? What was written is added, some vertices
    at a time; then `tell`. metrics: of metrics.json"""

    def __init__(self, results, metrics):
        self.results, self.metrics = results, metrics
        self.direct = metrics["mode"] == "direct"
        self.runs = [0] * len(results.timeline.stretches)  # S or D of each, [t,regions]
        self.thread = ThreadPoolExecutor(1)
        self.looked = self.thread.submit(int)  # at nothing yet

    def add(self, x, share):
        """Of some vertices recon, shuffled and truth x [3,T,n], each run less its mean and 0 where
        it was seen, and their shares [n,regions] in the mean of each region. While a thread looks
        at them, the next are read."""
        self.looked.result()
        self.looked = self.thread.submit(self.look, x, share)

    def look(self, x, share):
        """In the thread: adds S or D of these vertices, run by run."""
        for i, (low, high) in enumerate(self.results.timeline.stretches):
            run = without_drift(x[:, low:high], self.results.subject.tr)
            measure = likeness if self.direct else advantage
            self.runs[i] = self.runs[i] + measure(run, share)  # [t,regions]

    def tell(self):
        """Puts "helped" into metrics, {region: {"p", "r_gain"}}; returns lines that say it. p is
        None if there is too little to tell; r_gain: by how much r is higher than with shuffled
        EEG."""
        self.looked.result()
        metrics = self.metrics
        # Long blocks know little of each other, and some 24 of them are enough.
        block = max(LEAST, metrics["frames"], metrics["test_frames"] // 24)
        p = p_of_shifts(self.runs) if self.direct else p_of_signs(self.runs, block)

        metrics["helped"] = {}
        for region, value in zip(self.results.regions, p):
            r, shuffled = (metrics["scores"][m][region]["r"]["mean"] for m in PAIR)
            metrics["helped"][region] = {"p": value, "r_gain": r - shuffled}
        return [
            *followed(metrics["over_time"]),
            verdict(metrics) + loudness(metrics["scores"]),
            *spread.told(metrics["calibration"]),
            *people.look(self.results, metrics),
        ]


def followed(scores):
    """r over time of each region, in words."""
    lines = ["r over time, mean over vertices and of a region's mean course:"]
    for region, own in scores["neuroframes"].items():
        shuffled = scores["shuffled_eeg"][region]
        lines.append(
            f"{region:34}{own['r_vertices']:.3f}, {own['r_mean_course']:.3f}; with shuffled EEG "
            f"{shuffled['r_vertices']:.3f}, {shuffled['r_mean_course']:.3f}"
        )
    return lines


def loudness(scores):
    """One sample has the error of the mean and its own variance, at most twice the mean frame's:
    what is far more is said."""
    one, nothing = (scores[m]["whole"]["mse"]["mean"] for m in ("neuroframes_1", "mean_frame"))
    if one <= 3 * nothing:
        return ""
    return (
        f"\nnote: single samples have {one / nothing:.2g} times the error of the mean training "
        "frame, so that their variance is far from that of BOLD: trained too short, or on too "
        "little"
    )


def verdict(metrics):
    """What p says of the whole brain, in a sentence."""
    p, gain = metrics["helped"]["whole"].values()
    if p is None:
        return "Too few frames to tell whether the EEG helped."
    said = "The EEG did not help measurably"
    if p <= 0.02 and gain >= 0:
        said = "The EEG helped" if gain >= 0.005 else "The EEG helped, but hardly"
    r = metrics["scores"]["neuroframes"]["whole"]["r"]["mean"]
    possible = ""
    ceiling = metrics["scores"].get("ceiling")
    if ceiling and metrics["mode"] == "direct":
        possible = f" of a possible {ceiling['whole']['r']['mean']:.3f}"
    values = ", ".join(f"{found['p']:.2g} {name}" for name, found in metrics["helped"].items())
    return f"{said}: r {r:.3f}{possible} with it, {r - gain:.3f} with shuffled EEG (p {values})."
