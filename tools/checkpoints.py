"""Checkpoints: tensors and plain values, read only when they are whole and fit."""

import contextlib
import os

import torch

from . import files
from .errors import fail
from .memory import ran_out


def save(path, state):
    files.replace(path, lambda f: torch.save(state, f))


def tensors(thing, *names):
    """{name: tensor} of its arrays, which torch.load(weights_only=True) reads again."""
    return {name: torch.from_numpy(getattr(thing, name)) for name in names}


def has(state, key):
    """Does a nested dict have a key such as "settings.frames"?"""
    for part in key.split("."):
        state = state.get(part) if isinstance(state, dict) else None
    return state is not None


def load(path, device, *keys):
    """The dict with `keys`, such as "model" or "settings.frames", that train.py saved at path.
    Tensors and plain values only: no pickled code is run."""
    if not os.path.isfile(path):
        fail(f"{path}: no such checkpoint; train one first (python train.py), or name another")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # of many kinds
        if ran_out(error):
            raise
        fail(
            f"{path}: cannot be opened: cut short, no checkpoint of train.py, or holds more than "
            f"tensors and plain values, which could run code ({type(error).__name__}); copy it "
            "again, or train anew",
            error,
        )
    missing = [key for key in keys if not has(state, key)]
    if missing and "averaged" in state:
        fail(f"{path}: is the state of training, for --resume; expected the ckpt.pt beside it")
    if missing:
        fail(
            f"{path}: has no {', '.join(missing)}: another script's checkpoint, or an older "
            "version's; train anew"
        )
    for name, part in state.items():
        for key, value in part.items() if isinstance(part, dict) else ():
            if torch.is_tensor(value) and not value.isfinite().all():
                fail(f"{path}: {name}, {key} holds numbers that are NaN or infinite; train anew")
    return state


@contextlib.contextmanager
def this_version(path):
    """Say which checkpoint does not fit what is built from it."""
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        if ran_out(error):
            raise
        reason = " ".join(str(error).split())[:200]
        fail(
            f"{path}: its settings or weights are not those of this version ({reason}); train "
            "anew, or use the version that made it",
            error,
        )


def rebuild(path, where, kinds):
    """(checkpoint dict, model, autoencoder) of the file that train.py wrote, on the device `where`.
    kinds: checkpoint dict -> their two classes."""
    keys = "config.samples", "model", "autoencoder.E", "normaliser.mean", "subject", "checksums"
    settings = "settings.frames", "settings.vary", "settings.context", "settings.no_validation"
    ckpt = load(path, where, *keys, *settings)
    network, linear = kinds(ckpt)
    with this_version(path):
        model = network(**ckpt["config"]).to(where).eval()
        model.load_state_dict(ckpt["model"])
        d, V = ckpt["autoencoder"]["E"].shape
        autoencoder = linear(V, d).to(where)
        autoencoder.load_state_dict(ckpt["autoencoder"])
    return ckpt, model, autoencoder
