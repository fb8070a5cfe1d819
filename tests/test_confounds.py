"""Confounds: files, columns and fits, against nilearn and against plain least squares."""

import argparse
import json

import numpy as np
import pytest

from recordings import bold as bold_files
from recordings import confounds
from tools import errors

T, TR = 150, 1.1  # volumes, seconds
RUN = "sub-01_ses-2_task-rest_run-1"
BAD = [0, 1, 40, 41, 90, 149]  # steady state, and movements


def flags(**changed):
    given = {"confounds": ["auto"], "strategy": "motion,wm_csf", "high_pass": 128.0, "fd": 0.5}
    return argparse.Namespace(**{**given, **changed})


def table(rng):
    """{column: [T]} as fMRIPrep 21 names them; NaN stands for n/a."""
    columns = {}
    drift = np.linspace(-1, 1, T) ** 2

    def add(name, values):
        slope = np.diff(values, prepend=np.nan)
        columns[name], columns[name + "_derivative1"] = values, slope
        columns[name + "_power2"], columns[name + "_derivative1_power2"] = values**2, slope**2

    for axis in "xyz":
        add(f"trans_{axis}", np.cumsum(rng.normal(0, 0.02, T)) + drift)
        add(f"rot_{axis}", np.cumsum(rng.normal(0, 2e-4, T)))
    for name in ("csf", "white_matter", "global_signal"):
        add(name, rng.normal(9000, 50, T) + 100 * drift)
    columns["csf_wm"] = columns["csf"] + 1
    for kind, count in (("t", 2), ("c", 3), ("w", 3), ("a", 8)):
        for i in range(count):
            columns[f"{kind}_comp_cor_{i:02}"] = rng.normal(0, 0.1, T)
    columns["cosine00"] = np.cos(np.pi * (np.arange(T) + 0.5) / T)
    columns["framewise_displacement"] = rng.uniform(0, 0.4, T)
    columns["framewise_displacement"][0] = np.nan
    columns["framewise_displacement"][BAD[2:]] = 0.7
    for i in BAD[:2]:
        columns[f"non_steady_state_outlier{i:02}"] = np.eye(T)[i]
    return columns


def write(path, columns):
    lines = ["\t".join(columns)]
    for row in zip(*columns.values()):
        lines.append("\t".join("n/a" if np.isnan(value) else repr(float(value)) for value in row))
    path.write_text("\n".join(lines) + "\n")
    masks = {"a": "combined", "c": "CSF", "w": "WM"}
    about = {n: {"Mask": masks.get(n[0]), "Retained": True} for n in columns if "comp_cor" in n}
    path.with_suffix(".json").write_text(json.dumps(about))
    return str(path)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def path(rng, tmp_path):
    return write(tmp_path / f"{RUN}_desc-confounds_timeseries.tsv", table(rng))


@pytest.fixture
def bold(path, rng):
    """Raw [T,V]: means of a scanner, confounds, drift, and a jump where the subject moved."""
    matrix, _, _ = confounds.design(path, flags(strategy="motion,wm_csf,global,compcor"), T, TR)
    x = rng.uniform(500, 12_000, 30) + rng.normal(0, 20, (T, 30))
    x += 100 * matrix @ rng.normal(0, 1, (matrix.shape[1], 30))
    x[BAD] += 400
    return x


def by_hand(x, matrix, good):
    """Percent [T,V], of one fit of the whole run, vertex by vertex."""
    mean = x[good].mean(0)
    beta = np.linalg.lstsq(matrix[good], x[good], rcond=1e-10)[0]
    rest = 100 * (x - matrix @ beta) / mean
    time = np.arange(len(x))
    return np.stack([np.interp(time, time[good], column[good]) for column in rest.T], 1)


# ---- Against nilearn -------------------------------------------------------------------


