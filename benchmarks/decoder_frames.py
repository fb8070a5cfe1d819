"""Reconstructed visual+audio frames for CineBrain's video decoder: one NUMBER.npy a frame [18946],
numbered as theirs are.

    python benchmarks/decoder_frames.py --ckpt out/ckpt.pt
    python benchmarks/decoder_frames.py --ckpt out/ckpt.pt --results out/interrecon --out decoder

The first takes what sample.py wrote to out/direct. Their decoder reads fMRI that was z-scored over
all runs. Subjects made of the authors' frames hold such values, and get values of that kind back;
frames cut from the whole brain are written in z-scores of the training frames, the nearest that
there is without looking at the test set. Subjects made of whole runs have no numbers: frames are
counted from 0. Vertices are in the order of the grayordinates' index.
"""

import argparse
import os
import sys

import numpy as np
from tqdm import tqdm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data
import sample as sampling
from tools import files
from tools.errors import fail, script

REGION, SIZE = "visual+audio", 18_946


def number(subject, frame):
    """The number in the file name that this frame of a prepared subject came from."""
    if "first_number" not in subject.meta:
        return int(frame)
    run = next(i for i, (start, stop) in enumerate(subject.runs) if start <= frame < stop)
    return int(subject.meta["first_number"][run] + frame - subject.runs[run][0])


def write(recon, frames, subject, normaliser, folder):
    """recon [T,V] in z-scores of `frames` [T] -> FOLDER/NUMBER.npy float32; returns how many."""
    V = recon.shape[1]
    if V != SIZE and REGION not in subject.rois:
        fail(
            f"{subject.folder}: has {V:,} vertices and no region {REGION}; expected {SIZE:,}, or "
            "data.py --parcels"
        )
    os.makedirs(folder, exist_ok=True)
    for x, frame in zip(tqdm(recon, desc="decoder frames", unit="frame"), frames):
        x = normaliser.raw(x) if V == SIZE else x[subject.rois[REGION]]
        np.save(os.path.join(folder, f"{number(subject, frame)}.npy"), x.astype(np.float32))
    return len(frames)


def parse(argv):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py (default: out/ckpt.pt)")
    add("--results", help="folder that sample.py wrote (default: direct, beside the checkpoint)")
    add("--out", help="folder for the frames (default: RESULTS/decoder)")
    a = p.parse_args(argv)
    a.results = a.results or os.path.join(os.path.dirname(a.ckpt), "direct")
    a.out = a.out or os.path.join(a.results, "decoder")
    return a


@script
def main(argv=None):
    a = parse(argv)
    ckpt, _, _, normaliser = sampling.load(a.ckpt, "cpu")
    recon = files.load_npy(os.path.join(a.results, "recon.npy"), 2)
    frames = files.load_npy(os.path.join(a.results, "frames.npy"), 1)
    if not np.issubdtype(frames.dtype, np.integer):
        fail(f"{a.results}/frames.npy: has points between frames; run sample.py without --upsample")
    count = write(recon, frames, data.Subject(ckpt["subject"]), normaliser, a.out)
    print(f"wrote {count} frames to {a.out}")


if __name__ == "__main__":
    main()
