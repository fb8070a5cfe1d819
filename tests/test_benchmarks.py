"""Is what compares right itself? Closed forms for the scores, a subject that every rival can learn,
and the whole table."""

import argparse
import contextlib
import json
import os
import shutil
import time

import baselines
import between
import decoder_frames
import growth
import numpy as np
import pooling
import pytest
import stitching
import subjects
import table
import torch
from conftest import SMALL, command

import data
import sample
import train
from recordings import prepared
from tools import errors, files
from tools.errors import Problem

# ---- Scores ----------------------------------------------------------------------------


def test_identification_against_counting():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((7, 40))
    guess = truth + 2 * rng.standard_normal((7, 40))
    r = np.corrcoef(guess, truth)[:7, 7:]
    counted = [1 + sum(r[i, j] > r[i, i] for j in range(7)) for i in range(7)]
    assert table.ranks(guess, truth).tolist() == counted
    assert table.ranks(truth, truth).tolist() == [1] * 7
    # Who knows nothing is in the middle, and has no hit; who always says the same hits by chance.
    assert table.ranks(0 * truth, truth).tolist() == [4] * 7
    assert sorted(table.ranks(truth[[0] * 7], truth)) == list(range(1, 8))


def test_global_signal_is_regressed_out_like_least_squares():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((50, 9)) + rng.standard_normal((50, 1)) + 3).astype(np.float32)
    valid = np.arange(9) < 8
    g = x[:, valid].mean(1)
    design = np.stack([np.ones(50), g], 1)
    beta = np.linalg.lstsq(design, x, rcond=None)[0][1]
    less = x - (g - g.mean())[:, None] * beta
    assert np.allclose(table.without_global(x, valid), less, atol=1e-5)
    # No global signal: nothing to take out.
    assert np.array_equal(table.without_global(0 * x, valid), 0 * x)


def test_bootstrap_interval_is_that_of_the_mean():
    rng = np.random.default_rng(2)
    frames = rng.standard_normal((3000, 2))
    frames[::7] = np.nan  # observed frames do not count
    drawn = table.resampled(frames, [(0, 3000)])[:, 0]
    expected = np.nanstd(frames[:, 0]) / np.sqrt(np.isfinite(frames[:, 0]).sum())
    assert abs(drawn.std() / expected - 1) < 0.2  # 100 units: their variance is known to 15%
    assert abs(drawn.mean() - np.nanmean(frames[:, 0])) < 0.2 * expected
    slow = np.repeat(rng.standard_normal((100, 1)), 30, 0)  # 30 frames in unison are one witness
    drawn = table.resampled(slow, [(0, 3000)])[:, 0]
    assert abs(drawn.std() / (slow.std() / 10) - 1) < 0.2
    # Six runs are drawn whole: six times their mean is a sum of six of the numbers 0 to 5.
    runs = np.repeat(np.arange(6.0), 10)[:, None]
    sums = 6 * table.resampled(runs, [(10 * i, 10 * i + 10) for i in range(6)])[:, 0]
    assert set(np.round(sums)) <= set(range(31)) and np.allclose(sums, np.round(sums))


def test_frame_table_scores_regions_and_leaves_out_what_was_seen():
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((40, 12)).astype(np.float32) for _ in range(2))
    part = np.arange(12) < 5
    regions = {"whole": np.ones(12, bool), "part": part}
    segments = [(0, 25), (30, 45)]
    seen = np.arange(40) % 4 == 0
    given = segments, regions, [10]
    found = table.frame_table(lambda rows: y[rows], lambda rows: x[rows], *given, seen)
    assert np.isnan(found["part"][seen]).all() and set(found) == {"whole", "part"}
    mse = ((x - y)[~seen][:, part] ** 2).mean(1)
    assert np.allclose(found["part"][~seen, 0], mse, atol=1e-5)
    r = [np.corrcoef(x[t, part], y[t, part])[0, 1] for t in np.flatnonzero(~seen)]
    assert np.allclose(found["part"][~seen, 1], r, atol=1e-5)

    found = table.frame_table(lambda rows: x[rows], lambda rows: x[rows], *given)
    # Windows are of one run, and whole ones only.
    assert found["whole/rank-10"].tolist() == [[1, 2], [1, 2], [1, 1]]
    assert np.allclose(found["whole"], [0, 1, 1, 0, 1], atol=1e-5)
    rows = table.summary({"neuroframes": found, "other": found}, segments, 10)["other"]["part"]
    assert rows["ahead"]["mean"] == 0
    assert rows["identified"]["chance_top_1"] == pytest.approx((0.5 + 0.5 + 1) / 3)


# ---- Rivals ----------------------------------------------------------------------------


