"""Files: read only when they are whole, written so that a kill or a full disk loses nothing."""

import contextlib
import errno
import itertools
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .errors import fail
from .ranks import RANK, say

# ---- Writing ---------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path):
    """Name the file that could not be written: errors of a full disk do not."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save's are RuntimeErrors
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        fail(
            f"{path}: cannot be written ({reason}); free some space there, or name another "
            "folder with --out",
            error,
        )


def locked(folder):
    """A lock on the folder, or None where there are no such locks (Windows, some network disks)."""
    lock = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            fail(
                f"{folder}: another process is writing there; wait for it to end, or name "
                "another folder with --out"
            )
    return lock


@contextlib.contextmanager
def held(folder):
    """Make a folder and hold it, so that no second run writes into it (of torchrun's processes the
    first does). The system lets go of it when the process ends, however it ends."""
    if RANK > 0:
        yield
        return
    new = not os.path.isdir(folder)
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    lock = locked(folder)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # if nothing came of it: what is not empty stays


def keep(base, move):
    """Keep an earlier result: move(base-1), or the next name that is not there."""
    kept = next(f"{base}-{i}" for i in itertools.count(1) if not os.path.exists(f"{base}-{i}"))
    with writing(kept):
        move(kept)
    say(f"note: what was there before is not lost, it is kept in {kept}")


def set_aside(folder):
    """Keep an earlier result: rename its folder."""
    if RANK > 0 or not os.path.exists(folder):
        return
    if not os.listdir(folder):
        os.rmdir(folder)
        return
    keep(folder, lambda kept: os.rename(folder, kept))


def set_aside_files(folder, names):
    """Keep earlier results: move the files `names` into a folder earlier-1 there, or the next."""
    names = [name for name in names if os.path.exists(os.path.join(folder, name))]

    def move(kept):
        os.mkdir(kept)
        for name in names:
            os.rename(os.path.join(folder, name), os.path.join(kept, name))

    if RANK == 0 and names:
        keep(os.path.join(folder, "earlier"), move)


@contextlib.contextmanager
def whole(folder):
    """Gives FOLDER.partial to write in, and makes that FOLDER when all is done: what is half
    written is never taken for a whole. What was in FOLDER before is kept, see set_aside. A partial
    folder that a kill left behind is cleared."""
    folder = os.path.realpath(folder)
    partial = folder + ".partial"
    if RANK > 0:
        yield partial
        return
    with held(partial):
        try:
            for entry in os.scandir(partial):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.remove(entry.path)
            yield partial
            set_aside(folder)
            with writing(folder):
                os.rename(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def replace(path, write):
    """write(file) beside, flush, rename: a kill leaves the old file or the new one, whole."""
    with writing(path):
        try:
            with open(path + ".tmp", "wb") as f:
                write(f)
                f.flush()
                os.fsync(f.fileno())
            os.replace(path + ".tmp", path)
        finally:
            with contextlib.suppress(OSError):
                os.remove(path + ".tmp")


def save_json(path, content):
    with writing(path), open(path, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1)


def named(values, names, *more):
    """An array as dicts in dicts, as save_json wants it. names: along its first axis; more: along
    the others."""
    return {n: named(part, *more) if more else part.item() for n, part in zip(names, values)}


def save_array(path, array):
    with writing(path):
        np.save(path, array)


class NpyWriter:
    """A float32 .npy of a known shape, written from its first row on. (Written pages of a memory
    map count as this process's memory, and where the disk is full they end in a crash.)"""

    def __init__(self, path, shape):
        self.path = path
        size = 4 * int(np.prod(shape))
        with writing(path):
            free = shutil.disk_usage(os.path.dirname(path) or ".").free
            if size > free:  # say so now, not in an hour
                needs = f"it will take {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free"
                raise OSError(errno.ENOSPC, needs)
            self.file = open(path, "wb")  # noqa: SIM115  closed by close()
            header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(self.file, header)
        self.thread = ThreadPoolExecutor(1)
        self.written = self.thread.submit(int)  # nothing yet

    def add(self, rows):
        """The next rows, which may not change any more: a thread writes them, while the next are
        computed."""
        values = np.ascontiguousarray(rows, "<f4")
        with writing(self.path):
            self.written.result()
            self.written = self.thread.submit(self.file.write, values)
        return values

    def close(self):
        with writing(self.path):
            self.written.result()
            self.file.close()


# ---- Reading ---------------------------------------------------------------------------


def load_npy(path, *ndims, kinds="fiu", seen=None):
    """The .npy array at path, mapped: of so many axes, of a dtype of these kinds (numpy's letters).

    seen: a dict that remembers files, none of which may change from one reading to the next.
    """
    if not os.path.isfile(path):
        fail(f"{path}: no such file; expected an .npy array")
    state = os.stat(path)
    now = state.st_ino, state.st_mtime_ns
    if seen is not None and seen.setdefault(path, now) != now:
        fail(f"{path}: was changed, or prepared anew, while it was being read; begin again")
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except Exception as error:  # of many kinds
        fail(
            f"{path}: not a whole .npy array of numbers ({error}); save it again with numpy.save",
            error,
        )
    if array.ndim not in ndims or array.dtype.kind not in kinds or not array.size:
        kind = {"b": "boolean", "f": "float"}.get(kinds, "float or integer")
        axes = " or ".join(map(str, ndims))
        fail(
            f"{path}: is {array.dtype} of shape {array.shape}; expected {kind}, of {axes} axes, "
            "not empty"
        )
    return array
