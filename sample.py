"""What does a trained model do, and how good is it?

    python sample.py                       the test runs, frame by frame, from EEG alone (direct)
    python sample.py --interrecon          the missing frames between observed ones (--gap 2)
    python sample.py --interrecon --paper  the same as the paper's Algorithm 1 has it, with DDIM's
                                           steps; with DDPM's: --steps 1000 --eta 1

Writes OUT/direct/ or OUT/interrecon/: recon.npy [T_test,V], truth.npy and shuffled.npy (recon with
shuffled EEG) in z-scores, std.npy over samples, frames.npy (their rows in fmri.npy), metrics.json,
r_time.npy and r_time_shuffled.npy [V], and *_bold.* in original units, if the subject has a space.

The paper's path through this file, for test frames x:

    h = encoder(eeg)                         Study.encode_eeg
    y = encode(x), of observed frames only   observed_latents
    z = sample(eps_model, ..., y, mask)      WindowsApart.draw, window by window
    x_hat = decode(z)                        reconstruct
    x_hat = x where it was observed          put_back
    score x_hat against x where it was not   tools/report.py

All else is controls, chapters and files. Without --paper, beyond.WholeRuns takes the place of
WindowsApart. It has the same methods and is better: windows overlap, and what they say is averaged
at every step, so that a whole run is drawn at once.

What is reported? The mean of the samples, because it minimises the squared error, beside one
sample (`neuroframes_1`), a brain that could have been: its own spread comes on top, so that it may
have up to twice the error.

Did the EEG help? Each score stands beside controls, on the same frames:

    mean_frame     0 in z-scores: what is known without any data of the test run
    shuffled_eeg   the same model from the same noise, but frame t of all T gets the EEG of frame
                   t - T/2 modulo T: of another run, where there are several. It is led astray
                   by it, and in direct reconstruction worse than the mean frame: to beat it
                   shows that the EEG is *used*, no more
    other_eeg      of several people: the same, but with the EEG that another person had at this
                   moment of the same run
    no_null_space  InterRecon without what was observed: what the EEG says by itself
    same_moment    of several people: the mean of the others' training frames at this moment of the
                   same run. It needs no EEG; see people/others.py
    linear         straight lines between observed frames
    gaussian       the expected frames given the observed ones, without EEG, if latents were a
                   Gaussian process with the covariance in time that training frames have (from
                   beyond/; without that folder it is missing)
    linear_gaussian  the same given the EEG as well, whose band power shifts the mean: what a closed
                   form knows in seconds (beyond/; of models trained with it)
    ceiling        all that the EEG can tell, which is known of the synthetic subject only

To beat straight lines proves little, for BOLD is smooth in time: `gaussian` has the same frames to
go by, no EEG either, and far less error. So the EEG helped if the mean of the samples has less MSE
than the mean frame (direct), and than `gaussian` and shuffled EEG (InterRecon). Whether it did, or
was lucky, evidence/helped.py says in a sentence; intervals: benchmarks/table.py.
"""

import os
import time

import numpy as np
import torch
from torch.linalg import vecdot
from tqdm import tqdm

import data
from neuroframes import LinearAutoencoder, NeuroFrames, range_null_projection, sample
from tools import checkpoints, device, files, memory, processes, report
from tools.checks import (
    blaming,
    check_fits,
    check_observed,
    check_splits,
    settle_sampling,
)
from tools.errors import Parser, named, script
from tools.ranks import RANK, say
from tools.subjects import opened

try:
    from evidence import calibration, helped, table
except ModuleNotFoundError:  # scores alone, in metrics.json
    calibration = helped = table = None
try:
    import spaces
except ModuleNotFoundError:  # results as .npy alone
    spaces = None
try:
    import beyond
except ModuleNotFoundError:  # the five scripts alone: the paper's method, without chapters
    beyond = None


