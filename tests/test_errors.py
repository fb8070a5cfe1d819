"""Bad input: each case ends with exit status 2 and one line that names what is wrong, and leaves
nothing behind."""

import argparse
import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import HERE, SMALL, TINY, contents, read_json, run

import data
import sample as sampling
import train
from spaces import space as spaces
from tools import errors
from tools import run as training_run

SMALL = [*SMALL, "--steps", "1"]
Axis = nib.cifti2.BrainModelAxis
SPACE = Axis.from_surface(np.arange(12), 20, "CortexLeft")
SPACE += Axis.from_surface(np.arange(8), 20, "CortexRight")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prepared subject, and a checkpoint trained on it."""
    root = tmp_path_factory.mktemp("made")
    data.synthetic(str(root / "subject"), **TINY)
    train.main(["--data", str(root / "subject"), "--out", str(root), *SMALL])
    return root


# ---- How to make something wrong -------------------------------------------------------


def raw(
    tmp,
    bold=lambda run, x: x,
    eeg=lambda run, s: s,
    space=lambda run: SPACE,
    tr=lambda run: 0.8,
    suffix=".dtseries.nii",
):
    """Two runs of 30 volumes and their EEG at 50 Hz, changed by the given functions; the flags to
    prepare them."""
    rng = np.random.default_rng(0)
    for i in (1, 2):
        x = bold(i, rng.standard_normal((30, 20)).astype(np.float32))
        path = str(tmp / f"run-{i}_bold{suffix}")
        if suffix == ".npy":
            np.save(path, x, allow_pickle=True)
        else:
            series = nib.cifti2.SeriesAxis(0.0, tr(i), len(x), "SECOND")
            spaces.save_cifti(path, x, series, space(i))
        s = eeg(i, rng.standard_normal((4, 1200)).astype(np.float32))
        np.save(tmp / f"run-{i}_eeg.npy", s, allow_pickle=True)
    files = ["--bold", f"{tmp}/run-*_bold{suffix}", "--eeg", f"{tmp}/run-*_eeg.npy"]
    return [*files, "--fs", "50", "--out", f"{tmp}/out"]


def folders(tmp, frames=10, shift=0, V=5):
    """CineBrain's layout; the last frame has V vertices."""
    rng = np.random.default_rng(0)
    for name in ("fmri", "eeg"):
        (tmp / name).mkdir()
    for i in range(frames):
        x = rng.standard_normal(5 if i < frames - 1 else V).astype(np.float32)
        np.save(tmp / f"fmri/{i}.npy", x)
        np.save(tmp / f"eeg/{i + shift}.npy", rng.standard_normal((4, 40)).astype(np.float32))
    return ["--bold", f"{tmp}/fmri", "--eeg", f"{tmp}/eeg", "--tr", "0.8", "--out", f"{tmp}/out"]


def with_file(flags, tmp, name, content, flag=None):
    """A file beside, as bytes or as an array, and maybe a flag that names it."""
    if isinstance(content, bytes):
        (tmp / name).write_bytes(content)
    else:
        np.save(tmp / name, content)
    return flags + ([flag, f"{tmp}/{name}"] if flag else [])


def replaced(flags, tmp, name, change):
    """A file whose bytes are changed."""
    (tmp / name).write_bytes(change((tmp / name).read_bytes()))
    return flags


def cifti(tmp, axis, unit="SECOND"):
    """Run 1 as something else than a dense series in seconds."""
    flags = raw(tmp)
    path = str(tmp / "run-1_bold.dtseries.nii")
    if axis is None:
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 30), np.float32), np.eye(4)), path)
    else:
        spaces.save_cifti(path, np.zeros((len(axis), 20)), axis, SPACE)
    return flags


def subject(tmp, made, meta=None, **arrays):
    """A copy of the prepared subject, of which subject.json and arrays are changed by functions;
    flags to train on it."""
    shutil.copytree(made / "subject", tmp / "subject")
    path = tmp / "subject/subject.json"
    if meta:
        content = meta(read_json(path))
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    for name, change in arrays.items():
        np.save(tmp / f"subject/{name}.npy", change(np.load(made / f"subject/{name}.npy")))
    return ["--data", f"{tmp}/subject", "--out", f"{tmp}/out", *SMALL]


def checkpoint(tmp, made, change):
    """A copy of the checkpoint, changed by a function of the dict; flags to sample from it."""
    state = torch.load(made / "ckpt.pt", weights_only=True)
    changed = change(state)
    torch.save(state if changed in (None, False) else changed, tmp / "ckpt.pt")
    return ["--ckpt", f"{tmp}/ckpt.pt", "--out", f"{tmp}/out"]


