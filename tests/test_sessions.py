"""Sessions as labs have them, from their files to results in the same format, without a line of
code of one's own. The EEG files are written by mne's tools, and skipped without them."""

import importlib.util
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import SMALL, command

import data
import sample
import train

FS, TR, VOLUMES = 100, 0.8, 60
NAMES = ["Fz", "Cz", "Pz", "Oz"]
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
CLOSED = [flag if flag != "tiny" else "auto" for flag in SMALL] + ["--steps", "0"]


def brainvision(folder, name, eeg, names, onsets):
    """EEG [C,samples] as a .vhdr with a trigger R128 at each onset, in samples."""
    pybv = pytest.importorskip("pybv")
    pytest.importorskip("mne")
    events = [{"onset": int(o), "description": 128, "type": "Response"} for o in onsets]
    pybv.write_brainvision(
        data=eeg * 1e-6,
        sfreq=FS,
        ch_names=names,
        fname_base=name,
        folder_out=str(folder),
        events=events,
        unit="µV",
        resolution=0.01,
    )


def confounds(motion):
    """fMRIPrep's table of motion parameters [T,6], in words."""
    table = dict(zip((f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"), motion.T))
    for name in list(table):
        table[f"{name}_derivative1"] = np.diff(table[name], prepend=np.nan)
    for name in list(table):
        table[f"{name}_power2"] = table[name] ** 2
    moved = np.full(VOLUMES, 0.1)
    moved[[0, 30]] = np.nan, 0.9  # a jump at volume 30
    table["framewise_displacement"] = moved
    rows = np.stack(list(table.values()), 1)
    lines = ["\t".join("n/a" if np.isnan(x) else str(x) for x in row) for row in rows]
    return "\n".join(["\t".join(table), *lines])


def write_run(rng, func, eeg_folder, run, mask, person="01"):
    """BOLD as fMRIPrep's NIfTI, with mask and confounds, and BrainVision EEG: channels in another
    order in each run, an ECG among them, triggers that come a sample early or late."""
    stem = f"sub-{person}_task-{'rest' if run < 3 else 'talk'}_run-0{run}"
    motion = rng.normal(0, 0.1, (VOLUMES, 6)).cumsum(0)
    bold = 1000 + rng.normal(0, 5, (*mask.shape, VOLUMES)) + 20 * motion[:, 0]
    image = nib.Nifti1Image(bold.astype(np.float32), AFFINE)
    image.header.set_zooms((2, 2, 2, 1000 * TR))
    image.header.set_xyzt_units("mm", "msec")
    space = f"{stem}_space-MNI_desc-"
    nib.save(image, func / f"{space}preproc_bold.nii.gz")
    (func / f"{space}preproc_bold.json").write_text(json.dumps({"RepetitionTime": TR}))
    inside = mask.copy()
    inside[1, 1, 0] = run != 2  # one voxel is not in the second run's mask
    nib.save(nib.Nifti1Image(inside, AFFINE), func / f"{space}brain_mask.nii.gz")
    (func / f"{stem}_desc-confounds_timeseries.tsv").write_text(confounds(motion))

    eeg = rng.normal(0, 20, (4, round(VOLUMES * TR * FS) + 300))
    onsets = 200 + np.arange(VOLUMES) * round(TR * FS) + rng.integers(-1, 2, VOLUMES)
    order = rng.permutation(4)
    heart = rng.normal(0, 900, eeg.shape[1])
    labels = [NAMES[i] for i in order]
    labels.insert(2, "ECG")
    rows = [*eeg[order[:2]], heart, *eeg[order[2:]]]
    brainvision(eeg_folder, f"{stem}_eeg", np.array(rows), labels, onsets)
    return bold, motion, eeg, onsets


@pytest.fixture
def fmriprep(tmp_path):
    """(folder, mask, what is in each of three runs)."""
    rng = np.random.default_rng(0)
    func = tmp_path / "fmriprep/sub-01/func"
    eeg_folder = tmp_path / "sub-01/eeg"
    func.mkdir(parents=True)
    eeg_folder.mkdir(parents=True)
    mask = np.zeros((4, 4, 3), np.uint8)
    mask[1:3, 1:4] = 1
    runs = [write_run(rng, func, eeg_folder, run, mask) for run in (1, 2, 3)]
    return tmp_path, mask.astype(bool), runs


def prepared(monkeypatch, root, *flags):
    """A lab's folders in, a subject out."""
    bold = root / "fmriprep/sub-01/**/*preproc_bold.nii.gz"
    where = "--bold", bold, "--eeg", root / "sub-01/**/*.vhdr", "--out", root / "s01"
    command(monkeypatch, data, *where, "--trigger", "R128", "--mask", "auto", *flags)
    return data.Subject(str(root / "s01"))


def test_fmriprep_and_brainvision(fmriprep, monkeypatch, capsys):
    """Values against a few lines of numpy."""
    root, mask, truth = fmriprep
    confounds = "--confounds", "auto", "--strategy", "motion", "--high-pass", 30, "--fd", 0.5
    subject = prepared(monkeypatch, root, *confounds)
    said = capsys.readouterr().out
    names = [f"sub-01_task-rest_run-{run}" for run in (1, 2)] + ["sub-01_task-talk_run-3"]
    assert subject.meta["names"] == names and subject.tr == TR
    assert "left out, as no EEG: ECG" in said and "1 dropped" in said
    assert "test runs are of a task that no training run is of" in said

    mask[1, 1, 0] = False
    voxels = np.ravel_multi_index(subject.space.voxel.T, mask.shape)
    assert sorted(voxels) == np.flatnonzero(mask.ravel()).tolist()
    assert sorted(subject.meta["eeg"]["channels"]) == sorted(NAMES)
    order = [NAMES.index(name) for name in subject.meta["eeg"]["channels"]]
    for run, (bold, motion, eeg, onsets) in enumerate(truth):
        start, stop = subject.runs[run]
        first = subject.meta["first_volume"][run]
        assert first == np.argmax(onsets >= 4 * FS)  # 4 s of EEG come before it
        x = bold.reshape(-1, VOLUMES)[voxels].T.astype(np.float32)
        np.testing.assert_allclose(subject.fmri[start:stop], by_hand(x, motion)[first:], atol=2e-3)
        # EEG: each volume by its own trigger, channels by their names, without the offset.
        eeg = (eeg - eeg.mean(1, keepdims=True))[order]
        for volume in (first, 41, VOLUMES - 1):
            begin = onsets[volume] - 4 * FS
            window = subject.eeg[start + volume - first] * 1e6
            np.testing.assert_allclose(window, eeg[:, begin : begin + 80], atol=0.02)
    moved = [
        start + 30 - first for (start, _), first in zip(subject.runs, subject.meta["first_volume"])
    ]
    assert subject.meta["unusable"] == moved


def test_each_person_has_a_mask_and_a_folder(fmriprep, monkeypatch):
    root, mask, _ = fmriprep
    smaller = mask.astype(np.uint8)
    smaller[2] = 0
    for run in (1, 2):
        func, eeg_folder = root / "fmriprep/sub-01/func", root / "sub-01/eeg"
        write_run(np.random.default_rng(run), func, eeg_folder, run, smaller, "02")
    prepared_in = root / "people"
    bold = root / "fmriprep/**/*preproc_bold.nii.gz"
    where = "--bold", bold, "--eeg", root / "**/*.vhdr", "--out", prepared_in / "{sub}"
    command(monkeypatch, data, *where, "--trigger", "R128", "--mask", "auto")
    sizes = {p.name: data.Subject(str(p)).fmri.shape[1] for p in sorted(prepared_in.iterdir())}
    assert sizes == {"sub-01": mask.sum() - 1, "sub-02": smaller.sum() - 1}
    assert len(data.Subject(str(prepared_in / "sub-02")).runs) == 2


def by_hand(x, motion):
    """BOLD x [T,V] without all in one fit, which the volume that moved has no part in, in percent;
    that volume from its neighbours."""
    change = np.diff(motion, axis=0, prepend=motion[:1])
    k = np.arange(int(2 * VOLUMES * TR / 30) + 1)
    cosines = np.cos(np.pi / VOLUMES * np.outer(np.arange(VOLUMES) + 0.5, k))
    X = np.hstack([cosines, motion, change, motion**2, change**2])
    good = np.arange(VOLUMES) != 30
    beta = np.linalg.lstsq(X[good], x[good], rcond=None)[0]
    y = 100 * (x - X @ beta) / x[good].mean(0)
    y[30] = (y[29] + y[31]) / 2
    return y


def test_results_in_the_recordings_own_space(fmriprep, monkeypatch, capsys):
    """Trained with the runs that are named, and written as NIfTI, run by run."""
    root, mask, _ = fmriprep
    subject = prepared(monkeypatch, root)
    flags = "--data", subject.folder, "--test", "task-rest_run-2", "--val", "run-1"
    command(monkeypatch, train, *flags, *CLOSED, "--out", root / "out")
    command(monkeypatch, sample, "--ckpt", root / "out/ckpt.pt", "--data", subject.folder)
    recon = np.load(root / "out/direct/recon.npy")
    start, stop = subject.runs[1]
    assert np.load(root / "out/direct/frames.npy").tolist() == list(range(start, stop))
    name = "sub-01_task-rest_run-2_desc-recon_bold"
    image = nib.load(root / f"out/direct/{name}.nii.gz")
    segments = [subject.runs[0], subject.runs[2]]  # without a validation run: --steps 0
    normaliser = data.Normaliser.measure(subject, segments)
    expected = normaliser.raw(recon)
    found = image.get_fdata()[tuple(subject.space.voxel.T)].T
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert image.header.get_zooms()[3] == np.float32(TR) and np.allclose(image.affine, AFFINE)
    if importlib.util.find_spec("matplotlib"):
        page = (root / "out/direct/report.html").read_text()
        shown = json.loads((root / "out/direct/metrics.json").read_text())["scores"]["neuroframes"]
        assert f"{shown['whole']['mse']['mean']:.3f} ±" in page and "http" not in page
        assert page.count('<img src="data:image/png;base64,') == 3 and "run-2</td><td>test" in page
    about = json.loads((root / f"out/direct/{name}.json").read_text())
    assert about["StartTime"] == pytest.approx(subject.meta["first_volume"][1] * TR)
    with pytest.raises(SystemExit):
        command(monkeypatch, train, *flags[:2], "--test", "task-none", "--out", root / "out2")
    assert "sub-01_task-talk_run-3" in capsys.readouterr().err


def test_what_two_flags_name_is_for_the_test(fmriprep, monkeypatch):
    """A run of the test that --val names too was trained on, after validation."""
    subject = prepared(monkeypatch, fmriprep[0])
    flags = {"test": ["task-rest"], "val": ["run-1"]}
    subject.split_by_names(flags)
    assert subject.segments("test") == [tuple(run) for run in subject.runs[:2]]
    assert subject.segments("train", validation=False) == [tuple(subject.runs[2])]


def test_tables_of_regions_by_the_start(tmp_path, monkeypatch):
    """.tsv and .npy, without triggers: the EEG starts one TR late, and ends in a table."""
    rng = np.random.default_rng(0)
    bold = []
    for run in (1, 2, 3):
        x = rng.normal(100, 1, (VOLUMES, 3))
        lines = ["V1\tM1\tA1", *("\t".join(map(str, row)) for row in x)]
        (tmp_path / f"run-{run}_bold.tsv").write_text("\n".join(lines))
        samples = round((VOLUMES - 1) * TR * FS)
        np.save(tmp_path / f"run-{run}_eeg.npy", rng.normal(size=(4, samples)).astype("f4"))
        bold.append(x)
    where = "--bold", tmp_path / "*_bold.tsv", "--eeg", tmp_path / "*_eeg.npy", "--fs", FS
    out = tmp_path / "subject"
    command(monkeypatch, data, *where, "--tr", TR, "--start", -TR, "--out", out)
    subject = data.Subject(str(out))
    first = subject.meta["first_volume"][0]
    assert first == 6 and subject.runs[0] == [0, VOLUMES - 6]  # 4 s, and the TR that is not there
    np.testing.assert_allclose(subject.fmri[:3], bold[0][6:9], rtol=1e-6)
    eeg = np.load(tmp_path / "run-1_eeg.npy")
    np.testing.assert_allclose(subject.eeg[0], (eeg - eeg.mean(1)[:, None])[:, :80], atol=1e-5)
    command(monkeypatch, train, "--data", out, *CLOSED, "--out", tmp_path / "out")
    command(monkeypatch, sample, "--ckpt", tmp_path / "out/ckpt.pt")
    table = (tmp_path / "out/direct/run-3_desc-recon_bold.tsv").read_text().splitlines()
    assert table[0].split("\t") == ["V1", "M1", "A1"] and len(table) == 1 + VOLUMES - 6


def test_eeg_without_fmri(fmriprep, monkeypatch, capsys):
    """Reconstructed as if it were the test of the subject that the model was trained on."""
    root, _, truth = fmriprep
    band = "--band", 1, 40
    subject = prepared(monkeypatch, root, *band)
    out = root / "out"
    command(monkeypatch, train, "--data", subject.folder, *CLOSED, "--out", out)
    command(monkeypatch, sample, "--ckpt", out / "ckpt.pt", "--out", out / "with")
    # The EEG of the last run, from its first volume on.
    where = "--eeg", root / "sub-01/eeg/*talk*.vhdr", "--like", subject.folder, "--out"
    onsets = truth[2][3]
    command(monkeypatch, data, *where, root / "alone", *band, "--start", onsets[0] / FS)
    capsys.readouterr()
    command(monkeypatch, sample, "--ckpt", out / "ckpt.pt", "--data", root / "alone")
    said = capsys.readouterr().out
    assert "nothing to score" in said and "mean training frame" not in said
    alone = data.Subject(str(root / "alone"))
    assert alone.segments("test") == [(0, len(alone.fmri))] and not alone.segments("train")
    eeg = alone.eeg[:50]
    expected = subject.eeg[slice(*subject.runs[2])]
    assert np.corrcoef(eeg[1].ravel(), expected[1].ravel())[0, 1] > 0.7  # triggers: a sample off

    written = {path.name for path in (out / "direct").iterdir()}
    name = "sub-01_task-talk_run-3_desc"
    assert {f"{name}-recon_bold.nii.gz", f"{name}-std_bold.nii.gz", "frames.tsv"} <= written
    assert not {"truth.npy", "metrics.json", f"{name}-truth_bold.nii.gz"} & written
    recon = np.load(out / "direct/recon.npy")
    image = nib.load(out / f"direct/{name}-recon_bold.nii.gz").get_fdata()
    raw = image[tuple(alone.space.voxel.T)].T
    normaliser = data.Normaliser.measure(subject, subject.runs[:2])
    np.testing.assert_allclose(raw, normaliser.raw(recon), rtol=1e-4)


def test_eeg_alone_where_nobody_knows_the_vertices(tmp_path, monkeypatch):
    """A model of BOLD as .npy: no space to write results in."""
    rng = np.random.default_rng(0)
    for run in (1, 2):
        np.save(tmp_path / f"run-{run}_bold.npy", rng.normal(100, 1, (VOLUMES, 3)).astype("f4"))
        np.save(tmp_path / f"run-{run}_eeg.npy", rng.normal(size=(4, 4800)).astype("f4"))
    fs = "--eeg", tmp_path / "*_eeg.npy", "--fs", FS
    known = "--bold", tmp_path / "*_bold.npy", "--tr", TR, "--out", tmp_path / "subject"
    command(monkeypatch, data, *fs, *known)
    command(monkeypatch, data, *fs, "--like", known[-1], "--out", tmp_path / "alone")
    command(monkeypatch, train, "--data", known[-1], *CLOSED, "--out", tmp_path / "out")
    flags = "--ckpt", tmp_path / "out/ckpt.pt", "--data", tmp_path / "alone", "--upsample", 2
    command(monkeypatch, sample, *flags)
    written = {path.name for path in (tmp_path / "out/direct").iterdir()}
    assert written == {"recon.npy", "std.npy", "frames.npy"}


def test_eeg_alone_that_a_model_does_not_know(fmriprep, monkeypatch, capsys):
    root, _, _ = fmriprep
    subject = prepared(monkeypatch, root)
    where = "--eeg", root / "sub-01/eeg/*talk*.vhdr", "--like", subject.folder, "--out"
    command(monkeypatch, train, "--data", subject.folder, *CLOSED, "--out", root / "out")
    command(monkeypatch, data, *where, root / "alone")
    flags = "--ckpt", root / "out/ckpt.pt", "--data", root / "alone", "--interrecon"
    cases = [(sample, flags, "is EEG alone"), (data, (*where, "x", "--resample", 50), "50 samples")]
    cases.append((sample, (*flags[:4], "--gap", 3), "without frames to complete"))
    cases.append((train, ("--data", root / "alone", "--out", root / "o"), "is EEG without fMRI"))
    for module, given, words in cases:
        with pytest.raises(SystemExit):
            command(monkeypatch, module, *given)
        assert words in capsys.readouterr().err
    # A channel more than the model knows is left out.
    eeg = np.random.default_rng(0).normal(0, 20, (5, 5000))
    brainvision(root, "more", eeg, ["P9", *NAMES], [])
    command(monkeypatch, data, "--eeg", root / "more.vhdr", *where[2:], root / "less")
    found = data.Subject(str(root / "less"))
    order = [NAMES.index(name) for name in subject.meta["eeg"]["channels"]]
    assert found.meta["eeg"]["channels"] == subject.meta["eeg"]["channels"]
    expected = (eeg - eeg.mean(1, keepdims=True))[1:][order]
    np.testing.assert_allclose(found.eeg[0] * 1e6, expected[:, :80], atol=0.02)


def test_eeg_alone_that_lacks_a_channel(fmriprep, monkeypatch, capsys):
    """Made from the others, where that is asked for; beside a file that lacks none."""
    root, _, _ = fmriprep
    mne = pytest.importorskip("mne")
    subject = prepared(monkeypatch, root)
    rng = np.random.default_rng(0)
    values = rng.normal(0, 20, (5, 5000))
    brainvision(root, "run-1_more", values, ["P9", *NAMES], [])
    lacking = ["Oz", "Fz", "Cz"]
    brainvision(root, "run-2_less", values[:3], lacking, [])
    where = "--eeg", root / "run-*.vhdr", "--like", subject.folder, "--out", root / "alone"
    for mode in ("error", "intersect"):
        with pytest.raises(SystemExit):
            command(monkeypatch, data, *where, "--bad-channels", mode)
        said = capsys.readouterr().err
        assert "run-2_less.vhdr: has no channel Pz" in said and "--bad-channels inter" in said
    command(monkeypatch, data, *where, "--bad-channels", "interpolate")
    assert "run-2_less.vhdr: interpolated: Pz" in capsys.readouterr().out

    alone = data.Subject(str(root / "alone"))
    names = subject.meta["eeg"]["channels"]
    assert alone.meta["eeg"]["channels"] == names and len(alone.runs) == 2
    values -= values.mean(1, keepdims=True)
    expected = values[1:][[NAMES.index(name) for name in names]]
    np.testing.assert_allclose(alone.eeg[0] * 1e6, expected[:, :80], atol=0.02)
    raw = mne.io.RawArray(values[[0, 1, 2, 0]], mne.create_info([*lacking, "Pz"], FS, "eeg"))
    raw.info["bads"] = ["Pz"]
    templates = mne.channels.get_builtin_montages()
    raw.set_montage(next(name for name in templates if name.endswith("_1005")))
    raw.interpolate_bads()
    expected = raw.get_data(names)
    np.testing.assert_allclose(alone.eeg[alone.runs[1][0]] * 1e6, expected[:, :80], atol=0.02)


def test_a_model_whose_subject_says_nothing_of_its_eeg(tmp_path, monkeypatch):
    """As one of folders of frames."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "bold.npy", rng.normal(100, 1, (VOLUMES, 3)).astype("f4"))
    np.save(tmp_path / "eeg.npy", rng.normal(size=(4, 4800)).astype("f4"))
    eeg = "--eeg", tmp_path / "eeg.npy", "--fs", FS
    bold = "--bold", tmp_path / "bold.npy", "--by-order", "--tr", TR
    command(monkeypatch, data, *eeg, *bold, "--out", tmp_path / "known")
    path = tmp_path / "known/subject.json"
    about = json.loads(path.read_text())
    del about["eeg"]
    path.write_text(json.dumps(about))
    command(monkeypatch, data, *eeg, "--like", tmp_path / "known", "--out", tmp_path / "alone")
    assert data.Subject(str(tmp_path / "alone")).eeg.shape == (55, 4, 80)


def test_filters_that_the_model_was_not_trained_on(fmriprep, monkeypatch, capsys):
    """Another subject, or EEG alone: power that it never saw, or that it misses."""
    root, _, _ = fmriprep
    subject = prepared(monkeypatch, root, "--band", 1, 40)
    command(monkeypatch, train, "--data", subject.folder, *CLOSED, "--out", root / "out")
    where = "--eeg", root / "sub-01/eeg/*talk*.vhdr", "--like", subject.folder, "--out"
    other = "--band", 1, 30, "--notch", 20, "--reference", "average"
    command(monkeypatch, data, *where, root / "alone", *other)
    capsys.readouterr()
    command(monkeypatch, sample, "--ckpt", root / "out/ckpt.pt", "--data", root / "alone")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: EEG")]
    assert [line.split(";")[0] for line in notes] == [
        "note: EEG's lowpass is 30.0",
        "note: EEG's notch is 20.0",
        "note: EEG's reference is average",
    ]
    assert notes[0].endswith("was trained on 40.0")
    command(monkeypatch, sample, "--ckpt", root / "out/ckpt.pt", "--out", root / "again")
    assert "note: EEG" not in capsys.readouterr().out


def test_a_validation_that_leaves_no_test(fmriprep, monkeypatch, capsys):
    """By default the last run is the test: training would go on, and never be scored."""
    subject = prepared(monkeypatch, fmriprep[0])
    flags = "--data", subject.folder, "--val", "task-talk", *CLOSED, "--out", fmriprep[0] / "out"
    with pytest.raises(SystemExit):
        command(monkeypatch, train, *flags)
    said = capsys.readouterr().err
    assert "--val: names all test runs" in said and "--test" in said
    subject.split_by_names({"test": ["run-1"], "val": ["task-talk"]})
    assert subject.segments("test") == [tuple(subject.runs[0])]
    assert subject.segments("val") == [tuple(subject.runs[2])]


def test_channels_of_another_order_are_refused(fmriprep, monkeypatch, capsys):
    """As many, of the same names: the weights of one would be applied to the other."""
    root, _, _ = fmriprep
    subject = prepared(monkeypatch, root)
    command(monkeypatch, train, "--data", subject.folder, *CLOSED, "--out", root / "out")
    other = shutil.copytree(subject.folder, root / "other")
    about = json.loads((other / "subject.json").read_text())
    about["eeg"]["channels"].reverse()
    (other / "subject.json").write_text(json.dumps(about))
    with pytest.raises(SystemExit):
        command(monkeypatch, sample, "--ckpt", root / "out/ckpt.pt", "--data", other)
    assert "its EEG channels are" in capsys.readouterr().err
