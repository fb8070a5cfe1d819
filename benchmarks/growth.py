"""How should the network's size grow with the number of training frames? One synthetic subject, of
which more and more is trained on, by networks that are wider and deeper.

    python benchmarks/growth.py
    python benchmarks/growth.py --frames 20000 --widths 128 256 512 --epochs 30

Each of a number of frames is trained for the same number of epochs, validated on the same run and
sampled on the same test runs. Writes OUT/results.jsonl and OUT/growth.md: the lowest validation
loss (it compares networks of one number of frames, for the latents that it is of come from the
training frames), MSE and r from EEG alone, minutes of training. What is there already is not done
again, and what was interrupted goes on.
"""

import functools
import json
import os
import shlex
import shutil
import sys

import subjects
from ladder import number
from table import check_asked

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data
from tools import files
from tools.errors import Parser, fail, script

RUN = 900  # frames of a run, at most


def part(whole, folder, frames):
    """The subject in folder `whole`, of whose training runs the first `frames` frames are trained
    on, as many of each of the first runs; unless it is there."""
    if os.path.exists(folder):
        return
    subject = data.Subject(whole)
    runs = subject.segments("train")
    count = max(2, -(-frames // RUN))  # with the validation run three: see data.Subject.segments
    rows = []
    for low, high in runs[:count]:
        rows += range(low, min(high, low + frames // count))
    for low, high in subject.segments("val"):  # the last of what is called train
        rows += range(low, high)
    split = {"train": rows, "test": subject.meta["split"]["test"]}
    with files.whole(folder) as partial:
        shutil.copytree(whole, partial, dirs_exist_ok=True)
        files.save_json(os.path.join(partial, "subject.json"), {**subject.meta, "split": split})


def measure(a, scripts, frames, width, depth):
    """The result of a network, as it stands in results.jsonl."""
    name = f"{frames}-{width}-{depth}"
    folder = os.path.join(a.out, name)
    given = ["--seed", a.seed, *(["--device", a.device] if a.device else [])]
    sizes = ["--width", width, "--depth", depth, "--epochs", a.epochs]
    data_flags = "--data", os.path.join(a.out, f"frames-{frames}")
    train = subjects.trained(scripts, folder, *data_flags, *sizes, *given, *shlex.split(a.train))
    if train["status"]:
        fail(f"{folder}/train.txt: train.py says: {train['said']}")
    done, metrics = subjects.sampled(scripts, folder, "direct", *given, *shlex.split(a.sample))
    if done["status"]:
        fail(f"{folder}/direct/sample.txt: sample.py says: {done['said']}")
    with open(os.path.join(folder, "log.jsonl"), encoding="utf-8") as f:
        losses = [json.loads(text)["val_loss"] for text in f]
    return {
        "name": name,
        "sizes": [frames, width, depth],
        "val_loss": min(losses),
        "scores": subjects.whole_brain(metrics),
        "minutes": train["seconds"] / 60,
    }


HEADING = "| frames | width | depth | validation loss | MSE | r | minutes |\n" + "|---" * 7 + "|"


def line(result):
    mse, r = result["scores"]["neuroframes"]
    cells = [f"{size:,}" for size in result["sizes"]]
    cells += [f"{result['val_loss']:.4f}", number(mse), f"{r:.3f}", f"{result['minutes']:.1f}"]
    return "| " + " | ".join(cells) + " |"


def parse(argv):
    p = Parser(description="Networks of several sizes on parts of one subject.")
    add = p.add_argument
    add("--out", default="out/growth", help="folder for all that comes of it")
    add("--frames", type=int, nargs="+", default=[1000, 3000, 20_000], help="to train on")
    add("--widths", type=int, nargs="+", default=[128, 256, 512])
    add("--depths", type=int, nargs="+", default=[2, 4])
    add("--epochs", type=int, default=60, help="of each (default: 60)")
    add("--train", default="--preset tiny", help="flags for train.py (default: --preset tiny)")
    subjects.add_flags(add)
    return p.parse_args(argv)


def run(a):
    """From flags to OUT/growth.md."""
    most = max(a.frames)
    asked = ["--seed", str(a.seed), "--epochs", str(a.epochs), "--train", a.train]
    check_asked(a.out, [*asked, "--sample", a.sample, "--frames", str(most)], None)

    runs = max(2, -(-most // RUN)) + 1
    whole = os.path.join(a.out, f"subject-{most}")
    subjects.make(subjects.Variant("whole", most, runs), whole, a.seed)
    for frames in a.frames:
        part(whole, os.path.join(a.out, f"frames-{frames}"), frames)

    scripts = subjects.Scripts()
    there = subjects.read_results(a.out)
    tasks = {}
    for frames in a.frames:
        for depth in a.depths:
            for width in a.widths:
                if f"{frames}-{width}-{depth}" not in there:
                    task = functools.partial(measure, a, scripts, frames, width, depth)
                    tasks[f"{frames}-{width}-{depth}"] = task
    print(HEADING)
    results = subjects.run_all(a, scripts, tasks, line)

    found = sorted(results.values(), key=lambda result: result["sizes"])
    best, _ = found[-1]["scores"].get("ceiling", (float("nan"), 0))
    lines = [HEADING, *map(line, found), "", f"All that the EEG can tell: MSE {best:.3f}."]
    path = os.path.join(a.out, "growth.md")
    files.replace(path, lambda f: f.write(("\n".join(lines) + "\n").encode()))
    print(f"{lines[-1]}\nwrote {path}")


@script
def main(argv=None):
    a = parse(argv)
    with files.held(a.out):
        run(a)


if __name__ == "__main__":
    main()
