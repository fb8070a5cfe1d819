"""The model of several people, tuned to one more: what begins as the group's, what is the person's
own, and what never reaches it."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY, read_json
from test_people import whitened

import beyond
import data
import sample
import train
from people import adapt
from tools import subjects
from tools.errors import Problem

SIZES = TINY | {"runs": 3, "frames": 120}  # 96 s a run
FAST = ["--steps", "3", "--samples", "2", "--device", "cpu"]
MINUTES = 2.0  # 150 frames: the first run, and 30 of the second
COUNT = 150


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """S1, S2 and S3 of a group (S3 left out), and S4."""
    root = tmp_path_factory.mktemp("people")
    return [data.synthetic(str(root / f"S{i}"), seed=i, **SIZES) for i in range(1, 5)]


def read(out):
    return torch.load(out / "ckpt.pt", weights_only=True)


@pytest.fixture(scope="module")
def group(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("group")
    flags = "--closed-form", "--steps", "6", "--leave-out", "S3"
    train.main(["--data", *folders[:3], "--out", str(out), *SMALL, *flags])
    return out


def adapted(group, folder, out, *flags, minutes=MINUTES):
    """The checkpoint; a flag given twice is what was given last."""
    begin = "--adapt", minutes, "--ckpt", group / "ckpt.pt", "--data", folder, "--out", out
    small = "--device", "cpu", "--batch-size", 4, "--steps", 4, "--warmup", 0
    train.main([str(flag) for flag in (*begin, *small, *flags)])
    return read(out)


@pytest.fixture(scope="module")
def s4(folders, group, tmp_path_factory):
    out = tmp_path_factory.mktemp("s4")
    adapted(group, folders[3], out)
    return out


def weights(ckpt):
    known = {f"prior.{name}": value for name, value in ckpt["measured"]["prior"].items()}
    parts = ckpt["model"], ckpt["autoencoder"], ckpt["normaliser"], known
    return {name: value for part in parts for name, value in part.items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


def changed(folder, to, change=None, **said):
    """A copy of a subject, with other frames and EEG, and other things in its subject.json."""
    shutil.copytree(folder, to)
    for name in ("fmri", "eeg") if change else ():
        np.save(f"{to}/{name}.npy", change(np.load(f"{to}/{name}.npy")))
    meta = read_json(f"{to}/subject.json") | {"checksums": {"fmri": str(to)}} | said
    with open(f"{to}/subject.json", "w", encoding="utf-8") as f:
        json.dump(meta, f)
    return str(to)


# ---- Which frames ----------------------------------------------------------------------


def parts(folder, minutes):
    person = data.Subject(folder)
    found = adapt.split(person, {"adapt": minutes, "frames": 6, "group": {"checksums": []}})
    return person, [np.array(found[name]) for name in ("train", "val", "test")]


@pytest.mark.parametrize("minutes", [1, 1.5, 2, 3.5])
def test_minutes_decide_how_many_frames(folders, minutes):
    person, (training, val, test) = parts(folders[3], minutes)
    count = round(minutes * 60 / 0.8)
    assert np.array_equal(np.r_[training, val], np.arange(count))
    assert len(val) == count // 5
    border = next(stop for _, stop in person.runs if count <= stop)
    after = (np.arange(count, border) - (count - 1)) * person.tr
    unused = count + np.flatnonzero(after <= 16)  # BOLD of what happened in these minutes
    assert len(unused) == min(20, border - count)
    assert np.array_equal(np.setdiff1d(np.arange(count, len(person.fmri)), test), unused)
    assert not np.intersect1d(test, np.r_[training, val]).size


def test_what_is_unusable_or_unused_stays_so(folders, tmp_path):
    T = len(data.Subject(folders[3]).fmri)
    split = {"train": list(range(10, 200)), "test": list(range(200, T - 5))}
    odd = changed(folders[3], tmp_path / "S4", split=split, unusable=[12, 250])
    _, (training, val, test) = parts(odd, 1)
    learned = np.r_[training, val]
    assert len(learned) == 75 and learned[0] == 10 and 12 not in learned
    assert test[-1] == T - 6 and 250 not in test


# ---- What begins as the group's --------------------------------------------------------


def test_training_begins_with_the_groups_weights(folders, group, s4, tmp_path):
    before = read(group)
    ckpt = adapted(group, folders[3], tmp_path, "--steps", 1, "--lr", 1e-12)
    assert ckpt["config"] == before["config"] | {"members": 1}
    known = "linear.", "own.", "prior.", "share"  # in closed form
    learned = [name for name in before["model"] if not name.startswith(known)]
    learned = [name for name in learned if "running" not in name and "batches" not in name]
    for name in learned:
        torch.testing.assert_close(ckpt["model"][name], before["model"][name], rtol=0, atol=1e-9)
    assert len(learned) > 10
    tuned = read(s4)["model"]
    assert any(not torch.allclose(tuned[name], before["model"][name]) for name in learned)
    for found in (ckpt, read(s4)):
        assert same(found["autoencoder"], before["autoencoder"])


def test_settings_are_the_groups_but_those_of_training(folders, group, s4):
    before = read(group)["settings"]
    after = read(s4)["settings"]
    assert {name for name in before if before[name] != after.get(name)} <= {*adapt.OWN}
    assert after["width"] == before["width"] == 16 and after["latent_dim"] == 6
    assert after["lr"] == before["lr"] / 3
    assert after["test"] is None and after["data"] == [folders[3]]


def test_the_closed_form_of_all_stays_and_an_own_part_is_added(group, s4):
    before = read(group)["model"]
    after = read(s4)["model"]
    assert before["linear.weight"].any() and before["own.shares"].shape == (3, 2)
    for name in ("chosen", "mean", "std", "weight", "bias"):
        assert torch.equal(after[f"linear.{name}"], before[f"linear.{name}"])
    name = "linear.residual.autocovariance"  # what both together miss
    assert not torch.equal(after[name], before[name])
    assert after["own.shares"].shape == (1, 2) and after["own.each.0.weight"].any()


# ---- What never reaches it -------------------------------------------------------------


def test_the_test_part_reaches_nothing_and_the_minutes_do(folders, group, s4, tmp_path):
    before = weights(read(s4))

    def late(x):
        return np.concatenate([x[:COUNT], 1000 + 7 * x[COUNT:]])

    def early(x):
        first = x[:10] * np.linspace(0.5, 2, 10).reshape(-1, *[1] * (x.ndim - 1))
        return np.concatenate([first.astype(x.dtype), x[10:]])

    after = changed(folders[3], tmp_path / "late/S4", late)
    assert same(before, weights(adapted(group, after, tmp_path / "a")))
    other = changed(folders[3], tmp_path / "early/S4", early)
    found = weights(adapted(group, other, tmp_path / "b"))
    for name in ("mean", "own.each.0.weight", "own.shares", "share", "prior.autocovariance"):
        assert not torch.equal(found[name], before[name]), name


def test_z_scores_are_of_the_persons_training_frames(folders, group, s4):
    settings = read(s4)["settings"]
    person = subjects.opened(data, beyond, None, settings, read(s4))
    assert [span for part in ("train", "val") for span in person.segments(part)] == [
        (0, 120),
        (120, 150),
    ]
    x = data.Subject(folders[3]).fmri.astype(np.float64)
    own = (x - x[:120].mean(0)) / x[:120].std(0)
    assert np.allclose(person.fmri[:], own, atol=1e-4)
    scale = np.median(np.abs(data.Subject(folders[3]).eeg[:120]).max(2), 0)
    eeg = (data.Subject(folders[3]).eeg / scale[:, None]).clip(-5, 5)
    assert np.allclose(person.eeg[:], whitened(eeg, eeg[:120]), atol=1e-4)


# ---- Used, resumed ---------------------------------------------------------------------


def test_its_own_later_frames_are_scored(folders, s4, tmp_path):
    out = str(tmp_path)
    sample.main(["--ckpt", str(s4 / "ckpt.pt"), "--out", out, *FAST])
    _, (_, _, test) = parts(folders[3], MINUTES)
    assert np.array_equal(np.load(tmp_path / "direct/frames.npy"), test)
    assert read_json(tmp_path / "direct/metrics.json")["people"]["scores"].keys() >= {"S4"}


def test_auto_trains_again_on_all_of_the_minutes(folders, tmp_path):
    flags = "--steps 4 --width 16 --heads 2 --depth 1 --latent-dim 6 --batch-size 4 --frames 6"
    out = tmp_path / "group"
    common = "--device", "cpu", *flags.split()
    train.main(["--data", *folders[:2], "--out", str(out), "--eeg-power", "both", *common])
    ckpt = adapted(out, folders[3], tmp_path / "s4", "--warmup", 1)
    settings = ckpt["settings"]
    assert settings["no_validation"] and settings["again"] == 1
    assert settings["eeg_power"] == "both" and settings["epochs"] == adapt.TUNING["epochs"]
    person = subjects.opened(data, beyond, None, settings, ckpt)
    assert person.segments("train", False) == [(0, 120), (120, 150)]
    alone = adapted(out, folders[3], tmp_path / "alone", "--steps", 0)
    assert (alone["model"]["share"] == 1).all()
    again = adapted(tmp_path / "group", folders[3], tmp_path / "more", "--no-refit")
    assert not again["settings"]["no_validation"]


def test_resumed_as_if_nothing_had_happened(folders, group, tmp_path):
    out = tmp_path / "out"
    flags = "--lr", "1e-3"
    adapted(group, folders[3], out, *flags, "--steps", 2)
    whole = adapted(group, folders[3], tmp_path / "whole", *flags, "--steps", 5)
    state = torch.load(out / "last.pt", weights_only=True)
    state["settings"]["steps"] = 5
    torch.save(state, out / "last.pt")
    train.main(["--out", str(out), "--resume", "--device", "cpu"])
    assert same(weights(whole), weights(read(out))) and read(out)["step"] == whole["step"]


def test_who_was_left_out_can_be_adapted_to(folders, group, tmp_path):
    assert adapted(group, folders[2], tmp_path)["settings"]["data"] == [folders[2]]


# ---- What cannot be --------------------------------------------------------------------


def refused(capsys, *flags):
    with pytest.raises(SystemExit) as ended:
        train.main([str(flag) for flag in flags])
    assert ended.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def test_what_cannot_be_adapted(folders, group, s4, tmp_path, capsys):
    ckpt = "--ckpt", group / "ckpt.pt"
    who = "--data", folders[3], "--out", tmp_path / "out", "--device", "cpu"
    assert "--ckpt" in refused(capsys, "--adapt", 2, *who)
    assert "--data" in refused(capsys, "--adapt", 2, *ckpt)
    assert "--data" in refused(capsys, "--adapt", 2, *ckpt, "--data", *folders[2:4])
    assert "--adapt" in refused(capsys, *ckpt, *who)
    line = refused(capsys, "--adapt", 0, *ckpt, *who)
    assert "sample.py --ckpt" in line and "more than 0" in line
    assert "--test" in refused(capsys, "--adapt", 2, *ckpt, *who, "--test", "run-1")
    line = refused(capsys, "--adapt", 0.1, *ckpt, *who)
    assert "8 frames" in line and "window of 6" in line
    line = refused(capsys, "--adapt", 2, "--ckpt", s4 / "ckpt.pt", *who)
    assert "one person" in line
    slow = changed(folders[3], tmp_path / "S8", tr=1.6)
    assert "tr" in refused(capsys, "--adapt", 3, *ckpt, *who, "--data", slow)
    shutil.copytree(folders[3], tmp_path / "bare")
    (tmp_path / "bare/rois.npz").unlink()
    fewer = changed(tmp_path / "bare", tmp_path / "S9", lambda x: x[:, 1:])
    assert "vertices" in refused(capsys, "--adapt", 2, *ckpt, *who, "--data", fewer)


def test_of_the_group_only_who_was_left_out_can_be_adapted_to(folders, group, tmp_path, capsys):
    ckpt = "--adapt", MINUTES, "--ckpt", group / "ckpt.pt", "--out", tmp_path
    line = refused(capsys, *ckpt, "--data", folders[0])
    assert "a part of their own" in line and f"sample.py --ckpt {group / 'ckpt.pt'}" in line

    known = adapt.load(group / "ckpt.pt")["settings"]
    settings = known | {"adapt": MINUTES, "ckpt": str(group / "ckpt.pt"), "data": folders[:1]}
    settings |= {"test": None, "val": None}
    sums = [data.Subject(folder).meta["checksums"] for folder in folders[:3]]
    for test, learned_from in ((["S1"], sums), (None, sums[1:])):
        settings["group"] = {"test": test, "val": None, "checksums": learned_from}
        person = subjects.opened(data, beyond, folders[:1], settings).people[0]
        parts = person.meta["split"]  # all that comes later is the test, but for 16 s
        assert parts["train"] + parts["val"] == list(range(COUNT))
        assert parts["test"] == list(range(COUNT + 20, 360))
    settings["group"] = {"test": None, "val": None, "checksums": sums}
    with pytest.raises(Problem):
        subjects.opened(data, beyond, folders[:1], settings)
