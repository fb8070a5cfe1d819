"""Pictures show what they say: the right values at the right places, of the right frame."""

import os
import sys
import types

import nibabel as nib
import numpy as np
import pytest

from spaces import pictures
from spaces.outputs import Outputs
from spaces.surfaces import Surfaces
from tools import errors

# ---- Vertices by time ------------------------------------------------------------------


@pytest.fixture
def pyplot(monkeypatch):
    """matplotlib, whose figures stay open until the test ends: they know where on a picture their
    panels are."""
    pytest.importorskip("matplotlib")
    plt = pictures.pyplot()
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda figure: None)
        yield plt
    plt.close("all")


def cells(picture, panel, rows, columns):
    """Colours [rows,columns,3] at the middle of each cell of a panel of a picture [height,width,3]
    that shows a matrix."""
    height, width, _ = picture.shape
    box = panel.get_position()  # as shares of the picture; its y goes up
    x = box.x0 + (np.arange(columns) + 0.5) / columns * box.width
    y = box.y1 - (np.arange(rows) + 0.5) / rows * box.height
    return picture[(height * (1 - y)).astype(int)[:, None], (width * x).astype(int)]


@pytest.mark.parametrize("samples", ["one", "several"])
def test_carpet(pyplot, tmp_path, samples):
    """Every number is where it belongs, in its colour. What moves together lies together: here the
    vertices follow one time course, each at a strength of its own, and lie in that order."""
    rng = np.random.default_rng(0)
    strength = rng.permutation(np.linspace(-2, 2, 20))
    truth = np.outer(np.tile([1.0, -1.0, 0.5, -0.5], 3), strength)  # [12,20]
    arrays = {"truth": truth, "recon": truth + rng.uniform(-1, 1, truth.shape)}
    shown = {"truth": truth, "reconstruction": arrays["recon"], "error": arrays["recon"] - truth}
    if samples == "several":
        arrays["std"] = rng.uniform(1, 3, truth.shape)
        shown["spread of samples"] = arrays["std"]
    pictures.carpet(str(tmp_path / "x.png"), arrays, "direct, one sample")

    picture = pyplot.imread(tmp_path / "x.png")[..., :3]
    panels = {panel.get_ylabel(): panel for panel in pyplot.gcf().axes[: len(shown)]}
    assert list(panels) == list(shown)
    assert panels["truth"].get_title() == "direct, one sample"
    order = np.argsort(strength)
    colour_of_truth = pyplot.get_cmap("RdBu_r")((truth[:, order].T + 2.5) / 5)[..., :3]
    if not np.allclose(cells(picture, panels["truth"], 20, 12), colour_of_truth, atol=0.03):
        order = order[::-1]  # a component's sign is free
    for name, values in shown.items():
        colours = pyplot.get_cmap("RdBu_r")
        share = (values + 2.5) / 5  # of the way from -2.5 to 2.5
        if name == "spread of samples":
            colours = pyplot.get_cmap("viridis")
            share = values / values.max()
        expected = colours(share[:, order].T)[..., :3]
        found = cells(picture, panels[name], 20, 12)
        np.testing.assert_allclose(found, expected, atol=0.03, err_msg=name)


# ---- Maps of the cortex ----------------------------------------------------------------


