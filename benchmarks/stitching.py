"""How should windows become a whole run? Four ways on the test runs, direct and with anchors.

    python benchmarks/stitching.py --ckpt out/ckpt.pt --gap 9

independent   side by side, none knows of its neighbours
averaged      overlapping; each is drawn by itself, and they are averaged when done
continued     one after the other: half of the overlap with the one before is held like observed
              frames, the other half, which that one drew without seeing what comes after it, is
              drawn again
blended       sample.py's: all at once, averaged at every step where they overlap

Seam: the samples' mean squared jump from frame to frame where windows begin, over that elsewhere.
1: nothing shows.
"""

import argparse
import functools
import os
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data
import sample as sampling
from beyond import opposite_pairs
from beyond.computed_once import once
from beyond.weighted_projection import weighted_projection
from beyond.whole_runs import Windows
from neuroframes import denoise
from tools.errors import fail, script
from tools.processes import in_batches

# ---- The test runs ---------------------------------------------------------------------


class Runs:
    """The B test runs of a checkpoint's subject, cut to one length T, and how frames of them are
    drawn, S samples at a time.

    x [B,T,V], y [B,T,d]  frames, and their latents
    h [B,T,d_e]           EEG tokens
    K, overlap            frames of a window, and how many neighbouring windows share
    """

    def __init__(self, study, samples):
        self.model, self.autoencoder, self.samples = study.model, study.autoencoder, samples
        self.valid = torch.from_numpy(study.normaliser.valid)
        settings = study.settings
        self.context = settings["context"]
        self.period = settings["frames"]
        self.K = self.period * (3 if settings["vary"] else 1)
        self.overlap = self.K // 2

        stretches = study.splits["test"]
        self.T = min(high - low for low, high in stretches)
        study.splits["test"] = [(low, low + self.T) for low, _ in stretches]
        self.x = torch.stack([study.frames(slice(*run)) for run in study.splits["test"]])
        self.y = self.autoencoder.encode(self.x)
        self.h = study.encode_eeg("test").unflatten(0, (-1, self.T))

    def windows(self, overlap):
        tiles = data.tile([(0, self.T)], self.K, overlap)
        return Windows([tile.start for tile in tiles], tiles[0].length, self.T)

    def project_of(self, kinds):
        """(z0, y, abar) -> z0, for frames that were observed (0) or not (-1)."""
        seen = torch.tensor(kinds) >= 0
        return weighted_projection(self.model.prior, seen, torch.arange(len(seen)))

    def draw(self, length, eps_model, project, generator):
        """z [SB,length,d]"""
        shape = self.samples * len(self.y), length, self.y.shape[-1]
        noise = opposite_pairs.draw(generator, "cpu", self.samples)
        return denoise(eps_model, project, noise, shape, self.model.schedule, reuse_eps=False)

    def together(self, w, kinds, generator):
        """All windows at once, blended at every step where they overlap."""

        def model_of(tokens, times):  # [windows,1,L,d_e], [windows,L]
            return once(self.model, tokens[:, 0], times)

        batches = functools.partial(in_batches, 16)
        eps_model = w.eps_model(model_of, self.h[:, :, None], self.context, self.samples, batches)
        project = w.project(self.project_of, kinds.numpy(), self.y)
        return self.draw(self.T, eps_model, project, generator)

    def window(self, start, kinds, y, generator):
        """One window by itself: frames from `start` on, observed as kinds [K] say, y [SB,K,d]."""
        around = torch.arange(start - self.context, start + len(kinds) + self.context)
        frames = around.clamp(0, self.T - 1)  # [L]
        times = (frames - start).float().expand(len(self.h), -1)  # [B,L]
        eps_model = once(self.model, self.h[:, frames], times)
        project = self.project_of(kinds)
        return self.draw(len(kinds), eps_model, lambda z0, abar: project(z0, y, abar), generator)

    def averaged(self, w, kinds, generator):
        y = self.y.repeat(self.samples, 1, 1)  # [SB,T,d]
        parts = []
        for start, index in zip(w.start.tolist(), w.index):
            parts.append(self.window(start, kinds[index].tolist(), y[:, index], generator))
        return w.blend(torch.stack(parts, 1))

    def continued(self, w, kinds, generator):
        y = self.y.repeat(self.samples, 1, 1)  # [SB,T,d]
        z = torch.zeros_like(y)
        end = 0  # of the window before
        for start, index in zip(w.start.tolist(), w.index):
            held = max(0, end - self.overlap // 2 - start) if start else 0
            end = start + w.K
            known = torch.cat([z[:, index[:held]], y[:, index[held:]]], 1)
            kind = [0] * held + kinds[index[held:]].tolist()
            z[:, index] = self.window(start, kind, known, generator)
        return z

    def borders(self, w, way):
        """bool [T-1]: at which steps from frame to frame another window begins."""
        first = w.start[1:]
        if way == "continued":  # its frames are its own from where none is held
            first = w.start[:-1] + w.K - self.overlap // 2
        return torch.zeros(self.T - 1, dtype=torch.bool).index_fill(0, first - 1, True)

    def stitched(self, way, gap):
        """(MSE of the samples' mean, of one sample, r of the mean, seam), of the frames that were
        not observed: all, or all but every gap-th of a period."""
        frames = torch.arange(self.T)
        kinds = torch.full((self.T,), -1)
        if gap is not None:
            kinds = torch.where(frames % self.period % gap == 0, 0, -1)
        w = self.windows(0 if way == "independent" else self.overlap)
        how = {"averaged": self.averaged, "continued": self.continued}.get(way, self.together)
        z = how(w, kinds, torch.Generator().manual_seed(0))  # [SB,T,d]

        jump = (z * self.autoencoder.latent_scale).diff(dim=1).square().mean((0, 2))  # [T-1]
        border = self.borders(w, way)
        seam = jump[border].mean() / jump[~border].mean()
        z = z.unflatten(0, (self.samples, -1))  # [S,B,T,d]
        mse, r, _ = self.scores(z.mean(0), kinds < 0)
        mse_of_one, _, _ = self.scores(z[0], kinds < 0)
        return mse, mse_of_one, r, seam

    def scores(self, z, free):
        """MSE, r, cos of latents z [B,T,d], over the frames `free` [T] and the vertices that
        vary."""
        guess = self.autoencoder.decode(z[:, free])[..., self.valid]
        truth = self.x[:, free][..., self.valid]
        return sampling.frame_scores(guess, truth).mean((0, 1))


# ---- The table -------------------------------------------------------------------------


def parse(argv):
    p = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="of train.py, trained with --prior gaussian")
    add("--gap", type=int, default=9, help="of --frames frames every gap-th is observed")
    add("--samples", type=int, default=8, help="samples averaged, an even number")
    return p.parse_args(argv)


@script
@torch.no_grad()
def main(argv=None):
    a = parse(argv)
    study = sampling.Study(sampling.parse(["--ckpt", a.ckpt]), torch.device("cpu"))
    if a.samples % 2 or getattr(study.model, "prior", None) is None:
        fail(
            f"--samples {a.samples}, --ckpt {a.ckpt}: expected an even number, and a model trained "
            "with --prior gaussian"
        )
    runs = Runs(study, a.samples)
    columns = f"{'one sample':>12}{'r':>8}{'seam':>8}"
    print(f"{'':14}{'direct: MSE':>12}{columns}{f'gap {a.gap}: MSE':>14}{columns}")
    for way in ("independent", "averaged", "continued", "blended"):
        row = f"{way:14}"
        for gap, width in ((None, 12), (a.gap, 14)):
            mse, mse_of_one, r, seam = runs.stitched(way, gap)
            row += f"{mse:{width}.3f}{mse_of_one:12.3f}{r:8.3f}{seam:8.2f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
