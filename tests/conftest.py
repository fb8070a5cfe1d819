"""What several files of tests share: small subjects, a raw session, ways to run commands."""

import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(1, os.path.join(sys.path[0], "benchmarks"))

import data
import train
from spaces import formats
from spaces.space import Space

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = dict(runs=5, frames=60, channels=4, fs=50, side=8, sources=4, background=3)
FLAGS = (
    "--preset tiny --width 16 --heads 2 --depth 1 --eeg-dim 8 --eeg-filters 4 --eeg-bands 4 "
    "--latent-dim 6 --batch-size 4 --frames 6 --context 2 --warmup 2 --device cpu"
)
SMALL = FLAGS.split()
torch.set_num_threads(1)  # of small tensors more threads make nothing faster


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a small synthetic subject: 5 runs of 60 frames of 64 vertices."""
    return data.synthetic(str(tmp_path_factory.mktemp("tiny") / "subject"), **TINY)


def command(monkeypatch, module, *flags):
    """Run a script as from the shell."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    module.main()


def run(script, *flags, **how):
    """Run a script in a process of its own."""
    argv = [sys.executable, os.path.join(HERE, script), *map(str, flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, capture_output=True, text=True, env=env, **how)


def contents(folder):
    """{path: bytes} of all files in a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def read_log(folder):
    """The lines of train.py's log, but for how long each step took."""
    with open(os.path.join(folder, "log.jsonl"), encoding="utf-8") as f:
        return [{**json.loads(line), "seconds": 0} for line in f]


def ar1(rng, frames, d):
    """Frames [frames,d] of unit variance, each column an AR(1) process of its own memory."""
    z = np.zeros((frames, d))
    for t in range(1, frames):
        z[t] = np.linspace(0.3, 0.9, d) * z[t - 1] + rng.standard_normal(d)
    return torch.from_numpy((z / z.std(0)).astype(np.float32))


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """A raw session: 4 runs of CIFTI-2 and continuous EEG, 40 cortical vertices, 2 x 2 x 2 voxels.
    (folder, space, frames of each run)."""
    root = tmp_path_factory.mktemp("session")
    rng = np.random.default_rng(0)
    models = nib.cifti2.BrainModelAxis
    space = models.from_surface(np.arange(2, 27), 64, "CortexLeft")
    space += models.from_surface(np.arange(15), 64, "CortexRight")
    space += models.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4), name="thalamus_left")
    raw = []
    for i in range(1, 5):
        x = (1000 + ar1(rng, 50, 48).numpy()).astype(np.float32)
        x[:, 5] = 12.0  # a vertex without variance
        formats.save_series(Space(space, ".dtseries.nii"), str(root / f"run-{i}_bold"), x, 0.8, 0)
        eeg = rng.standard_normal((3, 50 * 40)).astype(np.float32)
        np.save(root / f"run-{i}_eeg.npy", eeg)
        raw.append(x)
    keys = {0: ("???", (0, 0, 0, 0)), 1: ("L_V1_ROI", (1, 0, 0, 1)), 2: ("R_A1_ROI", (0, 1, 0, 1))}
    label = np.zeros((1, 40), np.float32)
    label[0, :10] = 1
    label[0, 30:35] = 2
    names = nib.cifti2.LabelAxis(["parcels"], [keys])
    image = nib.Cifti2Image(label, (names, space[np.arange(40)]))
    nib.save(image, str(root / "parcels.dlabel.nii"))
    np.save(root / "mine.npy", np.arange(48) < 7)
    return root, space, raw


@pytest.fixture(scope="session")
def trained(session, tmp_path_factory):
    """The session prepared by the command, and a model trained by the command."""
    root = session[0]
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        runs = "--bold", root / "run-*_bold.dtseries.nii", "--eeg", root / "run-*_eeg.npy"
        parcels = "--parcels", root / "parcels.dlabel.nii", root / "mine.npy"
        command(patch, data, *runs, "--fs", 50, "--out", out / "subject", *parcels)
        command(patch, train, "--data", out / "subject", "--steps", 5, *SMALL, "--out", out)
    return out
