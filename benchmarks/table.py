"""Table 1, Table 2, Figure 3 and Table S4 of the paper on one subject, with the rivals and the controls.

    python benchmarks/table.py --data cinebrain/sub1 --shrink 1                     the paper's settings, for a GPU
    python benchmarks/table.py --data out/synthetic --preset tiny                   an hour on two CPU cores

Trains NeuroFrames once for every length of window and size of latents, each rival once, and scores the same test frames in
the same way. Flags that are not in --help are train.py's. A run that was killed goes on where it stopped when the same
command is given again. Writes OUT/table.md, OUT/table.json, and, where the subject has such a region, OUT/decoder/ with
frames for CineBrain's decoder; --samples 32 asks for means of 32.

Whatever made them, test frames end as an array [T,V] in z-scores, and `frame_table` scores it:
    MSE, r, cos     per frame over vertices, averaged; +- is the standard deviation over windows
    [low, high]     95% interval by bootstrap: over test runs where there are five, else over stretches of 30 frames,
                    for frames close in time share their noise and are no independent witnesses
    no global       MSE and r once every vertex's regression on the global signal (the mean over vertices, its own for
                    truth and reconstruction) is taken out, run by run
    ahead           NeuroFrames' r minus this method's, and its interval on the same resampled frames
    identified      does a reconstructed window correlate most with its own true window, of all n of its run? Share of
                    hits (chance 1/n) and mean rank (chance (n+1)/2)
"""
import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import baselines  # noqa: E402
import data  # noqa: E402
import decoder_frames  # noqa: E402
import sample as sampling  # noqa: E402
import train  # noqa: E402
from tools.errors import fail, script  # noqa: E402

LENGTHS, GAPS, BASE = (3, 10, 30), (2, 3, 5, 9), 10  # the paper's windows; InterRecon and Table S4 are those of 10 frames
NAMES = {"neuroframes": "NeuroFrames, mean of {}", "neuroframes_1": "NeuroFrames, one sample", "cnn_tc": "CNN-TC",
         "cnn_tag": "CNN-TAG", "e2fnet": "E2fNet", "e2fgan": "E2fGAN", "ridge": "ridge on band power",
         "no_null_space": "without null space, mean of {}", "linear": "linear interpolation", "gaussian": "Gaussian conditional",
         "shuffled_eeg": "shuffled EEG, mean of {}", "run_mean": "mean frame of the test run", "mean_frame": "mean training frame",
         "autoencoder": "the latents alone: D(E(x))", "ceiling": "all that the EEG can tell"}
COLUMNS = ("mse", "r", "cos", "mse_no_global", "r_no_global")

# ---- Scores of test frames [T,V] -------------------------------------------------------

def without_global(x, valid):
    """x [t,V] of one run, less each vertex's regression on the mean of the `valid` ones."""
    g = x[:, valid].mean(1).astype(float)
    g -= g.mean()
    beta = g @ x / max(g @ g, 1e-12)                                                      # [V]
    return x - (g[:, None] * beta).astype(np.float32)

def ranks(guess, truth):
    """[n] rank of each window's own truth among all by correlation, 1 the best, ties shared; windows are rows [n,D]."""
    def rows(u):
        u = u - u.mean(1, keepdims=True)
        norm = np.linalg.norm(u, axis=1, keepdims=True)
        return u / np.where(norm > 0, norm, 1)
    r = rows(guess) @ rows(truth).T                                                       # [n,n]
    own = np.diag(r)[:, None]
    return 1 + (r > own).sum(1) + ((r == own).sum(1) - 1) / 2

