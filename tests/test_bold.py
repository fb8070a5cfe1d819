"""BOLD of every format: what is read is what was recorded, and what is written can be read."""

import json
import types

import nibabel as nib
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, ParcelsAxis, ScalarAxis, SeriesAxis

from recordings.bold import open_bold
from spaces import formats, regions
from spaces.outputs import Outputs
from spaces.space import Space, common_mask, load_space
from tools.errors import Problem

T, SHAPE = 11, (4, 5, 3)
AFFINE = np.array([[2.0, 0, 0, -9], [0, 2.5, 0, 4], [0, 0, 3, 1], [0, 0, 0, 1]])


def opened(*paths, **given):
    """The run in these files."""
    nothing = dict.fromkeys(("mask", "atlas", "labels", "tr"))
    return open_bold([str(path) for path in paths], types.SimpleNamespace(**(nothing | given)))


def check_frames(bold, expected):
    """All of a run, in two pieces and then again from its beginning."""
    assert bold.shape == expected.shape
    for rows in (slice(0, 4), slice(4, T), slice(1, 3)):
        np.testing.assert_allclose(bold.read(rows), expected[rows], rtol=1e-6)


def beside(path, suffix, tr):
    """A JSON beside a BOLD file that says its TR."""
    content = json.dumps({"RepetitionTime": tr})
    path.with_name(path.name.replace(suffix, ".json")).write_text(content)


def volumes(path, tr=0.8, unit="sec", shape=SHAPE, affine=AFFINE, seed=0):
    """A 4-D NIfTI file of integers that are scaled; its values [*shape,T]."""
    x = np.random.default_rng(seed).integers(100, 900, (*shape, T))
    image = nib.Nifti1Image(x.astype(np.int16), affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], tr))
    image.header.set_xyzt_units("mm", unit)
    image.header.set_slope_inter(0.5, 3)
    nib.save(image, path)
    return nib.load(path).get_fdata()


def volume(path, x, affine=AFFINE):
    nib.save(nib.Nifti1Image(np.asarray(x, np.uint8), affine), path)
    return str(path)


@pytest.fixture
def mask(tmp_path):
    """(path, bool [x,y,z]) of a mask of 22 voxels."""
    inside = np.random.default_rng(7).permutation(np.arange(60) < 22).reshape(SHAPE)
    return volume(tmp_path / "mask.nii.gz", inside), inside


def models():
    """12 vertices of the left side, and 4 voxels."""
    space = BrainModelAxis.from_surface(np.arange(2, 14), 20, "CortexLeft")
    return space + BrainModelAxis.from_mask(np.ones((2, 2, 1)), "thalamus_left", AFFINE)


def parcels():
    return ParcelsAxis.from_brain_models([("A", models()[:5]), ("B", models()[5:])])


def parcels_of_both_sides():
    """One of the left side, one of both, one of both and of voxels."""
    left = BrainModelAxis.from_mask(np.arange(9) > 2, "CIFTI_STRUCTURE_CORTEX_LEFT")
    right = BrainModelAxis.from_mask(np.arange(8) < 5, "CIFTI_STRUCTURE_CORTEX_RIGHT")
    both = left[:2] + right[:2]
    rest = left[4:] + right[2:] + models()[12:]
    return ParcelsAxis.from_brain_models([("L", left[2:4]), ("both", both), ("rest", rest)])


def hemispheres(folder, run, left, right):
    """hemi-L and hemi-R of series [T,n]."""
    paths = []
    for side, series in (("L", left), ("R", right)):
        parts = [nib.gifti.GiftiDataArray(x, "NIFTI_INTENT_TIME_SERIES") for x in series]
        paths.append(folder / f"run-{run}_hemi-{side}_space-fsaverage5_bold.func.gii")
        nib.save(nib.GiftiImage(darrays=parts), paths[-1])
    return paths


def two_sides(wall=0.0):
    """Series [T,n] of both sides, with a medial wall of three vertices of each side."""
    rng = np.random.default_rng(3)
    left = rng.standard_normal((T, 9)).astype(np.float32)
    right = rng.standard_normal((T, 8)).astype(np.float32)
    left[:, :3] = wall
    right[:, 5:] = np.nan
    return left, right


