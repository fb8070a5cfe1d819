"""What is a subject? A synthetic one, a prepared one, its splits and windows, its z-scores.

    python data.py --bold "func/*_bold.dtseries.nii" --eeg "eeg/*.npy" --out subjects/sub1

A *prepared subject* is a folder whose arrays train.py and sample.py map into memory:

    fmri.npy           [T,V]    raw units; frame t of all runs, one after another
    eeg.npy            [T,C,W]  eeg[t] is the EEG window paired with frame t; any units, no offset
    subject.json       tr (s), fs (Hz), delay (s), runs [[start, stop], ...] in frames, first_volume
                       of each run, checksums; optional names of the runs, frames that are
                       `unusable` (moved, torn), and split {"train": [...], "test": [...]}, in which
                       there may be a "val" as well
    space.dscalar.nii  optional: its brain-model axis says where each of the V vertices lies
    rois.npz           optional: region name -> bool [V]
    driven.npy         synthetic only: the part of fmri.npy that its EEG's sources cause [T,V]
    between.npy        synthetic only: BOLD half a TR after each frame, without scanner noise [T,V]

Recordings are made into such a folder by recordings/; the synthetic subject is made here.
"""

import hashlib
import json
import math
import os
from typing import NamedTuple

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools import files
from tools.checks import check_subject
from tools.errors import fail, script

# ---- 1. A synthetic subject, whose truth is known --------------------------------------

STEP = 0.1  # seconds from one simulated value of the sources' power to the next
TR = 0.8  # seconds from one of its frames to the next


def hrf(t):
    """Double-gamma haemodynamic response at t seconds (SPM's): a peak at 5 s, a dip at 15 s."""
    return t**5 * np.exp(-t) / math.gamma(6) - t**15 * np.exp(-t) / math.gamma(16) / 6


def slow_noise(rng, samples, columns, seconds, dt):
    """Gaussian noise [samples,columns], variance 1, autocorrelation exp(-(lag / 2 seconds)^2)."""
    pad = int(4 * seconds / dt)
    kernel = np.exp(-0.5 * (np.arange(-pad, pad + 1) * dt / seconds) ** 2)
    white = rng.standard_normal((samples + 2 * pad, columns))
    smooth = np.stack([np.convolve(w, kernel, "valid") for w in white.T], 1)
    return smooth / np.sqrt((kernel**2).sum())


def smooth_maps(rng, count, sheet):
    """Maps [count,V] of unit variance on places sheet [V,2]: sums of ten blobs 4 vertices wide."""
    side = sheet.max() + 1
    centres = rng.uniform(0, side, (count, 10, 2))
    signs = rng.choice([-1, 1], (count, 10, 1))
    distance = ((sheet - centres[:, :, None]) ** 2).sum(-1)  # [count,10,V]
    maps = (signs * np.exp(-distance / (2 * 4.0**2))).sum(1)
    return maps / maps.std(1, keepdims=True)


def at_times(t, ticks, values):
    """values [ticks,columns] interpolated linearly to times t -> [t,columns]."""
    return np.stack([np.interp(t, ticks, column) for column in values.T], 1)


class Brain(NamedTuple):
    """What all runs of a synthetic subject share."""

    maps: np.ndarray  # [sources,V] where the sources' power shows in BOLD
    background_maps: np.ndarray  # [background,V] of fluctuations that the EEG knows nothing of
    lead_field: np.ndarray  # [C,sources] how strongly each source shows at each electrode
    frequency: np.ndarray  # [sources] Hz
    baseline: np.ndarray  # [V] BOLD in scanner units


