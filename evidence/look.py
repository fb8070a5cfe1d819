"""What would a person look at before training? A few lines, and look.png.

Read are the 304 frames in the middle of each run, and of those at most 2,000 vertices. Runs of less
than 90 s are not looked at.

    tSNR[v] = |mean[v]| / std[v]        in time; the std of what a linear trend leaves
    r[l] = sum_t p[t] b[t+l] / sqrt(sum p^2 sum b^2)        runs end to end, as if in a circle

p[t]: log power of frame t's EEG in a band, mean over channels. b[t]: mean over vertices of
z-scores. Both are without mean and linear trend in each run. BOLD is paired with EEG that is
`delay` seconds older: where |r| is largest at a lag l above 0, BOLD comes later, and the delay is
rather delay + l. But something is always largest, of four bands and lags from -10 to 15 s. The same
is therefore looked for in EEG that was moved by 30 s or more, by each number of frames that there
is: 95 of 100 times what is largest there is below `chance`. An r below it says nothing: the EEG may
tell of single regions, and not of their mean. An r above it comes by chance in up to 12 of 100
subjects of four runs (tests/test_look.py), and more often where there is one short run only.

Motion is the framewise displacement of fMRIPrep's confounds. Without them it is a frame's change
from the one before (root mean square over vertices), where the median change is 1.

Spectra are of stretches of 8 windows end to end, and means of *log* power, so that a pop hardly
counts. Every eighth of their frequencies is a multiple of 1/TR, where MR gradients leave power.
"""

import importlib.util
import os

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from spaces.pictures import pyplot
from tools import files

BANDS = {"delta": 1, "theta": 4, "alpha": 8, "beta": 13}  # Hz, up to the next
LAST = 30  # Hz


def tell(subject):
    """Print what there is to see in a data.Subject, and draw it into its folder."""
    tr = subject.tr
    looks = []
    for run, (start, stop) in enumerate(subject.runs):
        t = min(stop - start, 304) // 8 * 8
        if t * tr > 90 and not subject.meta.get("eeg_alone"):
            first = (start + stop - t) // 2
            rows = slice(first, first + t)
            looks.append((*look_at_bold(subject, run, rows), *look_at_eeg(subject, rows)))
    if not looks:
        return
    bold, motion, power, spectra = zip(*looks)  # of each run
    tell_eeg(subject, np.exp(spectra))

    r, lags, chance = together(np.concatenate(bold), np.concatenate(power), tr)
    k, band = np.unravel_index(np.abs(r).argmax(), r.shape)
    print(
        f"  EEG and mean BOLD: r {r[k, band]:.2f} of {list(BANDS)[band]}, with BOLD {lags[k]:.1f} "
        f"s later than it is paired; by chance up to {chance:.2f}"
    )
    if importlib.util.find_spec("matplotlib"):
        figure, axes = pyplot().subplots(2, 2, figsize=(11, 7), layout="constrained")
        draw_eeg(axes[0], subject, np.exp(np.mean(spectra, 0)))
        time, by_lag = axes[1]
        time.plot(np.concatenate(bold), lw=0.7, label="mean BOLD")
        time.plot(np.concatenate(motion), lw=0.7, label="motion")
        time.set(xlabel="frame looked at")
        time.legend()
        by_lag.plot(lags, r, label=list(BANDS))
        by_lag.axhspan(-chance, chance, color="0.9", label="chance")
        by_lag.set(xlabel="s that BOLD comes later than it is paired", ylabel="r")
        by_lag.legend()
        path = os.path.join(subject.folder, "look.png")
        files.replace(path, lambda file: figure.savefig(file, dpi=80))
        pyplot().close(figure)
        print(f"  drawn: {path}")


def look_at_bold(subject, run, rows):
    """(b [t], motion [t]) of these frames of a run."""
    V = subject.fmri.shape[1]
    columns = np.linspace(0, V - 1, min(V, 2000)).astype(int)
    x = subject.fmri[rows][:, columns].astype(float)  # [t,v]
    varies = np.ptp(x, 0) > 0
    x = x[:, varies]
    rest = without_trend(x)
    std = rest.std(0)  # [v]
    tsnr = np.median(np.abs(x.mean(0)) / std)
    change = np.sqrt((np.diff(x, axis=0, prepend=x[:1]) ** 2).mean(1))  # [t]
    change[0] = np.nan
    motion = change / np.nanmedian(change)
    unit, much = "of the median", 2

    path = subject.meta["taken_out"][run].get("confounds") if "taken_out" in subject.meta else ""
    if path and os.path.exists(path):
        moved = np.genfromtxt(path, delimiter="\t", names=True)["framewise_displacement"]
        before = subject.meta["first_volume"][run] - subject.runs[run][0]
        motion = moved[before + rows.start : before + rows.stop]
        unit, much = "mm", 0.5
    said = f"{tsnr:.0f}" if tsnr > 3 else "unknown (mean near 0: cleaned, or z-scores)"
    print(
        f"  run {run + 1}: tSNR {said}; {1 - varies.mean():.1%} of vertices constant; motion "
        f"{np.nanmean(motion):.2f} {unit}, over {much} in {np.sum(motion > much)} of {len(x)}"
    )
    return (rest / std).mean(1), motion