@pytest.mark.parametrize(
    "strategy, theirs, count",
    [
        ("motion", ["motion"], 24),
        ("wm_csf", ["wm_csf"], 2),
        ("global", ["global_signal"], 1),
        ("compcor", ["compcor", "high_pass"], 6),
        ("motion,wm_csf,global", ["motion", "wm_csf", "global_signal"], 27),
    ],
)
def test_columns_are_nilearns(path, tmp_path, strategy, theirs, count):
    load = pytest.importorskip("nilearn.interfaces.fmriprep").load_confounds
    image = tmp_path / f"{RUN}_space-fsLR_den-91k_bold.dtseries.nii"
    image.touch()
    expected, kept = load(str(image), strategy=theirs, n_compcor=6)
    expected = expected[[name for name in expected if "cosine" not in name]]

    matrix, good, said = confounds.design(path, flags(strategy=strategy, fd=None), T, TR)
    assert set(said["columns"]) == set(expected) and len(said["columns"]) == count
    assert said["confounds"] == path and said["cosines"] == 2
    np.testing.assert_array_equal(np.flatnonzero(good), kept)
    ours = matrix[good, 3:]  # after the constant and two cosines
    ours = (ours - ours.mean(0)) / ours.std(0)
    wanted = expected[said["columns"]].to_numpy()[good]
    np.testing.assert_allclose(ours, wanted / wanted.std(0), atol=1e-7)


@pytest.mark.filterwarnings("ignore")  # nilearn's, of its own defaults
@pytest.mark.parametrize("strategy", ["motion,wm_csf", "motion,wm_csf,global,compcor"])
@pytest.mark.parametrize("fd", [None, 0.5])
def test_what_remains_is_what_nilearn_leaves(path, bold, strategy, fd):
    """nilearn leaves bad volumes out. (It makes no cosines where some confound looks like one.)"""
    clean = pytest.importorskip("nilearn.signal").clean
    matrix, good, _ = confounds.design(path, flags(strategy=strategy, fd=fd), T, TR)
    assert (~good).sum() == (2 if fd is None else len(BAD))
    how = {"confounds": matrix[:, 1:], "filter": False, "detrend": False, "standardize": None}
    wanted = clean(bold, sample_mask=np.flatnonzero(good), **how)  # [good,V]
    wanted = 100 * (wanted / wanted.mean(0) - 1)
    frames = confounds.cleaned(lambda rows: bold[rows], matrix, good)(slice(0, T))
    np.testing.assert_allclose(frames[good], wanted, atol=2e-6)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("period, order", [(128, 2), (100, 3), (1000, 0), (None, 0)])
def test_cosines_are_nilearns(period, order):
    drift = pytest.importorskip("nilearn.signal").create_cosine_drift
    matrix, good, said = confounds.design(None, flags(high_pass=period), T, TR)
    assert said == {"confounds": None, "columns": [], "cosines": order} and good.all()
    theirs = drift(1 / (period or 1e9), np.arange(T) * TR)  # the constant is the last
    theirs = np.roll(theirs, 1, 1) / np.linalg.norm(theirs, axis=0)[[-1, *range(order)]]
    np.testing.assert_allclose(matrix, theirs, atol=1e-12)


# ---- The fit ---------------------------------------------------------------------------


def test_one_fit_is_not_two(path, bold):
    """Motion drifts. Taken out of BOLD without its drift, it puts drift back."""
    matrix, good, said = confounds.design(path, flags(fd=None), T, TR)
    frames = confounds.cleaned(lambda rows: bold[rows], matrix, good)(slice(0, T))
    slow = matrix[:, 1:3]
    assert said["cosines"] == 2
    left = np.abs(slow[good].T @ frames[good]).max()
    first = bold[good] - matrix[good, :3] @ np.linalg.pinv(matrix[good, :3]) @ bold[good]
    second = first - matrix[good, 3:] @ np.linalg.pinv(matrix[good, 3:]) @ first
    brought_back = np.abs(slow[good].T @ (100 * second / bold[good].mean(0))).max()
    assert left < 1e-4 and brought_back > 1000 * left


@pytest.mark.parametrize("block", [9, 64, 1000])
def test_blocks_give_what_the_whole_gives(path, bold, block):
    matrix, good, _ = confounds.design(path, flags(), T, TR)
    assert np.flatnonzero(~good).tolist() == BAD
    asked = []

    def read(rows):
        assert 0 <= rows.start < rows.stop <= T and rows.stop - rows.start <= block + 2
        asked.extend(range(rows.start, rows.stop))
        return bold[rows].astype(np.float32)

    clean = confounds.cleaned(read, matrix, good, block)
    assert asked == list(range(T))  # once
    starts = range(0, T, min(block, T))
    frames = [clean(slice(start, min(start + block, T))) for start in starts]
    np.testing.assert_allclose(np.concatenate(frames), by_hand(bold, matrix, good), atol=1e-4)
    # Any rows: between two bad ones, the bad ones alone, and what is before all good ones.
    whole = clean(slice(0, T)) if block > T else np.concatenate(frames)
    for rows in (slice(39, 42), slice(40, 42), slice(41, 42), slice(0, 2), slice(149, 150)):
        np.testing.assert_allclose(clean(rows), whole[rows], atol=1e-5)


