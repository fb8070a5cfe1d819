"""CineBrain: whole runs cut by the time of the video, frames of a part of a space, flags that do
not belong to either."""

import json
import os

import nibabel as nib
import numpy as np
import pytest
from conftest import command, read_json

import data
import recordings
from recordings.bold import open_bold
from spaces import formats
from spaces.space import Space, load_space
from tools.errors import Problem

TR = 0.8
TIMES = {1: (2.0, 11.3), 2: (0.4, 9.9), 10: (3.21, 12.0)}  # s; the order is not that of letters
VOLUMES = 24


def cut(run, delay=4.0):
    start, stop = TIMES[run]
    return slice(int((start + delay) / TR) + 1, int((stop + delay) / TR) + 1)


def write_times(path, start, stop):
    columns = {"subject": "one", "videoStartTime": start, "videoStopTime": stop}
    if path.suffix == ".json":
        path.write_text(json.dumps(columns))
        return
    separator = "," if path.suffix == ".csv" else "\t"
    lines = [separator.join(map(str, line)) for line in (columns, columns.values())]
    path.write_text("\n".join([*lines, separator.join("zzz")]))


def make(root, space, names="sub-1_run-{}_beh.tsv", first=1):
    """Runs, times and windows; (BOLD of each run, windows [T,C,W])."""
    rng = np.random.default_rng(0)
    (root / "beh").mkdir()
    (root / "eeg").mkdir()
    bold = {}
    for run, times in TIMES.items():
        bold[run] = (1000 + rng.standard_normal((VOLUMES, len(space))).cumsum(0)).astype("f4")
        path = f"{root}/sub-1_task-tv_run-{run:02}_space-fsLR_den-91k_bold"
        formats.save_series(Space(space, ".dtseries.nii"), path, bold[run], TR, 0)
        write_times(root / "beh" / names.format(run), *times)
    count = sum(len(bold[run][cut(run)]) for run in TIMES)
    eeg = rng.standard_normal((count, 5, 16)).astype("f4")
    for i, window in enumerate(eeg):
        np.save(root / f"eeg/{first + i}.npy", window)
    return bold, eeg


def flags(root, *more):
    files = "--bold", root / "*bold.dtseries.nii", "--eeg", root / "eeg", "--times", root / "beh/*"
    return [*files, "--channels", 4, "--out", root / "out", *more]


@pytest.fixture
def space(session):
    return session[1]


@pytest.mark.parametrize(
    "names, first",
    [("sub-1_run-{}_beh.tsv", 1), ("Run-{}.csv", 0), ("run-0{}.json", 7)],
)
def test_runs_are_cut_by_the_time_of_the_video(tmp_path, monkeypatch, space, capsys, names, first):
    bold, eeg = make(tmp_path, space, names, first)
    clip = [f"x/{first + i}.npy" for i in (0, 1, 20)]
    (tmp_path / "split.json").write_text(json.dumps([{"fmri": clip, "eeg": []}]))
    command(monkeypatch, data, *flags(tmp_path, "--split", tmp_path / "split.json"))
    subject = data.Subject(str(tmp_path / "out"))
    expected = np.concatenate([bold[run][cut(run)] for run in (1, 2, 10)])
    np.testing.assert_array_equal(subject.fmri, expected)
    np.testing.assert_array_equal(subject.eeg, eeg[:, :4])

    lengths = [len(bold[run][cut(run)]) for run in TIMES]
    stops = np.cumsum(lengths)
    assert subject.runs == [[stop - n, stop] for stop, n in zip(stops, lengths)]
    assert subject.meta["first_volume"] == [cut(run).start for run in TIMES]
    assert subject.meta["first_number"] == [first + stop - n for stop, n in zip(stops, lengths)]
    assert subject.meta["delay"] == 4 and subject.meta["fs"] == 20 and subject.tr == TR
    assert subject.meta["split"]["test"] == [0, 1, 20]
    assert subject.space == space
    printed = capsys.readouterr().out
    assert f"{names.format(10)}\n" in printed.split("run-10_", 1)[1]


def test_runs_are_cleaned_whole(tmp_path, monkeypatch, space):
    bold, _ = make(tmp_path, space)
    cleaning = "--high-pass", 12, "--delay", 2
    for run, (start, stop) in TIMES.items():  # so late that the counts stay
        write_times(tmp_path / f"beh/sub-1_run-{run}_beh.tsv", start + 2, stop + 2)
    command(monkeypatch, data, *flags(tmp_path, *cleaning))
    subject = data.Subject(str(tmp_path / "out"))
    x = bold[2].astype(float)  # [T,V]
    angle = np.pi * (np.arange(VOLUMES) + 0.5) / VOLUMES
    design = np.stack([np.cos(k * angle) for k in range(int(2 * VOLUMES * TR / 12) + 1)], 1)
    rest = x - design @ np.linalg.lstsq(design, x, rcond=None)[0]
    clean = 100 * rest / x.mean(0)
    start, stop = subject.runs[1]
    # 2 s later, with 2 s less of delay: the same volumes.
    np.testing.assert_allclose(subject.fmri[start:stop], clean[cut(2)], atol=1e-4)
    assert len(subject.meta["taken_out"]) == 3 and subject.meta["delay"] == 2


