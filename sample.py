"""What does a trained model do, and how good is it?

    python sample.py                       the test runs, frame by frame, from EEG alone (direct)
    python sample.py --interrecon          the missing frames between observed ones (--gap 2)

Writes OUT/direct/ or OUT/interrecon/: recon.npy and truth.npy [T_test,V] in z-scores, frames.npy (their
frame indices), std.npy (over samples), metrics.json, and recon.dtseries.nii in original units where the
subject has a space. Every score stands beside its controls, and anchors are never scored.
"""
import argparse
import glob
import json
import os
import time

import numpy as np
import torch
from tqdm import tqdm

import data
from neuroframes import GaussianPrior, LinearAutoencoder, NeuroFrames, range_null_projection, sample

METRICS = ("mse", "r", "cos")


def parse():
    p = argparse.ArgumentParser(description="Reconstruct the test runs.",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = p.add_argument
    add("--ckpt", default="out/ckpt.pt", help="checkpoint of train.py")
    add("--data", help="prepared subject (default: the one trained on)")
    add("--out", help="folder for results (default: the checkpoint's)")
    add("--interrecon", action="store_true", help="complete frames between anchors by null-space sampling")
    add("--gap", type=int, default=2, help="every gap-th frame of a window is observed")
    add("--anchors", help="observed frames of each window instead of --gap, such as 0,9")
    add("--no-null-space", action="store_true", help="leave the projection out: what the EEG alone says")
    add("--projection", choices=["weighted", "plain"], default="weighted",
        help="pseudo-inverse weighted by the Gaussian prior, where the model has one; or the paper's")
    add("--frames", type=int, help="frames a window (default: as trained)")
    add("--samples", type=int, default=8, help="samples averaged; an even number is drawn as pairs of opposite noise")
    add("--steps", type=int, default=50, help="network calls a sample; lower it if time runs out")
    add("--eta", type=float, default=0.0, help="0: DDIM; 1: the noise of DDPM")
    add("--batch-size", type=int, default=16, help="windows at a time; lower it if memory runs out")
    add("--seed", type=int, default=0, help="of the noise and of the shuffled EEG")
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    add("--plot", action="store_true", help="draw plot.png (needs matplotlib)")
    a = p.parse_args()
    if not 1 <= a.gap:
        data.fail(f"--gap {a.gap}: expected 1 or more")
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
    """Collects frame scores [frames,3] a window, for every method and region."""

    def __init__(self, regions):
        self.regions = {name: torch.from_numpy(np.flatnonzero(mask)) for name, mask in regions.items() if mask.any()}
        self.windows = {}

    def add(self, method, x_hat, x):
        """One window's scored frames x_hat, x [frames,V]."""
        for region, index in self.regions.items():
            s = frame_scores(x_hat[:, index], x[:, index]).numpy()
            self.windows.setdefault(method, {}).setdefault(region, []).append(s)

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


def report(metrics, scores, scored):
    """The table on the terminal, and what it says in plain words."""
    n, inter, summary = metrics["samples"], metrics["mode"] == "interrecon", metrics["scores"]
    names = {"neuroframes": f"NeuroFrames, mean of {n}", "neuroframes_1": "NeuroFrames, one sample",
             "shuffled_eeg": f"  with shuffled EEG, mean of {n}",
             "no_null_space": f"  without null space, mean of {n}", "mean_frame": "mean training frame",
             "linear": "linear interpolation", "gaussian": "Gaussian conditional"}
    regions = list(next(iter(summary.values())))
    print(f"\n{metrics['mode']}: {scored:,} of {metrics['test_frames']:,} test frames scored, in windows of "
          f"{metrics['frames']}; {metrics['steps']} steps, eta {metrics['eta']:g}\n"
          "mean over frames +- standard deviation over windows, in z-scores")
    for region in regions:
        print(f"\n{region:34}{'MSE':>15}{'r':>17}{'cos':>17}")
        for method in [m for m in names if m in summary]:
            row = summary[method][region]
            print(f"{names[method]:34}" + "".join(f"{row[m]['mean']:10.3f} +- {row[m]['std']:.3f}" for m in METRICS))
        if "ceiling" in metrics:
            print(f"{'ridge on the true source power':34}"
                  + "".join(f"{metrics['ceiling'][region][m]:10.3f}{'':9}" for m in METRICS).rstrip())
    ours, shuffled = summary["neuroframes"]["whole"], summary["shuffled_eeg"]["whole"]
    wins, windows = scores.wins("neuroframes", "shuffled_eeg", "r")
    ceiling = f" of a possible {metrics['ceiling']['whole']['r']:.3f}" if "ceiling" in metrics and not inter else ""
    # Were both alike, wins would be a fair coin's, and n/2 + sqrt(n) two standard deviations more than half.
    helped = "The EEG helped" if wins > windows / 2 + windows**0.5 else (
        "The EEG did not help measurably" if windows > 4 else "Too few windows to tell whether the EEG helped")
    print(f"\n{helped}: r {ours['r']['mean']:.3f}{ceiling} with it, {shuffled['r']['mean']:.3f} with shuffled EEG "
          f"(better in {wins} of {windows} windows).", end=" ")
    if inter and "no_null_space" in summary:
        mse = {m: summary[m]["whole"]["mse"]["mean"] for m in ("neuroframes", "no_null_space", "linear", "gaussian")}
        helped = "helped" if mse["neuroframes"] < mse["no_null_space"] else "did not help"
        rivals = ", ".join(f"{'beats' if mse['neuroframes'] < mse[m] else 'does not beat'} {name} ({mse[m]:.3f})"
                           for m, name in (("linear", "linear interpolation"), ("gaussian", "the Gaussian conditional")))
        print(f"The null space {helped}: MSE {mse['neuroframes']:.3f}, without it {mse['no_null_space']:.3f}; {rivals}; "
              f"anchor residual {metrics['anchor_residual']:g}.", end="")
    print()


# ---- Controls --------------------------------------------------------------------------

def linear_interpolation(x, mask):
    """Missing frames of x [K,V] from the nearest observed ones; held constant beyond the first and last."""
    K, seen = len(x), np.flatnonzero(mask)
    weight = np.stack([np.interp(np.arange(K), seen, np.eye(len(seen))[i]) for i in range(len(seen))], 1)  # [K,O]
    return torch.from_numpy(weight).to(x.dtype) @ x[seen]


def gaussian_weights(prior, mask):
    """The Gaussian conditional mean as a linear map of observed frames, [d,K,O].

    Each latent is a stationary Gaussian process of its own: E[z | z_O] = C_.O C_OO^-1 z_O. It knows
    how quickly each component forgets, which linear interpolation does not, and no EEG.
    """
    times, seen = torch.arange(len(mask)), torch.from_numpy(np.flatnonzero(mask))
    C = prior.covariance(times, seen)                                              # [d,K,O]
    jitter = 1e-6 * prior.autocovariance[0].double().cpu()[:, None, None] * torch.eye(len(seen))  # [d,O,O]
    return torch.linalg.solve(C[:, seen] + jitter, C.transpose(1, 2)).transpose(1, 2).float()


def source_ceiling(subject, normaliser, train, frames):
    """x [T_test,V] by ridge from the true source power at lags -12..5 frames: what perfect EEG could give."""
    lags, power = np.arange(-12, 6), subject.sources

    def features(t):
        low, high = next((a, b) for a, b in subject.runs if a <= t[0] < b)
        return power[np.clip(t[:, None] + lags, low, high - 1)].reshape(len(t), -1)

    def runs_of(index):
        parts = [index[(index >= a) & (index < b)] for a, b in subject.runs]
        return [t for t in parts if len(t)]
    index = np.concatenate([np.arange(a, b) for a, b in train])
    X = np.concatenate([features(t) for t in runs_of(index)])
    Y = np.concatenate([normaliser.zscore(subject.fmri[a:b]) for a, b in train])
    centre = X.mean(0)
    penalty = 0.01 * len(X) * X.var() * np.eye(X.shape[1])  # lags of slow power are nearly collinear
    weights = np.linalg.solve((X - centre).T @ (X - centre) + penalty, (X - centre).T @ Y)
    return np.concatenate([(features(t) - centre) @ weights for t in runs_of(frames)]) + Y.mean(0)


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


# ---- The run ---------------------------------------------------------------------------

def main():
    a = parse()
    device, began = data.pick_device(a.device), time.time()
    ckpt, model, autoencoder, normaliser = load(a.ckpt, device)
    subject = data.Subject(a.data or ckpt["subject"])
    if subject.meta["checksums"] != ckpt["checksums"]:
        print(f"note: {subject.folder} is not what this checkpoint was trained on; its test runs may not be unseen")
    schedule, V = model.schedule, subject.fmri.shape[1]
    K = a.frames or ckpt["settings"]["frames"]
    train = subject.segments("train", validation=not ckpt["settings"]["no_validation"])
    test = subject.segments("test")
    windows = data.tile(test, K)
    if not windows:
        data.fail(f"{subject.folder}: no test frames; the split in subject.json leaves none")
    mode = "interrecon" if a.interrecon else "direct"
    out = os.path.join(a.out or os.path.dirname(a.ckpt) or ".", mode)
    os.makedirs(out, exist_ok=True)
    for old in glob.glob(os.path.join(out, "recon*.dtseries.nii")) + glob.glob(os.path.join(out, "std.npy")):
        os.remove(old)  # of an earlier run, with other frames or samples

    def observed(length):
        """bool [length]: which frames of a window are anchors."""
        mask = np.zeros(length, bool)
        if a.interrecon:
            seen = sorted({int(k) for k in a.anchors.split(",")}) if a.anchors else range(0, K, a.gap)
            if not 0 <= seen[0] <= seen[-1] < K or len(seen) == K:
                data.fail(f"--gap {a.gap}, --anchors {a.anchors}: expected some, not all, of frames 0 to {K - 1}")
            mask[[k for k in seen if k < length] or [0]] = True  # a short window may lack the later anchors
        return mask

    observed(K)  # so that wrong anchors fail before the work begins

    def generate(windows, eeg_windows, y, mask):
        """z [samples,B,K,d] for `windows`, given the EEG of `eeg_windows`."""
        B, K, S = len(windows), windows[0][1], a.samples
        _, index, positions = data.window_indices(eeg_windows, ckpt["settings"]["context"])
        eeg = torch.from_numpy(normaliser.eeg(subject.eeg[index])).to(device)  # [B,L,C,W]
        positions = torch.from_numpy(positions).to(device)
        h = model.encoder(eeg)  # once a window, whatever the number of samples
        eps = model.eps_model(h.repeat(S, 1, 1), eeg_positions=positions.repeat(S, 1))
        weighted = None
        if model.prior and a.projection == "weighted":
            weighted = lambda abar: model.prior.pseudo_inverse(abar, torch.from_numpy(mask), torch.arange(K))  # noqa: E731
        z = sample(eps, (S * B, K, autoencoder.latent_dim), schedule, a.steps, a.eta,
                   y=None if y is None else y.repeat(S, 1, 1), mask=torch.from_numpy(mask).to(device),
                   pseudo_inverse=weighted, generator=generator, antithetic=S % 2 == 0, device=device)
        return z.unflatten(0, (S, B))

    # Shuffled EEG: each window gets the EEG of another, along one random cycle so that none keeps its own.
    cycle, donor = np.random.default_rng(a.seed).permutation(len(windows)), np.zeros(len(windows), int)
    donor[cycle] = np.roll(cycle, 1)
    if len(windows) == 1:
        print("note: there is one test window, so that its shuffled EEG is its own; lower --frames")
    generator = torch.Generator().manual_seed(a.seed)
    by_length = [[i for i, w in enumerate(windows) if w[1] == length] for length in sorted({w[1] for w in windows})]

    frames = np.concatenate([np.arange(lo, hi) for lo, hi in test])
    row = {int(t): i for i, t in enumerate(frames)}
    arrays = {name: np.lib.format.open_memmap(os.path.join(out, name + ".npy"), "w+", np.float32, (len(frames), V))
              for name in ["recon", "truth"] + ["std"] * (a.samples > 1)}
    np.save(os.path.join(out, "frames.npy"), frames)
    scores = Scores({"whole": normaliser.valid, **{k: m & normaliser.valid for k, m in subject.rois.items()}})
    ceiling = Scores({"whole": normaliser.valid, **subject.rois})
    best_possible = source_ceiling(subject, normaliser, train, frames) if subject.sources is not None else None
    zscored = lambda t: torch.from_numpy(normaliser.zscore(subject.fmri[t])).to(device)  # noqa: E731
    if a.interrecon:
        gaussian = GaussianPrior(autoencoder.latent_dim)
        with torch.no_grad():
            gaussian.fit([torch.cat([autoencoder.encode(zscored(slice(i, min(i + 256, hi)))).cpu()
                                     for i in range(lo, hi, 256)]) for lo, hi in train])

    residual, done = 0.0, set()
    bar = tqdm(total=len(windows), unit="window", desc=mode)
    for group in by_length:
        for i in range(0, len(group), a.batch_size):
            chosen = group[i: i + a.batch_size]
            here = [windows[j] for j in chosen]
            elsewhere = [(windows[j][0], here[0][1], *windows[j][2:]) for j in donor[chosen]]
            mask = observed(here[0][1])
            index = data.window_indices(here, 0)[0]                                        # [B,K]
            x = zscored(index)                                                             # [B,K,V]
            with torch.no_grad():
                y = autoencoder.encode(x) if a.interrecon else None                        # [B,K,d]
                runs = {"neuroframes": generate(here, here, None if a.no_null_space else y, mask),
                        "shuffled_eeg": generate(here, elsewhere, None if a.no_null_space else y, mask)}
                if a.interrecon and not a.no_null_space:
                    runs["no_null_space"] = generate(here, here, None, mask)
                interpolate = gaussian_weights(gaussian, mask) if a.interrecon else None   # [d,K,O]
            for b, t in enumerate(index):
                new = np.array([k not in done for k in t])  # frames that an earlier window did not cover
                scored, truth = torch.from_numpy(new & ~mask), x[b].cpu()
                done.update(t.tolist())
                rows = [row[k] for k in t[new]]
                guesses = {"mean_frame": torch.zeros_like(truth)}
                for method, z in runs.items():
                    with torch.no_grad():
                        each = autoencoder.decode(z[:, b]).cpu()                            # [S,K,V]
                    # Opposite pairs have their mean in the middle: no degree of freedom is lost to it.
                    first, mean = each[0], each.mean(0)                                     # [K,V]
                    std = each.std(0, correction=a.samples % 2) if a.samples > 1 else torch.zeros_like(mean)
                    if a.interrecon and not a.no_null_space:
                        # Pinned latents decode to D E x, not to x: the last projection is in vertex space.
                        seen = torch.from_numpy(mask)
                        first, mean = (range_null_projection(u, truth, seen) for u in (first, mean))
                        std = range_null_projection(std, torch.zeros_like(std), seen)
                    guesses[method] = mean
                    if method == "neuroframes":
                        guesses["neuroframes_1"] = first
                        if a.samples > 1:
                            arrays["std"][rows] = std[new]
                if a.interrecon:
                    residual = max(residual, float((guesses["neuroframes"] - truth)[mask].abs().max()))
                    guesses["linear"] = linear_interpolation(truth, mask)
                    z = torch.einsum("dko,od->kd", interpolate, y[b].cpu()[mask])           # [K,d]
                    guesses["gaussian"] = autoencoder.decode(z.to(device)).detach().cpu()
                arrays["recon"][rows], arrays["truth"][rows] = guesses["neuroframes"][new], truth[new]
                if scored.any():
                    for method, guess in guesses.items():
                        scores.add(method, guess[scored], truth[scored])
                    if best_possible is not None:
                        those = [row[k] for k in t[scored.numpy()]]
                        ceiling.add("ceiling", torch.from_numpy(best_possible[those]), truth[scored])
                bar.update()
    bar.close()

    # ---- files
    for array in arrays.values():
        array.flush()
    if subject.space is not None:
        for lo, hi in test:  # one file a stretch: a series has one start time, and cannot skip frames
            run = next(i for i, (first, stop) in enumerate(subject.runs) if first <= lo < stop)
            begin = (subject.meta["first_volume"][run] + lo - subject.runs[run][0]) * subject.tr
            name = "recon" + (f"_run-{run + 1}_frame-{lo}" if len(test) > 1 else "") + ".dtseries.nii"
            data.save_dtseries(os.path.join(out, name), normaliser.raw(arrays["recon"][row[lo]: row[hi - 1] + 1]),
                               subject.space, subject.tr, begin)
    summary = scores.summary()
    metrics = {"mode": mode, "frames": K, "gap": a.gap if a.interrecon and not a.anchors else None,
               "anchors": a.anchors, "null_space": a.interrecon and not a.no_null_space, "steps": a.steps, "eta": a.eta,
               "projection": a.projection if model.prior else "plain",
               "samples": a.samples, "seed": a.seed, "test_frames": len(frames), "scores": summary,
               "anchor_residual": residual if a.interrecon else None, "seconds": round(time.time() - began, 1)}
    if best_possible is not None:
        metrics["ceiling"] = {region: {m: v["mean"] for m, v in s.items()}
                              for region, s in ceiling.summary()["ceiling"].items()}
    with open(os.path.join(out, "metrics.json"), "w") as f:
        json.dump(metrics, f, indent=1)
    if a.plot:
        carpet(os.path.join(out, "plot.png"), arrays["truth"], arrays["recon"], f"{mode}, {a.samples} samples")
    report(metrics, scores, sum(len(w) for w in scores.windows["neuroframes"]["whole"]))
    print(f"wrote {out} in {metrics['seconds']} s")


if __name__ == "__main__":
    main()
