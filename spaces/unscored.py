"""Results for EEG without fMRI: what the model says, and how sure it is. There is no truth."""

import os

import numpy as np

from tools import files
from tools.errors import fail
from tools.ranks import say
from tools.report import Results


class Unscored(Results):
    """As report.Results, which sample.py hands frames, truth and guesses: of zeros, as truth."""

    def __init__(self, a, study, *how):
        super().__init__(a, study, *how)
        self.scores = self
        if a.interrecon or a.plot or a.surfaces:
            fail(
                f"{study.subject.folder}: is EEG alone, without frames to complete or to compare "
                "with; leave out --interrecon, --gap, --anchors, --observe, --plot, --surfaces"
            )

    def add(self, *guess):
        """In place of Scores.add."""

    def finish(self, spread, outputs, look_back):
        """recon.npy, std.npy and frames.npy; and the first two in the recording's own format."""
        for writer in self.writers.values():
            writer.close()
        for name in ("truth", "shuffled"):
            os.remove(self.path(f"{name}.npy"))
        points = self.a.upsample
        rows = self.timeline.rows[:, None] + np.arange(points) / points
        files.save_array(self.path("frames.npy"), rows.ravel())
        if outputs.space:
            outputs.write_all_series(self.folder, self.writers.keys() - {"truth"})
        say(f"EEG alone: {len(self.timeline.rows):,} frames, nothing to score them by")
