"""What is shown of a result: the table on the terminal, a carpet plot, maps of the cortex. Nothing of the method.

Pictures need matplotlib, which nothing else does.
"""
import nibabel as nib
import numpy as np

from .errors import fail
from .files import writing

def report(metrics, summary, scores):
    """Print the table of sample.py, and what it says in plain words. metrics and summary are those of metrics.json
    (summary with the ceiling), scores a sample.Scores."""
    n, spread, columns = metrics["samples"], metrics["calibration"], ("mse", "r", "cos")
    names = {"neuroframes": f"NeuroFrames, mean of {n}", "neuroframes_1": "NeuroFrames, one sample",
             "shuffled_eeg": f"  with shuffled EEG, mean of {n}", "no_null_space": f"  without null space, mean of {n}",
             "mean_frame": "mean training frame", "linear": "linear interpolation", "gaussian": "Gaussian conditional",
             "ceiling": "all that the EEG can tell"}
    pairs = [scores.windows[m]["whole"] for m in ("neuroframes", "shuffled_eeg")]
    print(f"\n{metrics['mode']}: {sum(map(len, pairs[0])):,} of {metrics['test_frames']:,} test frames scored, in "
          f"windows of {metrics['frames']}; {metrics['steps']} steps, eta {metrics['eta']:g}\n"
          "mean over frames +- standard deviation over windows, in z-scores")
    for region in summary["neuroframes"]:
        print(f"\n{region:34}{'MSE':>15}{'r':>17}{'cos':>17}")
        for method in [m for m in names if m in summary]:
            row = summary[method][region]
            print(f"{names[method]:34}" + "".join(f"{row[m]['mean']:10.3f} +- {row[m]['std']:.3f}" for m in columns))
    if spread:
        print(f"\n{'spread of the samples':38}{'in 50%':>9}{'in 90%':>9}{'CRPS':>8}{'spread / error':>16}")
        for name, c in spread.items():
            print(f"{name:38}{c['coverage_50']:9.1%}{c['coverage_90']:9.1%}{c['crps']:8.3f}"
                  f"{c['spread_to_error']:16.2f}")
        off = "too narrow" if c["coverage_90"] < 0.88 else "too wide" if c["coverage_90"] > 0.92 else "about right"
        print(f"The 90% intervals ({name}) hold the truth in {c['coverage_90']:.0%} of cases: they are {off}.")
    wins, windows = sum(u[:, 1].mean() > v[:, 1].mean() for u, v in zip(*pairs)), len(pairs[0])
    # A fair coin's wins pass n/2 + sqrt(n) in 2 to 3% of cases; neighbouring windows are not quite independent.
    helped = "The EEG helped" if wins > windows / 2 + windows**0.5 else (
        "The EEG did not help measurably" if windows > 4 else "Too few windows to tell whether the EEG helped")
    r, mse = ({method: regions["whole"][m]["mean"] for method, regions in summary.items()} for m in ("r", "mse"))
    if helped == "The EEG helped" and r["neuroframes"] - r["shuffled_eeg"] < 0.005:
        helped = "The EEG helped, but hardly"
    possible = f" of a possible {r['ceiling']:.3f}" if "ceiling" in r and metrics["mode"] == "direct" else ""
    print(f"\n{helped}: r {r['neuroframes']:.3f}{possible} with it, {r['shuffled_eeg']:.3f} with shuffled EEG "
          f"(better in {wins} of {windows} windows).")
    if metrics["residual_before"] is not None:
        share = {m: mse["neuroframes"] / mse[m] for m in names if m in mse}
        beaten = {m: "beats" if s < 0.98 else "is level with" if s < 1.02 else "does not beat"
                  for m, s in share.items()}
        # With no frame seen whole there was nothing to interpolate linearly.
        linear = f"{beaten['linear']} linear interpolation ({mse['linear']:.3f}), " if "linear" in mse else ""
        print(f"The null space: MSE {mse['neuroframes']:.3f}, {mse['no_null_space']:.3f} without it; {linear}"
              f"{beaten['gaussian']} the Gaussian conditional ({mse['gaussian']:.3f}). Residual "
              f"{metrics['residual_before']:.3f} (rms) before the last projection, "
              f"{metrics['anchor_residual']:g} after.")