def frame_table(recon, truth, segments, regions, lengths, seen=None):
    """{REGION: COLUMNS of every frame [T,5]; REGION/rank-K: (rank, n) of every whole window of K frames}. Frames in seen [T]
    were observed, and are NaN; then nothing is identified. recon and truth are functions: slice of T -> [t,V]."""
    found, first = {region: [] for region in regions}, 0
    for low, high in segments:
        rows = slice(first, first + high - low)
        pair = [np.asarray(u(rows), np.float32) for u in (recon, truth)]
        for region, mask in regions.items():
            for K in lengths if seen is None else ():
                n = (high - low) // K
                cut = [u[: n * K, mask].reshape(n, -1) for u in pair]
                found.setdefault(f"{region}/rank-{K}", []).append(np.stack([ranks(*cut), np.full(n, n)], 1))
        pairs = [pair, [without_global(u, regions["whole"]) for u in pair]]
        for region, mask in regions.items():
            scores = [sampling.frame_scores(*(torch.from_numpy(u[i: i + 64, mask]) for u in p)).numpy()
                      for i in range(0, high - low, 64) for p in pairs]
            found[region].append(np.concatenate([np.concatenate(scores[::2]), np.concatenate(scores[1::2])[:, :2]], 1))
        first += high - low
    found = {key: np.concatenate(parts) for key, parts in found.items()}
    if seen is not None:
        for region in regions:
            found[region][seen] = np.nan
    return found

# ---- From frames to what is printed ----------------------------------------------------