def test_sparsemax_is_the_projection_onto_the_simplex():
    """It is max(u - tau, 0) with the tau at which it sums to 1: found by bisection."""
    u = 2 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low = u.min(1, keepdim=True).values - 1
    high = u.max(1, keepdim=True).values
    for _ in range(60):
        tau = (low + high) / 2
        more = (u - tau).clamp(min=0).sum(1, keepdim=True) > 1
        low = torch.where(more, tau, low)
        high = torch.where(more, high, tau)
    assert torch.allclose(baselines.sparsemax(u), (u - low).clamp(min=0), atol=1e-12)
    assert (baselines.sparsemax(u) == 0).any()


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """16 vertices that follow a channel's mean voltage and another's power at the frame's own
    window: all can learn it."""
    folder = str(tmp_path_factory.mktemp("learn") / "subject")
    rng = np.random.default_rng(0)
    W, frames = 40, 200
    meta = {"tr": 0.8, "fs": 50, "delay": 0.0}
    meta |= {"first_volume": [0] * 4, "frames_per_run": [frames] * 4}
    maps = rng.standard_normal((2, 16))
    with prepared.writing(folder, meta, 16, 2, W) as out:
        for _ in range(4):
            a, b = (data.slow_noise(rng, frames, 1, 2.0, 0.8)[:, 0] for _ in range(2))
            eeg = 0.05 * rng.standard_normal((frames, 2, W))
            eeg[:, 0] += 0.3 * a[:, None]
            eeg[:, 1] += np.exp(0.5 * b)[:, None] * np.sin(2 * np.pi * 10 * np.arange(W) / 50)
            fmri = 100 + np.stack([a, b], 1) @ maps + 0.1 * rng.standard_normal((frames, 16))
            out.add(fmri, eeg)
        np.savez(out.path("rois.npz"), part=np.arange(16) < 6)
    return folder


def settings(subject, out, rival, no_validation=False):
    """Flags of baselines.py."""
    return argparse.Namespace(
        data=subject,
        out=str(out),
        rival=rival,
        seed=0,
        shrink=8,
        no_validation=no_validation,
        device=torch.device("cpu"),
    )


REFIT = ("ridge", "cnn_tc")  # of both kinds one


@pytest.mark.parametrize("rival", [name for name in baselines.RIVALS if name != "cnn_tag"])
def test_rivals_learn(subject, tmp_path, monkeypatch, rival):
    """A linear map of voltage finds the first component, spectra the second; neither the whole.
    (The large networks learn that in two epochs, of small batches.)"""
    monkeypatch.setattr(baselines.E2fNet, "batch_size", 4)
    monkeypatch.setattr(baselines.E2fNet, "epochs", 2)
    s = data.Subject(subject)
    refit = rival in REFIT
    folder = baselines.run(settings(subject, tmp_path, rival, refit))
    recon = np.load(os.path.join(folder, "recon.npy"))
    normaliser = data.Normaliser.measure(s, s.segments("train", validation=not refit))
    truth = normaliser.zscore(s.fmri[np.load(tmp_path / rival / "frames.npy")])
    assert recon.shape == truth.shape == (200, 16)
    assert ((recon - truth) ** 2).mean() < 0.85 * (truth**2).mean()


