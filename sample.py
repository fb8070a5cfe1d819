"""What does a trained model do, and how good is it?

    python sample.py                       the test runs, frame by frame, from EEG alone (direct)
    python sample.py --interrecon          the missing frames between observed ones (--gap 2)
    python sample.py --observe visual      what the rest of the brain does, given one region of it

Writes OUT/direct/ or OUT/interrecon/: recon.npy [T_test,V] and truth.npy in z-scores, frames.npy (times in
frames), std.npy (over samples), metrics.json, and recon.dtseries.nii in original units where the subject
has a space. Every score stands beside its controls, and what was observed is never scored.
"""
import argparse
import glob
import json
import math
import os
import time

import numpy as np
import torch
from tqdm import tqdm

import data
from neuroframes import GaussianPrior, LinearAutoencoder, NeuroFrames, Observation, range_null_projection, sample

METRICS = ("mse", "r", "cos")


def parse():
    p = argparse.ArgumentParser(description="Reconstruct the test runs.",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py")
    add("--data", help="prepared subject (default: the one trained on)")
    add("--out", help="folder for results (default: the checkpoint's)")
    add("--interrecon", action="store_true", help="complete what was not observed, by null-space sampling")
    add("--gap", type=int, help="every gap-th of --frames frames is observed (default: 2, or none with --observe)")
    add("--anchors", help="observed ones of every --frames frames, in place of --gap, such as 0,9")
    add("--observe", help="vertices observed in every frame: a region, or a boolean mask.npy, [V] or [frames,V]; a mask "
                          "of fewer frames is repeated. Implies --interrecon")
    add("--no-null-space", action="store_true", help="leave the projection out: what the EEG alone says")
    add("--projection", choices=["weighted", "plain"], default="weighted",
        help="pseudo-inverse weighted by the Gaussian prior, where the model has one; or the paper's")
    add("--frames", type=int, help="period of --gap and --anchors, and frames a scored window (default: as trained)")
    add("--window", type=int, help="frames that the model sees at a time (default: the most that it was trained on)")
    add("--overlap", type=int, help="frames that neighbouring windows share; 0: independent windows (default: half)")
    add("--stitch", choices=["blend", "anchors", "average"], default="blend", help="how windows become a whole run")
    add("--upsample", type=int, default=1, help="points a frame: 2 for the BOLD every half TR")
    add("--samples", type=int, default=8, help="samples averaged; an even number is drawn as pairs of opposite noise")
    add("--calibrate", action="store_true", help="fit a scale for the samples' spread on the validation run")
    add("--steps", type=int, default=50, help="network calls a sample; lower it if time runs out")
    add("--eta", type=float, default=0.0, help="0: DDIM; 1: the noise of DDPM")
    add("--batch-size", type=int, default=16, help="windows at a time; lower it if memory runs out")
    add("--seed", type=int, default=0, help="of the noise and of the shuffled EEG")
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    add("--plot", action="store_true", help="draw plot.png (needs matplotlib)")
    a = p.parse_args()
    a.interrecon = a.interrecon or a.observe is not None
    if a.interrecon and a.gap is None and not (a.anchors or a.observe):
        a.gap = 2
    if a.gap is not None and a.gap < 1 or a.upsample < 1:
        data.fail(f"--gap {a.gap}, --upsample {a.upsample}: expected 1 or more")
    if a.calibrate and a.samples < 2:
        data.fail(f"--calibrate with --samples {a.samples}: one sample has no spread; expected 2 or more")
    return a


# ---- Loading ---------------------------------------------------------------------------

def load(path, device):
    """(checkpoint dict, model, autoencoder, normaliser). Plain tensors and values only: no pickled code is run."""
    if not os.path.exists(path):
        data.fail(f"{path}: no such checkpoint; train one first (python train.py), or name it with --ckpt")
    ckpt = torch.load(path, map_location=device, weights_only=True)
    model = NeuroFrames(**ckpt["config"]).to(device).eval()
    model.load_state_dict(ckpt["model"])
    latent_dim, vertices = ckpt["autoencoder"]["E"].shape
    autoencoder = LinearAutoencoder(vertices, latent_dim, joint="D" in ckpt["autoencoder"]).to(device)
    autoencoder.load_state_dict(ckpt["autoencoder"])
    return ckpt, model, autoencoder, data.Normaliser(**{k: v.cpu() for k, v in ckpt["normaliser"].items()})


def observed_rows(a, K, subject):
    """bool [P,V]: which vertices are observed. Frame k of a stretch has row k mod P."""
    V, seen = subject.fmri.shape[1], []
    rows = np.zeros((1, V), bool)
    if a.observe:
        if a.observe not in subject.rois and not os.path.exists(a.observe):
            data.fail(f"--observe {a.observe}: neither a file nor one of {subject.folder}'s regions, "
                      f"{', '.join(subject.rois) or 'of which it has none'}")
        rows = np.atleast_2d(subject.rois[a.observe] if a.observe in subject.rois else data.load_npy(a.observe))
        if rows.dtype != bool or rows.ndim != 2 or rows.shape[1] != V:
            data.fail(f"--observe {a.observe}: is {rows.dtype} {rows.shape}, expected bool [{V}] or [frames, {V}]")
    if a.gap or a.anchors:
        seen = sorted({int(k) for k in a.anchors.split(",")}) if a.anchors else range(0, K, a.gap)
        if not 0 <= seen[0] <= seen[-1] < K or len(seen) == K:
            data.fail(f"--gap {a.gap}, --anchors {a.anchors}: expected some, not all, of frames 0 to {K - 1}")
    rows = np.tile(rows, (math.lcm(K, len(rows)) // len(rows), 1)) if len(seen) else rows
    rows = rows | np.isin(np.arange(len(rows)) % K, seen)[:, None]
    if a.interrecon and (rows.all() or not rows.any()):
        data.fail(f"--observe {a.observe}: observes all or nothing; expected some vertices, not all")
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
    """Collects frame scores [frames,3] a window, for every method and region, of what was not observed."""

    def __init__(self, regions, rows):
        self.windows = {}
        self.index = [{name: torch.from_numpy(np.flatnonzero(mask & ~row)) for name, mask in regions.items()}
                      for row in rows]  # one dict a row

    def add(self, method, x_hat, x, row_of):
        """One window's frames x_hat, x [frames,V], which were observed through rows row_of [frames]."""
        found = {}
        for row in np.unique(row_of):
            here = torch.from_numpy(row_of == row)
            for region, index in self.index[row].items():
                if len(index):
                    s = frame_scores(x_hat[here][:, index], x[here][:, index]).numpy()
                    found.setdefault(region, []).append(s)
        for region, s in found.items():
            self.windows.setdefault(method, {}).setdefault(region, []).append(np.concatenate(s))

    def summary(self):
        """{method: {region: {metric: {mean over frames, std over windows}}}}"""
        def statistics(windows, i):
            return {"mean": float(np.concatenate(windows)[:, i].mean()),
                    "std": float(np.std([s[:, i].mean() for s in windows]))}
        return {method: {region: {m: statistics(w, i) for i, m in enumerate(METRICS)} for region, w in regions.items()}
                for method, regions in self.windows.items()}

    def wins(self, a, b, metric):
        """In how many windows does method a beat method b? (wins, windows), whole brain."""
        i, sign = METRICS.index(metric), -1 if metric == "mse" else 1
        pairs = zip(self.windows[a]["whole"], self.windows[b]["whole"])
        better = [sign * (u[:, i].mean() - v[:, i].mean()) > 0 for u, v in pairs]
        return sum(better), len(better)


class Calibration:
    """Is the truth as far from the mean as the spread says? Sums over values, for each kind of spread."""

    def __init__(self):
        self.sums, self.square = {}, np.zeros(2)

    def add(self, error, spreads):
        """Errors of the mean [m]; {name: standard deviation [m] that was claimed for them}."""
        error = error.double().abs()
        self.square += error.square().sum().item(), len(error)
        for name, std in spreads.items():
            std = std.double().clamp(min=1e-12)
            w = error / std
            # The continuous ranked probability score of N(0, std^2), in closed form (Gneiting and Raftery 2007).
            cdf, pdf = torch.special.ndtr(w), torch.exp(-0.5 * w**2) / math.sqrt(2 * math.pi)
            crps = std * (w * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi))
            found = [(w < 0.67449), (w < 1.64485), crps, std**2]  # the normal's central 50 and 90%
            self.sums[name] = self.sums.get(name, 0) + np.array([f.sum().item() for f in found])

    def summary(self):
        square, count = self.square
        return {name: {"coverage_50": s[0] / count, "coverage_90": s[1] / count, "crps": s[2] / count,
                       "spread_to_error": math.sqrt(s[3] / square)} for name, s in self.sums.items()}


def report(metrics, scores, scored):
    """The table on the terminal, and what it says in plain words."""
    n, inter, summary = metrics["samples"], metrics["mode"] == "interrecon", metrics["scores"]
    names = {"neuroframes": f"NeuroFrames, mean of {n}", "neuroframes_1": "NeuroFrames, one sample",
             "shuffled_eeg": f"  with shuffled EEG, mean of {n}",
             "no_null_space": f"  without null space, mean of {n}", "mean_frame": "mean training frame",
             "linear": "linear interpolation", "gaussian": "Gaussian conditional"}

    print(f"\n{metrics['mode']}: {scored:,} of {metrics['test_frames']:,} test frames scored, in windows of "
          f"{metrics['frames']}; {metrics['steps']} steps, eta {metrics['eta']:g}\n"
          "mean over frames +- standard deviation over windows, in z-scores")
    for region in next(iter(summary.values())):
        print(f"\n{region:34}{'MSE':>15}{'r':>17}{'cos':>17}")
        for method in [m for m in names if m in summary and region in summary[m]]:
            row = summary[method][region]
            print(f"{names[method]:34}" + "".join(f"{row[m]['mean']:10.3f} +- {row[m]['std']:.3f}" for m in METRICS))
        if "ceiling" in metrics:
            print(f"{'all that the EEG can tell':34}"
                  + "".join(f"{metrics['ceiling'][region][m]:10.3f}{'':9}" for m in METRICS).rstrip())
    if "calibration" in metrics:
        print(f"\n{'spread of ' + str(n) + ' samples':34}{'in 50%':>10}{'in 90%':>10}{'CRPS':>10}{'spread / error':>17}")
        for name, c in metrics["calibration"].items():
            print(f"{name:34}{c['coverage_50']:10.1%}{c['coverage_90']:10.1%}{c['crps']:10.3f}{c['spread_to_error']:17.2f}")
        name, c = list(metrics["calibration"].items())[-1]
        off = "too narrow" if c["coverage_90"] < 0.88 else "too wide" if c["coverage_90"] > 0.92 else "about right"
        print(f"Of the 90% intervals ({name}), {c['coverage_90']:.0%} hold the truth: they are {off}.")
    ours, shuffled = summary["neuroframes"]["whole"], summary["shuffled_eeg"]["whole"]
    wins, windows = scores.wins("neuroframes", "shuffled_eeg", "r")
    ceiling = f" of a possible {metrics['ceiling']['whole']['r']:.3f}" if "ceiling" in metrics and not inter else ""
    # Were both alike, wins would be a fair coin's, and n/2 + sqrt(n) two standard deviations more than half.
    helped = "The EEG helped" if wins > windows / 2 + windows**0.5 else (
        "The EEG did not help measurably" if windows > 4 else "Too few windows to tell whether the EEG helped")
    print(f"\n{helped}: r {ours['r']['mean']:.3f}{ceiling} with it, {shuffled['r']['mean']:.3f} with shuffled EEG "
          f"(better in {wins} of {windows} windows).", end=" ")
    if "no_null_space" in summary:
        mse = {m: summary[m]["whole"]["mse"]["mean"] for m in ("neuroframes", "no_null_space", "linear", "gaussian")}
        helped = "helped" if mse["neuroframes"] < mse["no_null_space"] else "did not help"
        rivals = ", ".join(f"{'beats' if mse['neuroframes'] < mse[m] else 'does not beat'} {name} ({mse[m]:.3f})"
                           for m, name in (("linear", "linear interpolation"), ("gaussian", "the Gaussian conditional")))
        print(f"The null space {helped}: MSE {mse['neuroframes']:.3f}, without it {mse['no_null_space']:.3f}; {rivals}; "
              f"anchor residual {metrics['anchor_residual']:g}, before the last projection "
              f"{metrics['residual_before']:.3f} (rms).", end="")
    print()


def linear_weights(seen, times):
    """Weights [len(times), len(seen)] of frames at times `seen`; held constant beyond the first and the last."""
    return np.stack([np.interp(times, seen, e) for e in np.eye(len(seen))], 1) if len(seen) else np.zeros((len(times), 0))


def linear_interpolation(fetch, rows, times, low, high):
    """x [len(times),V] of a stretch low..high, each vertex between the frames in which it was observed.
    fetch(frames, vertices) -> z-scores. Vertices never observed stay at their mean, 0."""
    patterns, which = np.unique(rows, axis=1, return_inverse=True)  # vertices observed at the same times
    x = torch.zeros(len(times), rows.shape[1])
    for i, pattern in enumerate(patterns.T):
        seen, vertices = low + np.flatnonzero(pattern[np.arange(high - low) % len(rows)]), np.flatnonzero(which.ravel() == i)
        weight = linear_weights(seen, times)
        used = weight.any(0)
        if used.any():
            x[:, vertices] = torch.from_numpy(weight[:, used]).float() @ fetch(seen[used], vertices)
    return x


# ---- Pictures --------------------------------------------------------------------------

def carpet(path, truth, recon, title):
    """Vertices by time, the way fMRI people look at a run: truth, reconstruction, error."""
    try:
        import matplotlib
    except ImportError:
        data.fail("--plot needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    frames, rows = min(len(truth), 150), np.linspace(0, truth.shape[1] - 1, min(truth.shape[1], 400)).astype(int)
    x, y = truth[:frames, rows], recon[:frames, rows]
    # Rows sorted by the leading spatial component, so that what moves together lies together.
    order = np.argsort(np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0])
    figure, axes = plt.subplots(3, 1, figsize=(9, 7), sharex=True, layout="constrained")
    for axis, picture, name in zip(axes, (x, y, y - x), ("truth", "reconstruction", "error")):
        shown = axis.imshow(picture[:, order].T, aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5,
                            interpolation="none")
        axis.set(ylabel=name, yticks=[])
    axes[-1].set_xlabel("test frame")
    axes[0].set_title(title)
    figure.colorbar(shown, ax=axes, label="z-score", shrink=0.5)
    figure.savefig(path, dpi=90)
    plt.close(figure)


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
    """A stretch of T frames, u points each, in windows of K frames that overlap."""

    def __init__(self, T, K, overlap, u=1):
        tiles = data.tile([(0, T)], K, overlap)
        self.start, self.length = torch.tensor([w[0] for w in tiles]), tiles[0][1]
        self.index = self.start[:, None] * u + torch.arange(self.length * u)  # [n,Ku]
        ramp = torch.arange(1.0, self.length * u + 1)
        self.fade = torch.minimum(ramp, ramp.flip(0))[:, None] ** 2           # [Ku,1] a frame counts most where it has
        self.weight = torch.zeros(T * u, 1).index_add_(                       # others on both sides
            0, self.index.flatten(), self.fade.repeat(len(tiles), 1))         # [Tu,1]

    def cut(self, z):
        return z[:, self.index]                                               # [B,Tu,d] -> [B,n,Ku,d]

    def blend(self, parts):
        """The inverse, [B,n,Ku,d] -> [B,Tu,d]: averages where windows overlap."""
        whole = parts.new_zeros(len(parts), len(self.weight), parts.shape[-1])
        whole.index_add_(1, self.index.flatten().to(parts.device), (parts * self.fade.to(parts)).flatten(1, 2))
        return whole / self.weight.to(parts)


def windowed_eps(model, w, h, context, S, batch_size):
    """The eps_model of whole stretches, from windows w of their EEG tokens h [B,T,u,d_e]; z_n [SB,Tu,d]."""
    B, T = h.shape[:2]
    e = (w.start[:, None] + torch.arange(-context, w.length + context)).clamp(0, T - 1)  # [n,L]
    times = (e - w.start[:, None]).float().repeat(B, 1).to(h.device)                     # [Bn,L]
    tokens = h[:, e.to(h.device)].transpose(2, 3).flatten(0, 1)                          # [Bn,u,L,d_e]
    chunks = [slice(i, i + batch_size) for i in range(0, len(tokens), batch_size)]
    models = [model.eps_model(tokens[c], times[c], w.length) for c in chunks]

    def eps(z_n, step):
        parts = w.cut(z_n).unflatten(0, (S, B)).flatten(1, 2)                            # [S,Bn,Ku,d]
        out = [f(parts[:, c].flatten(0, 1), step).unflatten(0, (S, -1)) for f, c in zip(models, chunks)]
        return w.blend(torch.cat(out, 1).unflatten(1, (B, -1)).flatten(0, 1))            # [SB,Tu,d]
    return eps


def windowed_projection(observation, prior, w, kinds, y, u=1):
    """Observation's projection of whole stretches, (z0 [SB,Tu,d], abar) -> z0, and None where nothing was
    observed. y [B,T,d] is what was, kinds [T] how."""
    kinds = [kinds[i // u] if i % u == 0 else "unseen" for i in range(len(w.weight))]
    if set(kinds) == {"unseen"}:
        return None
    known, alike = y.new_zeros(len(y), len(kinds), y.shape[-1]), {}
    known[:, ::u] = y
    for i, index in enumerate(w.index.tolist()):  # windows that were observed in the same way
        alike.setdefault(tuple(kinds[j] for j in index), []).append(i)
    parts_known, points = w.cut(known), torch.arange(w.index.shape[1]) / u               # [B,n,Ku,d], [Ku]
    projections = {kind: observation.projection(kind, prior, points) for kind in alike}

    def project(z0, abar):
        parts = w.cut(z0)                                                                # [SB,n,Ku,d]
        for kind, i in alike.items():
            held = parts_known[:, i].repeat(len(z0) // len(y), 1, 1, 1).flatten(0, 1)
            parts[:, i] = projections[kind](parts[:, i].flatten(0, 1), held, abar).unflatten(0, (len(z0), -1))
        return w.blend(parts)                                                            # [SB,Tu,d]
    return project


def seam(z, stretches, K, overlap):
    """Mean squared jump from frame to frame where windows begin, over that elsewhere: 1 when nothing shows.
    z [S,T,d] at the scale of the vertices."""
    jump = z.diff(dim=1).square().sum(-1).mean(0).numpy()                                # [T-1]
    inside, border = np.ones(len(jump), bool), np.zeros(len(jump), bool)
    for low, high in stretches:
        inside[low - 1: low] = False  # from one stretch to the next
        border[[w[0] - 1 for w in data.tile([(low, high)], K, overlap) if w[0] > low]] = True
    return float(jump[border].mean() / jump[inside & ~border].mean()) if border.any() else None


# ---- The run ---------------------------------------------------------------------------

def main():
    a = parse()
    device, began = data.pick_device(a.device), time.time()
    ckpt, model, autoencoder, normaliser = load(a.ckpt, device)
    subject = data.Subject(a.data or ckpt["subject"])
    if subject.meta["checksums"] != ckpt["checksums"]:
        print(f"note: {subject.folder} is not what this checkpoint was trained on; its test runs may not be unseen")
    V, d, S, u, settings = subject.fmri.shape[1], autoencoder.latent_dim, a.samples, a.upsample, ckpt["settings"]
    K = a.frames or settings["frames"]
    window = a.window or (3 if settings["vary"] else 1) * settings["frames"]
    overlap = window // 2 if a.overlap is None else a.overlap
    if not 0 <= overlap < window:
        data.fail(f"--overlap {overlap}: expected 0 or more, and less than --window {window}")
    if u > 1 and model.prior is None:
        data.fail(f"--upsample {u}: {a.ckpt} was trained with --prior none; points between frames need --prior gaussian")
    train = subject.segments("train", validation=not settings["no_validation"])
    segments = {"test": subject.segments("test")}
    if not segments["test"]:
        data.fail(f"{subject.folder}: no test frames; the split in subject.json leaves none")
    if a.calibrate:
        segments["val"] = subject.segments("val")
        if settings["no_validation"] or not segments["val"]:
            data.fail(f"--calibrate: {a.ckpt} left no validation run out of its training")
    mode = "interrecon" if a.interrecon else "direct"
    out = os.path.join(a.out or os.path.dirname(a.ckpt) or ".", mode)
    rows = observed_rows(a, K, subject)
    os.makedirs(out, exist_ok=True)
    for old in glob.glob(os.path.join(out, "recon*.dtseries.nii")) + glob.glob(os.path.join(out, "std.npy")):
        os.remove(old)  # of an earlier run, with other frames or samples

    # ---- what was observed, and what the Gaussian control knows
    def fetch(frames, vertices=slice(None)):
        x = np.asarray(subject.fmri[frames][:, vertices], np.float32)
        return torch.from_numpy((x - normaliser.mean[vertices]) * normaliser.inverse[vertices])
    index = np.concatenate([np.arange(low, high) for low, high in train])
    few = fetch(index[:: math.ceil(len(index) / 512)]).to(device)
    observation = Observation(autoencoder, torch.from_numpy(rows).to(device), few)
    with torch.no_grad():
        left_out = (few - autoencoder.decode(autoencoder.encode(few))).square().mean(0).cpu()  # [V]
        gaussian = model.prior or GaussianPrior(d)
        if a.interrecon and model.prior is None:
            gaussian.fit([torch.cat([autoencoder.encode(fetch(range(i, min(i + 256, high))).to(device)).cpu()
                                     for i in range(low, high, 256)]) for low, high in train])
    prior = model.prior if a.projection == "weighted" else None
    generator = torch.Generator().manual_seed(a.seed)

    def layout(split):
        """A split's frames one after another: t [T], stretches as rows of t, blocks of K rows that are scored
        together, the row of `rows` p [T] that each was observed through, its kind, and y [T,d]."""
        t, p = (np.concatenate(x) for x in zip(*((np.arange(lo, hi), np.arange(hi - lo) % len(rows)) for lo, hi in segments[split])))
        ends = np.cumsum([hi - lo for lo, hi in segments[split]])
        stretches = [(int(end) - hi + lo, int(end)) for end, (lo, hi) in zip(ends, segments[split])]
        blocks = [np.arange(i, min(i + K, hi)) for lo, hi in stretches for i in range(lo, hi, K)]
        y = torch.zeros(len(t), d)
        for k in blocks if rows.any() else []:
            x = fetch(t[k]).to(device)
            for row in np.unique(p[k]):
                y[k[p[k] == row]] = observation.latents(x[p[k] == row], observation.kinds[row]).cpu()
        return t, stretches, blocks, p, [observation.kinds[row] for row in p], y

    def reconstruct(name, stretches, y, kinds, h=None):
        """Latents [S,T,u,d] from EEG tokens h [T,u,d_e]; without them, [1,T,u,d], the Gaussian conditional mean."""
        groups = [[lo for lo, hi in stretches if hi - lo == length] for length in sorted({hi - lo for lo, hi in stretches})]
        ends, z = dict(stretches), torch.zeros(1 if h is None else S, len(y), u, d)
        with tqdm(total=len(groups) * a.steps, desc=name, unit="step", disable=h is None) as bar:
            for group in groups:  # stretches of one length go together
                T = ends[group[0]] - group[0]
                k, w = torch.tensor(group)[:, None] + torch.arange(T), Windows(T, window, overlap, u)
                project = windowed_projection(observation, gaussian if h is None else prior, w,
                                              kinds[group[0]: group[0] + T], y[k].to(device), u)
                if h is None:
                    z[:, k] = project(torch.zeros(len(k), T * u, d, device=device), 0.0).cpu().view(1, len(k), T, u, d)
                    continue
                network = windowed_eps(model, w, h[k.to(device)], settings["context"], S, a.batch_size)

                def eps(z_n, n):
                    bar.update()
                    return network(z_n, n)
                z[:, k] = sample(eps, (S * len(k), T * u, d), model.schedule, a.steps, a.eta, project=project,
                                 reuse_eps=prior is None, generator=generator, antithetic=S % 2 == 0,
                                 device=device).cpu().view(S, len(k), T, u, d)
        return z

    def finished(z, x, seen):
        """Decoded samples of a block [S,k,u,d] -> their first, mean and spread [k,u,V], and the mean before the
        last projection: latents that agree with what was seen decode to D A^T y, not to x."""
        each = autoencoder.decode(z.to(device)).cpu()
        # Opposite pairs have their mean in the middle: no degree of freedom is lost to it.
        std = each.std(0, correction=S % 2) if len(each) > 1 else torch.zeros_like(each[0])
        first, mean, raw = each[0], each.mean(0), each.mean(0)[:, 0].clone()
        for guess, known in ((first, x), (mean, x), (std, torch.zeros_like(x))):
            guess[:, 0] = range_null_projection(guess[:, 0], known, seen)
        return first, mean, std, raw

    def spreads(std, scale=None):
        """[k,V] -> what is claimed of the error's standard deviation."""
        predicted = (std.square() + left_out).sqrt()
        return {"samples": std, "+ what latents leave out": predicted,
                **({} if scale is None else {f"x {scale:.2f}, as on the validation run": scale * predicted})}

    with torch.no_grad():
        scale, valid = None, torch.from_numpy(normaliser.valid)
        if a.calibrate:
            t, stretches, blocks, p, kinds, y = layout("val")
            z = reconstruct("validation run", stretches, y, kinds, encode_eeg(model, subject, normaliser, segments["val"], u, device))
            calibration = Calibration()
            for k in blocks:
                x, seen = fetch(t[k]), torch.from_numpy(rows[p[k]])
                _, mean, std, _ = finished(z[:, k], x, seen)
                free = ~seen & valid
                calibration.add((mean[:, 0] - x)[free], {"": spreads(std[:, 0])["+ what latents leave out"][free]})
            scale = 1 / calibration.summary()[""]["spread_to_error"]
        t, stretches, blocks, p, kinds, y = layout("test")
        h, T = encode_eeg(model, subject, normaliser, segments["test"], u, device), len(t)
        # Shuffled EEG: each block of K frames gets another's, along one random cycle so that none keeps its own.
        cycle, donor = np.random.default_rng(a.seed).permutation(len(blocks)), np.empty(len(blocks), int)
        donor[cycle] = np.roll(cycle, 1)
        h_shuffled = h[torch.from_numpy(np.concatenate([blocks[j] for j in donor])).to(device)]
        if len(blocks) == 1:
            print("note: there is one test window, so that its shuffled EEG is its own; lower --frames")
        hidden = ["unseen"] * T
        held = hidden if a.no_null_space else kinds
        z = {"neuroframes": reconstruct("neuroframes", stretches, y, held, h),
             "shuffled_eeg": reconstruct("shuffled EEG", stretches, y, held, h_shuffled)}
        if a.interrecon:
            z["gaussian"] = reconstruct("", stretches, y, kinds)
            if not a.no_null_space:
                z["no_null_space"] = reconstruct("no null space", stretches, y, hidden, h)

    # ---- scores, a block of K frames at a time
    arrays = {name: np.lib.format.open_memmap(os.path.join(out, name + ".npy"), "w+", np.float32, (n, V))
              for name, n in [("recon", T * u), ("truth", T)] + [("std", T * u)] * (S > 1)}
    np.save(os.path.join(out, "frames.npy"), t if u == 1 else (t[:, None] + np.arange(u) / u).ravel())
    scores = Scores({"whole": normaliser.valid, **{k: m & normaliser.valid for k, m in subject.rois.items()}}, rows)
    calibration, residual, before, scored = Calibration(), 0.0, np.zeros(2), 0
    for k in tqdm(blocks, desc="scores", unit="window"):
        x, seen = fetch(t[k]), torch.from_numpy(rows[p[k]])
        low, high = next((lo, hi) for lo, hi in segments["test"] if lo <= t[k[0]] < hi)
        guesses = {"mean_frame": torch.zeros_like(x)}
        if a.interrecon:
            guesses["linear"] = linear_interpolation(fetch, rows, t[k], low, high)
        if subject.driven is not None:
            guesses["ceiling"] = torch.from_numpy(normaliser.zscore(subject.driven[t[k]]))
        for method in z:
            with torch.no_grad():
                project = method in ("neuroframes", "shuffled_eeg") and a.interrecon and not a.no_null_space
                first, mean, std, raw = finished(z[method][:, k], x, seen if project else torch.zeros_like(seen))
            guesses[method] = mean[:, 0]
            if method == "neuroframes":
                guesses["neuroframes_1"] = first[:, 0]
                at = (k[:, None] * u + np.arange(u)).ravel()
                arrays["recon"][at], arrays["truth"][k] = mean.flatten(0, 1), x
                if S > 1:
                    arrays["std"][at], free = std.flatten(0, 1), ~seen & valid
                    calibration.add((mean[:, 0] - x)[free], {n: s[free] for n, s in spreads(std[:, 0], scale).items()})
                if seen.any():
                    residual = max(residual, float((mean[:, 0] - x)[seen].abs().max()))
                    before += float((raw - x)[seen].square().sum()), float(seen.sum())
        scored += int((~seen & valid).any(1).sum())
        for method, guess in guesses.items():
            scores.add(method, guess, x, p[k])

    # ---- files
    for array in arrays.values():
        array.flush()
    if subject.space is not None:
        for (lo, hi), (first, last) in zip(segments["test"], stretches):  # one file a stretch: a series has one start time, and cannot skip frames
            run = next(i for i, (start, stop) in enumerate(subject.runs) if start <= lo < stop)
            begin = (subject.meta["first_volume"][run] + lo - subject.runs[run][0]) * subject.tr
            name = "recon" + (f"_run-{run + 1}_frame-{lo}" if len(stretches) > 1 else "") + ".dtseries.nii"
            data.save_dtseries(os.path.join(out, name), normaliser.raw(arrays["recon"][first * u: last * u]),
                               subject.space, subject.tr / u, begin)
    summary = scores.summary()
    ceiling = summary.pop("ceiling", None)
    metrics = {"mode": mode, "frames": K, "gap": a.gap, "anchors": a.anchors, "observe": a.observe,
               "null_space": a.interrecon and not a.no_null_space, "projection": "weighted" if prior else "plain",
               "window": window, "overlap": overlap, "upsample": u, "steps": a.steps, "eta": a.eta, "samples": S,
               "seed": a.seed, "test_frames": T, "scores": summary, "anchor_residual": residual if a.interrecon else None,
               "residual_before": math.sqrt(before[0] / before[1]) if before[1] else None, 
               "seam": seam(z["neuroframes"][:, :, 0] * autoencoder.latent_scale.cpu(), stretches, window, overlap),
               "seconds": round(time.time() - began, 1)}
    if S > 1:
        metrics["calibration"] = calibration.summary()
    if ceiling:
        metrics["ceiling"] = {region: {m: v["mean"] for m, v in s.items()} for region, s in ceiling.items()}
    with open(os.path.join(out, "metrics.json"), "w") as f:
        json.dump(metrics, f, indent=1)
    if a.plot:
        carpet(os.path.join(out, "plot.png"), arrays["truth"], arrays["recon"][::u], f"{mode}, {S} samples")
    report(metrics, scores, scored)
    print(f"wrote {out} in {metrics['seconds']} s")


if __name__ == "__main__":
    main()
