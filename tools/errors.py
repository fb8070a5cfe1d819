"""What can go wrong, in one line: which file or flag, what was found, what was expected, what to do."""
import argparse
import functools
import os
import re
import signal
import sys
import threading
import traceback

import numpy as np
from tqdm import tqdm


class Problem(Exception):
    """Something that the user can mend."""

def fail(message, cause=None):
    """Raise a Problem. message: one line, as in this file's docstring; cause: the exception that showed it."""
    raise Problem(message) from cause

def interrupt(number, _):
    raise KeyboardInterrupt(number)

def script(main):
    """Decorator of a script's main(argv=None): whatever goes wrong ends in one line on stderr, with a traceback only
    under --debug. Exit status 2: something to mend; 130 and 143: Ctrl-C and SIGTERM; 1: an error that nobody
    foresaw."""
    @functools.wraps(main)
    def run(argv=None, *more):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a path that a terminal cannot show is no reason to stop
                stream.reconfigure(errors="backslashreplace")
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, interrupt)
        try:
            return main(argv, *more)
        except Problem as error:
            line, status, caught = f"error: {error}", 2, error
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else 2  # SIGINT
            line, status, caught = "interrupted; what was there before is as it was", 128 + number, error
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on, as after | head
            sys.exit(1)
        except OSError as error:
            line, status, caught = f"error: {error.filename or 'a file'}: {error.strerror or error}", 2, error
        except Exception as error:
            line, status, caught = f"error: unexpected {type(error).__name__}: {error} (--debug shows where)", 1, error
        if "--debug" in (sys.argv if argv is None else argv):
            traceback.print_exception(type(caught), caught, caught.__traceback__)
        for bar in list(getattr(tqdm, "_instances", ())):  # leave progress bars as they are, and write below them
            bar.close()
        print(" ".join(line.split()), file=sys.stderr, flush=True)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # the others may be waiting for this process: leave at once
            os._exit(status)
        sys.exit(status)
    return run

# ---- Checks ----------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are Problems, in one line."""

    def error(self, message):
        fail(f"{message}; {self.prog} --help lists the flags")

def named(text):
    """The name of a file or folder among the flags, for argparse: not empty, as an unset shell variable is."""
    return text or fail("a flag that names a file or folder is empty; name one, or leave the flag out")

def check_positive(a, *names):
    """Fail if one of the flags `names` of argparse's a is given and not a number above 0."""
    for name in names:
        if getattr(a, name) is not None and not 0 < getattr(a, name) < float("inf"):
            fail(f"--{name.replace('_', '-')} {getattr(a, name)}: expected more than 0")

def check_range(a, low, high, *names):
    """Fail if one of the flags `names` of argparse's a is given and not from low to high."""
    for name in names:
        if getattr(a, name) is not None and not low <= getattr(a, name) <= high:
            fail(f"--{name.replace('_', '-')} {getattr(a, name)}: expected {low:g} to {high:g}")

def check_sampling(a):
    """Check the flags of sample.py that need no data to be checked."""
    check_positive(a, "gap", "frames", "window", "upsample", "samples", "steps", "batch_size")
    check_range(a, 0, 1, "eta")
    check_range(a, 0, 10**9, "seed")
    check_range(a, 1, 1000, "steps")
    if a.gap and a.anchors:
        fail(f"--gap {a.gap} --anchors {a.anchors}: one in place of the other; leave one out")
    if a.anchors and not re.fullmatch(r"[0-9]+(,[0-9]+)*", a.anchors):
        fail(f"--anchors {a.anchors}: expected numbers of frames with commas between, such as 0,9")
    if a.calibrate and a.samples < 2:
        fail(f"--samples {a.samples}: --calibrate needs 2 or more, to have a spread")