def test_cnn_tag_fits_what_it_is_shown(subject, tmp_path):
    """Of one power beside the other channels', which is all that z-scores over channels leave, two
    channels say nothing; so its windows are given: eight of them, to be learned by heart."""
    s = data.Subject(subject)
    normaliser = data.Normaliser.measure(s, [(0, 8)])
    a = settings(subject, tmp_path, "cnn_tag")
    net = baselines.CNNTAG(s, normaliser, [(0, 8)], str(tmp_path), a)
    net.windows = np.random.default_rng(0).standard_normal((200, 2, 134)).astype(np.float32)
    batch = net.batch(*(u[:8] for u in baselines.neighbours([(0, 200)], net.lags)))
    losses = [net.update(*batch) for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("frames", [30, 400])  # fewer than features, and more
def test_ridge_is_the_normal_equations(frames):
    rng = np.random.default_rng(4)
    ridge = object.__new__(baselines.Ridge)
    ridge.X = rng.standard_normal((frames, 8))
    Y = rng.standard_normal((frames, 5)).astype(np.float32)
    ridge.subject = argparse.Namespace(fmri=Y)
    ridge.normaliser = data.Normaliser(np.zeros(5), np.ones(5), np.ones(1))
    ridge.fit([(0, frames)], None, 50.0)
    out = np.zeros((frames, 5), np.float32)
    ridge.predict([(0, frames)], out)
    _, X = ridge.features([(0, frames)])
    X = (X - X.mean(0)) / X.std(0)
    weights = np.linalg.solve(X.T @ X + 50 * np.eye(X.shape[1]), X.T @ (Y - Y.mean(0)))
    assert np.allclose(out, X @ weights + Y.mean(0), atol=1e-4)


@pytest.mark.parametrize("refit", [False, True])
def test_a_killed_rival_goes_on(subject, tmp_path, monkeypatch, refit):
    monkeypatch.setattr(baselines.CNNTC, "epochs", 3)
    whole = baselines.run(settings(subject, tmp_path / "whole", "cnn_tc", refit))
    clock = iter(range(0, 10**9, 100))  # every epoch is more than a minute: saved
    monkeypatch.setattr(time, "time", lambda: next(clock))
    update = baselines.CNNTC.update
    calls = []

    def dies(self, s, x):
        calls.append(1)
        if len(calls) == 2.5 * 100 * (1 + refit):
            raise KeyboardInterrupt
        return update(self, s, x)

    monkeypatch.setattr(baselines.CNNTC, "update", dies)
    again = settings(subject, tmp_path / "cut", "cnn_tc", refit)
    with pytest.raises(KeyboardInterrupt):
        baselines.run(again)
    assert "fit.pt" in os.listdir(tmp_path / "cut" / "cnn_tc")
    cut = baselines.run(again)
    recon, recon_of_cut = (np.load(os.path.join(folder, "recon.npy")) for folder in (whole, cut))
    assert np.array_equal(recon, recon_of_cut)
    made = ["chosen.json", "frames.npy", "made_from.json", "recon.npy"]
    assert sorted(os.listdir(cut)) == made


def test_a_rival_does_not_pass_off_results_of_other_data_or_flags(subject, tmp_path):
    """Complete or not: frames that lie there are of the data, splits and flags that it was given,
    or it says what is not."""
    folder = baselines.run(settings(subject, tmp_path, "ridge"))
    recon = os.path.join(folder, "recon.npy")
    before = os.stat(recon).st_mtime_ns
    baselines.run(settings(subject, tmp_path, "ridge"))
    assert os.stat(recon).st_mtime_ns == before  # what is complete is not made anew

    def refused(given, what):
        with pytest.raises(errors.Problem, match=f"made_from.json: {what} of what lies there"):
            baselines.run(given)

    other = settings(subject, tmp_path, "ridge")
    other.seed = 1
    refused(other, "seed")
    refused(settings(subject, tmp_path, "ridge", no_validation=True), "no_validation")
    copy = str(tmp_path / "other")
    shutil.copytree(subject, copy)
    path = os.path.join(copy, "subject.json")
    meta = baselines.read_json(path)
    files.save_json(path, {**meta, "checksums": {}})
    refused(settings(copy, tmp_path, "ridge"), "checksums")
    files.save_json(path, {**meta, "split": {"train": list(range(600)), "test": [700, 701]}})
    refused(settings(copy, tmp_path, "ridge"), "segments")

    os.remove(recon)  # partial files do not pass either
    refused(other, "seed")
    os.remove(os.path.join(folder, "made_from.json"))  # nor those that do not say
    every = "checksums, shapes, segments, no_validation, seed, shrink"
    refused(settings(subject, tmp_path, "ridge"), every)


def test_a_rival_has_the_test_runs_that_are_named(subject, tmp_path, capsys):
    """As train.py has them: the runs that sample.py's results are of."""
    s = data.Subject(subject)
    given = "--data", subject, "--test", "run-2", "--val", "run-1", "--device", "cpu"
    baselines.main(["ridge", *given, "--out", str(tmp_path)])
    assert np.load(tmp_path / "ridge/frames.npy").tolist() == list(range(*s.runs[1]))
    made = baselines.read_json(tmp_path / "ridge/made_from.json")["segments"]
    assert made["val"] == [s.runs[0]] and made["train"] == s.runs[2:]
    # What is printed is of these frames, in z-scores of the runs that it was fitted on.
    normaliser = data.Normaliser.measure(s, s.runs[2:])
    truth = normaliser.zscore(s.fmri[slice(*s.runs[1])])
    mse = ((np.load(tmp_path / "ridge/recon.npy") - truth) ** 2).mean()
    assert f"mse {mse:.3f}" in capsys.readouterr().out


# ---- The table -------------------------------------------------------------------------


def small_table(monkeypatch):
    """Only one window length, gap and rival."""
    monkeypatch.setattr(table, "LENGTHS", (10,))
    monkeypatch.setattr(table, "GAPS", (9,))
    monkeypatch.setattr(table, "BASE", 10)
    monkeypatch.setattr(baselines, "RIVALS", {"ridge": baselines.Ridge})


def dies(*_):
    raise KeyboardInterrupt


def test_table_from_end_to_end_and_killed_between(subject, tmp_path, monkeypatch, capsys):
    small_table(monkeypatch)
    flags = "--data", subject, "--out", tmp_path, "--preset", "tiny", "--steps", 3, "--width", 32
    flags += "--depth", 1, "--latent-dim", 2, "--latents", 2, "--samples", 2, "--device", "cpu"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(table.Work, "interrecon", dies)
        command(monkeypatch, table, *flags)
    monkeypatch.setattr(table.Work, "direct", dies)  # is done, and not asked again
    command(monkeypatch, table, *flags)

    found = json.loads((tmp_path / "table.json").read_text())
    parts = [list(part.values()) for part in found["tables"].values()]
    assert [len(part) for part in parts] == [1, 1, 1]
    direct, gap, size = (part[0] for part in parts)
    rivals = {"neuroframes", "neuroframes_1", "shuffled_eeg", "ridge", "mean_frame", "run_mean"}
    assert set(direct) == rivals
    assert direct["mean_frame"]["whole"]["r"]["mean"] == 0
    assert direct["mean_frame"]["part"]["identified"]["top_1"] == 0
    assert direct["run_mean"]["whole"]["mse"]["mean"] < direct["mean_frame"]["whole"]["mse"]["mean"]
    assert {"linear", "gaussian", "no_null_space", "run_mean"} < set(gap)
    alone = size["autoencoder"]["whole"]  # two components are all that there is
    assert alone["mse"]["mean"] < 0.2 and alone["identified"]["top_1"] == 1

    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(f"### {part}" in text and f"**{part}, " in text for part in found["tables"])
    assert "NeuroFrames, mean of 2" in text
    with pytest.raises(SystemExit):
        command(monkeypatch, table, *flags, "--loss", "vertex")
    assert "name another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, sizes", [([], [64, 128, 256]), (["--latent-dim", "8"], [4, 8, 16])]
)
def test_sizes_of_latents_follow_the_subject(subject, tmp_path, monkeypatch, given, sizes):
    """Where no flag names them: 600 training frames are too few for the paper's."""
    asked = []

    def scored(work, sizes):
        asked.extend(sizes)
        raise KeyboardInterrupt

    monkeypatch.setattr(table, "all_scores", scored)
    with pytest.raises(SystemExit):
        table.main(["--data", subject, "--out", str(tmp_path), *given])
    assert asked == sizes