def parse(argv=None):
    p = Parser(description="Reconstruct the test runs of one subject, and score them.")
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py (default: out/ckpt.pt)")
    add("--data", nargs="+", type=named, help="prepared subject (default: what was trained on)")
    add("--out", help="folder for results (default: the checkpoint's)")
    add("--interrecon", action="store_true", help="complete what was not observed")
    add("--gap", type=int, help="every gap-th of --frames frames is observed (default: 2)")
    add("--anchors", help="observed ones of every --frames frames, in place of --gap, such as 0,9")
    add(
        "--no-null-space",
        dest="null_space",
        action="store_false",
        help="no projection: what the EEG alone says",
    )
    add("--paper", action="store_true", help="Algorithm 1; its DDPM steps: --steps 1000 --eta 1")
    add("--frames", type=int, help="period of --gap, frames of a scored window (default: trained)")
    add("--samples", type=int, help="samples averaged (default: 8, in pairs; with --paper 1)")
    add("--steps", type=int, help="network calls a sample (default: 15; --paper, --eta: 50)")
    add("--eta", type=float, default=0.0, help="0: DDIM (default); 1: the noise of DDPM")
    add("--batch-size", type=int, default=16, help="windows at a time; lower it if memory runs out")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")
    device.add_flag(add)
    if spaces:
        spaces.add_flags(add)
    if calibration:
        calibration.add_flags(add)
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
    # The same network, in bfloat16 where that is faster.
    model.dit.forward = device.autocast(where, model.dit.width)(model.dit.forward)
    statistics = {name: array.cpu() for name, array in ckpt["normaliser"].items()}
    return ckpt, model, autoencoder, data.Normaliser(**statistics)


class Study:
    """A checkpoint's model and the subject that it is used on, as sample.py's flags a say."""

    # Used by beyond/ only.
    in_batches = staticmethod(processes.in_batches)
    tile = staticmethod(data.tile)
    quiet = RANK > 0

    def __init__(self, a, where):
        ckpt, self.model, self.autoencoder, self.normaliser = load(a.ckpt, where)
        self.settings, self.device = ckpt["settings"], where
        self.decode = device.decoder(self.autoencoder, where)
        self.measured = ckpt.get("measured")  # for beyond/, on frames of training and validation
        # (Without the runs that train.py was told to leave out. Of several people: people/.)
        self.subject = opened(data, beyond, a.data, self.settings, ckpt)
        check_fits(self.subject, ckpt, a.ckpt)
        self.splits = {
            name: self.subject.segments(name, not self.settings["no_validation"])
            for name in ("train", "val", "test", "others")  # others: whose EEG is a control
        }
        check_splits(self, a)

    def frames(self, rows, name="fmri"):
        """Rows of fmri.npy, or of another array of frames, in z-scores [k,V]."""
        array = getattr(self.subject, name)
        return torch.from_numpy(self.normaliser.zscore(array[rows]))

    def read_eeg(self, rows):
        """[k,C,W] of rows of eeg.npy, scaled."""
        return torch.from_numpy(self.normaliser.eeg(self.subject.eeg[rows])).to(self.device)

    def encode_eeg(self, split, cut=lambda eeg: eeg, more=0, block=64):
        """EEG tokens [T,d_e] of a split's frames: the encoder, a block of frames at a time.

        Two frames more at each end (repeated at borders) are encoded and dropped: the encoders of
        chapters look at them. cut [1,L+more,C,W] -> [1,L,C,W]: for EEG between frames."""
        tokens = []
        for low, high in self.splits[split]:
            for i in range(low, high, block):
                rows = np.clip(np.arange(i - 2, min(i + block, high) + 2 + more), low, high - 1)
                h = self.model.encoder(cut(self.read_eeg(rows)[None]))  # [1,L,d_e]
                tokens.append(h[0, 2:-2])
        return torch.cat(tokens)


def observed(a, study):
    """Which vertices are observed, bool [period,V]: row k is of the k-th frame of each period.

    (By now --gap is 2 if --interrecon has come alone, and None in direct reconstruction.)"""
    anchors = []
    if a.anchors:
        anchors = [int(k) for k in a.anchors.split(",")]
    if a.gap:
        anchors = range(0, a.frames, a.gap)
    period = a.frames if anchors else 1
    mask = np.zeros((period, len(study.normaliser.valid)), bool)  # [period,V]
    mask[np.isin(np.arange(period), anchors)] = True  # whole frames
    if a.observe:  # and parts of others
        with blaming(a, "observe"):
            mask = beyond.any_vertices.observe(mask, a.observe, study.subject.rois)
    check_observed(a, anchors, mask[:, study.normaliser.valid])
    return mask


