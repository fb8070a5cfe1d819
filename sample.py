"""What does a trained model do, and how good is it?

    python sample.py                       the test runs, frame by frame, from EEG alone (direct)
    python sample.py --interrecon          the missing frames between observed ones (--gap 2)
    python sample.py --observe patch       the rest of the brain, given one region (real brains: visual, ...)

Writes OUT/direct/ or OUT/interrecon/: recon.npy [T_test,V] and truth.npy in z-scores, std.npy over samples, frames.npy
(their rows in fmri.npy), metrics.json, and recon.dtseries.nii in original units where the subject has a space. Every
score stands beside its controls, and what was observed is never scored.
"""
import functools
import json
import math
import os
import time

import numpy as np
import torch
from tqdm import tqdm

import data
from tools import files, machine, show
from tools.errors import Parser, check_fits, check_sampling, fail, named, script
from neuroframes import GaussianPrior, LinearAutoencoder, NeuroFrames, Observation, range_null_projection, sample

METRICS = ("mse", "r", "cos")
LATENTS_AT_ONCE = 2**25  # samples x points x latents drawn together: 134 MB a copy, a dozen copies at the peak
def parse(argv=None):
    p = Parser(description="Reconstruct the test runs of one subject, and score them.")
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py (default: out/ckpt.pt)")
    add("--data", type=named, help="prepared subject (default: the one trained on)")
    add("--out", help="folder for results (default: the checkpoint's)")
    add("--interrecon", action="store_true", help="complete what was not observed, by null-space sampling")
    add("--gap", type=int, help="every gap-th of --frames frames is observed (default: 2, or none with --observe)")
    add("--anchors", help="observed ones of every --frames frames, in place of --gap, such as 0,9")
    add("--observe", help="a region, or boolean mask.npy [V] or [frames,V]; row 0: a test stretch's first frame")
    add("--no-null-space", action="store_true", help="leave the projection out: what the EEG alone says")
    add("--projection", choices=["weighted", "plain"], default="weighted",
        help="by the latents' covariance in time (weighted, the default), or the paper's")
    add("--frames", type=int, help="period of --gap and --anchors, and frames a scored window (default: as trained)")
    add("--window", type=int, help="frames that the model sees at a time (default: the most that it was trained on)")
    add("--overlap", type=int, help="frames that neighbouring windows share; 0: independent windows (default: half)")
    add("--upsample", type=int, default=1, help="points a frame: 2 for the BOLD every half TR (default: 1)")
    add("--samples", type=int, default=8, help="samples averaged (default: 8); even numbers come as opposite pairs")
    add("--calibrate", action="store_true", help="fit a scale for the samples' spread on the validation run")
    add("--steps", type=int, default=50, help="network calls a sample (default: 50); lower it if time runs out")
    add("--eta", type=float, default=0.0, help="0: DDIM (default); 1: the noise of DDPM")
    add("--batch-size", type=int, default=16, help="windows at a time (default: 16); lower it if memory runs out")
    add("--seed", type=int, default=0, help="of the noise and of the shuffled EEG (default: 0)")
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    add("--plot", action="store_true", help="draw plot.png, vertices by time (needs matplotlib)")
    add("--surfaces", nargs=2, metavar=("LEFT", "RIGHT"), help="two .surf.gii: draw surfaces.png, maps of the cortex")
    add("--debug", action="store_true", help="show where an error came from")
    a = p.parse_args(argv)
    if a.interrecon and a.gap is None and not (a.anchors or a.observe):
        a.gap = 2
    a.interrecon = a.interrecon or any(flag is not None for flag in (a.gap, a.anchors, a.observe))
    check_sampling(a)
    return a