def test_bad_volumes_have_no_say(path, bold):
    matrix, good, _ = confounds.design(path, flags(), T, TR)
    before = confounds.cleaned(lambda rows: bold[rows], matrix, good)(slice(0, T))
    bold[BAD] = -1e5
    after = confounds.cleaned(lambda rows: bold[rows], matrix, good)(slice(0, T))
    np.testing.assert_allclose(before, after, atol=2e-6)
    np.testing.assert_allclose(after[:2], after[[2, 2]])  # nothing good before: the nearest
    np.testing.assert_allclose(after[149], after[148])
    third = (after[42] - after[39]) / 3
    np.testing.assert_allclose(after[40:42], after[39] + np.outer([1, 2], third), atol=2e-6)


def test_a_cifti_file_is_cleaned_as_it_is_read(session):
    folder, _, raw = session
    path = str(folder / "run-1_bold.dtseries.nii")
    none = argparse.Namespace(mask=None, atlas=None, labels=None)
    run = bold_files.open_bold([path], none)
    matrix, good, _ = confounds.design(None, flags(high_pass=16.0), 50, run.tr)
    good[[0, 20]] = False
    clean = confounds.cleaned(run.read, matrix, good, 16)
    wanted = by_hand(raw[0].astype(float), matrix, good)
    for rows in (slice(0, 20), slice(20, 50)):
        np.testing.assert_allclose(clean(rows), wanted[rows], atol=2e-6)


def test_integers_are_cleaned_as_numbers(path, bold):
    matrix, good, _ = confounds.design(path, flags(), T, TR)
    whole = bold.round().astype(np.int16)
    frames = confounds.cleaned(lambda rows: whole[rows], matrix, good)(slice(0, T))
    np.testing.assert_allclose(frames, by_hand(whole.astype(float), matrix, good), atol=2e-6)


def test_vertices_without_a_mean_are_zero(rng):
    matrix, good, _ = confounds.design(None, flags(), T, TR)
    noise = rng.normal(0, 1, T)
    none = [np.zeros(T), np.full(T, 1234.567), noise - 100, noise - noise.mean(), noise + 0.5]
    x = np.stack([*none, noise + 100], 1)
    frames = confounds.cleaned(lambda rows: x[rows], matrix, good)(slice(0, T))
    np.testing.assert_array_equal(frames[:, :5], 0)
    np.testing.assert_allclose(frames[:, 5:], by_hand(x[:, 5:], matrix, good), atol=1e-6)


def test_units_of_columns_do_not_matter(rng, path, bold, tmp_path):
    """Squared angles in radians are as good as others, a column of zeros takes nothing out."""
    other = table(np.random.default_rng(0))
    for name in other:
        if name.startswith("rot"):
            other[name] = other[name] * 1e-4
    other["csf"] = other["csf"] * 1e3
    again = write(tmp_path / "other.tsv", other)
    other["a_comp_cor_02"][:] = 0
    zeros = write(tmp_path / "zeros.tsv", other)
    cleaned = []
    for file, strategy in ((path, "motion,wm_csf"), (again, "motion,wm_csf"), (zeros, "compcor")):
        matrix, good, _ = confounds.design(file, flags(strategy=strategy), T, TR)
        cleaned.append(confounds.cleaned(lambda rows: bold[rows], matrix, good)(slice(0, T)))
    np.testing.assert_allclose(cleaned[0], cleaned[1], atol=1e-5)
    without = np.delete(matrix, 3 + 2, 1)
    np.testing.assert_allclose(cleaned[2], by_hand(bold, without, good), atol=1e-5)


# ---- Files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rest",
    [
        "_space-fsLR_den-91k_bold.dtseries.nii",
        "_hemi-L_space-fsaverage5_bold.func.gii",
        "_space-MNI152NLin6Asym_res-2_desc-preproc_bold.nii.gz",
        "_desc-preproc_bold.nii.gz",
        "_bold.npy",
        ".npy",
    ],
)
@pytest.mark.parametrize("kind", ["timeseries", "regressors"])
def test_the_confounds_of_a_run_are_found(tmp_path, rest, kind):
    folder = tmp_path / "desc-x_bold [1]" / "func"
    other = tmp_path / "other"
    for place in (folder, other):
        place.mkdir(parents=True)
        for run in (RUN, RUN + "0", RUN.replace("_run-1", ""), "pre" + RUN):
            (place / f"{run}_desc-confounds_{kind}.tsv").touch()
            (place / f"{run}_desc-confounds_{kind}.json").touch()
    bold_path = str(folder / (RUN + rest))
    name = f"{RUN}_desc-confounds_{kind}.tsv"
    assert confounds.find(bold_path, flags()) == str(folder / name)
    listed = [str(path) for path in sorted(other.glob("*.tsv"))]
    assert confounds.find(bold_path, flags(confounds=listed)) == str(other / name)
    assert confounds.find(bold_path, flags(confounds=None)) is None


