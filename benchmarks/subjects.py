"""Does train.py suit subjects that it was not made on? Small synthetic ones, each of which differs
in one thing, trained and sampled with no flags but --data, --out, --seed and --device.

    python benchmarks/subjects.py
    python benchmarks/subjects.py --only frames tr-2 --jobs 2 --ridge

    frames-300, -1000, -3000  to train on, beside a validation run; 16 channels, TR 0.8 s
    channels-4, -64           electrodes; these and all below: 1,000 frames where not said
    tr-2                      a frame every 2 s
    log                       BOLD follows the log of the sources' power, not the power
    ramp                      every run drifts, and has an offset of its own
    pop                       an electrode pops ten times in a training run: 20 ms, 1,000 std
    other-0 ... other-19      600 frames of one brain, the EEG of another: it must not help
    one-run, two-runs         600 frames each: nothing to score, nothing to choose on

Writes OUT/results.jsonl and OUT/subjects.md: MSE and r over the whole brain; p, how probable it is
that EEG which tells nothing helps as much; `worst`, NeuroFrames' MSE as a multiple of the best
rival's without a network, where of the three modes that is largest; and what sample.py says of the
first mode. What is there already is not done again, and what was interrupted goes on. To measure a
subject anew, remove its folder, and its line from results.jsonl.
"""

import concurrent.futures
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from baselines import read_json
from ladder import HERE, MODES, number
from table import check_asked

import data
from recordings import prepared
from tools import files
from tools.errors import Parser, fail, script

# ---- Subjects --------------------------------------------------------------------------

bold_of_power = data.synthetic_bold


def bold_of_log_power(rng, brain, ticks, power, volumes, tr):
    """data.synthetic_bold of log power, brought to the mean and the deviation that power has."""
    log = np.log(power)  # [ticks,sources], mean 0 and variance 1
    return bold_of_power(rng, brain, ticks, 1.65 * (1 + 1.31 * log), volumes, tr)


def ramp(rng, fmri, eeg, runs):
    """Each run gets a line and an offset, on smooth maps, as large as the BOLD's own deviation."""
    side = round(fmri.shape[1] ** 0.5)
    sheet = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)  # [V,2]
    std = fmri.std(0)  # [V]
    for low, high in runs:
        line, offset = data.smooth_maps(rng, 2, sheet) * std  # [V] each
        fmri[low:high] += np.linspace(-0.5, 0.5, high - low)[:, None] * line + offset


def pop(rng, fmri, eeg, runs):
    """The first electrode, for 20 ms of ten frames of the first run."""
    size = 1000 * eeg[:, 0].std()
    low, high = runs[0]
    for frame in rng.choice(np.arange(low, high), 10, replace=False):
        sample = rng.integers(eeg.shape[2] - 1)
        eeg[frame, 0, sample : sample + 2] = size  # of 100 a second


class Variant(NamedTuple):
    """What a subject is, where it is not as the first."""

    name: str
    frames: int = 1000  # to train on, without those of the validation run
    runs: int = 5  # to train on; of three or more the last is for validation
    tested: bool = True  # on 300 frames or more
    seed: int = 0
    channels: int = 16
    tr: float = 0.8
    bold: Callable = bold_of_power
    change: Callable | None = None  # (rng, fmri [T,V], eeg [T,C,W], runs): in place
    stranger: bool = False  # its EEG is of another subject


VARIANTS = [
    *[Variant(f"frames-{frames}", frames) for frames in (300, 1000, 3000)],
    *[Variant(f"channels-{channels}", channels=channels) for channels in (4, 64)],
    Variant("tr-2", tr=2.0),
    Variant("log", bold=bold_of_log_power),
    Variant("ramp", change=ramp),
    Variant("pop", change=pop),
    *[Variant(f"other-{seed}", 600, seed=seed, stranger=True) for seed in range(20)],
    Variant("one-run", 600, runs=1, tested=False),
    Variant("two-runs", 600, runs=1),
]


