"""Can a model learn from several people, and reconstruct one whom it has not seen?

In a common space the frames of different people can be learned from together: ten to thirty people
with 20 to 60 minutes each, as public sets have them. But everyone's BOLD has its own units, and
everyone's EEG its own size. So People looks like one data.Subject, whose runs are those of all, one
person after the other; and what is read of its frames and EEG is in each person's own units:

    (x - the person's mean) / the person's deviation,      C^-1/2 (EEG / the person's scale)

by training frames of that person; of one who has none, by all frames. C is the covariance of that
person's scaled EEG between channels: with C^-1/2 channels are uncorrelated in everyone (Euclidean
alignment), which takes out a part of what caps, skulls and folds of the cortex differ in. Nothing
else knows that there are several, but for the closed form (people/own): what is measured of such
frames is a mean of about 0, a deviation of 1.

    train.py --leave-out S3   all frames of S3 are the test, and of the others none
    sample.py --data S9       of a person whom the model has not seen, all frames are the test

Seam    the subject
Source  alignment: He and Wu 2020; the rest is ours
Gain    six synthetic people, ten minutes of each, the default: MSE 0.849 (alone) -> 0.770 (pooled);
        left out, the closed form of the others: 1.060 (mean frame) -> 0.853
"""

import functools
import os
import re
import types

import numpy as np

from tools.ranks import say

from . import adapt, channels
from .others import Others

SAID = "delay", "delay_in_files", "eeg_alone"  # by subject.json


def common(person):
    """What must be alike in all people."""
    return {
        **{name: person.meta.get(name) for name in SAID},
        "TR": person.tr,
        "vertices": person.fmri.shape[1],
        "names of channels": person.meta["eeg"].get("channels"),
        "EEG channels and samples": (len(person.places), person.eeg.shape[2]),
        "space": person.space,
    }


class Rows:
    """An array [T,...] of all people, one after the other, in the units of each: what is asked for
    is read, and no more. name: of an array of data.Subject."""

    def __init__(self, group, name, *shape):
        self.group, self.name = group, name
        self.shape = group.people[-1].stop, *shape

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        rows = np.asarray(np.arange(len(self))[rows])  # of any shape
        one = np.empty(self.shape[1:])[columns]
        found = np.empty(rows.shape + one.shape, np.float32)
        for person in self.group.people:
            here = (rows >= person.start) & (rows < person.stop)
            if here.any():
                own = self.group.own(person)
                x = getattr(person, self.name)[rows[here] - person.start, columns]
                if self.name == "eeg":
                    u = own.eeg(x).take(person.places, -2)  # [...,C,W]
                    found[here] = self.group.align(person) @ u
                else:
                    found[here] = own.zscore(x, columns) * self.group.varies()[columns]  # [...,V]
        return found


