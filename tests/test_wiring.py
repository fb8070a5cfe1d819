"""What must change when something is changed, and what must not: every control, split, seed and
flag that picks between two ways.

A checkpoint is made to look trained (random weights everywhere, so that the EEG matters), and the
scripts are run on a subject whose EEG and frames are changed piece by piece. Nothing here knows how
the scripts are built inside: only their flags, their files, and what passes through the named
functions of the method.
"""

import os
import shutil
import types

import numpy as np
import pytest
import torch
from conftest import read_json, read_log

import beyond
import data
import neuroframes
import sample as sampling
import train
from beyond import band_power
from tools import checkpoints, files

SUBJECT = dict(runs=10, frames=40, channels=4, fs=50, side=8, sources=4, background=3)
VAL = slice(280, 320)  # run 8
TEST = slice(320, 400)  # runs 9 and 10
FLAGS = (
    "--width 16 --heads 2 --depth 2 --eeg-dim 8 --latent-dim 6 --batch-size 4 --frames 6 --lr 3e-3 "
    "--warmup 2 --ema 0.9 --device cpu --eeg-filters 4 --eeg-bands 4 --context 2 --preset tiny"
)
SIZES = FLAGS.split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return data.synthetic(str(tmp_path_factory.mktemp("wiring") / "subject"), **SUBJECT)


def changed(folder, tmp_path, name="changed", **arrays):
    """A copy of the subject in which functions have changed fmri, eeg or driven."""
    copy = str(tmp_path / name)
    shutil.copytree(folder, copy)
    for array, change in arrays.items():
        path = os.path.join(copy, f"{array}.npy")
        found = np.load(path)
        np.save(path, change(found).astype(np.float32))
    return copy


def noise(where, seed=0):
    """A function that puts noise of the same size into some rows of an array."""

    def change(array):
        rng = np.random.default_rng(seed)
        mean = array.mean()
        std = array.std(0)
        array[where] = mean + std * rng.standard_normal(array[where].shape)
        return array

    return change


# ---- Training: splits, seeds, averages, rates ------------------------------------------


def trained(folder, out, *flags):
    train.main(["--data", folder, "--out", str(out), *SIZES, *map(str, flags)])
    state = {name: torch.load(out / f"{name}.pt", weights_only=True) for name in ("ckpt", "last")}
    return types.SimpleNamespace(**state, log=read_log(out))


