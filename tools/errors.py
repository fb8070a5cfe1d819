"""What can go wrong, in one line: which file or flag, what was found, what was expected, what to do."""
import functools
import os
import sys
import traceback

import numpy as np
from tqdm import tqdm


class Problem(Exception):
    """Something that the user can mend."""

def fail(message, cause=None):
    """Raise a Problem. message: one line, as in this file's docstring; cause: the exception that showed it."""
    raise Problem(message) from cause

def script(main):
    """Decorator of a script's main(argv=None): whatever goes wrong ends in one line on stderr, with a traceback only
    under --debug. Exit status 2: something to mend; 130 and 143: Ctrl-C and SIGTERM; 1: an error that nobody
    foresaw."""
    @functools.wraps(main)
    def run(argv=None, *more):
        try:
            return main(argv, *more)
        except Problem as error:
            line, status, caught = f"error: {error}", 2, error
        except KeyboardInterrupt as error:
            number = error.args[0] if error.args else 2  # SIGINT
            line, status, caught = "interrupted; what was there before is as it was", 128 + number, error
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

def check_positive(a, *names):
    """Fail if one of the flags `names` of argparse's a is given and not above 0."""
    for name in names:
        if getattr(a, name) is not None and getattr(a, name) <= 0:
            fail(f"--{name.replace('_', '-')} {getattr(a, name)}: expected more than 0")

def check_finite(values, path, whole, *axes):
    """Fail if some of `values` is NaN or infinite; say how many of the array `whole` are, and where on its axes the
    first is."""
    if np.isfinite(values).all():
        return
    count, first = 0, None
    for i in range(0, whole.shape[0], 256):
        bad = ~np.isfinite(np.asarray(whole[i: i + 256]))
        count += int(bad.sum())
        if first is None and bad.any():
            first = np.argwhere(bad)[0] + ([i] + [0] * (bad.ndim - 1))
    where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, first))
    fail(f"{path}: {count:,} of {np.prod(whole.shape):,} values are NaN or infinite, the first at {where} (from 0); "
         "repair them (a vertex may be 0 throughout, and is left out; a volume of zeros would count as data)")

def check_channels(path, low, high):
    """Fail if EEG channels with these extremes [C] in a run are constant: such an electrode recorded nothing."""
    if (flat := np.flatnonzero(low == high)).size:
        fail(f"{path}: {flat.size} of {len(low)} EEG channels ({', '.join(map(str, flat[:8]))}, from 0) constant "
             "throughout a run; interpolate them from their neighbours, or leave them out of all runs")

def check_tr(path, tr):
    """Fail if tr is no number of seconds that a scanner could take for a volume."""
    number = isinstance(tr, (int, float))
    if not number or not 0.05 <= tr <= 20:
        hint = f"milliseconds? give it as {tr / 1000:g} s (--tr {tr / 1000:g})" if number and tr >= 50 else "see --tr"
        fail(f"{path}: TR is {tr}; expected 0.05 to 20 seconds; {hint}")

def check_subject(subject):
    """Fail if what a data.Subject's folder says of itself cannot be: lengths, runs, split, regions, space."""
    (T, V), folder, meta = subject.fmri.shape, subject.folder, subject.meta
    name, again = os.path.join(folder, "subject.json"), "prepare the subject again with data.py"
    if missing := {"tr", "runs"} - set(meta):
        fail(f"{name}: says nothing of {', '.join(sorted(missing))}; {again}")
    check_tr(name, meta["tr"])
    if len(subject.eeg) != T:
        fail(f"{folder}: fmri.npy has {T:,} frames, eeg.npy {len(subject.eeg):,}; expected as many; {again}")
    try:
        edges = np.array(meta["runs"], int).reshape(-1, 2).ravel()
        parts = {part: np.array(frames, int) for part, frames in meta.get("split", {}).items()}
    except (TypeError, ValueError) as error:
        fail(f"{name}: its runs or split are no lists of frames ({error}); {again}", error)
    ordered = len(edges) and 0 <= edges[0] and edges[-1] <= T and (np.diff(edges) >= 0).all()
    if not ordered or (edges[::2] == edges[1::2]).any():
        fail(f"{name}: has runs {meta['runs']}; expected [[start, stop], ...] within 0 to {T}, one after another; "
             f"{again}")
    both = np.intersect1d(parts.get("train", []), parts.get("test", []))
    if len(both) or any(len(frames) and not 0 <= frames.min() <= frames.max() < T for frames in parts.values()):
        fail(f"{name}: its split has {len(both)} frames both in train and in test, or frames beyond 0 to {T - 1}; "
             f"expected parts that do not overlap; {again}")
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
