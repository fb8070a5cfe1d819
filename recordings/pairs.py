"""Which files belong together? Their names say it, as BIDS writes them.

    sub-01_ses-2_task-rest_run-03_space-fsLR_den-91k_bold.dtseries.nii
    sub-01_ses-2_task-rest_run-03_eeg.vhdr

Two files are of one run if they agree on every one of sub, ses, task and run that both names have.
By order, a file that is missing would pair all that come after it wrongly, without a word.
"""

import glob
import os
import re
from typing import NamedTuple

from tools.errors import fail


class Pair(NamedTuple):
    name: str  # of the run: sub-01_ses-2_task-rest_run-3
    sub: str  # "" if the name has none
    bold: list  # of paths: one, or of two hemispheres
    eeg: str  # path of its EEG; of --times; of folders, the numbers of its frames
    first: int = 0  # of folders: its first volume that is there


def natural(path):
    """A key that sorts run-2 before run-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path)]


def find(flag, patterns):
    """Paths in the order in which they are listed; those that a pattern finds, ** too, or a shell,
    in natural order."""
    found = []
    for pattern in patterns:
        # A folder may be called study[1]: that goes before a pattern of one letter.
        paths = glob.glob(pattern.replace("[", "[[]"), recursive=True)
        paths = paths or glob.glob(pattern, recursive=True)
        paths = sorted(filter(os.path.isfile, paths), key=natural)
        if not paths:
            fail(f"{flag} {pattern}: finds no file (quote patterns with ** in them)")
        found += paths
    found = list(dict.fromkeys(found))
    if found == sorted(found):  # as a shell sorts: run-10 before run-2
        found.sort(key=natural)
    return found


def entities(path):
    """{"sub": "01", "run": "3", ...}: of a file's name, sub and ses also of its folders'. Numbers
    of runs are compared as numbers: run-03 is run-3."""
    folders = re.findall(r"(?:^|[/\\])(sub|ses)-([A-Za-z0-9]+)", path)
    name = re.findall(r"(?:^|_)(sub|ses|task|run)-([A-Za-z0-9]+)", os.path.basename(path))
    found = dict(folders + name)
    if "run" in found:
        found["run"] = found["run"].lstrip("0") or "0"
    return {key: found[key] for key in ("sub", "ses", "task", "run") if key in found}


def agree(path, other_path):
    one = entities(path)
    other = entities(other_path)
    shared = one.keys() & other.keys()
    return shared and all(one[key] == other[key] for key in shared)


def pairs(a):
    """The Pairs of --bold and --eeg, or of --eeg alone, in the order of the first."""
    found = {}
    for bold, eeg in together(a):
        path = (bold or [eeg])[0]
        name = name_of(path)
        if name in found:
            fail(f"{path}: a second file of {name}; expected one a run: narrow the pattern")
        found[name] = Pair(name, entities(path).get("sub", ""), bold, eeg)
        print(f"{name}: {' + '.join([*bold, eeg])}")
    return list(found.values())


def together(a):
    """[(BOLD paths, EEG path)]"""
    eegs = find("--eeg", a.eeg)
    if a.like:
        return [([], eeg) for eeg in eegs]
    hemispheres = {}  # both files of a run count as one
    for path in find("--bold", a.bold):
        hemispheres.setdefault(re.sub(r"hemi-[LR]", "", path), []).append(path)
    bolds = [sorted(paths) for paths in hemispheres.values()]
    if not a.by_order:
        return by_names(bolds, eegs)
    if len(bolds) != len(eegs):
        fail(f"by order: {len(bolds)} runs of --bold, {len(eegs)} of --eeg, --times; not as many")
    return list(zip(bolds, eegs))


def by_names(bolds, eegs):
    """(bold, eeg) that agree; fails if some agree with none, or with several."""
    partners = {bold[0]: [eeg for eeg in eegs if agree(bold[0], eeg)] for bold in bolds}
    partners |= {eeg: [bold[0] for bold in bolds if agree(bold[0], eeg)] for eeg in eegs}
    wrong = [path for path, others in partners.items() if len(others) != 1]
    if wrong:
        listed = "; ".join(f"{path}: {', '.join(partners[path]) or 'none'}" for path in wrong)
        fail(
            "expected one partner of the same sub, ses, task and run of each file, found "
            f"{listed}; narrow --bold, --eeg or --times, or rename; no names: --by-order"
        )
    return [(bold, partners[bold[0]][0]) for bold in bolds]


def name_of(path):
    """Of a run: its entities, or else the file's name up to its first dot."""
    said = "_".join(f"{key}-{value}" for key, value in entities(path).items())
    return said or os.path.basename(path).split(".")[0]


def people(a):
    """[(folder to write, its Pairs)], a folder for each person."""
    found = {}
    for pair in pairs(a):
        found.setdefault(pair.sub, []).append(pair)
    if len(found) > 1 and "{sub}" not in a.out:
        listed = ", ".join(f"sub-{sub}" for sub in found)
        fail(f"--out {a.out}: {listed} are several people; give each a folder: --out 'DIR/{{sub}}'")
    return [(a.out.replace("{sub}", f"sub-{sub}"), own) for sub, own in found.items()]