# ---- In --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_volumes_within_a_mask(tmp_path, mask, suffix):
    path = tmp_path / f"run-1_bold{suffix}"
    x = volumes(path)
    bold = opened(path, mask=mask[0])
    check_frames(bold, x[mask[1]].T)
    assert bold.tr == pytest.approx(0.8) and bold.space.kind == ".nii.gz"
    ijk = np.argwhere(mask[1])
    np.testing.assert_array_equal(bold.space.axis.voxel, ijk)
    with pytest.raises(Problem, match="--mask"):
        opened(path)
    with pytest.raises(Problem, match="nothing.nii.gz.* 0 voxels"):
        opened(path, mask=volume(tmp_path / "nothing.nii.gz", np.zeros(SHAPE)))
    with pytest.raises(Problem, match=r"mask.nii.gz.*4 axes"):
        opened(mask[0], mask=mask[0])


def test_a_gz_is_unpacked_once(tmp_path, mask, monkeypatch):
    """However many slices are read of it: else a run of n volumes takes n^2."""
    path = tmp_path / "run-1_bold.nii.gz"
    volumes(path)
    bold = opened(path, mask=mask[0])
    began = []
    from nibabel import openers

    original = openers.ImageOpener.__init__
    monkeypatch.setattr(
        openers.ImageOpener, "__init__", lambda *given, **how: began.append(original(*given, **how))
    )
    for t in range(T):
        bold.read(slice(t, t + 1))
    assert len(began) == 1


@pytest.mark.parametrize("tr, unit", [(800, "msec"), (800_000, "usec"), (0.8, "sec")])
def test_units_of_tr(tmp_path, mask, tr, unit):
    path = tmp_path / "run-1_bold.nii.gz"
    volumes(path, tr, unit)
    assert opened(path, mask=mask[0]).tr == 0.8  # as other runs, whose JSON says it
    beside(path, ".nii.gz", 0.8)
    assert opened(path, mask=mask[0]).tr == 0.8
    beside(path, ".nii.gz", 2.0)
    with pytest.raises(Problem, match=r"run-1_bold.nii.gz.*0.8.*run-1_bold.json.*2"):
        opened(path, mask=mask[0])
    (tmp_path / "run-1_bold.json").write_text("[]")
    with pytest.raises(Problem, match="run-1_bold.json"):
        opened(path, mask=mask[0])


def test_voxels_that_are_in_all_masks(tmp_path, capsys):
    rng = np.random.default_rng(0)
    inside = rng.random((3, *SHAPE)) < 0.8
    paths = []
    for run in (1, 2, 3):
        stem = f"{tmp_path}/sub-01_run-{run}_space-MNI_desc-"
        paths.append(f"{stem}preproc_bold.nii.gz")
        x = volumes(paths[-1])
        volume(f"{stem}brain_mask.nii.gz", inside[run - 1])
    found = common_mask(paths)
    common = inside.all(0)
    np.testing.assert_array_equal(np.asarray(found.dataobj), common)
    dropped = inside.any(0).sum() - common.sum()
    assert f"{common.sum()} voxels; {dropped} dropped" in capsys.readouterr().out and dropped
    check_frames(opened(paths[2], mask=found), x[common].T)


@pytest.mark.parametrize("shape, shift", [((4, 5, 2), 0.0), (SHAPE, 0.5)])
def test_two_grids(tmp_path, mask, shape, shift):
    """Of a run and the mask, or of two runs' masks."""
    affine = AFFINE.copy()
    affine[0, 3] += shift
    volumes(tmp_path / "run-2_bold.nii.gz", shape=shape, affine=affine)
    with pytest.raises(Problem, match=r"run-2_bold.nii.gz.*mask.nii.gz"):
        opened(tmp_path / "run-2_bold.nii.gz", mask=mask[0])
    names = [f"{tmp_path}/run-{run}_desc-preproc_bold.nii.gz" for run in (1, 2)]
    volume(names[0].replace("preproc_bold", "brain_mask"), np.ones(SHAPE))
    volume(names[1].replace("preproc_bold", "brain_mask"), np.ones(shape), affine)
    with pytest.raises(Problem, match=r"run-2_desc-brain_mask.*run-1_desc-brain_mask"):
        common_mask(names)


