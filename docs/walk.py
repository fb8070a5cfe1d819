"""Run the code of docs/walk.md, block by block, and draw its pictures.

    python train.py && python docs/walk.py

Pictures go to docs/pictures/walk-N.png. They need matplotlib.
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
from spaces.pictures import pyplot  # noqa: E402
from tools.errors import script  # noqa: E402


def blocks():
    """The blocks of code of the page, in order."""
    with open(os.path.join(HERE, "walk.md"), encoding="utf-8") as f:
        return re.findall(r"```python\n(.*?)```", f.read(), flags=re.DOTALL)


# ---- Pictures, one for each block, from the names that the blocks so far have made ------


def show(axis, frame, title, limit=2.5, colours="RdBu_r"):
    """A frame [V] of the synthetic subject as the square sheet that it is."""
    side = int(len(frame) ** 0.5)
    low = 0 if colours == "viridis" else -limit
    axis.imshow(frame.view(side, side).numpy(), cmap=colours, vmin=low, vmax=limit)
    axis.set(title=title, xticks=[], yticks=[])


def draw_1(plt, made):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), layout="constrained")
    eeg = made["eeg"].numpy()
    power = made["power"].numpy()
    fs = made["subject"].meta["fs"]
    C, W = eeg.shape
    for c in range(C):
        left.plot([1000 * i / fs for i in range(W)], eeg[c] / eeg.std() + 3 * c, lw=0.7, c="k")
    left.set(xlabel="ms", ylabel="channel", yticks=[], title="EEG of one frame")
    frequency = [k * fs / W for k in range(1, W // 2 + 1)]
    right.semilogy(frequency, power[:, 1:].T, lw=0.7, c="tab:blue", alpha=0.5)
    right.semilogy(frequency, power[:, 1:].mean(0), lw=2, c="k")
    right.set(xlabel="Hz", title="power of each channel, and their mean", xlim=(0, 45))
    return figure


def draw_2(plt, made):
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
    show(axes[0], made["x"][0], "a frame, x")
    show(axes[1], made["kept"][0], "what latents keep, D z")
    show(axes[2], made["left_out"][0], "what they leave out")
    axes[3].imshow(made["z"].numpy(), cmap="RdBu_r", vmin=-2.5, vmax=2.5, aspect="auto")
    axes[3].set(title="latents z of ten frames", xlabel="latent", ylabel="frame")
    return figure


def draw_3(plt, made):
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
    decode = made["study"].autoencoder.decode
    for axis, (n, z_n) in zip(axes, made["noisy"].items()):
        abar = made["schedule"].alpha_bar[n]
        show(axis, decode(z_n)[0], f"n = {n}, abar = {abar:.2g}")
    return figure


def draw_4(plt, made):
    """Of the 50 steps those nearest to these, the last result, and the truth."""
    strip, decode = made["strip"], made["study"].autoencoder.decode
    wanted = [min(strip, key=lambda n: abs(n - target)) for target in (999, 750, 500, 250, 100)]
    figure, axes = plt.subplots(1, 7, figsize=(13, 2.4), layout="constrained")
    for axis, n in zip(axes, wanted):
        show(axis, decode(strip[n])[5], f"n = {n}")
    show(axes[5], decode(made["drawn"])[0, 5], "the sample")
    show(axes[6], made["x"][5], "the truth")
    return figure


def draw_5(plt, made):
    decode, frames = made["study"].autoencoder.decode, (0, 2, 4, 6, 9)
    rows = {
        "truth": made["x"],
        "range part": decode(made["range_part"])[0],
        "null part": decode(made["null_part"])[0],
        "together": made["completed"],
    }
    figure, axes = plt.subplots(4, len(frames), figsize=(8, 6.4), layout="constrained")
    for row, (name, x) in zip(axes, rows.items()):
        for axis, k in zip(row, frames):
            seen = ", observed" if made["mask"][k] else ""
            show(axis, x[k], f"frame {k}{seen}" if name == "truth" else "")
        row[0].set_ylabel(name)
    return figure


def draw_6(plt, made):
    figure, axes = plt.subplots(2, 6, figsize=(11, 4), layout="constrained")
    axes = axes.ravel()
    for s in range(8):
        show(axes[s], made["frames"][s, 5], f"sample {s + 1}")
    one, mean = made["error_of_one"], made["error_of_mean"]
    show(axes[8], made["mean"][5], f"mean: MSE {mean:.2f}\n(a sample: {one:.2f})")
    show(axes[9], made["spread"][5], "spread", 1.5, "viridis")
    show(axes[10], made["x"][5], "the truth")
    axes[11].axis("off")
    return figure


DRAWINGS = (draw_1, draw_2, draw_3, draw_4, draw_5, draw_6)


def run(blocks, names):
    """Run the blocks in turn, and stop after each: its names are added to `names`."""
    for block in blocks:
        exec(block, names)
        yield names


@script
def main(argv=None):
    plt = pyplot()
    for i, (made, draw) in enumerate(zip(run(blocks(), {}), DRAWINGS, strict=True), 1):
        path = os.path.join(HERE, "pictures", f"walk-{i}.png")
        draw(plt, made).savefig(path, dpi=70)
        plt.close("all")
        print(f"{path}: {os.path.getsize(path) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
