"""Real signals, sent to real processes: nothing whole is lost, nothing half is taken for whole, and
what goes on is the same."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import HERE, SMALL, contents, read_json, read_log

import data
import sample
import train
from tools import checkpoints

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as on Linux and macOS")
KILLS = 20


def start(script, *flags):
    argv = [sys.executable, os.path.join(HERE, script), *map(str, flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=env)


def until(condition, process, seconds=120):
    """Wait until a condition holds, while the process runs."""
    end = time.time() + seconds
    alive = getattr(process, "is_alive", None) or (lambda: process.poll() is None)
    while not condition() and alive() and time.time() < end:
        time.sleep(0.005)
    return condition()


def steps(folder):
    """Those of the checkpoints in a folder, which must be whole."""
    return {
        name: torch.load(folder / name, weights_only=True)["step"]
        for name in ("last.pt", "ckpt.pt")
        if (folder / name).exists()
    }


def same(a, b):
    """Equality of nested checkpoints, to the last bit."""
    if isinstance(a, dict):
        names = a.keys() - {"out", "resume"}
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in names)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if torch.is_tensor(a):
        return bool((a == b).all())
    return a == b


def end_alike(*folders):
    """Check that two runs of training ended with the same checkpoints and log; returns the log."""
    for name in ("last.pt", "ckpt.pt"):
        one, two = (torch.load(folder / name, weights_only=True) for folder in folders)
        assert same(one, two), name
    one, two = (read_log(folder) for folder in folders)
    assert one == two
    return one


@pytest.mark.parametrize(
    "flags", [[], ["--autoencoder", "joint", "--predict", "eps", "--eeg-encoder", "conv"]]
)
def test_resume_is_bit_exact(tiny, tmp_path, monkeypatch, flags):
    flags = ["--data", tiny, "--steps", "8", *SMALL, *flags]
    train.main([*flags, "--out", str(tmp_path / "whole")])
    save = checkpoints.save
    saved = []

    def save_and_die(path, state):
        save(path, state)
        saved.append(path)
        if sum(p.endswith("last.pt") for p in saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save", save_and_die)
    with pytest.raises(SystemExit):
        train.main([*flags, "--out", str(tmp_path / "parts")])
    monkeypatch.setattr(checkpoints, "save", save)
    assert torch.load(tmp_path / "parts/last.pt", weights_only=True)["step"] == 3
    train.main(["--out", str(tmp_path / "parts"), "--resume", "--device", "cpu"])
    log = end_alike(tmp_path / "whole", tmp_path / "parts")
    assert len(log) == 8 and log[-1]["val_loss"] is not None


def forked(server, *flags):
    """train.py in a process of its own, which need not import torch first."""
    process = server.Process(target=train.main, args=([*map(str, flags)],))
    process.start()
    return process


def test_twenty_kills_at_random_moments(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["train"])
    draw = random.Random(time.time_ns())
    flags = ["--data", tiny, *SMALL, "--steps", 2000]
    whole = forked(server, *flags, "--out", tmp_path / "whole")
    out = tmp_path / "killed"
    last = out / "last.pt"
    reached = 0

    def saved():
        return last.stat().st_mtime_ns if last.exists() else 0

    for kill in range(KILLS):
        before = saved()
        how = ["--resume", "--device", "cpu"] if before else flags
        process = forked(server, "--out", out, *how)
        if kill % 2:  # any time of its life, or around a time at which it writes
            time.sleep(draw.uniform(0, 0.8))
        else:
            assert until(lambda then=before: saved() != then, process)
            time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL  # it was not done
        found = steps(out)
        assert found.get("last.pt", 0) >= reached, "a checkpoint went back"
        reached = found.get("last.pt", 0)
    ended = forked(server, "--out", out, "--resume", "--device", "cpu")
    ended.join()
    whole.join()
    assert ended.exitcode == whole.exitcode == 0
    assert len(end_alike(tmp_path / "whole", out)) == 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step_and_says_how_to_go_on(tiny, tmp_path, number):
    flags = ["--data", tiny, *SMALL, "--steps", 300]
    process = start("train.py", *flags, "--out", tmp_path / "stopped")
    assert until((tmp_path / "stopped/log.jsonl").exists, process)
    time.sleep(0.1)
    process.send_signal(number)
    told, errors = process.communicate()
    step = steps(tmp_path / "stopped")["last.pt"]
    assert process.returncode == 128 + number and "Traceback" not in errors
    assert f"stopped at step {step} of 300, saved; to go on: python train.py --out" in told
    assert "--resume" in told
    train.main(["--out", str(tmp_path / "stopped"), "--resume", "--device", "cpu"])
    train.main([*map(str, flags), "--out", str(tmp_path / "whole")])
    end_alike(tmp_path / "stopped", tmp_path / "whole")


def test_stopped_before_the_first_step(tiny, tmp_path):
    process = start("train.py", "--data", tiny, *SMALL, "--out", tmp_path / "out")
    assert until((tmp_path / "out").exists, process)  # its first act, before data are read
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors


def test_terminated_while_sampling_it_leaves_nothing(tiny, tmp_path):
    train.main(["--data", tiny, *SMALL, "--steps", "2", "--out", str(tmp_path)])
    flags = "--ckpt", tmp_path / "ckpt.pt", "--steps", 1000, "--device", "cpu"
    process = start("sample.py", *flags, "--out", tmp_path / "results")
    assert until((tmp_path / "results/direct.partial").exists, process)
    time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 143 and "Traceback" not in errors and "interrupted" in errors
    assert not os.listdir(tmp_path / "results")


def test_a_half_prepared_subject_is_never_there(tmp_path):
    """Killed at random moments, and prepared again; the folder is absent or whole."""
    rng = np.random.default_rng(0)
    draw = random.Random(time.time_ns())
    raw = tmp_path / "raw"
    raw.mkdir()
    for run in (1, 2):
        np.save(raw / f"run-{run}_bold.npy", rng.standard_normal((1000, 5000), np.float32))
        np.save(raw / f"run-{run}_eeg.npy", rng.standard_normal((8, 100_000), np.float32))
    flags = ["--bold", f"{raw}/*_bold.npy", "--eeg", f"{raw}/*_eeg.npy", "--tr", "1", "--fs", "100"]
    out = tmp_path / "subject"
    partial = tmp_path / "subject.partial"
    for _ in range(6):
        process = start("data.py", *flags, "--out", out)
        until(partial.exists, process)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        process.wait()
        if out.exists():
            data.Subject(str(out))
            assert len(data.Subject(str(out)).fmri) == 2 * 996
            break
    process = start("data.py", *flags, "--out", out)
    process.communicate()
    assert process.returncode == 0 and not partial.exists()
    x = np.load(raw / "run-2_bold.npy")
    assert np.array_equal(data.Subject(str(out)).fmri[-996:], x[4:])


def test_a_second_run_keeps_the_first_result(tiny, tmp_path):
    """Of training, sampling and preparing; and two at a time cannot write into one folder."""
    out = tmp_path / "out"
    flags = ["--data", tiny, *SMALL, "--out", out]
    train.main([*map(str, flags), "--steps", "2"])
    trained = contents(out)
    long = start("train.py", *flags, "--steps", 4000, "--seed", 1)
    assert until((out / "earlier-1").exists, long)
    assert until((out / "last.pt").exists, long)
    second = start("train.py", *flags)
    _, told = second.communicate()
    assert second.returncode == 2 and "another process is writing there" in told
    long.kill()
    long.wait()
    kept = {out / "earlier-1" / path.name: content for path, content in trained.items()}
    assert contents(out / "earlier-1") == kept
    ckpt = ["--ckpt", out / "earlier-1/ckpt.pt", "--out", tmp_path, "--samples", 2]
    sample.main([*map(str, ckpt), "--steps", "2"])
    first = contents(tmp_path / "direct")
    process = start("sample.py", *ckpt, "--steps", 1000)
    assert until((tmp_path / "direct.partial").exists, process)
    process.kill()
    process.wait()
    assert contents(tmp_path / "direct") == first  # a killed run has touched nothing
    process = start("sample.py", *ckpt, "--steps", 3)
    told, _ = process.communicate()
    assert process.returncode == 0 and "it is kept in" in told and "direct-1" in told
    kept = {tmp_path / "direct-1" / path.name: content for path, content in first.items()}
    assert contents(tmp_path / "direct-1") == kept
    assert read_json(tmp_path / "direct/metrics.json")["steps"] == 3
    assert not (tmp_path / "direct.partial").exists()