def change_times(root, start, stop):
    write_times(root / "beh/sub-1_run-2_beh.tsv", start, stop)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: os.remove(t / "eeg/9.npy"), "34 files .* 35 volumes .*run-2 12.* has .9.$"),
        (lambda t: np.save(t / "eeg/36.npy", np.ones((5, 16))), "36 files .* 35 volumes"),
        (lambda t: change_times(t, 1, 15.3), "7 to 25 .* 24 of 0.8 s"),
        (lambda t: change_times(t, 5, 5), "expected times"),
        (lambda t: change_times(t, "n/a", 5), "run-2_beh.tsv: says no videoStartTime"),
        (lambda t: (t / "beh/sub-1_run-2_beh.tsv").write_text(""), "videoStopTime"),
        (lambda t: os.remove(t / "beh/sub-1_run-2_beh.tsv"), "run-02.*none"),
        (lambda t: np.save(t / "eeg/3.npy", np.ones((3, 16))), "3.npy: has shape .3, 16"),
        (lambda t: np.save(t / "eeg/3.npy", np.full((5, 16), np.nan)), "3.npy: 64 of 64 values"),
        (lambda t: [os.remove(path) for path in (t / "eeg").iterdir()], "has 0 files"),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, space, change, words):
    make(tmp_path, space)
    change(tmp_path)
    with pytest.raises(Problem, match=words):
        recordings.prepare(
            recordings.parse([*map(str, flags(tmp_path))]),
            data.eeg_windows,
        )
    assert not (tmp_path / "out").exists()


def test_windows_are_of_one_person(tmp_path, space):
    make(tmp_path, space)
    for path in [*tmp_path.glob("sub-1_*"), *tmp_path.glob("beh/*")]:
        os.link(path, path.parent / path.name.replace("sub-1", "sub-2"))
    several = flags(tmp_path, "--out", tmp_path / "{sub}")
    with pytest.raises(Problem, match="one person, --bold of 2"):
        recordings.prepare(recordings.parse([*map(str, several)]), data.eeg_windows)


# ---- Frames of a part of a space -------------------------------------------------------


@pytest.mark.parametrize("which", ["visual", "visual+audio", "left.npy"])
def test_frames_of_a_part_of_a_space(session, tmp_path, monkeypatch, which):
    root, space, _ = session
    masks = {"visual": np.arange(48) < 10, "left.npy": space.name == space.name[0]}
    masks["visual+audio"] = masks["visual"] | np.isin(np.arange(48), np.arange(30, 35))
    mask = masks[which]
    np.save(tmp_path / "left.npy", masks["left.npy"])
    np.save(tmp_path / "few.npy", np.arange(mask.sum()) < 3)

    x = np.random.default_rng(0).standard_normal((40, mask.sum())).astype("f4")
    eeg = np.random.default_rng(1).standard_normal((40, 4, 16))
    for name, frames in (("fmri", x), ("eeg", eeg)):
        (tmp_path / name).mkdir()
        for i in range(40):
            np.save(tmp_path / f"{name}/{i}.npy", frames[i])
    parcels = [] if which == "left.npy" else [root / "parcels.dlabel.nii"]
    given = "--bold", tmp_path / "fmri", "--eeg", tmp_path / "eeg", "--out", tmp_path / "sub"
    where = "--space", root / "run-1_bold.dtseries.nii", "--space-mask"
    name = tmp_path / which if which == "left.npy" else which
    parcels = "--parcels", *parcels, tmp_path / "few.npy"
    command(monkeypatch, data, *given, "--tr", TR, "--frames-per-run", 10, *where, name, *parcels)

    subject = data.Subject(str(tmp_path / "sub"))
    assert subject.space == space[mask] and len(subject.runs) == 4
    assert subject.rois["few"].sum() == 3
    if which == "visual+audio":
        np.testing.assert_array_equal(subject.rois["visual"], np.arange(15) < 10)
    there = load_space(subject.folder)
    formats.save_series(there, f"{tmp_path}/again", x, TR, 1.6)
    again = open_bold([f"{tmp_path}/again.dtseries.nii"], recordings.parse([*map(str, given)]))
    assert again.tr == TR and again.space.axis == space[mask]
    np.testing.assert_array_equal(again[:], x)
    image = nib.load(f"{tmp_path}/again.dtseries.nii")
    whole = np.full((64, 2), np.nan)  # on the surfaces
    for value, side, vertex in zip(x[0], space[mask].name, space[mask].vertex):
        if "CORTEX" in side:
            whole[vertex, int("RIGHT" in side)] = value
    for structure, here, axis in image.header.get_axis(1).iter_structures():
        if "CORTEX" in structure:
            column = whole[axis.vertex, int("RIGHT" in structure)]
            np.testing.assert_array_equal(image.get_fdata()[0, here], column)


