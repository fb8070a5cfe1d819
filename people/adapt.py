"""How does a model of several people become that of one more, of whom there are minutes?

    python train.py --adapt 10 --ckpt group/ckpt.pt --data S9 --out s9

Training begins with the group's averaged weights and goes on with the first minutes of that
person, at a third of the learning rate. Latents are the group's, and so is the closed form; what is
this person's own is added to it, as to that of everyone in the group (people/own). Of the minutes
the last fifth is for validation; it chooses steps and shares, and is then trained on as well
(--preset auto). All later frames are the test, but for those within GAP seconds of the last minute.

Seam    the subject; and what training begins with
Source  ours
Gain    six synthetic people, the closed form: with five minutes of somebody MSE 0.929 (alone) ->
        0.843 (after an hour of five others), with twenty 0.754 -> 0.738
"""

import os

import numpy as np

from tools import checkpoints
from tools.checks import check_fits, fill
from tools.errors import fail
from tools.ranks import say

GAP = 16  # s that BOLD remembers: its dip after a response is at 15 s
TUNING = {"epochs": 160, "warmup": 50, "ema": 0.99}  # as beyond/auto has it where frames are few
OWN = (  # what is not the group's: the person, and flags of training itself
    *("adapt", "ckpt", "group", "data", "out", "test", "val"),
    *("no_validation", "no_refit", "share", "again"),
    *("steps", "epochs", "lr", "warmup", "ema", "batch_size", "weight_decay", "seed"),
    *("device", "precision", "compile", "resume", "debug"),
)


def load(path):
    """The group's checkpoint, on the CPU."""
    keys = "config.samples", "model", "autoencoder.E", "normaliser.mean", "checksums"
    return checkpoints.load(path, "cpu", *keys, "settings.data", "settings.steps")


def settle(a):
    """Make train.py's flags a the group's, where they are not of training itself."""
    if a.adapt is None and a.ckpt is None:
        return
    if a.adapt is None or a.ckpt is None or len(a.data or []) != 1:
        fail("--adapt: expected minutes, a model of several people, --ckpt, and --data of one more")
    if not 0 < a.adapt < float("inf"):
        fail(
            f"--adapt {a.adapt:g}: expected minutes, more than 0; the model as it is: python "
            f"sample.py --ckpt {a.ckpt} --data {a.data[0]}"
        )
    if a.test or a.val:
        fail("--adapt: the first minutes are for training, all others the test; no --test, --val")
    a.ckpt = os.path.abspath(a.ckpt)
    group = load(a.ckpt)
    settings = group["settings"]
    if len(settings["data"] or []) < 2:
        fail(f"--ckpt {a.ckpt}: was trained on one person; expected a model of several")
    if settings["autoencoder"] == "joint":
        fail(f"--ckpt {a.ckpt}: --autoencoder joint cannot be adapted; train one without it")
    vars(a).update({name: value for name, value in settings.items() if name not in OWN})
    fill(a, TUNING | {"lr": settings["lr"] / 3})
    if settings["steps"] == 0 and a.steps is None:  # the group's network is as it was at birth
        a.steps = 0
    a.group = {name: settings[name] for name in ("test", "val")}
    a.group["checksums"] = list(group["checksums"].values())
    if a.closed_form:
        a.share = group["model"]["share"].tolist()
    say(f"all settings but those of training itself are those of {a.ckpt}")


def rows(person, *parts):
    """Frames of these parts of a data.Subject, validation's among those for training."""
    spans = [span for part in parts for span in person.segments(part, False)]
    return np.sort(np.concatenate([np.arange(*span) for span in spans] or [[]])).astype(int)


def split(person, settings):
    """{"train", "val", "test"}: frames of a data.Subject. The first minutes, and all others."""
    group = settings["group"]
    minutes = settings["adapt"]
    if person.meta["checksums"] in group["checksums"]:
        person.split_by_names(group)
        if len(rows(person, "train")):  # or they were left out
            fail(
                f"--data {person.folder}: the group has learned from them, and has a part of their "
                "own for them; expected somebody new, or who was left out, in a folder of the name "
                "that it had then. Use the model as it is: python sample.py "
                f"--ckpt {settings['ckpt']} --data {person.folder}"
            )
    frames = rows(person, "train", "test")
    count = round(60 * minutes / person.tr)
    learned = frames[:count]
    later = frames[count:]
    end = learned[-1]
    border = next(stop for _, stop in person.runs if end < stop)
    far = (later - end) * person.tr > GAP
    test = later[far | (later >= border)]  # (another run remembers nothing of this one)
    fifth = len(learned) // 5
    if fifth < settings["frames"]:
        fail(
            f"--adapt {minutes:g}: {len(learned)} frames of {person.folder}; a fifth of them, for "
            f"validation, must hold a window of {settings['frames']} frames; give more minutes"
        )
    found = {"train": learned[:-fifth], "val": learned[-fifth:], "test": test}
    return {part: frames.tolist() for part, frames in found.items()}


def begin(subject, settings):
    """The group's checkpoint, if it fits a People of one."""
    path = settings["ckpt"]
    group = load(path)
    check_fits(subject, group | {"checksums": subject.meta["checksums"]}, path)
    return group


def begun(network, group, **config):
    """A network that begins with the group's weights."""
    was = group["config"]
    differ = [name for name in config if config[name] != was.get(name) and name != "members"]
    if differ:
        found = ", ".join(f"{name} {config[name]}, not {was.get(name)}" for name in differ)
        fail(f"--adapt: the person's network would have {found}; prepare TR and delay alike")
    model = network(**config)
    # What is each one's own (people/own) stays with the group.
    shared = {name: x for name, x in group["model"].items() if not name.startswith("own.")}
    model.load_state_dict(model.state_dict() | shared)
    return model


def add_flags(add):
    add("--adapt", type=float, metavar="MINUTES", help="of one more, whom --ckpt is tuned to")
    add("--ckpt", help="with --adapt: checkpoint of several people, where training begins")
