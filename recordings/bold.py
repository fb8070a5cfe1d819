"""BOLD as it comes: what are the frames of a run, its TR, and where do their values lie?

Formats are read by spaces/readers.py.
"""

import json
import os
from dataclasses import dataclass

import numpy as np

from spaces.readers import READERS
from spaces.regions import averaged
from spaces.space import Space
from tools.checks import check_finite
from tools.errors import fail


@dataclass
class Bold:
    """A run, array-like: a slice of its volumes is read when it is asked for."""

    path: str
    shape: tuple  # volumes, V
    tr: float  # s, or None
    space: Space  # or None
    rows: object  # function of a slice -> [t,V]

    def __getitem__(self, rows):
        return self.rows(rows)

    def read(self, rows):
        """Frames [t,V], checked. To read on is fast; to go back in a .gz is to begin anew."""
        try:
            frames = np.asarray(self[rows])  # [t,V]
        except Exception as error:  # of many kinds
            fail(f"{self.path}: is cut short or damaged ({error}); copy it again", error)
        check_finite(frames, self.path, self, "volume", "vertex")
        return frames


def open_bold(paths, a):
    """A run's Bold. paths: its file, or hemi-L and hemi-R. Of a: mask, of volumes, a file or what
    common_mask gives; atlas, with labels: what to average over, or None."""
    path = paths[0]
    suffix = next((suffix for suffix in READERS if path.endswith(suffix)), ".dtseries.nii")
    rows, shape, tr, axis = READERS[suffix](path, a.mask)
    kind = {".nii": ".nii.gz", ".csv": ".tsv"}.get(suffix, suffix)
    space = axis and Space(axis, kind)
    bold = Bold(path, shape, repetition_time(path, suffix, tr), space, rows)
    return averaged(bold, a.atlas, a.labels) if a.atlas else bold


def repetition_time(path, suffix, tr):
    """Seconds, by the file (tr, perhaps None) and by the JSON beside it, which must agree."""
    beside = path.removesuffix(suffix) + ".json"
    if not os.path.exists(beside):
        return tr
    try:
        with open(beside, encoding="utf-8") as f:
            said = float(json.load(f).get("RepetitionTime", tr or 0))
    except (ValueError, TypeError, AttributeError) as error:
        fail(f"{beside}: says no RepetitionTime that can be read ({error}); mend it", error)
    if tr and abs(tr - said) > 1e-3:
        fail(f"{path}: its TR is {tr:g} s, but {beside} says {said:g}; mend the one that is wrong")
    return said
