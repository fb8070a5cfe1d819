"""The device: which one, in what precision it multiplies, whether something compiles for it."""

import copy
import datetime
import re

import torch
import torch.distributed as dist

from . import memory
from .errors import fail
from .ranks import LOCAL_RANK, LOCAL_WORLD, WORLD, say


def add_flag(add):
    add("--device", help="cpu, cuda or mps (default: the best there is)")


def add_training_flags(add):
    add_flag(add)
    add("--precision", choices=["float32", "bfloat16"], help="of products (default: the faster)")


def pick_device(name):
    """The device by name, or the best there is. torchrun's processes get a GPU each, and meet
    here."""
    mps = torch.backends.mps.is_available() and WORLD == 1
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * mps + ["cpu"]
    match = re.fullmatch(r"(cuda|mps|cpu)(?::(\d+))?", name or there[0])
    known = match is not None and match[1] in there
    if known and match[1] == "cuda":
        known = int(match[2] or 0) < torch.cuda.device_count()
    if not known:
        found = f"PyTorch ({torch.__version__}) finds {', '.join(there)} here"
        fail(f"--device {name}: not there; this {found}")
    device = torch.device(match[0])
    if device.type == "cpu":
        memory.keep_freed()
    if WORLD > 1:
        device = join(device)
    return device


def join(device):
    """Meet the other processes; returns this one's device."""
    if device.type == "cuda":
        if torch.cuda.device_count() <= LOCAL_RANK:
            fail(
                f"--nproc_per_node={LOCAL_WORLD}: there are {torch.cuda.device_count()} GPUs; "
                "start as many processes"
            )
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # The first one scores and writes while the others wait: longer than the usual ten minutes.
        # What is on the CPU goes by gloo, so that nobody waits for a GPU.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=datetime.timedelta(hours=12))
    return device


def has_bfloat16(device):
    """Does it have units for products in bfloat16? GPUs before Ampere and most CPUs emulate it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    units = getattr(torch.cpu, "get_capabilities", dict)()  # of a CPU; older torch does not say
    return device.type == "cpu" and units.get("avx512_bf16", False)


def bfloat16_pays(device, size):
    """Are products of matrices of this size faster in bfloat16? On CPUs small ones are not."""
    return has_bfloat16(device) and (device.type == "cuda" or size >= 512)


def autocast(device, width, precision=None):
    """A network in bfloat16, in training and in sampling, where `precision` says so, or else where
    it is faster. (benchmarks/precision.py: what it learns and draws is hardly another. What latents
    decode to is of higher precision: see `decoder`.) It is a decorator too."""
    asked = precision == "bfloat16" if precision else bfloat16_pays(device, width)
    return torch.autocast(device.type, torch.bfloat16, enabled=asked)


def decoder(autoencoder, device):
    """A function from latents [...,d] to frames [...,V] on the CPU. rounded: bfloat16, where that
    is faster, which does for how far samples are apart."""
    coarse = autoencoder
    if bfloat16_pays(device, autoencoder.latent_dim):
        coarse = copy.deepcopy(autoencoder).bfloat16()

    def decode(z, rounded=False):
        linear = coarse if rounded else autoencoder
        return linear.decode(z.to(linear.E)).cpu()

    return decode


def compiled(module, device):
    """Compile a module in place, where something compiles."""
    try:
        torch.compile(torch.sin)(torch.ones(2, device=device))
        module.compile()
    except Exception as error:  # of many kinds
        say(f"note: nothing compiles here ({type(error).__name__}); going on without --compile")