def test_a_region_that_is_not_there(session, tmp_path):
    root = session[0]
    (tmp_path / "fmri").mkdir()
    (tmp_path / "eeg").mkdir()
    np.save(tmp_path / "fmri/0.npy", np.ones(10))
    np.save(tmp_path / "eeg/0.npy", np.ones((4, 16)))
    given = "--bold", tmp_path / "fmri", "--eeg", tmp_path / "eeg", "--out", tmp_path / "sub"
    where = "--space", root / "run-1_bold.dtseries.nii", "--tr", TR, "--space-mask", "audio"
    parcels = "--parcels", root / "parcels.dlabel.nii"
    for more in ((), parcels):
        a = recordings.parse([*map(str, [*given, *where, *more])])
        with pytest.raises(Problem, match="--space-mask audio"):
            recordings.prepare(a, data.eeg_windows)


# ---- Flags -----------------------------------------------------------------------------

FRAMES = (
    "--mask x|--confounds x|--high-pass 9|--strategy global|--band 1 40|--notch 50|--resample 9|"
    "--reference average|--trigger R128|--start 0|--atlas x|--by-order|--fs 9|--times beh|"
    "--bad-channels intersect"
)
RUNS = "--split x|--space x|--space-mask x|--frames-per-run 9|--times x"
MIXED = "--band 1 40|--trigger R128|--start 0|--fs 9|--space x|--frames-per-run 9"


@pytest.mark.parametrize(
    "bold, eeg, given",
    [("fmri", "eeg", given) for given in FRAMES.split("|")]
    + [("x.npy", "y.npy", given) for given in RUNS.split("|")]
    + [("x.npy", "eeg", "--times x " + given) for given in MIXED.split("|")],
)
def test_flags_that_would_be_ignored(tmp_path, monkeypatch, bold, eeg, given):
    (tmp_path / "fmri").mkdir()
    (tmp_path / "eeg").mkdir()
    monkeypatch.chdir(tmp_path)
    name = given.removeprefix("--times x ").split()[0]
    with pytest.raises(Problem, match=f"^{name}: is for .* leave it out"):
        recordings.parse(["--bold", bold, "--eeg", eeg, "--out", "z", *given.split()])


@pytest.mark.parametrize("more", [["--bold", "x.npy"], ["--bold", "x", "--times", "y"]])
def test_windows_need_times(tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eeg").mkdir()
    with pytest.raises(Problem, match="--times"):
        recordings.parse(["--eeg", "eeg", "--out", "z", *more])


def test_a_part_of_no_space(tmp_path):
    for name in ("fmri", "eeg"):
        (tmp_path / name).mkdir()
    folders = ["--bold", f"{tmp_path}/fmri", "--eeg", f"{tmp_path}/eeg", "--out", "z"]
    with pytest.raises(Problem, match="--space-mask visual: needs --space"):
        recordings.parse([*folders, "--space-mask", "visual"])


def test_named_channels_are_not_counted(tmp_path):
    mne = pytest.importorskip("mne")
    np.save(tmp_path / "run-1_bold.npy", np.ones((20, 6)))
    raw = mne.io.RawArray(np.ones((3, 800)), mne.create_info(["Cz", "Pz", "Oz"], 50, "eeg"))
    raw.save(tmp_path / "run-1_raw.fif", verbose="error")
    files = "--bold", tmp_path / "run-1_bold.npy", "--eeg", tmp_path / "run-1_raw.fif"
    given = *files, "--tr", TR, "--out", tmp_path / "out", "--channels", 2
    with pytest.raises(Problem, match="--channels 2: .*run-1_raw.fif"):
        recordings.prepare(recordings.parse([*map(str, given)]), data.eeg_windows)


def test_what_subject_json_says_of_frames(tmp_path, monkeypatch):
    """Numbers, places in the session, and that nothing was delayed here."""
    for name, shape in (("fmri", 6), ("eeg", (4, 16))):
        (tmp_path / name).mkdir()
        for i in [*range(5, 25), *range(27, 40)]:
            values = np.random.default_rng(i).standard_normal(shape)
            np.save(tmp_path / f"{name}/{i}.npy", values)
    given = "--bold", tmp_path / "fmri", "--eeg", tmp_path / "eeg", "--out", tmp_path / "sub"
    command(monkeypatch, data, *given, "--tr", TR, "--frames-per-run", 15, "--delay", 5)
    meta = read_json(tmp_path / "sub/subject.json")
    assert meta["runs"] == [[0, 15], [15, 20], [20, 28], [28, 33]]
    assert meta["first_volume"] == [0, 0, 7, 0]
    assert meta["first_number"] == [5, 20, 27, 35]
    assert meta["delay"] == 0 and meta["delay_in_files"] == 5
    eeg = np.load(tmp_path / "sub/eeg.npy")
    np.testing.assert_array_equal(eeg[20], np.load(tmp_path / "eeg/27.npy").astype("f4"))
