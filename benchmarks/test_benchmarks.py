"""Is what compares right itself? Closed forms for the scores, a subject that every rival can learn, and the whole table."""
import argparse
import json
import os
import sys
import time

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import baselines  # noqa: E402
import data  # noqa: E402  of the folder above, found by baselines
import decoder_frames  # noqa: E402
import table  # noqa: E402
from tools import files  # noqa: E402

# ---- Scores ----------------------------------------------------------------------------

def test_identification_against_counting():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((7, 40))
    guess = truth + 2 * rng.standard_normal((7, 40))
    r = np.corrcoef(guess, truth)[:7, 7:]
    assert table.ranks(guess, truth).tolist() == [1 + sum(r[i, j] > r[i, i] for j in range(7)) for i in range(7)]
    assert table.ranks(truth, truth).tolist() == [1] * 7
    assert table.ranks(0 * truth, truth).tolist() == [4] * 7                 # knows nothing: the middle, and no hit
    assert sorted(table.ranks(truth[[0] * 7], truth)) == list(range(1, 8))   # always says the same: chance

def test_global_signal_is_regressed_out_like_least_squares():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((50, 9)) + rng.standard_normal((50, 1)) + 3).astype(np.float32)
    valid = np.arange(9) < 8
    g = x[:, valid].mean(1)
    design = np.stack([np.ones(50), g], 1)
    beta = np.linalg.lstsq(design, x, rcond=None)[0][1]
    assert np.allclose(table.without_global(x, valid), x - (g - g.mean())[:, None] * beta, atol=1e-5)
    assert np.array_equal(table.without_global(0 * x, valid), 0 * x)         # no global signal: nothing to take out

def test_bootstrap_interval_is_that_of_the_mean():
    rng = np.random.default_rng(2)
    frames = rng.standard_normal((3000, 2))
    frames[::7] = np.nan                                                      # observed frames do not count
    drawn = table.resampled(frames, [(0, 3000)])
    expected = np.nanstd(frames[:, 0]) / np.sqrt(np.isfinite(frames[:, 0]).sum())
    assert abs(drawn[:, 0].std() / expected - 1) < 0.2                        # 100 units: their variance is known to 15%
    assert abs(drawn[:, 0].mean() - np.nanmean(frames[:, 0])) < 0.2 * expected
    slow = np.repeat(rng.standard_normal((100, 1)), 30, 0)                    # 30 frames in unison are one witness
    assert abs(table.resampled(slow, [(0, 3000)])[:, 0].std() / (slow.std() / 10) - 1) < 0.2
    runs = np.repeat(np.arange(6.0), 10)[:, None]
    assert set(np.round(table.resampled(runs, [(10 * i, 10 * i + 10) for i in range(6)]) * 6)[:, 0]) <= set(range(31))

def test_frame_table_scores_regions_and_leaves_out_what_was_seen():
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((40, 12)).astype(np.float32) for _ in range(2))
    regions, segments = {"whole": np.ones(12, bool), "part": np.arange(12) < 5}, [(0, 25), (30, 45)]
    seen = np.arange(40) % 4 == 0
    found = table.frame_table(lambda rows: y[rows], lambda rows: x[rows], segments, regions, [10], seen)
    assert np.isnan(found["part"][seen]).all() and set(found) == {"whole", "part"}
    assert np.allclose(found["part"][~seen, 0], ((x - y)[~seen, :5] ** 2).mean(1), atol=1e-5)
    assert np.allclose(found["part"][1, 1], np.corrcoef(x[1, :5], y[1, :5])[0, 1], atol=1e-5)
    found = table.frame_table(lambda rows: x[rows], lambda rows: x[rows], segments, regions, [10])
    assert found["whole/rank-10"].tolist() == [[1, 2], [1, 2], [1, 1]]        # windows of one run, whole ones only
    assert np.allclose(found["whole"], [0, 1, 1, 0, 1], atol=1e-5)
    rows = table.summary({"neuroframes": found, "other": found}, segments, 10)["other"]["part"]
    assert rows["ahead"]["mean"] == 0 and rows["identified"]["chance_top_1"] == pytest.approx((0.5 + 0.5 + 1) / 3)

