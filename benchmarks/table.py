"""Table 1, Table 2, Figure 3 and Table S4 of the paper on one subject, with the rivals and the
controls.

    python benchmarks/table.py --data cinebrain/sub1 --preset paper --shrink 1       for a GPU
    python benchmarks/table.py --data out/synthetic                  an hour on two CPU cores

Trains NeuroFrames once for every length of window and size of latents, each rival once, and scores
the same test frames in the same way. Flags that are not in --help are train.py's. A run that was
killed goes on where it stopped when the same command is given again. Writes OUT/table.md,
OUT/table.json, and, where the subject has such a region, OUT/decoder/ with frames for CineBrain's
decoder; --samples 32 asks for means of 32.

Whatever made them, test frames end as an array [T,V] in z-scores, and `frame_table` scores it:
    MSE, r, cos     per frame over vertices, averaged; +- is the standard deviation over windows
    [low, high]     95% interval by bootstrap: over test runs where there are five, else over
                    stretches of 30 frames, for frames close in time share their noise and are no
                    independent witnesses
    no global       MSE and r once every vertex's regression on the global signal (the mean over
                    vertices, its own for truth and reconstruction) is taken out, run by run
    ahead           NeuroFrames' r minus this method's, and its interval on the same resampled
                    frames
    identified      does a reconstructed window correlate most with its own true window, of all n of
                    its run? Share of hits (chance 1/n) and mean rank (chance (n+1)/2)
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import baselines
import decoder_frames

import data
import sample as sampling
import train
from beyond import auto
from tools.errors import fail, script

LENGTHS = (3, 10, 30)  # the paper's windows
GAPS = (2, 3, 5, 9)
BASE = 10  # InterRecon and Table S4 are those of windows of 10 frames
NAMES = {
    "neuroframes": "NeuroFrames, mean of {}",
    "neuroframes_1": "NeuroFrames, one sample",
    "cnn_tc": "CNN-TC",
    "cnn_tag": "CNN-TAG",
    "e2fnet": "E2fNet",
    "e2fgan": "E2fGAN",
    "ridge": "ridge on band power",
    "no_null_space": "without null space, mean of {}",
    "linear": "linear interpolation",
    "gaussian": "Gaussian conditional",
    "linear_gaussian": "linear-Gaussian, with EEG",
    "shuffled_eeg": "shuffled EEG, mean of {}",
    "run_mean": "mean frame of the test run",
    "mean_frame": "mean training frame",
    "autoencoder": "the latents alone: D(E(x))",
    "ceiling": "all that the EEG can tell",
}
# What is scored of sample.py's methods.
DIRECT = ("neuroframes", "neuroframes_1", "linear_gaussian", "shuffled_eeg")
INTERRECON = (*DIRECT, "no_null_space", "linear", "gaussian", "mean_frame")
KNOWING = ("run_mean", "ceiling", "autoencoder")  # have seen the frames that others reconstruct
COLUMNS = ("mse", "r", "cos", "mse_no_global", "r_no_global")

# ---- Scores of test frames [T,V] -------------------------------------------------------


def without_global(x, valid):
    """x [t,V] of one run, less each vertex's regression on the mean of the `valid` ones."""
    g = x[:, valid].mean(1).astype(float)
    g -= g.mean()
    beta = g @ x / max(g @ g, 1e-12)  # [V]
    return x - (g[:, None] * beta).astype(np.float32)


def ranks(guess, truth):
    """[n] rank of each window's own truth among all by correlation, 1 the best, ties shared;
    windows are rows [n,D]."""

    def rows(u):
        u = u - u.mean(1, keepdims=True)
        norm = np.linalg.norm(u, axis=1, keepdims=True)
        return u / np.where(norm > 0, norm, 1)

    r = rows(guess) @ rows(truth).T  # [n,n]
    own = np.diag(r)[:, None]
    return 1 + (r > own).sum(1) + ((r == own).sum(1) - 1) / 2


def ranked(guess, truth, K):
    """(rank, n) of each of the n whole windows of K frames in one run's frames [t,D]: [n,2]."""
    n = len(truth) // K
    windows = [u[: n * K].reshape(n, -1) for u in (guess, truth)]
    return np.stack([ranks(*windows), np.full(n, n)], 1)


def scores_of(guess, truth):
    """MSE, r, cos [t,3] of one run's frames [t,D]."""
    found = []
    for i in range(0, len(truth), 64):
        block = (torch.from_numpy(u[i : i + 64]) for u in (guess, truth))
        found.append(sampling.frame_scores(*block).numpy())
    return np.concatenate(found)


