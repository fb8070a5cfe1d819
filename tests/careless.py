"""Would the tests notice? Forty-six careless changes of the kind that gives wrong science without a
word, made one at a time in a copy of the project; prints which of them no test notices.

    python tests/careless.py [NUMBER ...]

Half an hour and more on two cores. tests/test_careless.py checks that each change still applies.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FAST = ["tests/test_wiring.py", "test_neuroframes.py", "tests/test_beyond.py", "tests/test_data.py"]
REST = ["tests/test_commands.py", "tests/test_recordings.py", "tests/test_benchmarks.py"]

# (what is careless, file, as it is, as it would be)
CHANGES = [
    # ---- Leaks
    (
        "z-scores with statistics of the validation run too",
        "train.py",
        'Normaliser.measure, subject, splits["train"],',
        'Normaliser.measure, subject, splits["train"] + splits["val"],',
    ),
    (
        "PCA on all frames",
        "train.py",
        "find_autoencoder, a, subject, normaliser, rows, saved, where",
        "find_autoencoder, a, subject, normaliser, np.arange(len(subject.fmri)), saved, where",
    ),
    (
        "windows of the validation run drawn in training",
        "train.py",
        'data.draw_windows(self.splits["train"]',
        'data.draw_windows(self.splits["train"] + self.splits["val"]',
    ),
    (
        "the prior fitted to the validation run too",
        "beyond/network.py",
        "[0] for low, high in segments]",
        '[0] for low, high in segments + batches.splits["val"]]',
    ),
    (
        "the spread's scale fitted on the test runs",
        "sample.py",
        'data.timeline(study.splits["val"], a.frames, of_frame)\n        spread.fit_scale('
        'reconstruct(sampler, timeline, "val"))',
        'data.timeline(study.splits["test"], a.frames, of_frame)\n        spread.fit_scale('
        'reconstruct(sampler, timeline, "test"))',
    ),
    (
        "what latents leave out measured on frames that PCA was fitted to",
        "beyond/left_out.py",
        'in splits["val"] or splits["train"]',
        'in splits["train"]',
    ),
    (
        "EEG of the neighbouring run at a run's ends",
        "sample.py",
        "+ 2 + more), low, high - 1)",
        "+ 2 + more), 0, len(self.subject.eeg) - 1)",
    ),
    (
        "windows drawn across the ends of runs",
        "data.py",
        "np.arange(low, high - K + 1) for low, high in segments]",
        "np.arange(low, high) for low, high in segments]",
    ),
    (
        "the first runs are the test set",
        "data.py",
        "self.runs[-max(1, len(self.runs) // 5) :]",
        "self.runs[: max(1, len(self.runs) // 5)]",
    ),
    # ---- Training
    (
        "raw weights kept in place of the averaged",
        "train.py",
        '{"model": averaged.state_dict()',
        '{"model": model.state_dict()',
    ),
    (
        "the average follows the weights at the wrong rate",
        "train.py",
        "average.lerp_(now, 1 - decay)",
        "average.lerp_(now, decay)",
    ),
    (
        "validation of the raw weights",
        "train.py",
        "validate(averaged, weight, batches)",
        "validate(model.eval(), weight, batches)",
    ),
    (
        "validation with dropout",
        "train.py",
        "copy.deepcopy(model).eval()",
        "copy.deepcopy(model).train()",
    ),
    (
        "the last weights kept in place of the best",
        "tools/run.py",
        'better = val_loss is None or val_loss < self.best["val_loss"]',
        "better = True",
    ),
    (
        "no cosine decay",
        "train.py",
        "min((step + 1) / a.warmup, cosine)",
        "min((step + 1) / a.warmup, 1.0)",
    ),
    (
        "the same noise for every seed",
        "train.py",
        "seed = self.a.seed * 1_000_003 + step",
        "seed = step",
    ),
    (
        "the same windows at every step",
        "train.py",
        "np.random.default_rng([self.a.seed, step])",
        "np.random.default_rng([self.a.seed])",
    ),
    (
        "gradients not clipped",
        "train.py",
        "clip_grad_norm_(trained, 1.0)",
        "clip_grad_norm_(trained, 1e9)",
    ),
    ("the flag --context is not read in training", "train.py", "self.a.context, int", "0, int"),
    (
        "EEG that is cut late keeps its old times",
        "train.py",
        "times[:, :-1] + shift / self.W",
        "times[:, :-1]",
    ),
    (
        "the loss weighs latents by their deviation, not their variance",
        "beyond/vertex_loss.py",
        "autoencoder.latent_scale**2",
        "autoencoder.latent_scale",
    ),
    (
        "v is predicted, eps is asked for",
        "beyond/network.py",
        'target = eps if self.predict == "eps" else velocity.velocity(self.schedule, z, n, eps)',
        "target = eps",
    ),
    (
        "the noisiest step is never trained",
        "train.py",
        "n = torch.randint(schedule.steps, (count,))",
        "n = torch.randint(schedule.steps - 200, (count,))",
    ),
    # ---- Controls and scores
    (
        "shuffled EEG: every frame keeps its own",
        "sample.py",
        "h.roll(len(h) // 2, 0)",
        "h.roll(len(h), 0)",
    ),
    (
        "shuffled EEG is not held to what was observed",
        "sample.py",
        'wanted["shuffled_eeg"] = (held_to, h.roll',
        'wanted["shuffled_eeg"] = (nothing, h.roll',
    ),
    (
        "without null space is projected all the same",
        "sample.py",
        'wanted["no_null_space"] = (nothing, h)',
        'wanted["no_null_space"] = (held_to, h)',
    ),
    (
        "the Gaussian control is given what the EEG says",
        "sample.py",
        'z["gaussian"] = sampler.conditional(group, y, pattern)',
        'z["gaussian"] = sampler.draw("", group, y, pattern, h)',
    ),
    (
        "the mean frame is the test run's own",
        "sample.py",
        '{"mean_frame": torch.zeros_like(x)}',
        '{"mean_frame": x.mean(0).expand_as(x)}',
    ),
    (
        "linear interpolation is given the frames that it should guess",
        "sample.py",
        "low + np.flatnonzero(whole)",
        "np.arange(low, high)",
    ),
    (
        "what was observed is scored",
        "tools/report.py",
        "where(mask & ~row)",
        "where(mask)",
    ),
    (
        "the mean is passed off as one sample",
        "sample.py",
        '"neuroframes_1": first',
        '"neuroframes_1": mean',
    ),
    # ---- Sampling
    (
        "the sampling seed is ignored",
        "beyond/drawing.py",
        "torch.Generator().manual_seed(a.seed)",
        "torch.Generator().manual_seed(0)",
    ),
    (
        "the wrong correction of the deviation over samples",
        "sample.py",
        "max(1, len(samples) - sampler.correction)",
        "max(1, len(samples) - 1)",
    ),
    (
        "EEG not scaled when sampling",
        "sample.py",
        "torch.from_numpy(self.normaliser.eeg(self.subject.eeg[rows]))",
        "torch.from_numpy(np.asarray(self.subject.eeg[rows], np.float32))",
    ),
    (
        "pairs of the same noise, not of opposite",
        "beyond/opposite_pairs.py",
        "torch.cat([half, -half])",
        "torch.cat([half, half])",
    ),
    (
        "epsilon kept and recomputed the wrong way round",
        "beyond/drawing.py",
        "a.steps, a.eta, plain)",
        "a.steps, a.eta, not plain)",
    ),
    (
        "--eta is ignored",
        "beyond/drawing.py",
        "a.steps, a.eta, plain)",
        "a.steps, 0.0, plain)",
    ),
    (
        "other EEG around a window than in training",
        "beyond/drawing.py",
        "h, context, S, in_batches",
        "h, 0, S, in_batches",
    ),
    (
        "EEG that is younger than its frame",
        "data.py",
        "round((t - delay) * fs)",
        "round((t + delay) * fs)",
    ),
    (
        "--paper keeps epsilon",
        "sample.py",
        "reuse_eps=False,",
        "reuse_eps=True,",
    ),
    (
        "ridge judged on runs that it was fitted to",
        "beyond/linear_gaussian.py",
        "ridge(X[~held] - mean, z[~held] - offset)",
        "ridge(X - mean, z - offset)",
    ),
    (
        "EEG of after the BOLD in place of before",
        "beyond/linear_gaussian.py",
        "self.delay / self.tr - 0.5 - late",
        "self.delay / self.tr - 0.5 + late",
    ),
    (
        "shares of the closed form the wrong way round",
        "beyond/stacked.py",
        "torch.lerp(network(z_n, n), linear, share)",
        "torch.lerp(linear, network(z_n, n), share)",
    ),
    (
        "shares of another level of noise",
        "beyond/stacked.py",
        "return n[0] * LEVELS // schedule.steps",
        "return LEVELS - 1 - n[0] * LEVELS // schedule.steps",
    ),
    (
        "trained anew, but again without the last run",
        "beyond/auto.py",
        "again.no_validation = True",
        "again.no_validation = False",
    ),
    (
        "the checkpoint chosen by the loss of epsilon",
        "train.py",
        'if batches.a.predict == "eps":',
        "if False:",
    ),
]


def tried(number):
    """Is change `number` noticed? The first test that fails, or None."""
    _, path, old, new = CHANGES[number]
    with tempfile.TemporaryDirectory() as work:
        names = subprocess.run(["git", "ls-files"], cwd=HERE, capture_output=True, text=True)
        for name in names.stdout.split():
            os.makedirs(os.path.join(work, os.path.dirname(name)), exist_ok=True)
            shutil.copy(os.path.join(HERE, name), os.path.join(work, name))
        with open(os.path.join(work, path), encoding="utf-8") as f:
            source = f.read()
        with open(os.path.join(work, path), "w", encoding="utf-8") as f:
            f.write(source.replace(old, new))
        for tests in (FAST, REST):
            argv = [sys.executable, "-m", "pytest", "-x", "-q", *tests]
            done = subprocess.run(argv, cwd=work, capture_output=True, text=True)
            if done.returncode:
                lines = done.stdout.splitlines()
                return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "?")
    return None


def main(numbers):
    survived = []
    for number in numbers or range(len(CHANGES)):
        began = time.time()
        what = CHANGES[number][0]
        noticed = tried(number)
        survived += [] if noticed else [number]
        told = noticed or "NOT NOTICED"
        print(f"{number:3} {time.time() - began:4.0f} s  {what}: {told[:90]}", flush=True)
    count = len(numbers or CHANGES)
    print(f"{count - len(survived)} of {count} noticed; not noticed: {survived or 'none'}")


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]])