def without_trend(x):
    """x [t,columns], each less its mean and linear trend."""
    trend = np.vander(np.linspace(-1, 1, len(x)), 2)  # [t,2]
    return x - trend @ np.linalg.pinv(trend) @ x


def look_at_eeg(subject, rows):
    """Log power: of each frame [t,bands]; of all [C,F], at multiples of 1 / (8 TR) to 100 Hz."""
    W = subject.eeg.shape[2]
    f = np.fft.rfftfreq(W, subject.tr / W)  # Hz
    edges = np.minimum(np.searchsorted(f, [*BANDS.values(), LAST]), len(f) - 1)
    each = []
    total = []
    for i in range(rows.start, rows.stop, 8):
        windows = subject.eeg[i : i + 8].astype(float)  # [8,C,W]
        parts = np.add.reduceat(power_of(windows), edges, 2)[:, :, :-1]  # [8,C,bands]
        each.append(np.log(parts).mean(1))  # [8,bands]
        whole = power_of(np.hstack(windows))  # [C,8W] -> [C,4W+1]
        total.append(np.log(whole[:, : round(800 * subject.tr)]))
    return without_trend(np.concatenate(each)), np.mean(total, 0)


def power_of(x):
    """x [...,t] -> [...,t/2+1]."""
    x = x - x.mean(-1, keepdims=True)
    return np.abs(np.fft.rfft(x * np.hanning(x.shape[-1]))) ** 2 + 1e-300  # has a logarithm


def tell_eeg(subject, spectra):
    """What is odd in the power [runs,C,F]."""
    total = spectra[:, :, round(8 * subject.tr) :].sum(2)  # [runs,C], from 1 Hz on
    ratio = np.median(total / np.median(total, 1, keepdims=True), 0)  # [C]
    names = subject.meta["eeg"].get("channels") or [f"channel {i}" for i in range(len(ratio))]
    odd = [f"{name} {x:.2f}" for name, x in zip(names, ratio) if not 0.1 < x < 10]
    print(f"  EEG channels of odd power (1: the median channel's): {', '.join(odd) or 'none'}")

    # Half of 1/TR away from their multiples there is nothing of the gradients.
    beside = (spectra[:, :, :-8] + spectra[:, :, 8:]) / 2
    times = np.median(spectra[:, :, 4:-4] / beside, 1)  # [runs,F-8]; 4 of F is the first
    peaks = times[:, 4 : round(320 * subject.tr) - 4 : 8]  # up to 40 Hz
    for hz in (50, 60):
        at = round(8 * hz * subject.tr) - 4
        if at < times.shape[1]:
            print(f"  EEG at {hz} Hz: {np.median(times[:, at]):.1f} times the power beside")
    if (np.median(peaks, 1) > 10).any():
        print(
            f"note: {subject.folder}/eeg.npy: power at multiples of 1/TR ({1 / subject.tr:g} Hz) "
            "is over 10 times that beside: are MR gradient artefacts still in? Correct them first"
        )


def together(b, p, tr):
    """(r [L,bands], lags [L] in s, chance) of b [t] and p [t,bands]."""
    lags = np.arange(-int(10 / tr), int(15 / tr) + 1)  # frames
    products = np.fft.rfft(b)[:, None] * np.fft.rfft(p, axis=0).conj()
    r = np.fft.irfft(products, len(b), 0) / np.linalg.norm(b) / np.linalg.norm(p, axis=0)
    least = round(30 / tr)
    far = np.abs(r[least:-least]).max(1)
    largest = sliding_window_view(far, len(lags)).max(1)
    return r[lags], lags * tr, np.percentile(largest, 95)


def draw_eeg(axes, subject, spectrum):
    """Power [C,F], and some channels for 5 s."""
    f = np.arange(1, spectrum.shape[1]) / (8 * subject.tr)  # Hz
    axes[0].loglog(f, spectrum[:, 1:].T, lw=0.5)
    axes[0].set(xlabel="Hz", title="EEG: power of each channel")
    windows = subject.eeg[: round(5 / subject.tr), ::8]  # [.,lines,W]
    lines = np.hstack(windows).T  # [t,lines]
    seconds = np.arange(len(lines)) * subject.tr / windows.shape[2]
    apart = 5 * np.median(lines.std(0)) * np.arange(lines.shape[1])
    axes[1].plot(seconds, lines + apart, lw=0.5)
    axes[1].set(xlabel="s", title="EEG: every eighth channel", yticks=[])
