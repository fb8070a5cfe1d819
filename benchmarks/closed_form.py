"""How long does the closed form take, and in how much memory?

    python benchmarks/closed_form.py                  21,600 frames, 64 channels, 1,024 latents
    python benchmarks/closed_form.py --frames 5400    a quarter

Makes EEG (0.8 s at 1,000 Hz a frame, in runs of 1,350 frames) in a file, which is removed in the
end, and latents of which some follow it; fits beyond/linear_gaussian to them, as train.py does once
in each training; prints what it found, seconds and the process's peak, mapped file pages included
(Linux only).
"""

import os
import sys
import tempfile
import time

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from beyond import linear_gaussian
from tools.errors import Parser, script

RUN, W, TR, FS = 1350, 800, 0.8, 1000


class Recording:
    """Of a data.Subject what linear_gaussian.settings asks for."""

    tr = TR
    meta = {"delay": 4.0}


def make(path, frames, channels, d, rng):
    """EEG [T,C,W] in a file, oscillations whose power wanders, one to a channel; latents [T,d]: a
    tenth of their variance follows that power 5 s later."""
    eeg = np.lib.format.open_memmap(path, "w+", np.float32, (frames, channels, W))
    frequency = rng.uniform(4, 40, (channels, 1))
    white = rng.standard_normal((frames + 8, channels))
    amplitude = np.exp(sum(white[i : i + frames] for i in range(8)) / 8**0.5 * 0.5)  # [T,C]
    for t in tqdm(range(frames), desc="EEG", unit="frame"):
        time_ = (t * W + np.arange(W)) / FS  # s
        noise = rng.standard_normal((channels, W), np.float32)
        eeg[t] = amplitude[t][:, None] * np.sin(2 * np.pi * frequency * time_) + noise
    late = np.roll(np.log(amplitude), round(5 / TR) - round(4 / TR), 0)  # files: 4 s early already
    said = late @ rng.standard_normal((channels, d))
    z = (0.1**0.5 * said / said.std(0) + 0.9**0.5 * rng.standard_normal((frames, d))).astype("f4")
    return torch.from_numpy(z)


def peak(reset=False):
    """GB of memory, the most since the last reset."""
    if reset:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    with open("/proc/self/status") as f:
        line = next(line for line in f if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


@script
def main(argv=None):
    p = Parser(description="The closed form at the paper's size.")
    p.add_argument("--frames", type=int, default=21_600, help="to fit to")
    p.add_argument("--channels", type=int, default=64, help="of the EEG")
    p.add_argument("--latents", type=int, default=1024, help="of a frame")
    p.add_argument("--folder", help="for the EEG, 0.2 MB a frame (default: the system's)")
    a = p.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        path = os.path.join(folder, "eeg.npy")
        z = make(path, a.frames, a.channels, a.latents, np.random.default_rng(0))
        config = {"channels": a.channels, "samples": W}
        linear = linear_gaussian.LinearGaussian(
            a.latents, **linear_gaussian.settings(config, Recording)
        )

        def read(rows):  # opened anew, so that pages read do not count for long
            return torch.from_numpy(np.load(path, mmap_mode="r")[rows])

        runs = [(i, min(i + RUN, a.frames)) for i in range(0, a.frames, RUN)]
        before = time.time()
        peak(reset=True)
        _, said = linear.fit(read, runs, z)
        print(said)
        print(
            f"{a.frames:,} frames, {a.channels} channels, {a.latents:,} latents, "
            f"{torch.get_num_threads()} threads: {time.time() - before:.0f} s, peak {peak():.1f} GB"
        )


if __name__ == "__main__":
    main()
