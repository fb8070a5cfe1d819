"""What came of it, on one page: report.html, one file that needs no network."""

import base64
import html
import io
import json
import os

import numpy as np

from tools import files
from tools.report import NAMES

from . import pictures

STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 0.5em 0 1.5em; font-variant-numeric: tabular-nums }
td, th { border-bottom: 1px solid #ccc; padding: 0.15em 0.8em 0.15em 0; text-align: left }
th { color: #555; font-weight: normal }
img { max-width: 100% }
"""


def write(folder, subject, trained, figures):
    """report.html of the results in a folder. trained: that of the checkpoint, with log.jsonl;
    figures: {title: matplotlib figure}, in addition to the loss."""
    with open(os.path.join(folder, "metrics.json"), encoding="utf-8") as f:
        metrics = json.load(f)
    figures = {"Loss": loss(os.path.join(trained, "log.jsonl")), **figures}
    parts = ["<h1>NeuroFrames: " + html.escape(f"{subject.folder}, {metrics['mode']}") + "</h1>"]

    # What went in.
    parts += ["<h2>Runs</h2>", runs_table(subject)]
    known = {
        key: subject.meta[key] for key in ("source", "taken_out", "eeg") if key in subject.meta
    }
    parts.append(folded("Files, what was taken out, channels", known))
    parts.append(drawn("Before training", os.path.join(subject.folder, "look.png")))

    # How good it is, beside its controls.
    for region in metrics["scores"]["neuroframes"]:
        rows = []
        for method, scores in metrics["scores"].items():
            cells = [f"{x['mean']:.3f} ± {x['std']:.3f}" for x in scores[region].values()]
            rows.append((NAMES[method].format(metrics["samples"]), *cells))
        parts += [f"<h2>{html.escape(region)}</h2>", table(("", "MSE", "r", "cos"), rows)]
    helped = []
    for name, x in metrics.get("helped", {}).items():
        p = "too few frames" if x["p"] is None else f"{x['p']:.2g}"
        helped.append((name, p, f"{x['r_gain']:.3f}"))
    parts += [
        "<h2>Did the EEG help?</h2>",
        table(("region", "p", "r gained by its own EEG"), helped),
    ]
    for title, what in (("Over time", "over_time"), ("How sure it is", "calibration")):
        parts.append(folded(title, metrics[what]))
    rows = [
        [f"{x:.3f}" if isinstance(x, float) else x for x in run.values()] for run in metrics["runs"]
    ]
    parts += ["<h2>Test stretches</h2>", table(metrics["runs"][0], rows)]

    for title, figure in figures.items():
        picture = io.BytesIO()
        figure.savefig(picture, dpi=80)
        pictures.pyplot().close(figure)
        parts.append(embedded(title, picture.getvalue()))
    parts.append(drawn("Maps of the cortex", os.path.join(folder, "surfaces.png")))
    page = f"<!doctype html><meta charset=utf-8><title>NeuroFrames</title><style>{STYLE}</style>"
    text = page + "\n".join(parts)
    files.replace(os.path.join(folder, "report.html"), lambda f: f.write(text.encode()))


def runs_table(subject):
    """HTML of each run: what it is for, what was left out of it, how regular its triggers were."""
    meta = subject.meta
    names = meta.get("names") or range(1, len(subject.runs) + 1)
    jitter = meta.get("jitter") or [None] * len(subject.runs)
    rows = []
    for name, (start, stop), off in zip(names, subject.runs, jitter):
        left_out = sum(start <= frame < stop for frame in meta.get("unusable", []))
        splits = [
            s
            for s in ("train", "val", "test")
            for low, _ in subject.segments(s)
            if start <= low < stop
        ]
        triggers = "none" if off is None else f"{1000 * off:.3f}"
        rows.append((name, ", ".join(dict.fromkeys(splits)), stop - start, left_out, triggers))
    return table(("run", "for", "frames", "left out", "triggers off the TR by up to (ms)"), rows)


def table(heading, rows):
    """HTML of rows of values under a heading."""
    lines = ["".join(f"<th>{html.escape(str(cell))}</th>" for cell in heading)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def folded(title, content):
    """HTML of a JSON that opens if one asks for it."""
    text = html.escape(json.dumps(content, indent=1))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


def drawn(title, path):
    """HTML of a picture in a file, if it is there."""
    if not os.path.exists(path):
        return ""
    with open(path, "rb") as f:
        return embedded(title, f.read())


def embedded(title, png):
    """HTML of a picture, which is in the page itself."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<h2>{html.escape(title)}</h2>\n<img src="{source}">'


# ---- Pictures --------------------------------------------------------------------------


def loss(path):
    """Of log.jsonl, by step: in training, and on the validation run if there was one."""
    log = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            log = [json.loads(line) for line in f]
    figure, axis = pictures.pyplot().subplots(figsize=(7, 3), layout="constrained")
    for name in ("loss", "val_loss"):
        found = [(x["step"], x[name]) for x in log if x.get(name) is not None]
        axis.plot(*np.reshape(found, (-1, 2)).T, label=name)
    axis.set(xlabel="step")
    axis.legend()
    return figure


def r_over_time(r, axis):
    """How many vertices have which r [2,V], with the EEG and with shuffled EEG; and of voxels the
    largest along each direction. axis: of the subject's space, or None."""
    voxels = getattr(axis, "volume_mask", np.zeros(1, bool))
    panels = 1 + 3 * bool(voxels.any())
    size = (3.2 * panels + 2, 3)
    figure, axes = pictures.pyplot().subplots(
        1, panels, figsize=size, layout="constrained", squeeze=False
    )
    for values, name in zip(r, ("its own EEG", "shuffled EEG")):
        axes[0, 0].hist(values[np.isfinite(values)], 60, histtype="step", label=name)
    axes[0, 0].set(xlabel="r over time", ylabel="vertices")
    axes[0, 0].legend()
    if voxels.any():
        volume = np.full(axis.volume_shape, -1.0)
        volume[tuple(axis.voxel[voxels].T)] = np.nan_to_num(r[0][voxels])
        scale = {"vmin": 0, "vmax": max(0.1, volume.max())}  # also if no r is above 0
        for panel, direction in zip(axes[0, 1:], range(3)):
            seen = volume.max(direction).T
            image = panel.imshow(np.where(seen > -1, seen, np.nan), origin="lower", **scale)
            panel.axis("off")
        figure.colorbar(image, ax=list(axes[0, 1:]), label="largest r")
    return figure
