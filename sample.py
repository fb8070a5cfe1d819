"""What does a trained model do, and how good is it?

    python sample.py                       the test runs, frame by frame, from EEG alone (direct)
    python sample.py --interrecon          the missing frames between observed ones (--gap 2)
    python sample.py --interrecon --paper  the same as the paper's Algorithm 1 has it, with DDIM's
                                           steps; with DDPM's: --steps 1000 --eta 1

Writes OUT/direct/ or OUT/interrecon/: recon.npy [T_test,V] and truth.npy in z-scores, std.npy over
samples, frames.npy (their rows in fmri.npy), metrics.json, and recon.dtseries.nii in original units
where the subject has a space. Every score stands beside its controls, and what was observed is
never scored.

Read `WindowsApart` first: it draws as the paper does. Without --paper, beyond.WholeRuns takes its
place, which has the same methods, draws whole runs, and is better.
"""

import os
import time

import numpy as np
import torch
from tqdm import tqdm

import data
from neuroframes import LinearAutoencoder, NeuroFrames, range_null_projection, sample
from tools import checkpoints, device, files, memory, processes, report
from tools.checks import (
    blaming,
    check_fits,
    check_observed,
    check_splits,
    check_windows,
    settle_sampling,
)
from tools.errors import Parser, named, script
from tools.ranks import RANK, say

try:
    import beyond
except ModuleNotFoundError:  # the five scripts alone: the paper's method, without chapters
    beyond = None


def parse(argv=None):
    p = Parser(description="Reconstruct the test runs of one subject, and score them.")
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py (default: out/ckpt.pt)")
    add("--data", type=named, help="prepared subject (default: the one trained on)")
    add("--out", help="folder for results (default: the checkpoint's)")
    add("--interrecon", action="store_true", help="complete what was not observed")
    add("--gap", type=int, help="every gap-th of --frames frames is observed (default: 2)")
    add("--anchors", help="observed ones of every --frames frames, in place of --gap, such as 0,9")
    add("--no-null-space", action="store_true", help="no projection: what the EEG alone says")
    add(
        "--paper", action="store_true", help="Algorithm 1 to the letter; DDPM: --steps 1000 --eta 1"
    )
    add("--frames", type=int, help="period of --gap, frames of a scored window (default: trained)")
    add("--samples", type=int, help="samples averaged (default: 8, in pairs; with --paper 1)")
    add("--steps", type=int, default=50, help="network calls a sample; lower it if time runs out")
    add("--eta", type=float, default=0.0, help="0: DDIM (default); 1: the noise of DDPM")
    add("--batch-size", type=int, default=16, help="windows at a time; lower it if memory runs out")
    add("--seed", type=int, default=0, help="of the noise and of the shuffled EEG (default: 0)")
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    add("--debug", action="store_true", help="show where an error came from")
    report.add_flags(add)
    if beyond:
        beyond.add_sampling_flags(add)
    a = p.parse_args(argv)
    settle_sampling(a, beyond)
    return a


# ---- What is there ---------------------------------------------------------------------


def load(path, where):
    """(checkpoint dict, model, autoencoder, normaliser) of the file that train.py wrote."""
    kinds = beyond.kinds if beyond else lambda ckpt: (NeuroFrames, LinearAutoencoder)
    ckpt, model, autoencoder = checkpoints.rebuild(path, where, kinds)
    # Matrix products of the network, in less than float32 where the device is faster with it.
    model.dit.forward = device.fast_products(model.dit.width)(model.dit.forward)
    statistics = {name: array.cpu() for name, array in ckpt["normaliser"].items()}
    return ckpt, model, autoencoder, data.Normaliser(**statistics)


class Study:
    """A checkpoint's model and the subject that it is used on, as sample.py's flags a say."""

    # What chapters need of other files; nothing of it is used here.
    in_batches = staticmethod(processes.in_batches)
    tile = staticmethod(data.tile)
    quiet = RANK > 0

    def __init__(self, a, where):
        ckpt, self.model, self.autoencoder, self.normaliser = load(a.ckpt, where)
        self.settings, self.device = ckpt["settings"], where
        self.subject = data.Subject(a.data or ckpt["subject"])
        check_fits(self.subject, ckpt, a.ckpt)
        validation = not self.settings["no_validation"]
        self.splits = {s: self.subject.segments(s, validation) for s in ("train", "val", "test")}
        check_splits(self, a)

    def frames(self, rows):
        """Rows of fmri.npy in z-scores [k,V]."""
        return torch.from_numpy(self.normaliser.zscore(self.subject.fmri[rows]))

    def encode_eeg(self, split, cut=lambda eeg: eeg, more=0, block=64):
        """EEG tokens [T,d_e] of a split's frames, some at a time, each with two more on both sides
        for encoders of chapters, which look around. cut: [1,L+more,C,W] -> [1,L,C,W], if at all."""
        tokens = []
        for low, high in self.splits[split]:
            for i in range(low, high, block):
                rows = np.clip(np.arange(i - 2, min(i + block, high) + 2 + more), low, high - 1)
                eeg = torch.from_numpy(self.normaliser.eeg(self.subject.eeg[rows]))  # [L,C,W]
                h = self.model.encoder(cut(eeg[None].to(self.device)))  # [1,L,d_e]
                tokens.append(h[0, 2:-2])
        return torch.cat(tokens)