def synthetic(
    folder,
    seed=0,
    runs=10,
    frames=900,
    channels=16,
    fs=100,
    side=32,
    sources=8,
    background=24,
):
    """Make a prepared subject of side^2 vertices in seconds; the same seed makes the same one.

    1. Neural sources oscillate, two to a band. The log of their amplitude wanders within seconds:
       their *power* carries the message, their phase carries none.
    2. EEG is the sources seen through a lead field, plus 1/f noise.
    3. BOLD is source power, late and smeared by the haemodynamic response, on smooth maps.
    4. BOLD also has fluctuations as smooth and as slow of which the EEG knows nothing, and white
       noise. So no reconstruction can be perfect: driven.npy, what the sources cause, is the best
       guess of one who knows all that the EEG tells.
    """
    rng = np.random.default_rng(seed)
    tr, delay = TR, 4.0  # seconds
    volumes = frames + math.ceil(
        delay / tr
    )  # the first ones come before their EEG, and are dropped
    sheet = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)  # [V,2]

    maps = smooth_maps(rng, sources, sheet)
    background_maps = smooth_maps(rng, background, sheet)
    background_maps *= 1.4 / np.sqrt(1 + np.arange(background))[:, None]  # few strong, many weak
    brain = Brain(
        maps=maps,
        background_maps=background_maps,
        lead_field=rng.standard_normal((channels, sources)) / math.sqrt(channels),
        frequency=np.repeat(np.geomspace(5, 35, sources // 2), 2),  # theta to gamma, in pairs
        baseline=rng.uniform(400, 1000, side**2),
    )
    runs = [synthetic_run(rng, brain, volumes, tr, fs, delay) for _ in range(runs)]

    names = "fmri", "eeg", "driven", "between"
    arrays = {name: np.concatenate([run[name] for run in runs], dtype=np.float32) for name in names}
    stops = np.cumsum([len(run["fmri"]) for run in runs]).tolist()
    checked = {name: hashlib.blake2b(arrays[name], digest_size=8) for name in ("fmri", "eeg")}
    meta = {
        "tr": tr,
        "fs": fs,
        "delay": delay,
        "source": f"synthetic, seed {seed}",
        "first_volume": [run["first"] for run in runs],
        "runs": list(zip([0] + stops[:-1], stops)),
        "checksums": {name: found.hexdigest() for name, found in checked.items()},
    }
    with files.whole(folder) as partial:
        for name, array in arrays.items():
            files.save_array(os.path.join(partial, f"{name}.npy"), array)
        np.savez(os.path.join(partial, "rois.npz"), patch=(sheet < side // 2).all(1))
        files.save_json(os.path.join(partial, "subject.json"), meta)
    return folder


def ready(out):
    """The folder of the synthetic subject in `out`; it is made if it is not there."""
    folder = os.path.abspath(os.path.join(out, "synthetic"))
    if not os.path.exists(folder):
        synthetic(folder)
    return folder


def synthetic_run(rng, brain, volumes, tr, fs, delay):
    """One run: its first volume that has EEG; from there on eeg, fmri, driven, between."""
    ticks = np.arange(-30.0, volumes * tr, STEP)  # s; the response settles before the first volume
    sources = len(brain.maps)
    amplitude = np.exp(0.5 * slow_noise(rng, len(ticks), sources, 2.0, STEP))  # [ticks,sources]
    bold = synthetic_bold(rng, brain, ticks, amplitude**2, volumes, tr)
    samples = round(volumes * tr * fs)
    eeg = synthetic_eeg(rng, brain, ticks, amplitude, samples, fs)  # [C,samples]

    first, starts = eeg_windows(samples, np.arange(volumes) * tr, tr, fs, delay)
    windows = np.stack([eeg[:, start : start + round(tr * fs)] for start in starts])  # [T,C,W]
    return {"first": first, "eeg": windows, **{name: x[first:] for name, x in bold.items()}}


def synthetic_bold(rng, brain, ticks, power, volumes, tr):
    """BOLD of power [ticks,sources], in scanner units: as scanned, driven, between [volumes,V]."""
    response = hrf(np.arange(0, 30, STEP)) * STEP
    bold = [np.convolve(column, response)[: len(ticks)] for column in power.T]
    bold = at_times(np.arange(2 * volumes) * tr / 2, ticks, np.stack(bold, 1))  # every half TR
    driven = ((bold - 1.65 * response.sum()) / 1.65) @ brain.maps  # [2 volumes,V]; 1.65: E[power]

    wandering = slow_noise(rng, 2 * volumes, len(brain.background_maps), 2.0, tr / 2)
    true = driven + wandering @ brain.background_maps  # [2 volumes,V]
    scanned = true[::2] + 1.5 * rng.standard_normal((volumes, len(brain.baseline)))
    found = {"fmri": scanned, "driven": driven[::2], "between": true[1::2]}
    return {name: brain.baseline * (1 + 0.005 * x) for name, x in found.items()}


def synthetic_eeg(rng, brain, ticks, amplitude, samples, fs):
    """EEG [C,samples]: oscillations whose phase wanders, through the lead field, and pink noise."""
    channels, sources = brain.lead_field.shape
    t = np.arange(samples) / fs
    phase = 2 * np.pi * (brain.frequency * t[:, None] + rng.uniform(size=sources))
    phase += math.sqrt(2 * math.pi / fs) * np.cumsum(rng.standard_normal(phase.shape), 0)
    signal = at_times(t, ticks, amplitude) * np.sin(phase)  # [samples,sources]

    white = np.fft.rfft(rng.standard_normal((channels, samples)))
    pink = np.fft.irfft(white / np.sqrt(np.maximum(np.arange(white.shape[1]), 1)), samples)
    return brain.lead_field @ signal.T + 0.5 * pink / pink.std()


def eeg_windows(samples, onsets, tr, fs, delay):
    """Pair volumes, whose onsets are seconds after the first EEG sample, with EEG: (first kept
    volume, first EEG sample of each kept volume's window).

    BOLD follows neural activity by seconds, so the frame at t goes with the EEG of
    [t - delay, t - delay + TR). Volumes whose window was not wholly recorded are dropped.
    """
    starts = [round((t - delay) * fs) for t in onsets]
    length = round(tr * fs)
    kept = [k for k, start in enumerate(starts) if start >= 0 and start + length <= samples]
    first = kept[0] if kept else 0
    return first, [starts[k] for k in kept]


# ---- 2. A prepared subject -------------------------------------------------------------


def mapped(name, ndim):
    """An array of a subject's folder, or None. It is opened anew for each reading: the pages read
    through a memory map count as this process's memory for as long as the map is open."""

    def read(self):
        path = os.path.join(self.folder, name)
        if os.path.exists(path):
            return files.load_npy(path, ndim, kinds="f", seen=self.seen)

    return property(read)


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def read_masks(path):
    with np.load(path, allow_pickle=False) as masks:
        return dict(masks)


def read_space(path):
    return nib.load(path).header.get_axis(1)


class Subject:
    """A prepared subject, mapped into memory. Frames are raw, as on disk; see `Normaliser`."""

    fmri = mapped("fmri.npy", 2)  # [T,V]
    eeg = mapped("eeg.npy", 3)  # [T,C,W]
    driven = mapped("driven.npy", 2)  # [T,V]
    between = mapped("between.npy", 2)  # [T,V]

    def __init__(self, folder):
        self.folder, self.seen = folder, {}
        self.meta = self.part("subject.json", read_json)
        self.rois = self.part("rois.npz", read_masks) or {}
        self.space = self.part("space.dscalar.nii", read_space)
        if self.meta is None or self.fmri is None or self.eeg is None:
            fail(
                f"{folder}: no prepared subject there (subject.json, fmri.npy, eeg.npy); "
                "prepare it with data.py, or name another with --data"
            )
        check_subject(self)
        self.tr = self.meta["tr"]  # seconds
        self.runs = self.meta["runs"]

    def part(self, name, read):
        path = os.path.join(self.folder, name)
        try:
            return read(path) if os.path.exists(path) else None
        except Exception as error:  # of many kinds
            fail(f"{path}: not readable ({error!r}); prepare the subject again with data.py", error)

    def when(self, frame):
        """The run that a frame is of, from 1, and its seconds after that run's first volume."""
        run = next(i for i, (start, stop) in enumerate(self.runs) if start <= frame < stop)
        volume = self.meta["first_volume"][run] + frame - self.runs[run][0]
        return run + 1, volume * self.tr

    def split_by_names(self, flags):
        """Use the runs that flags {"test", "val"} name for that, and the others for training."""
        if flags.get("test") or flags.get("val"):
            from recordings import splits

            self.meta["split"] = splits.by_names(self, flags)

    def segments(self, split, validation=True):
        """Stretches [start, stop) of consecutive frames of one run in `split`: train, val or test.

        Splits are by whole runs, because windows of one run share its slow fluctuations. The last
        fifth of the runs (rounded down, at least one) is the test set; of three or more training
        runs the last is for validation. A split in subject.json goes first, and where it names
        validation frames, there are no others; frames in no part of it, and those that are
        `unusable`, are not used, and end a stretch. validation=False: what would be for validation,
        also what the split names, is for training.
        """
        given = self.meta.get("split")
        label = np.full(len(self.fmri), "train" if given is None else "none", "U5")  # [T]
        for name, frames in (given or {}).items():
            label[frames] = name
        if given is None and len(self.runs) > 1:
            for start, stop in self.runs[-max(1, len(self.runs) // 5) :]:
                label[start:stop] = "test"

        label[self.meta.get("unusable", [])] = "none"

        training = [run for run in self.runs if (label[slice(*run)] == "train").any()]
        if not validation:
            label[label == "val"] = "train"
        elif "val" not in label and len(training) >= 3:
            last = label[slice(*training[-1])]  # a view: what is written to it is in label
            last[last == "train"] = "val"

        found = []
        for start, stop in self.runs:
            changes = [i for i in range(start + 1, stop) if label[i] != label[i - 1]]
            edges = [start, *changes, stop]
            found += [(a, b) for a, b in zip(edges[:-1], edges[1:]) if label[a] == split]
        return found


class Normaliser:
    """z-scores with training statistics, and back.

    mean, std [V] of the frames. Vertices without variance get std 0: they are 0 in z-scores, come
    back as their constant, and are left out of scores (`valid`).
    eeg_scale [C], by which a channel's EEG is divided: of the windows' largest |EEG| the median, or
    the largest, by which the paper scales it to (-1, 1) (robust=False). An electrode that pops once
    makes the largest a thousand times as large, and all else of its channel next to nothing.
    """

    LIMIT = 5  # of |EEG| after scaling; a pop would drown the power of all other windows

    def __init__(self, mean, std, eeg_scale):
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self.eeg_scale = np.asarray(eeg_scale, np.float32)
        self.valid = self.std > 0
        divisor = np.where(self.valid, self.std, 1)
        self.inverse = np.where(self.valid, 1 / divisor, 0).astype(np.float32)

    @classmethod
    def measure(cls, subject, segments, robust=True, block=256):
        blocks = [slice(i, min(i + block, b)) for a, b in segments for i in range(a, b, block)]
        count = sum(b - a for a, b in segments)
        V = subject.fmri.shape[1]
        total = np.zeros(V)
        square = np.zeros(V)
        largest = []
        origin = subject.fmri[blocks[0].start].astype(np.float64)  # sums of x - origin keep digits
        for s in tqdm(blocks, desc="statistics", unit="block", disable=len(blocks) < 50):
            x = subject.fmri[s].astype(np.float64) - origin
            total += x.sum(0)
            square += (x**2).sum(0)
            eeg = np.abs(np.asarray(subject.eeg[s], np.float32))
            largest.append(eeg.max(2))  # [t,C]

        largest = np.concatenate(largest)  # [T,C]
        scale = np.median(largest, 0) if robust else largest.max(0)  # [C]
        mean = origin + total / count
        variance = square / count - (total / count) ** 2
        std = np.sqrt(np.maximum(variance, 0))
        # A constant vertex may have rounding errors, of its mean or of what was filtered out of it.
        std[std <= np.maximum(1e-6 * np.abs(mean), 1e-3 * np.median(std))] = 0
        if not std.any():
            fail(
                f"{subject.folder}/fmri.npy: no vertex varies in {count:,} training frames; "
                "look at the BOLD files"
            )
        return cls(mean, std, np.where(scale > 0, scale, 1))

    def zscore(self, frames, columns=...):
        return (np.asarray(frames, np.float32) - self.mean[columns]) * self.inverse[columns]

    def raw(self, z):
        return z * self.std + self.mean

    def eeg(self, windows):
        scaled = np.asarray(windows, np.float32) / self.eeg_scale[:, None]
        return scaled.clip(-self.LIMIT, self.LIMIT)


# ---- 3. Windows of K frames ------------------------------------------------------------


class Window(NamedTuple):
    """K = length frames from start on, within the stretch [low, high)."""

    start: int
    length: int
    low: int
    high: int


def tile(segments, K, overlap=0):
    """Windows that cover segments [low, high), each with `overlap` frames of the one before.

    The last one of a segment is moved back to fit; a segment shorter than K is one short window.
    """
    windows = []
    for low, high in segments:
        for start in range(low, max(low + 1, high - overlap), K - overlap):
            fitting = min(start, max(low, high - K))
            windows.append(Window(fitting, min(K, high - low), low, high))
    return windows


def batches(windows, size):
    """Lists of at most `size` windows, all of one length."""
    for K in sorted({window.length for window in windows}):
        alike = [window for window in windows if window.length == K]
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def draw_windows(segments, K, count, rng):
    """`count` windows of one length, at most K; every start that fits is as likely."""
    K = min(K, max(high - low for low, high in segments))
    fitting = [np.arange(low, high - K + 1) for low, high in segments]  # none if it is shorter
    starts = np.concatenate(fitting)
    windows = []
    for start in starts[rng.integers(len(starts), size=count)].tolist():
        low, high = next(s for s in segments if s[0] <= start < s[1])
        windows.append(Window(start, K, low, high))
    return windows


def window_indices(windows, context=0, more=0):
    """Of B windows of one length: rows of fmri.npy [B,K], rows of eeg.npy [B,L], and the latter's
    times [B,L]. (Or places in a timeline, if the windows are of places.)

    The paper's windows see the EEG of their own frames, L = K. A frame's BOLD reflects the EEG of
    ten seconds and more, so that of `context` further frames on each side can be shown too (and of
    `more` after those). Past a stretch's border its last EEG is repeated, with its own time. Times
    are in frames after the window's first.
    """
    start = np.array([window.start for window in windows])[:, None]  # [B,1]
    low = np.array([window.low for window in windows])[:, None]
    last = np.array([window.high for window in windows])[:, None] - 1
    K = windows[0].length
    rows = start + np.arange(K)
    eeg_rows = np.clip(start + np.arange(-context, K + context + more), low, last)
    return rows, eeg_rows, (eeg_rows - start).astype(np.float32)


class Timeline(NamedTuple):
    """The frames of a split, one stretch after the other, at places 0 to T - 1."""

    rows: np.ndarray  # [T] where they are in fmri.npy
    stretches: list  # places [low, high) of each
    pattern: np.ndarray  # [T] what is observed of each frame: see `patterns`
    blocks: list  # places of every K successive frames of a stretch


def patterns(mask):
    """Number the sets of vertices that are observed together: mask bool [period,V] -> (seen bool
    [patterns + 1,V], of_frame [period]).

    of_frame[k], of the k-th frame of each period, is its pattern, a row of seen; -1, which is the
    last row, if nothing of it is observed. Where whole frames are observed, as in the paper, there
    is one pattern, 0: all vertices.
    """
    rows, of_frame = np.unique(mask, axis=0, return_inverse=True)
    some = rows.any(1)  # all but the row without any, if it is there
    number = np.where(some, np.cumsum(some) - 1, -1)
    nothing = np.zeros((1, mask.shape[1]), bool)
    return np.concatenate([rows[some], nothing]), number[of_frame.ravel()]


def timeline(segments, K, of_frame):
    """Timeline of segments; the k-th frame of each gets of_frame[k modulo period] as pattern."""
    rows = [np.arange(low, high) for low, high in segments]
    stops = np.cumsum([len(run) for run in rows]).tolist()
    stretches = list(zip([0] + stops[:-1], stops))
    pattern = [of_frame[np.arange(len(run)) % len(of_frame)] for run in rows]
    blocks = []
    for low, high in stretches:
        blocks += [np.arange(i, min(i + K, high)) for i in range(low, high, K)]
    return Timeline(np.concatenate(rows), stretches, np.concatenate(pattern), blocks)


# ---- 4. The command --------------------------------------------------------------------


def add_flags(add):
    """Those of train.py that say what is for what."""
    add("--test", nargs="+", metavar="RUN", help="test runs by name: ses-2, task-rest_run-3")
    add("--val", nargs="+", metavar="RUN", help="the same of validation runs")


@script
def main(argv=None):
    import recordings

    a = recordings.parse(argv)
    for folder in a.check or recordings.prepare(a, eeg_windows):
        recordings.tell(Subject(folder))


if __name__ == "__main__":
    main()