# ---- Frames for a decoder; points between frames; runs from windows --------------------


def test_decoder_frames_keep_their_numbers_and_values(tmp_path):
    rng = np.random.default_rng(5)
    mask = np.isin(np.arange(20), [2, 3, 11])
    subject = argparse.Namespace(
        folder="s",
        runs=[[0, 3], [3, 6]],
        rois={"visual+audio": mask},
        meta={"first_number": [100, 200]},
    )
    normaliser = data.Normaliser(np.full(20, 7.0), np.full(20, 2.0), np.ones(1))
    recon = rng.standard_normal((3, 20)).astype(np.float32)
    decoder_frames.write(recon, np.array([2, 3, 5]), subject, normaliser, str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["102.npy", "200.npy", "202.npy"]
    assert np.array_equal(np.load(tmp_path / "202.npy"), recon[2, mask])
    # The authors' own frames: their values, not z-scores.
    V = decoder_frames.SIZE
    normaliser = data.Normaliser(np.full(V, 7.0), np.full(V, 2.0), np.ones(1))
    own = np.zeros((1, V), np.float32)
    decoder_frames.write(own, np.array([4]), subject, normaliser, str(tmp_path))
    assert (np.load(tmp_path / "201.npy") == 7).all()


def test_a_cubic_goes_through_cubics_and_holds_its_ends():
    seen = np.array([0, 3, 4, 8, 9, 13])
    times = np.linspace(0, 13, 40)

    def curve(t):
        return 2 - t + 0.3 * t**2 - 0.02 * t**3

    assert np.allclose(between.cubic(seen, times) @ curve(seen), curve(times))
    beyond_ends = between.cubic(seen, np.array([-5.0, 20.0])) @ curve(seen)
    assert np.allclose(beyond_ends, curve(seen[[0, -1]]))


def test_four_ways_to_make_runs_from_windows(tiny, tmp_path, monkeypatch, capsys):
    """Each scored; side by side there are seams, and blended there are the fewest."""
    command(monkeypatch, train, "--data", tiny, "--steps", 40, *SMALL, "--out", tmp_path)
    capsys.readouterr()
    command(monkeypatch, stitching, "--ckpt", tmp_path / "ckpt.pt", "--gap", 5, "--samples", 2)
    heading, *lines = capsys.readouterr().out.splitlines()
    assert "gap 5: MSE" in heading
    rows = {line.split()[0]: [float(cell) for cell in line.split()[1:]] for line in lines}
    assert list(rows) == ["independent", "averaged", "continued", "blended"]
    for mse, _, _, _, mse_with_anchors, _, r_with_anchors, _ in rows.values():
        assert mse_with_anchors < 0.5 * mse and r_with_anchors > 0.3
    assert rows["independent"][3] > 3 and abs(rows["blended"][3] - 1) < 0.5


# ---- Subjects that differ in one thing; networks that grow ------------------------------


class InProcess(subjects.Scripts):
    """Scripts called in this process, which is faster; those called are counted."""

    calls = []

    def wait_for(self, argv, log):
        name, *flags = argv
        name = os.path.basename(name)
        self.calls.append(name)
        main = {"train.py": train.main, "sample.py": sample.main}[name]
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                main(flags)
        except SystemExit as error:
            return error.code
        return 0


class Stopped(InProcess):
    def wait_for(self, argv, log):
        return 143


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr(InProcess, "calls", [])
    monkeypatch.setattr(subjects, "Scripts", InProcess)


QUICK = "--sample", "--steps 2 --samples 2", "--device", "cpu"


def test_subjects_differ_in_one_thing(tmp_path):
    """In that, and in nothing else."""
    first = subjects.Variant("first", 60, runs=3)

    def made(name, **other):
        subjects.make(first._replace(**other), str(tmp_path / name), seed=3)
        return data.Subject(str(tmp_path / name))

    plain = made("plain")
    fmri = plain.fmri[:]
    eeg = plain.eeg[:]
    driven = plain.driven[:]
    assert fmri.shape == (390, 576) and eeg.shape == (390, 16, 80) and plain.tr == 0.8
    stretches = {s: plain.segments(s) for s in ("train", "val", "test")}
    tested = [(low, low + 30) for low in range(90, 390, 30)]
    assert stretches == {"train": [(0, 30), (30, 60)], "val": [(60, 90)], "test": tested}

    # Of log power BOLD has the same noise, from the same EEG; the log is symmetric.
    log = made("log", bold=subjects.bold_of_log_power)
    assert np.array_equal(log.eeg, eeg)
    assert np.allclose(log.fmri - log.driven, fmri - driven, atol=1e-2)
    wandering = [x[:] - x[:].mean(0) for x in (driven, log.driven)]
    assert 0.5 < np.corrcoef(*(x.ravel() for x in wandering))[0, 1] < 0.95
    skewness = [abs((x**3).mean(0) / x.std(0) ** 3).mean() for x in wandering]
    assert skewness[1] < 0.7 * skewness[0]

    other = made("other", stranger=True)
    of_other = subjects.simulated(first, 1003)[0]["eeg"]
    assert np.array_equal(other.fmri, fmri) and np.array_equal(other.eeg, of_other)
    assert not np.array_equal(of_other, eeg) and other.driven is None

    slow = made("slow", tr=2.0)
    assert slow.tr == slow.meta["tr"] == 2 and slow.eeg.shape == (390, 16, 200)
    few = made("few", channels=4)
    assert few.eeg.shape == (390, 4, 80)

    drifting = made("ramp", change=subjects.ramp)
    assert np.array_equal(drifting.eeg, eeg)
    for low, high in plain.runs:  # a line in each run, and no more
        added = drifting.fmri[low:high] - fmri[low:high]
        assert np.abs(np.diff(added, 2, axis=0)).max() < 1e-2 < np.abs(np.diff(added, axis=0)).max()

    popping = made("pop", change=subjects.pop)
    changed = np.argwhere(popping.eeg != eeg)
    assert np.array_equal(popping.fmri, fmri) and len(changed) == 20
    assert set(changed[:, 1]) == {0} and changed[:, 0].max() < 30 == plain.runs[0][1]
    assert np.allclose(popping.eeg[tuple(changed.T)], 1000 * eeg[:, 0].std())


def test_table_of_subjects_goes_on_where_it_was_stopped(tmp_path, monkeypatch, in_process, capsys):
    flags = "--out", tmp_path, "--only", "frames-300", "one-run", *QUICK
    flags += "--train", " ".join([*SMALL, "--frames 10 --steps 2"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(subjects, "Scripts", Stopped)
        command(monkeypatch, subjects, *flags)
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "results.jsonl").exists()

    monkeypatch.setattr(data, "synthetic", dies)  # the subjects are there by now
    command(monkeypatch, subjects, *flags)
    assert sorted(InProcess.calls) == ["sample.py"] * 4 + ["train.py"] * 2
    command(monkeypatch, subjects, *flags)
    assert len(InProcess.calls) == 6
    capsys.readouterr()

    heading, _, *rows = (tmp_path / "subjects.md").read_text(encoding="utf-8").splitlines()
    names = [cell.strip() for cell in heading.split("|")[1:-1]]
    cells = [dict(zip(names, map(str.strip, row.split("|")[1:-1]))) for row in rows[:2]]
    assert [row["subject"] for row in cells] == ["frames-300", "one-run"]
    metrics = json.loads((tmp_path / "frames-300/gap-9/interrecon/metrics.json").read_text())
    assert metrics["gap"] == 9
    whole = metrics["scores"]["neuroframes"]["whole"]
    expected = f"{whole['mse']['mean']:.3f}, {whole['r']['mean']:.3f}"
    assert cells[0]["gap-9: neuroframes"] == expected
    assert all(cells[0][name] for name in ("direct: ceiling", "gap-2: gaussian", "worst"))
    assert cells[0]["sample.py says"].startswith(("The EEG", "Too few"))
    assert not cells[1]["direct: neuroframes"]
    said = cells[1]["sample.py says"]
    assert said.startswith("error: ") and "no test frames" in said

    with pytest.raises(SystemExit):
        command(monkeypatch, subjects, *flags, "--seed", 1)
    assert "name another --out" in capsys.readouterr().err


def test_a_row_of_subjects():
    """What is better than the network, in which mode, and how often a stranger's EEG helped."""
    mse = {"neuroframes": 0.6, "linear_gaussian": 0.5, "mean_frame": 1.0}
    scores = {name: {"whole": {"mse": {"mean": x}, "r": {"mean": 0.4}}} for name, x in mse.items()}
    scores["ceiling"] = {"whole": {"mse": {"mean": 0.3}, "r": {"mean": 0.7}}}
    direct = subjects.whole_brain({"scores": scores})
    assert direct["linear_gaussian"] == (0.5, 0.4) and direct["ceiling"] == (0.3, 0.7)
    gap = {"neuroframes": (0.3, 0.8), "gaussian": (0.4, 0.7), "linear": (0.1, 0.9)}
    assert subjects.worst({"direct": direct, "gap-2": gap}) == pytest.approx(1.2)
    assert subjects.worst({"gap-2": gap}) == pytest.approx(0.75)
    assert subjects.worst({}) is None

    p = {"direct": 0.04, "gap-2": 0.5, "gap-9": None}
    common = {"worst": 1.2, "said": "so it is", "seconds": {"train": 61.2, "sample": 4}}
    row = {"name": "other-0", "scores": {"direct": direct, "gap-2": gap}, "p": p, **common}
    text = subjects.line(row)
    assert text.startswith("| other-0 | 0.600, 0.400 | 0.500, 0.400 | 1.000, 0.400 |  | 0.300, ")
    assert text.endswith("| 0.040, 0.500 | 1.20 | 61 | 4 | so it is |")
    assert text.count("|") == subjects.heading().split("\n")[0].count("|")
    said = subjects.strangers({"other-0": row, "other-1": {"p": {"direct": 0.2}}, "log": {"p": p}})
    assert "direct 1 of 2, gap-2 0 of 1, gap-9 0 of 0." in said


def test_scripts_run_once_and_training_resumes(tmp_path):
    scripts = subjects.Scripts()
    path = str(tmp_path / "sub" / "sample")
    found = scripts.run(path, "sample.py", "--ckpt", tmp_path / "none.pt")
    assert found["status"] == 2 and found["seconds"] > 0
    assert found["said"].startswith("error: ") and "none.pt" in found["said"]
    scripts.stop()
    assert scripts.run(path, "sample.py") == found  # as it was
    with pytest.raises(Problem, match="goes on"):
        scripts.run(path + "-2", "sample.py")

    asked = []
    scripts.run = lambda path, *argv: asked.append(argv)
    subjects.trained(scripts, str(tmp_path), "--data", "s")
    (tmp_path / "last.pt").touch()
    subjects.trained(scripts, str(tmp_path), "--data", "s")
    expected = "train.py", "--out", str(tmp_path), "--data", "s"
    assert asked == [expected, (*expected, "--resume")]


def test_growth_trains_on_parts_of_one_subject(tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(growth, "RUN", 30)
    given = [*SMALL, "--preset", "tiny"]
    for name in ("--width", "--depth"):  # what the table is about
        at = given.index(name)
        del given[at : at + 2]
    flags = "--out", tmp_path, "--frames", 24, 90, "--widths", 8, 16, "--depths", 1
    flags += "--epochs", 1, "--train", " ".join(given), *QUICK
    command(monkeypatch, growth, *flags)
    whole = data.Subject(str(tmp_path / "subject-90"))
    for frames, stretches in ((24, [(0, 12), (30, 42)]), (90, [(0, 30), (30, 60), (60, 90)])):
        part = data.Subject(str(tmp_path / f"frames-{frames}"))
        assert part.segments("train") == stretches
        for split in ("val", "test"):
            assert part.segments(split) == whole.segments(split) != []
        assert np.array_equal(part.fmri, whole.fmri)
    results = subjects.read_results(tmp_path)
    sizes = [[24, 8, 1], [24, 16, 1], [90, 8, 1], [90, 16, 1]]
    assert sorted(result["sizes"] for result in results.values()) == sizes
    log = (tmp_path / "90-16-1" / "log.jsonl").read_text().splitlines()
    best = min(json.loads(text)["val_loss"] for text in log)
    assert results["90-16-1"]["val_loss"] == best
    text = (tmp_path / "growth.md").read_text(encoding="utf-8")
    rows = [text.index(f"| {frames} | {width} | 1 |") for frames, width, _ in sizes]
    assert rows == sorted(rows) and f"| {best:.4f} |" in text


# ---- Several people --------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """Runs of 24 s of 64 vertices and 4 channels: two to train on, or four; two for the test."""
    sizes = {"SIDE": 8, "CHANNELS": 4, "RUN": 30, "TESTS": 2}
    monkeypatch.setattr(pooling, "CONDITIONS", dict(pooling.CONDITIONS))
    for name, value in sizes.items():
        monkeypatch.setattr(pooling, name, value)
    for name, condition in pooling.CONDITIONS.items():
        minutes = {5: 0.6, 10: 0.8, 20: 1.2, 60: 1.6}[condition.minutes]
        pooling.CONDITIONS[name] = condition._replace(minutes=minutes)


def test_people_differ_and_their_test_frames_do_not(few, tmp_path, monkeypatch):
    common = pooling.common_brain(0)
    for number in (1, 2):
        own, late, _ = pooling.person(0, number)
        shown = own.maps / common.maps  # [sources,V]: a factor for each source
        assert np.allclose(shown, shown[:, :1]) and shown[:, 0].std() > 0.05
        assert np.array_equal(own.frequency, common.frequency) and 0 < abs(late) <= 0.5
        seen = [x.lead_field.ravel() for x in (own, common)]
        assert 0.7 < np.corrcoef(seen)[0, 1] < 0.97  # 1 / sqrt(1 + 0.5^2) = 0.89

    def made(name, minutes, late=0.0):
        with monkeypatch.context() as patch:
            patch.setattr(pooling, "person", lambda *_: (common, late, np.ones((4, 1))))
            pooling.make(0, 1, minutes, str(tmp_path / name))
        return data.Subject(str(tmp_path / name))

    least = made("least", 0.6)  # a run and a half
    assert least.segments("train") == [(0, 30), (30, 45)]
    assert least.segments("test") == [(60, 90), (90, 120)]
    less = made("less", 0.8)
    assert np.array_equal(least.fmri, less.fmri) and np.array_equal(least.eeg, less.eeg)
    more = made("more", 1.6)
    assert less.segments("train") == [(0, 30), (30, 60)]
    assert less.segments("test") == [(60, 90), (90, 120)]
    assert more.segments("test") == [(120, 150), (150, 180)]
    for name in ("fmri", "eeg", "driven"):
        x, y = (getattr(subject, name) for subject in (less, more))
        assert np.array_equal(x[60:], y[120:]) and np.array_equal(x[:60], y[:60])

    # The same BOLD 0.2 s later is the same BOLD with the EEG of 0.2 s (20 samples) later.
    late = made("late", 0.8, late=0.2)
    assert np.array_equal(late.fmri, less.fmri)
    first, second = (x.eeg[:30].swapaxes(0, 1).reshape(4, -1) for x in (less, late))
    assert np.array_equal(first[:, 20:], second[:, :-20])


def test_table_of_people(few, tmp_path, monkeypatch, in_process, capsys):
    monkeypatch.setattr(sample, "spaces", None)  # pictures, which take longer than all else
    flags = "--out", tmp_path, "--people", 3, "--steps", 0, "--device", "cpu"
    flags += "--only", "pooled-10", "left-out-60", "new-10"
    size = ["--train", " ".join([*SMALL, "--closed-form"]), "--sample", "--steps 2 --samples 2"]
    command(monkeypatch, pooling, *flags, *size)
    assert sorted(InProcess.calls) == ["sample.py"] * 7 + ["train.py"] * 7
    command(monkeypatch, pooling, *flags, *size)
    assert len(InProcess.calls) == 14
    results = subjects.read_results(tmp_path)
    conditions = "left-out-60", "new-10"
    models = [f"{name}/closed form/P{i}" for name in conditions for i in (1, 2, 3)]
    assert set(results) == {*models, "pooled-10/closed form/all"}

    # As sample.py has scored them; and the sources' part, in units of the frames to train on.
    folder = tmp_path / "pooled-10/closed form/all/direct/direct"
    rows = json.loads((folder / "metrics.json").read_text())["people"]["scores"]
    for one, (mse, r, mean, ceiling) in results["pooled-10/closed form/all"]["people"].items():
        expected = [rows[one][name] for name in ("mse", "r", "mean_frame_mse")]
        assert [mse, r, mean] == pytest.approx(expected, abs=1e-5)
        minutes = pooling.CONDITIONS["pooled-10"].minutes
        subject = data.Subject(str(tmp_path / f"{minutes}-minutes" / one))
        missed = (subject.driven - subject.fmri)[60:] / subject.fmri[:60].std(0)
        assert ceiling == pytest.approx((missed**2).mean(), rel=1e-2)

    # Who is left out is taught by nobody of that name, and scored on the test frames alone.
    folder = tmp_path / "left-out-60/closed form/P1"
    taught = torch.load(folder / "ckpt.pt", weights_only=True)["settings"]["data"]
    assert [os.path.basename(name) for name in taught] == ["P2", "P3"]
    out = folder / "direct/direct"
    recon, truth = (np.load(out / f"{name}.npy") for name in ("recon", "truth"))
    assert len(truth) == 180 and np.allclose(truth.std(0), 1, atol=1e-3)
    found = results["left-out-60/closed form/P1"]["people"]["P1"]
    assert found[0] == pytest.approx(((recon - truth)[120:] ** 2).mean(), abs=1e-5)

    # Who is adapted to begins with the model of the others, and is tested as if alone.
    folder = tmp_path / "new-10/closed form/P1"
    settings = torch.load(folder / "ckpt.pt", weights_only=True)["settings"]
    assert settings["ckpt"] == str(tmp_path / "left-out-60/closed form/P1/ckpt.pt")
    assert len(np.load(folder / "direct/direct/truth.npy")) == 60
    text = (tmp_path / "pooling.md").read_text(encoding="utf-8")
    assert f"| {found[0]:.3f} ({found[2]:.3f}) |" in text and "of 3, p " in text


def test_a_table_without_a_curve(few, tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(sample, "spaces", None)
    flags = "--out", tmp_path, "--people", 3, "--steps", 0, "--device", "cpu", "--only", "alone-10"
    size = ["--train", " ".join([*SMALL, "--closed-form"]), "--sample", "--steps 2 --samples 2"]
    command(monkeypatch, pooling, *flags, *size)
    text = (tmp_path / "pooling.md").read_text(encoding="utf-8")
    assert "| alone-10 | closed form |" in text and "By minutes" not in text


def test_the_curve_of_adapting_is_in_one_unit(few, tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(sample, "spaces", None)
    flags = "--out", tmp_path, "--people", 3, "--steps", 0, "--device", "cpu"
    flags += "--train", " ".join([*SMALL, "--closed-form"]), "--sample", "--steps 2 --samples 2"
    command(monkeypatch, pooling, *flags, "--only", "left-out-60", "alone-5", "new-5")
    assert InProcess.calls.count("train.py") == 9
    results = subjects.read_results(tmp_path)

    # Back to the scanner's units by what is known of each model, and from there to one yardstick.
    subject = data.Subject(str(tmp_path / "1.6-minutes/P2"))
    raw = subject.fmri.astype(np.float64)
    hour = raw[:120]
    truth = (raw[120:] - hour.mean(0)) / hour.std(0)
    first = raw[:45]
    found = {}
    for condition, known in {"left-out-60": raw, "alone-5": None, "new-5": first}.items():
        name = f"{condition}/closed form/P2"
        units = torch.load(tmp_path / name / "ckpt.pt", weights_only=True)["normaliser"]
        out = tmp_path / name / "direct/direct"
        written = np.stack([np.load(out / "recon.npy")[-60:], np.zeros((60, 64))])
        x = written * units["std"].numpy() + units["mean"].numpy()
        if known is not None:
            x = x * known.std(0) + known.mean(0)
        mse = (((x - hour.mean(0)) / hour.std(0) - truth) ** 2).mean((1, 2))
        found[condition] = pooling.scored_alike(subject, str(out))
        np.testing.assert_allclose([found[condition][0], found[condition][2]], mse, rtol=1e-3)
    assert found["alone-5"][2] == pytest.approx(found["new-5"][2], rel=1e-3)
    own = ((raw[120:] - first.mean(0)) / first.std(0)) ** 2
    assert results["new-5/closed form/P2"]["people"]["P2"][2] == pytest.approx(own.mean(), 1e-3)

    # Each is adapted to with the model that it was left out of; and --tune is of this step alone.
    command(monkeypatch, pooling, *flags, "--only", "new-5", "--tune", "--lr 0.01")
    assert InProcess.calls.count("train.py") == 12
    for method, rate in (("closed form", 1e-3 / 3), ("closed form --lr 0.01", 0.01)):
        path = tmp_path / "new-5" / method / "P2/ckpt.pt"
        settings = torch.load(path, weights_only=True)["settings"]
        assert settings["ckpt"] == str(tmp_path / "left-out-60/closed form/P2/ckpt.pt")
        assert settings["lr"] == pytest.approx(rate) and settings["adapt"] == 0.6
    points = (tmp_path / "pooling.md").read_text(encoding="utf-8")
    points = points.split("By minutes")[1].splitlines()[4:]
    cells = [line.split("|")[1:3] for line in points]
    methods = ["closed form", "closed form", "closed form --lr 0.01"]
    assert cells == [[f" {n} ", f" {method} "] for n, method in zip((0, 5, 5), methods)]
    assert "of 3, p " not in points[0] and all("of 3, p " in line for line in points[1:])