def observed(a, study):
    """Which vertices of which frames are observed: (seen bool [patterns,V], of_frame [period]).

    of_frame[k], for the k-th frame of a stretch modulo the period, is its pattern, a row of seen;
    or -1, the last row, where nothing is. Of the paper there is one pattern more: a frame as a
    whole."""
    anchors = [int(k) for k in a.anchors.split(",")] if a.anchors else []
    if a.gap:
        anchors = range(0, a.frames, a.gap)
    period = a.frames if len(anchors) else 1
    V = len(study.normaliser.valid)
    mask = np.zeros((period, V), bool)
    mask[np.isin(np.arange(period), anchors)] = True
    if a.observe:
        with blaming(a, "observe"):
            mask = beyond.any_vertices.observe(mask, a.observe, study.subject.rois)
    check_observed(a, anchors, mask[:, study.normaliser.valid])

    seen, of_frame = np.unique(mask, axis=0, return_inverse=True)
    of_frame = np.where(seen.any(1)[of_frame.ravel()], of_frame.ravel(), -1)
    return np.concatenate([seen, np.zeros((1, V), bool)]), of_frame


# ---- Drawing ---------------------------------------------------------------------------


class WindowsApart:
    """How the paper draws: each window of K frames by itself, observed frames held by A^+.

    seen bool [patterns,V], the last row of which is nothing; see `observed`.
    """

    correction = 1  # of a standard deviation over samples: the usual n - 1

    def __init__(self, a, study, seen):
        self.a, self.study, self.seen = a, study, seen
        self.generator = torch.Generator().manual_seed(a.seed)
        a.projection, a.window, a.overlap = "paper", a.frames, 0  # for metrics.json

    def groups(self, stretches):
        """Stretches that are drawn at a time: here all, since they need little memory."""
        return [stretches]

    def encode_eeg(self, split):
        return self.study.encode_eeg(split)  # [T,d_e]

    def latents(self, x, pattern):
        """y of frames x [n,V] that were observed in one pattern: [n,d]."""
        return self.study.autoencoder.encode(x)

    def draw(self, name, stretches, y, pattern, h):
        """Latents z [S,T,d] of the T frames of some stretches, which follow one another.

        y, pattern, h  of the frames of all stretches: what was observed [T_all,d], its pattern
                       [T_all] or -1, EEG tokens [T_all,d_e]
        name           of the progress bar
        """
        a, study, begin = self.a, self.study, stretches[0][0]
        z = torch.zeros(a.samples, stretches[-1][1] - begin, y.shape[-1])
        batches = list(data.batches(data.tile(stretches, a.frames), a.batch_size))
        for windows in tqdm(batches, desc=name, unit="batch", disable=RANK > 0):
            frames, eeg, times = data.window_indices(windows, study.settings["context"])
            tokens = h[eeg]  # [B,L,d_e]
            times = torch.from_numpy(times).to(study.device)  # [B,L]
            anchors = y[frames].to(study.device)  # [B,K,d]
            mask = torch.from_numpy(pattern[frames] >= 0).to(study.device)  # [B,K]

            def eps_model(z_n, n, tokens=tokens, times=times):
                return study.model(z_n, n, tokens, times)

            for s in range(a.samples):
                drawn = sample(
                    eps_model,
                    anchors.shape,
                    study.model.schedule,
                    steps=a.steps,
                    eta=a.eta,
                    y=anchors if mask.any() else None,
                    mask=mask,
                    reuse_eps=False,
                    generator=self.generator,
                )
                for window, part in zip(windows, drawn.cpu()):
                    start = window.start - begin
                    z[s, start : start + window.length] = part
        return z

    def conditional(self, stretches, y, pattern):
        """The Gaussian conditional mean z [1,T,d] of the same windows given y, without EEG."""
        return beyond.WholeRuns(self.a, self.study, self.seen).conditional(stretches, y, pattern)


