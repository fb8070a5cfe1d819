"""A lab's files in, a lab's files out: `python data.py` and the results of sample.py. No torch
here.

runs.py      one BOLD file and one continuous EEG file a run -> a prepared subject
folders.py   one file a frame, as CineBrain has them         -> a prepared subject
regions.py   atlases and masks                               -> its rois.npz
bold.py      the formats of BOLD
spaces.py    where values lie                                -> results in the lab's own format
"""

import os

from tools.checks import check_positive, check_range
from tools.errors import Parser, fail, named

from . import folders, runs


def parse(argv=None):
    p = Parser(description="Prepare one subject's EEG and fMRI for train.py.")
    add = p.add_argument
    add(
        "--bold",
        required=True,
        help="glob of a file a run: .dtseries.nii, .nii.gz, .npy...; or a folder of frames",
    )
    add(
        "--eeg",
        required=True,
        help="glob of an .npy [channels, samples] a run; or a folder of windows",
    )
    add(
        "--out",
        type=named,
        required=True,
        help="folder of the prepared subject (4 bytes of disk a value)",
    )
    add(
        "--fs",
        type=float,
        default=1000,
        help="EEG samples a second (default: 1000); not for folders",
    )
    add("--tr", type=float, help="seconds a volume, where the BOLD files do not say it")
    add(
        "--delay",
        type=float,
        default=4.0,
        help="seconds from EEG to BOLD (default: 4); in folders applied already",
    )
    add(
        "--channels",
        type=int,
        help="keep the first N EEG channels (CineBrain: 64; others are ECG and such)",
    )
    add("--frames-per-run", type=int, help="folders: a new run every N frames (CineBrain: 1350)")
    add(
        "--space",
        help="folders: a .dtseries.nii of the frames' vertices, for regions and CIFTI results",
    )
    add(
        "--parcels",
        nargs="+",
        help="regions: an HCP MMP 1.0 .dlabel.nii, other atlases, masks (.npy [V], NIfTI)",
    )
    add("--mask", help="NIfTI: the voxels that are brain; or auto, for fMRIPrep's masks")
    add("--atlas", help="average over its labels: a .dlabel.nii, or a NIfTI")
    add("--labels", help="names of a NIfTI's labels: a .tsv with columns index and name")
    add(
        "--split",
        help="folders: a CineBrain JSON of test clips (default: the last fifth of the runs)",
    )
    a = p.parse_args(argv)
    check_positive(a, "fs", "tr", "channels", "frames_per_run")
    check_range(a, 0, 60, "delay")
    a.folders = os.path.isdir(a.bold)
    if not a.folders and (a.split or a.space or a.frames_per_run):
        fail("--split, --space, --frames-per-run: are for folders of frames; --bold is none")
    if a.folders != os.path.isdir(a.eeg):
        fail(f"--bold {a.bold}, --eeg {a.eeg}: one is a folder of frames; expected both or neither")
    return a


def prepare(a, eeg_windows):
    """Write the subject a.out. eeg_windows: data.py's rule that pairs volumes of a run with EEG."""
    if a.folders:
        folders.prepare(a)
    else:
        runs.prepare(a, eeg_windows)
