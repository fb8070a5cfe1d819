"""A reconstruction in the lab's own format, and pictures of it."""

import os

import numpy as np

from . import cifti, pictures
from .surfaces import Surfaces


class Outputs:
    """Of a subject that has a space, or of which a picture is asked for. a, study, timeline: as
    sample.py has them."""

    def __init__(self, a, study, timeline):
        self.a, self.study, self.timeline = a, study, timeline
        self.surfaces = None
        if a.plot:
            pictures.pyplot()  # if it is missing, say so now and not at the end
        if a.surfaces:
            self.surfaces = Surfaces(a.surfaces, study.subject.space, study.subject.folder)

    def write(self, folder, arrays, r, missing, title):
        """Where there is a space recon*.dtseries.nii and r_time.dscalar.nii; if asked for, plot.png
        and surfaces.png. arrays {"truth", "recon", "std": [T,V]} at the frames; r [2,V] over time,
        with the EEG and with shuffled EEG; missing: places of frames that were not seen whole."""
        if self.study.subject.space is not None:
            self.write_cifti(folder, *r)
        if self.a.plot:
            pictures.carpet(os.path.join(folder, "plot.png"), arrays, title)
        if self.surfaces:
            path = os.path.join(folder, "surfaces.png")
            self.surfaces.draw_median(path, arrays, missing, self.timeline.rows, title)

    def write_cifti(self, folder, r, shuffled):
        """recon.npy, with its points between frames, and r over time as maps."""
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
        maps = {"r": r, "r, shuffled EEG": shuffled, "difference": r - shuffled}
        cifti.save_maps(os.path.join(folder, "r_time.dscalar.nii"), maps, subject.space)