def shuffled(blocks, seed):
    """Shuffled EEG: whose EEG each frame gets [T], where blocks are [0 1 2], [3 4 5], ... perhaps
    [6 7 8 0 1 2 ...]. Each block gets another's, along one random cycle, so that none keeps its
    own, unless it is the only one.

    A model that trusts the EEG is led astray by that of others, and is worse than the mean frame.
    So to beat shuffled EEG shows that the EEG is used; to gain by it is to beat what needs none:
    the mean frame in direct reconstruction, the Gaussian conditional in InterRecon."""
    cycle = np.random.default_rng(seed).permutation(len(blocks))
    donor = np.empty(len(blocks), int)
    donor[cycle] = np.roll(cycle, 1)  # each in the cycle gets the EEG of the one before
    whose = [np.resize(blocks[j], len(block)) for j, block in zip(donor, blocks)]
    return np.concatenate(whose)


def draw_split(sampler, timeline, split):
    """Draw the frames of a split. Yields, for each block of frames, their places k [K] and {method:
    latents [S,K,d]}: NeuroFrames, and on the test runs the controls that need its latents.

    (With --upsample there are a.upsample points to a frame, of which the first is the frame.)
    """
    a, study, pattern = sampler.a, sampler.study, timeline.pattern
    nothing = np.full_like(pattern, -1)
    y = torch.zeros(len(pattern), study.autoencoder.latent_dim)
    for k in timeline.blocks:
        x = study.frames(timeline.rows[k]).to(study.device)  # [K,V]
        for p in set(pattern[k]) - {-1}:
            here = pattern[k] == p
            y[k[here]] = sampler.latents(x[here], p).cpu()

    # What is drawn, held to what, from which EEG.
    h = sampler.encode_eeg(split)  # [T,d_e]
    projected = a.interrecon and not a.no_null_space
    held_to = pattern if projected else nothing
    wanted = {"neuroframes": (held_to, h)}
    if split == "test":
        wanted["shuffled_eeg"] = held_to, h[shuffled(timeline.blocks, a.seed)]
    if split == "test" and projected:
        wanted["no_null_space"] = nothing, h
    for group in sampler.groups(timeline.stretches):
        z = {method: sampler.draw(method, group, y, *given) for method, given in wanted.items()}
        if split == "test" and a.interrecon and beyond:
            z["gaussian"] = sampler.conditional(group, y, pattern)

        begin = group[0][0]
        end = group[-1][1]
        for k in timeline.blocks if RANK == 0 else []:
            if begin <= k[0] < end:  # a block of this group
                points = slice((k[0] - begin) * a.upsample, (k[-1] + 1 - begin) * a.upsample)
                yield k, {method: latents[:, points] for method, latents in z.items()}


# ---- From latents to frames ------------------------------------------------------------


def decode(sampler, z):
    """Samples z [S,K,d] -> their mean, standard deviation and first, [K,V] each."""
    study = sampler.study
    frames = study.autoencoder.decode(z.to(study.device)).cpu()  # [S,K,V]
    std = torch.zeros_like(frames[0])
    if len(frames) > 1:
        std = frames.std(0, correction=sampler.correction)
    return frames.mean(0), std, frames[0]


def reconstruct(sampler, timeline, split):
    """Yields, for each block of frames of a split, places k [K], the truth x [K,V], mask bool
    [K,V], what of it was observed, and {method: (mean, deviation, first sample)}."""
    for k, z in draw_split(sampler, timeline, split):
        x = sampler.study.frames(timeline.rows[k])
        mask = torch.from_numpy(sampler.seen[timeline.pattern[k]])
        drawn = {"neuroframes": decode(sampler, z.pop("neuroframes"))}
        for method, latents in z.items():  # of controls only the mean is scored, and D is linear
            drawn[method] = decode(sampler, latents.mean(0, keepdim=True))
        yield k, x, mask, drawn


def put_back(drawn, x, mask, points):
    """What was observed, into the mean, the deviation and the first sample, in place. Latents that
    agree with it decode to D z + mean and not to x; so the last projection is one of vertices."""
    for guess, known in zip(drawn, (x, torch.zeros_like(x), x)):
        guess[::points] = range_null_projection(guess[::points], known, mask)


# ---- Scores, and rivals without a network ----------------------------------------------


def cosine(u, v):
    """Over the last axis; 0 where u or v is 0."""
    norm = (u.square().sum(-1) * v.square().sum(-1)).sqrt()
    return torch.where(norm > 0, (u * v).sum(-1) / norm.clamp(min=1e-300), torch.zeros_like(norm))