class People:
    """As a data.Subject.

    data      data.py, of which Subject and Normaliser are wanted
    folders   of prepared subjects; ValueError if they are not alike
    settings  the flags of train.py
    known     checksums of those that a model was trained on; None: it is yet to be trained
    """

    driven = None

    def __init__(self, data, folders, settings, known):
        self.data, self.settings = data, settings
        self.people = [data.Subject(folder) for folder in folders]
        channels.choose(self.people, settings)
        first = self.people[0]
        self.folder, self.tr, self.space = ", ".join(folders), first.tr, first.space
        self.rois = {
            name: mask
            for name, mask in first.rois.items()
            if all(np.array_equal(mask, person.rois.get(name)) for person in self.people)
        }
        self.meta = {name: first.meta[name] for name in ("eeg", *SAID) if name in first.meta}
        self.meta |= {"checksums": {}, "names": [], "first_volume": [], "source": []}
        if first.meta.get("eeg_alone"):
            self.meta["units"] = ", in the group's z-scores"
        self.runs = []
        self.films = []  # the names of runs, without the person
        learned = known or [person.meta["checksums"] for person in self.people]
        stop = 0
        for person in self.people:
            sums = person.meta["checksums"]
            person.number = learned.index(sums) if sums in learned else None
            person.start, stop = stop, stop + len(person.fmri)
            person.stop = stop
            self.add(person)
            if person.number is not None:
                self.divide(person)
            else:
                say(
                    f"note: {person.folder} is new to the model (or was prepared anew since, then "
                    "it may know these frames): all its frames are the test, in z-scores by their "
                    "own mean and deviation, its EEG by its own scale"
                )
                person.meta["split"] = {"test": list(range(len(person.fmri)))}
        self.fmri = Rows(self, "fmri", first.fmri.shape[1])
        self.eeg = Rows(self, "eeg", len(first.places), first.eeg.shape[2])
        self.own = functools.cache(self.measure)
        self.align = functools.cache(self.alignment)
        self.varies = functools.cache(self.vary)
        if known is None:
            data.Subject.split_by_names(self, settings)  # fails if a name is of nobody's run
        self.others = Others(self)
        self.same_moment = self.others if len(self.others.training) else None

    def add(self, person):
        """One more: ValueError if it does not go with the first; and what it says, in `meta`."""
        first, said = self.people[0], person.meta
        for what, other in common(person).items():
            one = common(first)[what]
            if one != other:
                more = channels.way_out(one, other) if what == "names of channels" else ""
                raise ValueError(
                    f"{first.folder} and {person.folder} differ in {what}: {one} and {other}; "
                    f"prepare them alike (--channels, --bad-channels, --resample){more}"
                )
        person.name = os.path.basename(os.path.abspath(person.folder))
        sums = self.meta["checksums"]
        if person.name in sums or said["checksums"] in sums.values():
            raise ValueError(f"{person.folder}: has the name or the data of another; leave one out")
        sums[person.name] = said["checksums"]
        names = said.get("names") or [f"run-{i + 1}" for i in range(len(person.runs))]
        said["names"] = [f"{person.name}_{run}" for run in names]
        self.meta["names"] += said["names"]
        self.films += [re.sub("^sub-[^_]+_", "", name) for name in names]  # as BIDS has them
        self.meta["first_volume"] += said["first_volume"]
        self.meta["source"] += [[person.folder]] * len(names)
        self.runs += [[person.start + low, person.start + high] for low, high in person.runs]

    def divide(self, person):
        """Say which of their frames are for what."""
        if self.settings.get("adapt"):
            person.meta["split"] = adapt.split(person, self.settings)
        else:
            person.split_by_names(self.settings)

    def when(self, frame):
        return self.data.Subject.when(self, frame)

    def person(self, frame):
        """Whose frame it is: a data.Subject. Its `number` is that among those whom the model was
        trained on; None: somebody new."""
        return next(person for person in self.people if frame < person.stop)

    def segments(self, split, validation=True):
        """As of one: of each person as if alone. "others": where sample.py finds, for each test
        stretch, somebody else's EEG of the same moments."""
        if split == "others":
            return self.others.stretches()
        return [
            (person.start + low, person.start + high)
            for person in self.people
            for low, high in person.segments(split, validation)
        ]

    def known(self, person):
        """Stretches by which they are measured: for training; if there are none, all."""
        training = person.segments("train", not self.settings["no_validation"])
        return training or person.segments("train", False) + person.segments("test")

    def alignment(self, person):
        """C^-1/2 [C,C]. Directions with less than a thousandth of the strongest one's power, which
        a reference or cleaning has emptied, are not made as strong as the others."""
        rows = np.concatenate([np.arange(*span) for span in self.known(person)])
        some = rows[:: 1 + len(rows) // 500]
        x = self.own(person).eeg(person.eeg[some]).take(person.places, 1)  # [t,C,W]
        covariance = np.einsum("tcw,tdw->cd", x, x, dtype=np.float64) / x[:, 0].size
        power, axes = np.linalg.eigh(covariance)  # [C], [C,C]
        whitening = axes / np.sqrt(power.clip(1e-3 * power[-1])) @ axes.T
        return whitening.astype(np.float32)

    def measure(self, person):
        """Their data.Normaliser."""
        measure = self.data.Normaliser.measure
        how = self.known(person), self.settings["preset"] != "paper"
        if person.meta.get("eeg_alone"):  # its frames are 0, and stay so
            some = types.SimpleNamespace(fmri=person.eeg[:, :, 0], eeg=person.eeg)
            return self.data.Normaliser([0], [1], measure(some, *how).eeg_scale)
        return measure(person, *how)

    def vary(self):
        """bool [V]: which vertices vary in everyone whom the model learns from. All others are 0 in
        all, or else who has nothing there would be right there for free. Somebody new changes
        nothing for them."""
        members = [person for person in self.people if person.number is not None]
        return np.all([self.own(person).valid for person in members or self.people], 0)


def add_flags(add):
    add("--leave-out", dest="test", nargs="+", metavar="PERSON", help="of several: for the test")
    add("--bad-channels", choices=["intersect"], help="of several: EEG channels that all have")