def test_confounds_that_are_not_found_are_named(tmp_path):
    bold_path = str(tmp_path / f"{RUN}_space-fsLR_bold.dtseries.nii")
    with pytest.raises(errors.Problem, match=f"auto has 0 .* {RUN}_desc-confounds_timeseries.tsv"):
        confounds.find(bold_path, flags())
    both = [str(tmp_path / f"{i}/{RUN}_desc-confounds_timeseries.tsv") for i in range(2)]
    with pytest.raises(errors.Problem, match="has 2 files"):
        confounds.find(bold_path, flags(confounds=both))


def test_high_pass_alone_needs_no_file(rng):
    """Waves slower than the period go, faster ones stay."""
    seconds = (np.arange(T) + 0.5) * TR
    slow = np.cos(2 * np.pi * seconds / (T * TR))
    fast = np.cos(2 * np.pi * seconds / (T * TR / 10))
    x = (1000 + 30 * slow + 20 * fast)[:, None]
    matrix, good, _ = confounds.design(None, flags(confounds=None), T, TR)
    frames = confounds.cleaned(lambda rows: x[rows], matrix, good)(slice(0, T))
    np.testing.assert_allclose(frames[:, 0], 2 * fast, atol=1e-5)


def test_without_fd_movements_stay(path):
    _, good, _ = confounds.design(path, flags(fd=None), T, TR)
    assert np.flatnonzero(~good).tolist() == BAD[:2]
    _, good, _ = confounds.design(path, flags(fd=0.7), T, TR)  # not above it
    assert np.flatnonzero(~good).tolist() == BAD[:2]


def test_derivatives_of_the_first_volume_are_zero(rng, tmp_path):
    columns = {n: x for n, x in table(rng).items() if "non_steady" not in n}
    path = write(tmp_path / "confounds.tsv", columns)
    matrix, good, said = confounds.design(path, flags(), T, TR)
    place = 3 + said["columns"].index("trans_x_derivative1")
    assert good[0] and matrix[0, place] == 0 and matrix[1, place] != 0


@pytest.mark.parametrize(
    "change, changed, message",
    [
        (lambda c: c.pop("rot_y_power2"), {}, "23 of 24 columns of --strategy motion .* trans_x,"),
        (lambda c: c.pop("csf"), {}, "1 of 2 columns of --strategy wm_csf"),
        (lambda c: None, {"strategy": "motion,wmcsf"}, "--strategy wmcsf .there are motion, wm"),
        (lambda c: c.pop("c_comp_cor_00"), {"strategy": "compcor"}, "before fMRIPrep 21"),
        (lambda c: c["csf"].fill(np.nan), {}, "first at volume 1, column 27"),
        (lambda c: c["framewise_displacement"].fill(0.6), {}, "29 columns for 0 good volumes"),
    ],
)
def test_what_cannot_be_used_is_said(rng, tmp_path, change, changed, message):
    columns = table(rng)
    change(columns)
    path = write(tmp_path / "confounds.tsv", columns)
    with pytest.raises(errors.Problem, match=message) as problem:
        confounds.design(path, flags(**changed), T, TR)
    assert "confounds.tsv" in str(problem.value) and "\n" not in str(problem.value)


@pytest.mark.filterwarnings("ignore")  # numpy's, of lines cut short
def test_a_file_of_another_run_is_refused(path):
    with pytest.raises(errors.Problem, match="has 150 rows, its BOLD 151 volumes"):
        confounds.design(path, flags(), T + 1, TR)
    with open(path, encoding="utf-8") as f:
        text = f.read()
    with open(path, "w", encoding="utf-8") as f:
        f.write(text[: len(text) - 400])  # as of a copy that broke off
    with pytest.raises(errors.Problem, match="has 149 rows"):
        confounds.design(path, flags(), T, TR)
