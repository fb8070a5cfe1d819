"""Pictures of results, drawn with matplotlib, which nothing else needs."""

import numpy as np

from tools.errors import fail
from tools.files import writing


def pyplot():
    """matplotlib's drawing functions, into files; says so if it is missing."""
    try:
        import matplotlib
    except ImportError as error:
        fail("pictures need matplotlib, which is not there; pip install matplotlib", error)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def carpet(path, arrays, title):
    """The picture that is drawn below, in a file."""
    figure = vertices_by_time(arrays, title)
    with writing(path):
        figure.savefig(path, dpi=80)
    pyplot().close(figure)


def vertices_by_time(arrays, title):
    """A figure, the way fMRI people look at a run: truth, reconstruction, error, and by how much
    samples differ. arrays: {"truth", "recon" and perhaps "std": [T,V]} in z-scores."""
    plt = pyplot()
    V = arrays["truth"].shape[1]
    rows = np.linspace(0, V - 1, min(V, 200)).astype(int)
    cut = {name: array[:150, rows] for name, array in arrays.items()}
    x = cut["truth"]
    y = cut["recon"]
    # Rows sorted by the leading spatial component, so that what moves together lies together.
    order = np.argsort(np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0])
    panels = {"truth": x, "reconstruction": y, "error": y - x}
    if "std" in cut:
        panels["spread of samples"] = cut["std"]
    size = (8, 2 * len(panels))
    figure, axes = plt.subplots(len(panels), 1, figsize=size, sharex=True, layout="constrained")
    for axis, (name, picture) in zip(axes, panels.items()):
        scale = {"cmap": "RdBu_r", "vmin": -2.5, "vmax": 2.5}
        if name == "spread of samples":
            scale = {"cmap": "viridis", "vmin": 0}
        image = axis.imshow(picture[:, order].T, aspect="auto", interpolation="none", **scale)
        axis.set(ylabel=name, yticks=[])
        if name == "error":
            figure.colorbar(image, ax=axes[:3], label="z-score", aspect=30)
        if name == "spread of samples":
            figure.colorbar(image, ax=[axis], label="std", aspect=10)
    axes[0].set(title=title)
    axes[-1].set(xlabel="test frame")
    return figure
