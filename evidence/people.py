"""Is it so in everyone, or in a few?

Frames of one person know of each other; people do not. So what is to be said of people who were not
measured rests on as many numbers as there are people: a mean of each. Of these

    95% interval   mean +- t sd / sqrt n, with Student's t of n - 1 degrees of freedom
    sign test      p = share of the 2^n ways to call heads or tails for each person in which no
                   fewer are better than were

Seam    after sampling: scores of frames -> scores of people
Source  Student 1908; the sign test is Arbuthnot's, 1710
Gain    what holds for these people, told from what holds for people
"""

import math

import numpy as np

from tools.files import named

SCORES = {  # of the whole brain: which method's, and which of its scores
    "mse": ("neuroframes", 0),
    "r": ("neuroframes", 1),
    "mean_frame_mse": ("mean_frame", 0),
    "shuffled_eeg_mse": ("shuffled_eeg", 0),
    "same_moment_mse": ("same_moment", 0),
    "other_eeg_mse": ("other_eeg", 0),
}
THAN = {
    "mean_frame_mse": "the mean frame",
    "shuffled_eeg_mse": "with shuffled EEG",
    "same_moment_mse": "the others at the same moment",
    "other_eeg_mse": "with another person's EEG",
}


def student(degrees):
    """The t that 2.5% of Student's distribution are above. With t = sqrt(degrees) tan(angle) its
    density is cos(angle)^(degrees - 1)."""
    angle = np.linspace(0, np.pi / 2, 100_001)
    share = np.cumsum(np.cos(angle) ** (degrees - 1))
    return math.sqrt(degrees) * math.tan(np.interp(0.95 * share[-1], share, angle))


def sign_test(better):
    """p of bools [n]."""
    n = len(better)
    return sum(math.comb(n, k) for k in range(sum(better), n + 1)) / 2**n


def look(results, metrics):
    """If there are several people, puts "people" into metrics, and into "runs" the names of runs;
    returns lines that say it. results: tools.report.Results."""
    subject, rows = results.subject, results.timeline.rows
    if not hasattr(subject, "people"):
        return []
    for run in metrics["runs"]:
        run["name"] = subject.meta["names"][run["run"] - 1]

    # Of the frames of each person that have something to score, the mean.
    scores = results.scores.frames
    columns = {name: of for name, of in SCORES.items() if of[0] in scores}
    frames = np.ma.stack([scores[method][0, :, i] for method, i in columns.values()], 1)  # [T,m]
    table = {}
    for person in subject.people:
        here = frames[(rows >= person.start) & (rows < person.stop)]
        if here.count():
            table[person.name] = here.mean(0)
    values = np.array(list(table.values()))  # [n,m]
    n = len(values)
    table["mean over people"] = values.mean(0)
    if n > 1:
        table["95% interval: +-"] = student(n - 1) * values.std(0, ddof=1) / math.sqrt(n)

    found = metrics["people"] = {"scores": named(table.values(), table, columns)}
    widths = [max(8, len(name) + 2) for name in columns]
    head = [f"{name:>{width}}" for name, width in zip(columns, widths)]
    lines = ["", " " * 26 + "".join(head)]
    for name, row in table.items():
        cells = [f"{x:{width}.3f}" for x, width in zip(row, widths)]
        lines.append(f"{name:26}" + "".join(cells))
    by_name = dict(zip(columns, values.T))  # [n] each
    for name in [name for name in THAN if name in by_name]:
        than = THAN[name]
        better = (by_name["mse"] < by_name[name]).tolist()
        p = sign_test(better)
        found[f"better than {than}"] = {"people": sum(better), "of": n, "p": p}
        lines.append(f"less MSE than {than} in {sum(better)} of {n} people (sign test: p {p:.2g})")
    absent = [person.name for person in subject.people if person.name not in table]
    if absent:
        lines.append(f"not scored, for no frame of theirs is for the test: {', '.join(absent)}")
    return lines