def resumable(tmp, made, change, change_state=lambda state: None):
    """OUT/last.pt, changed by functions of the dict and of its bytes."""
    (tmp / "out").mkdir()
    state = torch.load(made / "last.pt", weights_only=True)
    change_state(state)
    torch.save(state, tmp / "out/last.pt")
    (tmp / "out/last.pt").write_bytes(change((tmp / "out/last.pt").read_bytes()))
    shutil.copy(made / "ckpt.pt", tmp / "out")
    return ["--out", f"{tmp}/out", "--resume"]


def surface(tmp, name, vertices, x=0):
    """A GIFTI surface of one triangle around x; its path."""
    points = np.random.default_rng(0).standard_normal((vertices, 3)).astype("f4")
    points[:, 0] += x
    triangles = np.array([[0, 1, 2]], "i4")
    arrays = [
        nib.gifti.GiftiDataArray(points, "NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(triangles, "NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.gifti.GiftiImage(darrays=arrays), str(tmp / name))
    return f"{tmp}/{name}"


def put(index, value):
    def change(*args):
        args[-1][index] = value
        return args[-1]

    return change


def objects(run, x):
    return np.array([{"a": 1}, [x]], dtype=object)


def first(change):
    """Change the first run only."""
    return lambda run, x: change(x) if run == 1 else x


def with_space(tmp, made):
    """A checkpoint whose subject has a space."""
    flags = checkpoint(tmp, made, lambda s: s.update(subject=f"{tmp}/subject"))
    shutil.copytree(made / "subject", tmp / "subject")
    space = Axis.from_surface(np.arange(40), 50, "CortexLeft")
    space += Axis.from_surface(np.arange(24), 30, "CortexRight")
    names = nib.cifti2.ScalarAxis(["space"])
    path = str(tmp / "subject/space.dscalar.nii")
    spaces.save_cifti(path, np.zeros((1, 64)), names, space)
    return flags


def sample(more, *flags):
    """Flags to sample from the checkpoint, and more."""
    given = ["--steps", "2", "--samples", "2", *more, *flags]
    return lambda t, m: ["--ckpt", f"{m}/ckpt.pt", "--out", f"{t}/out", *given]


RUN1, EEG1, META = "run-1_bold.dtseries.nii", "run-1_eeg.npy", "subject/subject.json"
other_space = Axis.from_surface(np.arange(1, 13), 20, "CortexLeft")
other_space += Axis.from_surface(np.arange(8), 20, "CortexRight")
scalars = nib.cifti2.ScalarAxis(list("ab"))
hertz = nib.cifti2.SeriesAxis(0, 0.8, 30, "HERTZ")
# name: (script, what makes it wrong and gives the flags, words that the line must hold)
CASES = {
    # ---- data.py: recordings
    "no such files": (
        data,
        lambda t, m: ["--bold", "none*", "--eeg", "none*", "--out", f"{t}/out"],
        ["none*", "finds no file"],
    ),
    "empty folders": (data, lambda t, m: folders(t, 0), ["fmri has 0 files", "share a number"]),
    "a folder and a file": (
        data,
        lambda t, m: ["--bold", f"{t}", "--eeg", f"{t}/x.npy", "--out", f"{t}/out"],
        ["x.npy", "folder"],
    ),
    "a run without EEG": (
        data,
        lambda t, m: [raw(t), os.remove(t / EEG1)][0],
        ["run-1_bold", "partner"],
    ),
    "BOLD cut short, .npy": (
        data,
        lambda t, m: replaced(
            [*raw(t, suffix=".npy"), "--tr", "0.8"], t, "run-1_bold.npy", lambda b: b[:-99]
        ),
        ["run-1_bold.npy", "not a whole .npy"],
    ),
    "BOLD not an array": (
        data,
        lambda t, m: with_file(raw(t, suffix=".npy"), t, "run-1_bold.npy", b"volume,vertex"),
        ["run-1_bold.npy", "not a whole .npy"],
    ),
    "BOLD an empty file": (
        data,
        lambda t, m: with_file(raw(t, suffix=".npy"), t, "run-1_bold.npy", b""),
        ["run-1_bold.npy"],
    ),
    "BOLD pickled": (
        data,
        lambda t, m: raw(t, bold=objects, suffix=".npy"),
        ["run-1_bold.npy", "objects"],
    ),
    "BOLD complex": (
        data,
        lambda t, m: raw(t, bold=first(lambda x: x.astype(complex)), suffix=".npy"),
        ["run-1_bold.npy", "complex128"],
    ),
    "BOLD with three axes": (
        data,
        lambda t, m: raw(t, bold=first(lambda x: x[None]), suffix=".npy"),
        ["run-1_bold.npy", "(1, 30, 20)"],
    ),
    "BOLD .npy transposed": (
        data,
        lambda t, m: [*raw(t, bold=lambda run, x: np.tile(x, 9).T, suffix=".npy"), "--tr", "0.8"],
        ["run-1_bold.npy", "[volumes, V]"],
    ),
    "EEG cut short": (
        data,
        lambda t, m: replaced(raw(t), t, EEG1, lambda b: b[:-4]),
        [EEG1, "not a whole .npy"],
    ),
    "EEG pickled": (data, lambda t, m: raw(t, eeg=objects), [EEG1, "objects"]),
    "EEG as words": (data, lambda t, m: raw(t, eeg=first(lambda s: s.astype(str))), [EEG1, "<U"]),
    "EEG transposed": (
        data,
        lambda t, m: raw(t, eeg=first(lambda s: s.T)),
        [EEG1, "[1200, 4]", "transpose"],
    ),
    "EEG too short": (
        data,
        lambda t, m: raw(t, eeg=first(lambda s: s[:, :700])),
        [EEG1, "14.0 s", "24.0 s"],
    ),
    "EEG too long": (
        data,
        lambda t, m: raw(t, eeg=first(lambda s: np.tile(s, 6))),
        [EEG1, "144.0 s", "24.0 s"],
    ),
    "--fd without confounds": (data, lambda t, m: [*raw(t), "--fd", "0.5"], ["--fd 0.5", "moved"]),
    "compcor with drifts": (
        data,
        lambda t, m: [*raw(t), "--confounds", "auto", "--strategy", "motion,compcor"],
        ["compcor", "--high-pass"],
    ),
    "confounds that are not there": (
        data,
        lambda t, m: [*raw(t), "--confounds", "auto"],
        [RUN1, "0 files", "timeseries.tsv"],
    ),
    "triggers in a .npy": (data, lambda t, m: [*raw(t), "--trigger", "R128"], [EEG1, "no events"]),
    "neither BOLD nor a model": (data, lambda t, m: raw(t)[2:], ["--bold, --like", "one of them"]),
    "EEG alone for no subject": (
        data,
        lambda t, m: [*raw(t)[2:], "--like", f"{t}/none"],
        ["--like", "no prepared subject"],
    ),
    "two mains": (data, lambda t, m: [*raw(t), "--notch", "0"], ["--notch 0"]),
    "wrong --fs": (data, lambda t, m: [*raw(t), "--fs", "500"], [EEG1, "2.4 s at --fs 500"]),
    "--fs 0": (data, lambda t, m: [*raw(t), "--fs", "0"], ["--fs 0"]),
    "EEG with fewer channels in a run": (
        data,
        lambda t, m: raw(t, eeg=first(lambda s: s[:3])),
        ["run-2_eeg.npy", "(4, 3)"],
    ),
    "fewer channels than --channels": (
        data,
        lambda t, m: [*raw(t), "--channels", "5"],
        [EEG1, "4 channels", "5"],
    ),
    "NaN in BOLD": (
        data,
        lambda t, m: raw(t, bold=first(put((slice(8, 12), 3), np.nan))),
        [RUN1, "4 of 600", "volume 8, vertex 3"],
    ),
    "infinite EEG": (
        data,
        lambda t, m: raw(t, eeg=first(put((2, slice(700, 705)), np.inf))),
        [EEG1, "5 of 4,800", "channel 2, sample 700"],
    ),
    "a dead channel": (
        data,
        lambda t, m: raw(t, eeg=first(put(1, 0.5))),
        [EEG1, "1 of 4 EEG channels (1", "constant"],
    ),
    "a run shorter than a window": (
        data,
        lambda t, m: raw(t, bold=lambda run, x: x[:4], eeg=lambda run, s: s[:, :160]),
        [EEG1, "0 frames"],
    ),
    "no TR, .npy": (data, lambda t, m: raw(t, suffix=".npy"), ["run-1_bold.npy", "--tr"]),
    "no TR in the header": (data, lambda t, m: raw(t, tr=lambda run: 0.0), [RUN1, "--tr"]),
    "TR in milliseconds": (
        data,
        lambda t, m: raw(t, tr=lambda run: 800.0),
        [RUN1, "TR is 800", "0.8"],
    ),
    "--tr in milliseconds": (data, lambda t, m: [*raw(t), "--tr", "800"], ["--tr", "800", "0.8 s"]),
    "runs with two TRs": (
        data,
        lambda t, m: raw(t, tr=lambda run: 0.7 + run / 10),
        ["run-2_bold", "0.9, 0.8"],
    ),
    "a series in hertz": (data, lambda t, m: cifti(t, hertz), [RUN1, "HERTZ", "SECOND"]),
    "CIFTI-1": (
        data,
        lambda t, m: replaced(
            raw(t), t, RUN1, lambda b: b.replace(b'Version="2.0"', b'Version="1.0"')
        ),
        [RUN1, "CIFTI-1"],
    ),
    "dscalar for dtseries": (
        data,
        lambda t, m: cifti(t, scalars),
        [RUN1, "ScalarAxis", "dtseries"],
    ),
    "NIfTI for CIFTI": (data, lambda t, m: cifti(t, None), [RUN1, "CIFTI-2"]),
    "dtseries cut short": (
        data,
        lambda t, m: replaced(raw(t), t, RUN1, lambda b: b[:-800]),
        [RUN1, "cut short"],
    ),
    "runs in two spaces": (
        data,
        lambda t, m: raw(t, space=lambda run: SPACE if run == 1 else other_space),
        ["run-2_bold", "places"],
    ),
    "a mask of the wrong length": (
        data,
        lambda t, m: with_file(raw(t), t, "v1.npy", np.ones(19, bool), "--parcels"),
        ["v1.npy", "(19,)", "(20,)"],
    ),
    "a mask of numbers": (
        data,
        lambda t, m: with_file(raw(t), t, "v1.npy", np.ones(20), "--parcels"),
        ["v1.npy", "float64", "boolean"],
    ),
    "parcels that are none": (
        data,
        lambda t, m: with_file(raw(t), t, "x.dlabel.nii", b"parcels", "--parcels"),
        ["x.dlabel.nii"],
    ),
    "--out with other files": (
        data,
        lambda t, m: [*raw(t)[:-1], f"{m}"],
        ["--out", "no prepared subject"],
    ),
    "--out below a file": (
        data,
        lambda t, m: [*raw(t)[:-1], f"{t}/{EEG1}/out"],
        [EEG1, "cannot be written"],
    ),
    "--out here": (data, lambda t, m: [*raw(t)[:-1], "."], ["--out .", "new folder"]),
    "--tr against the header": (data, lambda t, m: [*raw(t), "--tr", "0.9"], ["--tr 0.9", "0.8 s"]),
    "runs that lack each other": (
        data,
        lambda t, m: [*raw(t), os.rename(t / EEG1, t / "run-3_eeg.npy")][:-1],
        ["run-1_bold", "run-3_eeg", "expected one partner"],
    ),
    "values beyond float32": (
        data,
        lambda t, m: [
            *raw(t, bold=first(lambda x: x.astype(float) * 1e200), suffix=".npy"),
            "--tr",
            "0.8",
        ],
        ["run-1_bold.npy"],
    ),
    "a delay without end": (
        data,
        lambda t, m: [*raw(t), "--delay", "nan"],
        ["--delay nan", "0 to 60"],
    ),
    "a region named whole": (
        data,
        lambda t, m: with_file(raw(t), t, "whole.npy", np.ones(20, bool), "--parcels"),
        ["whole.npy", "rename"],
    ),
    "a split without folders": (
        data,
        lambda t, m: with_file(raw(t), t, "s.json", b"[]", "--split"),
        ["--split", "folders"],
    ),
    "no such flag": (data, lambda t, m: [*raw(t), "--rate", "5"], ["--rate 5", "--help"]),
    "a flag without its number": (
        data,
        lambda t, m: [*raw(t), "--fs", "fast"],
        ["--fs", "fast", "--help"],
    ),
    # ---- data.py: folders of frames
    "folders that share no number": (
        data,
        lambda t, m: folders(t, shift=50),
        ["10 files", "share a number"],
    ),
    "folders without --tr": (
        data,
        lambda t, m: [f for f in folders(t) if f not in ("--tr", "0.8")],
        ["--tr", "0.8"],
    ),
    "a frame of another shape": (data, lambda t, m: folders(t, V=6), ["9.npy", "(6,)", "(5,)"]),
    "a split that names no frames": (
        data,
        lambda t, m: with_file(folders(t), t, "split.json", b"[]", "--split"),
        ["split.json", "0 of 10"],
    ),
    "a split that names all frames": (
        data,
        lambda t, m: with_file(
            folders(t),
            t,
            "split.json",
            json.dumps([{"fmri": [f"x/{i}.npy" for i in range(10)]}]).encode(),
            "--split",
        ),
        ["split.json", "10 of 10"],
    ),
    "a split of another kind": (
        data,
        lambda t, m: with_file(folders(t), t, "split.json", b'{"test": [1]}', "--split"),
        ["split.json", "clips"],
    ),
    "a --space of another size": (
        data,
        lambda t, m: [*raw(t)[:0], *folders(t), "--space", raw(t)[1].replace("*", "1")],
        ["--space", "20", "5"],
    ),
    # ---- train.py
    "no subject": (
        train,
        lambda t, m: ["--data", "nowhere", "--out", f"{t}/out"],
        ["nowhere", "data.py"],
    ),
    "an empty subject": (
        train,
        lambda t, m: ["--data", f"{t}", "--out", f"{t}/out"],
        ["no prepared subject"],
    ),
    "subject.json damaged": (
        train,
        lambda t, m: subject(t, m, lambda s: '{"tr": 0.8, '),
        [META, "not readable"],
    ),
    "subject.json without runs": (
        train,
        lambda t, m: subject(t, m, lambda s: {"tr": 0.8}),
        [META, "runs"],
    ),
    "TR in milliseconds, prepared": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "tr": 800}),
        [META, "TR is 800"],
    ),
    "runs beyond the frames": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "runs": [[0, 100], [100, 301]]}),
        [META, "0 to 300"],
    ),
    "runs that overlap": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "runs": [[0, 100], [90, 300]]}),
        [META, "[90, 300]"],
    ),
    "subject.json a list": (train, lambda t, m: subject(t, m, lambda s: [s]), [META, "list"]),
    "a split of other parts": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "split": {"training": [0], "test": [1]}}),
        [META, "training"],
    ),
    "a split of words": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "split": {"train": ["a"], "test": [1]}}),
        [META, "whole numbers"],
    ),
    "no training frames": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "split": {"train": [], "test": [1]}}),
        ["--frames 6", "split"],
    ),
    "too few first volumes": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "first_volume": [0]}),
        [META, "first_volume"],
    ),
    "BOLD that does not vary": (
        train,
        lambda t, m: subject(t, m, fmri=lambda x: 0 * x + 5),
        ["fmri.npy", "no vertex varies"],
    ),
    "an empty name": (train, lambda t, m: ["--data", "", "--out", f"{t}/out"], ["empty"]),
    "an average that cannot be": (
        train,
        lambda t, m: [*subject(t, m), "--ema", "2"],
        ["--ema 2", "0 to 1"],
    ),
    "a dropout that cannot be": (
        train,
        lambda t, m: [*subject(t, m), "--eeg-dropout", "1.5"],
        ["--eeg-dropout 1.5"],
    ),
    "a rate that is no number": (train, lambda t, m: [*subject(t, m), "--lr", "nan"], ["--lr nan"]),
    "a seed below 0": (train, lambda t, m: [*subject(t, m), "--seed", "-3"], ["--seed -3"]),
    "a split that overlaps": (
        train,
        lambda t, m: subject(
            t, m, lambda s: {**s, "split": {"train": list(range(100)), "test": [98, 99, 200]}}
        ),
        [META, "2 frames twice"],
    ),
    "a split beyond the frames": (
        train,
        lambda t, m: subject(t, m, lambda s: {**s, "split": {"train": [0], "test": [300]}}),
        [META, "299"],
    ),
    "BOLD and EEG of two lengths": (
        train,
        lambda t, m: subject(t, m, eeg=lambda e: e[:-1]),
        ["300 frames", "299"],
    ),
    "fmri.npy of integers": (
        train,
        lambda t, m: subject(t, m, fmri=lambda x: x.astype("i2")),
        ["fmri.npy", "int16", "float"],
    ),
    "fmri.npy cut short": (
        train,
        lambda t, m: replaced(subject(t, m), t, "subject/fmri.npy", lambda b: b[:5000]),
        ["fmri.npy", "whole"],
    ),
    "NaN in the test run": (
        train,
        lambda t, m: subject(t, m, fmri=put((290, 7), np.nan)),
        ["fmri.npy", "1 of 19,200", "frame 290, vertex 7"],
    ),
    "NaN in the EEG": (
        train,
        lambda t, m: subject(t, m, eeg=put((70, 3, 5), np.nan)),
        ["eeg.npy", "frame 70, channel 3, sample 5"],
    ),
    "a dead channel, prepared": (
        train,
        lambda t, m: subject(t, m, eeg=put((slice(60, 120), 2), 0)),
        ["eeg.npy", "1 of 4 EEG channels (2"],
    ),
    "a region of the wrong shape": (
        train,
        lambda t, m: (subject(t, m), np.savez(t / "subject/rois.npz", v1=np.ones(63, bool)))[0],
        ["rois.npz", "v1", "(63,)"],
    ),
    "a window longer than a run": (
        train,
        lambda t, m: [*subject(t, m), "--frames", "61"],
        ["--frames 61"],
    ),
    "heads that do not divide": (
        train,
        lambda t, m: [*subject(t, m), "--heads", "3"],
        ["--heads 3"],
    ),
    "tokens that do not divide": (
        train,
        lambda t, m: [*subject(t, m), "--tokens-per-frame", "4"],
        ["--tokens-per-frame 4"],
    ),
    "no windows a step": (
        train,
        lambda t, m: [*subject(t, m), "--batch-size", "0"],
        ["--batch-size 0"],
    ),
    "a loss that is no number": (
        train,
        lambda t, m: [*subject(t, m), "--lr", "1e30", "--warmup", "0", "--steps", "50"],
        ["--lr 1e+30", "nan"],
    ),
    "joint with a prior": (
        train,
        lambda t, m: [*subject(t, m), "--autoencoder", "joint", "--prior", "gaussian"],
        ["--prior none"],
    ),
    "a device that nobody knows": (
        train,
        lambda t, m: [*subject(t, m), "--device", "gpu"],
        ["--device gpu", "cpu"],
    ),
    "a device that is not there": (
        train,
        lambda t, m: [*subject(t, m), "--device", "cuda:99"],
        ["--device cuda:99", "cpu"],
    ),
    "nothing to resume": (
        train,
        lambda t, m: ["--out", f"{t}/out", "--resume"],
        ["last.pt", "no such checkpoint"],
    ),
    "last.pt cut short": (
        train,
        lambda t, m: resumable(t, m, lambda b: b[:-2000]),
        ["last.pt", "cut short"],
    ),
    "last.pt damaged": (
        train,
        lambda t, m: resumable(t, m, lambda b: bytes(100) + b[100:]),
        ["last.pt"],
    ),
    "resumed without ckpt.pt": (
        train,
        lambda t, m: [*resumable(t, m, lambda b: b), os.remove(t / "out/ckpt.pt")][:-1],
        ["ckpt.pt", "is gone"],
    ),
    "resumed on other data": (
        train,
        lambda t, m: resumable(t, m, lambda b: b, lambda s: s["checksums"].update(fmri="0")),
        ["last.pt", "not the data"],
    ),
    "--out is a file": (
        train,
        lambda t, m: [*with_file(subject(t, m), t, "file", b""), "--out", f"{t}/file"],
        ["file", "cannot be written"],
    ),
    # ---- sample.py
    "no checkpoint": (
        sampling,
        lambda t, m: ["--ckpt", "nowhere.pt", "--out", f"{t}/out"],
        ["nowhere.pt"],
    ),
    "a checkpoint cut short": (
        sampling,
        lambda t, m: replaced(checkpoint(t, m, dict), t, "ckpt.pt", lambda b: b[:9000]),
        ["ckpt.pt", "cut short"],
    ),
    "a checkpoint with code": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s.update(settings=os.path.join)),
        ["ckpt.pt", "plain values"],
    ),
    "no checkpoint of ours": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["model"]),
        ["ckpt.pt", "config"],
    ),
    "a list for a checkpoint": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: [1, 2]),
        ["ckpt.pt", "config"],
    ),
    "last.pt for ckpt.pt": (
        sampling,
        lambda t, m: ["--ckpt", f"{m}/last.pt", "--out", f"{t}/out"],
        ["last.pt", "ckpt.pt beside it"],
    ),
    "weights that are no numbers": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["autoencoder"]["E"].fill_(np.nan) is None),
        ["ckpt.pt", "autoencoder, E"],
    ),
    "settings that are missing": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["settings"].pop("vary") is None),
        ["ckpt.pt", "settings.vary"],
    ),
    "a setting nobody knows": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["config"].update(rings=3)),
        ["ckpt.pt", "rings"],
    ),
    "a checkpoint of an earlier version": (
        sampling,
        lambda t, m: checkpoint(
            t, m, lambda s: s["model"].update({"dit.blocks.0.delay": torch.zeros(2, 1, 1)})
        ),
        ["ckpt.pt", "dit.blocks.0.delay", "the version that made it"],
    ),
    "a setting of an earlier version": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["config"].update(eeg_encoder="conv")),
        ["ckpt.pt", "eeg_encoder", "the version that made it"],
    ),
    "an older layout": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["model"].pop("dit.place") is None),
        ["ckpt.pt", "dit.place"],
    ),
    "weights of another shape": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s["config"].update(width=32)),
        ["ckpt.pt", "shape"],
    ),
    "its subject has gone": (
        sampling,
        lambda t, m: checkpoint(t, m, lambda s: s.update(subject="gone")),
        ["gone", "no prepared"],
    ),
    "other vertices": (
        sampling,
        lambda t, m: (
            subject(t, m, fmri=lambda x: x[:, :63]),
            os.remove(t / "subject/rois.npz"),
            os.remove(t / "subject/driven.npy"),
            sample(["--data", f"{t}/subject"])(t, m),
        )[-1],
        ["63 vertices", "64"],
    ),
    "fewer channels than trained on": (
        sampling,
        lambda t, m: (
            subject(t, m, eeg=lambda e: e[:, :3]),
            sample(["--data", f"{t}/subject"])(t, m),
        )[1],
        ["3 EEG channels", "4"],
    ),
    "no test frames": (
        sampling,
        lambda t, m: (
            subject(t, m, lambda s: {**s, "runs": [[0, 300]]}),
            sample(["--data", f"{t}/subject"])(t, m),
        )[1],
        ["no test frames"],
    ),
    "NaN in its own data since": (
        sampling,
        lambda t, m: (
            subject(t, m, fmri=put((299, 0), np.nan)),
            sample(["--data", f"{t}/subject"])(t, m),
        )[1],
        ["frame 299, vertex 0"],
    ),
    "NaN in other data": (
        sampling,
        lambda t, m: (
            subject(t, m, lambda s: {**s, "checksums": {}}, fmri=put((299, 0), np.inf)),
            sample(["--data", f"{t}/subject"])(t, m),
        )[1],
        ["frame 299, vertex 0"],
    ),
    "anchors beyond the window": (
        sampling,
        sample(["--anchors", "0,6"]),
        ["--anchors 0,6", "0 to 5"],
    ),
    "anchors that are words": (
        sampling,
        sample(["--anchors", "first,last"]),
        ["--anchors first,last", "0,9"],
    ),
    "a gap and anchors": (
        sampling,
        sample(["--gap", "2", "--anchors", "0,5"]),
        ["--gap 2", "--anchors 0,5"],
    ),
    "a gap wider than the window": (sampling, sample(["--gap", "7"]), ["--gap 7", "--frames 6"]),
    "the paper with a chapter's flag": (
        sampling,
        sample(["--paper", "--observe", "patch"]),
        ["--paper --observe", "leave one of them out"],
    ),
    "the paper with windows that overlap": (
        sampling,
        sample(["--paper", "--interrecon", "--overlap", "3"]),
        ["--paper --overlap"],
    ),
    "an eta that cannot be": (sampling, sample(["--eta", "5"]), ["--eta 5", "0 to 1"]),
    "more steps than levels": (sampling, sample(["--steps", "1500"]), ["--steps 1500", "1000"]),
    "all that varies observed": (
        sampling,
        lambda t, m: with_file(
            checkpoint(t, m, lambda s: s["normaliser"]["std"][9:].fill_(0) is None),
            t,
            "mask.npy",
            np.arange(64) < 9,
            "--observe",
        ),
        ["mask.npy", "all or nothing"],
    ),
    "all anchors": (
        sampling,
        sample(["--anchors", "0,1,2,3,4,5"]),
        ["--anchors 0,1,2,3,4,5", "not all"],
    ),
    "no anchors": (sampling, sample(["--anchors", ""]), ["--anchors", "0,9"]),
    "every frame observed": (sampling, sample(["--gap", "1"]), ["--gap 1", "not all"]),
    "gap 0": (sampling, sample(["--gap", "0"]), ["--gap 0"]),
    "no such region": (sampling, sample(["--observe", "amygdala"]), ["amygdala", "patch"]),
    "everything observed": (
        sampling,
        lambda t, m: with_file(sample([])(t, m), t, "mask.npy", np.ones(64, bool), "--observe"),
        ["mask.npy", "all"],
    ),
    "nothing observed": (
        sampling,
        lambda t, m: with_file(
            sample([])(t, m), t, "mask.npy", np.zeros((3, 64), bool), "--observe"
        ),
        ["mask.npy"],
    ),
    "--observe of the wrong shape": (
        sampling,
        lambda t, m: with_file(
            sample([])(t, m), t, "mask.npy", np.ones((6, 60), bool), "--observe"
        ),
        ["mask.npy", "(6, 60)", "[64]"],
    ),
    "--observe of numbers": (
        sampling,
        lambda t, m: with_file(sample([])(t, m), t, "mask.npy", np.ones(64), "--observe"),
        ["mask.npy", "float64"],
    ),
    "overlap of a window and more": (
        sampling,
        sample(["--window", "6", "--overlap", "6"]),
        ["--overlap 6", "0 to 5"],
    ),
    "no samples": (sampling, sample(["--samples", "0"]), ["--samples 0"]),
    "one sample to calibrate": (
        sampling,
        sample(["--calibrate", "--samples", "1"]),
        ["--samples 1", "--calibrate"],
    ),
    "surfaces without a space": (
        sampling,
        sample(["--surfaces", "L.surf.gii", "R.surf.gii"]),
        ["--surfaces", "space.dscalar.nii"],
    ),
    "no such surface": (
        sampling,
        lambda t, m: [*with_space(t, m), "--surfaces", f"{t}/L.gii", f"{t}/R.gii"],
        ["L.gii", "surf.gii"],
    ),
    "surfaces the wrong way round": (
        sampling,
        lambda t, m: [
            *with_space(t, m),
            "--surfaces",
            surface(t, "R.gii", 30),
            surface(t, "L.gii", 50),
        ],
        ["R.gii", "30 vertices", "50"],
    ),
    "the left half for the right": (
        sampling,
        lambda t, m: [
            *with_space(t, m),
            "--surfaces",
            surface(t, "L.gii", 50, -30),
            surface(t, "M.gii", 30, -30),
        ],
        ["M.gii", "other side"],
    ),
    "--out below a file, sampling": (
        sampling,
        lambda t, m: [*sample([])(t, m)[:3], f"{m}/ckpt.pt/out"],
        ["ckpt.pt/out", "cannot be written"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(made, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    script, flags, words = CASES[name]
    argv = flags(tmp_path, made)
    before = {path for path in os.listdir(tmp_path) if path != "out"}
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        script.main(argv)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    told = [line for line in lines if line.startswith("error: ")]
    assert end.value.code == 2 and len(told) == 1
    for word in words:
        assert word in told[0], (word, told[0])
    assert len(told[0]) < 600
    assert before == set(os.listdir(tmp_path)) - {"out"}
    for path in ("out/subject.json", "out/direct", "out/interrecon"):
        assert not (tmp_path / path).exists()


@pytest.mark.parametrize("script", [data, train, sampling])
def test_a_folder_that_cannot_be_written_and_a_disk_too_small(
    made, tmp_path, monkeypatch, capsys, script
):
    """Both are found before the work begins. (root may write anywhere, so the system's answer is
    put into its mouth.)"""
    flags = {
        data: raw(tmp_path),
        train: subject(tmp_path, made),
        sampling: sample([])(tmp_path, made),
    }[script]
    monkeypatch.setattr(os, "access", lambda path, mode: "out" not in str(path))
    with pytest.raises(SystemExit) as end:
        script.main(flags)
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert "/out" in told and "cannot be written (Permission denied)" in told
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: argparse.Namespace(free=0))
    if script is not train:  # its files are small
        with pytest.raises(SystemExit):
            script.main(flags)
        assert "0.0 are free" in capsys.readouterr().err
        assert not (tmp_path / "out/direct").exists()


def test_a_subject_prepared_anew_is_not_mixed_with_itself(made, tmp_path):
    subject(tmp_path, made)
    before = data.Subject(str(tmp_path / "subject"))
    data.Normaliser.measure(before, [(0, 60)])
    data.synthetic(f"{tmp_path}/subject/", seed=1, **TINY)
    with pytest.raises(errors.Problem, match="fmri.npy: was changed"):
        data.Normaliser.measure(before, [(0, 60)])
    assert len(data.Subject(str(tmp_path / "subject-1")).fmri) == 300  # the first is kept


def test_a_damaged_log_is_not_lost(tmp_path):
    path = tmp_path / "log.jsonl"
    good = [json.dumps({"step": i}) + "\n" for i in range(5)]
    first_two = "".join(good[:2]).encode()
    others = "".join(good[2:]).encode()
    path.write_bytes(first_two + b'\xff\xfe\n\n[1]\n{"a": 1}\n' + others + b'{"st')
    training_run.rewind(str(path), 3)
    assert path.read_text() == "".join(good[:4])


def test_a_closed_pipe_costs_nothing(made, tmp_path):
    """Nobody reads on, as after | head: it ends without a word, once the result is in its place."""
    script = f"{sys.executable} -u {HERE}/sample.py --ckpt {made}/ckpt.pt --out {tmp_path}"
    command = f"{script} --steps 2 --samples 2 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr
    assert "error" not in done.stderr and (tmp_path / "direct/metrics.json").exists()


def test_exit_status_and_debug(tmp_path):
    for script, flags in (
        ("data.py", ["--bold", "none", "--eeg", "none", "--out", "x"]),
        ("train.py", ["--data", "none"]),
        ("sample.py", ["--ckpt", "none"]),
    ):
        for debug in ([], ["--debug"]):
            done = run(script, *flags, *debug, cwd=tmp_path)
            assert done.returncode == 2 and "error: " in done.stderr
            assert ("Traceback" in done.stderr) == bool(debug)
            assert debug or len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="these limits are Linux's")
@pytest.mark.parametrize("script", ["data.py", "train.py", "sample.py"])
def test_full_disk(made, tmp_path, script):
    """No file may be longer than 9,000 bytes: what was there before stays, nothing half written
    does."""
    import resource

    flags = ["--data", made / "subject", "--out", tmp_path, *SMALL]
    if script == "data.py":
        flags = raw(tmp_path)
    if script == "sample.py":
        flags = ["--ckpt", made / "ckpt.pt", "--out", tmp_path, "--steps", 2, "--samples", 2]
    assert run(script, *flags).returncode == 0
    for name in ("earlier-1", "direct-1"):
        assert not (tmp_path / name).exists()
    found = contents(tmp_path)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    done = run(script, *flags, preexec_fn=limit)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "File too large" in done.stderr, done.stderr
    assert ("ckpt.pt" if script == "train.py" else ".npy") in done.stderr
    kept = {}
    for path, content in found.items():
        aside = script == "train.py" and path.parent == tmp_path
        kept[tmp_path / "earlier-1" / path.name if aside else path] = content
    left = contents(tmp_path)
    logs = {path for path in (*kept, *left) if path.name == "log.jsonl"}
    assert left.keys() - logs == kept.keys() - logs
    assert all(left[path] == kept[path] for path in left.keys() - logs)