def tensors(state, *parts):
    return {f"{part}.{name}": t for part in parts for name, t in state[part].items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("flags", [[], ["--no-validation"], ["--autoencoder", "joint"]])
def test_nothing_of_validation_or_test_runs_reaches_the_weights(folder, tmp_path, flags):
    """But for the validation run under --no-validation, and in which step is kept."""
    steps = ["--steps", 6, *flags]
    before = trained(folder, tmp_path / "a", *steps)
    for where, reaches in ((TEST, False), (VAL, "--no-validation" in flags)):
        other = changed(folder, tmp_path, f"{where.start}", fmri=noise(where), eeg=noise(where))
        after = trained(other, tmp_path / f"out-{where.start}", *steps)
        parts = "model", "averaged", "autoencoder"
        assert same(tensors(before.last, *parts), tensors(after.last, *parts)) != reaches
        statistics = [tensors(run.ckpt, "normaliser") for run in (before, after)]
        assert same(*statistics) != reaches
        losses = [[line["loss"] for line in run.log] for run in (before, after)]
        assert (losses[0] == losses[1]) != reaches
        if where == VAL and not flags:
            assert before.log[0]["val_loss"] != after.log[0]["val_loss"]
        if where == TEST:
            assert before.log[0]["val_loss"] == after.log[0]["val_loss"]


def test_other_seeds_draw_other_things_and_the_same_seed_the_same(folder, tmp_path):
    """Also after the start: one state of training goes on in another way under another seed."""
    first = trained(folder, tmp_path / "a", "--steps", 4)
    again = trained(folder, tmp_path / "b", "--steps", 4)
    other = trained(folder, tmp_path / "c", "--steps", 4, "--seed", 1)
    assert same(tensors(first.last, "model"), tensors(again.last, "model"))
    assert not same(tensors(first.last, "model"), tensors(other.last, "model"))
    resumed = {}
    for seed in (0, 1):
        out = tmp_path / f"resumed-{seed}"
        shutil.copytree(tmp_path / "a", out)
        state = torch.load(out / "last.pt", weights_only=True)
        state["settings"].update(seed=seed, steps=6)
        torch.save(state, out / "last.pt")
        train.main(["--out", str(out), "--resume", "--device", "cpu"])
        resumed[seed] = torch.load(out / "last.pt", weights_only=True)
    assert resumed[0]["step"] == resumed[1]["step"] == 6
    assert not same(tensors(resumed[0], "model"), tensors(resumed[1], "model"))


@pytest.fixture
def seen(monkeypatch):
    """What passes through named functions while train.py runs: windows, and (z, n, eps) of every
    call of add_noise."""
    calls = types.SimpleNamespace(windows=[], noised=[], rates=[], clipped=[])
    draw_windows = data.draw_windows
    add_noise = neuroframes.NoiseSchedule.add_noise
    clip = torch.nn.utils.clip_grad_norm_
    step = torch.optim.AdamW.step

    def drawn(segments, *rest):
        windows = draw_windows(segments, *rest)
        calls.windows.append((list(segments), windows))
        return windows

    def noised(self, z, n, eps):
        calls.noised.append((z.clone(), n.clone(), eps.clone(), torch.is_grad_enabled()))
        return add_noise(self, z, n, eps)

    def stepped(self, *rest, **how):
        calls.rates.append([group["lr"] for group in self.param_groups])
        return step(self, *rest, **how)

    def clipped(weights, most, *rest, **how):
        calls.clipped.append(most)
        return clip(weights, most, *rest, **how)

    monkeypatch.setattr(data, "draw_windows", drawn)
    monkeypatch.setattr(neuroframes.NoiseSchedule, "add_noise", noised)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    return calls


def training_calls(calls):
    return [(z, n, eps) for z, n, eps, gradient in calls.noised if gradient]


def test_every_step_draws_windows_levels_and_noise_of_its_own(folder, tmp_path, seen):
    trained(folder, tmp_path / "a", "--steps", 30)
    training = training_calls(seen)
    assert len(seen.windows) == len(training) == 30
    segments = data.Subject(folder).segments("train")
    assert all(given == segments for given, _ in seen.windows)
    assert len({tuple(map(tuple, windows)) for _, windows in seen.windows}) == 30
    assert len({eps.sum().item() for _, _, eps in training}) == 30
    n = torch.cat([n for _, n, _ in training])
    assert 0 <= n.min() < 50 and 950 < n.max() <= 999 and len(n.unique()) > 0.9 * len(n)
    assert abs(n.float().mean() - 500) < 150 and n.float().std() > 200
    lengths = {windows[0][1] for _, windows in seen.windows}
    # --vary: a third of the 6 frames, to three times as many.
    assert min(lengths) == 2 and 16 <= max(lengths) <= 18
    for (_, windows), (z, n, eps) in zip(seen.windows, training):
        K = windows[0][1]
        assert len(windows) == len(n) == len(z) == 24 // K and z.shape[1] == eps.shape[1] == K
    eps = torch.cat([eps.flatten() for _, _, eps in training])
    assert abs(eps.mean()) < 0.05 and abs(eps.std() - 1) < 0.05
    assert seen.clipped == [1.0] * 30


def test_other_seeds_draw_other_noise_levels_and_windows(folder, tmp_path, seen):
    for seed in (0, 1):
        trained(folder, tmp_path / str(seed), "--steps", 1, "--no-vary", "--seed", seed)
    (_, n, eps), (_, other_n, other_eps) = training_calls(seen)
    assert not torch.equal(n, other_n)
    assert not torch.isclose(eps, other_eps).any()
    (_, windows), (_, other_windows) = seen.windows
    assert windows != other_windows


def test_spectra_that_would_take_too_much_are_computed_when_needed(folder, tmp_path, monkeypatch):
    """Those at the ends of what a step is shown are then of other EEG; all others are the same."""
    kept = trained(folder, tmp_path / "kept", "--steps", 6)
    monkeypatch.setattr(band_power, "AT_MOST", 1000)
    anew = trained(folder, tmp_path / "anew", "--steps", 6)
    losses = [run.last["losses"] or [line["loss"] for line in run.log] for run in (kept, anew)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_no_vary_keeps_the_length(folder, tmp_path, seen):
    trained(folder, tmp_path / "a", "--steps", 5, "--no-vary")
    assert {(len(windows), windows[0][1]) for _, windows in seen.windows} == {(4, 6)}


def encoder_inputs(monkeypatch):
    """EEG that reaches an encoder, [B,L,C,W] a call."""
    found = []

    def hook(module, inputs):
        if type(module).__name__ in ("EEGEncoder", "BandPowerEncoder"):
            found.append((inputs[0].detach().clone(), module.training))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(hook)
    return found, handle


@pytest.mark.parametrize("flags", [["--no-vary"], []])
def test_windows_bring_their_own_frames_and_eeg(folder, tmp_path, monkeypatch, seen, flags):
    """z is what the fitted autoencoder makes of the z-scored frames; EEG is scaled, of the same
    frames and of `context` around them, never of another run, and cut late by less than a frame
    with --vary."""
    fed, handle = encoder_inputs(monkeypatch)
    see_eeg_itself(monkeypatch)
    run = trained(folder, tmp_path / "a", "--steps", 8, *flags)
    handle.remove()
    subject = data.Subject(folder)
    normaliser = data.Normaliser(**{k: v.numpy() for k, v in run.ckpt["normaliser"].items()})
    ae = run.ckpt["autoencoder"]
    x = torch.from_numpy(normaliser.zscore(subject.fmri[:]))
    z_all = (x - ae["mean"]) @ ae["E"].T / ae["latent_scale"]
    recording = torch.from_numpy(normaliser.eeg(subject.eeg[:]))  # [T,C,W]
    largest = recording[:280].abs().amax(2).numpy()  # [T,C]
    np.testing.assert_allclose(np.median(largest, 0), 1, rtol=1e-6)
    shifts = set()
    fed = [eeg for eeg, training in fed if training]
    for (_, windows), (z, _, _), eeg in zip(seen.windows, training_calls(seen), fed):
        for b, (start, K, low, high) in enumerate(windows):
            torch.testing.assert_close(z[b], z_all[start : start + K], atol=1e-5, rtol=1e-4)
            around = np.clip(np.arange(start - 2, start + K + 3), low, high - 1)
            line = recording[around].transpose(0, 1).flatten(1)  # [C,(K+5)W] as it was recorded
            found = eeg[b].transpose(0, 1).flatten(1)  # [C,(K+4)W]
            W = recording.shape[-1]
            shift = [s for s in range(W) if torch.equal(line[:, s : s + found.shape[1]], found)]
            assert shift, (start, K)
            shifts.add(shift[0])
    assert shifts == ({0} if flags else {0, W // 2})


def test_the_paper_scales_eeg_by_its_largest_training_value(folder, tmp_path):
    run = trained(folder, tmp_path, "--steps", 1, "--preset", "paper")
    largest = np.abs(data.Subject(folder).eeg[:280]).max((0, 2))
    np.testing.assert_array_equal(run.ckpt["normaliser"]["eeg_scale"], largest)


def see_eeg_itself(monkeypatch):
    """Hand encoders the EEG in place of its spectra (of which tests/test_closed_form.py knows)."""
    monkeypatch.setattr(
        band_power, "computed_once", lambda encoder, read, *_: beyond.windows.late(read)
    )


@pytest.mark.parametrize("flags, where", [([], VAL), (["--no-validation"], slice(0, 320))])
def test_what_latents_leave_out_is_measured_on_frames_that_pca_has_not_seen(
    folder, tmp_path, flags, where
):
    """Without a validation run there are none."""
    ckpt = trained(folder, tmp_path, "--steps", 1, *flags).ckpt
    normaliser = data.Normaliser(**{k: v.numpy() for k, v in ckpt["normaliser"].items()})
    x = normaliser.zscore(data.Subject(folder).fmri[where]) - ckpt["autoencoder"]["mean"].numpy()
    E = ckpt["autoencoder"]["E"].numpy()
    variance = ((x - x @ E.T @ E) ** 2).mean(0)
    found, _ = ckpt["measured"]["left_out"]
    np.testing.assert_allclose(found, variance, rtol=1e-3, atol=1e-5)


def autocovariance(ckpt):
    """What a checkpoint's prior knows, [lags,d]."""
    (found,) = [w for name, w in ckpt["model"].items() if name.endswith("autocovariance")]
    return found.double()


@pytest.mark.parametrize("predict", ["eps", "v"])
@pytest.mark.parametrize("prior", ["none", "gaussian"])
@pytest.mark.parametrize("loss", ["latent", "vertex"])
def test_the_first_loss_is_that_of_a_network_that_answers_0(
    folder, tmp_path, seen, predict, prior, loss
):
    """So the logged loss is that of the prior alone, against the target; and the prior knows only
    training frames."""
    flags = ["--predict", predict, "--prior", prior, "--loss", loss, "--steps", 1, "--no-vary"]
    run = trained(folder, tmp_path, *flags)
    z, n, eps = training_calls(seen)[0]
    scale = run.ckpt["autoencoder"]["latent_scale"]
    abar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)[n][:, None, None]
    target = abar.sqrt() * eps - (1 - abar).sqrt() * z if predict == "v" else eps.double()
    guess = torch.zeros_like(target)
    if prior == "gaussian":
        c = autocovariance(run.ckpt)
        lag = (torch.arange(6)[:, None] - torch.arange(6)).abs()
        z_n = abar.sqrt() * z + (1 - abar).sqrt() * eps
        for b in range(len(z)):
            for j in range(z.shape[2]):
                C = c[lag][:, :, j]
                mix = abar[b, 0, 0] * C + (1 - abar[b, 0, 0]) * torch.eye(6)
                e = (1 - abar[b, 0, 0]).sqrt() * torch.linalg.solve(mix, z_n[b, :, j])
                if predict == "v":  # z0 and v that belong to this eps
                    e = (e - (1 - abar[b, 0, 0]).sqrt() * z_n[b, :, j]) / abar[b, 0, 0].sqrt()
                guess[b, :, j] = e
    weight = scale**2 / (scale**2).mean() if loss == "vertex" else torch.ones_like(scale)
    expected = ((guess - target).square() * weight).mean()
    assert run.log[0]["loss"] == pytest.approx(expected.item(), rel=2e-4)


def test_the_best_average_is_kept(folder, tmp_path, monkeypatch):
    """ckpt.pt: the averaged weights, of the step with the lowest validation loss, not the raw ones
    and not the last."""
    saved = []
    save = checkpoints.save

    def keep(path, state):
        if "averaged" in state:
            average = {name: w.clone() for name, w in state["averaged"].items()}
            state = {**state, "averaged": average}
        saved.append((os.path.basename(path), state))
        save(path, state)

    monkeypatch.setattr(checkpoints, "save", keep)
    run = trained(folder, tmp_path, "--steps", 40, "--lr", 0.05, "--ema", 0.5, "--warmup", 0)
    losses = {line["step"]: line["val_loss"] for line in run.log}
    best = min(losses, key=losses.get)
    assert len(losses) == 20 and best < 40, losses
    assert run.ckpt["step"] == best and run.ckpt["val_loss"] == losses[best]
    (at_best,) = [state for name, state in saved if name == "last.pt" and state["step"] == best]
    averaged = {f"model.{k}": t for k, t in at_best["averaged"].items()}
    assert same(tensors(run.ckpt, "model"), averaged)
    assert not same(tensors(run.ckpt, "model"), tensors(at_best, "model"))


def test_without_validation_the_last_step_is_kept(folder, tmp_path):
    run = trained(folder, tmp_path, "--steps", 6, "--no-validation")
    assert run.ckpt["step"] == 6 and all(line["val_loss"] is None for line in run.log)
    averaged = {f"model.{k}": t for k, t in run.last["averaged"].items()}
    assert same(tensors(run.ckpt, "model"), averaged)
    assert not same(tensors(run.ckpt, "model"), tensors(run.last, "model"))


def test_the_average_follows_its_formula(folder, tmp_path):
    """After each step: decay average + (1 - decay) weights, with decay the smaller of ema and
    (1 + step) / (10 + step)."""
    for ema in (0.9, 0.2):
        still = "--steps", 1, "--lr", 1e-30, "--ema", ema
        weights = {0: trained(folder, tmp_path / f"{ema}-0", *still).last["averaged"]}
        for steps in (1, 2):
            flags = "--steps", steps, "--ema", ema, "--warmup", 0
            weights[steps] = trained(folder, tmp_path / f"{ema}-{steps}", *flags).last
        expected = dict(weights[0])
        for step in (1, 2):
            decay = min(ema, (1 + step) / (10 + step))
            for name, w in weights[step]["model"].items():
                if w.is_floating_point() and "running" not in name:
                    expected[name] = decay * expected[name] + (1 - decay) * w
            for name, w in weights[step]["averaged"].items():
                if w.is_floating_point() and "running" not in name:
                    torch.testing.assert_close(w, expected[name], atol=1e-6, rtol=1e-5)


def test_learning_rate_warms_up_and_decays(folder, tmp_path, seen):
    run = trained(folder, tmp_path / "a", "--steps", 20, "--warmup", 4, "--lr", 0.01)
    rates = [rate for (rate,) in seen.rates]
    cosine = 0.005 * (1 + np.cos(np.pi * np.arange(20) / 20))
    np.testing.assert_allclose(rates, np.minimum(0.01 * (np.arange(20) + 1) / 4, cosine), rtol=1e-6)
    assert rates[10] == pytest.approx(0.005) and rates[19] < 1e-4
    np.testing.assert_allclose([line["lr"] for line in run.log], rates)
    seen.rates.clear()
    trained(folder, tmp_path / "b", "--steps", 5, "--warmup", 0, "--lr", 0.01)
    assert seen.rates == [[0.01]] * 5


def test_precision_is_what_is_asked_for_or_what_is_fast(folder, tmp_path, monkeypatch):
    """Narrow networks train in float32 wherever they are; wide ones on a CPU with units for
    bfloat16 in that. Either way it learns the same."""
    from tools import device

    losses = {}
    for units in (False, True):
        monkeypatch.setattr(device, "has_bfloat16", lambda _, units=units: units)
        for asked in (None, "float32", "bfloat16"):
            flags = ["--precision", asked] if asked else []
            run = trained(folder, tmp_path / f"{asked}-{units}", "--steps", 12, *flags)
            losses[asked, units] = run.last["losses"] or [line["loss"] for line in run.log]
    assert losses[None, True] == losses[None, False] == losses["float32", True]
    assert losses["bfloat16", True] != losses["float32", True]
    np.testing.assert_allclose(losses["bfloat16", True], losses["float32", True], rtol=0.02)
    for width, where, units, expected in (
        (512, "cpu", True, True),
        (256, "cpu", True, False),
        (512, "cpu", False, False),
        (128, "cuda", True, True),
    ):
        monkeypatch.setattr(device, "has_bfloat16", lambda _, units=units: units)
        kind = types.SimpleNamespace(type=where)
        monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: enabled)
        assert device.autocast(kind, width) == expected


def test_weight_decay_and_steps_from_epochs(folder, tmp_path):
    """Of weights without a gradient (all but the head's, whose zeros let nothing through) only the
    decay is left."""
    found = []
    for decay in (0, 0.5):
        flags = "--steps", 1, "--weight-decay", decay, "--warmup", 0
        found.append(trained(folder, tmp_path / f"{decay}", *flags).last["model"])
    without, with_decay = found
    (name,) = [name for name in without if name.endswith("blocks.0.mlp.0.weight")]
    torch.testing.assert_close(with_decay[name], without[name] * (1 - 3e-3 * 0.5))
    run = trained(folder, tmp_path / "epochs", "--epochs", 2)
    assert run.last["step"] == 2 * 280 // 24


def test_resume_goes_on_and_does_not_begin_anew(folder, tmp_path, seen):
    trained(folder, tmp_path, "--steps", 4)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    state["settings"]["steps"] = 7
    torch.save(state, tmp_path / "last.pt")
    before = len(seen.windows)
    train.main(["--out", str(tmp_path), "--resume", "--device", "cpu"])
    assert len(seen.windows) == before + 3
    assert [line["step"] for line in read_log(tmp_path)] == list(range(1, 8))
    assert len({tuple(map(tuple, windows)) for _, windows in seen.windows}) == 7


def test_encoder_flags_reach_the_encoder(folder, tmp_path):
    given = {
        "both": [],
        "log": ["--eeg-power", "log"],
        "conv": ["--eeg-encoder", "conv"],
        "dropped": ["--eeg-dropout", "0.99"],
    }
    outs = {}
    for name, flags in given.items():
        state = trained(folder, tmp_path / name, "--steps", 3, *flags).last
        outs[name] = state["model"].get("encoder.out.weight")
    assert outs["both"].shape == (8, 2 * 4 * 4) and outs["log"].shape == (8, 4 * 4)
    assert not torch.equal(outs["both"], outs["dropped"])
    assert outs["conv"] is None


def test_validation_is_of_the_average_without_dropout(folder, tmp_path, monkeypatch):
    """The networks that validate are not in training mode: an encoder that drops nothing, batch
    norm as it was learned."""
    fed, handle = encoder_inputs(monkeypatch)
    see_eeg_itself(monkeypatch)
    run = trained(folder, tmp_path, "--steps", 2, "--no-vary")
    handle.remove()
    subject = data.Subject(folder)
    scaled = subject.eeg[VAL] / run.ckpt["normaliser"]["eeg_scale"].numpy()[:, None]
    validating = [eeg for eeg, training in fed if not training]
    assert validating and sum(training for _, training in fed) == 2
    W = scaled.shape[-1]
    for eeg in validating:
        for window in eeg:  # [L,C,W], of the validation run
            assert any(np.allclose(window[3], frame) for frame in scaled), W


# ---- Sampling: controls, projections, seeds --------------------------------------------


@pytest.fixture(scope="module")
def ckpts(folder, tmp_path_factory):
    """Checkpoints with random weights everywhere: of the tiny preset, and one without a prior."""
    out = tmp_path_factory.mktemp("ckpts")
    plain = ["--prior", "none", "--predict", "eps", "--eeg-encoder", "conv"]
    for name, flags in (("tiny", []), ("plain", plain)):
        train.main(["--data", folder, "--out", str(out / name), *SIZES, "--steps", "1", *flags])
        path = out / name / "ckpt.pt"
        g = torch.Generator().manual_seed(0)
        state = torch.load(path, weights_only=True)
        for key, w in state["model"].items():
            if w.is_floating_point() and "running" not in key and "prior" not in key:
                w += 0.15 * torch.randn(w.shape, generator=g)
        torch.save(state, path)
    return out


def reconstructed(ckpts, tmp_path, *flags, name="tiny"):
    """What sample.py made: every method's test frames [T,V] by name, its arrays, its scores."""
    made = {}

    def also(method, k, x_hat):
        made.setdefault(method, {}).update(zip(np.asarray(k).tolist(), np.asarray(x_hat)))

    argv = ["--ckpt", str(ckpts / name / "ckpt.pt"), "--out", str(tmp_path), "--device", "cpu"]
    given = [str(f) for f in flags]
    defaults = {"--steps": "4", "--samples": "2"}
    for flag, value in defaults.items():
        if flag not in given:
            argv += [flag, value]
    sampling.main([*argv, *given], also)
    folders = [tmp_path / mode for mode in ("direct", "interrecon") if (tmp_path / mode).exists()]
    newest = max(folders, key=lambda path: path.stat().st_mtime_ns)
    arrays = {p.stem: np.load(p) for p in newest.glob("*.npy")}
    metrics = read_json(newest / "metrics.json")
    stacked = {}
    for method, found in made.items():
        stacked[method] = np.stack([found[k] for k in sorted(found)])
    shutil.rmtree(newest)
    return types.SimpleNamespace(**stacked, made=stacked, metrics=metrics, arrays=arrays)


def test_sampling_seed(ckpts, tmp_path):
    a, b, c = (reconstructed(ckpts, tmp_path, "--seed", seed) for seed in (0, 0, 1))
    assert np.array_equal(a.neuroframes, b.neuroframes)
    assert np.array_equal(a.shuffled_eeg, b.shuffled_eeg)
    assert np.abs(a.neuroframes - c.neuroframes).max() > 1e-3


def test_direct_reads_the_eeg_of_its_own_run_and_no_frames(ckpts, folder, tmp_path):
    before = reconstructed(ckpts, tmp_path)
    no_frames = changed(folder, tmp_path, "frames", fmri=noise(TEST))
    after = reconstructed(ckpts, tmp_path, "--data", no_frames)
    assert np.array_equal(before.neuroframes, after.neuroframes)
    assert np.array_equal(before.shuffled_eeg, after.shuffled_eeg)
    assert not np.array_equal(before.arrays["truth"], after.arrays["truth"])
    other_run = changed(folder, tmp_path, "eeg", eeg=noise(slice(360, 400)))
    after = reconstructed(ckpts, tmp_path, "--data", other_run)
    assert np.array_equal(before.neuroframes[:40], after.neuroframes[:40])
    assert np.abs(before.neuroframes[40:] - after.neuroframes[40:]).max() > 1e-2
    training = changed(folder, tmp_path, "training", eeg=noise(slice(0, 320)), fmri=noise(VAL))
    after = reconstructed(ckpts, tmp_path, "--data", training)
    assert np.array_equal(before.neuroframes, after.neuroframes)


def test_eeg_is_scaled_as_in_training(ckpts, folder, tmp_path):
    """EEG 8 times as large, and a scale 8 times as large: the same bits. The scale alone: not."""
    before = reconstructed(ckpts, tmp_path)
    loud = changed(folder, tmp_path, "loud", eeg=lambda eeg: 8 * eeg)
    after = reconstructed(ckpts, tmp_path, "--data", loud)
    assert np.abs(before.neuroframes - after.neuroframes).max() > 1e-2
    state = torch.load(ckpts / "tiny" / "ckpt.pt", weights_only=True)
    state["normaliser"]["eeg_scale"] *= 8
    (tmp_path / "scaled").mkdir()
    torch.save(state, tmp_path / "scaled" / "ckpt.pt")
    after = reconstructed(tmp_path, tmp_path, "--data", loud, name="scaled")
    assert np.array_equal(before.neuroframes, after.neuroframes)


@pytest.mark.parametrize("flags", [["--gap", 3], ["--anchors", "0,5"], ["--observe", "patch"]])
def test_each_control_depends_on_what_it_should(ckpts, folder, tmp_path, flags):
    """Change the EEG of the test runs; the observed frames; the others: who notices?"""
    vertex = np.arange(64)
    patch = (vertex % 8 < 4) & (vertex // 8 < 4)
    anchors = {"--gap": [0, 3], "--anchors": [0, 5], "--observe": []}[flags[0]]
    whole = np.isin(np.arange(40) % 6, anchors)
    part = patch if "--observe" in flags else np.zeros(64, bool)
    seen_part = np.tile(whole[:, None] | part, (2, 1))

    def shift(observed):
        def change(fmri):
            fmri[TEST] += np.where(seen_part == observed, 30.0, 0.0)
            return fmri

        return change

    before = reconstructed(ckpts, tmp_path, *flags)
    subjects = {
        "eeg": changed(folder, tmp_path, "eeg", eeg=noise(TEST)),
        "observed": changed(folder, tmp_path, "observed", fmri=shift(True)),
        "others": changed(folder, tmp_path, "others", fmri=shift(False)),
    }
    notices = {
        "neuroframes": {"eeg", "observed"},
        "neuroframes_1": {"eeg", "observed"},
        "shuffled_eeg": {"eeg", "observed"},
        "no_null_space": {"eeg"},
        "gaussian": {"observed"},
        "mean_frame": set(),
        "linear": {"observed"},
    }
    for what, subject in subjects.items():
        after = reconstructed(ckpts, tmp_path, "--data", subject, *flags)
        for method, by in notices.items():
            if method == "linear" and "--observe" in flags:
                assert method not in before.made  # nothing was seen whole
                continue
            pair = [run.made[method][~seen_part] for run in (before, after)]
            assert np.array_equal(*pair) == (what not in by), (method, what)


def test_controls_have_their_values(ckpts, folder, tmp_path):
    """Mean frame 0; straight lines between anchors of the same run; C_mo C_oo^-1 y; what the
    sources cause; all scored alike."""
    run = reconstructed(ckpts, tmp_path, "--anchors", "0,4", "--window", 40, "--overlap", 0)
    truth = run.arrays["truth"]
    seen_frames = np.isin(np.arange(40) % 6, [0, 4])
    state = torch.load(ckpts / "tiny" / "ckpt.pt", weights_only=True)
    ae = state["autoencoder"]
    c = autocovariance(state)
    assert not run.mean_frame.any()
    at = np.flatnonzero(seen_frames)
    C = c[(torch.arange(40)[:, None] - torch.arange(40)).abs()].permute(2, 0, 1)  # [d,T,T]
    gain = C[:, :, at] @ torch.linalg.inv(C[:, at][:, :, at])
    for rows in (slice(0, 40), slice(40, 80)):
        x = truth[rows]
        lines = np.stack([np.interp(np.arange(40), at, x[at, v]) for v in range(64)], 1)
        np.testing.assert_allclose(run.linear[rows], lines, atol=1e-5)
        y = (torch.from_numpy(x[at]) - ae["mean"]) @ ae["E"].T / ae["latent_scale"]
        z = torch.einsum("dto,od->td", gain, y.double()).float()
        frames = (z * ae["latent_scale"]) @ ae["E"] + ae["mean"]
        found = run.gaussian[rows]
        np.testing.assert_allclose(found[~seen_frames], frames[~seen_frames], atol=5e-3)
    subject = data.Subject(folder)
    normaliser = data.Normaliser(**{k: v.numpy() for k, v in state["normaliser"].items()})
    np.testing.assert_allclose(run.ceiling, normaliser.zscore(subject.driven[TEST]), atol=1e-5)
    np.testing.assert_allclose(truth, normaliser.zscore(subject.fmri[TEST]), atol=1e-5)


def cosine(a, b):
    """Of each row; 0 where one is flat, but for rounding errors."""
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(1) / np.where(norm > 1e-9, norm, 1)


@pytest.mark.parametrize("flags", [[], ["--gap", 3]])
def test_scores_are_those_of_the_frames(ckpts, folder, tmp_path, flags):
    """Of every method and region, mean over frames and deviation over windows; what was observed
    does not count."""
    run = reconstructed(ckpts, tmp_path, *flags)
    subject = data.Subject(folder)
    truth = run.arrays["truth"]
    free = np.tile(~np.isin(np.arange(40) % 6, [0, 3] if flags else []), 2)
    windows = []
    for end in (40, 80):  # of a run
        windows += [slice(i, min(i + 6, end)) for i in range(end - 40, end, 6)]
    np.testing.assert_array_equal(run.arrays["recon"], run.neuroframes)
    for method, frames in run.made.items():
        for region, mask in {"whole": np.ones(64, bool), **subject.rois}.items():
            a = frames[:, mask].astype(float)
            b = truth[:, mask].astype(float)
            mse = ((a - b) ** 2).mean(1)
            cos = cosine(a, b)
            r = cosine(a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True))
            for metric, values in {"mse": mse, "r": r, "cos": cos}.items():
                which = method, region, metric
                mean = values[free].mean()
                std = np.std([values[w][free[w]].mean() for w in windows])
                found = run.metrics["scores"][method][region][metric]
                assert found["mean"] == pytest.approx(mean, abs=1e-5), which
                assert found["std"] == pytest.approx(std, abs=1e-5), which
    assert run.metrics["scores"]["ceiling"].keys() == {"whole", "patch"}
    first, second = run.metrics["runs"]  # of 40 frames each
    assert (first["run"], second["run"], first["frames"], second["frames"]) == (9, 10, 40, 40)
    assert first["start"] == second["start"] == pytest.approx(5 * 0.8)
    for low, row in ((0, first), (40, second)):
        rows = low + np.flatnonzero(free[low : low + 40])
        mse = ((run.neuroframes - truth)[rows] ** 2).mean()
        r = [np.corrcoef(run.neuroframes[t], truth[t])[0, 1] for t in rows]
        assert row["mse"] == pytest.approx(mse, abs=1e-5)
        assert row["r"] == pytest.approx(np.mean(r), abs=1e-5)
        assert row["mean_frame_mse"] == pytest.approx((truth[rows] ** 2).mean(), abs=1e-5)


def decoded(monkeypatch):
    """Latents that are decoded with a leading axis of samples, in order."""
    found = []
    decode = neuroframes.LinearAutoencoder.decode

    def kept(self, z):
        out = decode(self, z)
        if z.ndim > 2:
            found.append((z.clone(), out.clone()))
        return out

    monkeypatch.setattr(neuroframes.LinearAutoencoder, "decode", kept)
    return found


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
def test_mean_spread_and_first_sample(ckpts, tmp_path, monkeypatch, samples):
    """Opposite pairs have their mean in the middle: no degree of freedom is lost. Else one is."""
    found = decoded(monkeypatch)
    run = reconstructed(ckpts, tmp_path, "--samples", samples)
    if samples == 1:
        assert "std" not in run.arrays and np.array_equal(run.neuroframes, run.neuroframes_1)
        return
    # Block by block the means of all methods are decoded, and then NeuroFrames' samples.
    assert {len(z) for z, _ in found[1::2]} == {samples}
    blocks = [x.numpy().reshape(samples, -1, 64) for _, x in found[1::2]]
    frames = np.concatenate(blocks, 1)[:, :80]
    np.testing.assert_allclose(run.neuroframes, frames.mean(0), atol=1e-5)
    np.testing.assert_allclose(run.neuroframes_1, frames[0], atol=1e-5)
    np.testing.assert_allclose(run.arrays["std"], frames.std(0, ddof=samples % 2), atol=1e-4)
    assert run.metrics["samples"] == samples


def calls_of_denoise(monkeypatch, recompute=False):
    """Arguments of every call of Algorithm 1, the inputs of its network and the noise it begins
    with. recompute: always epsilon."""
    found = []

    def watched(denoise):
        def wrapped(eps_model, project, draw, shape, schedule, steps, eta, reuse_eps):
            inputs = []

            def eps(z_n, n):
                inputs.append((z_n.clone(), int(n.flatten()[0])))
                return eps_model(z_n, n)

            how = {"shape": shape, "held": project is not None, "reuse_eps": reuse_eps, "eta": eta}
            found.append(types.SimpleNamespace(inputs=inputs, **how))
            reuse_eps = reuse_eps and not recompute
            return denoise(eps, project, draw, shape, schedule, steps, eta, reuse_eps)

        return wrapped

    monkeypatch.setattr(neuroframes, "denoise", watched(neuroframes.denoise))
    monkeypatch.setattr(beyond.second_order, "denoise", watched(beyond.second_order.denoise))
    return found


def test_even_numbers_of_samples_come_as_opposite_pairs(ckpts, tmp_path, monkeypatch):
    calls = calls_of_denoise(monkeypatch)
    reconstructed(ckpts, tmp_path, "--samples", 4)
    reconstructed(ckpts, tmp_path, "--samples", 3)
    noise = calls[0].inputs[0][0]  # [4 x 2 runs,T,d]
    assert torch.equal(noise[:4], -noise[4:]) and len(noise) == 8
    assert not torch.equal(noise[:2], noise[2:4])
    noise = calls[-1].inputs[0][0]
    assert len(noise) == 6
    assert not any(torch.equal(noise[i], -noise[j]) for i in range(6) for j in range(i))


def test_steps_eta_and_epsilon_are_those_asked_for(ckpts, tmp_path, monkeypatch):
    calls = calls_of_denoise(monkeypatch)
    deterministic = reconstructed(ckpts, tmp_path, "--gap", 3, "--steps", 7)
    visited = [n for _, n in calls[0].inputs]
    signal = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    ratio = np.log(signal / (1 - signal))  # of signal over noise
    even = np.linspace(ratio[-1], ratio[0], 7)
    assert visited == np.abs(ratio - even[:, None]).argmin(1).tolist()
    assert len(calls) == 3  # with the EEG, with shuffled EEG, without the null space
    noisy = reconstructed(ckpts, tmp_path, "--gap", 3, "--steps", 7, "--eta", 1)
    assert np.abs(deterministic.neuroframes - noisy.neuroframes).max() > 1e-2
    first_order = np.linspace(999, 0, 7).round().astype(int).tolist()
    assert [n for _, n in calls[-1].inputs] == first_order
    calls.clear()
    plain = reconstructed(ckpts, tmp_path, "--gap", 3, "--steps", 7, "--projection", "plain")
    assert np.abs(deterministic.neuroframes - plain.neuroframes).max() > 1e-3
    assert [call.reuse_eps for call in calls] == [True] * 3
    assert [n for _, n in calls[0].inputs] == first_order
    ckpt = ["--ckpt", str(ckpts / "tiny" / "ckpt.pt"), "--out", str(tmp_path), "--device", "cpu"]
    for flags, count in (([], 15), (["--projection", "plain"], 50), (["--paper"], 50)):
        calls.clear()
        sampling.main([*ckpt, "--gap", "3", "--samples", "1", *flags])
        assert len(calls[0].inputs) == count, flags


@pytest.mark.parametrize("name", ["tiny", "plain"])
def test_windows_apart_know_nothing_of_each_other(ckpts, folder, tmp_path, name):
    """Without overlap a change of EEG stays in its window, but for `context` around it; with
    overlap it travels."""
    other = changed(folder, tmp_path, "eeg", eeg=noise(slice(320, 324)))
    for overlap, travels in ((0, False), (4, True)):
        flags = "--window", 8, "--overlap", overlap
        before = reconstructed(ckpts, tmp_path, *flags, name=name)
        after = reconstructed(ckpts, tmp_path, *flags, "--data", other, name=name)
        moved = np.abs(before.neuroframes - after.neuroframes).max(1)
        assert (moved[:4] > 1e-4).all() and (moved[40:] == 0).all()
        assert (moved[8 : 8 + 8].max() > 1e-5) == travels
        assert moved[36] == 0 or travels


def test_context_is_as_wide_as_in_training(ckpts, folder, tmp_path):
    """2 frames before and after a window: with windows of 8 frames apart, the window 0 to 7 hears
    the EEG tokens of frames up to 9. Band power looks at a frame's neighbours too, so that EEG up
    to frame 10 is heard."""
    before = reconstructed(ckpts, tmp_path, "--window", 8, "--overlap", 0)
    for frame, heard in ((9, True), (10, True), (11, False), (12, False), (13, False)):
        other = changed(folder, tmp_path, f"{frame}", eeg=noise(slice(320 + frame, 321 + frame)))
        after = reconstructed(ckpts, tmp_path, "--window", 8, "--overlap", 0, "--data", other)
        assert (np.abs(before.neuroframes[:8] - after.neuroframes[:8]).max() > 0) == heard, frame


def test_shuffled_eeg_is_that_of_half_of_all_test_frames_away(ckpts, folder, tmp_path):
    """Change the EEG of a block of 8 frames: with windows apart the blocks that notice are the one
    that has it, 40 of the 80 frames on, and those next to that one, by their context of 2."""
    flags = "--frames", 8, "--window", 8, "--overlap", 0
    before = reconstructed(ckpts, tmp_path, *flags, name="plain")
    blocks = [(i, i + 8) for i in range(0, 80, 8)]
    near = [{j for j in (i - 1, i, i + 1) if j // 5 == i // 5} for i in range(10)]
    for b, (start, stop) in enumerate(blocks):
        other = changed(folder, tmp_path, f"{b}", eeg=noise(slice(320 + start, 320 + stop)))
        after = reconstructed(ckpts, tmp_path, *flags, "--data", other, name="plain")
        for method, whose in (("neuroframes", b), ("shuffled_eeg", (b + 5) % 10)):
            change = np.abs(before.made[method] - after.made[method]).max(1)
            notice = {i for i, (low, high) in enumerate(blocks) if change[low:high].any()}
            assert notice == near[whose]


@pytest.mark.parametrize("flags", [[], ["--gap", 3], ["--paper", "--gap", 3, "--eta", 1]])
@pytest.mark.parametrize("runs_at_once", [2, 1])
def test_methods_differ_by_what_they_are_given_and_not_by_noise(
    ckpts, folder, tmp_path, monkeypatch, flags, runs_at_once
):
    """Both test runs have the same EEG: rotated by a run it is what it was, and so is what is drawn
    from it. But what is drawn of one run is not that of the other."""
    if runs_at_once == 1:
        monkeypatch.setattr(beyond.drawing, "LATENTS_AT_ONCE", 1)

    def twice(eeg):
        eeg[360:400] = eeg[320:360]
        return eeg

    other = changed(folder, tmp_path, "twice", eeg=twice)
    run = reconstructed(ckpts, tmp_path, "--data", other, *flags)
    np.testing.assert_allclose(run.shuffled_eeg, run.neuroframes, atol=1e-4)
    free = np.flatnonzero((run.neuroframes != run.arrays["truth"]).any(1))
    first = free[free < 40]
    assert np.abs(run.neuroframes[first] - run.neuroframes[first + 40]).max() > 1e-2
    if flags:
        alone = reconstructed(ckpts, tmp_path, "--data", other, *flags, "--no-null-space")
        np.testing.assert_allclose(run.no_null_space, alone.neuroframes, atol=1e-4)


@pytest.mark.parametrize("flags", [[], ["--gap", 3], ["--observe", "patch", "--gap", 3]])
def test_r_over_time_is_that_of_what_was_written(ckpts, folder, tmp_path, flags):
    """Of what was not observed, each run less its own mean; with --upsample of the frames only.
    shuffled.npy is what is scored as such."""
    run = reconstructed(ckpts, tmp_path, *flags, "--upsample", 2)
    truth = np.float64(run.arrays["truth"])
    np.testing.assert_array_equal(run.arrays["shuffled"][::2], run.shuffled_eeg)
    vertex = np.arange(64)
    patch = (vertex % 8 < 4) & (vertex // 8 < 4)
    whole = np.tile(np.isin(np.arange(40) % 6, [0, 3] if "--gap" in flags else []), 2)
    hidden = ~whole[:, None] & ~(patch & ("--observe" in flags))
    for name, method, made in (
        ("r_time", "neuroframes", run.neuroframes),
        ("r_time_shuffled", "shuffled_eeg", run.shuffled_eeg),
    ):
        expected = np.full(64, np.nan)
        for v in np.flatnonzero(hidden.any(0)):
            pair = []
            for x in (np.float64(made[:, v]), truth[:, v]):
                runs = [x[low : low + 40][hidden[low : low + 40, v]] for low in (0, 40)]
                pair.append(np.concatenate([part - part.mean() for part in runs]))
            expected[v] = np.corrcoef(*pair)[0, 1]
        np.testing.assert_allclose(run.arrays[name], expected, atol=1e-5)
        found = run.metrics["over_time"][method]
        assert found.keys() == {"whole"} | ({"patch"} if "--observe" not in flags else set())
        for region, mask in (("whole", vertex >= 0), ("patch", patch)):
            if region in found:
                mean = np.nanmean(expected[mask])
                assert found[region]["r_vertices"] == pytest.approx(mean, abs=1e-5)
    assert run.metrics["helped"].keys() == run.metrics["scores"]["neuroframes"].keys()


def test_the_verdict_hears_of_the_truth_and_of_the_reconstruction(ckpts, folder, tmp_path):
    """BOLD that is made of what is reconstructed: p is as low as can be. At the wrong time: not."""
    before = reconstructed(ckpts, tmp_path)
    subject = data.Subject(folder)
    state = torch.load(ckpts / "tiny" / "ckpt.pt", weights_only=True)["normaliser"]
    normaliser = data.Normaliser(**{name: t.numpy() for name, t in state.items()})
    made = before.neuroframes + np.random.default_rng(0).standard_normal((80, 64))
    late = [np.roll(made[low : low + 40], 20, axis=0) for low in (0, 40)]

    def told(x):
        def change(fmri):
            fmri[TEST] = normaliser.raw(x)
            return fmri

        other = changed(folder, tmp_path, f"told-{len(os.listdir(tmp_path))}", fmri=change)
        return reconstructed(ckpts, tmp_path, "--data", other).metrics["helped"]

    assert subject.rois.keys() == {"patch"}
    assert {row["p"] for row in told(made).values()} == {1 / 1000}
    assert told(np.concatenate(late))["whole"]["p"] > 0.05


def test_anchors_are_held_at_every_step_and_come_back_exactly(ckpts, tmp_path, monkeypatch):
    found = decoded(monkeypatch)
    run = reconstructed(ckpts, tmp_path, "--gap", 3, "--samples", 1)
    seen_frames = np.tile(np.arange(40) % 6 % 3 == 0, 2)
    truth = run.arrays["truth"]
    assert np.array_equal(run.neuroframes[seen_frames], truth[seen_frames])
    assert np.array_equal(run.shuffled_eeg[seen_frames], truth[seen_frames])
    assert not np.array_equal(run.no_null_space[seen_frames], truth[seen_frames])
    assert run.metrics["anchor_residual"] == 0
    # What the last projection has to mend is what latents leave out: the decoded anchors are
    # D(E(x)).
    state = torch.load(ckpts / "tiny" / "ckpt.pt", weights_only=True)["autoencoder"]
    E = state["E"].numpy()
    x = truth[seen_frames] - state["mean"].numpy()
    left_out = x - x @ E.T @ E
    blocks = [slice(i, min(i + 6, low + 40)) for low in (0, 40) for i in range(low, low + 40, 6)]
    rows = np.flatnonzero(seen_frames)
    parts = [(left_out[(rows >= b.start) & (rows < b.stop)] ** 2).mean() for b in blocks]
    assert run.metrics["residual_before"] == pytest.approx(np.mean(parts) ** 0.5, rel=1e-2)
    assert found


def test_no_null_space_is_what_the_eeg_alone_says(ckpts, tmp_path):
    free = reconstructed(ckpts, tmp_path, "--gap", 3, "--no-null-space")
    direct = reconstructed(ckpts, tmp_path)
    np.testing.assert_array_equal(free.neuroframes, direct.neuroframes)
    assert free.metrics["null_space"] is False and free.metrics["anchor_residual"] is None
    assert "no_null_space" not in free.metrics["scores"]


def test_calibration_scale_is_of_the_validation_run(ckpts, folder, tmp_path):
    flags = "--gap", 3, "--calibrate", "--samples", 4
    scales = {}
    for name, where in (("test", TEST), ("val", VAL), ("none", slice(0, 0))):
        other = changed(folder, tmp_path, name, fmri=noise(where))
        found = reconstructed(ckpts, tmp_path, *flags, "--data", other).metrics["calibration"]
        assert len(found) == 3
        scales[name] = list(found)[-1]
    assert scales["test"] == scales["none"] != scales["val"]


def test_spread_is_compared_with_the_error(ckpts, tmp_path):
    run = reconstructed(ckpts, tmp_path, "--samples", 8)
    error = np.abs(run.neuroframes - run.arrays["truth"])
    std = run.arrays["std"]
    found = run.metrics["calibration"]["samples"]  # four pairs: Student's t of 4 degrees
    ratio = np.sqrt((std**2).sum() / (error**2).sum())
    assert found["spread_to_error"] == pytest.approx(ratio, rel=1e-4)
    assert found["coverage_90"] == pytest.approx((error < 2.132 * std).mean(), abs=1e-3)
    assert found["coverage_50"] == pytest.approx((error < 0.741 * std).mean(), abs=1e-3)


@pytest.mark.parametrize("name", ["tiny", "plain"])
@pytest.mark.parametrize("flags", [[], ["--gap", 3], ["--gap", 3, "--paper"]])
def test_a_subject_with_test_frames_only_is_scored_as_with_the_others(
    ckpts, folder, tmp_path, name, flags
):
    """What training frames tell is in the checkpoint."""
    only = only_test_frames(folder, tmp_path)
    runs = [
        reconstructed(ckpts, tmp_path, *flags, "--data", subject, name=name)
        for subject in (folder, only)
    ]
    assert runs[0].made.keys() == runs[1].made.keys()
    for method in runs[0].made:
        np.testing.assert_array_equal(runs[0].made[method], runs[1].made[method])
    assert runs[0].metrics["calibration"] == runs[1].metrics["calibration"]


def only_test_frames(folder, tmp_path):
    copy = changed(folder, tmp_path, "only")
    path = os.path.join(copy, "subject.json")
    files.save_json(path, {**read_json(path), "split": {"test": list(range(400)[TEST])}})
    return copy


def test_parts_of_frames_of_a_subject_with_test_frames_only(ckpts, folder, tmp_path):
    """R is then of what the checkpoint knows: no longer of the validation run, of which it is
    otherwise, and not of training frames."""
    before = reconstructed(ckpts, tmp_path, "--observe", "patch")
    subjects = {
        "only": only_test_frames(folder, tmp_path),
        "val": changed(folder, tmp_path, "val", fmri=noise(VAL)),
        "train": changed(folder, tmp_path, "train", fmri=noise(slice(0, 280))),
    }
    far = {}
    for what, subject in subjects.items():
        after = reconstructed(ckpts, tmp_path, "--observe", "patch", "--data", subject)
        far[what] = np.abs(after.neuroframes - before.neuroframes).max()
    assert far["train"] == 0 < far["only"] < 1 and far["val"] > 0


def test_an_autoencoder_trained_along_needs_training_frames(folder, tmp_path, capsys):
    trained(folder, tmp_path / "out", "--steps", 1, "--autoencoder", "joint")
    flags = ["--ckpt", str(tmp_path / "out" / "ckpt.pt"), "--device", "cpu", "--steps", "2"]
    sampling.main(flags)  # measured anew
    with pytest.raises(SystemExit):
        sampling.main([*flags, "--data", only_test_frames(folder, tmp_path)])
    assert "only: has no training frames, and" in capsys.readouterr().err


def test_points_between_frames_hear_the_eeg_of_their_time(ckpts, folder, tmp_path):
    """EEG of the second half of a frame's window moves the point half a TR later more than the
    frame itself."""

    def late(eeg):
        W = eeg.shape[-1]
        eeg[325, :, W // 2 :] *= -3
        return eeg

    other = changed(folder, tmp_path, "late", eeg=late)
    flags = "--upsample", 2, "--gap", 3
    pair = [reconstructed(ckpts, tmp_path, *flags, *more) for more in ([], ["--data", other])]
    recon = [run.arrays["recon"] for run in pair]
    assert recon[0].shape == (160, 64)
    assert np.array_equal(pair[0].arrays["frames"], 320 + np.arange(160) / 2)
    np.testing.assert_array_equal(recon[0][::2], pair[0].neuroframes)
    moved = np.abs(recon[0] - recon[1]).max(1)
    assert moved[80:].max() == 0 and moved[11] > 0


def test_period_of_anchors_and_scored_windows(ckpts, tmp_path):
    run = reconstructed(ckpts, tmp_path, "--frames", 8, "--anchors", "0,7")
    kept = np.tile(np.isin(np.arange(40) % 8, [0, 7]), 2)
    assert np.array_equal(run.neuroframes[kept], run.arrays["truth"][kept])
    assert (run.neuroframes[~kept] != run.arrays["truth"][~kept]).any(1).all()
    assert run.metrics["frames"] == 8


# ---- The paper to the letter -----------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "plain"])
@pytest.mark.parametrize("anchors", [[], ["--anchors", "0,4"]])
def test_the_paper_is_what_is_left_without_the_chapters(
    ckpts, tmp_path, monkeypatch, name, anchors
):
    """Windows apart, one sample, A^+, epsilon recomputed: beyond.WholeRuns with all of it switched
    off, but for epsilon, which is the one thing that has no flag, draws the same frames from the
    same noise."""
    calls = calls_of_denoise(monkeypatch, recompute=True)
    flags = *anchors, "--frames", 8, "--eta", 1, "--steps", 5, "--samples", 1
    paper = reconstructed(ckpts, tmp_path, "--paper", *flags, name=name)
    assert all(call.reuse_eps is False and call.eta == 1 for call in calls)
    assert [call.held for call in calls] == ([True, True, False] if anchors else [False, False])
    assert calls[0].shape == (10, 8, 6)  # all windows of both runs, one sample
    calls.clear()
    off = "--projection", "plain", "--window", 8, "--overlap", 0
    ours = reconstructed(ckpts, tmp_path, *flags, *off, name=name)
    assert calls[0].reuse_eps is True and calls[0].shape == (2, 40, 6)
    assert paper.made.keys() == ours.made.keys()
    for method in paper.made:
        far = np.abs(paper.made[method] - ours.made[method]).max()
        assert far < 1e-3 * max(1, np.abs(ours.made[method]).max()), (method, far)


def test_the_papers_samples_and_steps(ckpts, tmp_path, monkeypatch):
    """One sample, DDIM of 50 calls unless said otherwise; 1,000 calls with the noise of DDPM;
    several samples are averaged."""
    calls = calls_of_denoise(monkeypatch)
    one = reconstructed(ckpts, tmp_path, "--paper", "--samples", 1, "--steps", 50)
    assert one.metrics["samples"] == 1 and one.metrics["paper"] is True
    assert len(calls[0].inputs) == 50
    assert calls[0].eta == 0 and calls[0].held is False
    assert np.array_equal(one.neuroframes, one.neuroframes_1)
    calls.clear()
    reconstructed(ckpts, tmp_path, "--paper", "--samples", 1, "--steps", 1000, "--eta", 1)
    assert [n for _, n in calls[0].inputs] == list(range(999, -1, -1))
    few = reconstructed(ckpts, tmp_path, "--paper", "--samples", 3)
    noise = [call.inputs[0][0] for call in calls[-6:-3]]
    assert not any(torch.equal(noise[i], -noise[j]) for i in range(3) for j in range(3))
    assert few.arrays["std"].shape == (80, 64) and few.arrays["std"].min() > 0


@pytest.mark.parametrize("flags", [[], ["--gap", 3]])
def test_the_paper_draws_on_the_device_of_the_network(ckpts, tmp_path, monkeypatch, flags):
    """What is drawn is like y, also where nothing was observed, and mask says that."""
    given = []
    sample = neuroframes.sample

    def wrapped(*rest, y=None, mask=None, **how):
        given.append((y is not None, mask is not None))
        return sample(*rest, y=y, mask=mask, **how)

    monkeypatch.setattr(sampling, "sample", wrapped)
    reconstructed(ckpts, tmp_path, "--paper", "--samples", 1, "--steps", 2, *flags)
    assert all(y for y, _ in given)
    assert {mask for _, mask in given} == ({True, False} if flags else {False})


def test_the_papers_windows_know_nothing_of_each_other(ckpts, folder, tmp_path):
    flags = "--paper", "--frames", 8
    before = reconstructed(ckpts, tmp_path, *flags, name="plain")
    other = changed(folder, tmp_path, "eeg", eeg=noise(slice(320, 328)))
    after = reconstructed(ckpts, tmp_path, *flags, "--data", other, name="plain")
    moved = np.abs(before.neuroframes - after.neuroframes).max(1)
    assert (moved[:8] > 0).all() and (moved[8:16] > 0).any()  # by their context of 2 frames
    assert not moved[16:].any()