def places(segments):
    """[low, high) of each segment in an array that holds the segments one after another."""
    stops = np.cumsum([high - low for low, high in segments]).tolist()
    return list(zip([0] + stops[:-1], stops))


def frame_table(recon, truth, segments, regions, lengths, seen=None):
    """{REGION: COLUMNS of every frame [T,5]; REGION/rank-K: (rank, n) of every whole window of K
    frames}. Frames in seen [T] were observed, and are NaN; then nothing is identified. recon and
    truth are functions: slice of T -> [t,V]."""
    found = {}
    for low, high in places(segments):
        pair = [np.asarray(u(slice(low, high)), np.float32) for u in (recon, truth)]
        less_global = [without_global(u, regions["whole"]) for u in pair]
        for region, mask in regions.items():
            guess, x = (u[:, mask] for u in pair)
            no_global = scores_of(*(u[:, mask] for u in less_global))
            columns = np.concatenate([scores_of(guess, x), no_global[:, :2]], 1)  # [t,5]
            found.setdefault(region, []).append(columns)
            for K in lengths if seen is None else ():
                found.setdefault(f"{region}/rank-{K}", []).append(ranked(guess, x, K))
    found = {key: np.concatenate(parts) for key, parts in found.items()}
    if seen is not None:
        for region in regions:
            found[region][seen] = np.nan
    return found


# ---- From frames to what is printed ----------------------------------------------------