def frame_scores(x_hat, x):
    """MSE, Pearson r and cosine over vertices, [...,V] -> [...,3] in float64. Flat frames: r 0."""
    x_hat = x_hat.double()
    x = x.double()
    r = cosine(x_hat - x_hat.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True))
    return torch.stack([(x_hat - x).square().mean(-1), r, cosine(x_hat, x)], -1)


def linear_interpolation(anchors, times, fetch):
    """Frames [k,V] at `times`, on straight lines between those at `anchors`, or the nearest."""
    units = np.eye(len(anchors))
    weight = np.stack([np.interp(times, anchors, unit) for unit in units], 1)  # [k,anchors]
    near = weight.any(0)
    return torch.from_numpy(weight[:, near]).float() @ fetch(anchors[near])


def rivals(sampler, timeline, k, x):
    """What needs no network, of frames k with truth x [K,V]: {method: [K,V]}.

    Linear interpolation is a weak rival: the Gaussian conditional, which knows how frames covary in
    time, is the best linear interpolation, and the one to beat (`sampler.conditional`).
    """
    study, found = sampler.study, {"mean_frame": torch.zeros_like(x)}
    low, high = next(s for s in timeline.stretches if s[0] <= k[0] < s[1])
    anchors = low + np.flatnonzero(sampler.seen.all(1)[timeline.pattern[low:high]])  # seen whole
    if len(anchors):
        fetch = study.frames
        found["linear"] = linear_interpolation(anchors, k, lambda at: fetch(timeline.rows[at]))
    if study.subject.driven is not None:
        driven = study.normaliser.zscore(study.subject.driven[timeline.rows[k]])
        found["ceiling"] = torch.from_numpy(driven)
    return found


# ---- The run ---------------------------------------------------------------------------


@torch.no_grad()
def run(a, where, folder, also):
    """Draw, score and write the test frames into `folder`; returns what report.show prints."""
    study = Study(a, where)
    a.frames = a.frames or study.settings["frames"]
    seen, of_frame = observed(a, study)
    sampler = WindowsApart(a, study, seen) if a.paper else beyond.WholeRuns(a, study, seen)
    check_windows(a, study.model)
    spread = None if a.paper or a.samples == 1 else beyond.spread(a, study)
    if a.calibrate:
        timeline = data.timeline(study.splits["val"], a.frames, of_frame)
        spread.fit_scale(reconstruct(sampler, timeline, "val"))

    timeline = data.timeline(study.splits["test"], a.frames, of_frame)
    results = report.Results(a, study, timeline, seen, frame_scores, folder)
    outputs = None
    if study.subject.space is not None:  # the lab's own formats
        from recordings.outputs import Outputs

        outputs = Outputs(a, study, timeline)
    for k, x, mask, drawn in reconstruct(sampler, timeline, "test"):
        mean, std, first = drawn["neuroframes"]
        if spread:
            spread.add(x, mask, mean, std)
        if a.interrecon and not a.no_null_space:
            before = (mean[:: a.upsample] - x)[mask]
            for method in ("neuroframes", "shuffled_eeg"):
                put_back(drawn[method], x, mask, a.upsample)
            results.add_residual(before, (mean[:: a.upsample] - x)[mask])
        results.write(recon=mean, truth=x, std=std)

        # Scores: the mean of the samples and one of them, the controls' means, the rivals.
        guesses = {"neuroframes_1": first, **{method: u for method, (u, _, _) in drawn.items()}}
        guesses = {method: guess[:: a.upsample] for method, guess in guesses.items()}
        for method, guess in {**guesses, **rivals(sampler, timeline, k, x)}.items():
            results.add_score(method, guess, x, k)
            also(method, k, guess)
    if RANK == 0:
        return results.finish(spread, outputs)


@script
def main(argv=None, also=lambda method, k, x_hat: None):
    """also: gets every method's frames, x_hat [K,V] in z-scores at places k (for benchmarks)."""
    a = parse(argv)
    began = time.time()
    where = device.pick_device(a.device)
    mode = "interrecon" if a.interrecon else "direct"
    out = os.path.join(a.out or os.path.dirname(a.ckpt) or ".", mode)
    with memory.advice(where, a, "batch_size", "samples"), files.whole(out) as folder:
        told = run(a, where, folder, also)
    if RANK == 0:
        report.show(*told)  # once the result is in its place
    say(f"wrote {out} in {time.time() - began:.1f} s")
    processes.part()


if __name__ == "__main__":
    main()
