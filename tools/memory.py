"""Memory: what to do when it runs out, and what is kept in it."""

import contextlib
import ctypes
import errno
import re

import numpy as np
import torch

from .checks import flag
from .errors import fail
from .ranks import LOCAL_WORLD

EEG_ON_CPU = 2**30  # bytes of EEG that are kept in memory where the device is not a CUDA GPU


def ran_out(error):
    """Is this error one of memory? torch's is a RuntimeError, and the CPU's has no type of its
    own."""
    words = "allocate memory|out of memory|not enough memory|bad_alloc|ALLOC_FAILED"
    if isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM:
        return True
    return re.search(words, str(error)) is not None


@contextlib.contextmanager
def limited(device):
    """On Linux CPUs, limit this process to what it has and its share of what is free. Linux kills
    without a word who takes more than there is; who is refused more can answer."""
    room = free_memory() if device.type == "cpu" else None
    if not room:
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft != resource.RLIM_INFINITY:
        room = min(room, soft)  # which is at most hard
    resource.setrlimit(resource.RLIMIT_DATA, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextlib.contextmanager
def advice(device, a, *flags):
    """If memory runs out, end with a line that says which of a's flags to lower, and to what."""
    try:
        with limited(device):
            yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not ran_out(error):
            raise
        values = {name: getattr(a, name) for name in flags}
        lower = [f"{flag(name)} from {n} to {n // 2}" for name, n in values.items() if n > 1]
        what = ", then ".join(lower) or "the size of the subject"
        fail(f"out of memory on {device}. Lower {what} ({str(error)[:150]})", error)


def number_in(path, pattern):
    """The number that a pattern finds in one of the system's files, or None."""
    with contextlib.suppress(OSError), open(path) as f:
        found = re.search(pattern, f.read())
        return found and int(found[1])


def free_memory():
    """Bytes that this process has on Linux, and its share of what is free, there and in its
    container; else None."""
    free = number_in("/proc/meminfo", r"MemAvailable:\s*(\d+) kB")
    own = number_in("/proc/self/status", r"VmData:\s*(\d+) kB")
    if free is None or own is None:
        return None
    container = number_in("/sys/fs/cgroup/memory.max", r"(\d+)") or 1024 * free
    return 1024 * own + min(1024 * free, container) // LOCAL_WORLD


def keep_freed():
    """Tell glibc to keep memory that was freed. Else it gives large arrays back to the system at
    once, and each step of training fetches them anew, page by page: half of the time at 91,282
    vertices. (The largest, of 256 MB, go back all the same: else what is small takes their places,
    and beyond/joint's gradients find none.)"""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**28)  # M_MMAP_THRESHOLD


def to_device(device, *tensors):
    """The tensors there. To a GPU they go from pinned memory, else the CPU would wait until the GPU
    has done all that it was asked for before."""
    gpu = device.type == "cuda"
    if gpu:
        tensors = [tensor if tensor.is_cuda else tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=gpu) for tensor in tensors]


def taken(tensor, rows):
    """Rows of a tensor, an integer array of any shape; looked up where the tensor is."""
    return tensor[to_device(tensor.device, torch.from_numpy(rows))[0]]


def reader(subject, normaliser, device):
    """A function from rows (an integer array of any shape) to the subject's EEG there, scaled, as
    float32 tensors on the device.

    All of it is kept on the device, if it takes no more than half of a GPU's free memory, or than
    EEG_ON_CPU; else each call reads what it needs from disk.
    """
    shape, room = subject.eeg.shape, EEG_ON_CPU
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] / 2

    def read(rows):
        return to_device(device, torch.from_numpy(normaliser.eeg(subject.eeg[rows])))[0]

    if 4 * torch.Size(shape).numel() <= room:
        whole = torch.empty(shape, device=device)
        for i in range(0, len(whole), 256):
            whole[i : i + 256] = read(slice(i, i + 256))
        return lambda rows: taken(whole, rows)

    def from_disk(rows):
        once, where = np.unique(rows, return_inverse=True)  # windows overlap: read a row once
        return taken(read(once), where.reshape(rows.shape))

    return from_disk