# ---- Drawing ---------------------------------------------------------------------------


class WindowsApart:
    """How the paper draws: each window of K frames by itself, observed frames held by A^+.

    A frame's `pattern` is its row of `seen` [.,V]: here 0, all observed, or -1, the last, nothing.
    (Other patterns, and what stands before `draw`, serve beyond.WholeRuns, with the same methods.)
    """

    correction = 1  # of a standard deviation over samples: the usual n - 1
    linear = None  # no closed form

    def __init__(self, a, study, seen):
        self.a, self.study, self.seen = a, study, seen
        self.generator = torch.Generator().manual_seed(a.seed)
        a.projection, a.window, a.overlap = "paper", a.frames, 0  # for metrics.json
        a.steps = a.steps or 50

    def groups(self, stretches):
        """Lists of stretches, each drawn at a time: here one of all, which needs little memory."""
        return [stretches]

    def encode_eeg(self, split):
        return self.study.encode_eeg(split)  # [T,d_e]

    def latents(self, x, pattern):
        """What frames x [.,V], all observed in this pattern, say of z: y [.,d]."""
        return self.study.autoencoder.encode(x)

    def draw(self, name, stretches, y, pattern, h):
        """Latents z [S,t,d] of the t frames of some stretches, which follow one another.

        y, pattern, h  of the T frames of all stretches: what was observed [T,d], its pattern [T]
                       or -1, EEG tokens [T,d_e]
        name           of the progress bar
        """
        a, study, begin = self.a, self.study, stretches[0][0]
        z = torch.zeros(a.samples, stretches[-1][1] - begin, y.shape[-1])
        batches = list(data.batches(data.tile(stretches, a.frames), a.batch_size))
        for windows in tqdm(batches, desc=name, unit="batch", disable=RANK > 0):
            # Stretches are of places 0 to T - 1, and so are these.
            places, eeg_places, times = data.window_indices(windows, study.settings["context"])
            tokens = h[eeg_places]  # [B,L,d_e]
            times = torch.from_numpy(times).to(study.device)  # [B,L]
            y_here = y[places].to(study.device)  # [B,K,d]
            mask = torch.from_numpy(pattern[places] >= 0).to(study.device)  # [B,K]

            def eps_model(z_n, n, tokens=tokens, times=times):
                return study.model(z_n, n, tokens, times)

            for s in range(a.samples):
                drawn = sample(
                    eps_model,
                    y_here.shape,
                    study.model.schedule,
                    steps=a.steps,
                    eta=a.eta,
                    y=y_here,
                    mask=mask if mask.any() else None,
                    reuse_eps=False,
                    generator=self.generator,
                )
                # (A stretch's last window may overlap the one before: the later one counts.)
                for window, part in zip(windows, drawn.cpu()):
                    start = window.start - begin
                    z[s, start : start + window.length] = part
        return z

    def conditional(self, stretches, y, pattern):
        """The Gaussian conditional mean z [1,t,d] of these frames given y, without EEG."""
        return beyond.WholeRuns(self.a, self.study, self.seen).conditional(stretches, y, pattern)


def observed_latents(sampler, timeline):
    """y [T,d]: what was observed, in latents; 0 where nothing was. No other frame of the truth
    reaches the sampler."""
    study = sampler.study
    y = torch.zeros(len(timeline.rows), study.autoencoder.latent_dim)
    for places in timeline.blocks:
        x = study.frames(timeline.rows[places]).to(study.device)  # [K,V]
        pattern = timeline.pattern[places]  # [K]
        for p in set(pattern) - {-1}:
            y[places[pattern == p]] = sampler.latents(x[pattern == p], p).cpu()
    return y


