"""A lab's files in: `python data.py`. No torch here.

pairs.py      which files are of one run
eeg.py        continuous EEG, its channels and triggers
bold.py       BOLD as CIFTI-2, NIfTI, GIFTI or tables
confounds.py  motion and the like taken out
runs.py       all of these, run by run                -> a prepared subject
folders.py    one file a frame, as CineBrain has them -> a prepared subject
splits.py     which runs are for training, validation and test
"""

import os

from tools.checks import check_positive, check_range
from tools.errors import Parser, fail, named

from . import alone, folders, pairs, runs


def parse(argv=None):
    p = Parser(description="Prepare EEG and fMRI, of one person or several, for train.py.")
    add = p.add_argument
    files = {"nargs": "+", "metavar": "FILE"}
    add("--bold", **files, help="a file a run, patterns too; or a folder of frames")
    add("--like", help="in place of --bold: EEG alone, for a model of this prepared subject")
    add("--eeg", required=True, **files, help="a file a run, patterns too; or a folder of windows")
    add("--out", type=named, required=True, help="folder to write; several people: 'DIR/{sub}'")
    add("--by-order", action="store_true", help="pair files by order, where names do not say it")
    add("--tr", type=float, help="seconds a volume, where the BOLD files do not say it")
    add("--delay", type=float, default=4.0, help="seconds from EEG to BOLD (default: 4)")
    # EEG
    add("--trigger", help="what marks each volume in the EEG: R128; else it begins with the first")
    add("--skip", type=int, help="triggers before the first volume: of dummy scans")
    add("--start", type=float, help="without triggers: where in the EEG, in s, volume 0 begins")
    add("--fs", type=float, help=".npy: samples a second (default: 1000)")
    add("--channels", type=int, help=".npy and folders: keep the first N (CineBrain: 64)")
    add("--band", type=float, nargs=2, metavar=("LOW", "HIGH"), help="Hz to keep")
    add("--notch", type=float, help="Hz of mains hum, which is taken out: 50 or 60")
    add("--resample", type=float, help="samples a second of the prepared EEG")
    add("--reference", choices=["average"], help="of all channels")
    add(
        "--bad-channels",
        choices=["error", "intersect", "interpolate"],
        default="error",
        help="what if some are missing in some runs",
    )
    # BOLD
    add("--mask", help="of .nii.gz: a file, or auto: what fMRIPrep's masks of all runs share")
    add("--atlas", help=".dlabel.nii or .nii.gz whose parcels are averaged")
    add("--labels", help="names of an atlas's numbers: a .tsv with columns index and name")
    add("--parcels", **files, help="regions: an HCP MMP 1.0 .dlabel.nii, boolean .npy masks [V]")
    add("--confounds", **files, help="fMRIPrep's, to take out; auto: the file beside each BOLD")
    add("--strategy", default="motion,wm_csf", help="of motion, wm_csf, global, compcor")
    add("--high-pass", type=float, help="s: slower drifts are taken out (128 is usual)")
    add("--fd", type=float, help="mm: volumes that moved more are left out (0.5 is usual)")
    # Folders of frames
    add("--frames-per-run", type=int, help="folders: a new run every N frames (CineBrain: 1350)")
    add("--space", help="folders: a .dtseries.nii of the frames' vertices, for regions and results")
    add("--split", help="folders: a CineBrain JSON of test clips")
    return settle(p.parse_args(argv))


def settle(a):
    """Check the flags a."""
    check_positive(
        a, "fs", "tr", "channels", "frames_per_run", "notch", "resample", "fd", "high_pass"
    )
    check_range(a, 0, 60, "delay")
    if bool(a.bold) == bool(a.like):
        fail("--bold, --like: expected one of them: BOLD, or the subject of a model for EEG alone")
    if (a.start if a.trigger else a.skip) is not None:
        fail("--skip counts triggers, and needs --trigger; --start is for EEG without them")
    if a.like:
        a.delay = alone.known(a.like)["delay"]
        if a.mask or a.confounds or a.trigger:
            fail("--like: is without --mask, --confounds and --trigger, which are of a scan")
    if a.fd and not a.confounds:
        fail(f"--fd {a.fd:g}: needs --confounds, which say how far the head moved")
    if "compcor" in a.strategy and a.confounds and not a.high_pass:
        fail("--strategy compcor: needs --high-pass 128, for it was taken from BOLD without drifts")
    if a.confounds and a.confounds != ["auto"]:
        a.confounds = pairs.find("--confounds", a.confounds)
    a.folders = bool(a.bold) and os.path.isdir(a.bold[0])
    if not a.folders and (a.split or a.space or a.frames_per_run):
        fail("--split, --space, --frames-per-run: are for folders of frames; --bold is none")
    if a.folders != os.path.isdir(a.eeg[0]):
        fail(
            f"--bold {a.bold[0]}, --eeg {a.eeg[0]}: one is a folder of frames; expected both or "
            "neither"
        )
    return a


def prepare(a, eeg_windows):
    """Write the subjects, and return their folders. eeg_windows: data.py's rule that pairs volumes
    of a run with EEG."""
    if a.folders:
        return folders.prepare(a)
    return runs.prepare(a, eeg_windows)
