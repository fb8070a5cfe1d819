"""Pictures show what they say: the right values at the right places, of the right frame."""

import sys

import nibabel as nib
import numpy as np
import pytest

from tools import errors, show

Axis = nib.cifti2.BrainModelAxis


def sphere(path, shift, n=24):
    """A ball of radius 1 as a GIFTI surface; returns its points [n^2,3]."""
    u, v = np.meshgrid(
        np.linspace(0, 2 * np.pi, n, endpoint=False),
        np.linspace(0.01, np.pi - 0.01, n),
        indexing="ij",
    )
    points = (
        np.stack([np.cos(u) * np.sin(v) + shift, np.sin(u) * np.sin(v), np.cos(v)], -1)
        .reshape(-1, 3)
        .astype("f4")
    )
    i, j = np.meshgrid(np.arange(n), np.arange(n - 1), indexing="ij")
    a, b, c, d = (
        ((i + di) % n * n + j + dj).ravel() for di, dj in ((0, 0), (1, 0), (0, 1), (1, 1))
    )
    triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([b, d, c], 1)]).astype("i4")
    arrays = [
        nib.gifti.GiftiDataArray(points, "NIFTI_INTENT_POINTSET"),
        nib.gifti.GiftiDataArray(triangles, "NIFTI_INTENT_TRIANGLE"),
    ]
    nib.save(nib.gifti.GiftiImage(darrays=arrays), path)
    return points


@pytest.fixture
def surfaces(tmp_path):
    pytest.importorskip("matplotlib")
    paths = [str(tmp_path / name) for name in ("L.surf.gii", "R.surf.gii")]
    points = [sphere(path, shift) for path, shift in zip(paths, (-1.2, 1.2))]
    # Some vertices of each side have no value, and there are voxels, which are not drawn.
    kept = [np.arange(3, len(points[0])), np.arange(0, len(points[1]), 1)[:-5]]
    space = (
        Axis.from_surface(kept[0], len(points[0]), "CortexLeft")
        + Axis.from_surface(kept[1], len(points[1]), "CortexRight")
        + Axis.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4), name="thalamus_left")
    )
    return show.Surfaces(paths, space, "subject"), points, kept


def test_maps_of_the_cortex(surfaces, tmp_path):
    """Positive in front and negative behind: red and blue on the sides that the views show, gray nowhere in the middle."""
    from matplotlib.image import imread

    drawn, points, kept = surfaces
    y = np.concatenate([points[0][kept[0], 1], points[1][kept[1], 1], np.zeros(8)])
    drawn.draw(str(tmp_path / "x.png"), {"truth": y, "reconstruction": -y}, "title")
    picture = imread(tmp_path / "x.png")[..., :3]
    red, blue = (picture[..., 0] - picture[..., 2] > 0.3), (picture[..., 2] - picture[..., 0] > 0.3)
    height, width = red.shape
    red[int(0.9 * height) :], blue[int(0.9 * height) :] = False, False  # the colour bars
    truth, recon = slice(0, width // 2), slice(width // 2, width)
    centre = lambda mask, axis: np.argwhere(mask)[:, axis].mean()  # noqa: E731
    left, right, above = (
        slice(0, int(0.3 * height)),
        slice(int(0.3 * height), int(0.55 * height)),
        slice(int(0.55 * height), height),
    )
    assert centre(red[left, truth], 1) < centre(
        blue[left, truth], 1
    )  # from the left the front is to the left
    assert centre(red[right, truth], 1) > centre(
        blue[right, truth], 1
    )  # from the right, to the right
    assert centre(red[above, truth], 0) < centre(blue[above, truth], 0)  # from above, up
    assert centre(red[above, recon], 0) > centre(blue[above, recon], 0)


def test_the_frame_shown_is_the_median(surfaces, tmp_path, monkeypatch):
    drawn, points, kept = surfaces
    V, rng, shown = len(kept[0]) + len(kept[1]) + 8, np.random.default_rng(0), []
    truth = rng.standard_normal((7, V))
    recon = truth + np.array([9, 0.1, 3, 0.5, 2, 0.2, 0])[:, None] * rng.standard_normal((7, V))
    recon[:, -8:] = rng.standard_normal((7, 8))  # voxels are not on the surfaces, and do not count
    monkeypatch.setattr(drawn, "draw", lambda path, maps, title: shown.append((maps, title)))
    drawn.draw_median(
        "x.png", truth, recon, np.ones((7, V)), np.arange(6), 100 + np.arange(7), "direct"
    )
    maps, title = shown[0]
    r = [np.corrcoef(truth[k, :-8], recon[k, :-8])[0, 1] for k in range(6)]
    k = np.argsort(r)[3]
    assert f"frame {100 + k}, r {r[k]:.2f}" in title and list(maps) == [
        "truth",
        "reconstruction",
        "error",
        "spread",
    ]
    assert np.array_equal(maps["error"], recon[k] - truth[k])


def test_carpet(tmp_path):
    pytest.importorskip("matplotlib")
    x = np.random.default_rng(0).standard_normal((30, 50))
    for std in (None, np.abs(x)):
        show.carpet(str(tmp_path / f"{std is None}.png"), x, x, std, "title")
    assert (
        (tmp_path / "False.png").stat().st_size > (tmp_path / "True.png").stat().st_size > 1000
    )  # one panel more


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.Problem, match="pip install matplotlib"):
        show.pyplot()
