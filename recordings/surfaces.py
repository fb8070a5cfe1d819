"""Maps of the cortex on two surfaces (GIFTI). They need matplotlib."""

import nibabel as nib
import numpy as np

from tools.errors import fail
from tools.files import writing

from .pictures import pyplot

LATERAL_LEFT, LATERAL_RIGHT, ABOVE = "from the left", "from the right", "from above"


def read_surface(path, side, space, source):
    """(points [n,3], triangles [m,3]) of one side, "LEFT" or "RIGHT", if it is that of `space`."""
    try:
        image = nib.load(path)
        points, triangles = (image.agg_data(kind) for kind in ("pointset", "triangle"))
        said = [str(part.meta.get("AnatomicalStructurePrimary")) for part in image.darrays]
        points = points.astype(float)
        triangles = triangles.astype(int)
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
    if any(other in text for text in said) or points[:, 0].mean() * sign > 10:
        fail(f"--surfaces {path}: is of the other side; give the left surface, then the right")
    return points, triangles


class Mesh:
    """One side: points [n,3] in RAS, triangles [m,3], and the vertices that have columns of [V]."""

    def __init__(self, path, side, space, source):
        self.points, self.triangles = read_surface(path, side, space, source)
        self.columns = np.flatnonzero(space.name == f"CIFTI_STRUCTURE_CORTEX_{side}")
        self.vertices = space.vertex[self.columns]

    def seen_from(self, turn, values):
        """Triangles that face the eye: corners on the picture [t,3,2], depth, facing and value [t].

        turn: what is to the right, up, and towards the eye, as rows in RAS coordinates.
        values [V]; where there is none, such as on the medial wall, it is NaN.
        """
        worth = np.full(len(self.points), np.nan)
        worth[self.vertices] = values[self.columns]
        corners = (self.points @ np.array(turn).T)[self.triangles]  # [m,3 corners,3]
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        facing = normal[:, 2] / length * self.winding()  # 1: towards the eye
        seen = facing > 0
        depth = corners[seen, :, 2].mean(1)
        return corners[seen, :, :2], depth, facing[seen], worth[self.triangles[seen]].mean(1)

    def winding(self):
        """1 if the triangles' normals point outwards, -1 if inwards: they may wind either way."""
        corners = self.points[self.triangles]
        middle = corners.mean(1) - self.points.mean(0)
        outwards = np.cross(*np.diff(corners, axis=1).transpose(1, 0, 2)) * middle
        return np.sign(outwards.sum())


class Surfaces:
    """Two cortical surfaces, left and right, and where on them the grayordinates of `space` lie.

    source: the subject's folder, for messages.
    """

    def __init__(self, paths, space, source):
        sides = zip(paths, ("LEFT", "RIGHT"))
        self.left, self.right = (Mesh(path, side, space, source) for path, side in sides)
        pyplot()

    def draw_median(self, path, arrays, frames, times, title):
        """Of the test frames with these places in arrays {"truth", "recon", perhaps "std": [T,V]},
        draw the one whose r over the surfaces is the median: neither the best nor the worst.
        times: the number of each frame in the subject."""
        truth = arrays["truth"]
        recon = arrays["recon"]
        on = np.concatenate([self.left.columns, self.right.columns])
        r = []
        for k in frames:
            x = truth[k, on] - truth[k, on].mean()
            y = recon[k, on] - recon[k, on].mean()
            r.append(float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12)))
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
        x, y, z = np.eye(3)  # to the right, to the front, up
        views = {
            LATERAL_LEFT: ([self.left], (-y, z, -x)),
            LATERAL_RIGHT: ([self.right], (y, z, x)),
            ABOVE: ([self.left, self.right], (x, y, z)),
        }
        figure, axes = plt.subplots(
            3,
            len(maps),
            figsize=(3.2 * len(maps), 8),
            layout="constrained",
            height_ratios=[1, 1, 1.6],
            squeeze=False,
        )
        top = np.nanpercentile(np.abs(maps["truth"]), 98)
        for column, (name, values) in zip(axes.T, maps.items()):
            scale = plt.Normalize(-top, top)
            colours = plt.get_cmap("RdBu_r")
            unit = "z-score"
            if name == "spread":
                scale = plt.Normalize(0, np.percentile(values, 98))
                colours, unit = plt.get_cmap("viridis"), "std"
            for axis, (meshes, turn) in zip(column, views.values()):
                draw_view(axis, meshes, turn, values, lambda v, c=colours, s=scale: c(s(v)))
            column[0].set(title=name)
            bar = plt.cm.ScalarMappable(scale, colours)
            figure.colorbar(bar, ax=list(column), location="bottom", shrink=0.7, label=unit)
        for axis, name in zip(axes[:, 0], views):
            axis.text(0, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center")
        figure.suptitle(title)
        with writing(path):
            figure.savefig(path, dpi=80)
        plt.close(figure)


def draw_view(axis, meshes, turn, values, colour_of):
    """The near triangles over the far ones; gray where there is no value, darker where they
    slant."""
    from matplotlib.collections import PolyCollection

    shapes = []
    depth = []
    paint = []
    for mesh in meshes:
        corners, far, facing, worth = mesh.seen_from(turn, values)
        colour = colour_of(np.nan_to_num(worth))[:, :3]
        colour = np.where(np.isnan(worth)[:, None], 0.75, colour)
        shapes.append(corners)
        depth.append(far)
        paint.append(colour * (0.55 + 0.45 * facing[:, None]))
    order = np.argsort(np.concatenate(depth))
    colour = np.concatenate(paint)[order]
    shapes = np.concatenate(shapes)[order]
    axis.add_collection(
        PolyCollection(shapes, facecolors=colour, edgecolors=colour, linewidths=0.2)
    )
    axis.autoscale_view()
    axis.set(aspect="equal")
    axis.axis("off")
