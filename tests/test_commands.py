"""The whole path, as commands on small subjects: what is written, and where."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import SMALL, command, read_json, read_log

import data
import sample as sampling
import train


def test_training_lowers_the_validation_loss(tiny, tmp_path, monkeypatch):
    """Well below that of a network that has learned nothing of the EEG: one trained on shuffled
    EEG."""
    losses = {}
    subject = data.Subject(tiny)
    other = tmp_path / "shuffled"
    other.mkdir()
    for name in ("fmri.npy", "subject.json"):
        (other / name).symlink_to(f"{tiny}/{name}")
    order = np.random.default_rng(0).permutation(len(subject.eeg))
    np.save(other / "eeg.npy", subject.eeg[:][order])
    for name, folder in (("true", tiny), ("shuffled", other)):
        flags = "--data", folder, "--steps", 200, *SMALL, "--lr", "1e-2", "--no-vary", "--seed", 1
        command(monkeypatch, train, *flags, "--out", tmp_path / name)
        losses[name] = [line["val_loss"] for line in read_log(tmp_path / name)]
        ckpt = torch.load(tmp_path / name / "ckpt.pt", weights_only=True)
        assert ckpt["val_loss"] == min(losses[name]) < losses[name][0]
    assert min(losses["true"]) < min(losses["shuffled"]) - 0.02, losses


def anchors_of(flags):
    """Which of every 6 frames are observed."""
    if "--anchors" in flags:
        return [0, 5]
    return [0, 2, 4] if flags else []


def check_series(path, space, frames):
    """The file holds the last run's frames [45,V] in scanner units."""
    image = nib.load(path)
    series = image.header.get_axis(0)
    assert image.header.get_axis(1) == space and series.start == pytest.approx(5 * 0.8)
    assert (series.size, series.step, series.unit) == (45, 0.8, "SECOND")
    np.testing.assert_allclose(image.get_fdata(), frames, rtol=1e-5)
    assert (image.get_fdata()[:, 5] == 12.0).all()  # the constant vertex comes back as it was


def check_maps(path, space, folder, missing):
    """The file holds r over time with the EEG, with shuffled EEG, their difference, MSE [4,V]."""
    image = nib.load(path)
    scalars = image.header.get_axis(0)
    assert image.header.get_axis(1) == space
    assert scalars.name.tolist() == ["r", "r, shuffled EEG", "difference", "MSE"]
    r, shuffled = (np.load(folder / f"{name}.npy") for name in ("r_time", "r_time_shuffled"))
    recon, truth = (np.load(folder / f"{name}.npy") for name in ("recon", "truth"))
    mse = np.where(np.isnan(r), np.nan, ((recon - truth)[missing] ** 2).mean(0))
    *maps, found = image.get_fdata()
    np.testing.assert_allclose(maps, [r, shuffled, r - shuffled], atol=1e-6)
    np.testing.assert_allclose(found, mse, rtol=1e-4)
    assert np.flatnonzero(np.isnan(r)).tolist() == [5]  # the constant vertex


