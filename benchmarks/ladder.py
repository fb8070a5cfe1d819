"""What does each chapter of beyond/ buy? The paper to the letter, then one chapter more a row.

    python benchmarks/ladder.py                                          the synthetic subject
    python benchmarks/ladder.py --data subjects/rest --out out/ladder-rest --short
    python benchmarks/ladder.py --without      --preset tiny, and that without one chapter

Trains where a row needs other weights, samples the test runs from EEG alone (direct), with every
second frame observed (gap 2) and with the first and last of every ten (gap 9), and writes
OUT/ladder.md (OUT/without.md): MSE and r of the whole brain, of what the row reports: one sample to
begin with, the mean of 8 from `opposite_pairs` on. What is there already is not done again.

--short  a session of minutes: more held back (dropout, fewer steps), all runs but the test's
         trained on, the chapter vertex_loss carried on, windows of varied length not
"""

import json
import os
import subprocess
import sys
from typing import NamedTuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from tools.errors import Parser, script

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MODES = {"direct": [], "gap-2": ["--gap", "2"], "gap-9": ["--gap", "9"]}
SHORT = (
    "--no-validation --latent-dim 128 --eeg-filters 64 --eeg-bands 40 --eeg-power log "
    "--eeg-dropout 0.9 --lr 2e-3 --warmup 50 --ema 0.99 --epochs 163"
)
APART = "--projection plain --window 10 --overlap 0"


class Row(NamedTuple):
    name: str
    train: str = ""  # flags that this row adds to those of the rows before
    sample: str = ""  # flags, in place of those of the row before
    carried: tuple = ("long", "short")  # subjects whose later rows keep this one


ROWS = [
    Row("the paper to the letter", "--preset paper", "--paper"),
    Row("with 1,000 steps of DDPM", sample="--paper --steps 1000 --eta 1"),
    Row("epsilon kept after the projection", sample=f"{APART} --samples 1"),
    Row("opposite_pairs", sample=f"{APART} --samples 8"),
    Row("velocity", "--predict v"),
    Row("band_power", "--eeg-encoder bandpower"),
    Row("vertex_loss", "--loss vertex", carried=("short",)),
    Row("windows: EEG around them", "--context 6"),
    Row("windows: of any length", "--vary", carried=("long",)),
    Row("gaussian_prior", "--prior gaussian"),
    Row("weighted_projection, second_order", sample="--window 10 --overlap 0 --samples 8"),
    Row("whole_runs", sample="--samples 8"),
    Row("linear_gaussian, stacked", "--closed-form"),
]
WITHOUT = [  # flags that take one of the first chapters out again, with all others there
    Row("--preset tiny"),
    Row("without velocity", "--predict eps"),
    Row("without band_power", "--eeg-encoder conv"),
    Row("without windows: EEG around them", "--context 0"),
    Row("without windows: of any length", "--no-vary"),
]


def run(script_name, log, *flags):
    path = os.path.join(HERE, script_name)
    with open(log, "a", encoding="utf-8") as f:
        subprocess.run([sys.executable, path, *flags], check=True, stdout=f, stderr=f)


def trained(a, flags):
    """The folder of a checkpoint trained with these flags."""
    name = " ".join(flags).replace("--", "").replace(" ", "_") or "none"
    folder = os.path.join(a.out, name)
    if not os.path.exists(os.path.join(folder, "done")):
        size = SHORT.split() if a.short else []
        given = ["--data", a.data, "--out", folder, "--seed", str(a.seed), *size, *flags]
        os.makedirs(folder, exist_ok=True)
        run("train.py", os.path.join(folder, "train.txt"), *given)
        with open(os.path.join(folder, "done"), "w"):
            pass
    return folder


def scores(folder, flags):
    """{mode: (mse, r)} of the whole brain."""
    found = {}
    drawn = " ".join(flags).replace("--", "").replace(" ", "_") or "default"
    for mode, observed in MODES.items():
        out = os.path.join(folder, drawn, mode)
        metrics = os.path.join(out, "interrecon" if observed else "direct", "metrics.json")
        if not os.path.exists(metrics):
            ckpt = os.path.join(folder, "ckpt.pt")
            os.makedirs(out, exist_ok=True)
            log = os.path.join(out, "sample.txt")
            run("sample.py", log, "--ckpt", ckpt, "--out", out, *observed, *flags)
        with open(metrics, encoding="utf-8") as f:
            whole = json.load(f)["scores"]["neuroframes"]["whole"]
        found[mode] = whole["mse"]["mean"], whole["r"]["mean"]
    return found


def number(value):
    return f"{value:.3f}" if value < 100 else f"{value:.0f}"


def line(name, found):
    cells = [f"{number(mse)} | {r:.3f}" for mse, r in found.values()]
    return f"| {name} | " + " | ".join(cells) + " |"


def ladder(a):
    """Rows of the first table: flags of training add up, those of sampling replace each other."""
    kind = "short" if a.short else "long"
    flags = []
    sampling = []
    for row in ROWS:
        these = flags + row.train.split()
        sampling = row.sample.split() or sampling
        found = scores(trained(a, these), sampling)
        kept = kind in row.carried
        yield line(row.name if kept else f"({row.name})", found)
        if kept:
            flags = these


def without(a):
    """Rows of the second."""
    for row in WITHOUT:
        folder = trained(a, ["--preset", "tiny", *row.train.split()])
        yield line(row.name, scores(folder, row.sample.split()))


@script
def main(argv=None):
    p = Parser(description="The paper, then one chapter more a row.")
    p.add_argument("--data", default="out/synthetic", help="prepared subject")
    p.add_argument("--out", default="out/ladder", help="folder for checkpoints and results")
    p.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    p.add_argument("--short", action="store_true", help="a session of minutes; see this file")
    p.add_argument("--without", action="store_true", help="--preset tiny without one chapter a row")
    a = p.parse_args(argv)
    heading = "| | " + " | ".join(f"{mode}: MSE | r" for mode in MODES) + " |"
    lines = [heading, "|---|" + "---|---|" * len(MODES)]
    for row in without(a) if a.without else ladder(a):
        print(row, flush=True)
        lines.append(row)
    name = "without.md" if a.without else "ladder.md"
    with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
