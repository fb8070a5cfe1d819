"""Does this checkout compute what another one does, to the last bit?

    git worktree add ../before HEAD~1
    python tests/same_as.py ../before

Runs the same small commands, on one thread, from both checkouts, and compares what they write:
losses, checkpoints, reconstructions, scores, prepared subjects. For work that should change no
number: moving code, making it faster. Only flags and files are relied on, so that any two versions
can be compared. A minute or two on two cores.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile

import nibabel as nib
import numpy as np
import torch

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = (
    "--width 16 --heads 2 --depth 2 --eeg-dim 8 --latent-dim 6 --batch-size 4 --frames 6 "
    "--steps 40 --lr 3e-3 --warmup 2 --ema 0.9 --device cpu --data ../subject"
)
BANDS = "--eeg-filters 4 --eeg-bands 4 --context 2"
DRAWN = "--steps 6 --samples 4 --device cpu --out out"

# Each runs in a folder of its own, so that results of others are at ../NAME.
SUBJECT = (
    "import data; data.synthetic("
    "'.', runs=5, frames=60, channels=4, fs=50, side=8, sources=4, background=3)"
)
PREPARE = {
    "subject": f'-c "{SUBJECT}"',
    "cifti": "data.py --bold ../raw/*_bold.dtseries.nii --eeg ../raw/*_eeg.npy --fs 50"
    " --parcels ../raw/parcels.dlabel.nii ../raw/mine.npy --out subject",
    "folders": "data.py --bold ../raw/fmri --eeg ../raw/eeg --tr 0.8 --channels 4"
    " --frames-per-run 20 --split ../raw/split.json --out subject",
}
TRAIN = {
    "tiny": f"train.py --preset tiny {SIZES} {BANDS}",
    "paper": f"train.py --preset paper {SIZES}",
    "joint": f"train.py --preset paper --autoencoder joint {SIZES}",
    "small": f"train.py --preset tiny {SIZES} {BANDS} --no-vary --eeg-power log"
    " --eeg-dropout 0.9 --no-validation",
    "tokens": f"train.py --preset tiny {SIZES} {BANDS} --tokens-per-frame 3 --predict eps --seed 1",
}
SAMPLE = {
    "direct": "--ckpt ../tiny/out/ckpt.pt",
    "gap": "--ckpt ../tiny/out/ckpt.pt --interrecon",
    "anchors": "--ckpt ../tiny/out/ckpt.pt --frames 10 --anchors 0,9",
    "patch": "--ckpt ../tiny/out/ckpt.pt --observe patch",
    "mask": "--ckpt ../tiny/out/ckpt.pt --observe ../raw/mask.npy --gap 5",
    "upsample": "--ckpt ../tiny/out/ckpt.pt --upsample 2 --gap 3",
    "calibrate": "--ckpt ../tiny/out/ckpt.pt --calibrate --interrecon --seed 3",
    "without": "--ckpt ../tiny/out/ckpt.pt --interrecon --no-null-space",
    "eta": "--ckpt ../tokens/out/ckpt.pt --gap 3 --eta 1 --window 9 --overlap 0",
    "odd": "--ckpt ../small/out/ckpt.pt --samples 3",
    "plain": "--ckpt ../paper/out/ckpt.pt --interrecon --projection plain",
    "conv": "--ckpt ../paper/out/ckpt.pt",
    "linear": "--ckpt ../joint/out/ckpt.pt --interrecon",
}
SAMPLE = {name: f"sample.py {DRAWN} {flags}" for name, flags in SAMPLE.items()}


def make_raw(folder):
    """Two runs of CIFTI-2 and EEG, frames one by one, masks: what both checkouts are given."""
    rng = np.random.default_rng(0)
    for name in ("fmri", "eeg"):
        os.makedirs(os.path.join(folder, name))
    models = nib.cifti2.BrainModelAxis
    space = models.from_surface(np.arange(2, 27), 64, "CortexLeft")
    space += models.from_surface(np.arange(15), 64, "CortexRight")
    for run in (1, 2):
        x = (1000 + rng.standard_normal((50, 40)).cumsum(0)).astype(np.float32)
        series = nib.cifti2.SeriesAxis(0.0, 0.8, 50, "SECOND")
        image = nib.Cifti2Image(x, (series, space))
        image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
        nib.save(image, os.path.join(folder, f"run-{run}_bold.dtseries.nii"))
        eeg = 7 + rng.standard_normal((3, 2000)).astype(np.float32)
        np.save(os.path.join(folder, f"run-{run}_eeg.npy"), eeg)
    keys = {0: ("???", (0, 0, 0, 0)), 1: ("L_V1_ROI", (1, 0, 0, 1)), 2: ("R_A1_ROI", (0, 1, 0, 1))}
    labels = np.zeros((1, 40), np.float32)
    labels[0, :10] = 1
    labels[0, 30:35] = 2
    axes = nib.cifti2.LabelAxis(["parcels"], [keys]), space
    nib.save(nib.Cifti2Image(labels, axes), os.path.join(folder, "parcels.dlabel.nii"))
    np.save(os.path.join(folder, "mine.npy"), np.arange(40) < 7)
    vertex = np.arange(64)
    np.save(os.path.join(folder, "mask.npy"), np.stack([vertex < 20, vertex < 0, vertex >= 40]))
    for i in range(40):
        for name, shape in (("fmri", (9,)), ("eeg", (5, 16))):
            frame = rng.standard_normal(shape).astype(np.float32)
            np.save(os.path.join(folder, f"{name}/{i + 3}.npy"), frame)
    names = [[f"some/where/{i}.npy" for i in range(c, c + 5)] for c in (23, 38)]
    clips = [{"fmri": clip, "eeg": []} for clip in names]
    with open(os.path.join(folder, "split.json"), "w") as f:
        json.dump(clips, f)


def run(checkout, folder, command):
    """One command in a new folder; its standard output is kept there too."""
    os.makedirs(folder)
    script, *flags = command.split(" ", 1)
    if script == "-c":
        argv = [sys.executable, "-c", flags[0].strip('"').replace("'.'", "'out'")]
    else:
        argv = [sys.executable, os.path.join(checkout, script), *flags[0].split()]
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": checkout}
    env = {**os.environ, **one_thread}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        print(f"{checkout}: {command}\n{done.stderr}", file=sys.stderr)
    return done.returncode


def run_all(checkout, root):
    os.makedirs(root)
    make_raw(os.path.join(root, "raw"))
    for commands in (PREPARE, TRAIN, SAMPLE):
        for name, command in commands.items():
            run(checkout, os.path.join(root, name), command)
            if name == "subject":  # made in subject/out
                os.rename(os.path.join(root, "subject"), os.path.join(root, "made"))
                os.rename(os.path.join(root, "made", "out"), os.path.join(root, "subject"))


def content(path):
    """What a result file says, without times, folders and machines: {name: array or value}."""
    if path.endswith(".npy"):
        return {"": np.load(path)}
    if path.endswith(".npz"):
        return dict(np.load(path))
    if path.endswith(".nii"):
        return {"": nib.load(path).get_fdata()}
    if path.endswith(".pt"):
        state = torch.load(path, weights_only=True)
        found = {}
        for part in {"model", "averaged", "autoencoder", "normaliser"} & set(state):
            found |= {f"{part}.{name}": tensor.numpy() for name, tensor in state[part].items()}
        return found
    if not path.endswith((".json", ".jsonl")):
        return {}
    with open(path, encoding="utf-8") as f:
        if path.endswith(".jsonl"):
            return {str(i): {**json.loads(line), "seconds": 0} for i, line in enumerate(f)}
        found = json.load(f)
    return {name: value for name, value in found.items() if name not in ("seconds", "source")}


def distance(a, b):
    """The largest difference of two arrays, or of the numbers in two nested values; None if they
    cannot be compared."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = [distance(a[key], b[key]) if key in b else None for key in a]
        return None if None in found else max(found, default=0.0)
    if isinstance(a, (str, type(None), bool)) or isinstance(b, (str, type(None), bool)):
        return 0.0 if a == b else None
    a = np.asarray(a)
    b = np.asarray(b)
    if a.shape != b.shape:
        return None
    if a.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(a, b) else None
    return float(np.abs(a.astype(float) - b.astype(float)).max(initial=0.0))


