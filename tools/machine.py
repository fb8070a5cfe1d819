"""Devices, processes, memory, precision: what the scripts ask of the machine.

Under `torchrun --nproc_per_node=N` train.py and sample.py run as N processes, each on a GPU of its own, or all on the
CPU. They draw the same random numbers; in training each takes every N-th window of a step, in sampling every N-th batch
of windows; and sums over the processes put the parts together. So N processes do what one does with as many windows a
step (but for dropout, which each draws for itself). """
import contextlib
import ctypes
import datetime
import errno
import os
import re
import signal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from .errors import fail

RANK, WORLD, LOCAL_RANK, LOCAL_WORLD = (int(os.environ.get(name, default)) for name, default in (
    ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))  # this process, their number
EEG_ON_CPU = 2**30  # bytes of EEG that are kept in memory where the device is not a CUDA GPU

# ---- Devices and processes -------------------------------------------------------------

def pick_device(name):
    """The device by name, or the best there is. The processes of torchrun get a GPU each, and meet here."""
    mps = torch.backends.mps.is_available() and WORLD == 1
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * mps + ["cpu"]
    match = re.fullmatch(r"(cuda|mps|cpu)(?::(\d+))?", name or there[0])
    if not match or match[1] not in there or match[1] == "cuda" and int(match[2] or 0) >= torch.cuda.device_count():
        fail(f"--device {name}: not there; this PyTorch ({torch.__version__}) finds {', '.join(there)} here")
    device = torch.device(match[0])
    if WORLD > 1 and device.type == "cuda":
        if LOCAL_RANK >= torch.cuda.device_count():
            fail(f"--nproc_per_node={LOCAL_WORLD}: there are {torch.cuda.device_count()} GPUs; start as many processes")
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_memory()
    if WORLD > 1 and not dist.is_initialized():
        # The first process scores and writes while the others wait: longer than the usual ten minutes.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=12))
    return device

def say(*words, **how):
    """print, of the first process only."""
    if RANK == 0 and words:
        print(*words, **how)

