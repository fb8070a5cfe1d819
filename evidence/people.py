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
    frames = np.ma.stack([scores[method][0, :, i] for method, i in SCORES.values()], 1)  # [T,4]
    table = {}
    for person in subject.people:
        here = frames[(rows >= person.start) & (rows < person.stop)]
        if here.count():
            table[person.name] = here.mean(0)
    values = np.array(list(table.values()))  # [n,4]
    n = len(values)
    table["mean over people"] = values.mean(0)
    if n > 1:
        table["95% interval: +-"] = student(n - 1) * values.std(0, ddof=1) / math.sqrt(n)

    found = metrics["people"] = {"scores": named(table.values(), table, SCORES)}
    lines = ["", " " * 26 + "".join(f"{name:>18}" for name in SCORES)]
    for name, row in table.items():
        lines.append(f"{name:26}" + "".join(f"{x:18.3f}" for x in row))
    for column, than in ((2, "the mean frame"), (3, "with shuffled EEG")):
        better = (values[:, 0] < values[:, column]).tolist()
        p = sign_test(better)
        found[f"better than {than}"] = {"people": sum(better), "of": n, "p": p}
        lines.append(f"less MSE than {than} in {sum(better)} of {n} people (sign test: p {p:.2g})")
    return lines