def resampled(frames, segments, draws=2000, unit=30):
    """[draws, ...] means of frames [T,...] over units drawn with replacement; the same draws for all methods."""
    starts = np.cumsum([0] + [high - low for low, high in segments])
    edges = starts if len(segments) >= 5 else np.unique(np.concatenate(
        [np.r_[np.arange(a, max(a + 1, b - unit // 2), unit), b] for a, b in zip(starts[:-1], starts[1:])]))
    there = np.isfinite(frames[:, 0])
    total = np.add.reduceat(np.where(there[:, None], frames, 0), edges[:-1], 0)           # [U,c]
    count = np.add.reduceat(there.astype(float), edges[:-1])                              # [U]
    index = np.random.default_rng(0).integers(len(total), size=(draws, len(total)))
    return total[index].sum(1) / count[index].sum(1)[:, None]

def summary(scores, segments, K):
    """{method: {region: {column: {"mean", "std", "low", "high"}, "ahead": ..., "identified": ...}}} of one table."""
    regions, out = [key for key in scores["neuroframes"] if "/" not in key], {}
    starts = np.cumsum([0] + [high - low for low, high in segments])
    windows = [slice(i, min(i + K, b)) for a, b in zip(starts[:-1], starts[1:]) for i in range(a, b, K)]
    for method, found in scores.items():
        for region in regions:
            row, frames = {}, found[region]
            drawn = resampled(frames, segments)
            std = np.nanstd([np.nanmean(frames[w], 0) for w in windows if np.isfinite(frames[w]).any()], 0)
            for i, column in enumerate(COLUMNS):
                low, high = np.percentile(drawn[:, i], [2.5, 97.5])
                row[column] = {"mean": np.nanmean(frames[:, i]), "std": std[i], "low": low, "high": high}
            low, high = np.percentile(resampled(scores["neuroframes"][region] - frames, segments)[:, 1], [2.5, 97.5])
            row["ahead"] = {"mean": np.nanmean(scores["neuroframes"][region][:, 1] - frames[:, 1]), "low": low, "high": high}
            if f"{region}/rank-{K}" in found:
                rank, n = found[f"{region}/rank-{K}"].T
                row["identified"] = {"top_1": np.mean(rank == 1), "mean_rank": rank.mean(), "windows": n.mean(),
                                     "chance_top_1": np.mean(1 / n), "chance_rank": np.mean((n + 1) / 2)}
            out.setdefault(method, {})[region] = {
                key: {k: float(v) for k, v in value.items()} for key, value in row.items()}
    return out

def digest(tables, region, samples):
    """MSE and r of {heading: table} side by side; the best of those that reconstruct frames they have not seen is bold."""
    lines = ["| | " + " | ".join(f"{heading}: MSE | r" for heading in tables) + " |", "|" + "---|" * (1 + 2 * len(tables))]
    columns = [{m: t[m][region][c]["mean"] for m in t} for t in tables.values() for c in ("mse", "r")]
    best = [(min, max)[i % 2](v for m, v in column.items() if m not in ("run_mean", "ceiling", "autoencoder"))
            for i, column in enumerate(columns)]
    for method in [m for m in NAMES if m in columns[0]]:
        cells = [f"**{column[method]:.3f}**" if column[method] == b else f"{column[method]:.3f}" for column, b in zip(columns, best)]
        lines.append(f"| {NAMES[method].format(samples)} | " + " | ".join(cells) + " |")
    return lines

def markdown(table, region, samples, identified):
    """Rows of one table and region, methods first, then controls."""
    lines = ["| | MSE | r | cos | no global: MSE | r | ahead in r |" + (" identified | mean rank |" if identified else ""),
             "|" + "---|" * (9 if identified else 7)]
    for method in [m for m in NAMES if m in table]:
        row = table[method][region]
        cells = ["{mean:.3f} ± {std:.3f} [{low:.3f}, {high:.3f}]".format(**row[c]) for c in COLUMNS[:3]]
        cells += ["{mean:.3f}".format(**row[c]) for c in COLUMNS[3:]]
        cells.append("" if method == "neuroframes" else "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["ahead"]))
        if identified:
            cells += ["{top_1:.1%}".format(**row["identified"]), "{mean_rank:.1f}".format(**row["identified"])]
        lines.append(f"| {NAMES[method].format(samples)} | " + " | ".join(cells) + " |")
    if identified:
        lines.append("| *chance* |" + " |" * 6 + " {chance_top_1:.1%} | {chance_rank:.1f} |".format(**row["identified"]))
    return lines

# ---- Making what is scored -------------------------------------------------------------

class Work:
    """The subject, and the steps; each returns {method: frame_table}."""

    def __init__(self, a, flags):
        self.a, self.flags, self.settings, self.subject = a, flags, train.parse([*flags, "--data", a.data]), data.Subject(a.data)
        self.normaliser = data.Normaliser.measure(self.subject, self.subject.segments("train", validation=not a.no_validation))
        self.segments = self.subject.segments("test")
        if not self.segments:
            fail(f"{a.data}: the split leaves no test frames; prepare it from two runs or more")
        self.t = np.concatenate([np.arange(low, high) for low, high in self.segments])
        self.regions = {"whole": self.normaliser.valid, **{k: m & self.normaliser.valid for k, m in self.subject.rois.items()}}

    def truth(self, rows):
        return self.normaliser.zscore(self.subject.fmri[self.t[rows]])

    def score(self, recon, lengths=LENGTHS, seen=None):
        return frame_table(recon, self.truth, self.segments, self.regions, lengths, seen)

    def controls(self):
        """The mean training frame, which is 0 in z-scores; that of the test run, which no method may know; and the ceiling."""
        def run_mean(rows):
            x = self.truth(rows)
            return np.broadcast_to(x.mean(0), x.shape)
        guesses = {"mean_frame": lambda rows: 0 * self.truth(rows), "run_mean": run_mean}
        if self.subject.driven is not None:
            guesses["ceiling"] = lambda rows: self.normaliser.zscore(self.subject.driven[self.t[rows]])
        return {method: self.score(guess) for method, guess in guesses.items()}

    def rival(self, name):
        a = argparse.Namespace(**vars(self.a), rival=name)
        recon = np.load(os.path.join(baselines.run(a), "recon.npy"), mmap_mode="r")
        return {name: self.score(lambda rows: recon[rows])}

    def trained(self, K, d):
        """Path of the checkpoint for windows of K frames and d latents, trained unless it is there. A step has as many
        frames whatever K is."""
        folder = os.path.join(self.a.out, f"frames-{K}_latents-{d}")
        done, batch_size = os.path.join(folder, "done"), round(self.settings.batch_size * self.settings.frames / K)
        command = [*self.flags, "--data", self.a.data, "--frames", K, "--latent-dim", d, "--batch-size", max(1, batch_size),
                   "--seed", self.a.seed, "--device", self.a.device] + ["--no-validation"] * self.a.no_validation
        if os.path.exists(os.path.join(folder, "last.pt")):
            command = ["--resume", "--device", self.a.device]  # its other settings are those it was started with
        if not os.path.exists(done):
            script = os.path.join(os.path.dirname(os.path.abspath(train.__file__)), "train.py")
            subprocess.run([sys.executable, script, "--out", folder, *map(str, command)], check=True)
            open(done, "w").close()
        return os.path.join(folder, "ckpt.pt")

    def sampled(self, K, d, methods, *flags, seen=None, decoder=False):
        """Scores of what sample.py makes of the test runs: {method: frame_table} of `methods`. The frames themselves are not
        kept, but for those of the decoder."""
        ckpt, folder, made = self.trained(K, d), os.path.join(self.a.out, "work"), {}
        os.makedirs(folder, exist_ok=True)
        def keep(method, k, x_hat):
            if method in methods:
                if method not in made:
                    made[method] = np.lib.format.open_memmap(
                        os.path.join(folder, method + ".npy"), "w+", np.float32, (len(self.t), x_hat.shape[1]))
                made[method][k] = x_hat
        with open(os.path.join(self.a.out, "sample.log"), "a") as log, contextlib.redirect_stdout(log):
            sampling.main(["--ckpt", ckpt, "--out", folder, "--frames", str(K), "--samples", str(self.a.samples), "--seed",
                           str(self.a.seed), "--device", str(self.a.device), *map(str, flags)], keep)
        found = {method: self.score(lambda rows, x=x: x[rows], [K], seen) for method, x in made.items()}
        if decoder:
            decoder_frames.write(made["neuroframes"], self.t, self.subject, self.normaliser, os.path.join(self.a.out, "decoder"))
        shutil.rmtree(folder)
        return found

    def direct(self, K):
        can_be_decoded = decoder_frames.REGION in self.subject.rois or self.subject.fmri.shape[1] == decoder_frames.SIZE
        return self.sampled(K, self.settings.latent_dim, ("neuroframes", "neuroframes_1", "shuffled_eeg"), "--window", K,
                            decoder=K == BASE and can_be_decoded)

    def interrecon(self, gap):
        seen = np.concatenate([np.arange(high - low) % BASE % gap == 0 for low, high in self.segments])
        methods = "neuroframes", "neuroframes_1", "no_null_space", "linear", "gaussian", "shuffled_eeg", "mean_frame"
        found = self.sampled(BASE, self.settings.latent_dim, methods, "--gap", gap, seen=seen)
        def run_mean(rows):
            x = self.truth(rows)
            return np.broadcast_to(x[~seen[rows]].mean(0), x.shape)
        return {**found, "run_mean": self.score(run_mean, (), seen)}

    @torch.no_grad()
    def latents(self, d):
        _, _, autoencoder, _ = sampling.load(self.trained(BASE, d), "cpu")
        def alone(rows):
            x = torch.from_numpy(self.truth(rows))
            return torch.cat([autoencoder.decode(autoencoder.encode(u)) for u in x.split(64)]).numpy()
        return {**self.sampled(BASE, d, ("neuroframes", "neuroframes_1", "shuffled_eeg"), "--window", BASE),
                "autoencoder": self.score(alone, [BASE])}

def once(path, step):
    """What `step` returned, now or when it ran before: {method: {key: array}}, kept in one .npz."""
    if not os.path.exists(path):
        found = step()
        with open(path + ".tmp", "wb") as f:
            np.savez(f, **{f"{method}:{key}": array for method, arrays in found.items() for key, array in arrays.items()})
        os.replace(path + ".tmp", path)
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays:
            method, key = name.split(":", 1)
            found.setdefault(method, {})[key] = arrays[name]
    return found

@script
def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    baselines.flags(p)
    p.add_argument("--out", default="out/table", help="folder for models, scores and tables (default: out/table)")
    p.add_argument("--samples", type=int, default=8, help="samples averaged (default: 8)")
    p.add_argument("--latents", type=int, nargs="+", help="sizes of Table S4 (default: half, once and twice --latent-dim)")
    a, flags = p.parse_known_args(argv)
    given = sys.argv[1:] if argv is None else argv
    work, folder = Work(a, flags), os.path.join(a.out, "scores")
    os.makedirs(folder, exist_ok=True)
    sizes = a.latents or [work.settings.latent_dim // 2, work.settings.latent_dim, 2 * work.settings.latent_dim]

    # ---- One folder, one question: scores of other flags or other data are not mixed in.
    asked = {"flags": [f for f in given if f != a.out], "data": work.subject.meta["checksums"]}
    path = os.path.join(a.out, "asked.json")
    if os.path.exists(path) and json.load(open(path)) != asked:
        fail(f"{path}: these tables were begun with {' '.join(json.load(open(path))['flags'])}; name another --out")
    with open(path, "w") as f:
        json.dump(asked, f)

    plan = {"controls": work.controls}
    plan |= {f"direct-{K}": lambda K=K: work.direct(K) for K in LENGTHS}
    plan |= {name: lambda name=name: work.rival(name) for name in baselines.RIVALS}
    plan |= {f"gap-{gap}": lambda gap=gap: work.interrecon(gap) for gap in GAPS}
    plan |= {f"latents-{d}": lambda d=d: work.latents(d) for d in sizes}
    scores = {}
    for i, (name, step) in enumerate(plan.items(), 1):
        print(f"[{i}/{len(plan)}] {name}", flush=True)
        scores[name] = once(os.path.join(folder, name + ".npz"), step)

    # ---- Tables
    always = {**scores["controls"], **{name: scores[name][name] for name in baselines.RIVALS}}
    controls = {name: scores["controls"][name] for name in ("mean_frame", "run_mean")}
    parts = {
        "Table 1, direct": {f"{K} frames": summary({**scores[f"direct-{K}"], **always}, work.segments, K) for K in LENGTHS},
        "Figure 3, InterRecon (gap 2 is Table 2)": {
            f"gap {gap}": summary(scores[f"gap-{gap}"], work.segments, BASE) for gap in GAPS},
        "Table S4, size of latents, direct": {
            f"{d} latents": summary({**scores[f"latents-{d}"], **controls}, work.segments, BASE) for d in sizes}}
    machine = torch.cuda.get_device_name(a.device) if a.device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    about = {"command": " ".join(["python benchmarks/table.py", *given]), "date": str(datetime.date.today()),
             "machine": f"{machine} ({platform.machine()}), Python {platform.python_version()}, torch {torch.__version__}",
             "test_frames": len(work.t), "test_runs": len(work.segments), "samples": a.samples}
    lines = [f"    {about['command']}", "", f"{about['machine']}, {about['date']}. {len(work.t):,} test frames, test runs: "
             f"{len(work.segments)}."]
    for title, tables in parts.items():
        lines += ["", f"### {title}"]
        for region in work.regions:
            lines += ["", f"{region}:", ""] + digest(tables, region, a.samples)
    lines += ["", "<details><summary>In full, with deviations, intervals and identification</summary>"]
    for title, tables in parts.items():
        for heading, table in tables.items():
            for region in work.regions:
                lines += ["", f"**{title}, {heading}, {region}**", ""] + markdown(table, region, a.samples, "Figure" not in title)
    lines += ["", "</details>"]
    for name, text in (("table.md", "\n".join(lines) + "\n"), ("table.json", json.dumps({**about, "tables": parts}, indent=1))):
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            f.write(text)
    print(f"wrote {a.out}/table.md and table.json")

if __name__ == "__main__":
    main()