class Signals:
    """Ctrl-C and SIGTERM. They end the script at once, until `wait` is called: from then on the first one is only noted
    in `caught`, for a loop to finish its step and save; a second one ends it at once (but torchrun itself sends
    several)."""
    caught, waiting = 0, False

    def wait(self):
        self.waiting = True

    def answer(self, number, _):
        if self.waiting and (not self.caught or WORLD > 1):
            self.caught = number
        else:
            raise KeyboardInterrupt(number)

    def __enter__(self):
        with contextlib.suppress(ValueError):  # only the main thread may
            self.before = {number: signal.signal(number, self.answer) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in getattr(self, "before", {}).items():
            signal.signal(number, handler)

# ---- Memory ----------------------------------------------------------------------------

def ran_out(error):
    """Is this error one of memory? torch.OutOfMemoryError is a RuntimeError, and the CPU's has no type of its own."""
    words = "allocate memory|out of memory|not enough memory|bad_alloc|ALLOC_FAILED"
    return isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM or re.search(words, str(error))

@contextlib.contextmanager
def memory_advice(device, a, *flags):
    """If memory runs out, end with a line that says which of a's flags to lower, and to what.

    Linux kills without a word who takes more than there is. On the CPU a process is therefore limited to what it has
    and its share of what is free when it begins, so that it is refused more, which is an error that can be answered."""
    limits, room = None, free_memory() if device.type == "cpu" else None
    if room:
        import resource
        limits = resource.getrlimit(resource.RLIMIT_DATA)
        lowest = min([room, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
        resource.setrlimit(resource.RLIMIT_DATA, (lowest, limits[1]))
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not ran_out(error):
            raise
        advice = [f"--{flag.replace('_', '-')} from {n} to {n // 2}" for flag in flags if (n := getattr(a, flag)) > 1]
        lower = ", then ".join(advice) or "the size of the subject"
        fail(f"out of memory on {device}. Lower {lower} ({str(error)[:150]})", error)
    finally:
        if limits:
            resource.setrlimit(resource.RLIMIT_DATA, limits)

def free_memory():
    """Bytes that this process has on Linux, and its share of what is free, there and in its container; else None."""
    found = {}
    for name, path, pattern in (("free", "/proc/meminfo", r"MemAvailable:\s*(\d+) kB"),
                                ("own", "/proc/self/status", r"VmData:\s*(\d+) kB"),
                                ("container", "/sys/fs/cgroup/memory.max", r"(\d+)")):
        with contextlib.suppress(OSError), open(path) as f:
            if number := re.search(pattern, f.read()):
                found[name] = int(number[1]) * (1 if name == "container" else 1024)
    if "free" in found and "own" in found:
        return found["own"] + min(found["free"], found.get("container", found["free"])) // LOCAL_WORLD

def keep_memory():
    """Tell glibc to keep memory that was freed. Else it gives large arrays back to the system at once, and each step of
    training fetches them anew, page by page: with 91,282 vertices that took half of the time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD

def reader(shape, read, device):
    """A function from indices (an integer array of any shape) to float32 tensors on the device: the rows that `read`
    gives as an array, for a slice or an array of indices. All rows, of this `shape`, are kept on the device, if they
    take no more than half of a GPU's free memory, or than EEG_ON_CPU; else each call reads what it needs from disk."""
    room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else EEG_ON_CPU
    if 4 * torch.Size(shape).numel() > room:
        def from_disk(index):
            once, where = np.unique(index, return_inverse=True)  # windows of a batch overlap: read each row once
            return torch.from_numpy(read(once)).to(device)[torch.from_numpy(where.reshape(index.shape)).to(device)]
        return from_disk
    whole = torch.empty(shape, device=device)
    for i in range(0, len(whole), 256):
        whole[i: i + 256] = torch.from_numpy(read(slice(i, i + 256))).to(device)
    return lambda index: whole[torch.from_numpy(index).to(device)]

# ---- Precision, compilation ------------------------------------------------------------

def has_bfloat16(device):
    """Does this GPU train in bfloat16? Older ones only emulate it, and CPUs train in float32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)

@contextlib.contextmanager
def fast_products(width=1024):
    """float32 matrix products in TF32 on a GPU, and by oneDNN on a CPU, which rounds to bfloat16 only where the CPU has
    units for that. A network can take it, which recent GPUs train in bfloat16; projections and decoding cannot.
    Networks less wide than 512 are left alone: there oneDNN gains nothing (on two AMD cores width 512 took 0.7 of the
    time, 256 as long, 128 twice). It is a decorator too."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if width >= 512 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

def compiled(module, device):
    """Compile a module in place, where something compiles."""
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
        module.compile()
    except Exception as error:  # of many kinds
        say(f"note: nothing compiles here ({type(error).__name__}); going on without --compile")

# ---- Many processes --------------------------------------------------------------------

def summed(x):
    """x, summed in place over all processes."""
    if WORLD > 1:
        dist.all_reduce(x)
    return x

def barrier():
    if WORLD > 1:
        dist.barrier()

def part():
    """The end of a script: wait for the others, and take leave; a process that just ends may abort, or the others
    hang."""
    if WORLD > 1:
        dist.barrier()
        dist.destroy_process_group()

def broadcast(tensors):
    """Everywhere those of the first process, in place."""
    for tensor in tensors if WORLD > 1 else ():
        dist.broadcast(tensor, 0)

class Sum(torch.autograd.Function):
    """The sum of x over all processes; each x has the sum of all gradients, since every process's loss depends on
    it."""

    @staticmethod
    def forward(context, x):
        return summed(x.clone())

    @staticmethod
    def backward(context, gradient):
        return summed(gradient.clone())

class SyncBatchNorm(nn.BatchNorm1d):
    """Batch statistics over the windows of all processes, which may hold different numbers (nn.SyncBatchNorm: GPUs
    only)."""

    def forward(self, x):  # [M,c] or [M,c,W]
        if not self.training:
            return super().forward(x)
        axes, shape = [i for i in range(x.ndim) if i != 1], (1, -1) + (1,) * (x.ndim - 2)
        count = summed(torch.tensor(x.numel() / x.shape[1], device=x.device))          # scalar
        mean = Sum.apply(x.float().sum(axes)) / count                                  # [c]
        x = x.float() - mean.view(shape)
        var = Sum.apply(x.square().sum(axes)) / count                                  # [c]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        return x * (self.weight * (var + self.eps).rsqrt()).view(shape) + self.bias.view(shape)

class Together(nn.Module):
    """A loss function and the modules whose weights it uses, as one module."""

    def __init__(self, loss, modules):
        super().__init__()
        self.loss, self.parts = loss, nn.ModuleList(modules)

    def forward(self, *args):
        return self.loss(*args)

def parallel(loss, modules):
    """`loss`, whose gradients with respect to the modules' weights are averaged over all processes."""
    if WORLD == 1:
        return loss
    for layer in [layer for module in modules for layer in module.modules()]:
        if isinstance(layer, nn.BatchNorm1d):
            layer.__class__ = SyncBatchNorm
    return nn.parallel.DistributedDataParallel(Together(loss, modules))
