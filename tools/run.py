"""A run of training as its folder knows it: checkpoints, log, progress; stopped, killed,
resumed."""

import contextlib
import json
import math
import os
import signal
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from . import checkpoints, files
from .errors import fail
from .processes import part, summed
from .ranks import RANK, WORLD, say

FILES = "last.pt", "ckpt.pt", "log.jsonl"


class Signals:
    """Ctrl-C and SIGTERM. They end the script at once, until `wait` is called: from then on the
    first is only noted in `caught`, for a loop to finish its step and save; a second one ends it
    at once (but torchrun itself sends several)."""

    def __init__(self):
        self.caught, self.waiting, self.before = 0, False, {}

    def wait(self):
        self.waiting = True

    def answer(self, number, _):
        if self.waiting and (not self.caught or WORLD > 1):
            self.caught = number
        else:
            raise KeyboardInterrupt(number)

    def __enter__(self):
        with contextlib.suppress(ValueError):  # only the main thread may
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self.answer)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def rewind(log, step):
    """Drop what a log of JSON lines holds of later steps, which will be logged again, and a line
    that a kill cut short."""
    kept = []
    with contextlib.suppress(FileNotFoundError), open(log, errors="replace") as f:
        for line in f:
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if json.loads(line)["step"] <= step:
                    kept.append(line)
    files.replace(log, lambda f: f.write("".join(kept).encode()))


