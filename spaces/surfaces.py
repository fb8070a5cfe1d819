"""Maps of the cortex on two surfaces (GIFTI), drawn by nilearn, which nothing else of this asks
for."""

import nibabel as nib
import numpy as np

from tools.errors import fail
from tools.files import writing

from .pictures import pyplot

VIEWS = {  # (hemisphere, angles of the eye: elevation and azimuth, in degrees)
    "from the left": ("left", (0, 180)),
    "from the right": ("right", (0, 0)),
    "from above": ("both", (90, 270)),
}


def nilearn():
    """Its functions for surfaces; says so if it is missing."""
    try:
        from nilearn import plotting, surface
    except ImportError as error:
        fail("--surfaces needs nilearn, which is not there; pip install nilearn", error)
    return plotting, surface


def check_surface(path, side, space, source):
    """Fail if a file is not that of one side, "LEFT" or "RIGHT", of `space`."""
    try:
        image = nib.load(path)
        points = image.agg_data("pointset")
        said = [str(part.meta.get("AnatomicalStructurePrimary")) for part in image.darrays]
        middle = float(points[:, 0].mean())  # mm to the right
    except Exception as error:  # nibabel raises many kinds
        reason = str(error)[:100]
        fail(
            f"--surfaces {path}: not a readable GIFTI surface ({reason}); expected a .surf.gii",
            error,
        )
    expected = space.nvertices.get(f"CIFTI_STRUCTURE_CORTEX_{side}", 0)
    if len(points) != expected:
        fail(
            f"--surfaces {path}: has {len(points):,} vertices, {source} {expected:,} on that side; "
            "give the left and the right surface of the same space, such as fsLR 32k"
        )
    # RAS: the left half has x < 0. Inflated surfaces may lie around 0; their files then say it.
    other, sign = ("Right", 1) if side == "LEFT" else ("Left", -1)
    if any(other in text for text in said) or middle * sign > 10:
        fail(f"--surfaces {path}: is of the other side; give the left surface, then the right")


class Surfaces:
    """Two cortical surfaces, left and right, and where on them the grayordinates of `space` lie.

    source: the subject's folder, for messages.
    """

    def __init__(self, paths, space, source):
        self.columns = {}  # of [V], of each side
        self.vertices = {}  # where those lie
        for path, side in zip(paths, ("left", "right")):
            check_surface(path, side.upper(), space, source)
            self.columns[side] = np.flatnonzero(
                space.name == f"CIFTI_STRUCTURE_CORTEX_{side.upper()}"
            )
            self.vertices[side] = space.vertex[self.columns[side]]
        pyplot()
        self.plotting, self.surface = nilearn()
        self.mesh = self.surface.PolyMesh(*paths)

    def on_mesh(self, values):
        """values [V] where they lie; where there is none, such as on the medial wall, NaN."""
        sides = {}
        for side, part in self.mesh.parts.items():
            sides[side] = np.full(part.n_vertices, np.nan)
            sides[side][self.vertices[side]] = values[self.columns[side]]
        return self.surface.SurfaceImage(self.mesh, sides)

    def draw_median(self, path, arrays, frames, times, title):
        """Of the test frames with these places in arrays {"truth", "recon", perhaps "std": [T,V]},
        draw the one whose r over the surfaces is the median: neither the best nor the worst.
        times: the number of each frame in the subject."""
        truth = arrays["truth"]
        recon = arrays["recon"]
        on = np.concatenate(list(self.columns.values()))
        r = [np.corrcoef(truth[k, on], recon[k, on])[0, 1] for k in frames]
        middle = np.argsort(r)[len(r) // 2]
        k = frames[middle]
        maps = {"truth": truth[k], "reconstruction": recon[k], "error": recon[k] - truth[k]}
        if "std" in arrays:
            maps["spread"] = arrays["std"][k]
        about = f"frame {times[k]}, r {r[middle]:.2f}, the median of {len(frames):,}"
        self.draw(path, maps, f"{title}: {about}")

    def draw(self, path, maps, title):
        """maps {name: [V]}, side by side, from three sides: lateral left, lateral right, above."""
        plt = pyplot()
        figure, axes = plt.subplots(
            3,
            len(maps),
            figsize=(3.2 * len(maps), 8),
            layout="constrained",
            squeeze=False,
            subplot_kw={"projection": "3d"},
        )
        top = np.nanpercentile(np.abs(maps["truth"]), 98)
        for column, (name, values) in zip(axes.T, maps.items()):
            low, high, colours, unit = -top, top, "RdBu_r", "z-score"
            if name == "spread":
                low, high, colours, unit = 0, np.percentile(values, 98), "viridis", "std"
            for axis, (hemisphere, view) in zip(column, VIEWS.values()):
                self.plotting.plot_surf(
                    surf_map=self.on_mesh(values),
                    hemi=hemisphere,
                    view=view,
                    axes=axis,
                    cmap=colours,
                    vmin=low,
                    vmax=high,
                    colorbar=False,
                )
                axis.set_aspect("equal")
            column[0].set(title=name)
            bar = plt.cm.ScalarMappable(plt.Normalize(low, high), colours)
            figure.colorbar(bar, ax=list(column), location="bottom", shrink=0.7, label=unit)
        for axis, name in zip(axes[:, 0], VIEWS):
            axis.text2D(0, 0.5, name, transform=axis.transAxes, rotation=90, va="center")
        figure.suptitle(title)
        with writing(path):
            figure.savefig(path, dpi=80)
        plt.close(figure)
