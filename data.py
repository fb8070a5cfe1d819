"""Where frames and windows come from, and where results go.

    python data.py --bold "func/*_bold.dtseries.nii" --eeg "eeg/*.npy" --out subjects/sub1

A *prepared subject* is a folder that train.py and sample.py memory-map:

    fmri.npy           [T,V]    raw units; frame t of all runs, one after another
    eeg.npy            [T,C,W]  eeg[t] is the EEG window paired with frame t; any units, no offset
    subject.json       tr (s), fs (Hz), delay (s), runs [[start, stop], ...] in frames, first_volume of
                       each run, optional split {"train": [...], "test": [...]}, checksums, source files
    space.dscalar.nii  optional: its brain-model axis says where each of the V grayordinates lies
    rois.npz           optional: region name -> bool [V]
    driven.npy         only the synthetic subject: the part of fmri.npy that its EEG's sources cause [T,V]
    between.npy        only there: BOLD half a TR after each frame, without the scanner's noise [T,V]
"""
import glob
import json
import math
import os
import re

import nibabel as nib
import numpy as np
from tqdm import tqdm

from tools import files
from tools.errors import (Parser, check_finite, check_pair, check_positive, check_range, check_subject, check_tr, fail,
                          named, script)

# ---- 1. A synthetic subject, whose truth is known --------------------------------------

def hrf(t):
    """Double-gamma haemodynamic response at t seconds (SPM's): a peak at 5 s, a dip at 15 s."""
    return t**5 * np.exp(-t) / math.gamma(6) - t**15 * np.exp(-t) / math.gamma(16) / 6

def slow_noise(rng, samples, columns, seconds, dt):
    """[samples,columns], dt seconds apart: Gaussian noise, variance 1, autocorrelation exp(-(lag / 2 seconds)^2)."""
    pad = int(4 * seconds / dt)
    kernel = np.exp(-0.5 * (np.arange(-pad, pad + 1) * dt / seconds) ** 2)
    white = rng.standard_normal((samples + 2 * pad, columns))
    smooth = np.stack([np.convolve(w, kernel, "valid") for w in white.T], 1)
    return smooth / np.sqrt((kernel**2).sum())

