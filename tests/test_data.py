"""Subjects, splits, z-scores, windows."""

import numpy as np
import torch
from conftest import TINY

import data
from beyond import windows


def test_synthetic_is_a_function_of_its_seed(tiny, tmp_path):
    data.synthetic(str(tmp_path / "a"), **TINY)
    data.synthetic(str(tmp_path / "b"), seed=1, **TINY)
    first, again, other = (data.Subject(str(f)) for f in (tiny, tmp_path / "a", tmp_path / "b"))
    assert first.meta["checksums"] == again.meta["checksums"] != other.meta["checksums"]
    assert first.eeg.shape == (300, 4, 40) and first.driven.shape == (300, 64)
    # Half a TR later, BOLD is near to the mean of its neighbours.
    middle = (first.fmri[:-1] + first.fmri[1:]) / 2
    between = [first.between[k : 298 + k][:, 0] for k in (0, 1, 2)]
    near = [np.corrcoef(x, middle[1:, 0])[0, 1] for x in between]
    assert near[1] > max(near[0], near[2])


def test_synthetic_bold_follows_the_eegs_power(tiny):
    """What the sources cause is a linear function of band power and its past; the rest is not."""
    subject = data.Subject(tiny)
    spectra = np.abs(np.fft.rfft(subject.eeg[:] * np.hanning(40)))[:, :, 3:20] ** 2
    power = np.log(spectra.reshape(300, -1))  # [T,features]
    lagged = np.concatenate([np.roll(power, lag, 0) for lag in range(4)], 1)
    X = (lagged - lagged.mean(0)) / lagged.std(0)
    driven = subject.driven[:].astype(float)
    found = []
    for y in (driven, subject.fmri - driven):
        y = (y - y.mean(0)) / y.std(0)
        fitted = X[:240].T @ np.linalg.solve(X[:240] @ X[:240].T + 300 * np.eye(240), y[:240])
        guess = X[240:] @ fitted
        found.append(np.mean([np.corrcoef(guess[:, v], y[240:, v])[0, 1] for v in range(64)]))
    assert found[0] > 0.5 > 0.25 > found[1], found


def test_eeg_windows_follow_the_delay():
    first, starts = data.eeg_windows(10_000, np.arange(20) * 0.72, tr=0.72, fs=500, delay=4.0)
    assert first == 6 and starts[0] == round((6 * 0.72 - 4) * 500) == 160
    assert np.all(np.diff(starts) == 360) and len(starts) == 14
    starts = data.eeg_windows(1_500, np.arange(20) * 0.72, tr=0.72, fs=500, delay=4.0)[1]
    assert starts[-1] + 360 <= 1_500


def test_splits_are_whole_runs(tiny):
    subject = data.Subject(tiny)
    parts = {split: subject.segments(split) for split in ("train", "val", "test")}
    assert parts == {
        "train": [(0, 60), (60, 120), (120, 180)],
        "val": [(180, 240)],
        "test": [(240, 300)],
    }
    assert subject.segments("train", validation=False)[-1] == (180, 240)
    assert not subject.segments("val", validation=False)
    test = list(range(10, 20)) + list(range(290, 300))  # and frame 20 in neither part
    subject.meta["split"] = {"test": test, "train": sorted(set(range(300)) - {20, *test})}
    assert subject.segments("test") == [(10, 20), (290, 300)]
    assert subject.segments("train")[:2] == [(0, 10), (21, 60)]
    assert subject.segments("val") == [(240, 290)]


def test_validation_frames_that_a_split_names_are_all_there_are(tiny):
    """With validation=False they are training frames, where they lie and nowhere else."""
    subject = data.Subject(tiny)
    frames = {"train": range(200), "val": range(200, 240), "test": range(250, 300)}
    subject.meta["split"] = {part: list(rows) for part, rows in frames.items()}
    assert subject.segments("val") == [(200, 240)]
    assert subject.segments("train") == [(0, 60), (60, 120), (120, 180), (180, 200)]
    assert not subject.segments("val", validation=False)
    assert subject.segments("train", validation=False)[-1] == (180, 240)
    assert subject.segments("test", validation=False) == [(250, 300)] == subject.segments("test")


def test_normaliser_uses_the_given_frames_and_spares_constant_vertices(tiny, monkeypatch):
    subject = data.Subject(tiny)
    monkeypatch.setattr(data.Subject, "fmri", np.array(subject.fmri))
    subject.fmri[:, 3] = 700.1
    subject.fmri[:, 4] = 1e-6 * np.arange(300)  # a constant without its mean: rounding errors
    normaliser = data.Normaliser.measure(subject, [(0, 60), (60, 120)], block=50)
    frames = subject.fmri[:120].astype(np.float64)
    np.testing.assert_allclose(normaliser.mean, frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normaliser.std[5:], frames.std(0)[5:], rtol=1e-5)
    largest = np.abs(subject.eeg[:120]).max(2)  # [T,C]
    np.testing.assert_allclose(normaliser.eeg_scale, np.median(largest, 0))
    paper = data.Normaliser.measure(subject, [(0, 60), (60, 120)], robust=False)
    np.testing.assert_allclose(paper.eeg_scale, largest.max(0))
    z = normaliser.zscore(subject.fmri)
    assert not normaliser.valid[3:5].any() and normaliser.valid.sum() == 62 and not z[:, 3:5].any()
    np.testing.assert_allclose(normaliser.raw(z), subject.fmri, rtol=1e-5, atol=1e-3)