def load(path, device):
    """(checkpoint dict, model, autoencoder, normaliser) of the file that train.py wrote."""
    ckpt = files.load_checkpoint(
        path, device, "config.samples", "model", "autoencoder.E", "normaliser.mean", "subject", "checksums",
        "settings.frames", "settings.vary", "settings.context", "settings.no_validation")
    with files.this_version(path):
        model = NeuroFrames(**ckpt["config"]).to(device).eval()
        model.load_state_dict(ckpt["model"])
        model.dit.forward = machine.fast_products(model.dit.width)(model.dit.forward)
        E = ckpt["autoencoder"]["E"]  # [d,V]
        autoencoder = LinearAutoencoder(*E.shape[::-1], joint="D" in ckpt["autoencoder"]).to(device)
        autoencoder.load_state_dict(ckpt["autoencoder"])
        return ckpt, model, autoencoder, data.Normaliser(**{k: v.cpu() for k, v in ckpt["normaliser"].items()})

def observed_rows(a, K, subject, valid):
    """bool [P,V]: which vertices are observed; frame k of a stretch has row k mod P. valid [V]: those that vary."""
    V, seen, rows = subject.fmri.shape[1], [], np.zeros((1, subject.fmri.shape[1]), bool)
    if a.observe:
        if a.observe not in subject.rois and not os.path.exists(a.observe):
            fail(f"--observe {a.observe}: neither a file nor a region of {subject.folder}: "
                 f"{', '.join(subject.rois) or 'it has none (data.py --parcels)'}")
        mask = subject.rois.get(a.observe)
        rows = np.atleast_2d(files.load_npy(a.observe, 1, 2, kinds="b") if mask is None else mask)
        if rows.shape[1] != V:
            fail(f"--observe {a.observe}: has shape {rows.shape}; expected [{V}] or [frames, {V}]")
    if a.gap or a.anchors:
        seen = sorted({int(k) for k in a.anchors.split(",")}) if a.anchors else range(0, K, a.gap)
        if (a.gap or 0) > K or seen[-1] >= K or len(seen) == K:
            fail(f"--gap {a.gap}, --anchors {a.anchors}: expected some, not all, of frames 0 to {K - 1} (--frames {K})")
        rows = np.tile(rows, (math.lcm(K, len(rows)) // len(rows), 1))
    rows = rows | np.isin(np.arange(len(rows)) % K, seen)[:, None]
    if a.interrecon and (rows[:, valid].all() or not rows[:, valid].any()):
        fail(f"--observe {a.observe}, --gap {a.gap}, --anchors {a.anchors}: all or nothing would be observed; expected "
             "some, such as --anchors 0,9")
    return rows

# ---- Scores ----------------------------------------------------------------------------
def frame_scores(x_hat, x):
    """MSE, Pearson r and cosine over vertices, [...,V] -> [...,3] in float64. A flat frame has r = cos = 0."""
    x_hat, x = x_hat.double(), x.double()
    def cosine(u, v):
        norm = (u.square().sum(-1) * v.square().sum(-1)).sqrt()
        return torch.where(norm > 0, (u * v).sum(-1) / norm.clamp(min=1e-300), torch.zeros_like(norm))
    r = cosine(x_hat - x_hat.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True))
    return torch.stack([(x_hat - x).square().mean(-1), r, cosine(x_hat, x)], -1)

class Scores:
    """Collects frame scores [frames,3] a window, for every method and region, of vertices that were not observed."""
    def __init__(self, regions, rows):
        self.windows, self.index = {}, [
            {name: torch.from_numpy(np.flatnonzero(mask & ~row)) for name, mask in regions.items()} for row in rows]

    def add(self, method, x_hat, x, row_of):
        """One window's frames x_hat, x [frames,V], which were observed through rows row_of [frames]."""
        found = {}
        for row in np.unique(row_of):
            guess, truth = x_hat[row_of == row], x[row_of == row]
            for region, index in self.index[row].items():
                if len(index):
                    found.setdefault(region, []).append(frame_scores(guess[:, index], truth[:, index]).numpy())
        for region, s in found.items():
            self.windows.setdefault(method, {}).setdefault(region, []).append(np.concatenate(s))

    def summary(self):
        """{method: {region: {metric: {mean over frames, std over windows}}}}"""
        return {method: {region: {metric: {"mean": float(np.concatenate(w)[:, i].mean()),
                                           "std": float(np.std([s[:, i].mean() for s in w]))}
                                  for i, metric in enumerate(METRICS)} for region, w in regions.items()}
                for method, regions in self.windows.items()}

def linear_interpolation(seen, times, fetch):
    """Frames [k,V] at `times`, on straight lines between those at times `seen`, or the nearest; 0 if there are none."""
    if not len(seen):
        return 0 * fetch(times)
    weight = np.stack([np.interp(times, seen, e) for e in np.eye(len(seen))], 1)                    # [k,O]
    near = weight.any(0)
    return torch.from_numpy(weight[:, near]).float() @ fetch(seen[near])

def calibration(error, std):
    """Is the truth as far from the mean as the spread says? For errors [m] and the deviations [m] claimed for them,
    sums [6] of: in the central 50 and 90% of a normal, its CRPS (Gneiting and Raftery 2007), std^2, error^2, 1."""
    error, std = error.double().abs(), std.double().clamp(min=1e-12)
    w = error / std
    crps = std * (w * torch.erf(w / 2**0.5) + (torch.exp(-0.5 * w**2) * 2**0.5 - 1) / math.pi**0.5)
    return np.array([u.sum().item() for u in (w < 0.67449, w < 1.64485, crps, std**2, error**2, torch.ones_like(w))])

def calibration_summary(s):
    return {"coverage_50": s[0] / s[5], "coverage_90": s[1] / s[5], "crps": s[2] / s[5],
            "spread_to_error": (s[3] / s[4]) ** 0.5}

# ---- Whole runs from windows -----------------------------------------------------------
def encode_eeg(model, subject, normaliser, segments, upsample, device, block=64):
    """EEG tokens [T,upsample,d_e] of the segments' frames, those of one frame cut TR / upsample apart."""
    W, tokens = subject.eeg.shape[-1], []
    for low, high in segments:
        for i in range(low, high, block):  # with two windows on each side, for encoders that look at neighbours
            index = np.clip(np.arange(i - 2, min(i + block, high) + 3), low, high - 1)
            eeg = torch.from_numpy(normaliser.eeg(subject.eeg[index]))[None].to(device)  # [1,L+1,C,W]
            cut = [data.shift_windows(eeg, round(j * W / upsample)) for j in range(upsample)]
            tokens.append(torch.stack([model.encoder(e)[0, 2:-2] for e in cut], 1))
    return torch.cat(tokens)

class Windows:
    """A stretch of T frames, u points each, denoised as a whole by a model that sees K frames at a time: at each step
    each window answers for its part, and overlapping answers are averaged (MultiDiffusion; Bar-Tal et al. 2023)."""
    def __init__(self, T, K, overlap, u=1):
        tiles = data.tile([(0, T)], K, overlap)
        self.start, self.K, self.T, self.u = torch.tensor([w[0] for w in tiles]), tiles[0][1], T, u
        self.index = self.start[:, None] * u + torch.arange(self.K * u)                     # [n,Ku]
        ramp = torch.arange(1.0, self.K * u + 1)
        self.fade = torch.minimum(ramp, ramp.flip(0))[:, None] ** 2                         # it knows its middle best
        self.weight = torch.zeros(T * u, 1).index_add_(0, self.index.flatten(), self.fade.repeat(len(tiles), 1))

    def blend(self, parts):  # [B,n,Ku,d] -> [B,Tu,d]
        whole = parts.new_zeros(len(parts), self.T * self.u, parts.shape[-1])
        whole.index_add_(1, self.index.flatten().to(parts.device), (parts * self.fade.to(parts)).flatten(1, 2))
        return whole / self.weight.to(parts)

    def eps_model(self, model, h, context, samples, batch_size):
        """(z_n [SB,Tu,d], n) -> eps, from EEG tokens h [B,T,u,d_e] of B stretches; see NeuroFrames.eps_model."""
        e = (self.start[:, None] + torch.arange(-context, self.K + context)).clamp(0, self.T - 1)   # [n,L]
        times = (e - self.start[:, None]).float().repeat(len(h), 1).to(h.device)                    # [Bn,L]
        tokens = h[:, e.to(h.device)].transpose(2, 3).flatten(0, 1)                                 # [Bn,u,L,d_e]
        modulations = functools.lru_cache(1)(lambda n: model.dit.modulations(torch.tensor([n], device=h.device)))
        batch_size = min(batch_size, math.ceil(len(tokens) / machine.WORLD))  # torchrun's processes share the windows
        models = [model.eps_model(*c, self.K, modulations) if i % machine.WORLD == machine.RANK else None
                  for i, c in enumerate(zip(tokens.split(batch_size), times.split(batch_size)))]
        def eps(z_n, n):
            parts = z_n[:, self.index].unflatten(0, (samples, -1)).flatten(1, 2).split(batch_size, 1)  # [S,<=Bn,Ku,d]
            out = [f(part.flatten(0, 1), n).unflatten(0, (samples, -1)) if f else 0 * part
                   for f, part in zip(models, parts)]
            return machine.summed(self.blend(torch.cat(out, 1).unflatten(1, (len(h), -1)).flatten(0, 1)))  # [SB,Tu,d]
        return eps

    def projection(self, observation, prior, kinds, y):
        """Observation's (z0 [SB,Tu,d], abar) -> z0 for stretches of y [B,T,d], kinds [T]; None if nothing was seen."""
        if set(kinds) == {-1}:
            return None
        kinds, known, alike = np.repeat(kinds, self.u), y.repeat_interleave(self.u, 1), {}          # [B,Tu,d]
        kinds[np.arange(len(kinds)) % self.u != 0] = -1  # points between frames are never observed
        for i, index in enumerate(self.index):
            alike.setdefault(tuple(kinds[index.numpy()].tolist()), []).append(i)
        points = torch.arange(self.K * self.u) / self.u
        projections = {kind: observation.projection(kind, prior, points) for kind in alike}
        def project(z0, abar):
            parts = z0[:, self.index]                                                               # [SB,n,Ku,d]
            for kind, i in alike.items():  # windows that were observed in the same way
                held = known[:, self.index[i]].repeat(len(z0) // len(y), 1, 1, 1).flatten(0, 1)
                parts[:, i] = projections[kind](parts[:, i].flatten(0, 1), held, abar).unflatten(0, (len(z0), -1))
            return self.blend(parts)                                                                # [SB,Tu,d]
        return project

# ---- The run ---------------------------------------------------------------------------
@script
def main(argv=None, also=lambda method, k, x_hat: None):
    """also: gets every method's test frames, x_hat [k,V] in z-scores at places k (for benchmarks with other scores)."""
    a, began = parse(argv), time.time()
    device = machine.pick_device(a.device)
    out = os.path.join(a.out or os.path.dirname(a.ckpt) or ".", "interrecon" if a.interrecon else "direct")
    with machine.memory_advice(device, a, "batch_size", "samples"), files.whole(out) as partial:
        told = reconstruct(a, device, partial, also, began)
    if told:
        show.report(*told)  # once the result is in its place
    machine.say(f"wrote {out} in {time.time() - began:.1f} s")
    machine.part()

@torch.no_grad()
def reconstruct(a, device, out, also, began):
    """Draw, score and write the test frames into the folder `out`. (Of torchrun's processes all draw, one writes.)"""
    leader = machine.RANK == 0
    ckpt, model, autoencoder, normaliser = load(a.ckpt, device)
    subject = data.Subject(a.data or ckpt["subject"])
    check_fits(subject, ckpt, a.ckpt)
    surfaces = show.Surfaces(a.surfaces, subject.space, subject.folder) if a.surfaces else None
    if a.plot:
        show.pyplot()  # if it is missing, say so now and not at the end
    V, d, S, u, settings = subject.fmri.shape[1], autoencoder.latent_dim, a.samples, a.upsample, ckpt["settings"]
    K, window = a.frames or settings["frames"], a.window or settings["frames"] * (3 if settings["vary"] else 1)
    overlap = window // 2 if a.overlap is None else a.overlap
    if not 0 <= overlap < window:
        fail(f"--overlap {overlap}: expected 0 to {window - 1}, less than --window")
    if u > 1 and model.prior is None:
        fail(f"--upsample {u}: needs a model trained with --prior gaussian")
    splits = {s: subject.segments(s, not settings["no_validation"]) for s in ("train", "val", "test")}
    if not splits["test"] or a.calibrate and not splits["val"]:
        fail(f"{subject.folder}: its split leaves no test frames, or no validation frames for --calibrate; prepare it "
             "from two runs or more (four for --calibrate)")
    rows, of_frame = np.unique(observed_rows(a, K, subject, normaliser.valid), axis=0, return_inverse=True)
    held = a.interrecon and not a.no_null_space

    # ---- what training frames say: what latents leave out, the covariance of latents in time
    fetch = lambda frames: torch.from_numpy(normaliser.zscore(subject.fmri[frames]))  # noqa: E731    [k,V]
    index = np.concatenate([np.arange(low, high) for low, high in splits["train"]])
    few = fetch(index[:: math.ceil(len(index) / 512)]).to(device)                                   # [n <= 512,V]
    left_out = (few - autoencoder.decode(autoencoder.encode(few))).square().mean(0).cpu()           # [V]
    observation = Observation(autoencoder, torch.from_numpy(rows).to(device), few)
    gaussian = model.prior or GaussianPrior(d)
    if a.interrecon and model.prior is None:  # the control, and the weights of the projection
        gaussian.fit([torch.cat([autoencoder.encode(fetch(slice(i, min(i + 256, high))).to(device)).cpu()
                                 for i in range(low, high, 256)]) for low, high in splits["train"]])
    prior, generator = gaussian if a.projection == "weighted" else None, torch.Generator().manual_seed(a.seed)
    def draw(name, stretches, y, kinds, h):
        """z [S,k,u,d] of a few stretches of frames, from EEG tokens h [T,u,d_e]; without EEG the Gaussian conditional
        mean. y [T,d] and kinds [T]: what was observed of each frame, see Observation."""
        S, begin = 1 if h is None else a.samples, stretches[0][0]
        lengths = sorted({high - low for low, high in stretches})
        bar = tqdm(total=len(lengths) * a.steps, desc=name, unit="step", disable=h is None or not leader)
        z = torch.zeros(S, stretches[-1][1] - begin, u, d)
        for T in lengths:  # stretches of one length go together: all are observed alike from their first frame on
            k = torch.tensor([low for low, high in stretches if high - low == T])[:, None] + torch.arange(T)  # [B,T]
            w, shape = Windows(T, window, overlap, u), (S * len(k), T * u, d)
            project = w.projection(observation, gaussian if h is None else prior, kinds[k[0].numpy()], y[k].to(device))
            if h is None:
                made = (project or (lambda z0, abar: z0))(torch.zeros(shape, device=device), 0.0)  # abar 0: E[z | y]
            else:
                network = w.eps_model(model, h[k.to(device)], settings["context"], S, a.batch_size)
                made = sample(lambda z_n, n: (network(z_n, n), bar.update())[0], shape, model.schedule, a.steps, a.eta,
                              reuse_eps=prior is None, generator=generator, project=project, antithetic=S % 2 == 0,
                              device=device)
            z[:, k - begin] = made.cpu().view(S, len(k), T, u, d)
        bar.close()
        return z

    T, path_of = sum(high - low for low, high in splits["test"]), lambda name: os.path.join(out, name)
    points = {"recon": u, "truth": 1, "std": u} if S > 1 else {"recon": u, "truth": 1}              # a frame
    writers = {k: files.NpyWriter(path_of(f"{k}.npy"), (n * T, V)) for k, n in points.items()} if leader else {}
    scores = Scores({"whole": normaliser.valid, **{k: m & normaliser.valid for k, m in subject.rois.items()}}, rows)
    residual, before, spread, scale = 0.0, [], {}, None
    for split in ["val"] * a.calibrate + ["test"]:
        # ---- frames t [T] of the split, the row p [T] of `rows` of each, A^T y [T,d]; kinds: p, or -1 (hidden: all -1)
        ends = np.cumsum([high - low for low, high in splits[split]])
        stretches = [(int(end) - high + low, int(end)) for end, (low, high) in zip(ends, splits[split])]
        t = np.concatenate([np.arange(low, high) for low, high in splits[split]])
        p = np.concatenate([of_frame.ravel()[np.arange(high - low) % len(of_frame)] for low, high in stretches])
        blocks = [np.arange(i, min(i + K, high)) for low, high in stretches for i in range(low, high, K)]
        y, kinds, hidden = torch.zeros(len(t), d), np.where(rows.any(1)[p], p, -1), np.full(len(t), -1)
        for k in blocks if a.interrecon else []:
            x = fetch(t[k]).to(device)
            for row in set(p[k]):
                y[k[p[k] == row]] = observation.latents(x[p[k] == row], row).cpu()

        # ---- latents of whole runs, a few at a time: memory is that of the longest, however many there are
        h = encode_eeg(model, subject, normaliser, splits[split], u, device)
        # Shuffled EEG: each block of K frames gets another's, along one random cycle; only an only one keeps its own.
        cycle, donor = np.random.default_rng(a.seed).permutation(len(blocks)), np.empty(len(blocks), int)
        donor[cycle] = np.roll(cycle, 1)
        other = h[np.concatenate([np.resize(blocks[j], len(k)) for j, k in zip(donor, blocks)])]
        each = S * u * d * max(high - low for low, high in stretches) * window // (window - overlap)
        count = max(1, LATENTS_AT_ONCE // each)  # stretches
        for group in (stretches[i: i + count] for i in range(0, len(stretches), count)):
            z, begin = {"neuroframes": draw(f"{split} runs", group, y, kinds if held else hidden, h)}, group[0][0]
            if split == "test":
                z["shuffled_eeg"] = draw("shuffled EEG", group, y, kinds if held else hidden, other)
                if a.interrecon:
                    z["gaussian"] = draw("", group, y, kinds, None)
                if held:
                    z["no_null_space"] = draw("no null space", group, y, hidden, h)

            # ---- frames, a block of K at a time: decoded, projected in vertex space, scored, and written
            inside = [k for k in blocks if begin <= k[0] < group[-1][1]] if leader else []
            for k in tqdm(inside, desc="scores", unit="window", disable=split == "val" or not leader):
                x, seen, done = fetch(t[k]), torch.from_numpy(rows[p[k]]), {}                           # [k,V]
                free = ~seen & torch.from_numpy(normaliser.valid)
                for method, latents in z.items():  # of controls only the mean is scored, and D is linear: decode one
                    latents = latents if method == "neuroframes" else latents.mean(0, keepdim=True)     # [S,T,u,d]
                    frames = autoencoder.decode(latents[:, k - begin].to(device)).cpu()                 # [S,k,u,V]
                    # Opposite pairs have their mean in the middle: no degree of freedom is lost to it.
                    std = frames.std(0, correction=S % 2) if len(frames) > 1 else 0 * frames[0]
                    done[method] = [frames.mean(0), std, frames[0]]                                     # [k,u,V] each
                    if held and method == "neuroframes" and seen.any():
                        before.append((done[method][0][:, 0] - x)[seen].square().mean().item())
                    if held and method in ("neuroframes", "shuffled_eeg"):
                        # Latents that agree decode to D z, not x: project mean, std (0 there) and first sample.
                        for guess, known in zip(done[method], (x, 0 * x, x)):
                            guess[:, 0] = range_null_projection(guess[:, 0], known, seen)
                mean, std, first = done["neuroframes"]
                if S > 1:
                    wider = (std[:, 0] ** 2 + left_out).sqrt()[free]
                    claims = {"samples": std[:, 0][free], "and what latents leave out": wider}
                    claims |= {f"times {scale:.2f}, from the validation run": scale * wider} if scale else {}
                    for name, claim in claims.items():
                        spread[name] = spread.get(name, 0) + calibration((mean[:, 0] - x)[free], claim)
                if split == "val":
                    continue
                for name, array in (("recon", mean), ("truth", x), ("std", std))[:len(writers)]:
                    writers[name].add(array.reshape(-1, V))
                residual = max(residual, float((mean[:, 0] - x)[seen].abs().max()) if held and seen.any() else 0.0)
                guesses = {"mean_frame": 0 * x, "neuroframes_1": first[:, 0]}
                guesses |= {method: of_mean[:, 0] for method, (of_mean, _, _) in done.items()}
                if a.interrecon and rows.all(1).any():  # between frames that were seen whole
                    low, high = next(s for s in stretches if s[0] <= k[0] < s[1])
                    anchors = low + np.flatnonzero(rows.all(1)[p[low:high]])
                    guesses["linear"] = linear_interpolation(anchors, k, lambda k: fetch(t[k]))
                if subject.driven is not None:
                    guesses["ceiling"] = torch.from_numpy(normaliser.zscore(subject.driven[t[k]]))
                for method, guess in guesses.items():
                    scores.add(method, guess, x, p[k])
                    also(method, k, guess)
        if split == "val" and leader:
            scale, spread, before = 1 / calibration_summary(list(spread.values())[-1])["spread_to_error"], {}, []
    if not leader:
        return

    # ---- files and pictures
    for writer in writers.values():
        writer.close()
    with files.writing(path_of("frames.npy")):
        np.save(path_of("frames.npy"), t if u == 1 else (t[:, None] + np.arange(u) / u).ravel())
    recon, truth, std = (np.load(path_of(f"{name}.npy"), mmap_mode="r") if name in writers else None
                         for name in ("recon", "truth", "std"))
    for (low, high), (lo, hi) in zip(stretches, splits["test"]) if subject.space is not None else ():
        run, begin = subject.when(lo)  # a file for each stretch: a series has one start time, and cannot skip frames
        name = "recon" + (f"_run-{run}_frame-{lo}" if len(stretches) > 1 else "") + ".dtseries.nii"
        x = normaliser.raw(recon[low * u: high * u])
        data.save_dtseries(path_of(name), x, subject.space, subject.tr / u, begin)
    summary = scores.summary()
    asked = {k: getattr(a, k) for k in ("gap", "anchors", "observe", "projection", "steps", "eta", "samples", "seed")}
    metrics = {"mode": "interrecon" if a.interrecon else "direct", "frames": K, **asked, "null_space": held,
               "window": window, "overlap": overlap, "upsample": u, "test_frames": len(t),
               "scores": {m: s for m, s in summary.items() if m != "ceiling"},
               "anchor_residual": residual if before else None, "seconds": round(time.time() - began, 1),
               "residual_before": float(np.mean(before)) ** 0.5 if before else None,
               "calibration": {name: calibration_summary(s) for name, s in spread.items()}}
    if "ceiling" in summary:
        metrics["ceiling"] = {region: {m: v["mean"] for m, v in s.items()} for region, s in summary["ceiling"].items()}
    with files.writing(path_of("metrics.json")), open(path_of("metrics.json"), "w") as f:
        json.dump(metrics, f, indent=1)
    title = f"{metrics['mode']}, " + (f"mean of {S} samples" if S > 1 else "one sample")
    recon, std = recon[::u], None if std is None else std[::u]  # the points that have a truth
    if a.plot:
        show.carpet(path_of("plot.png"), truth, recon, std, title)
    if surfaces:
        surfaces.draw_median(path_of("surfaces.png"), truth, recon, std, np.flatnonzero(~rows.all(1)[p]), t, title)
    return metrics, summary, scores

if __name__ == "__main__":
    main()