def synthetic(folder, seed=0, runs=10, frames=900, channels=16, fs=100, side=32, sources=8, background=24):
    """Make a prepared subject of side^2 vertices in a few seconds; the same seed makes the same one.
    1. Neural sources oscillate, two to a band. The log of their amplitude wanders within seconds:
       their *power* carries the message, their phase carries none.
    2. EEG is the sources seen through a lead field (how strongly each source shows at each electrode), plus 1/f noise.
    3. BOLD is source power, late and smeared by the haemodynamic response, on smooth maps.
    4. BOLD also has fluctuations as smooth and as slow of which the EEG knows nothing, and white
       noise. So no reconstruction can be perfect; driven.npy is the best guess of one who knows all that the EEG tells.
    """
    rng = np.random.default_rng(seed)
    tr, delay, step, lead_in = 0.8, 4.0, 0.1, 30.0  # seconds; power is simulated every `step`
    V, W, volumes = side**2, round(tr * fs), frames + math.ceil(delay / tr)
    sheet = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)  # [V,2] a cortical sheet

    def smooth_maps(count):  # [count,V], unit variance: sums of ten blobs 4 vertices wide
        centres, signs = rng.uniform(0, side, (count, 10, 2)), rng.choice([-1, 1], (count, 10, 1))
        blobs = np.exp(-((sheet - centres[:, :, None]) ** 2).sum(-1) / (2 * 4.0**2))    # [count,10,V]
        maps = (signs * blobs).sum(1)
        return maps / maps.std(1, keepdims=True)
    maps, background_maps = smooth_maps(sources), smooth_maps(background)
    background_maps *= 1.4 / np.sqrt(1 + np.arange(background))[:, None]  # a few strong, many weak
    lead_field = rng.standard_normal((channels, sources)) / math.sqrt(channels)
    frequency = np.repeat(np.geomspace(5, 35, sources // 2), 2)  # Hz, theta to gamma, in pairs
    baseline = rng.uniform(400, 1000, V)                         # BOLD in scanner units
    response = hrf(np.arange(0, 30, step)) * step

    def make_run():
        ticks = np.arange(-lead_in, volumes * tr, step)  # the response settles before the first volume
        amplitude = np.exp(0.5 * slow_noise(rng, len(ticks), sources, 2.0, step))      # [ticks,S]
        at = lambda t, u: np.stack([np.interp(t, ticks, c) for c in u.T], 1)           # noqa: E731  [t,S]
        bold = np.stack([np.convolve(p, response)[: len(ticks)] for p in (amplitude**2).T], 1)  # [ticks,S]
        bold = (at(np.arange(2 * volumes) * tr / 2, bold) - 1.65 * response.sum()) / 1.65  # 1.65: E[power]
        driven = bold @ maps                                                           # [2 volumes,V] every TR/2
        true = driven + slow_noise(rng, 2 * volumes, background, 2.0, tr / 2) @ background_maps
        x = true[::2] + 1.5 * rng.standard_normal((volumes, V))                        # [volumes,V] as scanned
        x, between, driven = (baseline * (1 + 0.005 * u) for u in (x, true[1::2], driven[::2]))
        t = np.arange(round(volumes * tr * fs)) / fs
        phase = 2 * np.pi * (frequency * t[:, None] + rng.uniform(size=sources))       # [samples,S]
        phase += math.sqrt(2 * math.pi / fs) * np.cumsum(rng.standard_normal(phase.shape), 0)
        white = np.fft.rfft(rng.standard_normal((channels, len(t))))
        pink = np.fft.irfft(white / np.sqrt(np.maximum(np.arange(white.shape[1]), 1)), len(t))
        eeg = lead_field @ (at(t, amplitude) * np.sin(phase)).T + 0.5 * pink / pink.std()  # [C,samples]
        first, starts = eeg_windows(len(t), volumes, tr, fs, delay)
        return first, np.stack([eeg[:, i: i + W] for i in starts]), *(u[first:] for u in (x, driven, between))

    made = [make_run() for _ in range(runs)]
    meta = {"tr": tr, "fs": fs, "delay": delay, "source": f"synthetic, seed {seed}",
            "first_volume": [m[0] for m in made], "frames_per_run": [len(m[1]) for m in made]}
    with files.prepared(folder, meta, V, channels, W) as out:
        for _, eeg, x, _, _ in made:
            out.add(x, eeg)
        for i, name in ((3, "driven.npy"), (4, "between.npy")):
            np.save(out.path(name), np.concatenate([m[i] for m in made]).astype(np.float32))
        np.savez(out.path("rois.npz"), patch=(sheet < side // 2).all(1))
    return folder

# ---- 2. Preparing recordings -----------------------------------------------------------

def eeg_windows(samples, volumes, tr, fs, delay):
    """Pair volumes with EEG: (first volume, first EEG sample of each kept volume's window). BOLD follows
    neural activity by seconds, so the frame at k TR goes with EEG [k TR - delay, k TR - delay + TR).
    Volumes whose window is not wholly recorded are dropped."""
    starts = [round((k * tr - delay) * fs) for k in range(volumes)]
    kept = [k for k, a in enumerate(starts) if a >= 0 and a + round(tr * fs) <= samples]
    return (kept[0], [starts[k] for k in kept]) if kept else (0, [])

def open_bold(path):
    """Array-like [volumes,V] that reads when sliced; TR and brain-model axis, or None for a .npy."""
    if path.endswith(".npy"):
        return files.load_npy(path, 2), None, None
    try:
        image = nib.load(path, mmap=False)  # mapped pages would count as memory
        series, space = image.header.get_axis(0), image.header.get_axis(1)
    except Exception as error:  # nibabel raises many kinds
        fail(f"{path}: not readable as CIFTI-2 ({str(error)[:150]}); expected a .dtseries.nii or .npy [volumes, V] "
             "(CIFTI-1: wb_command -file-convert -cifti-version-convert OLD 2 NEW)", error)
    if not isinstance(series, nib.cifti2.SeriesAxis) or not isinstance(space, nib.cifti2.BrainModelAxis):
        fail(f"{path}: has axes {type(series).__name__} and {type(space).__name__}; expected a dense series "
             "(.dtseries.nii): SeriesAxis and BrainModelAxis")
    if series.unit != "SECOND":
        fail(f"{path}: its series is in {series.unit}; expected SECOND")
    return image.dataobj, float(series.step), space

def read_bold(path, bold, rows):
    """Frames [t,V] of an open_bold array, checked."""
    try:
        frames = np.asarray(bold[rows])  # [t,V]
    except Exception as error:  # of many kinds
        fail(f"{path}: is cut short or damaged ({error}); copy it again", error)
    check_finite(frames, path, bold, "volume", "vertex")
    return frames

def prepare_runs(a):
    """One BOLD file and one continuous EEG .npy [C, samples] a run; EEG sample 0 = first volume."""
    natural = lambda path: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", path)]  # noqa: E731
    bolds, eegs = (sorted(glob.glob(g), key=natural) for g in (a.bold, a.eeg))  # run-2 before run-10
    if not bolds or len(bolds) != len(eegs):
        fail(f"--bold {a.bold} finds {len(bolds)} files, --eeg {a.eeg} {len(eegs)}; expected one of each a run")
    plan, same = [], None
    for bold_path, eeg_path in zip(bolds, eegs):
        bold, bold_tr, space = open_bold(bold_path)
        tr = a.tr or bold_tr or fail(f"{bold_path}: says no TR; give it with --tr, in seconds")
        check_tr("--tr" if a.tr else bold_path, tr)
        if a.tr and 0.05 <= (bold_tr or 0) <= 20 and abs(a.tr - bold_tr) > 1e-3:
            fail(f"--tr {a.tr:g}: {bold_path} says {bold_tr:g} s; leave --tr out")
        C, samples = files.load_npy(eeg_path, 2).shape
        found = {"grayordinates": bold.shape[1], "s TR": tr, "EEG channels": a.channels or C, "places": space}
        same = same or found
        for what in [w for w in found if found[w] != same[w]]:
            numbers = " in the brain" if what == "places" else f" ({found[what]:g}, {same[what]:g})"
            fail(f"{bold_path}, {eeg_path}: other {what} than {bolds[0]}, {eegs[0]}{numbers}; expected runs alike")
        check_pair(bold_path, eeg_path, bold.shape[0], tr, C, samples, a.fs, a.delay)
        first, starts = eeg_windows(samples, bold.shape[0], tr, a.fs, a.delay)
        if not starts or C < (a.channels or 1):
            fail(f"{eeg_path}: has {C} channels, and {len(starts)} frames with a whole window of EEG (--delay "
                 f"{a.delay:g}); expected {a.channels or 1} (--channels) or more, and one frame or more")
        plan.append((bold_path, eeg_path, bold, first, starts))
        print(f"{bold_path} + {eeg_path}: {len(starts)} of {bold.shape[0]} volumes have their EEG")
    C, W, V = a.channels or C, round(tr * a.fs), bold.shape[1]
    meta = {"tr": tr, "fs": a.fs, "delay": a.delay, "first_volume": [p[3] for p in plan],
            "source": [[os.path.abspath(p[0]), os.path.abspath(p[1])] for p in plan],
            "frames_per_run": [len(p[4]) for p in plan]}
    with files.prepared(a.out, meta, V, C, W) as out:
        save_space(out, a.parcels, space, V)
        bar = tqdm(total=sum(meta["frames_per_run"]), unit="frame")
        for bold_path, eeg_path, bold, first, starts in plan:
            # An offset, which amplifiers have, leaks into the slowest rhythms of every window.
            eeg = files.load_npy(eeg_path, 2)[:C]
            offset = eeg.mean(1, dtype=np.float64)[:, None]                                     # [C,1]
            check_finite(offset, eeg_path, eeg, "channel", "sample")
            for i in range(0, len(starts), 256):  # CIFTI files keep time contiguous: small blocks read slowly
                block, eeg = starts[i: i + 256], files.load_npy(eeg_path, 2)  # opened anew, its pages read are let go
                windows = np.stack([eeg[:C, s: s + W] for s in block])                          # [t,C,W]
                frames = read_bold(bold_path, bold, slice(first + i, first + i + len(block)))    # [t,V]
                out.add(frames, windows - offset, eeg_path)
                bar.update(len(block))
        bar.close()

def prepare_frames(a):
    """Folders with one .npy a frame, {i}.npy, as CineBrain distributes them: fMRI [V], EEG [>=C, W]. Their
    authors cut the fMRI 4 s late already: file i of one folder belongs to file i of the other, and no
    delay is applied here. A run ends where numbers are missing, and every --frames-per-run."""
    def numbered(folder):
        names = ((re.fullmatch(r"(\d+)\.npy", name), name) for name in os.listdir(folder))
        return {int(match[1]): os.path.join(folder, name) for match, name in names if match}
    bold, eeg = numbered(a.bold), numbered(a.eeg)
    numbers = sorted(bold.keys() & eeg.keys())
    if not numbers:
        fail(f"--bold {a.bold} has {len(bold)} files NUMBER.npy, --eeg {a.eeg} {len(eeg)}; expected files that share a "
             "number")
    print(f"{a.bold} has {len(bold):,} files, {a.eeg} {len(eeg):,}; {len(numbers):,} numbers are in both, {numbers[0]} "
          f"to {numbers[-1]}")
    if len(numbers) < max(len(bold), len(eeg)):
        print("note: the others are left out; do both folders count from the same number?")
    check_tr("--tr", a.tr)
    place = np.array(numbers) - min(bold.keys() | eeg.keys())
    per_run = a.frames_per_run or place[-1] + 1
    edges = [0, *(np.flatnonzero((np.diff(place) > 1) | (np.diff(place // per_run) > 0)) + 1), len(place)]
    V, (C, W) = files.load_npy(bold[numbers[0]], 1).shape[0], files.load_npy(eeg[numbers[0]], 2).shape
    C, space = a.channels or C, open_bold(a.space)[2] if a.space else None
    if a.space and (space is None or len(space) != V):
        fail(f"--space {a.space}: has {len(space or ()):,} grayordinates, the frames have {V:,}; expected a "
             ".dtseries.nii of them")
    meta = {"tr": a.tr, "fs": W / a.tr, "delay": 0.0, "delay_in_files": a.delay,
            "first_number": [numbers[i] for i in edges[:-1]],
            "first_volume": [int(place[i] % per_run) for i in edges[:-1]],
            "frames_per_run": np.diff(edges).tolist(), "source": [os.path.abspath(a.bold), os.path.abspath(a.eeg)]}
    if a.split:
        meta["split"] = files.read_split(a.split, numbers)
    with files.prepared(a.out, meta, V, C, W) as out:
        save_space(out, a.parcels, space, V)
        for i in tqdm(numbers, unit="frame"):
            x, s = files.load_npy(bold[i], 1), files.load_npy(eeg[i], 2)
            if x.shape != (V,) or s.shape[0] < C or s.shape[1] != W:
                fail(f"{bold[i]}, {eeg[i]}: shapes {x.shape}, {s.shape}; expected {(V,)}, ({C} or more, {W})")
            check_finite(x, bold[i], x, "vertex")
            check_finite(s[:C], eeg[i], s, "channel", "sample")
            out.add(x[None], s[None, :C], eeg[i])

# ---- 3. Regions, CIFTI -----------------------------------------------------------------

# Parcels of HCP MMP 1.0 whose sizes add up to the paper's regions exactly: 8,405 grayordinates for its
# "V1" (which is far more than V1, so we call it visual) and 18,946 for its "V1+A1".
VISUAL = """V1 V2 V3 V3A V3B V3CD V4 LO1 LO2 LO3 PIT V4t V6 V6A V7 V8 PH FFC IP0 MT MST FST VVC VMV1 VMV2
            VMV3 PHA1 PHA2 PHA3""".split()
AUDIO = """4 IPS1 A1 7Pm 7m 7AL 7Am 7PL 7PC 8BM p32 47m 8Av 8Ad 9p 10d 8C 44 45 46 9a 10v STGa STSda STSdp
           STSvp TPOJ1 TPOJ2 TPOJ3 PGp""".split()
REGIONS = {"visual": [f"{h}_{p}" for h in "LR" for p in VISUAL],
           "visual+audio": [f"{h}_{p}" for h in "LR" for p in VISUAL + AUDIO] + ["R_s32", "R_STSva"]}

def save_space(out, parcels, space, V):
    """space.dscalar.nii; and rois.npz, from an HCP MMP 1.0 .dlabel.nii and/or boolean .npy masks [V]."""
    if space is not None:
        save_cifti(out.path("space.dscalar.nii"), np.zeros((1, V)), nib.cifti2.ScalarAxis(["space"]), space)
    rois = {}
    for path in parcels or []:
        if path.endswith(".npy"):
            mask = files.load_npy(path, 1, kinds="b")
            if mask.shape != (V,):
                fail(f"--parcels {path}: has shape {mask.shape}; expected ({V},), a value for each vertex")
            name = os.path.basename(path)[:-4]
            if name in (*rois, "whole", "file"):
                fail(f"--parcels {path}: there is a region {name} already, or the name is taken; rename the file")
            rois[name] = np.array(mask)
            continue
        try:
            image = nib.load(path)
            labels, models = image.header.get_axis(0).label[0], image.header.get_axis(1)
        except Exception as error:  # nibabel raises many kinds
            fail(f"--parcels {path}: not readable as a CIFTI-2 .dlabel.nii ({error}); expected that, or a boolean .npy "
                 f"[{V}]", error)
        names = np.array([labels[int(v)][0].removesuffix("_ROI") for v in np.asarray(image.dataobj[0])])
        if space is None and V != len(models) or space and not models.nvertices.items() <= space.nvertices.items():
            fail(f"--parcels {path}: its surfaces are not those of the frames, or theirs are unknown; give .npy masks")
        # A place is a structure and a vertex index, or a structure and a voxel's i, j, k.
        places = lambda axis: zip(axis.name, axis.vertex, map(tuple, axis.voxel))  # noqa: E731
        name_at = dict(zip(places(models), names))
        found = names if space is None else np.array([name_at.get(p, "") for p in places(space)])
        rois.update({region: np.isin(found, members) for region, members in REGIONS.items()})
        if not rois["visual"].any():
            fail(f"--parcels {path}: has parcels such as {sorted(set(names))[:5]}; expected those of HCP MMP 1.0, such "
                 "as L_V1_ROI")
    if rois:
        np.savez(out.path("rois.npz"), **rois)
        print("regions: " + ", ".join(f"{k} {int(m.sum()):,}" for k, m in rois.items()))

def save_cifti(path, values, rows, space):
    """Write values [rows,V] with the axes `rows` and `space` as CIFTI-2."""
    image = nib.Cifti2Image(np.asarray(values, np.float32), (rows, space))
    series = isinstance(rows, nib.cifti2.SeriesAxis)
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_" + ("SERIES" if series else "SCALARS"))
    nib.imageglobals.logger.setLevel(40)  # nibabel warns about voxel sizes, which CIFTI does not have
    with files.writing(path):
        nib.save(image, path)

def save_dtseries(path, frames, space, tr, start):
    """Frames [T,V] in raw units as dense series; start in seconds after the run's first volume."""
    save_cifti(path, frames, nib.cifti2.SeriesAxis(start, tr, len(frames), "SECOND"), space)

# ---- 4. Reading a prepared subject -----------------------------------------------------

def mapped(name, ndim):
    """An array of a subject's folder, or None. Opened anew for each reading: the pages read through a memory map count
    as this process's memory for as long as it is open, and would in the end be the whole file."""
    def read(self):
        path = os.path.join(self.folder, name)
        return files.load_npy(path, ndim, kinds="f", seen=self.seen) if os.path.exists(path) else None
    return property(read)

class Subject:
    """A prepared subject, memory-mapped. Frames stay in raw units on disk; see `Normaliser`."""
    fmri, eeg = mapped("fmri.npy", 2), mapped("eeg.npy", 3)
    driven, between = mapped("driven.npy", 2), mapped("between.npy", 2)  # only of the synthetic subject

    def __init__(self, folder):
        def there(name, read):
            path = os.path.join(folder, name)
            try:
                return read(path) if os.path.exists(path) else None
            except Exception as error:  # of many kinds
                fail(f"{path}: not readable ({error!r}); prepare the subject again with data.py", error)
        def read_json(path):
            with open(path, encoding="utf-8") as f:
                return json.load(f)
        def read_masks(path):
            with np.load(path, allow_pickle=False) as masks:
                return dict(masks)
        self.folder, self.seen, self.meta = folder, {}, there("subject.json", read_json)
        self.rois = there("rois.npz", read_masks) or {}
        self.space = there("space.dscalar.nii", lambda path: nib.load(path).header.get_axis(1))
        if self.meta is None or self.fmri is None or self.eeg is None:
            fail(f"{folder}: no prepared subject there (subject.json, fmri.npy, eeg.npy); prepare it with data.py, or "
                 "name another with --data")
        check_subject(self)
        self.tr, self.runs = self.meta["tr"], self.meta["runs"]

    def when(self, frame):
        """The run that a frame is of, counting from 1, and its seconds after the first volume of that run."""
        run = next(i for i, (start, stop) in enumerate(self.runs) if start <= frame < stop)
        return run + 1, (self.meta["first_volume"][run] + frame - self.runs[run][0]) * self.tr

    def segments(self, split, validation=True):
        """Stretches [start, stop) of consecutive frames of one run in `split`: train, val or test.
        Splits are by whole runs, because windows of one run share its slow fluctuations. The last fifth
        of the runs (rounded down, at least one) is the test set; of three or more training runs the last is for
        validation, unless validation=False gives it back. A split in subject.json goes first; frames that are in no
        part of it (censored, say) are not used, and end a stretch."""
        label = np.full(len(self.fmri), "none" if "split" in self.meta else "train", "U5")
        for name, frames in self.meta.get("split", {}).items():
            label[frames] = name
        if "split" not in self.meta and len(self.runs) > 1:
            for start, stop in self.runs[-max(1, len(self.runs) // 5):]:
                label[start:stop] = "test"
        training = [(a, b) for a, b in self.runs if (label[a:b] == "train").any()]
        if validation and len(training) >= 3:
            a, b = training[-1]
            label[a:b][label[a:b] == "train"] = "val"
        found = []
        for a, b in self.runs:
            edges = [a] + [i for i in range(a + 1, b) if label[i] != label[i - 1]] + [b]
            found += [(i, j) for i, j in zip(edges[:-1], edges[1:]) if label[i] == split]
        return found

class Normaliser:
    """z-scores with training statistics, and back: mean, std [V] of the frames; eeg_scale [C], the largest
    |EEG| of a channel, by which the paper scales it to (-1, 1). Vertices without variance get std 0: they
    are 0 in z-scores, come back as their constant, and are left out of scores (`valid`)."""

    def __init__(self, mean, std, eeg_scale):
        self.mean, self.std, self.eeg_scale = (np.asarray(a, np.float32) for a in (mean, std, eeg_scale))
        self.valid = self.std > 0
        self.inverse = np.where(self.valid, 1 / np.where(self.valid, self.std, 1), 0).astype(np.float32)

    @classmethod
    def measure(cls, subject, segments, block=256):
        blocks = [slice(i, min(i + block, b)) for a, b in segments for i in range(a, b, block)]
        count, V = sum(b - a for a, b in segments), subject.fmri.shape[1]
        total, square, scale = np.zeros(V), np.zeros(V), np.zeros(subject.eeg.shape[1])
        shift = subject.fmri[blocks[0].start].astype(np.float64)  # sums of x - shift keep their digits
        for s in tqdm(blocks, desc="statistics", unit="block", disable=len(blocks) < 50):
            x = subject.fmri[s].astype(np.float64) - shift
            total += x.sum(0)
            square += (x**2).sum(0)
            scale = np.maximum(scale, np.abs(np.asarray(subject.eeg[s], np.float32)).max((0, 2)))
        mean, variance = shift + total / count, square / count - (total / count) ** 2
        std = np.sqrt(np.maximum(variance, 0))
        # A constant vertex may have rounding errors, of its mean or of what was filtered out of it.
        std[std <= np.maximum(1e-6 * np.abs(mean), 1e-3 * np.median(std))] = 0
        if not std.any():
            fail(f"{subject.folder}/fmri.npy: no vertex varies in {count:,} training frames; look at the BOLD files")
        return cls(mean, std, np.where(scale > 0, scale, 1))

    def zscore(self, frames):
        return (np.asarray(frames, np.float32) - self.mean) * self.inverse

    def raw(self, z):
        return z * self.std + self.mean

    def eeg(self, windows):
        return np.asarray(windows, np.float32) / self.eeg_scale[:, None]

def tile(segments, K, overlap=0):
    """Windows (start, length, low, high) that cover segments [low, high), each with `overlap` frames of the one
    before. The last one of a segment is moved back to fit; a segment shorter than K becomes one short window."""
    return [(min(i, max(a, b - K)), min(K, b - a), a, b)
            for a, b in segments for i in range(a, max(a + 1, b - overlap), K - overlap)]

def draw_windows(segments, K, count, rng):
    """`count` windows (as of `tile`) of one length, at most K; every start that fits in `segments` is as likely."""
    K = min(K, max(b - a for a, b in segments))
    places = np.cumsum([max(0, b - a - K + 1) for a, b in segments])
    drawn = rng.integers(places[-1], size=count)
    where = np.searchsorted(places, drawn, side="right")
    return [(segments[i][1] - K + 1 - int(places[i] - u), K, *segments[i]) for i, u in zip(where, drawn)]

def window_indices(windows, context):
    """Of B windows of one length: indices of frames [B,K] and EEG [B,K+2c+1]; times of the EEG [B,K+2c], in frames.
    A frame's BOLD reflects the EEG of ten seconds and more, so the EEG of c = `context` further frames on
    each side is shown too. Past a segment's border its last window is repeated, at its true position.
    The one too many is for `shift_windows`.
    """
    start, K = np.array([w[0] for w in windows])[:, None], windows[0][1]
    low, high = np.array([w[2] for w in windows])[:, None], np.array([w[3] for w in windows])[:, None]
    eeg = np.clip(start + np.arange(-context, K + context + 1), low, high - 1)
    return start + np.arange(K), eeg, eeg[:, :-1] - start

def shift_windows(eeg, samples):
    """EEG windows that follow one another, [B,L+1,C,W] -> [B,L,C,W], cut `samples` later: together they are the
    recording (but for a sample now and then, where TR x fs is not whole), which can be cut anywhere."""
    L, W = eeg.shape[1] - 1, eeg.shape[-1]
    recording = eeg.transpose(1, 2).flatten(2)[..., samples: samples + L * W]  # [B,C,LW]
    return recording.unflatten(-1, (L, W)).transpose(1, 2)                     # [B,L,C,W]

@script
def main(argv=None):
    p = Parser(description="Prepare one subject's EEG and fMRI for train.py.")
    add = p.add_argument
    add("--bold", required=True, help="glob of a .dtseries.nii or .npy [volumes, V] a run; or a folder of frames")
    add("--eeg", required=True, help="glob of an .npy [channels, samples] a run; or a folder of windows")
    add("--out", type=named, required=True, help="folder of the prepared subject (4 bytes of disk a value)")
    add("--fs", type=float, default=1000, help="EEG samples a second (default: 1000); not for folders")
    add("--tr", type=float, help="seconds a volume, where the BOLD files do not say it")
    add("--delay", type=float, default=4.0, help="seconds from EEG to BOLD (default: 4); in folders applied already")
    add("--channels", type=int, help="keep the first N EEG channels (CineBrain: 64; others are ECG and such)")
    add("--frames-per-run", type=int, help="folders: a new run every N frames (CineBrain: 1350)")
    add("--space", help="folders: a .dtseries.nii of the frames' grayordinates, to get regions and CIFTI results")
    add("--parcels", nargs="+", help="regions: an HCP MMP 1.0 .dlabel.nii and/or boolean .npy masks [V]")
    add("--split", help="folders: a CineBrain JSON of test clips (default: the last fifth of the runs)")
    add("--debug", action="store_true", help="show where an error came from")
    a = p.parse_args(argv)
    check_positive(a, "fs", "tr", "channels", "frames_per_run")
    check_range(a, 0, 60, "delay")
    if not os.path.isdir(a.bold) and (a.split or a.space or a.frames_per_run):
        fail("--split, --space, --frames-per-run: are for folders of frames; --bold is none")
    if os.path.isdir(a.bold) != os.path.isdir(a.eeg):
        fail(f"--bold {a.bold}, --eeg {a.eeg}: one is a folder of frames; expected both or neither")
    (prepare_frames if os.path.isdir(a.bold) else prepare_runs)(a)
    subject = Subject(a.out)
    (T, V), (_, C, W) = subject.fmri.shape, subject.eeg.shape
    print(f"{a.out}: {T:,} frames x {V:,} vertices, EEG {C} channels x {W} samples, TR {subject.tr:g} s")
    for split, found in ((split, subject.segments(split)) for split in ("train", "val", "test")):
        print(f"  {split:5} {sum(b - a for a, b in found):6,} frames, stretches: {len(found)}")
    # Two subjects with one checksum are one subject twice: this has happened in a public release.
    print("  checksums " + ", ".join(f"{k} {v}" for k, v in subject.meta["checksums"].items()))

if __name__ == "__main__":
    main()