def pyplot():
    """matplotlib, which only pictures need."""
    try:
        import matplotlib
    except ImportError as error:
        fail("--plot, --surfaces: pictures need matplotlib, which is not there; pip install matplotlib", error)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt

def carpet(path, truth, recon, std, title):
    """Draw vertices by time, the way fMRI people look at a run: truth, reconstruction and error [T,V] in z-scores, and
    std [T,V] or None, by how much the samples differ."""
    plt = pyplot()
    rows = np.linspace(0, truth.shape[1] - 1, min(truth.shape[1], 200)).astype(int)
    x, y = truth[:150, rows], recon[:150, rows]
    # Rows sorted by the leading spatial component, so that what moves together lies together.
    order = np.argsort(np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0])
    shown = {"truth": x, "reconstruction": y, "error": y - x}
    shown |= {} if std is None else {"spread of samples": std[:150, rows]}
    figure, axes = plt.subplots(len(shown), 1, figsize=(8, 2 * len(shown)), sharex=True, layout="constrained")
    for axis, (name, picture) in zip(axes, shown.items()):
        scale = dict(cmap="RdBu_r", vmin=-2.5, vmax=2.5)
        if name == "spread of samples":
            scale = dict(cmap="viridis", vmin=0)
        image = axis.imshow(picture[:, order].T, aspect="auto", interpolation="none", **scale)
        axis.set(ylabel=name, yticks=[])
        if name in ("error", "spread of samples"):
            group = axes[:3] if name == "error" else [axis]
            figure.colorbar(image, ax=group, label="z-score" if name == "error" else "std", aspect=20 * len(group) / 2)
    axes[0].set(title=title)
    axes[-1].set(xlabel="test frame")
    with writing(path):
        figure.savefig(path, dpi=80)
    plt.close(figure)