# ---- Rivals ----------------------------------------------------------------------------

def test_sparsemax_is_the_projection_onto_the_simplex():
    u = 2 * torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = u.min(1, keepdim=True).values - 1, u.max(1, keepdim=True).values
    for _ in range(60):  # the projection is max(u - tau, 0) with the tau at which it sums to 1: bisect
        tau = (low + high) / 2
        more = (u - tau).clamp(min=0).sum(1, keepdim=True) > 1
        low, high = torch.where(more, tau, low), torch.where(more, high, tau)
    assert torch.allclose(baselines.sparsemax(u), (u - low).clamp(min=0), atol=1e-12)
    assert (baselines.sparsemax(u) == 0).any()

@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """16 vertices that follow a channel's mean voltage and another's power at the frame's own window: all can learn it."""
    folder, rng, W, frames = str(tmp_path_factory.mktemp("learn") / "subject"), np.random.default_rng(0), 40, 200
    meta = {"tr": 0.8, "fs": 50, "delay": 0.0, "first_volume": [0] * 4, "frames_per_run": [frames] * 4}
    maps = rng.standard_normal((2, 16))
    with files.prepared(folder, meta, 16, 2, W) as out:
        for _ in range(4):
            a, b = (data.slow_noise(rng, frames, 1, 2.0, 0.8)[:, 0] for _ in range(2))
            eeg = 0.05 * rng.standard_normal((frames, 2, W))
            eeg[:, 0] += 0.3 * a[:, None]
            eeg[:, 1] += (np.exp(0.5 * b)[:, None] * np.sin(2 * np.pi * 10 * np.arange(W) / 50))
            out.add(100 + np.stack([a, b], 1) @ maps + 0.1 * rng.standard_normal((frames, 16)), eeg)
        np.savez(out.path("rois.npz"), part=np.arange(16) < 6)
    return folder

def settings(subject, out, rival, **more):
    return argparse.Namespace(**{"data": subject, "out": str(out), "rival": rival, "seed": 0, "shrink": 8, "no_validation": False,
                                 "device": torch.device("cpu"), **more})

@pytest.mark.parametrize("rival, refit", [(name, name in ("ridge", "cnn_tc")) for name in baselines.RIVALS if name != "cnn_tag"])
def test_rivals_learn(subject, tmp_path, rival, refit):
    s = data.Subject(subject)
    recon = np.load(os.path.join(baselines.run(settings(subject, tmp_path, rival, no_validation=refit)), "recon.npy"))
    normaliser = data.Normaliser.measure(s, s.segments("train", validation=not refit))
    truth = normaliser.zscore(s.fmri[np.load(tmp_path / rival / "frames.npy")])
    assert recon.shape == truth.shape == (200, 16)
    # A linear map of voltage finds the first component, spectra the second; neither can find the whole.
    assert ((recon - truth) ** 2).mean() < 0.85 * (truth**2).mean()

def test_cnn_tag_fits_what_it_is_shown(subject, tmp_path):
    """Of one power beside the other channels', which is all that z-scores over channels leave, two channels say nothing; so
    its windows are given: eight of them, to be learned by heart."""
    s, rng = data.Subject(subject), np.random.default_rng(0)
    net = baselines.CNNTAG(s, data.Normaliser.measure(s, [(0, 8)]), [(0, 8)], str(tmp_path), settings(subject, tmp_path, "cnn_tag"))
    net.windows = rng.standard_normal((200, 2, 134)).astype(np.float32)
    batch = net.batch(*(u[:8] for u in baselines.neighbours([(0, 200)], net.lags)))
    losses = [net.update(*batch) for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]