def test_an_electrode_that_pops_leaves_the_other_windows_as_they_are(tiny, monkeypatch):
    subject = data.Subject(tiny)
    before = data.Normaliser.measure(subject, [(0, 120)])
    clean = before.eeg(subject.eeg[:120])
    assert np.abs(clean).max() < before.LIMIT  # what did not pop is not cut off
    np.testing.assert_array_equal(clean, subject.eeg[:120] / before.eeg_scale[:, None])
    monkeypatch.setattr(data.Subject, "eeg", np.array(subject.eeg))
    subject.eeg[30, 1, 5:9] = 1000 * np.abs(subject.eeg[:, 1]).max()
    after = data.Normaliser.measure(subject, [(0, 120)])
    np.testing.assert_allclose(after.eeg_scale, before.eeg_scale, rtol=0.02)
    popped = after.eeg(subject.eeg[:120])
    assert popped[30, 1, 5:9].tolist() == [after.LIMIT] * 4
    others = np.arange(120) != 30
    np.testing.assert_allclose(popped[others], clean[others], rtol=0.02)


def test_windows_cover_and_stay_inside():
    tiles = data.tile([(0, 25), (25, 32)], 10)
    assert tiles == [(0, 10, 0, 25), (10, 10, 0, 25), (15, 10, 0, 25), (25, 7, 25, 32)]
    overlapping = data.tile([(0, 25), (25, 32)], 10, 6)
    assert [window.start for window in overlapping] == [0, 4, 8, 12, 15, 25]
    batches = list(data.batches(tiles, 2))
    assert batches == [[tiles[3]], tiles[:2], [tiles[2]]]
    frames, eeg, times = data.window_indices(tiles[:3], context=4)
    assert eeg[0].tolist() == [0] * 4 + list(range(14))
    assert eeg[2].tolist() == list(range(11, 25)) + [24] * 4
    assert np.array_equal(times, eeg - frames[:, :1]) and frames[2].tolist() == list(range(15, 25))
    frames, eeg, times = data.window_indices(tiles[:3])  # the paper's: their own
    assert np.array_equal(frames, eeg) and np.array_equal(times, np.tile(np.arange(10), (3, 1)))


def test_every_start_that_fits_is_drawn_as_often():
    drawn = data.draw_windows([(0, 5), (5, 30), (30, 42)], 10, 20_000, np.random.default_rng(0))
    starts, counts = np.unique([window.start for window in drawn], return_counts=True)
    assert starts.tolist() == list(range(5, 21)) + list(range(30, 33))
    assert {window.length for window in drawn} == {10}
    assert np.abs(counts - 20_000 / 19).max() < 5 * (20_000 / 19) ** 0.5
    assert all(window.low <= window.start <= window.high - 10 for window in drawn)


def test_frames_of_a_split_are_numbered_stretch_after_stretch():
    frames = data.timeline([(5, 12), (20, 24)], 3, np.array([7, 8]))
    assert frames.rows.tolist() == [5, 6, 7, 8, 9, 10, 11, 20, 21, 22, 23]
    assert frames.stretches == [(0, 7), (7, 11)]
    assert frames.pattern.tolist() == [7, 8, 7, 8, 7, 8, 7, 7, 8, 7, 8]
    assert [block.tolist() for block in frames.blocks] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
        [7, 8, 9],
        [10],
    ]


def test_eeg_can_be_cut_anywhere():
    recording = torch.arange(2 * 36.0).view(2, 36)
    eeg = recording.unflatten(1, (6, 6)).transpose(0, 1)[None]  # [1,6,2,6] of 6 samples
    late = windows.cut(eeg, 4)
    assert late.shape == (1, 5, 2, 6) and torch.equal(late[0, 2], recording[:, 16:22])
    assert torch.equal(windows.cut(eeg, 0), eeg[:, :-1])
    rng = np.random.default_rng(0)
    lengths = {windows.draw_length(rng, 10, 40) for _ in range(2000)}
    assert {K for K, _ in lengths} == set(range(3, 31)) and {s for _, s in lengths} == {0, 20}

    def read(rows):
        return eeg[0][torch.from_numpy(rows)]

    rows = np.array([[1, 2, 3], [2, 3, 4]])
    seen = windows.late(read)
    assert torch.equal(seen(rows, 0), read(rows)) and seen(rows, 4).shape == (2, 2, 2, 6)
    assert torch.equal(seen(rows, 4)[1, 0], recording[:, 16:22])
