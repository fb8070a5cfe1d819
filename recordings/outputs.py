"""A reconstruction in the lab's own format, and maps of its surfaces."""

import os

import numpy as np

from . import cifti
from .surfaces import Surfaces


class Outputs:
    """Of a subject that has a space. a, study, timeline: as sample.py has them."""

    def __init__(self, a, study, timeline):
        self.a, self.study, self.timeline = a, study, timeline
        self.surfaces = None
        if a.surfaces:
            self.surfaces = Surfaces(a.surfaces, study.subject.space, study.subject.folder)

    def write(self, folder, arrays, maps, missing, title):
        """recon*.dtseries.nii, r_time.dscalar.nii and, if asked for, surfaces.png. arrays {"truth",
        "recon", "std": [T,V]} at the frames; maps {"r_time", "r_time_shuffled": [V]}, or none;
        missing: places of frames that were not seen whole."""
        points = self.a.upsample
        recon = np.load(os.path.join(folder, "recon.npy"), mmap_mode="r")
        subject, stretches = self.study.subject, self.timeline.stretches
        for low, high in stretches:  # a series has one start time, and cannot skip frames
            first = self.timeline.rows[low]
            run, begin = subject.when(first)
            name = f"recon_run-{run}_frame-{first}" if len(stretches) > 1 else "recon"
            x = self.study.normaliser.raw(recon[low * points : high * points])
            path = os.path.join(folder, f"{name}.dtseries.nii")
            cifti.save_dtseries(path, x, subject.space, subject.tr / points, begin)
        if maps:
            named = {
                "r": maps["r_time"],
                "r, shuffled EEG": maps["r_time_shuffled"],
                "difference": maps["r_time"] - maps["r_time_shuffled"],
            }
            cifti.save_maps(os.path.join(folder, "r_time.dscalar.nii"), named, subject.space)
        if self.surfaces:
            path = os.path.join(folder, "surfaces.png")
            self.surfaces.draw_median(path, arrays, missing, self.timeline.rows, title)