def check_finite(values, path, whole, *axes):
    """Fail if some of `values` is NaN or infinite; say how many of the array `whole` are, and where on its axes the
    first is."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite too
        if np.isfinite(np.asarray(values, np.float32)).all():
            return
    count, first = 0, None
    for i in range(0, whole.shape[0], 256):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(np.asarray(whole[i: i + 256], np.float32))
        count += int(bad.sum())
        if first is None and bad.any():
            first = np.argwhere(bad)[0] + ([i] + [0] * (bad.ndim - 1))
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first))
    fail(f"{path}: {count:,} of {np.prod(whole.shape):,} values are NaN or infinite, the first at {where} (from 0); "
         "repair them (a vertex may be 0 throughout, and is left out; a volume of zeros would count as data)")

def check_pair(bold_path, eeg_path, volumes, tr, channels, samples, fs, delay):
    """Fail if a BOLD file and an EEG file cannot be of one run; say so if they look as if they were not."""
    runs = [re.findall(r"run-?(\d+)", os.path.basename(path))[-1:] for path in (bold_path, eeg_path)]
    if all(runs) and int(runs[0][0]) != int(runs[1][0]):
        fail(f"{bold_path}, {eeg_path}: run {runs[0][0]} and run {runs[1][0]} came together, by the order of their "
             "names; expected the same runs of both: is one missing?")
    if channels > samples:
        fail(f"{eeg_path}: has shape [{channels}, {samples}]; expected [channels, samples]: save its transpose")
    scan, recorded = volumes * tr, samples / fs
    if recorded < scan - delay - tr or recorded > 1.5 * scan + 60:
        fail(f"{eeg_path}: {samples:,} samples of {channels} channels last {recorded:.1f} s at --fs {fs:g}, but "
             f"{bold_path} {scan:.1f} s, {volumes} volumes of {tr:g} s; expected the same run, the right rate, and "
             "BOLD as [volumes, V]")
    if abs(recorded - scan) > 2 * tr:
        print(f"note: {eeg_path} lasts {recorded:.1f} s at {fs:g} Hz, its BOLD {scan:.1f} s: right only if it was "
              "recorded on after the last volume, or broken off before; else --fs or --tr is wrong")

def check_channels(path, low, high):
    """Fail if EEG channels with these extremes [C] in a run are constant: such an electrode recorded nothing."""
    if (flat := np.flatnonzero(low == high)).size:
        fail(f"{path}: {flat.size} of {len(low)} EEG channels ({', '.join(map(str, flat[:8]))}, from 0) constant "
             "throughout a run; interpolate them from their neighbours, or leave them out of all runs")

def check_tr(path, tr):
    """Fail if tr is no number of seconds that a scanner could take for a volume."""
    if tr is None:
        fail(f"{path}: TR is missing; give it with --tr, in seconds (CineBrain: 0.8)")
    number = isinstance(tr, (int, float))
    if not number or not 0.05 <= tr <= 20:
        hint = f"milliseconds? give it as {tr / 1000:g} s (--tr {tr / 1000:g})" if number and tr >= 50 else "see --tr"
        fail(f"{path}: TR is {tr}; expected 0.05 to 20 seconds; {hint}")

def check_subject(subject):
    """Fail if what a data.Subject's folder says of itself cannot be: lengths, runs, split, regions, space."""
    (T, V), folder, meta = subject.fmri.shape, subject.folder, subject.meta
    name, again = os.path.join(folder, "subject.json"), "prepare the subject again with data.py"
    if not isinstance(meta, dict):
        fail(f"{name}: holds a {type(meta).__name__}; expected an object with tr, runs and so on; {again}")
    if missing := {"tr", "runs"} - set(meta):
        fail(f"{name}: says nothing of {', '.join(sorted(missing))}; {again}")
    check_tr(name, meta["tr"])
    if len(subject.eeg) != T:
        fail(f"{folder}: fmri.npy has {T:,} frames, eeg.npy {len(subject.eeg):,}; expected as many; {again}")
    try:
        runs, parts = np.array(meta["runs"]), {k: np.array(frames) for k, frames in meta.get("split", {}).items()}
        if runs.ndim != 2 or runs.shape[1] != 2 or not set(parts) <= {"train", "val", "test"}:
            raise ValueError(f"runs of shape {runs.shape}, a split into {', '.join(parts) or 'nothing'}")
        for x in (runs, *parts.values()):
            if x.size and (x.dtype.kind != "i" or x is not runs and len(set(x.ravel())) != x.size):
                raise ValueError("frames that are no whole numbers, or twice in a part")
    except (AttributeError, TypeError, ValueError) as error:
        fail(f"{name}: expected runs as [[start, stop], ...] and split as {{\"train\": [rows], \"test\": [rows]}} of "
             f"fmri.npy; found {error}; {again}", error)
    edges, together = runs.ravel(), np.concatenate([np.zeros(0, int), *(x for x in parts.values() if x.size)])
    ordered = len(edges) and 0 <= edges[0] and edges[-1] <= T and (np.diff(edges) >= 0).all()
    if not ordered or (edges[::2] == edges[1::2]).any():
        fail(f"{name}: has runs {meta['runs']}; expected [[start, stop], ...] within 0 to {T}, one after another; "
             f"{again}")
    both = len(together) - len(set(together))
    if both or len(together) and not 0 <= together.min() <= together.max() < T:
        fail(f"{name}: {both} frames are in two parts of its split, or there are frames beyond 0 to {T - 1}; expected "
             f"parts that do not overlap; {again}")
    meta.setdefault("checksums", {}), meta.setdefault("first_volume", [0] * len(runs))
    if len(meta["first_volume"]) < len(runs):
        fail(f"{name}: has {len(runs)} runs and {len(meta['first_volume'])} of first_volume; expected one for each run")
    for region, mask in subject.rois.items():
        if mask.dtype != bool or mask.shape != (V,):
            fail(f"{folder}/rois.npz: {region} is {mask.dtype} {mask.shape}; expected bool ({V},); {again}")
    if subject.space is not None and len(subject.space) != V:
        fail(f"{folder}/space.dscalar.nii: has {len(subject.space):,} grayordinates, fmri.npy {V:,}; {again}")