def simulated(v, seed):
    """({name: array}, content of subject.json) of a synthetic subject, of runs of one length.

    What is other is exchanged within data.py, so that all else, its random numbers too, is as in
    the first."""
    length = v.frames // (v.runs - 1 if v.runs >= 3 else v.runs)
    tests = -(-300 // length) if v.tested else 0
    sizes = {"runs": v.runs + tests, "frames": length, "channels": v.channels, "side": 24}
    patched = mock.patch.multiple(data, TR=v.tr, synthetic_bold=v.bold)
    with tempfile.TemporaryDirectory() as place, patched:
        folder = data.synthetic(os.path.join(place, "subject"), seed, **sizes)
        names = "fmri", "eeg", "driven"
        arrays = {name: np.load(os.path.join(folder, f"{name}.npy")) for name in names}
        meta = read_json(os.path.join(folder, "subject.json"))

    T = len(arrays["fmri"])
    meta["split"] = {"train": list(range(v.runs * length)), "test": list(range(v.runs * length, T))}
    meta["frames_per_run"] = [length] * len(meta["runs"])
    return arrays, meta


def make(v, folder, seed):
    """The prepared subject of a variant, unless it is there."""
    if os.path.exists(folder):
        return
    arrays, meta = simulated(v, seed + v.seed)
    fmri = arrays["fmri"]  # [T,V]
    eeg = arrays["eeg"]  # [T,C,W]
    if v.stranger:
        eeg = simulated(v, seed + v.seed + 1000)[0]["eeg"]
        del arrays["driven"]  # this EEG can tell nothing
    meta["source"] += f", {v.name}"
    if v.change:
        v.change(np.random.default_rng(seed), fmri, eeg, meta["runs"])
    runs = meta["runs"]
    with prepared.writing(folder, meta, fmri.shape[1], *eeg.shape[1:]) as out:
        for low, high in runs:
            out.add(fmri[low:high], eeg[low:high])
        if "driven" in arrays:
            files.save_array(out.path("driven.npy"), arrays["driven"])


# ---- Scripts, in processes of their own ------------------------------------------------

ENDED = (0, 1, 2)  # exit statuses that will be the same again: see tools/errors.py


class Scripts:
    """Runs scripts, each only once, and stops all at once."""

    def __init__(self):
        self.running = set()
        self.stopped = False
        self.lock = threading.Lock()

    def run(self, path, name, *flags):
        """{"status", "seconds", "said"} of a script, now or when it ran before: in path.json. What
        it prints is in path.txt; `said` is its verdict on the EEG, or else its last line."""
        found = {"status": None, "seconds": 0.0}
        if os.path.exists(path + ".json"):
            found = read_json(path + ".json")
        if found["status"] in ENDED:
            return found
        os.makedirs(os.path.dirname(path), exist_ok=True)
        began = time.time()
        with open(path + ".txt", "a", encoding="utf-8") as log:
            status = self.wait_for([os.path.join(HERE, name), *map(str, flags)], log)

        with open(path + ".txt", encoding="utf-8", errors="replace") as log:
            lines = [line.strip() for line in log if line.strip()]  # (a \r ends one too)
        verdicts = [line for line in lines if line.startswith(("The EEG", "Too few"))]
        said = verdicts or lines
        seconds = found["seconds"] + time.time() - began
        found = {"status": status, "seconds": seconds, "said": said[-1] if said else ""}
        files.replace(path + ".json", lambda f: f.write(json.dumps(found).encode()))
        if status not in ENDED:
            fail(f"{path}.txt: {name} was stopped (status {status}); the same command goes on")
        return found

    def wait_for(self, argv, log):
        """The exit status. A process of another session is not reached by Ctrl-C, only by `stop`:
        of two signals train.py takes the second for haste, and does not save."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}  # so that lines are in order
        how = {"stdout": log, "stderr": subprocess.STDOUT, "env": env, "start_new_session": True}
        with self.lock:
            if self.stopped:
                fail("stopped; the same command goes on")
            process = subprocess.Popen([sys.executable, *argv], **how)
            self.running.add(process)
        status = process.wait()
        self.running.discard(process)
        return status

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in list(self.running):
                process.terminate()


def trained(scripts, folder, *flags):
    """train.py into `folder`, or on from where it was stopped."""
    resume = ["--resume"] if os.path.exists(os.path.join(folder, "last.pt")) else []
    path = os.path.join(folder, "train")
    return scripts.run(path, "train.py", "--out", folder, *flags, *resume)


def sampled(scripts, folder, mode, *flags):
    """sample.py in a mode: what `Scripts.run` returns, and its metrics.json, or None."""
    observed = MODES[mode]
    out = os.path.join(folder, mode)
    given = ["--ckpt", os.path.join(folder, "ckpt.pt"), "--out", out, *observed, *flags]
    done = scripts.run(os.path.join(out, "sample"), "sample.py", *given)
    if done["status"]:
        return done, None
    return done, read_json(
        os.path.join(out, "interrecon" if observed else "direct", "metrics.json")
    )


# ---- Results ---------------------------------------------------------------------------

SHOWN = {
    "direct": ("neuroframes", "linear_gaussian", "mean_frame", "ridge", "ceiling"),
    "gap-2": ("neuroframes", "linear_gaussian", "gaussian", "linear"),
    "gap-9": ("neuroframes", "linear_gaussian", "gaussian", "linear"),
}
RIVALS = ("linear_gaussian", "gaussian", "mean_frame")  # of `worst`


def whole_brain(metrics):
    """{method: (MSE, r)} of a metrics.json."""
    scores = {method: regions["whole"] for method, regions in metrics["scores"].items()}
    return {method: (s["mse"]["mean"], s["r"]["mean"]) for method, s in scores.items()}


def worst(modes):
    """The largest of NeuroFrames' MSE / the best rival's, over modes {mode: {method: (MSE, r)}}."""
    ratios = []
    for scores in modes.values():
        best = min(scores[method][0] for method in RIVALS if method in scores)
        ratios.append(scores["neuroframes"][0] / best)
    return max(ratios, default=None)


def ridge(scripts, folder, *flags):
    """(MSE, r) that benchmarks/baselines.py prints, or None where it cannot be fitted."""
    path = os.path.join(folder, "ridge")
    done = scripts.run(path, "benchmarks/baselines.py", "ridge", "--out", folder, *flags)
    if done["status"]:
        return None
    with open(path + ".txt", encoding="utf-8") as log:
        words = [line.split() for line in log if line.startswith("whole ")][-1]
    return float(words[words.index("mse") + 1]), float(words[words.index("r") + 1])


def measure(a, scripts, making, v):
    """The result of a variant, as it stands in results.jsonl."""
    folder = os.path.join(a.out, v.name)
    subject = os.path.join(folder, "subject")
    with making:  # one at a time: data.py's functions are exchanged meanwhile
        make(v, subject, a.seed)
    given = ["--seed", a.seed, *(["--device", a.device] if a.device else [])]
    train = trained(scripts, folder, "--data", subject, *given, *shlex.split(a.train))
    done = {"train": train}
    modes = {}
    p = {}
    for mode in MODES:
        if all(step["status"] == 0 for step in done.values()):
            done[mode], metrics = sampled(scripts, folder, mode, *given, *shlex.split(a.sample))
            if metrics:
                modes[mode] = whole_brain(metrics)
                p[mode] = metrics.get("helped", {}).get("whole", {}).get("p")
    result = {"name": v.name, "scores": modes, "p": p, "worst": worst(modes)}

    failed = [step["said"] for step in done.values() if step["status"]]
    result["said"] = failed[0] if failed else done["direct"]["said"]
    sampling = sum(step["seconds"] for step in done.values()) - train["seconds"]
    result["seconds"] = {"train": train["seconds"], "sample": sampling}
    if a.ridge:
        result["ridge"] = ridge(scripts, folder, "--data", subject, *given)
        if result["ridge"]:
            modes.setdefault("direct", {})["ridge"] = result["ridge"]
    return result


def heading():
    """The first two lines of the table."""
    columns = [f"{mode}: {method}" for mode, methods in SHOWN.items() for method in methods]
    cells = ["subject", *columns, "p: " + ", ".join(MODES), "worst"]
    cells += ["training, s", "sampling, s", "sample.py says"]
    return "| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|"


def line(result):
    """A result's line of the table; empty cells for what there is not."""
    cells = [result["name"]]
    for mode, methods in SHOWN.items():
        scores = result["scores"].get(mode, {})
        for method in methods:
            mse_r = scores.get(method)
            cells.append(f"{number(mse_r[0])}, {mse_r[1]:.3f}" if mse_r else "")
    known = [p for p in result["p"].values() if p is not None]
    cells.append(", ".join(f"{p:.3f}" for p in known))
    cells.append(f"{result['worst']:.2f}" if result["worst"] else "")
    cells += [f"{seconds:.0f}" for seconds in result["seconds"].values()]
    return "| " + " | ".join([*cells, result["said"]]) + " |"


def strangers(results):
    """How often the EEG of another brain seemed to help, in words."""
    found = [r["p"] for name, r in results.items() if name.startswith("other-")]
    counts = []
    for mode in MODES:
        p = [subject[mode] for subject in found if subject.get(mode) is not None]
        counts.append(f"{mode} {sum(value < 0.05 for value in p)} of {len(p)}")
    return "With the EEG of another brain, p < 0.05: " + ", ".join(counts) + "."


# ---- The run ---------------------------------------------------------------------------


def read_results(out):
    """{name: result} of OUT/results.jsonl."""
    path = os.path.join(out, "results.jsonl")
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        results = [json.loads(text) for text in f]
    return {result["name"]: result for result in results}


def run_all(a, scripts, tasks, line):
    """Call what is in tasks {name: function}, a.jobs at a time, print a line of each result as it
    comes, and keep it; returns {name: result} of all that there are by now."""
    if a.jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # or each script would take all cores
    results = read_results(a.out)
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        try:
            futures = [pool.submit(task) for task in tasks.values()]
            for future in concurrent.futures.as_completed(futures):
                result = future.result()
                results[result["name"]] = result
                text = "".join(json.dumps(found) + "\n" for found in results.values())
                path = os.path.join(a.out, "results.jsonl")
                files.replace(path, lambda f, text=text: f.write(text.encode()))
                print(line(result), flush=True)
        except BaseException:
            scripts.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return results


def add_flags(add):
    """Those that growth.py has too."""
    add("--seed", type=int, default=0, help="of subjects, training and sampling (default: 0)")
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    add("--jobs", type=int, default=1, help="at a time, with one thread each if more than 1")
    add("--sample", default="", help='flags for sample.py, such as "--steps 10"')


def chosen(only):
    """Variants of these names, or whose names begin so: frames, other."""
    if only is None:
        return VARIANTS
    kinds = {v.name: v.name.split("-")[0] for v in VARIANTS}
    for name in only:
        if name not in {*kinds, *kinds.values()}:
            known = ", ".join(dict.fromkeys(kinds.values()))
            fail(f"--only {name}: no such subject; expected some of {known}, or such as frames-300")
    return [v for v in VARIANTS if {v.name, kinds[v.name]} & set(only)]


def run(a):
    """From flags to OUT/subjects.md."""
    check_asked(a.out, ["--seed", str(a.seed), "--train", a.train, "--sample", a.sample], None)
    there = read_results(a.out)
    wanted = [v for v in chosen(a.only) if v.name not in there]
    if a.ridge:
        wanted = [v for v in chosen(a.only) if "ridge" not in there.get(v.name, {})]

    scripts = Scripts()
    making = threading.Lock()
    tasks = {v.name: functools.partial(measure, a, scripts, making, v) for v in wanted}
    print(heading())
    results = run_all(a, scripts, tasks, line)
    lines = [heading(), *[line(results[v.name]) for v in VARIANTS if v.name in results]]
    lines += ["", "MSE, r. " + strangers(results)]
    path = os.path.join(a.out, "subjects.md")
    files.replace(path, lambda f: f.write(("\n".join(lines) + "\n").encode()))
    print(f"{lines[-1]}\nwrote {path}")


@script
def main(argv=None):
    p = Parser(description="Train and sample on subjects that differ in one thing each.")
    p.add_argument("--out", default="out/subjects", help="folder for all that comes of it")
    p.add_argument("--only", nargs="+", metavar="NAME", help="these subjects; frames: frames-...")
    p.add_argument("--ridge", action="store_true", help="with ridge regression on band power")
    p.add_argument("--train", default="", help='flags for train.py, such as "--steps 100"')
    add_flags(p.add_argument)
    a = p.parse_args(argv)
    with files.held(a.out):
        run(a)


if __name__ == "__main__":
    main()