def resampled(frames, segments, draws=2000, unit=30):
    """[draws, ...] means of frames [T,...] over units drawn with replacement; the same draws for
    all methods."""
    runs = places(segments)
    starts = [low for low, _ in runs]
    if len(runs) < 5:  # units are stretches; what is left of a run goes with its last, if short
        starts = [i for low, high in runs for i in range(low, max(low + 1, high - unit // 2), unit)]
    there = np.isfinite(frames[:, 0])
    total = np.add.reduceat(np.where(there[:, None], frames, 0), starts, 0)  # [units,c]
    count = np.add.reduceat(there.astype(float), starts)  # [units]
    index = np.random.default_rng(0).integers(len(total), size=(draws, len(total)))
    return total[index].sum(1) / count[index].sum(1)[:, None]


def interval(drawn):
    """The middle 95% of draws [n]."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"low": low, "high": high}


def row_of(frames, ours, segments, K):
    """One method's {column: {"mean", "std", "low", "high"}, "ahead": ...} in one region, of its
    frames [T,5] beside NeuroFrames', ours [T,5]."""
    runs = places(segments)
    windows = [slice(i, min(i + K, high)) for low, high in runs for i in range(low, high, K)]
    scored = [frames[w] for w in windows if np.isfinite(frames[w]).any()]
    std = np.nanstd([np.nanmean(window, 0) for window in scored], 0)
    drawn = resampled(frames, segments)
    row = {}
    for i, column in enumerate(COLUMNS):
        mean = np.nanmean(frames[:, i])
        row[column] = {"mean": mean, "std": std[i], **interval(drawn[:, i])}
    ahead = ours - frames
    r = COLUMNS.index("r")
    row["ahead"] = {"mean": np.nanmean(ahead[:, r]), **interval(resampled(ahead, segments)[:, r])}
    return row


def identification(rank, n):
    """What ranks [windows], each of n [windows], say."""
    return {
        "top_1": np.mean(rank == 1),
        "mean_rank": rank.mean(),
        "windows": n.mean(),
        "chance_top_1": np.mean(1 / n),
        "chance_rank": np.mean((n + 1) / 2),
    }


def summary(scores, segments, K):
    """{method: {region: {column: {"mean", "std", "low", "high"}, "ahead": ..., "identified": ...}}}
    of one table."""
    ours = scores["neuroframes"]
    table = {}
    for method, found in scores.items():
        for region in (key for key in ours if "/" not in key):
            row = row_of(found[region], ours[region], segments, K)
            if f"{region}/rank-{K}" in found:
                row["identified"] = identification(*found[f"{region}/rank-{K}"].T)
            row = {key: {k: float(v) for k, v in cell.items()} for key, cell in row.items()}
            table.setdefault(method, {})[region] = row
    return table


def digest(tables, region, samples):
    """MSE and r of {heading: table} side by side; the best of those that reconstruct frames they
    have not seen is bold."""
    lines = [
        "| | " + " | ".join(f"{heading}: MSE | r" for heading in tables) + " |",
        "|" + "---|" * (1 + 2 * len(tables)),
    ]
    columns = []
    best = []
    for table in tables.values():
        for column, better in (("mse", min), ("r", max)):
            means = {method: rows[region][column]["mean"] for method, rows in table.items()}
            columns.append(means)
            best.append(better(v for method, v in means.items() if method not in KNOWING))
    for method in [m for m in NAMES if m in columns[0]]:
        cells = []
        for means, top in zip(columns, best):
            text = f"{means[method]:.3f}"
            cells.append(f"**{text}**" if means[method] == top else text)
        lines.append(f"| {NAMES[method].format(samples)} | " + " | ".join(cells) + " |")
    return lines


def markdown(table, region, samples, identified):
    """Rows of one table and region, methods first, then controls."""
    more = " identified | mean rank |" if identified else ""
    lines = [
        "| | MSE | r | cos | no global: MSE | r | ahead in r |" + more,
        "|" + "---|" * (9 if identified else 7),
    ]
    for method in [m for m in NAMES if m in table]:
        row = table[method][region]
        full = "{mean:.3f} ± {std:.3f} [{low:.3f}, {high:.3f}]"
        cells = [full.format(**row[column]) for column in COLUMNS[:3]]
        cells += [f"{row[column]['mean']:.3f}" for column in COLUMNS[3:]]
        ahead = "{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row["ahead"])
        cells.append("" if method == "neuroframes" else ahead)
        if identified:
            found = row["identified"]
            cells += [f"{found['top_1']:.1%}", f"{found['mean_rank']:.1f}"]
        lines.append(f"| {NAMES[method].format(samples)} | " + " | ".join(cells) + " |")
    if identified:
        chance = f" {found['chance_top_1']:.1%} | {found['chance_rank']:.1f} |"
        lines.append("| *chance* |" + " |" * 6 + chance)
    return lines


# ---- Making what is scored -------------------------------------------------------------


class Work:
    """The subject, and the steps; each returns {method: frame_table}.

    a      flags of this script
    flags  those that are left, train.py's
    """

    def __init__(self, a, flags):
        self.a, self.flags = a, flags
        subject = data.Subject(a.data)
        self.settings = train.parse([*flags, "--data", a.data])
        subject.split_by_names(vars(self.settings))
        training = subject.segments("train", validation=not a.no_validation)
        frames = sum(high - low for low, high in training)
        if self.settings.preset == "auto":
            auto.choose(self.settings, subject, frames, train.SIZES["small"])
        train.choose_sizes(self.settings, frames)
        self.normaliser = data.Normaliser.measure(subject, training)
        self.subject = subject
        self.segments = subject.segments("test")
        if not self.segments:
            fail(f"{a.data}: the split leaves no test frames; prepare it from two runs or more")
        self.t = np.concatenate([np.arange(low, high) for low, high in self.segments])
        valid = self.normaliser.valid
        regions = {name: mask & valid for name, mask in subject.rois.items()}
        self.regions = {"whole": valid, **regions}

    def truth(self, rows):
        return self.normaliser.zscore(self.subject.fmri[self.t[rows]])

    def driven(self, rows):
        return self.normaliser.zscore(self.subject.driven[self.t[rows]])

    def score(self, recon, lengths=None, seen=None):
        lengths = LENGTHS if lengths is None else lengths
        return frame_table(recon, self.truth, self.segments, self.regions, lengths, seen)

    def controls(self):
        """The mean training frame, which is 0 in z-scores; that of the test run, which no method
        may know; and the ceiling."""

        def run_mean(rows):
            x = self.truth(rows)
            return np.broadcast_to(x.mean(0), x.shape)

        guesses = {"mean_frame": lambda rows: 0 * self.truth(rows), "run_mean": run_mean}
        if self.subject.driven is not None:
            guesses["ceiling"] = self.driven
        return {method: self.score(guess) for method, guess in guesses.items()}

    def rival(self, name):
        names = {"test": self.settings.test, "val": self.settings.val}
        a = argparse.Namespace(**vars(self.a), rival=name, **names)
        recon = np.load(os.path.join(baselines.run(a), "recon.npy"), mmap_mode="r")
        return {name: self.score(lambda rows: recon[rows])}

    def trained(self, K, d):
        """Path of the checkpoint for windows of K frames and d latents, trained unless it is there.
        A step has as many frames whatever K is."""
        a = self.a
        folder = os.path.join(a.out, f"frames-{K}_latents-{d}")
        done = os.path.join(folder, "done")
        batch_size = max(1, round(self.settings.batch_size * self.settings.frames / K))
        command = [*self.flags, "--data", a.data, "--frames", K, "--latent-dim", d]
        command += ["--batch-size", batch_size, "--seed", a.seed, "--device", a.device]
        # (Trained once, on the frames that z-scores are measured on; rivals likewise.)
        command += ["--no-validation"] if a.no_validation else ["--no-refit"]
        if os.path.exists(os.path.join(folder, "last.pt")):  # the rest is as it was started with
            command = ["--resume", "--device", a.device]
        if not os.path.exists(done):
            path = os.path.join(os.path.dirname(os.path.abspath(train.__file__)), "train.py")
            command = [sys.executable, path, "--out", folder, *map(str, command)]
            subprocess.run(command, check=True)
            with open(done, "w"):
                pass
        return os.path.join(folder, "ckpt.pt")

    def sampled(self, K, d, methods, *flags, seen=None, decoder=False):
        """Scores of what sample.py makes of the test runs: {method: frame_table} of `methods`. The
        frames themselves are not kept, but for those of the decoder."""
        a = self.a
        folder = os.path.join(a.out, "work")
        given = ["--ckpt", self.trained(K, d), "--out", folder, "--frames", K]
        given += ["--samples", a.samples, "--seed", a.seed, "--device", a.device, *flags]
        os.makedirs(folder, exist_ok=True)
        made = {}

        def keep(method, k, x_hat):
            if method in methods:
                if method not in made:
                    path = os.path.join(folder, f"{method}.npy")
                    shape = len(self.t), x_hat.shape[1]
                    made[method] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
                made[method][k] = x_hat

        log_path = os.path.join(a.out, "sample.log")
        with open(log_path, "a") as log, contextlib.redirect_stdout(log):
            sampling.main([str(flag) for flag in given], keep)
        found = {name: self.score(lambda rows, x=x: x[rows], [K], seen) for name, x in made.items()}
        if decoder:
            out = os.path.join(a.out, "decoder")
            recon = made["neuroframes"]
            decoder_frames.write(recon, self.t, self.subject, self.normaliser, out)
        shutil.rmtree(folder)
        return found

    def direct(self, K):
        in_region = decoder_frames.REGION in self.subject.rois
        can_be_decoded = in_region or self.subject.fmri.shape[1] == decoder_frames.SIZE
        decoder = K == BASE and can_be_decoded
        d = self.settings.latent_dim
        return self.sampled(K, d, DIRECT, "--window", K, decoder=decoder)

    def interrecon(self, gap):
        runs = [np.arange(high - low) for low, high in self.segments]
        seen = np.concatenate([t % BASE % gap == 0 for t in runs])
        d = self.settings.latent_dim
        found = self.sampled(BASE, d, INTERRECON, "--gap", gap, seen=seen)

        def run_mean(rows):
            x = self.truth(rows)
            return np.broadcast_to(x[~seen[rows]].mean(0), x.shape)

        return {**found, "run_mean": self.score(run_mean, (), seen)}

    @torch.no_grad()
    def latents(self, d):
        _, _, autoencoder, _ = sampling.load(self.trained(BASE, d), torch.device("cpu"))

        def alone(rows):
            blocks = torch.from_numpy(self.truth(rows)).split(64)
            decoded = [autoencoder.decode(autoencoder.encode(x)) for x in blocks]
            return torch.cat(decoded).numpy()

        found = self.sampled(BASE, d, DIRECT, "--window", BASE)
        return {**found, "autoencoder": self.score(alone, [BASE])}


def once(path, step):
    """What `step` returned, now or when it ran before: {method: {key: array}}, kept in one .npz."""
    if not os.path.exists(path):
        flat = {}
        for method, arrays in step().items():
            flat |= {f"{method}:{key}": array for key, array in arrays.items()}
        with open(path + ".tmp", "wb") as f:
            np.savez(f, **flat)
        os.replace(path + ".tmp", path)
    found = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays:
            method, key = name.split(":", 1)
            found.setdefault(method, {})[key] = arrays[name]
    return found


# ---- The run ---------------------------------------------------------------------------


def parse(argv):
    """(this script's flags, those that are left for train.py)."""
    p = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument
    baselines.add_flags(add)
    add(
        "--out",
        default="out/table",
        help="folder for models, scores and tables (default: out/table)",
    )
    add("--samples", type=int, default=8, help="samples averaged (default: 8)")
    add(
        "--latents",
        type=int,
        nargs="+",
        help="sizes of Table S4 (default: half, once and twice --latent-dim)",
    )
    return p.parse_known_args(argv)


def check_asked(out, flags, checksums):
    """One folder, one question: scores of other flags or other data are not mixed in."""
    asked = {"flags": [flag for flag in flags if flag != out], "data": checksums}
    path = os.path.join(out, "asked.json")
    if os.path.exists(path):
        before = baselines.read_json(path)
        if before != asked:
            begun = " ".join(before["flags"])
            fail(f"{path}: these tables were begun with {begun}; name another --out")
    with open(path, "w") as f:
        json.dump(asked, f)


def all_scores(work, sizes):
    """{name of a step: {method: frame_table}}, of steps that ran before too."""
    plan = {"controls": work.controls}
    plan |= {f"direct-{K}": functools.partial(work.direct, K) for K in LENGTHS}
    plan |= {name: functools.partial(work.rival, name) for name in baselines.RIVALS}
    plan |= {f"gap-{gap}": functools.partial(work.interrecon, gap) for gap in GAPS}
    plan |= {f"latents-{d}": functools.partial(work.latents, d) for d in sizes}
    scores = {}
    for i, (name, step) in enumerate(plan.items(), 1):
        print(f"[{i}/{len(plan)}] {name}", flush=True)
        scores[name] = once(os.path.join(work.a.out, "scores", f"{name}.npz"), step)
    return scores


def all_tables(scores, segments, sizes):
    """{title: {heading: summary}}"""
    always = {**scores["controls"], **{name: scores[name][name] for name in baselines.RIVALS}}
    controls = {name: scores["controls"][name] for name in ("mean_frame", "run_mean")}
    direct = {f"{K} frames": (K, {**scores[f"direct-{K}"], **always}) for K in LENGTHS}
    gaps = {f"gap {gap}": (BASE, scores[f"gap-{gap}"]) for gap in GAPS}
    latents = {f"{d} latents": (BASE, {**scores[f"latents-{d}"], **controls}) for d in sizes}
    parts = {
        "Table 1, direct": direct,
        "Figure 3, InterRecon (gap 2 is Table 2)": gaps,
        "Table S4, size of latents, direct": latents,
    }
    return {
        title: {heading: summary(found, segments, K) for heading, (K, found) in part.items()}
        for title, part in parts.items()
    }


def about(work, given):
    """How these tables were made."""
    machine = f"{os.cpu_count()} CPU cores"
    if work.a.device.type == "cuda":
        machine = torch.cuda.get_device_name(work.a.device)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return {
        "command": " ".join(["python benchmarks/table.py", *given]),
        "date": str(datetime.date.today()),
        "machine": f"{machine} ({platform.machine()}), {versions}",
        "test_frames": len(work.t),
        "test_runs": len(work.segments),
        "samples": work.a.samples,
    }


def document(made, parts, regions):
    """table.md, as lines. made: how, as `about` tells; parts: what `all_tables` returns."""
    samples = made["samples"]
    counts = f"{made['test_frames']:,} test frames, test runs: {made['test_runs']}."
    lines = [f"    {made['command']}", "", f"{made['machine']}, {made['date']}. {counts}"]
    for title, tables in parts.items():
        lines += ["", f"### {title}"]
        for region in regions:
            lines += ["", f"{region}:", "", *digest(tables, region, samples)]
    in_full = "In full, with deviations, intervals and identification"
    lines += ["", f"<details><summary>{in_full}</summary>"]
    for title, tables in parts.items():
        for heading, table in tables.items():
            for region in regions:
                rows = markdown(table, region, samples, "Figure" not in title)
                lines += ["", f"**{title}, {heading}, {region}**", "", *rows]
    return [*lines, "", "</details>"]


@script
def main(argv=None):
    a, flags = parse(argv)
    given = sys.argv[1:] if argv is None else argv
    work = Work(a, flags)
    d = work.settings.latent_dim
    sizes = a.latents or [d // 2, d, 2 * d]
    os.makedirs(os.path.join(a.out, "scores"), exist_ok=True)
    check_asked(a.out, given, work.subject.meta["checksums"])
    parts = all_tables(all_scores(work, sizes), work.segments, sizes)
    made = about(work, given)
    text = {
        "table.md": "\n".join(document(made, parts, work.regions)) + "\n",
        "table.json": json.dumps({**made, "tables": parts}, indent=1),
    }
    for name, content in text.items():
        with open(os.path.join(a.out, name), "w", encoding="utf-8") as f:
            f.write(content)
    print(f"wrote {a.out}/table.md and table.json")


if __name__ == "__main__":
    main()
