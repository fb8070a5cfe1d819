"""Files: read only when they are whole, written so that a kill, a full disk or a second run loses nothing."""
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil

import numpy as np
import torch

from .errors import check_channels, fail
from .machine import RANK, ran_out, say

# ---- Writing ---------------------------------------------------------------------------

@contextlib.contextmanager
def writing(path):
    """Name the file that could not be written: errors of a full disk do not."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save's are RuntimeErrors
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        fail(f"{path}: cannot be written ({reason}); free some space there, or name another folder with --out", error)

@contextlib.contextmanager
def held(folder):
    """Make a folder and hold it, so that no second run writes into it (of torchrun's processes the first does). The
    system lets go of it when the process ends, however it ends. (Windows has no such lock, nor have some network file
    systems.)"""
    if RANK > 0:
        yield
        return
    new, lock = not os.path.isdir(folder), None
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with contextlib.suppress(ImportError, OSError):
        import fcntl
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            fail(f"{folder}: another process is writing there; wait for it to end, or name another folder with --out")
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(OSError):
            if new:
                os.rmdir(folder)  # if nothing came of it: what is not empty stays

def set_aside(folder, names=None):
    """Keep an earlier result: rename the folder, or move the files `names` in it into a folder earlier-1, or the next
    free."""
    if RANK > 0:
        return
    names = [name for name in names or () if os.path.exists(os.path.join(folder, name))] if names else None
    if names == [] or not os.path.exists(folder):
        return
    if names is None and not os.listdir(folder):
        os.rmdir(folder)
        return
    base = f"{folder}-" if names is None else os.path.join(folder, "earlier-")
    kept = next(base + str(i) for i in range(1, 10**6) if not os.path.exists(base + str(i)))
    with writing(kept):
        if names is None:
            os.rename(folder, kept)
        else:
            os.mkdir(kept)
            for name in names:
                os.rename(os.path.join(folder, name), os.path.join(kept, name))
    say(f"note: an earlier result was there; it is kept in {kept}")

@contextlib.contextmanager
def whole(folder):
    """Gives FOLDER.partial to write in, and makes that FOLDER when all is done: what is half written is never taken for
    a whole. What was in FOLDER before is kept, see set_aside. A partial folder that a kill left behind is cleared."""
    folder = os.path.realpath(folder)
    partial = folder + ".partial"
    if RANK > 0:
        yield partial
        return
    with held(partial):
        try:
            for entry in os.scandir(partial):
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.remove(entry.path)
            yield partial
            set_aside(folder)
            with writing(folder):
                os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

def save(path, state):
    """Write beside, flush, rename: a kill at any moment leaves the old file or the new one, whole."""
    with writing(path):
        try:
            with open(path + ".tmp", "wb") as f:
                torch.save(state, f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(path + ".tmp", path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(path + ".tmp")

def rewind(log, step):
    """Drop what a log of JSON lines holds of later steps, which will be logged again, and a line that a kill cut
    short."""
    if RANK > 0:
        return
    kept = []
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as f:
        for line in f:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["step"] <= step:
                    kept.append(line)
    with writing(log):
        with open(log + ".tmp", "w") as f:
            f.writelines(kept)
        os.replace(log + ".tmp", log)

class NpyWriter:
    """A float32 .npy of a known shape, written from its first row on. (Written pages of a memory map count as this
    process's memory, and where the disk is full they end in a crash, not in an error.)"""

    def __init__(self, path, shape):
        self.path, size = path, 4 * int(np.prod(shape))
        with writing(path):
            if size > (free := shutil.disk_usage(os.path.dirname(path) or ".").free):  # say so now, not in an hour
                raise OSError(errno.ENOSPC, f"it will take {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free")
            self.file = open(path, "wb")
            header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(self.file, header)

    def add(self, rows):
        values = np.ascontiguousarray(rows, "<f4")
        with writing(self.path):
            self.file.write(values.data)
        return values

    def close(self):
        with writing(self.path):
            self.file.close()

class Writer:
    """Writes the arrays of a prepared subject in pieces, and subject.json; see `prepared`."""

    def __init__(self, folder, meta, V, C, W):
        T, self.folder, self.meta, self.hashes = sum(meta["frames_per_run"]), folder, meta, {}
        self.files = {name: NpyWriter(self.path(name + ".npy"), shape)
                      for name, shape in {"fmri": (T, V), "eeg": (T, C, W)}.items()}
        self.hashes = {name: hashlib.blake2b(digest_size=8) for name in self.files}
        self.stops, self.written, self.low, self.high = np.cumsum(meta["frames_per_run"]).tolist(), 0, np.inf, -np.inf

    def path(self, name):
        return os.path.join(self.folder, name)

    def add(self, fmri, eeg, eeg_path="eeg"):
        """The next frames of a run: fmri [t,V] in raw units, eeg [t,C,W]."""
        written = {name: self.files[name].add(array) for name, array in (("fmri", fmri), ("eeg", eeg))}
        for name, array in written.items():
            self.hashes[name].update(array.data)
        eeg = written["eeg"]
        self.low, self.high = np.minimum(self.low, eeg.min((0, 2))), np.maximum(self.high, eeg.max((0, 2)))  # [C]
        self.written += len(fmri)
        if self.written in self.stops:  # the end of a run
            check_channels(eeg_path, self.low, self.high)
            self.low, self.high = np.inf, -np.inf

    def finish(self):
        for file in self.files.values():
            file.close()
        self.meta.pop("frames_per_run")
        self.meta["runs"] = [list(run) for run in zip([0] + self.stops[:-1], self.stops)]
        self.meta["checksums"] = {name: h.hexdigest() for name, h in self.hashes.items()}
        with writing(self.path("subject.json")), open(self.path("subject.json"), "w") as f:
            json.dump(self.meta, f, indent=1)

@contextlib.contextmanager
def prepared(folder, meta, V, C, W):
    """A Writer of a prepared subject, which is there only when it is complete; see whole."""
    if not folder or os.path.realpath(folder) == os.path.realpath(os.getcwd()):
        fail(f"--out {folder}: cannot be the folder that this is run in; name a new folder")
    if os.path.isdir(folder) and os.listdir(folder) and not os.path.exists(os.path.join(folder, "subject.json")):
        fail(f"--out {folder}: holds files, but is no prepared subject; name a new folder")
    with whole(folder) as partial:
        out = Writer(partial, meta, V, C, W)
        yield out
        out.finish()

# ---- Reading ---------------------------------------------------------------------------

def load_npy(path, *ndims, kinds="fiu", seen=None):
    """The .npy array at path, mapped: of so many axes, and of a dtype of these kinds (numpy's letters). seen: a dict
    that remembers files, of which none may change from one reading to the next."""
    if not os.path.isfile(path):
        fail(f"{path}: no such file; expected an .npy array")
    now = os.stat(path)
    if seen is not None and seen.setdefault(path, (now.st_ino, now.st_mtime_ns)) != (now.st_ino, now.st_mtime_ns):
        fail(f"{path}: was changed, or prepared anew, while it was being read; begin again")
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except Exception as error:  # of many kinds
        fail(f"{path}: not a whole .npy array of numbers ({error}); save it again with numpy.save", error)
    if array.ndim not in ndims or array.dtype.kind not in kinds or not array.size:
        kind = {"b": "boolean", "f": "float"}.get(kinds, "float or integer")
        fail(f"{path}: is {array.dtype} of shape {array.shape}; expected {kind}, of "
             f"{' or '.join(map(str, ndims))} axes, not empty")
    return array

class Columns:
    """Frames of a subject as one z-scored [T,V] array that reads from disk the columns it is sliced for."""

    def __init__(self, subject, normaliser, index):
        self.subject, self.normaliser, self.index = subject, normaliser, index
        self.shape = (len(index), subject.fmri.shape[1])

    def __getitem__(self, key):
        columns, n = key[1], self.normaliser
        pieces = np.array_split(self.index, 1 + len(self.index) // 1024)  # of rows, that few pages are mapped at a time
        x = np.concatenate([np.asarray(self.subject.fmri[rows, columns], np.float32) for rows in pieces])
        return (x - n.mean[columns]) * n.inverse[columns]

def load_checkpoint(path, device, *keys):
    """The dict with `keys`, such as "model" or "settings.frames", that train.py saved at path. Tensors and plain values
    only: no pickled code is run."""
    if not os.path.isfile(path):
        fail(f"{path}: no such checkpoint; train one first (python train.py), or name another")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # of many kinds
        if ran_out(error):
            raise
        fail(f"{path}: cannot be opened: cut short, no checkpoint of train.py, or holds more than tensors and plain "
             f"values, which could run code ({type(error).__name__}); copy it again, or train anew", error)
    def has(state, key):
        return not key or isinstance(state, dict) and key[0] in state and has(state[key[0]], key[1:])
    missing = [key for key in keys if not has(state, key.split("."))]
    if missing and "averaged" in state:
        fail(f"{path}: is the state of training, which --resume needs; expected the ckpt.pt beside it")
    if missing:
        fail(f"{path}: has no {', '.join(missing)}: another script's checkpoint, or an older version's; train "
             "anew")
    for name, part in state.items():
        for key, w in part.items() if isinstance(part, dict) else ():
            if torch.is_tensor(w) and w.is_floating_point() and not w.isfinite().all():
                fail(f"{path}: {name}, {key} holds numbers that are NaN or infinite; train anew")
    return state

def load_state(path, best_path):
    """The state of training that train.py saved at path, to resume it; the best weights so far are at best_path."""
    state = load_checkpoint(path, "cpu", "model", "averaged", "autoencoder.E", "optimizer", "settings.frames", "step",
                            "best.step", "best.val_loss", "losses", "checksums")
    if state["best"]["step"] and not os.path.exists(best_path):
        fail(f"{best_path}: is gone, and {path} does not hold its weights; put it back, or start anew without --resume")
    return state

def read_split(path, numbers):
    """{"train": [places], "test": [places]} in `numbers` of frames, by a CineBrain JSON of test clips: a list of
    {"fmri": [paths], "eeg": [paths], ...}; the number in a path is the frame's."""
    try:
        with open(path, encoding="utf-8") as f:
            test = {int(re.search(r"(\d+)\.npy$", p)[1]) for clip in json.load(f) for p in clip["fmri"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        fail(f"--split {path}: not a list of clips {{\"fmri\": [\".../NUMBER.npy\", ...]}} ({error!r})", error)
    split = {part: [i for i, n in enumerate(numbers) if (n in test) == (part == "test")] for part in ("train", "test")}
    if not 0 < len(split["test"]) < len(numbers):
        fail(f"--split {path}: names {len(split['test'])} of {len(numbers)} frames; expected some, not all")
    return split

@contextlib.contextmanager
def this_version(path):
    """Say which checkpoint does not fit what is built from it."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        reason = " ".join(str(error).split())[:200]
        fail(f"{path}: its settings or weights are not those of this version ({reason}); train anew, or use "
             "the version that made it", error)
