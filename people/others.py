"""Would the others have told as much? What other people show at the same moment of the same run.

If all saw the same film, much of what is right at a moment is right in everyone: what the film does
to a brain needs no EEG to be known, and what it does to the EEG is in anybody's. So two controls:

    same_moment  the mean of the others' training frames at this moment of the run
    other_eeg    the model, given the EEG that somebody else had at this moment of the run

A moment is a run's name, without the person, and the volumes since its start. So runs of one name
must be of one film, and of one start; where they are not, both say next to nothing.

Seam    the subject
Source  the first is what inter-subject correlation is made of (Hasson et al. 2004)
Gain    what the EEG of this person told, from what the film told
"""

import numpy as np

LONGER = 10**7  # volumes; no run has as many


class Others:
    """What group, a People, is held against: others[rows] are frames of `same_moment`."""

    def __init__(self, group):
        self.group = group
        self.moment = np.zeros(len(group.fmri), int)  # [T] a number, the same in everyone
        for film, first, (low, high) in zip(group.films, group.meta["first_volume"], group.runs):
            volumes = first + np.arange(high - low)
            self.moment[low:high] = LONGER * group.films.index(film) + volumes
        training = self.frames("train")
        asked = self.moment[self.frames("test")]
        self.training = training[np.isin(self.moment[training], asked)]  # [n]

    def frames(self, split):
        """Their rows."""
        stretches = self.group.segments(split, not self.group.settings["no_validation"])
        return np.array([t for low, high in stretches for t in range(low, high)], int)

    def __getitem__(self, rows):
        """[K,V] of test frames `rows` [K], in the units of People; 0, a person's mean frame, where
        there are none. (Nobody trains on the moments of their own test, so all are others'.)"""
        same = self.moment[self.training][:, None] == self.moment[rows]  # [n,K]
        used = same.any(1)
        share = same[used] / same.sum(0).clip(1)  # [used,K]
        return share.T @ self.group.fmri[self.training[used]]

    def stretches(self):
        """Of each test stretch the frames of the next person, the first after the last, who has
        EEG at all of its moments; [] if there is a stretch for which nobody has."""
        found = []
        for low, high in self.group.segments("test"):
            run, _ = self.group.when(low)  # from 1
            for start, stop in self.group.runs[run:] + self.group.runs[: run - 1]:
                there = start + int(self.moment[low] - self.moment[start])
                end = there + high - low
                if start <= there and end <= stop:
                    found.append((there, end))
                    break
            else:
                return []
        return found