@pytest.mark.parametrize("wall", [0.0, np.nan])
def test_hemispheres_without_the_medial_wall(tmp_path, wall):
    left, right = two_sides(wall)
    paths = hemispheres(tmp_path, 1, left, right)
    beside(paths[0], ".func.gii", 0.72)
    bold = opened(*paths)
    check_frames(bold, np.hstack([left[:, 3:], right[:, :5]]))
    axis = bold.space.axis
    assert axis.vertex.tolist() == [*range(3, 9), *range(5)] and bold.tr == 0.72
    assert set(axis.nvertices.values()) == {9, 8}
    other = hemispheres(tmp_path, 2, left, right[:, ::-1].copy())
    assert opened(*other).space != bold.space and opened(*paths).space == bold.space
    assert opened(*other).tr is None
    left[4, 6] = np.nan  # once is no wall
    with pytest.raises(Problem, match="volume 4, vertex 3"):
        opened(*hemispheres(tmp_path, 3, left, right)).read(slice(None))
    with pytest.raises(Problem, match="hemi-L"):
        opened(*hemispheres(tmp_path, 4, left[:5], right))


@pytest.mark.parametrize("suffix, separator", [(".tsv", "\t"), (".csv", ",")])
def test_tables_of_regions(tmp_path, suffix, separator):
    x = np.random.default_rng(0).standard_normal((T, 3))
    path = tmp_path / f"run-1_timeseries{suffix}"
    np.savetxt(path, x, delimiter=separator, comments="", header=separator.join("abc"))
    bold = opened(path)
    check_frames(bold, x)
    assert bold.space == Space(ScalarAxis(list("abc")), ".tsv") and bold.tr is None
    np.savetxt(path, x, delimiter=separator, comments="", header=separator.join("aba"))
    with pytest.raises(Problem, match="names"):
        opened(path)
    path.write_text(f"a{separator}b\n1{separator}x\n")
    with pytest.raises(Problem, match="numbers"):
        opened(path)


@pytest.mark.parametrize("axis", [models(), parcels(), parcels_of_both_sides()])
def test_cifti(tmp_path, axis):
    kind = ".dtseries.nii" if isinstance(axis, BrainModelAxis) else ".ptseries.nii"
    x = np.random.default_rng(0).standard_normal((T, len(axis))).astype(np.float32)
    formats.save_series(Space(axis, kind), f"{tmp_path}/run-1_bold", x, 0.8, 0.0)
    path = tmp_path / f"run-1_bold{kind}"
    bold = opened(path)
    check_frames(bold, x)
    assert bold.space == Space(axis, kind) and bold.tr == pytest.approx(0.8)
    beside(path, kind, 0.8004)  # rounded
    assert opened(path).tr == pytest.approx(0.8, abs=1e-3)
    beside(path, kind, 0.9)
    with pytest.raises(Problem, match="0.9"):
        opened(path)


# ---- Atlases ---------------------------------------------------------------------------


