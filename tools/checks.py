"""Checks of flags, arrays and subjects; what is wrong is said in one line, see errors.py."""

import contextlib
import os
import re

import numpy as np
from tqdm import tqdm

from .errors import fail
from .ranks import RANK, WORLD, say

# ---- Flags -----------------------------------------------------------------------------


def flag(name):
    return "--" + name.replace("_", "-")


@contextlib.contextmanager
def blaming(a, *names):
    """Say which flags of a are meant by a ValueError."""
    try:
        yield
    except ValueError as error:
        given = " ".join(f"{flag(name)} {getattr(a, name)}" for name in names)
        fail(f"{given}: {error}", error)


def check_positive(a, *names):
    """Fail if one of the flags `names` of argparse's a is given and not a number above 0."""
    for name in names:
        value = getattr(a, name)
        if value is not None and not 0 < value < float("inf"):
            fail(f"{flag(name)} {value}: expected more than 0")


def check_range(a, low, high, *names):
    """Fail if one of the flags `names` of argparse's a is given and not from low to high."""
    for name in names:
        value = getattr(a, name)
        if value is not None and not low <= value <= high:
            fail(f"{flag(name)} {value}: expected {low:g} to {high:g}")


def settle_training(a, paper, beyond):
    """Settle the flags of chapters that are not given, as --preset says, and check all flags of
    train.py that need no data to be checked. paper: what they are in the paper; beyond: the
    chapters, or None."""
    a.data = a.data and [os.path.abspath(folder) for folder in a.data]
    a.share = 0.5  # of the closed form, before a validation run tells it; see beyond/stacked
    check_positive(a, "frames", "latent_dim", "eeg_dim", "tokens_per_frame", "depth", "heads")
    check_positive(a, "width", "epochs", "batch_size", "lr")
    check_range(a, 0, 1, "ema")
    check_range(a, 0, 10**9, "warmup", "weight_decay", "seed", "steps")
    if beyond is None:
        if a.preset != "paper":
            fail("--preset paper is missing: without the folder beyond/ there is no other")
        vars(a).update(paper)
        return
    check_positive(a, "eeg_filters", "eeg_bands")
    check_range(a, 0, 1, "eeg_dropout")
    check_range(a, 0, 10**9, "context")
    recipe = {"paper": paper, "tiny": beyond.TINY, "auto": {"autoencoder": "pca"}}[a.preset]
    if a.autoencoder == "joint":
        with blaming(a, "prior", "loss", "closed_form"):
            beyond.joint.settle(a)
    fill(a, recipe)


def fill(a, recipe):
    """Settle the flags of a that are not given."""
    for name, value in recipe.items():
        if getattr(a, name) is None:
            setattr(a, name, value)


def check_training(a, subject, segments, enough):
    """Fail if a subject's values are none, or its training segments shorter than --frames. And what
    is allowed, but perhaps not meant, is said before training, not after. enough: frames for the
    paper's sizes."""
    check_values(subject)
    if subject.meta.get("eeg_alone"):
        fail(f"{subject.folder}: is EEG without fMRI; train on the subject of its --like")
    lengths = [high - low for low, high in segments]
    if a.frames > max(lengths, default=0):
        fail(
            f"--frames {a.frames}: no training stretch of {subject.folder} is that long; lower it, "
            "or look at its split"
        )
    if a.preset == "paper" and sum(lengths) < enough:
        say(
            f"--preset paper: the paper's sizes are for {enough:,} training frames and more; for "
            f"{sum(lengths):,} smaller ones are taken where no flag gives them"
        )
    if not subject.segments("test"):
        say(f"note: {subject.folder} has no test frames (a single run?): nothing to score")


OF_CHAPTERS = ("observe", "projection", "window", "overlap", "upsample", "calibrate")


def settle_sampling(a, beyond):
    """Settle what the flags of sample.py leave open, and check those that need no data to be
    checked. beyond: the chapters, or None where there are none."""
    for name in OF_CHAPTERS:
        if vars(a).setdefault(name) and a.paper:
            fail(f"--paper {flag(name)}: the paper has no {flag(name)}; leave one of them out")
    if beyond is None and not a.paper:
        fail("--paper is missing: without the folder beyond/ sample.py draws as the paper does")
    check_positive(a, "gap", "frames", "window", "upsample", "samples", "batch_size")
    check_range(a, 0, 1, "eta")
    check_range(a, 0, 10**9, "seed")
    check_range(a, 1, 1000, "steps")
    if a.gap and a.anchors:
        fail(f"--gap {a.gap} --anchors {a.anchors}: one in place of the other; leave one out")
    if a.anchors is not None and not re.fullmatch(r"[0-9]+(,[0-9]+)*", a.anchors):
        fail(f"--anchors {a.anchors}: expected numbers of frames with commas between, such as 0,9")
    if a.interrecon and not (a.gap or a.anchors or a.observe):
        a.gap = 2
    a.interrecon = bool(a.gap or a.anchors or a.observe)
    a.mode = "interrecon" if a.interrecon else "direct"
    a.null_space = a.interrecon and a.null_space
    a.upsample = a.upsample or 1
    a.samples = a.samples or (1 if a.paper else 8)
    if a.calibrate and a.samples < 2:
        fail(f"--samples {a.samples}: --calibrate needs 2 or more, to have a spread")