class Surfaces:
    """Two cortical surfaces (GIFTI), left and right, and where on them the grayordinates of a brain-model axis lie."""

    def __init__(self, paths, space, source):
        self.meshes = []
        if space is None:
            fail(f"--surfaces: {source} has no space.dscalar.nii, so that nobody knows where its vertices lie; "
                 "prepare it from .dtseries.nii files, or with --space")
        for path, side in zip(paths, ("LEFT", "RIGHT")):
            name = f"CIFTI_STRUCTURE_CORTEX_{side}"
            try:
                image = nib.load(path)
                points, triangles = (image.agg_data(kind) for kind in ("pointset", "triangle"))
                said = [str(part.meta.get("AnatomicalStructurePrimary")) for part in image.darrays]
                points, triangles = points.astype(float), triangles.astype(int)
            except Exception as error:  # nibabel raises many kinds
                fail(f"--surfaces {path}: not a readable GIFTI surface ({str(error)[:100]}); expected a .surf.gii",
                     error)
            if len(points) != space.nvertices.get(name):
                fail(f"--surfaces {path}: has {len(points):,} vertices, {source} {space.nvertices.get(name, 0):,} on "
                     "that side; give the left and the right surface of the same space, such as fsLR 32k")
            other = {"LEFT": "Right", "RIGHT": "Left"}[side]
            # RAS: the left half has x < 0. Inflated surfaces may lie around 0; their files then say the side.
            if any(other in text for text in said) or points[:, 0].mean() * (1 if side == "LEFT" else -1) > 10:
                fail(f"--surfaces {path}: is of the other side; give the left surface, then the right")
            columns = np.flatnonzero(space.name == name)
            self.meshes.append((points, triangles, columns, space.vertex[columns]))
        pyplot()

    def draw_median(self, path, truth, recon, std, frames, times, title):
        """Of the test frames with these places in truth and recon [T,V], draw the one whose r over the surfaces is the
        median: neither the best nor the worst. std [T,V] or None; times: the number of each frame in the subject."""
        on = np.concatenate([columns for _, _, columns, _ in self.meshes])
        r = []
        for k in frames:
            x, y = truth[k, on] - truth[k, on].mean(), recon[k, on] - recon[k, on].mean()
            r.append(float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12)))
        middle = np.argsort(r)[len(r) // 2]
        k = frames[middle]
        maps = {"truth": truth[k], "reconstruction": recon[k], "error": recon[k] - truth[k]}
        self.draw(path, maps if std is None else {**maps, "spread": std[k]},
                  f"{title}: frame {times[k]}, r {r[middle]:.2f}, the median of {len(frames):,}")

    def draw(self, path, maps, title):
        """maps {name: [V]}, side by side, from three sides: lateral left, lateral right, from above. Where there is no
        value, such as on the medial wall, the surface is gray."""
        plt = pyplot()
        from matplotlib.collections import PolyCollection
        # What is to the right, up, and towards the eye, in RAS coordinates (x to the right, y to the front, z up).
        x, y, z = np.eye(3)
        views = ([0], (-y, z, -x)), ([1], (y, z, x)), ([0, 1], (x, y, z))
        figure, axes = plt.subplots(3, len(maps), figsize=(3.2 * len(maps), 8), layout="constrained",
                                    height_ratios=[1, 1, 1.6], squeeze=False)
        top = np.nanpercentile(np.abs(maps["truth"]), 98)
        for column, (name, values) in zip(axes.T, maps.items()):
            scale = plt.Normalize(0, np.percentile(values, 98)) if name == "spread" else plt.Normalize(-top, top)
            colours = plt.get_cmap("viridis" if name == "spread" else "RdBu_r")
            for axis, (sides, turn) in zip(column, views):
                shapes, paint, depth = [], [], []
                for points, triangles, columns, vertices in (self.meshes[side] for side in sides):
                    worth = np.full(len(points), np.nan)
                    worth[vertices] = values[columns]
                    corners = (points @ np.array(turn).T)[triangles]                           # [M,3 corners,3]
                    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
                    facing = normal[:, 2] / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)  # 1: towards the eye
                    # Triangles may wind either way: let the normals point outwards.
                    middle = points[triangles].mean(1) - points.mean(0)
                    outwards = np.cross(*np.diff(points[triangles], axis=1).transpose(1, 0, 2)) * middle
                    facing *= np.sign(outwards.sum())
                    seen = facing > 0
                    face = worth[triangles[seen]].mean(1)
                    rgb = np.where(np.isnan(face)[:, None], 0.75, colours(scale(np.nan_to_num(face)))[:, :3])
                    paint.append(rgb * (0.55 + 0.45 * facing[seen, None]))
                    shapes.append(corners[seen, :, :2]), depth.append(corners[seen, :, 2].mean(1))
                order = np.argsort(np.concatenate(depth))  # the near over the far
                colour = np.concatenate(paint)[order]
                axis.add_collection(PolyCollection(np.concatenate(shapes)[order], facecolors=colour, edgecolors=colour,
                                                   linewidths=0.2))
                axis.autoscale_view()
                axis.set(aspect="equal")
                axis.axis("off")
            column[0].set(title=name)
            figure.colorbar(plt.cm.ScalarMappable(scale, colours), ax=list(column), location="bottom", shrink=0.7,
                            label="std" if name == "spread" else "z-score")
        for axis, name in zip(axes[:, 0], ("from the left", "from the right", "from above")):
            axis.text(0, 0.5, name, transform=axis.transAxes, rotation=90, ha="right", va="center")
        figure.suptitle(title)
        with writing(path):
            figure.savefig(path, dpi=80)
        plt.close(figure)