def check_fits(subject, ckpt, path):
    """Fail if the checkpoint of this path cannot be used on a data.Subject; say so if it was trained on another."""
    found = (subject.fmri.shape[1], *subject.eeg.shape[1:])                                           # V, C, W
    trained = (len(ckpt["normaliser"]["mean"]), ckpt["config"]["channels"], ckpt["config"]["samples"])
    if found != trained:
        fail(f"{subject.folder}: has {found[0]:,} vertices, {found[1]} EEG channels of {found[2]} samples a frame; "
             f"{path} was trained on {trained[0]:,}, {trained[1]} and {trained[2]}: prepare it with the same space, "
             "--channels and --fs, or train on it")
    if subject.meta["checksums"] != ckpt["checksums"]:
        print(f"note: {path} was not trained on {subject.folder}; its test runs may not be unseen", file=sys.stderr)
    check_values(subject)

def doubts(a, subject, frames):
    """What is allowed, but perhaps not meant, of train.py's flags a and so many training frames of a data.Subject."""
    return [text for doubtful, text in (
        (not subject.segments("test"), f"note: {subject.folder} has no test frames (a single run?): nothing to score"),
        (a.preset == "paper" and frames < 10_000, "note: few frames for the paper's settings; try --preset tiny too"),
        (a.warmup >= a.steps, f"note: --warmup {a.warmup} is as long as training, {a.steps} steps; lower it"),
    ) if doubtful]

def check_values(subject, block=256):
    """Read a data.Subject once; fail if a value is NaN or infinite, or an EEG channel constant throughout a run."""
    bold, eeg = (os.path.join(subject.folder, name) for name in ("fmri.npy", "eeg.npy"))
    for start, stop in subject.runs:
        extremes = []
        for s in [slice(i, min(i + block, stop)) for i in range(start, stop, block)]:
            x, windows = subject.fmri[s], np.asarray(subject.eeg[s], np.float32)    # [t,V], [t,C,W]
            check_finite(x, bold, subject.fmri, "frame", "vertex")
            extremes.append((windows.min((0, 2)), windows.max((0, 2))))             # [C] each; of NaN it is NaN
            check_finite(extremes[-1], eeg, subject.eeg, "frame", "channel", "sample")
        low, high = np.array(extremes).swapaxes(0, 1)                               # [blocks,C] each
        check_channels(eeg, low.min(0), high.max(0))
