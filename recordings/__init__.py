"""A lab's files in: `python data.py`. No torch here.

pairs.py      which files are of one run
eeg.py        continuous EEG, its channels and triggers
bold.py       BOLD as CIFTI-2, NIfTI, GIFTI or tables
confounds.py  motion and the like taken out
folders.py    one file a frame, as CineBrain has them
runs.py       all of these, run by run -> a prepared subject
splits.py     which runs are for training, validation and test
"""

import os

from evidence import look
from tools.checks import check_positive, check_range, flag
from tools.errors import Parser, fail, named

from . import alone, folders, pairs, runs, splits

# What files some flags are for.
FOR = {
    "runs of BOLD": "by_order times mask atlas confounds strategy high_pass fd trigger skip",
    "folders of frames": "frames_per_run space space_mask",
    "continuous EEG": "fs band notch resample reference bad_channels start trigger skip like",
    "folders of windows": "split times",
}


def parse(argv=None):
    p = Parser(description="Prepare EEG and fMRI, of one person or several, for train.py.")
    add = p.add_argument
    files = {"nargs": "+", "metavar": "FILE"}
    add("--bold", **files, help="a file a run, patterns too; or a folder of frames")
    add("--like", help="in place of --bold: EEG alone, for a model of this prepared subject")
    add("--eeg", **files, help="a file a run, patterns too; or a folder of windows")
    add("--out", type=named, help="folder to write; several people: 'DIR/{sub}'")
    add("--check", nargs="+", help="prepared subjects to look at, and nothing else")
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
    add("--space-mask", help="folders: which of these, by a region of --parcels or a boolean .npy")
    add("--split", help="folders: a CineBrain JSON of test clips")
    add("--times", **files, help="runs with a folder of windows: when the video ran, a file a run")
    return settle(p.parse_args(argv), p)


def settle(a, parser):
    """Check the flags a."""
    if a.check:
        return a
    check_positive(
        a, "fs", "tr", "channels", "frames_per_run", "notch", "resample", "fd", "high_pass"
    )
    check_range(a, 0, 60, "delay")
    if bool(a.bold) == bool(a.like) or not a.eeg or not a.out:
        fail(
            "--bold, --like: expected one of them: BOLD, or the subject of a model for EEG alone; "
            "and --eeg and --out (or --check, alone)"
        )
    if (a.start if a.trigger else a.skip) is not None:
        fail("--skip counts triggers, and needs --trigger; --start is for EEG without them")
    settle_kinds(a, parser)
    if a.like:
        a.delay = alone.known(a.like)["delay"]
    if a.space_mask and not a.space:
        fail(f"--space-mask {a.space_mask}: needs --space, a .dtseries.nii of the whole brain")
    if a.fd and not a.confounds:
        fail(f"--fd {a.fd:g}: needs --confounds, which say how far the head moved")
    if "compcor" in a.strategy and a.confounds and not a.high_pass:
        fail("--strategy compcor: needs --high-pass 128, for it was taken from BOLD without drifts")
    if a.confounds and a.confounds != ["auto"]:
        a.confounds = pairs.find("--confounds", a.confounds)
    return a


def settle_kinds(a, parser):
    """Runs of files, or folders of frames and windows? Fail if a flag is for what is not there."""
    a.frames = a.windows = None
    if a.bold and os.path.isdir(a.bold[0]):
        a.frames = folders.Folder(a.bold[0], 1)
    if os.path.isdir(a.eeg[0]):
        a.windows = folders.Folder(a.eeg[0], 2, a.channels)
    bold = "folders of frames" if a.frames else "runs of BOLD"
    given = {bold if a.bold else "", "folders of windows" if a.windows else "continuous EEG"}
    for kind, names in FOR.items():
        for name in names.split():
            if kind not in given and getattr(a, name) != parser.get_default(name):
                fail(f"{flag(name)}: is for {kind}; --bold and --eeg are not; leave it out")
    if bool(a.windows) != bool(a.frames or a.times):
        fail(
            f"--bold {a.bold[0]}, --eeg {a.eeg[0]}: one is a folder of frames; expected both or "
            "neither, or --times that says when in runs the EEG's frames were"
        )
    if a.times:  # they stand for the runs' EEG, by order if their names say nothing
        a.eeg = pairs.find("--times", a.times)
        a.by_order = a.by_order or not any(map(pairs.entities, a.eeg))


prepare = runs.prepare


def tell(subject):
    """Print what was prepared, and what one should look at."""
    splits.tell(subject)
    look.tell(subject)