def draw_split(sampler, timeline, split):
    """Draw the frames of a split. Yields, for some frames at a time, their places [K] and {method:
    latents [S,K,d]}: NeuroFrames, and on the test runs the controls that need its latents.

    (a.upsample is 1 but in beyond/between_frames: so many points per frame, the first of which is
    the frame.)
    """
    a, pattern = sampler.a, timeline.pattern
    y = observed_latents(sampler, timeline)  # [T,d]
    h = sampler.encode_eeg(split)  # [T,d_e]

    # What is drawn, held to what, from which EEG.
    nothing = np.full_like(pattern, -1)
    held_to = pattern if a.null_space else nothing
    wanted = {"neuroframes": (held_to, h)}
    if split == "test":
        wanted["shuffled_eeg"] = (held_to, h.roll(len(h) // 2, 0))
        if sampler.study.splits["others"]:
            wanted["other_eeg"] = (held_to, sampler.encode_eeg("others"))
        if a.null_space:
            wanted["no_null_space"] = (nothing, h)
    for group in sampler.groups(timeline.stretches):
        z = {}
        state = sampler.generator.get_state()
        for method, given in wanted.items():
            sampler.generator.set_state(state)  # the same noise: only what is given differs
            z[method] = sampler.draw(method, group, y, *given)
        if split == "test" and a.interrecon and beyond:
            z["gaussian"] = sampler.conditional(group, y, pattern)
        if split == "test" and sampler.linear:
            z["linear_gaussian"] = sampler.conditional(group, y, pattern, h)

        # So many frames at a time that decoding them pays, and memory is small. From here on in the
        # first process only.
        begin = group[0][0]
        if RANK > 0:
            continue
        for low, high in group:
            for first in range(low, high, 64):
                places = np.arange(first, min(first + 64, high))
                start = (first - begin) * a.upsample
                points = slice(start, start + len(places) * a.upsample)
                yield places, {method: latents[:, points] for method, latents in z.items()}


# ---- From latents to frames ------------------------------------------------------------


def reconstruct(sampler, timeline, split):
    """Yields, for some frames of a split at a time, their places [K], the truth x [K,V], mask bool
    [K,V], what of it was observed, and {method: [mean of the samples [K,V]]}; for NeuroFrames
    itself then follow their standard deviation and the first sample, [K,V] each."""
    study = sampler.study
    for places, z in draw_split(sampler, timeline, split):
        x = study.frames(timeline.rows[places])
        mask = torch.from_numpy(sampler.seen[timeline.pattern[places]])

        # D is linear: the mean of decoded samples is their decoded mean.
        means = study.decode(torch.stack([latents.mean(0) for latents in z.values()]))
        drawn = {method: [mean] for method, mean in zip(z, means)}  # [K,V] each

        samples = study.decode(z["neuroframes"], rounded=True)  # [S,K,V]
        # (torch.std takes several times as long: what it computes with does not fit into a cache.)
        squares = sum((one - means[0]).square() for one in samples)  # [K,V]
        std = (squares / max(1, len(samples) - sampler.correction)).sqrt()
        drawn["neuroframes"] += [std, samples[0].float()]
        yield places, x, mask, drawn


def put_back(drawn, x, mask, every):
    """What was observed, into the mean, the deviation and the first sample, in place.

    Of an observed frame, decoded latents give back what d components can say; the rest is lost. So
    the last projection is one of vertices, A = diag(mask). (No score changes, for what was observed
    is not scored, but it is what is written.)"""
    for guess, known in zip(drawn, (x, torch.zeros_like(x), x)):
        guess[::every] = range_null_projection(guess[::every], known, mask)


# ---- Scores, and rivals without a network ----------------------------------------------


def cosine(u, v):
    """Over the last axis; 0 where u or v is 0."""
    norm = (vecdot(u, u) * vecdot(v, v)).sqrt()
    return torch.where(norm > 0, vecdot(u, v) / norm, 0.0)


def without_mean(x):
    """x [...,V] less its mean over V, which is summed up in float64: 0 of flat frames."""
    return x - x.mean(-1, keepdim=True, dtype=torch.float64).to(x)


def frame_scores(x_hat, x):
    """MSE, Pearson r and cosine over vertices, [...,V] -> [...,3]. Flat frames: r 0."""
    error = x_hat - x
    mse = vecdot(error, error) / x.shape[-1]
    r = cosine(without_mean(x_hat), without_mean(x))
    return torch.stack([mse, r, cosine(x_hat, x)], -1)


def linear_interpolation(anchors, times, fetch):
    """Frames [K,V] at `times`, on straight lines between those at `anchors`, or the nearest.

    Column j of weight [K,anchors] interpolates what is 1 at anchor j and 0 at all others: its share
    in each frame. Anchors without a share are not read (fetch)."""
    weight = np.stack([np.interp(times, anchors, unit) for unit in np.eye(len(anchors))], 1)
    used = weight.any(0)
    return torch.from_numpy(weight[:, used]).float() @ fetch(anchors[used])


def rivals(sampler, timeline, places, x):
    """What needs no network, of frames with truth x [K,V]: {method: [K,V]}."""
    study = sampler.study
    found = {"mean_frame": torch.zeros_like(x)}  # in z-scores
    low, high = next(s for s in timeline.stretches if s[0] <= places[0] < s[1])
    whole = sampler.seen.all(1)[timeline.pattern[low:high]]  # bool [high - low]
    anchors = low + np.flatnonzero(whole)
    if len(anchors):
        found["linear"] = linear_interpolation(
            anchors, places, lambda at: study.frames(timeline.rows[at])
        )
    known = {"ceiling": "driven", "same_moment": "same_moment"}  # arrays of some subjects
    for method, name in known.items():
        if getattr(study.subject, name, None) is not None:
            found[method] = study.frames(timeline.rows[places], name)
    return found


# ---- The run ---------------------------------------------------------------------------


@torch.no_grad()
def run(a, where, folder, on_guess):
    """Draw, score and write the test frames into `folder`; returns what evidence/table prints.

    (spread and --calibrate: evidence/calibration; --upsample: beyond/between_frames.)"""
    study = Study(a, where)
    a.frames = a.frames or study.settings["frames"]
    seen, of_frame = data.patterns(observed(a, study))  # distinct rows; which one a frame has
    with blaming(a, "window", "overlap", "upsample"):  # if they do not fit, name the flag
        sampler = WindowsApart(a, study, seen) if a.paper else beyond.WholeRuns(a, study, seen)
    spread = calibration and calibration.of(sampler)
    if a.calibrate:
        timeline = data.timeline(study.splits["val"], a.frames, of_frame)
        spread.fit_scale(reconstruct(sampler, timeline, "val"))

    timeline = data.timeline(study.splits["test"], a.frames, of_frame)
    kind = report.Results
    if study.subject.meta.get("eeg_alone"):  # there is no truth to score by
        kind = spaces.Unscored
    results = kind(a, study, timeline, seen, frame_scores, folder)
    # The lab's own formats, and pictures.
    outputs = spaces and spaces.Outputs(a, study, timeline)
    for places, x, mask, drawn in reconstruct(sampler, timeline, "test"):
        mean, std, first = drawn["neuroframes"]
        if spread:
            spread.add(x, mask, mean, std)
        if a.null_space:
            of_frames = mean[:: a.upsample]  # a view
            before = (of_frames - x)[mask]  # by how much what was observed is missed
            for method in ("neuroframes", "shuffled_eeg"):
                put_back(drawn[method], x, mask, a.upsample)
            after = (of_frames - x)[mask]
            results.add_residual(before, after)
        results.write(recon=mean, shuffled=drawn["shuffled_eeg"][0], truth=x, std=std)

        # Scores: each method's mean, the first that is there; one sample; rivals. Not the points
        # between frames.
        guesses = {method: found[0] for method, found in drawn.items()} | {"neuroframes_1": first}
        guesses = {method: guess[:: a.upsample] for method, guess in guesses.items()}
        for method, guess in (guesses | rivals(sampler, timeline, places, x)).items():
            results.scores.add(method, guess, x, places)
            on_guess(method, places, guess)
    if RANK == 0:
        return results.finish(spread, outputs, helped and helped.Helped)


@script
def main(argv=None, on_guess=lambda method, places, x_hat: None):
    """on_guess: is told each method's frames, x_hat [K,V] in z-scores (for benchmarks)."""
    a = parse(argv)
    began = time.time()
    where = device.pick_device(a.device)
    out = os.path.join(a.out or os.path.dirname(a.ckpt), a.mode)
    with memory.advice(where, a, "batch_size", "samples"), files.whole(out) as folder:
        summary = run(a, where, folder, on_guess)
    if summary and table:  # of the first process, once the result is in its place
        table.show(*summary)
    say(f"wrote {out} in {time.time() - began:.1f} s")
    processes.part()


if __name__ == "__main__":
    main()
