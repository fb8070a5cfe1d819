"""Does it work at any size? Many processes, recordings too large for memory, and memory that runs out."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import speed  # noqa: E402

import data  # noqa: E402  of the folder above, found by speed
import sample as sampling  # noqa: E402
import train  # noqa: E402
from tools import machine  # noqa: E402

HERE = os.path.dirname(os.path.abspath(train.__file__))
SMALL = [
    "--device",
    "cpu",
    "--preset",
    "tiny",
    "--width",
    "16",
    "--heads",
    "2",
    "--depth",
    "1",
    "--eeg-dim",
    "8",
    "--eeg-filters",
    "4",
    "--eeg-bands",
    "4",
    "--latent-dim",
    "6",
    "--batch-size",
    "5",
    "--frames",
    "6",
    "--context",
    "2",
    "--warmup",
    "2",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return data.synthetic(
        str(tmp_path_factory.mktemp("size") / "tiny"),
        runs=6,
        frames=60,
        channels=4,
        fs=50,
        side=8,
        sources=4,
        background=3,
    )


def log(folder):
    return [
        [line["loss"], line["val_loss"]] for line in map(json.loads, open(folder / "log.jsonl"))
    ]


@pytest.mark.parametrize(
    "flags",
    [
        ["--eeg-dropout", "0", "--eeg-power", "log"],
        ["--eeg-encoder", "conv", "--no-vary", "--predict", "eps"],
    ],
)
def test_two_processes_do_what_one_does(tiny, tmp_path, flags):
    """Shares of 5 windows are unequal, and batch norm sees all of them. (Dropout is drawn by each process for itself.)"""
    together = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for out, command in (("one", [sys.executable]), ("two", together)):
        for script, more in (
            (
                "train.py",
                [
                    "--data",
                    tiny,
                    "--steps",
                    "6",
                    "--lr",
                    "3e-3",
                    *SMALL,
                    *flags,
                    "--out",
                    tmp_path / out,
                ],
            ),
            (
                "sample.py",
                [
                    "--ckpt",
                    tmp_path / "one/ckpt.pt",
                    "--out",
                    tmp_path / out,
                    "--steps",
                    "3",
                    "--samples",
                    "2",
                    "--window",
                    "12",
                    "--device",
                    "cpu",
                ],
            ),
        ):
            subprocess.run(
                [*map(str, [*command, os.path.join(HERE, script), *more])],
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
    np.testing.assert_allclose(log(tmp_path / "two"), log(tmp_path / "one"), rtol=1e-4)
    one, two = (
        torch.load(tmp_path / out / "last.pt", weights_only=True)["model"] for out in ("one", "two")
    )
    for name, weight in one.items():  # running statistics of batch norm among them
        torch.testing.assert_close(two[name], weight, atol=2e-3, rtol=2e-3, msg=name)
    for name in ("recon", "std"):
        one, two = (np.load(tmp_path / out / "direct" / f"{name}.npy") for out in ("one", "two"))
        np.testing.assert_allclose(two, one, atol=1e-3)


def test_eeg_read_from_disk_is_that_kept_in_memory(tiny, tmp_path, monkeypatch):
    for out, room in (("kept", 2**30), ("read", 0)):
        monkeypatch.setattr(machine, "EEG_ON_CPU", room)
        train.main(["--data", tiny, "--steps", "4", *SMALL, "--out", str(tmp_path / out)])
    assert log(tmp_path / "kept") == log(tmp_path / "read")


def test_runs_drawn_one_after_the_other(tiny, tmp_path, monkeypatch):
    """However long the session, sample.py holds the latents of a few runs; here one of three. The frames stay in their places:
    with almost all of each observed, what is not depends little on the noise."""
    split = json.load(open(os.path.join(tiny, "subject.json")))
    frames = list(range(split["runs"][3][0], split["runs"][5][1]))
    split["split"] = {"test": frames, "train": list(range(frames[0]))}
    folder = tmp_path / "three"
    folder.mkdir()
    for name in ("fmri", "eeg"):
        os.symlink(os.path.join(tiny, f"{name}.npy"), folder / f"{name}.npy")
    json.dump(split, open(folder / "subject.json", "w"))
    train.main(["--data", str(folder), "--steps", "2", *SMALL, "--out", str(tmp_path)])
    mask, recon = np.arange(64) % 8 != 0, {}
    np.save(tmp_path / "mask.npy", mask)
    for size in (2**25, 1):
        monkeypatch.setattr(sampling, "LATENTS_AT_ONCE", size)
        sampling.main(
            [
                "--ckpt",
                str(tmp_path / "ckpt.pt"),
                "--observe",
                str(tmp_path / "mask.npy"),
                "--steps",
                "5",
                "--device",
                "cpu",
            ]
        )
        recon[size], truth = (
            np.load(tmp_path / "interrecon" / f"{name}.npy") for name in ("recon", "truth")
        )
        assert np.array_equal(recon[size][:, mask], truth[:, mask])
    assert np.corrcoef(recon[1][:, ~mask].ravel(), recon[2**25][:, ~mask].ravel())[0, 1] > 0.99


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
@pytest.mark.parametrize(
    "script, flags, advice",
    [
        (
            "train.py",
            ["--width", "16384", "--depth", "8"],
            "--batch-size from 5 to 2, then --width from 16384 to 8192",
        ),
        (
            "sample.py",
            ["--samples", "100000", "--steps", "1"],
            "--batch-size from 16 to 8, then --samples from 100000 to 50000",
        ),
    ],
)
def test_out_of_memory_says_what_to_lower(tiny, tmp_path, script, flags, advice):
    import resource

    if script == "sample.py":
        train.main(["--data", tiny, "--steps", "1", *SMALL, "--out", str(tmp_path)])
        flags = ["--ckpt", str(tmp_path / "ckpt.pt"), "--device", "cpu", *flags]
    else:
        flags = ["--data", tiny, *SMALL, *flags, "--out", str(tmp_path)]
    limit = 3 * 2**30
    done = subprocess.run(
        [sys.executable, os.path.join(HERE, script), *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: out of memory on cpu. Lower " + advice in done.stderr


def test_sampling_with_what_is_computed_once_is_the_same(monkeypatch):
    monkeypatch.setattr(
        train, "PRESETS", {"paper": dict(latent_dim=16, eeg_dim=8, width=32, depth=2, heads=4)}
    )
    with torch.no_grad():
        for context in (0, 2):
            ways = speed.samplers(torch.device("cpu"), 3, 2, context, 4, K=5)
            once, naive = ways["sample.py"](), ways["naive, products as in sample.py"]()
            torch.testing.assert_close(once, naive, atol=1e-4, rtol=1e-4)
            assert naive.std() > 0.1
