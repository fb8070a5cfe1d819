"""What does it buy to learn from several people? Six synthetic ones, alone, pooled and left out.

    python benchmarks/pooling.py --steps 0        the closed form alone
    python benchmarks/pooling.py                  the default; the table then has both
    python benchmarks/pooling.py --only alone-10 pooled-10 --people 3
    python benchmarks/pooling.py --steps 0 --only left-out-60 alone-5 new-5 alone-10 new-10

All have the same sources, on the same maps, in the same rhythms. Everyone has an own

    lead field   the common one, and a deviation of DEVIATION times its size
    BOLD         of each source more or less (log-normal factors), -0.5 to +0.5 s later, in own
                 units, with more or less noise
    EEG          of an own size at each electrode, with more or less noise

and runs of 200 s to train on, and ten minutes more for the test, the same in all conditions:

    alone-10, -60     trained on 10 or 60 minutes of that person
    pooled-10, -60    on as many of each of all
    left-out-10, -60  on as many of each of the others. This person is then new: z-scores are by all
                      own frames, which the mean frame knows as well
    new-5 ... new-60  left-out-60, adapted by so many minutes of who was left out (train.py --adapt)
    few-new-10        left-out-10, adapted by 10: with its network in minutes, not in hours
    alone-5, -20      what these minutes are worth by themselves

Writes OUT/results.jsonl and OUT/pooling.md: MSE and r of the test frames, in each person's own
z-scores, with the mean over people and its 95% interval; and in how many people the MSE is less
than alone (left out: than the mean frame's), with a sign test. What is there already is not done
again, and what was interrupted goes on.

Last in pooling.md is the curve of --adapt: MSE by minutes, from 0, which is left-out-60. Own
z-scores are in the units of these minutes, and of 0 minutes in those of all frames; two points of a
curve would be in two units. So all its points are scored in one: the z-scores of the 60 minutes
that the person has in left-out-60. What a model wrote is brought there by the factor and the offset
of each vertex that bring there what it wrote of the truth. Its mean frame, 0 where it was written,
comes along: by five minutes it is poorly known, and with 0 minutes it is told by all frames.

--tune gives flags to train.py where a model is adapted, and there alone; the groups that are there
already stay as they are:

    python benchmarks/pooling.py --only left-out-60 new-10 --tune "--lr 1e-4"
"""

import functools
import math
import os
import shlex
import sys
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import subjects
from table import check_asked

import data
import sample
from evidence.people import sign_test, student
from recordings import prepared
from tools import files
from tools.errors import Parser, fail, script

# ---- People ----------------------------------------------------------------------------

SIDE, CHANNELS, SOURCES, BACKGROUND = 32, 16, 8, 24  # as data.synthetic has them
RUN = 250  # frames of a run: 200 s. Ten minutes are three runs, so that one is for validation
TESTS = 3  # runs
FS, DELAY = 100, 4.0  # samples a second; s from EEG to the frame that it is paired with
DEVIATION = 0.5  # of a person's lead field from the common one, over that one's size
AMPLITUDES = 0.3  # deviation of the logs of how much of a source BOLD shows
LATE = 0.5  # s, the most that someone's BOLD comes sooner or later
NOISE = 0.3  # deviation of the logs of how much noise there is, in BOLD and in EEG