def check_derivative(folder, source):
    """BIDS can be told what the files are, and of what."""
    assert read_json(folder / "dataset_description.json")["DatasetType"] == "derivative"
    about = read_json(folder / "run-4_desc-recon_bold.json")
    assert about["Sources"] == [str(source)] and about["RepetitionTime"] == 0.8
    assert about["StartTime"] == pytest.approx(4.0)
    header, *lines = (folder / "frames.tsv").read_text().splitlines()
    assert header.split("\t") == ["row", "run", "volume", "seconds", "source"]
    assert lines[1].split("\t") == ["136", "4", "6", "4.8", str(source)] and len(lines) == 45


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--interrecon"],
        ["--interrecon", "--anchors", "0,5", "--samples", "3"],
        ["--interrecon", "--paper", "--samples", "2"],
    ],
)
def test_sample_writes_what_it_says(session, trained, tmp_path, monkeypatch, capsys, flags):
    given = "--ckpt", trained / "ckpt.pt", "--out", tmp_path, "--samples", 2, "--steps", 5
    command(monkeypatch, sampling, *given, *flags)
    out = tmp_path / ("interrecon" if flags else "direct")
    recon, truth, std = (np.load(out / f"{name}.npy") for name in ("recon", "truth", "std"))
    metrics = read_json(out / "metrics.json")
    subject = data.Subject(str(trained / "subject"))
    normaliser = data.Normaliser.measure(subject, [(0, 45), (45, 90)])
    assert np.load(out / "frames.npy").tolist() == list(range(135, 180))
    assert metrics["test_frames"] == 45
    np.testing.assert_allclose(truth, normaliser.zscore(subject.fmri[135:180]), atol=1e-5)
    seen = np.isin(np.arange(45) % 6, anchors_of(flags))
    if flags:
        assert np.array_equal(recon[seen], truth[seen]) and not std[seen].any()
        assert metrics["anchor_residual"] == 0.0 < metrics["residual_before"]
    assert std[~seen].any(0)[normaliser.valid].all()

    scores = metrics["scores"]
    region = subject.rois["visual"] & normaliser.valid
    missing = np.flatnonzero(~seen)
    r = np.mean([np.corrcoef(recon[t, region], truth[t, region])[0, 1] for t in missing])
    mse = ((recon - truth)[~seen][:, normaliser.valid] ** 2).mean()
    assert scores["neuroframes"]["visual"]["r"]["mean"] == pytest.approx(r, abs=1e-5)
    assert scores["neuroframes"]["whole"]["mse"]["mean"] == pytest.approx(mse, abs=1e-5)
    controls = {"neuroframes", "neuroframes_1", "mean_frame", "shuffled_eeg"}
    controls |= {"no_null_space", "linear", "gaussian"} if flags else set()
    assert scores.keys() == controls  # without "ceiling": nobody knows it
    assert scores["neuroframes"].keys() == {"whole", "visual", "visual+audio", "mine"}

    found = {"recon": normaliser.raw(recon), "truth": subject.fmri[135:180]}
    for name, frames in found.items():
        check_series(out / f"run-4_desc-{name}_bold.dtseries.nii", session[1], frames)
    spread = nib.load(out / "run-4_desc-std_bold.dtseries.nii").get_fdata()
    np.testing.assert_allclose(spread, std * normaliser.std, rtol=1e-5)
    check_maps(out / "desc-r_statmap.dscalar.nii", session[1], out, missing)
    check_derivative(out, session[0] / "run-4_bold.dtseries.nii")
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if line.startswith("NeuroFrames, mean of"))
    assert float(row.split()[4]) == pytest.approx(mse, abs=1e-3)
    # Of one run of 45 frames 16 shifts, and two blocks.
    assert "Too few frames to tell whether the EEG helped." in table
    assert all(row["p"] is None for row in metrics["helped"].values())
    assert "r over time" in table
    assert (f"{metrics['residual_before'] or 0:.3f} (rms) off" in table) == bool(flags)


def test_partial_frames_points_between_frames_and_calibration(
    session, trained, tmp_path, monkeypatch, capsys
):
    flags = "--ckpt", trained / "ckpt.pt", "--out", tmp_path, "--samples", 2, "--steps", 3
    flags += "--frames", 5
    command(monkeypatch, sampling, *flags, "--observe", "visual", "--gap", 3, "--upsample", 2)
    out = tmp_path / "interrecon"
    recon, truth, t = (np.load(out / f"{name}.npy") for name in ("recon", "truth", "frames"))
    metrics = read_json(out / "metrics.json")
    visual = data.Subject(str(trained / "subject")).rois["visual"]
    whole = np.isin(np.arange(45) % 5, [0, 3])
    assert np.array_equal(t, 135 + np.arange(90) / 2) and recon.shape == (90, 48)
    assert np.array_equal(recon[::2][whole], truth[whole])
    assert np.array_equal(recon[::2][:, visual], truth[:, visual])
    varies = truth.std(0) > 0
    free = ~visual & varies  # the whole is what of it was not observed
    assert (recon[::2] != truth)[~whole][:, free].all()
    assert "visual" not in metrics["scores"]["neuroframes"]
    mse = ((recon[::2] - truth)[~whole][:, free] ** 2).mean()
    found = metrics["scores"]["neuroframes"]["whole"]["mse"]["mean"]
    assert found == pytest.approx(mse, rel=1e-5)
    assert nib.load(out / "run-4_desc-recon_bold.dtseries.nii").header.get_axis(0).step == 0.4

    vertex = np.arange(48)
    mask = np.stack([vertex < 20, vertex < 0, vertex >= 20])
    np.save(tmp_path / "mask.npy", mask)
    plain = "--observe", tmp_path / "mask.npy", "--projection", "plain", "--calibrate"
    command(monkeypatch, sampling, *flags, *plain)
    recon = np.load(out / "recon.npy")
    mask = np.tile(mask, (15, 1))
    assert np.array_equal(recon[mask], truth[mask])
    assert (recon != truth)[:, varies][~mask[:, varies]].all()
    assert len(read_json(out / "metrics.json")["calibration"]) == 3
    assert "hold the truth" in capsys.readouterr().out