class Run:
    """The folder a.out of train.py: `with Run(a) as run` holds it, so that nobody else writes
    there.

    ckpt.pt    the weights with the lowest validation loss, and what sample.py needs beside them
    last.pt    the whole state of training, for --resume
    log.jsonl  one object a line
    """

    def __init__(self, a):
        self.a, self.signals = a, Signals()
        self.last, self.best_path, self.log_path = (os.path.join(a.out, name) for name in FILES)
        self.step = 0
        self.best = {"val_loss": math.inf, "step": 0}
        self.losses = []  # of each step since the last log
        self.unread = []  # the latest of them, still on the device
        self.parts, self.state = {}, None
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.stack.enter_context(files.held(self.a.out))
        self.stack.enter_context(self.signals)
        if self.a.resume:
            self.state = self.load()
            kept = ["out", "device", "resume", "debug", *["data"] * bool(self.a.data)]
            before = self.state["settings"]
            vars(self.a).update({k: v for k, v in before.items() if k not in kept})
            say(f"all settings but --out, --device and --data are those of {self.last}")
        return self

    def __exit__(self, *error):
        return self.stack.__exit__(*error)

    def load(self):
        keys = "averaged", "autoencoder.E", "optimizer", "settings.frames", "checksums"
        counted = "step", "losses", "best.step", "best.val_loss"
        state = checkpoints.load(self.last, "cpu", "model", *keys, *counted)
        if state["best"]["step"] and not os.path.exists(self.best_path):
            fail(
                f"{self.best_path}: is gone, and {self.last} does not hold its weights; put it "
                "back, or start anew without --resume"
            )
        return state

    def check_data(self, subject):
        """Fail if a run is resumed on other data than it began with."""
        about = {name: subject.meta[name] for name in ("checksums", "eeg")}
        self.about = {"settings": vars(self.a), **about}
        self.group = getattr(subject, "group", {})
        if self.state and self.state["checksums"] != about["checksums"]:
            fail(
                f"{subject.folder}: is not the data that {self.last} was trained on; start anew "
                "without --resume"
            )

    def restored(self, name):
        """A part of the state that is resumed, or of the group's that the subject's person is to
        be added to (people/adapt); or None."""
        return (self.state or self.group).get(name)

    def begin(self, **parts):
        """What last.pt holds from now on, objects with a state_dict: as they were, if resumed."""
        self.parts = parts
        weights = sum(p.numel() for p in parts["model"].parameters())
        a = self.a
        say(
            f"{weights:,} weights; {a.steps:,} steps of {a.batch_size} windows of {a.frames} frames"
        )
        if a.warmup >= a.steps > 0:
            say(f"note: --warmup {a.warmup} is as long as training, {a.steps} steps; lower it")
        if self.state is None:
            files.set_aside_files(self.a.out, FILES)
            return
        with checkpoints.this_version(self.last):
            for name, part_of_state in parts.items():
                part_of_state.load_state_dict(self.state[name])
        self.step = self.state["step"]
        self.best = self.state["best"]
        self.losses = self.state["losses"]
        if RANK == 0:
            rewind(self.log_path, self.step)
        say(f"resuming at step {self.step}")
        self.state = None  # its copy of the weights is no longer needed

    def steps(self):
        """0, 1 ... a.steps - 1, or from where it was resumed. It ends early, and saves, if asked to
        (Ctrl-C, SIGTERM): at the end of a step, on all processes alike."""
        self.every = max(1, min(500, self.a.steps // 20))
        self.began = time.time()
        self.bar = tqdm(
            total=self.a.steps,
            initial=self.step,
            unit="step",
            disable=RANK > 0 or self.a.steps == 0,
        )
        self.signals.wait()
        while self.step < self.a.steps:
            yield self.step
            if self.asked and self.step < self.a.steps:
                if not self.is_due():
                    self.save()
                self.stop()
        self.bar.close()

    def finish_step(self, loss):
        """Note the step's loss, of this process's windows, and whether somebody was asked to stop.
        The loss stays where it is: who reads what a GPU computes waits for it."""
        self.step += 1
        self.unread.append(loss.detach() / WORLD)
        self.asked = int(summed(torch.tensor(self.signals.caught)))  # on the CPU
        self.bar.update()

    def read_losses(self):
        """Losses become numbers, of all processes' windows; one that is none ends the run."""
        if self.unread:
            self.losses += summed(torch.stack(self.unread)).tolist()
            self.unread = []
        for step, loss in enumerate(self.losses, self.step - len(self.losses) + 1):
            if not math.isfinite(loss):
                fail(
                    f"--lr {self.a.lr}: the loss is {loss} at step {step}; lower it, or lengthen "
                    "--warmup"
                )

    def is_due(self):
        """Is it time to validate, log and save?"""
        return self.step % self.every == 0 or self.step == self.a.steps

    def log(self, val_loss, lr):
        """Append a line to log.jsonl: the mean loss since the last one, the validation loss."""
        self.read_losses()
        loss = float(np.mean(self.losses))
        record = {"step": self.step, "loss": loss, "val_loss": val_loss, "lr": lr}
        record["seconds"] = round(time.time() - self.began, 2)
        self.losses = []
        shown = "none" if val_loss is None else f"{val_loss:.3f}"
        self.bar.set_postfix(loss=f"{loss:.3f}", val=shown)
        if RANK == 0:
            with files.writing(self.log_path), open(self.log_path, "a") as f:
                f.write(json.dumps(record) + "\n")

    def is_best(self, val_loss):
        """Is this validation loss the lowest so far? Without validation the last weights are."""
        better = val_loss is None or val_loss < self.best["val_loss"]
        if better:
            value = math.inf if val_loss is None else val_loss
            self.best = {"val_loss": value, "step": self.step}
        return better

    def keep(self, **content):
        """Write ckpt.pt: `content`, the settings, and what the data was."""
        if RANK == 0:
            checkpoints.save(self.best_path, content | self.about | self.best)

    def save(self):
        """Write last.pt."""
        self.read_losses()
        if RANK == 0:
            state = {name: value.state_dict() for name, value in self.parts.items()}
            state |= {"step": self.step, "best": self.best, "losses": self.losses}
            checkpoints.save(self.last, state | self.about)

    def stop(self):
        self.bar.close()
        say(
            f"stopped at step {self.step} of {self.a.steps}, saved; to go on: python train.py "
            f"--out {self.a.out} --resume"
        )
        part()
        sys.exit(128 + (self.signals.caught or self.asked))

    def report(self):
        loss = self.best["val_loss"]
        told = f"validation loss {loss:.4f}" if loss < math.inf else "without validation"
        say(f"wrote {self.best_path}: step {self.best['step']} of {self.a.steps}, {told}")