def common_brain(seed):
    """What all people share."""
    rng = np.random.default_rng(seed)
    sheet = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE)), -1).reshape(-1, 2)  # [V,2]
    background_maps = data.smooth_maps(rng, BACKGROUND, sheet)  # [background,V]
    return data.Brain(
        maps=data.smooth_maps(rng, SOURCES, sheet),
        background_maps=background_maps * 1.4 / np.sqrt(1 + np.arange(BACKGROUND))[:, None],
        lead_field=rng.standard_normal((CHANNELS, SOURCES)) / math.sqrt(CHANNELS),
        frequency=np.repeat(np.geomspace(5, 35, SOURCES // 2), 2),
        baseline=rng.uniform(400, 1000, SIDE**2),
    )


def person(seed, number):
    """One of them: (brain, s by which the BOLD is late, size [C,1] of the EEG). As units are
    everyone's own, k times the noise is 1 / k of all else."""
    common = common_brain(seed)
    rng = np.random.default_rng([seed, number])
    amplitudes = np.exp(AMPLITUDES * rng.standard_normal((SOURCES, 1)))
    noise_bold, noise_eeg = np.exp(NOISE * rng.standard_normal(2))
    own = rng.standard_normal((CHANNELS, SOURCES)) / math.sqrt(CHANNELS)
    brain = common._replace(
        maps=common.maps * amplitudes / noise_bold,
        background_maps=common.background_maps / noise_bold,
        lead_field=(common.lead_field + DEVIATION * own) / noise_eeg,
        baseline=common.baseline * np.exp(rng.standard_normal(SIDE**2)),
    )
    size = np.exp(rng.standard_normal((CHANNELS, 1)))
    return brain, rng.uniform(-LATE, LATE), size


def make(seed, number, minutes, folder):
    """The prepared subject of a person with so many minutes to train on, unless it is there. (What
    is left of the last training run is not used.)"""
    if os.path.exists(folder):
        return
    brain, late, size = person(seed, number)
    trained = round(minutes * 60 / data.TR)  # frames
    runs = math.ceil(trained / RUN)
    count = runs + TESTS
    frames = list(range(count * RUN))
    meta = {
        "tr": data.TR,
        "fs": FS,
        "delay": DELAY,
        "source": f"synthetic, person {number} of seed {seed}",
        "first_volume": [0] * count,
        "frames_per_run": [RUN] * count,
        "split": {"train": frames[:trained], "test": frames[runs * RUN :]},
    }
    # EEG of `late` seconds later, in the place of what belongs there, is BOLD that comes late.
    paired = DELAY - late
    volumes = RUN + math.ceil((DELAY + LATE) / data.TR)
    driven = []
    with prepared.writing(folder, meta, SIDE**2, CHANNELS, round(data.TR * FS)) as out:
        for i in [*range(TESTS, count), *range(TESTS)]:  # a run is the same however many there are
            rng = np.random.default_rng([seed, number, i])
            run = data.synthetic_run(rng, brain, volumes, data.TR, FS, paired)
            out.add(run["fmri"][-RUN:], size * run["eeg"][-RUN:])
            driven.append(run["driven"][-RUN:])
        files.save_array(out.path("driven.npy"), np.concatenate(driven, dtype=np.float32))


# ---- Conditions ------------------------------------------------------------------------


class Condition(NamedTuple):
    minutes: int  # of each person who is learned from
    teachers: str  # own: a model a person; all: one model; others: a model a person
    begins: str = ""  # the condition whose models are adapted

    def models(self, people):
        """{name of a model: (whom it is trained on, whom it is tested on)}"""
        if self.teachers == "all":
            return {"all": (people, people)}
        if self.teachers == "own":
            return {one: ([one], [one]) for one in people}
        return {one: ([other for other in people if other != one], [one]) for one in people}


CONDITIONS = {
    "alone-10": Condition(10, "own"),
    "pooled-10": Condition(10, "all"),
    "left-out-10": Condition(10, "others"),
    "left-out-60": Condition(60, "others"),
    "alone-60": Condition(60, "own"),
    "pooled-60": Condition(60, "all"),
    "alone-5": Condition(5, "own"),
    "alone-20": Condition(20, "own"),
    "new-5": Condition(5, "own", "left-out-60"),  # (of --jobs after those)
    "new-10": Condition(10, "own", "left-out-60"),
    "new-20": Condition(20, "own", "left-out-60"),
    "new-60": Condition(60, "own", "left-out-60"),
    "few-new-10": Condition(10, "own", "left-out-10"),
}
CURVE = {  # minutes: (alone, with the group's model)
    0: ("", "left-out-60"),
    5: ("alone-5", "new-5"),
    10: ("alone-10", "new-10"),
    20: ("alone-20", "new-20"),
    60: ("alone-60", "new-60"),
}


def scored(folder, new, out, offset):
    """[MSE, r, MSE of the mean frame, MSE of all that the EEG can tell] of a person's test frames,
    of what sample.py has written to `out`, where the person's first frame has the row `offset`."""
    subject = data.Subject(folder)
    test = np.concatenate([np.arange(*span) for span in subject.segments("test")])
    written = np.load(os.path.join(out, "frames.npy"))
    places = np.flatnonzero(np.isin(written, offset + test))  # in the order of `test`
    recon = np.load(os.path.join(out, "recon.npy"), mmap_mode="r")[places]  # [t,V]
    truth = np.load(os.path.join(out, "truth.npy"), mmap_mode="r")[places]

    units = subject.segments("train", False) + (subject.segments("test") if new else [])
    driven = data.Normaliser.measure(subject, units).zscore(subject.driven[test])  # [t,V]
    mean_frame = float((truth**2).mean())
    return [*mse_and_r(recon, truth), mean_frame, float(((driven - truth) ** 2).mean())]


def mse_and_r(recon, truth):
    """Means over frames [t,V]."""
    return sample.frame_scores(*map(torch.from_numpy, (recon, truth))).mean(0).tolist()[:2]


def scored_alike(subject, out):
    """[MSE, r, MSE of the mean frame] of a person's test frames, of what sample.py has written to
    `out`, in z-scores of the training frames of `subject`."""
    test = np.concatenate([np.arange(*span) for span in subject.segments("test")])
    units = data.Normaliser.measure(subject, subject.segments("train", False))
    truth = units.zscore(subject.fmri[test])  # [t,V]

    # These frames come last in all that is written.
    names = "recon.npy", "truth.npy"
    recon, there = (np.load(os.path.join(out, name))[-len(test) :] for name in names)  # [t,V]
    factor = truth.std(0) / there.std(0)  # [V]
    offset = truth.mean(0) - factor * there.mean(0)  # [V], which is what 0 becomes
    return [*mse_and_r(recon * factor + offset, truth), float(((offset - truth) ** 2).mean())]


def place(a, minutes, one):
    return os.path.join(a.out, f"{minutes}-minutes", one)


def outputs(a, name):
    """Where sample.py has written what a model says."""
    return os.path.join(a.out, name, "direct", "direct")


def measure(a, scripts, name, minutes, teachers, tested, begins):
    """The result of a model, as it stands in results.jsonl. begins: the name of the model that is
    adapted, or ""."""
    given = ["--seed", a.seed, *(["--device", a.device] if a.device else [])]
    how = [*given, *shlex.split(a.train), *([] if a.steps is None else ["--steps", a.steps])]
    folders = [place(a, minutes, one) for one in teachers]
    out = os.path.join(a.out, name)
    if begins:
        how += ["--adapt", minutes, "--ckpt", os.path.join(a.out, begins, "ckpt.pt")]
        how += shlex.split(a.tune)
    train = subjects.trained(scripts, out, "--data", *folders, *how)
    if train["status"]:
        fail(f"{out}/train.txt: train.py says: {train['said']}")

    folders = [place(a, minutes, one) for one in tested]
    flags = "--data", *folders, *given, *shlex.split(a.sample)
    done, _ = subjects.sampled(scripts, out, "direct", *flags)
    if done["status"]:
        fail(f"{out}/direct/sample.txt: sample.py says: {done['said']}")
    found = {}
    offset = 0
    for one, folder in zip(tested, folders):  # sample.py has them in this order
        found[one] = scored(folder, one not in teachers, outputs(a, name), offset)
        offset += len(data.Subject(folder).fmri)
    return {"name": name, "people": found, "seconds": train["seconds"] + done["seconds"]}


# ---- Tables ----------------------------------------------------------------------------

CELLS = "condition", "method", "MSE", "r", "mean frame", "all that the EEG can tell"
CELLS += "less MSE than alone", "than the mean frame", "minutes"
POINTS = "minutes", "method", "from the group: MSE (mean frame)", "r"
POINTS += "alone: MSE (mean frame)", "r", "less MSE than alone", "than with 0 minutes"


def as_line(cells):
    return "| " + " | ".join(cells) + " |"


def heading(cells):
    return [as_line(cells), "|---" * len(cells) + "|"]


def interval(values):
    """Mean over people +- 95%, in words."""
    n = len(values)
    width = student(n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return f"{np.mean(values):.3f} +- {width:.3f}"


def fewer(mse, than):
    """In how many people it is less, and p of a sign test."""
    better = (mse < than).tolist()
    return f"{sum(better)} of {len(better)}, p {sign_test(better):.3f}"


def untuned(method):
    """Without what --tune has added."""
    return method.partition(" --")[0]


def curve(a, whole):
    """Its lines. whole: {(condition, method): ...} of models that everyone has."""
    lines = []
    for method in sorted({method for _, method in whole}):
        none = points(a, whole, "left-out-60", untuned(method))
        for minutes, (alone, new) in CURVE.items():
            if (new, method) not in whole:
                continue
            group = points(a, whole, new, method)
            own = points(a, whole, alone, untuned(method))
            cells = [str(minutes), method, *point(group), *point(own), less(group, own)]
            cells.append(less(group, none) if minutes else "")
            lines.append(as_line(cells))
    said = "By minutes, in z-scores of the hour that each has in left-out-60:"
    return ["", said, "", *heading(POINTS), *lines] if lines else []


def points(a, whole, condition, method):
    """`scored_alike` [n,3] of everyone, or None."""
    if (condition, method) not in whole:
        return None
    minutes = CONDITIONS["left-out-60"].minutes
    found = []
    for one in names(a):
        subject = data.Subject(place(a, minutes, one))
        found.append(scored_alike(subject, outputs(a, f"{condition}/{method}/{one}")))
    return np.array(found)


def point(scores):
    """The cells of scores [n,3]: MSE, and the mean frame's; r."""
    if scores is None:
        return ["", ""]
    mse, r, mean = scores.T
    return [f"{interval(mse)} ({mean.mean():.3f})", interval(r)]


def less(scores, than):
    """In how many people the MSE of scores [n,3] is less."""
    return "" if than is None else fewer(scores[:, 0], than[:, 0])


def tables(a, results):
    """The lines of pooling.md: means over people, everyone, and the curve of --adapt."""
    found = {}  # {(condition, method): {person: scores}}
    minutes = {}
    for name, result in results.items():
        key = tuple(name.split("/")[:2])
        found.setdefault(key, {}).update(result["people"])
        minutes[key] = minutes.get(key, 0) + result["seconds"] / 60
    whole = {key: rows for key, rows in found.items() if len(rows) == a.people}

    means = heading(CELLS)
    everyone = heading(["condition", "method", *names(a)])
    for key in sorted(whole, key=lambda key: (list(CONDITIONS).index(key[0]), key[1])):
        condition, method = key
        scores = np.array([whole[key][one] for one in names(a)])  # [n,4]
        kind, _, minutes_each = condition.rpartition("-")
        alone = whole.get((f"alone-{minutes_each}", untuned(method)))
        compared = ""
        if alone and kind in ("pooled", "new", "few-new"):
            compared = fewer(scores[:, 0], np.array([alone[one][0] for one in names(a)]))
        cells = [*key, *map(interval, scores.T[:2]), *[f"{x:.3f}" for x in scores.mean(0)[2:]]]
        cells += [compared, fewer(scores[:, 0], scores[:, 2]), f"{minutes[key]:.1f}"]
        means.append(as_line(cells))
        everyone.append(as_line([*key, *[f"{mse:.3f} ({mean:.3f})" for mse, _, mean, _ in scores]]))
    return [
        *means,
        "",
        "MSE, and in brackets the mean frame's:",
        "",
        *everyone,
        *curve(a, whole),
    ]


# ---- The run ---------------------------------------------------------------------------


def names(a):
    return [f"P{i + 1}" for i in range(a.people)]


def line(result):
    """What is printed of a model as it comes."""
    cells = [f"{one} {mse:.3f}" for one, (mse, *_) in result["people"].items()]
    return f"{result['name']}: MSE {', '.join(cells)}; {result['seconds']:.0f} s"


def run(a):
    """From flags to OUT/pooling.md."""
    asked = ["--seed", str(a.seed), "--people", str(a.people)]
    check_asked(a.out, [*asked, "--train", a.train, "--sample", a.sample], None)
    scripts = subjects.Scripts()
    there = subjects.read_results(a.out)
    method = {None: "default", 0: "closed form"}.get(a.steps, f"{a.steps} steps")
    tasks = {}
    for condition in a.only or CONDITIONS:
        minutes, _, begins = CONDITIONS[condition]
        for number, one in enumerate(names(a), 1):
            make(a.seed, number, minutes, place(a, minutes, one))
        for model, who in CONDITIONS[condition].models(names(a)).items():
            name = f"{condition}/{method}/{model}"
            group = ""
            if begins:
                name = f"{condition}/{' '.join([method, a.tune]).strip()}/{model}"
                whose = "all" if CONDITIONS[begins].teachers == "all" else model
                group = f"{begins}/{method}/{whose}"
            if name not in there:
                tasks[name] = functools.partial(measure, a, scripts, name, minutes, *who, group)
    results = subjects.run_all(a, scripts, tasks, line)
    lines = tables(a, results)
    path = os.path.join(a.out, "pooling.md")
    files.replace(path, lambda f: f.write(("\n".join(lines) + "\n").encode()))
    print("\n".join(lines) + f"\nwrote {path}")


@script
def main(argv=None):
    p = Parser(description="Several people alone, pooled and left out.")
    add = p.add_argument
    add("--out", default="out/pooling", help="folder for all that comes of it")
    add("--only", nargs="+", choices=CONDITIONS, metavar="CONDITION", help="these conditions")
    add("--people", type=int, default=6, help="how many, from 3 to 9 (default: 6)")
    add("--steps", type=int, help="of training; 0: the closed form alone (default: as it chooses)")
    add("--train", default="", help='more flags for train.py, such as "--width 64"')
    add("--tune", default="", help='the same where a model is adapted, such as "--lr 1e-4"')
    subjects.add_flags(add)
    a = p.parse_args(argv)
    if not 3 <= a.people <= 9:  # a model of one other would not be one of several people
        fail(f"--people {a.people}: expected 3 to 9")
    with files.held(a.out):
        run(a)


if __name__ == "__main__":
    main()