def test_any_length_from_one_checkpoint(tiny, tmp_path, monkeypatch):
    """Windows of 3 and of 30 frames, and two tokens a frame; lengths matter, and all frames are
    there."""
    flags = "--data", tiny, "--steps", 30, *SMALL, "--tokens-per-frame", 2, "--lr", "1e-2"
    command(monkeypatch, train, *flags, "--out", tmp_path)
    recon = {}
    for window in (3, 30):
        given = "--ckpt", tmp_path / "ckpt.pt", "--window", window, "--steps", 2, "--samples", 1
        command(monkeypatch, sampling, *given)
        recon[window] = np.load(tmp_path / "direct/recon.npy")
        metrics = read_json(tmp_path / "direct/metrics.json")
        assert metrics["window"] == window and recon[window].shape == (60, 64)
        assert np.isfinite(recon[window]).all() and metrics["scores"].keys() >= {"neuroframes"}
    assert np.abs(recon[3] - recon[30]).max() > 1e-3


def test_a_file_for_each_test_run(trained, tmp_path, monkeypatch):
    """With two test runs there are two series, each with its own start. Frames between that are not
    of the test are NaN."""
    folder = tmp_path / "subject"
    folder.mkdir()
    for name in ("fmri.npy", "eeg.npy", "space.dscalar.nii"):
        (folder / name).symlink_to(trained / "subject" / name)
    meta = json.loads((trained / "subject/subject.json").read_text())
    frames = [*range(50, 70), *range(80, 85), *range(135, 180)]
    meta["names"] = [f"rest_run-{run}" for run in (1, 2, 3, 4)]
    meta["split"] = {"train": list(range(45)), "test": frames}
    (folder / "subject.json").write_text(json.dumps(meta))
    given = "--ckpt", trained / "ckpt.pt", "--out", tmp_path, "--samples", 1, "--steps", 2
    command(monkeypatch, sampling, *given, "--data", folder)
    names = sorted(path.name for path in (tmp_path / "direct").glob("*recon*.dtseries.nii"))
    stems = ["rest_run-2", "rest_run-4"]
    assert names == sorted(f"{stem}_desc-recon_bold.dtseries.nii" for stem in stems)
    image = nib.load(tmp_path / "direct" / f"{stems[0]}_desc-recon_bold.dtseries.nii")
    series = image.header.get_axis(0)
    assert series.size == 35 and series.start == pytest.approx((5 + 5) * 0.8)
    nothing = np.isnan(image.get_fdata())
    assert nothing[20:30].all() and not nothing[:20].any() and not nothing[30:].any()
    assert np.load(tmp_path / "direct/frames.npy").tolist() == frames


@pytest.mark.parametrize("frames, sizes", [(9_999, (128, 2, 64)), (10_000, (1024, 6, 1024))])
def test_sizes_follow_the_subject(frames, sizes):
    a = train.parse(["--preset", "paper"])
    train.choose_sizes(a, frames)
    assert (a.width, a.depth, a.latent_dim) == sizes
    chapters = a.predict, a.prior, a.eeg_encoder, a.context, a.vary
    assert chapters == ("eps", "none", "conv", 0, False)
    a = train.parse(["--preset", "paper", "--width", "32", "--predict", "v", "--epochs", "1"])
    train.choose_sizes(a, frames)
    assert a.width == 32 and a.predict == "v" and a.steps == frames // 320


def test_presets_and_defaults():
    assert train.parse([]).preset == train.parse(["--data", "x"]).preset == "auto"
    a = train.parse(["--preset", "tiny", "--no-vary"])
    chapters = a.predict, a.prior, a.eeg_encoder, a.context, a.vary
    assert chapters == ("v", "gaussian", "bandpower", 6, False)
    a = train.parse(["--preset", "tiny", "--autoencoder", "joint"])
    assert (a.prior, a.loss) == ("none", "latent")
    a = sampling.parse(["--interrecon"])
    assert (a.gap, a.samples, a.interrecon, a.paper) == (2, 8, True, False)
    a = sampling.parse(["--interrecon", "--paper"])
    assert (a.gap, a.samples, a.paper) == (2, 1, True)
    a = sampling.parse(["--anchors", "0,9"])
    assert a.interrecon and a.gap is None
    assert not sampling.parse([]).interrecon