@pytest.mark.parametrize("frames", [30, 400])  # fewer than features, and more
def test_ridge_is_the_normal_equations(frames):
    rng = np.random.default_rng(4)
    ridge = object.__new__(baselines.Ridge)
    ridge.X, Y = rng.standard_normal((frames, 8)), rng.standard_normal((frames, 5)).astype(np.float32)
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
    whole = baselines.run(settings(subject, tmp_path / "whole", "cnn_tc", no_validation=refit))
    clock, calls, update = iter(range(0, 10**9, 100)), [], baselines.CNNTC.update
    monkeypatch.setattr(time, "time", lambda: next(clock))  # every epoch is more than a minute: saved
    def dies(self, s, x):
        calls.append(1)
        if len(calls) == 2.5 * 100 * (1 + refit):
            raise KeyboardInterrupt
        return update(self, s, x)
    monkeypatch.setattr(baselines.CNNTC, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        baselines.run(settings(subject, tmp_path / "cut", "cnn_tc", no_validation=refit))
    cut = baselines.run(settings(subject, tmp_path / "cut", "cnn_tc", no_validation=refit))
    assert np.array_equal(np.load(os.path.join(whole, "recon.npy")), np.load(os.path.join(cut, "recon.npy")))
    assert sorted(os.listdir(cut)) == ["chosen.json", "frames.npy", "recon.npy"]

# ---- The table -------------------------------------------------------------------------

def test_table_from_end_to_end_and_killed_between(subject, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "LENGTHS", (10,))
    monkeypatch.setattr(table, "GAPS", (9,))
    monkeypatch.setattr(table, "BASE", 10)
    monkeypatch.setattr(baselines, "RIVALS", {"ridge": baselines.Ridge})
    argv = ["table.py", "--data", subject, "--out", str(tmp_path), "--preset", "tiny", "--steps", "3", "--width", "32",
            "--latent-dim", "2", "--latents", "2", "--samples", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    interrecon = table.Work.interrecon
    def dies(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(table.Work, "interrecon", dies)
    with pytest.raises(SystemExit):
        table.main()
    monkeypatch.setattr(table.Work, "interrecon", interrecon)
    monkeypatch.setattr(table.Work, "direct", dies)  # is done, and not asked again
    table.main()
    found = json.load(open(tmp_path / "table.json"))
    direct, gap, size = (list(part.values()) for part in found["tables"].values())
    assert [len(part) for part in (direct, gap, size)] == [1, 1, 1]
    direct = direct[0]
    assert set(direct) == {"neuroframes", "neuroframes_1", "shuffled_eeg", "ridge", "mean_frame", "run_mean"}
    assert direct["mean_frame"]["whole"]["r"]["mean"] == 0 and direct["mean_frame"]["part"]["identified"]["top_1"] == 0
    assert direct["run_mean"]["whole"]["mse"]["mean"] < direct["mean_frame"]["whole"]["mse"]["mean"]
    assert {"linear", "gaussian", "no_null_space", "run_mean"} < set(gap[0])
    alone = size[0]["autoencoder"]["whole"]
    assert alone["mse"]["mean"] < 0.2 and alone["identified"]["top_1"] == 1   # two components is all that there is
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(f"### {part}" in text and f"**{part}, " in text for part in found["tables"]) and "NeuroFrames, mean of 2" in text
    monkeypatch.setattr(sys, "argv", [*argv, "--loss", "vertex"])
    with pytest.raises(SystemExit):
        table.main()
    assert "name another --out" in capsys.readouterr().err

def test_decoder_frames_keep_their_numbers_and_values(tmp_path):
    rng = np.random.default_rng(5)
    mask = np.zeros(20, bool)
    mask[[2, 3, 11]] = True
    subject = argparse.Namespace(folder="s", runs=[[0, 3], [3, 6]], rois={"visual+audio": mask}, meta={"first_number": [100, 200]})
    normaliser = data.Normaliser(np.full(20, 7.0), np.full(20, 2.0), np.ones(1))
    recon = rng.standard_normal((3, 20)).astype(np.float32)
    decoder_frames.write(recon, np.array([2, 3, 5]), subject, normaliser, str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["102.npy", "200.npy", "202.npy"]
    assert np.array_equal(np.load(tmp_path / "202.npy"), recon[2, mask])
    own = np.zeros((1, decoder_frames.SIZE), np.float32)  # the authors' own frames: their values, not z-scores
    normaliser = data.Normaliser(np.full(decoder_frames.SIZE, 7.0), np.full(decoder_frames.SIZE, 2.0), np.ones(1))
    decoder_frames.write(own, np.array([4]), subject, normaliser, str(tmp_path))
    assert (np.load(tmp_path / "201.npy") == 7).all()