def compare(old_root, new_root):
    """Print a line for each file that differs; returns how many do."""
    differ = same = 0
    paths = []
    for folder, _, names in os.walk(old_root):
        paths += [os.path.relpath(os.path.join(folder, name), old_root) for name in names]
    for path in sorted(paths):
        if path.split(os.sep)[0] in ("raw", "made"):
            continue
        if not os.path.exists(os.path.join(new_root, path)):
            print(f"{path}: is missing")
            differ += 1
            continue
        old, new = (content(os.path.join(root, path)) for root in (old_root, new_root))
        bad = {key: distance(old[key], new[key]) for key in old if key in new}
        bad = {key: far for key, far in bad.items() if far != 0}
        gone = ", ".join(sorted(set(old) - set(new)))
        if bad or gone:
            differ += 1
            incomparable = None in bad.values()
            worst = None if incomparable else max(bad.values(), default=0)
            found = f"{len(bad)} of {len(old)} differ, by at most {worst}"
            print(f"{path}: {found}; gone: {gone or 'none'}")
        elif old:
            same += 1
    print(f"{same} files are the same to the last bit, {differ} are not")
    return differ


def main(other):
    with tempfile.TemporaryDirectory() as work:
        roots = [os.path.join(work, name) for name in ("old", "new")]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(run_all, (os.path.abspath(other), HERE), roots))
        return compare(*roots)


if __name__ == "__main__":
    sys.exit(bool(main(*sys.argv[1:])) if len(sys.argv) == 2 else __doc__)
