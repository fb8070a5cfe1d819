"""A lab's files in: runs, folders of frames, regions; and what comes out again."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import HERE, command

import data
import recordings
from tools.errors import Problem


def test_prepared_session(session, trained):
    subject = data.Subject(str(trained / "subject"))
    assert subject.runs == [[0, 45], [45, 90], [90, 135], [135, 180]]
    assert subject.meta["first_volume"] == [5] * 4
    np.testing.assert_array_equal(subject.fmri[45:90], session[2][1][5:])
    eeg = np.load(session[0] / "run-2_eeg.npy")
    eeg -= eeg.mean(1, keepdims=True)  # without the offset of a run
    # Volume 5 + 3 at 6.4 s has the EEG from 2.4 s on.
    np.testing.assert_allclose(subject.eeg[45 + 3], eeg[:, 3 * 40 : 4 * 40], atol=1e-6)
    sizes = {region: int(mask.sum()) for region, mask in subject.rois.items()}
    assert sizes == {"visual": 10, "visual+audio": 15, "mine": 7}
    both = np.flatnonzero(subject.rois["visual+audio"])
    assert both.tolist() == list(range(10)) + list(range(30, 35))


def test_cinebrain_folders_are_not_delayed_twice(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 9)).astype(np.float32)
    eeg = rng.standard_normal((40, 5, 16)).astype(np.float32)
    for name, frames in (("fmri", x), ("eeg", eeg)):
        (tmp_path / name).mkdir()
        for i in range(40):
            np.save(tmp_path / f"{name}/{i + 3}.npy", frames[i])
    os.remove(tmp_path / "eeg/12.npy")  # a frame that only one folder has ends the run there
    clips = [[f"some/where/{i}.npy" for i in range(c, c + 5)] for c in (23, 38)]
    content = json.dumps([{"fmri": paths, "eeg": []} for paths in clips])
    (tmp_path / "split.json").write_text(content)
    folders = "--bold", tmp_path / "fmri", "--eeg", tmp_path / "eeg", "--out", tmp_path / "sub"
    flags = "--tr", 0.8, "--channels", 4, "--frames-per-run", 20, "--split", tmp_path / "split.json"
    command(monkeypatch, data, *folders, *flags)
    subject = data.Subject(str(tmp_path / "sub"))
    assert subject.runs == [[0, 9], [9, 19], [19, 39]] and subject.meta["delay"] == 0
    assert subject.meta["first_volume"] == [0, 10, 0]
    np.testing.assert_array_equal(subject.fmri[9], x[10])
    np.testing.assert_array_equal(subject.eeg[9], eeg[10, :4])
    assert subject.segments("test") == [(19, 24), (34, 39)]
    assert subject.segments("val") == [(24, 34)]


def test_preparing_needs_no_torch(session, tmp_path):
    """A lab may prepare where torch is not installed."""
    root = session[0]
    code = (
        "import sys; sys.modules['torch'] = None; import data; data.main(sys.argv[1:]); "
        "assert not any(name.split('.')[0] == 'torch' and m for name, m in sys.modules.items())"
    )
    runs = ["--bold", f"{root}/run-*_bold.dtseries.nii", "--eeg", f"{root}/run-*_eeg.npy"]
    flags = [*runs, "--fs", "50", "--out", str(tmp_path / "subject")]
    argv = [sys.executable, "-c", code, *flags]
    done = subprocess.run(argv, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(data.Subject(str(tmp_path / "subject")).fmri) == 180


@pytest.mark.parametrize("delay, first, start", [(4.0, 5, 0), (2.0, 3, 20), (0.0, 0, 0)])
def test_the_delay_pairs_older_eeg_with_a_frame(
    session, tmp_path, monkeypatch, delay, first, start
):
    """EEG `delay` seconds older than the volume; at 50 Hz a volume has 40 samples."""
    root, _, raw = session
    runs = "--bold", root / "run-*_bold.dtseries.nii", "--eeg", root / "run-*_eeg.npy"
    command(monkeypatch, data, *runs, "--fs", 50, "--delay", delay, "--out", tmp_path / "subject")
    subject = data.Subject(str(tmp_path / "subject"))
    assert subject.meta["first_volume"] == [first] * 4
    np.testing.assert_array_equal(subject.fmri[0], raw[0][first])
    eeg = np.load(root / "run-1_eeg.npy")
    eeg -= eeg.mean(1, keepdims=True)
    np.testing.assert_allclose(subject.eeg[0], eeg[:, start : start + 40], atol=1e-6)


@pytest.mark.parametrize("flags", ["--skip 2", "--trigger R128 --start 1"])
def test_flags_that_would_be_ignored(flags):
    """Dummy scans would be in the EEG of all volumes."""
    with pytest.raises(Problem, match="--skip counts triggers"):
        recordings.parse(["--bold", "x.npy", "--eeg", "y.npy", "--out", "z", *flags.split()])