def check_splits(study, a):
    """Fail if a subject has not what sample.py is asked for."""
    folder = study.subject.folder
    if not study.splits["test"] or (a.calibrate and not study.splits["val"]):
        fail(
            f"{folder}: no test frames (who was left out is the test: name that folder, as it was "
            "called then), or none for --calibrate that training left out; prepare it from two "
            "runs or more; for --calibrate from four, and train with --no-refit, --steps over 0"
        )
    asked = a.interrecon or not a.paper  # what training frames tell: of this the paper has nothing
    if asked and not study.measured and not study.splits["train"]:
        fail(
            f"{folder}: has no training frames, and {a.ckpt} does not say what they tell "
            "(--autoencoder joint, or an older version's); use a subject that has some"
        )


def check_observed(a, anchors, seen):
    """Fail if all or nothing would be observed, or frames that there are not. seen: bool
    [period,valid vertices]."""
    K = a.frames
    outside = len(anchors) and ((a.gap or 0) > K or max(anchors) >= K)
    if outside or (a.interrecon and (seen.all() or not seen.any())):
        fail(
            f"--observe {a.observe}, --gap {a.gap}, --anchors {a.anchors}: all or nothing would be "
            f"observed, or frames past a window's; expected some, not all, of frames 0 to {K - 1} "
            f"(--frames {K}), or of their vertices"
        )


# ---- Arrays ----------------------------------------------------------------------------


def finite(values):
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite too
        return np.isfinite(np.asarray(values, np.float32))


def check_finite(values, path, whole, *axes):
    """Fail if some of `values` is NaN or infinite; say how many of the array `whole` are, and where
    on its axes the first is."""
    if finite(values).all():
        return
    count, first = 0, None
    for i in range(0, whole.shape[0], 256):
        bad = ~finite(whole[i : i + 256])
        count += int(bad.sum())
        if first is None and bad.any():
            first = np.argwhere(bad)[0]
            first[0] += i
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first))
    fail(
        f"{path}: {count:,} of {np.prod(whole.shape):,} values are NaN or infinite, the first at "
        f"{where} (from 0); repair them (a vertex may be 0 throughout, and is left out; a volume "
        "of zeros would count as data)"
    )


def check_channels(path, low, high):
    """Fail if EEG channels with these extremes [C] in a run are constant: they recorded nothing."""
    flat = np.flatnonzero(low == high)
    if flat.size:
        fail(
            f"{path}: {flat.size} of {len(low)} EEG channels ({', '.join(map(str, flat[:8]))}, "
            "from 0) constant throughout a run; interpolate them from their neighbours, or leave "
            "them out of all runs"
        )


# ---- Subjects --------------------------------------------------------------------------


def check_tr(path, tr):
    """Fail if tr is no number of seconds that a scanner could take for a volume."""
    if tr is None:
        fail(f"{path}: TR is missing; give it with --tr, in seconds (CineBrain: 0.8)")
    number = isinstance(tr, (int, float))
    if not number or not 0.05 <= tr <= 20:
        hint = "see --tr"
        if number and tr >= 50:
            hint = f"milliseconds? give it as {tr / 1000:g} s (--tr {tr / 1000:g})"
        fail(f"{path}: TR is {tr}; expected 0.05 to 20 seconds; {hint}")


def check_runs(meta, T):
    """ValueError, or the like, if runs or split of subject.json cannot be those of T frames."""
    runs = meta["runs"]
    edges = np.array(runs)  # [runs,2]; of none its shape is another
    if edges.shape != (len(runs), 2) or edges.dtype.kind != "i":
        raise ValueError(f"runs {runs} that are no pairs of whole numbers")
    if (np.diff([0, *edges.ravel(), T]) < 0).any() or (edges[:, 0] == edges[:, 1]).any():
        raise ValueError(f"runs {runs} that do not lie one after another within 0 to {T}")
    meta.setdefault("first_volume", [0] * len(runs))
    if len(meta["first_volume"]) < len(runs):
        raise ValueError(f"{len(runs)} runs and {len(meta['first_volume'])} of first_volume")
    together = []
    for part, frames in meta.get("split", {}).items():
        if part not in ("train", "val", "test"):
            raise ValueError(f"a split with a part {part}")
        if any(not isinstance(frame, int) or not 0 <= frame < T for frame in frames):
            raise ValueError(f"frames in {part} that are no whole numbers from 0 to {T - 1}")
        together += frames
    if len(set(together)) < len(together):
        raise ValueError(f"{len(together) - len(set(together))} frames twice in its split")


