"""Did the EEG help, or was it luck?

Reconstruction and truth are smooth in time, and may drift: two series that know nothing of each
other are then often alike by chance. So what is slow is taken out of each run (its mean, and what
has periods over 128 s), and the rest is compared with what chance makes of such series:

    EEG alone   S(lags) = sum over runs, frames and vertices of x_hat[t - lag of the run] x[t]
                p = share of lags, 0 among them, whose S is no less than S(0)
    InterRecon  D[block] = sum of error^2 with shuffled EEG - error^2 with its own, from one noise
                p = share of signs +-1 of the blocks that make sum(+-D) no less than sum(D)

A reconstruction that is shifted within its run, by 30 frames and more, is as smooth as before, and
of another time. And if the EEG says nothing, D is as often below 0 as above.

Seam    after sampling: what was written -> p of each region, and a sentence
Source  shifts and signs as permutations (Winkler et al. 2014)
Gain    runs with offsets or drifts, EEG that has nothing to do with them: said to help in 12 to 21%
        of cases, where windows with a higher r are counted -> in 1 to 5%
"""

import numpy as np

PAIR = "neuroframes", "shuffled_eeg"
LEAST = 30  # frames: the shortest shift, the shortest block


def without_drift(x, tr, counts=1):
    """Series [T,n] without their means and what is slower than 128 s, as fitted to the frames that
    count, bool [T,1]."""
    T = len(x)
    waves = np.arange(2 * T * tr // 128 + 1)  # a cosine of k half waves has a period of 2 T / k
    cosines = np.cos(np.pi / T * np.outer(np.arange(T) + 0.5, waves))  # [T,waves]
    slow = np.linalg.qr(counts * cosines)[0]  # orthonormal, 0 elsewhere
    return x - slow @ (slow.T @ x)


def over_vertices(part, regions, T):
    """Sums over the vertices of regions [V,regions], of part(columns) -> [.,columns], which is
    asked for so many at a time that T frames of them are 34 MB: [.,regions]."""
    step = 2**22 // T
    parts = [slice(v, v + step) for v in range(0, len(regions), step)]
    return sum(part(columns) @ regions[columns] for columns in parts)


def likeness(run, tr, regions):
    """S [T,regions] of a run at every lag. run {"recon", "truth": [T,V]}."""
    T = len(run["truth"])

    def spectrum(columns):
        pair = [without_drift(run[name][:, columns], tr) for name in ("recon", "truth")]
        recon, truth = np.fft.rfft(pair, axis=1)  # [T/2 + 1,columns] each
        return recon.conj() * truth

    found = over_vertices(spectrum, regions, T)
    # Shifted, half a wave is no longer one that was taken out. So whole waves as slow are taken out
    # too: else shifts would hold something that the true pairing does not.
    found[: int(T * tr / 128) + 2] = 0
    return np.fft.irfft(found, T, axis=0)


def advantage(run, tr, regions, seen):
    """D [T,regions] of a run, frame by frame, of what was not seen, bool [patterns,V]. run
    {"recon", "shuffled", "truth": [T,V], "pattern": [T]}."""
    pattern = run["pattern"]
    counts = ~seen.all(1)[pattern, None]  # [T,1]: in frames that were seen whole nothing is missed

    def gained(columns):
        x = run["truth"][:, columns]
        errors = [without_drift(run[y][:, columns] - x, tr, counts) for y in ("shuffled", "recon")]
        shuffled, own = np.square(errors)  # [T,columns] each
        return (shuffled - own) * ~seen[pattern, columns]

    return over_vertices(gained, regions, len(pattern))


def p_of_shifts(runs):
    """p [regions] of S [T,regions] of each run; None if shifts are too few."""
    rng = np.random.default_rng(0)
    possible = 1
    sums = 0
    for S in runs:
        T = len(S)
        least = min(LEAST, T // 3)
        lags = np.arange(least, T - least + 1) % T
        possible *= len(lags)
        if len(runs) > 1:
            lags = rng.choice(lags, 999)
        sums = sums + S[np.append(0, lags)]  # [1 + shifts,regions], the true ones first
    if possible >= 50:  # or no p could be as low as 0.02
        return (sums >= sums[0]).mean(0)


def p_of_signs(runs, block):
    """p [regions] of D [T,regions] of each run, put into blocks; None if these are too few."""
    D = [np.add.reduceat(run, np.arange(0, len(run), block)) for run in runs]
    D = np.concatenate(D)  # [blocks,regions]
    signs = np.random.default_rng(0).choice([-1, 1], (5000, len(D)))
    signs[0] = 1  # the true ones first
    sums = signs @ D  # [5000,regions]
    if len(D) >= 6:  # 64 ways to put signs
        return (sums >= sums[0]).mean(0)


def look(runs, regions, seen, tr, metrics):
    """{region: {"p", "r_gain"}}: p is None if there is too little to tell, r_gain by how much r is
    higher than with shuffled EEG. runs hold "recon", "shuffled", "truth" [T,V], "pattern" [T]."""
    masks = np.stack(list(regions.values()), 1)  # [V,regions]
    if metrics["mode"] == "direct":
        p = p_of_shifts([likeness(run, tr, masks) for run in runs])
    else:
        # Long blocks know little of each other, and some 24 of them are enough.
        block = max(LEAST, metrics["frames"], metrics["test_frames"] // 24)
        p = p_of_signs([advantage(run, tr, masks, seen) for run in runs], block)
    helped = {}
    for i, name in enumerate(regions):
        r, shuffled = (metrics["scores"][method][name]["r"]["mean"] for method in PAIR)
        helped[name] = {"p": None if p is None else float(p[i]), "r_gain": r - shuffled}
    return helped


def verdict(metrics):
    """What p says of the whole brain, in a sentence."""
    p, gain = metrics["helped"]["whole"].values()
    if p is None:
        return "Too few frames to tell whether the EEG helped."
    said = "The EEG did not help measurably"
    if p <= 0.02 and gain >= 0:
        said = "The EEG helped" if gain >= 0.005 else "The EEG helped, but hardly"
    scores = metrics["scores"]
    r = scores["neuroframes"]["whole"]["r"]["mean"]
    possible = ""
    if "ceiling" in scores and metrics["mode"] == "direct":
        possible = f" of a possible {scores['ceiling']['whole']['r']['mean']:.3f}"
    values = ", ".join(f"{found['p']:.2g} {name}" for name, found in metrics["helped"].items())
    return f"{said}: r {r:.3f}{possible} with it, {r - gain:.3f} with shuffled EEG (p {values})."