def test_means_over_an_atlas_of_voxels(tmp_path, mask, capsys):
    x = volumes(tmp_path / "run-1_bold.nii.gz")
    atlas = np.random.default_rng(1).integers(0, 5, SHAPE)
    path = volume(tmp_path / "atlas.nii.gz", atlas)
    given = {"mask": mask[0], "atlas": path}
    bold = opened(tmp_path / "run-1_bold.nii.gz", **given)
    means = [x[mask[1] & (atlas == label)].mean(0) for label in (1, 2, 3, 4)]
    check_frames(bold, np.stack(means, 1))
    assert bold.space.axis.name.tolist() == list("1234")
    covered = (mask[1] & (atlas > 0)).sum()
    assert f"4 parcels of {covered} of 22" in capsys.readouterr().out

    (tmp_path / "labels.tsv").write_text("index\tname\n2\tLeft V1 (dorsal)\n1\tM1\n")
    given["labels"] = str(tmp_path / "labels.tsv")
    named = opened(tmp_path / "run-1_bold.nii.gz", **given)
    assert named.space.axis.name.tolist() == ["M1", "Left_V1_dorsal_", "3", "4"]
    moved = volume(tmp_path / "moved.nii.gz", atlas, AFFINE @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(Problem, match="moved.nii.gz"):
        opened(tmp_path / "run-1_bold.nii.gz", mask=mask[0], atlas=moved)
    (tmp_path / "labels.tsv").write_text("index\tname\n2\tM1\n1\tM1\n")  # left and right
    with pytest.raises(Problem, match="labels have 3 names"):
        opened(tmp_path / "run-1_bold.nii.gz", **given)


def labelled(path, axis, numbers, names):
    """A .dlabel.nii."""
    keys = {0: ("???", (0, 0, 0, 0))} | {i: (name, (1, 0, 0, 1)) for i, name in names.items()}
    labels = nib.cifti2.LabelAxis(["parcels"], [keys])
    nib.save(nib.Cifti2Image(np.float32(numbers)[None], (labels, axis)), path)
    return str(path)


def test_means_over_labels_of_grayordinates(tmp_path):
    """By place: the atlas has the vertices in another order, and one that the frames have not."""
    x = np.random.default_rng(0).standard_normal((T, 16)).astype(np.float32)
    formats.save_series(Space(models(), ".dtseries.nii"), f"{tmp_path}/run-1_bold", x, 0.8, 0.0)
    axis = BrainModelAxis.from_surface([19, 4, 3, 2], 20, "CortexLeft")
    path = labelled(tmp_path / "x.dlabel.nii", axis, [5, 9, 5, 9], {5: "B", 9: "A", 11: "far"})
    bold = opened(tmp_path / "run-1_bold.dtseries.nii", atlas=path)
    check_frames(bold, np.stack([x[:, 1], (x[:, 2] + x[:, 0]) / 2], 1))
    assert bold.space == Space(ScalarAxis(["B", "A"]), ".tsv")


def test_regions_of_any_atlas_or_mask(tmp_path, mask):
    """Each label of --parcels, unless they are those of HCP MMP 1.0."""
    axis = models()
    path = labelled(tmp_path / "x.dlabel.nii", axis, np.arange(16) // 8 + 1, {1: "a b", 2: "c"})
    found = regions.find_regions([path], None, Space(axis, ".dtseries.nii"), 16)
    assert list(found) == ["a_b", "c"] and found["c"].tolist() == [False] * 8 + [True] * 8
    grid = Space(BrainModelAxis.from_mask(mask[1], affine=AFFINE), ".nii.gz")
    half = volume(tmp_path / "half.nii.gz", np.arange(60).reshape(SHAPE) < 30)
    found = regions.find_regions([half], None, grid, 22)
    assert list(found) == ["half"]
    np.testing.assert_array_equal(found["half"], np.flatnonzero(mask[1]) < 30)
    with pytest.raises(Problem, match="half"):
        regions.find_regions([half, half], None, grid, 22)


# ---- Out -------------------------------------------------------------------------------


def spaces(mask):
    left = BrainModelAxis.from_mask(np.arange(9) > 2, "CIFTI_STRUCTURE_CORTEX_LEFT")
    right = BrainModelAxis.from_mask(np.arange(8) < 5, "CIFTI_STRUCTURE_CORTEX_RIGHT")
    return {
        ".nii.gz": BrainModelAxis.from_mask(mask, affine=AFFINE),
        ".func.gii": left + right,
        ".dtseries.nii": models(),
        ".ptseries.nii": parcels(),
        ".tsv": ScalarAxis(["V1", "M1 <left>"]),
    }


@pytest.mark.parametrize("kind", spaces(np.ones(SHAPE)))
def test_what_is_written_is_read_again(tmp_path, mask, kind):
    """A space, a series of it, and maps."""
    space = Space(spaces(mask[1])[kind], kind)
    space.save(str(tmp_path))
    again = load_space(str(tmp_path))
    assert again == space and len(again) == len(space)
    assert load_space(str(tmp_path / "nothing")) is None

    x = np.random.default_rng(0).standard_normal((T, len(space))).astype(np.float32)
    formats.save_series(again, f"{tmp_path}/run-1_desc-recon_bold", x, 0.4, 3.2)
    infix = "hemi-L_" if kind == ".func.gii" else ""
    path = tmp_path / f"run-1_{infix}desc-recon_bold{kind}"
    bold = opened(path, mask=mask[0])
    check_frames(bold, x)
    assert bold.space == space
    assert bold.tr is None if kind in (".func.gii", ".tsv") else bold.tr == pytest.approx(0.4)

    formats.save_maps(again, f"{tmp_path}/desc-r_statmap", {"r": x[0], "MSE": x[1]})
    assert json.loads((tmp_path / "desc-r_statmap.json").read_text()) == {"Maps": ["r", "MSE"]}
    suffix = kind.replace("tseries", "scalar")
    path = tmp_path / f"{infix}desc-r_statmap{suffix}"
    if kind == ".tsv":
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert lines[0] == ["name", "r", "MSE"] and lines[2][0] == "M1 <left>"
        np.testing.assert_array_equal(np.float32([line[1:] for line in lines[1:]]), x[:2].T)
        return
    image = nib.load(path)
    if kind == ".func.gii":
        assert [part.meta["Name"] for part in image.darrays] == ["r", "MSE"]
        whole = image.darrays[1].data
        assert np.flatnonzero(np.isnan(whole)).tolist() == [0, 1, 2]  # the medial wall
        np.testing.assert_array_equal(whole[3:], x[1, :6])
    elif kind == ".nii.gz":
        np.testing.assert_array_equal(image.get_fdata()[mask[1]], x[:2].T)
        assert not image.get_fdata()[~mask[1]].any() and np.allclose(image.affine, AFFINE)
    else:
        np.testing.assert_array_equal(image.get_fdata(), x[:2])
        assert image.header.get_axis(0).name.tolist() == ["r", "MSE"]


def test_parcels_of_both_hemispheres(tmp_path):
    """In, as a subject's space, and out again: which vertices and voxels each is of is kept."""
    axis = parcels_of_both_sides()
    x = np.random.default_rng(0).standard_normal((T, 3)).astype(np.float32)
    image = nib.Cifti2Image(x, (SeriesAxis(0, 0.8, T, "SECOND"), axis))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_PARCELLATED_SERIES")
    nib.save(image, tmp_path / "run-1_bold.ptseries.nii")
    bold = opened(tmp_path / "run-1_bold.ptseries.nii")
    check_frames(bold, x)
    bold.space.save(str(tmp_path))
    again = load_space(str(tmp_path))
    formats.save_series(again, f"{tmp_path}/run-1_desc-recon_bold", 2 * x, 0.8, 4.0)
    formats.save_maps(again, f"{tmp_path}/desc-r_statmap", {"r": x[0]})

    series = nib.load(tmp_path / "run-1_desc-recon_bold.ptseries.nii")
    maps = nib.load(tmp_path / "desc-r_statmap.pscalar.nii")
    np.testing.assert_array_equal(series.get_fdata(), 2 * x)
    np.testing.assert_array_equal(maps.get_fdata(), x[:1])
    for found in (series.header.get_axis(1), maps.header.get_axis(1)):
        assert found == axis and found.name.tolist() == ["L", "both", "rest"]
        sides = {side: list(vertices) for side, vertices in found.vertices[2].items()}
        left = [7, 8]  # of vertices 3 to 8 the first two are of "both", the next two of "L"
        expected = {"CIFTI_STRUCTURE_CORTEX_LEFT": left, "CIFTI_STRUCTURE_CORTEX_RIGHT": [2, 3, 4]}
        assert sides == expected and len(found.voxels[2]) == 4


def test_no_value_is_na_in_tables(tmp_path):
    """As BIDS has it, of series and of maps."""
    space = Space(ScalarAxis(["V1", "M1"]), ".tsv")
    values = np.array([[1.5, np.nan], [np.nan, -2.25]], np.float32)
    formats.save_series(space, f"{tmp_path}/x", values, 2, 0)
    formats.save_maps(space, f"{tmp_path}/m", {"r": values[0], "MSE": values[1]})
    assert (tmp_path / "x.tsv").read_text() == "V1\tM1\n1.5\tn/a\nn/a\t-2.25\n"
    assert (tmp_path / "m.tsv").read_text() == "name\tr\tMSE\nV1\t1.5\tn/a\nM1\tn/a\t-2.25\n"


def test_units_of_volumes(tmp_path, mask):
    space = Space(spaces(mask[1])[".nii.gz"], ".nii.gz")
    formats.save_series(space, f"{tmp_path}/x", np.ones((2, 22)), 2, 0)
    header = nib.load(tmp_path / "x.nii.gz").header
    assert header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(header.get_zooms(), (2, 2.5, 3, 2))


def test_results_of_volumes(tmp_path, mask):
    """Each stretch in raw units, a map of the error of what was not observed, and what they are."""
    space = Space(spaces(mask[1])[".nii.gz"], ".nii.gz")
    space.save(str(tmp_path))
    truth, recon, std = np.random.default_rng(0).standard_normal((3, 7, 22)).astype(np.float32)
    recon[:4, :9] = truth[:4, :9]  # observed
    arrays = {"truth": truth, "recon": recon, "std": np.abs(std), "shuffled": recon}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    mean = 100 + np.arange(22)
    normaliser = types.SimpleNamespace(std=np.full(22, 3.0), raw=lambda z: z * 3 + mean)
    stem = "sub-01_task-rest_run-"
    source = [["run-1_bold.nii.gz", "eeg"], ["run-2_bold.nii.gz", "eeg"]]
    subject = types.SimpleNamespace(
        folder=str(tmp_path),
        space=space.axis,
        tr=2.0,
        meta={"source": source, "names": [f"{stem}1", f"{stem}2"]},
        when=lambda row: (1 + row // 50, (row % 50) * 2.0),
    )
    timeline = types.SimpleNamespace(
        rows=np.array([10, 11, 12, 13, 20, 21, 60]), stretches=[(0, 4), (4, 6), (6, 7)]
    )
    r = np.random.default_rng(1).uniform(-1, 1, (2, 22))
    a = types.SimpleNamespace(plot=False, surfaces=None)
    outputs = Outputs(a, types.SimpleNamespace(subject=subject, normaliser=normaliser), timeline)
    outputs.write_page = lambda *content: None
    outputs.write(str(tmp_path), arrays, r, np.arange(7), "title")

    # Of each run its frames, at their volumes after its first one; NaN between.
    names = {f"{stem}1": (slice(0, 6), [0, 1, 2, 3, 10, 11]), f"{stem}2": (slice(6, 7), [0])}
    raw = {"recon": recon * 3 + mean, "truth": truth * 3 + mean, "std": np.abs(std) * 3}
    for name, (rows, volumes) in names.items():
        for what, x in raw.items():
            series = nib.load(tmp_path / f"{name}_desc-{what}_bold.nii.gz").get_fdata()
            expected = np.full((volumes[-1] + 1, 22), np.nan)
            expected[volumes] = x[rows]
            np.testing.assert_allclose(series[mask[1]].T, expected, rtol=1e-6)
    assert len(list(tmp_path.glob("*_bold.nii.gz"))) == 6
    about = json.loads((tmp_path / f"{stem}1_desc-truth_bold.json").read_text())
    assert about["StartTime"] == 20.0 and about["Sources"] == source[0][:1]
    assert (tmp_path / "frames.tsv").read_text().splitlines()[
        5
    ] == f"20\t1\t20\t40.0\t{source[0][0]}"

    maps = nib.load(tmp_path / "desc-r_statmap.nii.gz").get_fdata()[mask[1]].T
    np.testing.assert_allclose(maps[:3], [*r, r[0] - r[1]], rtol=1e-5)
    expected = ((recon - truth) ** 2).sum(0) / ([3] * 9 + [7] * 13)
    np.testing.assert_allclose(maps[3], expected, rtol=1e-5)


def test_bold_is_not_its_own_mask():
    with pytest.raises(Problem, match="run-1_bold.nii.gz is not called"):
        common_mask(["run-1_bold.nii.gz"])


def test_parcels_are_not_drawn_on_surfaces():
    subject = types.SimpleNamespace(space=parcels(), folder="s01")
    a = types.SimpleNamespace(plot=False, surfaces=["L", "R"])
    with pytest.raises(Problem, match="s01 is of parcels"):
        Outputs(a, types.SimpleNamespace(subject=subject), None)


def test_series_of_frames_that_are_hertz(tmp_path):
    image = nib.Cifti2Image(np.zeros((4, 16)), (SeriesAxis(0, 1, 4, "HERTZ"), models()))
    nib.save(image, tmp_path / "x.dtseries.nii")
    with pytest.raises(Problem, match="HERTZ"):
        opened(tmp_path / "x.dtseries.nii")