def sphere(path, shift, n=24):
    """A ball of radius 1 as a GIFTI surface; returns its points [n^2,3]."""
    around = np.linspace(0, 2 * np.pi, n, endpoint=False)
    down = np.linspace(0.01, np.pi - 0.01, n)
    u, v = np.meshgrid(around, down, indexing="ij")
    points = np.stack([np.cos(u) * np.sin(v) + shift, np.sin(u) * np.sin(v), np.cos(v)], -1)
    points = points.reshape(-1, 3).astype("f4")

    # Each square of the grid, from point (i, j) to (i + 1, j + 1), is two triangles.
    i, j = np.meshgrid(np.arange(n), np.arange(n - 1), indexing="ij")
    corners = []
    for more_i, more_j in ((0, 0), (1, 0), (0, 1), (1, 1)):
        corners.append(((i + more_i) % n * n + j + more_j).ravel())
    a, b, c, d = corners
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)]).astype("i4")

    parts = [
        nib.gifti.GiftiDataArray(points, "NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(triangles, "NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.gifti.GiftiImage(darrays=parts), path)
    return points


@pytest.fixture
def surfaces(tmp_path):
    """Two balls; the points [n,3] of each; which of them have a value. There are 8 voxels too."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("nilearn")
    paths = [str(tmp_path / name) for name in ("L.surf.gii", "R.surf.gii")]
    points = [sphere(path, shift) for path, shift in zip(paths, (-1.2, 1.2))]
    # Some vertices of each side have no value, and there are voxels, which are not drawn.
    n = len(points[0])
    kept = [np.arange(3, n), np.arange(n - 5)]
    models = nib.cifti2.BrainModelAxis
    space = models.from_surface(kept[0], n, "CortexLeft")
    space += models.from_surface(kept[1], n, "CortexRight")
    space += models.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4), name="thalamus_left")
    return Surfaces(paths, space, "subject"), points, kept


def test_maps_of_the_cortex(surfaces, tmp_path):
    """Positive in front and negative behind: red and blue on the sides that the views show."""
    from matplotlib.image import imread

    drawn, points, kept = surfaces
    front = [side[rows, 1] for side, rows in zip(points, kept)]
    values = np.concatenate([*front, np.zeros(8)])
    drawn.draw(str(tmp_path / "x.png"), {"truth": values, "reconstruction": -values}, "title")
    picture = imread(tmp_path / "x.png")[..., :3]
    height, width, _ = picture.shape
    picture = picture[: int(0.9 * height)]  # without the colour bars

    def centre(colour, rows, columns):
        """Mean place (y, x) of what is red, or blue, in a part of the picture."""
        red_less_blue = picture[rows, columns, 0] - picture[rows, columns, 2]
        there = red_less_blue > 0.3 if colour == "red" else red_less_blue < -0.3
        return np.argwhere(there).mean(0)

    truth = slice(0, width // 2)
    recon = slice(width // 2, width)
    from_left = slice(0, int(0.3 * height))
    from_right = slice(int(0.3 * height), int(0.55 * height))
    from_above = slice(int(0.55 * height), height)
    # From the left the front is to the left; from the right, to the right; from above, up.
    assert centre("red", from_left, truth)[1] < centre("blue", from_left, truth)[1]
    assert centre("red", from_right, truth)[1] > centre("blue", from_right, truth)[1]
    assert centre("red", from_above, truth)[0] < centre("blue", from_above, truth)[0]
    assert centre("red", from_above, recon)[0] > centre("blue", from_above, recon)[0]


def test_the_frame_shown_is_the_median(surfaces, monkeypatch):
    drawn, _, kept = surfaces
    V = len(kept[0]) + len(kept[1]) + 8
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((7, V))
    size = np.array([9, 0.1, 3, 0.5, 2, 0.2, 0])[:, None]
    recon = truth + size * rng.standard_normal((7, V))
    recon[:, -8:] = rng.standard_normal((7, 8))  # voxels are not on the surfaces, and do not count
    shown = []
    monkeypatch.setattr(drawn, "draw", lambda path, maps, title: shown.append((maps, title)))
    arrays = {"truth": truth, "recon": recon, "std": np.ones((7, V))}
    drawn.draw_median("x.png", arrays, np.arange(6), 100 + np.arange(7), "direct")
    (maps, title), *others = shown
    r = [np.corrcoef(truth[k, :-8], recon[k, :-8])[0, 1] for k in range(6)]
    k = np.argsort(r)[3]
    assert f"frame {100 + k}, r {r[k]:.2f}" in title and not others
    assert list(maps) == ["truth", "reconstruction", "error", "spread"]
    assert np.array_equal(maps["error"], recon[k] - truth[k])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.Problem, match="pip install matplotlib"):
        pictures.pyplot()
    a = types.SimpleNamespace(plot=True, surfaces=None)
    with pytest.raises(errors.Problem, match="pip install matplotlib"):
        Outputs(a, None, None)  # before anything is drawn, which takes long
    a.plot = False
    Outputs(a, None, None)


def test_a_picture_of_a_subject_without_a_space(monkeypatch, tmp_path):
    """plot.png, and nothing else."""
    monkeypatch.setattr(pictures, "pyplot", lambda: None)
    monkeypatch.setattr(pictures, "carpet", lambda *given: drawn.append(given))
    drawn = []
    a = types.SimpleNamespace(plot=True, surfaces=None)
    study = types.SimpleNamespace(subject=types.SimpleNamespace(space=None))
    arrays = {"truth": np.zeros((3, 4)), "recon": np.ones((3, 4))}
    outputs = Outputs(a, study, None)
    outputs.write_page = lambda *content: None
    outputs.write(str(tmp_path), arrays, np.zeros((2, 4)), None, "direct")
    assert drawn == [(str(tmp_path / "plot.png"), arrays, "direct")]
    assert not os.listdir(tmp_path)
