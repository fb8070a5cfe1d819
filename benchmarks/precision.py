"""Does a network learn and draw the same in bfloat16 as in float32?

    python benchmarks/precision.py                 width 512, 120 steps, three seeds
    python benchmarks/precision.py --seeds 5 --steps 1000

Trains on the synthetic subject in both, seed by seed; prints the mean loss of the last quarter, the
validation loss, and scores from EEG alone (mean of 2 samples), drawn in either.
"""

import contextlib
import io
import json
import os
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data
import sample
import train
from tools import device
from tools.errors import Parser, script

PRECISIONS = "float32", "bfloat16"


def parse(argv=None):
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--out", default="out", help="folder for its networks (default: out)")
    p.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    p.add_argument("--steps", type=int, default=120, help="of training (default: 120)")
    p.add_argument("--width", type=int, default=512, help="of the network (default: 512)")
    return p.parse_args(argv)


@contextlib.contextmanager
def drawing_in(precision):
    """sample.py in this precision, whatever it would choose."""
    chosen = device.bfloat16_pays
    device.bfloat16_pays = lambda *_: precision == "bfloat16"
    try:
        yield
    finally:
        device.bfloat16_pays = chosen


@script
def main(argv=None):
    a = parse(argv)
    subject = data.ready(a.out)
    print("| seed | trained in | loss | validation | drawn in float32: MSE, r | in bfloat16 |")
    print("|---|---|---|---|---|---|")
    for seed in range(a.seeds):
        for trained in PRECISIONS:
            out = os.path.join(a.out, f"precision-{trained}-{seed}")
            given = ["--data", subject, "--out", out, "--preset", "paper", "--depth", "2"]
            given += ["--batch-size", "16", "--lr", "3e-4", "--precision", trained]
            given += [f"--{name}={getattr(a, name)}" for name in ("width", "steps")]
            with contextlib.redirect_stdout(io.StringIO()):
                train.main([*given, "--seed", str(seed)])
            with open(os.path.join(out, "log.jsonl"), encoding="utf-8") as f:
                log = [json.loads(line) for line in f]
            loss = np.mean([line["loss"] for line in log[-len(log) // 4 :]])

            cells = []
            for drawn in PRECISIONS:
                with drawing_in(drawn), contextlib.redirect_stdout(io.StringIO()):
                    sample.main(["--ckpt", f"{out}/ckpt.pt", "--samples", "2"])
                with open(f"{out}/direct/metrics.json", encoding="utf-8") as f:
                    scores = json.load(f)["scores"]["neuroframes"]["whole"]
                cells.append(f"{scores['mse']['mean']:.4f}, {scores['r']['mean']:.4f}")
            told = f"{loss:.4f} | {log[-1]['val_loss']:.3f} | {' | '.join(cells)}"
            print(f"| {seed} | {trained} | {told} |", flush=True)


if __name__ == "__main__":
    main()