def check_subject(subject):
    """Fail if what a data.Subject's folder says of itself cannot be: runs, split, regions..."""
    (T, V), folder, meta = subject.fmri.shape, subject.folder, subject.meta
    name, again = os.path.join(folder, "subject.json"), "prepare the subject again with data.py"
    if not isinstance(meta, dict):
        found = type(meta).__name__
        fail(f"{name}: holds a {found}; expected an object with tr, runs and so on; {again}")
    missing = {"tr", "runs"} - set(meta)
    if missing:
        fail(f"{name}: says nothing of {', '.join(sorted(missing))}; {again}")
    check_tr(name, meta["tr"])
    if len(subject.eeg) != T:
        counts = f"fmri.npy has {T:,} frames, eeg.npy {len(subject.eeg):,}"
        fail(f"{folder}: {counts}; expected as many; {again}")
    try:
        check_runs(meta, T)
    except (AttributeError, TypeError, ValueError) as error:
        fail(
            f"{name}: has {error}; expected runs as [[start, stop], ...] and a split as "
            f'{{"train": [rows of fmri.npy], "test": [rows]}}, if any; {again}',
            error,
        )
    meta.setdefault("checksums", {})
    meta.setdefault("eeg", {})
    for region, mask in subject.rois.items():
        if mask.dtype != bool or mask.shape != (V,):
            fail(
                f"{folder}/rois.npz: {region} is {mask.dtype} {mask.shape}; expected bool ({V},); "
                f"{again}"
            )
    if subject.space is not None and len(subject.space) != V:
        found = f"{len(subject.space):,} grayordinates, fmri.npy {V:,}"
        fail(f"{folder}/space.dscalar.nii: has {found}; {again}")


def check_fits(subject, ckpt, path):
    """Fail if the checkpoint of this path cannot be used on a data.Subject; say so if it was
    trained on another."""
    found = subject.fmri.shape[1], *subject.eeg.shape[1:]  # V, C, W
    config = ckpt["config"]
    trained = len(ckpt["normaliser"]["mean"]), config["channels"], config["samples"]
    if found != trained:
        fail(
            f"{subject.folder}: has {found[0]:,} vertices, {found[1]} EEG channels of {found[2]} "
            f"samples a frame; {path} was trained on {trained[0]:,}, {trained[1]} and "
            f"{trained[2]}: prepare it with the same space, --channels and --fs, or train on it"
        )
    for what in ("channels", "highpass", "lowpass", "notch", "reference"):
        there = ckpt.get("eeg", {}).get(what)
        here = subject.meta["eeg"].get(what)
        if what != "channels" and here != there:
            say(f"note: EEG's {what} is {here}; {path} was trained on {there}")
        elif here and there and here != there:
            fail(f"{subject.folder}: its EEG {what} are {here}; {path} was trained on {there}")
    if subject.meta["checksums"] != ckpt["checksums"]:
        say(f"note: {path} was not trained on {subject.folder}; its test runs may not be unseen")
    check_values(subject, "test")


def check_values(subject, part=None):
    """Read a data.Subject once, or those of several people, or the train, val or test part of them;
    fail if a value is NaN or infinite, or a channel constant in a run. Of torchrun's processes each
    reads a share of the runs."""
    for person in getattr(subject, "people", [subject]):
        bold = f"{person.folder}/fmri.npy"
        eeg = f"{person.folder}/eeg.npy"
        runs = person.segments(part) if part else person.runs
        for start, stop in tqdm(runs[RANK::WORLD], "reading", leave=False, disable=RANK > 0):
            extremes = []
            for i in range(start, stop, 256):
                rows = slice(i, min(i + 256, stop))
                check_finite(person.fmri[rows], bold, person.fmri, "frame", "vertex")
                windows = np.asarray(person.eeg[rows], np.float32)  # [t,C,W]
                extremes.append([windows.min((0, 2)), windows.max((0, 2))])  # [2,C]; of NaN NaN
                check_finite(extremes[-1], eeg, person.eeg, "frame", "channel", "sample")
            check_channels(eeg, np.min(extremes, 0)[0], np.max(extremes, 0)[1])
