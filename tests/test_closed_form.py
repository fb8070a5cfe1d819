"""The closed form, its stack with the network, and the settings that `--preset auto` chooses."""

import math
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL, ar1, command, read_json

import data
import sample as sampling
import train
from beyond import auto, band_power, linear_gaussian, stacked, windows
from beyond.gaussian_prior import GaussianPrior
from beyond.linear_gaussian import LinearGaussian
from neuroframes import NoiseSchedule

AUTO = [flag if flag != "tiny" else "auto" for flag in SMALL]

# ---- Ridge -----------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [20, 60])  # fewer than features, and more
def test_ridge_solves_the_normal_equations_at_every_penalty(frames):
    g = torch.Generator().manual_seed(0)
    X = torch.randn(frames, 30, generator=g, dtype=torch.float64)
    z = torch.randn(frames, 3, generator=g, dtype=torch.float64)
    left, power, right = linear_gaussian.ridge(X, z)
    for penalty in (0.1, 10.0, 1e4):
        expected = torch.linalg.solve(X.T @ X + penalty * torch.eye(30), X.T @ z)
        torch.testing.assert_close(left @ (right / (power[:, None] + penalty)), expected)


def test_predictions_know_nothing_of_their_own_fold():
    g = torch.Generator().manual_seed(1)
    X = torch.randn(40, 5, generator=g)
    z = torch.randn(40, 2, generator=g)
    fold = torch.arange(40) * 4 // 40
    before = linear_gaussian.predictions(X, z, fold)
    z[fold == 2] += torch.randn(10, 2, generator=g)
    after = linear_gaussian.predictions(X, z, fold)
    assert torch.equal(before[:, fold == 2], after[:, fold == 2])
    assert not torch.allclose(before[:, fold == 1], after[:, fold == 1])
    # A penalty without end leaves the mean of the other folds.
    offset = z[fold != 0].mean(0)
    assert (after[-1, fold == 0] - offset).abs().max() < 0.1 * (after[0, fold == 0] - offset).std()


def test_folds_are_whole_runs_or_quarters():
    first, last, fold = linear_gaussian.borders([(0, 10), (10, 30), (50, 55)])
    assert first.tolist() == [0] * 10 + [10] * 20 + [30] * 5
    assert last.tolist() == [9] * 10 + [29] * 20 + [34] * 5
    assert fold.tolist() == [0] * 10 + [1] * 20 + [2] * 5
    assert linear_gaussian.borders([(0, 8), (8, 16)])[2].tolist() == [i // 4 for i in range(16)]
    many = linear_gaussian.borders([(10 * i, 10 * i + 10) for i in range(12)])[2]
    assert sorted(set(many.tolist())) == list(range(5))


# ---- The closed form -------------------------------------------------------------------


def planted(rng, logarithm, late, tr=0.8, delay=4.0, runs=4, frames=220, channels=3, W=40):
    """EEG [T,C,W] of oscillations whose amplitude wanders, and latents [T,2] that are a linear
    function of their power, or its logarithm, `late` seconds earlier."""
    amplitude = np.exp(0.7 * rng.standard_normal((runs, frames + 40, channels)))
    t = np.arange((frames + 40) * W) * tr / W
    eeg = []
    z = []
    for run in amplitude:
        carrier = np.sin(2 * np.pi * np.array([8, 11, 14]) * t[:, None] + rng.uniform(size=3))
        wave = (np.repeat(run, W, 0) * carrier).reshape(frames + 40, W, channels)
        said = np.log(run) if logarithm else run**2
        lags = np.arange(-12, 13)  # frames; of a window's middle, which is half a frame later
        g = np.exp(-0.5 * ((lags * tr + tr / 2 - delay + late) / 1.5) ** 2)
        smooth = np.stack([np.convolve(u, g[::-1], "same") for u in said.T], 1)
        eeg.append(wave[20:-20].transpose(0, 2, 1))
        z.append((smooth @ [[1, 0.3], [-0.5, 1], [0.2, 0.8]])[20:-20])
    z = np.concatenate(z)
    z = (z - z.mean(0)) / z.std(0) + 0.3 * rng.standard_normal(z.shape)
    segments = [(frames * i, frames * (i + 1)) for i in range(runs)]
    return np.concatenate(eeg).astype(np.float32), torch.from_numpy(z.astype(np.float32)), segments


def fitted(eeg, z, segments, tr=0.8, delay=4.0):
    linear = LinearGaussian(z.shape[1], eeg.shape[1], cycles=15, bands=9, tr=tr, delay=delay)
    _, said = linear.fit(lambda rows: torch.from_numpy(eeg[rows]), segments, z)
    return linear, said


@pytest.mark.parametrize("logarithm, late", [(True, 5.0), (False, 5.0), (True, 7.0)])
def test_the_closed_form_finds_how_bold_follows_the_eeg(logarithm, late):
    eeg, z, segments = planted(np.random.default_rng(0), logarithm, late)
    linear, said = fitted(eeg, z[: segments[2][1]], segments[:3])
    assert bool(linear.chosen[0]) == logarithm and ("log power" in said) == logarithm
    assert abs(float(linear.chosen[1]) - late) <= 1
    low, high = segments[3]
    m = linear.expected(lambda rows: torch.from_numpy(eeg[rows]), low, high)
    left = (z[low:high] - m).var(0)  # 0.09 is noise that nobody can tell
    assert (left < 0.3).all() and (z[low:high].var(0) > 0.8).all()
    # What it says of itself was measured on frames that it had not seen.
    claimed = linear.residual.autocovariance[0]
    if late == 5:  # (At 7 a window's border cuts more of the response off, and not in all runs.)
        torch.testing.assert_close(claimed, left, rtol=0.6, atol=0.05)


def test_eeg_that_says_nothing_leaves_the_mean_and_the_latents_own_covariance():
    rng = np.random.default_rng(3)
    eeg, _, segments = planted(rng, True, 5.0)
    z = ar1(rng, len(eeg), 2)
    linear, _ = fitted(eeg, z, segments)
    unseen, again, _ = planted(np.random.default_rng(4), True, 5.0)
    m = linear.expected(lambda rows: torch.from_numpy(unseen[rows]), *segments[0])
    assert m.square().mean() < 0.05  # of variance 1: what it costs to have looked for something
    prior = GaussianPrior(2)
    prior.fit(z.split(220))
    torch.testing.assert_close(
        linear.residual.autocovariance[:5], prior.autocovariance[:5], atol=0.06, rtol=0
    )


def test_a_closed_form_that_predicts_worse_than_the_mean_says_nothing():
    """Few runs, and slow latents of which the EEG knows nothing."""
    rng = np.random.default_rng(5)
    eeg, _, segments = planted(rng, True, 5.0, frames=60)
    z = torch.from_numpy(data.slow_noise(rng, len(eeg), 40, 6.0, 0.8)).float()
    z -= z.mean(0)
    linear, said = fitted(eeg, z, segments)
    m = linear.expected(lambda rows: torch.from_numpy(eeg[rows]), *segments[0])
    assert "explains 0.0%" in said and m.abs().max() < 1e-6
    prior = GaussianPrior(40)
    prior.fit(z.split(60))
    torch.testing.assert_close(linear.residual.autocovariance, prior.autocovariance)


def test_an_electrode_that_pops_hardly_moves_the_closed_form():
    eeg, z, segments = planted(np.random.default_rng(0), False, 5.0)
    popped = eeg.copy()
    popped[100, 0, 5:9] *= 1000
    scale = np.median(np.abs(eeg).max(2), 0)
    normaliser = data.Normaliser(np.zeros(1), np.ones(1), scale)
    linear, _ = fitted(normaliser.eeg(eeg), z, segments)
    other, _ = fitted(normaliser.eeg(popped), z, segments)
    truth = z[slice(*segments[2])]
    m, moved = (
        net.expected(lambda rows: torch.from_numpy(normaliser.eeg(eeg[rows])), *segments[2])
        for net in (linear, other)
    )
    assert ((truth - moved).var(0) < 1.3 * (truth - m).var(0)).all()


def test_its_denoiser_is_the_conditional_mean_of_a_gaussian():
    """E[eps | z_n, EEG] from the joint covariance of z and z_n, without a basis."""
    rng = np.random.default_rng(2)
    linear = LinearGaussian(2, 1, 4, 2, tr=0.8, delay=4.0)
    linear.residual.fit(ar1(rng, 400, 2).split(100))
    schedule = NoiseSchedule()
    m = torch.from_numpy(rng.standard_normal((1, 6, 2))).float()
    z_n = torch.from_numpy(rng.standard_normal((1, 6, 2))).float()
    times = torch.arange(6)
    C = linear.residual.covariance(times)  # [2,6,6]
    for n in (3, 400, 990):
        abar = schedule.alpha_bar[n]
        total = abar * C + (1 - abar) * torch.eye(6)
        gap = (z_n - abar.sqrt() * m)[0].T[..., None].double()  # [2,6,1]
        expected = ((1 - abar).sqrt() * torch.linalg.solve(total, gap))[..., 0].T
        found = linear.eps(z_n, torch.tensor([n]), schedule, m, times)[0]
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


# ---- The stack -------------------------------------------------------------------------


class Answers:
    """A model whose network and closed form say what they are told to."""

    def __init__(self, network, linear, share):
        self.schedule = NoiseSchedule()
        self.share = share
        self.network = network
        self.linear = self
        self.said = linear
        self.weight = torch.zeros(3)  # the closed form found that the EEG tells nothing
        self.encoder = lambda eeg: eeg

    def eps(self, z_n, n, schedule, m, times):
        return self.said(z_n)

    def __call__(self, z_n, n, h, times):
        return self.network(z_n)


class Validation:
    """What stacked.fit asks of train.Batches."""

    def __init__(self, z):
        self.z = z
        self.expected = torch.zeros(len(z), z.shape[1])
        self.validation_windows = data.tile([(0, len(z))], 5)

    def validation(self, schedule):
        windows = self.validation_windows
        z = torch.stack([self.z[w.start : w.start + 5] for w in windows])
        for level in range(8):
            n = torch.full((len(z),), level * 125 + 60)
            eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(level))
            yield (z, n, eps, None, None), 0.0, windows


def test_shares_fit_the_validation_run_best():
    """Against a search through all shares, of the error itself: each lies between what is best for
    its latent and for all, and loses nothing against the latter."""
    z = ar1(np.random.default_rng(0), 400, 3)
    scale = torch.tensor([0.3, 0.6, 0.9])
    model = Answers(lambda z_n: scale * z_n, lambda z_n: 0.8 * z_n, torch.ones(8, 3))
    batches = Validation(z)
    stacked.fit(model, batches)
    grid = torch.linspace(0, 1, 101)
    for (z_, n, eps, _, _), _, _ in batches.validation(model.schedule):
        z_n = model.schedule.add_noise(z_, n, eps)
        network, linear = model.network(z_n), model.said(z_n)
        level = int(n[0]) // 125
        errors = torch.stack(
            [(eps - torch.lerp(network, linear, a)).square().mean((0, 1)) for a in grid]
        )  # [101,3]
        chosen = (eps - torch.lerp(network, linear, model.share[level])).square().mean((0, 1))
        common = errors.sum(1).argmin()
        assert chosen.sum() <= errors[common].sum() + 1e-3
        ends = torch.stack([grid[errors.argmin(0)], grid[common].expand(3)])
        assert (model.share[level] >= ends.min(0)[0] - 0.1).all()
        assert (model.share[level] <= ends.max(0)[0] + 0.1).all()
    one = Answers(lambda z_n: 0.1 * z_n, lambda z_n: 0.1 * z_n, torch.full((8, 3), 0.4))
    stacked.fit(one, batches)
    assert (one.share == 0.4).all()  # both say the same: nothing to learn from


def test_a_network_that_adds_nothing_is_not_asked():
    """It says what the closed form says, and something of its own that has nothing to do with z:
    by chance a share of it fits the windows a little. Whether it is told from a network that knows
    something is a matter of three standard errors, at each level of noise."""
    asked = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = ar1(rng, 100, 3)
        whim = torch.from_numpy(rng.normal(size=(1, 1, 3))).float() * 0.1

        def network(z_n, whim=whim):
            return 0.8 * z_n + whim

        model = Answers(network, lambda z_n: 0.8 * z_n, torch.zeros(8, 3))
        stacked.fit(model, Validation(z))
        asked.append((model.share < 1).any(1).float().mean())  # at how many levels
    assert sum(asked) <= 1
    model.weight += 1  # it found that the EEG tells something: then the run decides
    stacked.fit(model, Validation(z))
    assert (model.share < 1).any()
    model.weight -= 1
    knows = Answers(lambda z_n: 0.8 * z_n, lambda z_n: 0.7 * z_n, torch.zeros(8, 3))
    stacked.fit(knows, Validation(z))
    assert knows.share.mean() < 0.5
    one_window = Validation(z[:5])
    stacked.fit(knows, one_window)  # nothing is known of how much chance does
    assert (knows.share == 1).all()


def test_stacked_lies_between_its_two_answers():
    share = torch.linspace(0, 1, 8)[:, None].repeat(1, 2)
    model = Answers(lambda z_n: z_n, lambda z_n: -z_n, share)
    eps = stacked.stacked(model, lambda z_n, n: z_n, torch.zeros(1, 1, 4, 2))
    z_n = torch.ones(2, 4, 2)
    low, middle, high = (float(eps(z_n, torch.tensor([n, n]))[0, 0, 0]) for n in (0, 500, 999))
    assert low == 1 and high == -1 and middle == pytest.approx(1 - 2 * 4 / 7)
    model.share = torch.ones(8, 2)

    def asked(z_n, n):
        raise AssertionError("the network was asked in vain")

    alone = stacked.stacked(model, asked, torch.zeros(1, 1, 4, 2))
    assert torch.equal(alone(z_n, torch.tensor([500, 500])), -z_n)


# ---- In the scripts --------------------------------------------------------------------


def test_the_closed_form_alone(tiny, tmp_path, monkeypatch, capsys):
    """train.py --steps 0: samples whose mean is the closed form's, direct and between anchors."""
    command(monkeypatch, train, "--data", tiny, *AUTO, "--steps", 0, "--out", tmp_path)
    said = capsys.readouterr().out
    assert "closed form: " in said and "now on all" not in said
    ckpt = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert (ckpt["model"]["share"] == 1).all() and ckpt["settings"]["no_validation"]
    for flags in ([], ["--gap", "3"]):
        flags += ["--ckpt", tmp_path / "ckpt.pt", "--samples", 64, "--steps", 25, "--window", 60]
        command(monkeypatch, sampling, *flags)
        mode = "interrecon" if "--gap" in flags else "direct"
        scores = read_json(tmp_path / mode / "metrics.json")["scores"]
        ours, exact = (
            scores[m]["whole"]["mse"]["mean"] for m in ("neuroframes", "linear_gaussian")
        )
        assert abs(ours - exact) < 0.02 * exact
        one = scores["neuroframes_1"]["whole"]["mse"]["mean"]
        assert one > ours
    assert "linear-Gaussian, with EEG" in capsys.readouterr().out


@pytest.fixture
def adding():
    """Shares as of a network that adds something, which no network does after a few steps."""

    def fit(model, batches):
        if batches.validation_windows:
            model.share.copy_(torch.linspace(0.1, 0.9, model.share.numel()).view_as(model.share))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacked, "fit", fit)
        yield


def test_auto_leaves_out_a_network_that_adds_nothing(tiny, tmp_path, monkeypatch, capsys):
    """With EEG that is noise."""
    subject = shutil.copytree(tiny, tmp_path / "subject")
    eeg = np.load(subject / "eeg.npy")
    noise = np.random.default_rng(0).standard_normal(eeg.shape).astype(eeg.dtype)
    np.save(subject / "eeg.npy", noise)
    command(monkeypatch, train, "--data", subject, *AUTO, "--steps", 4, "--out", tmp_path)
    assert "adds nothing to the closed form" in capsys.readouterr().out
    ckpt = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    first = torch.load(tmp_path / "earlier-1" / "ckpt.pt", weights_only=True)
    assert first["step"] > 0 and ckpt["step"] == 0 and ckpt["settings"]["no_validation"]
    assert (first["model"]["share"] == 1).all() and (ckpt["model"]["share"] == 1).all()
    left = [c["model"]["linear.residual.autocovariance"] for c in (first, ckpt)]
    assert not torch.equal(*left)  # it was fitted anew


def test_auto_trains_to_choose_and_then_on_all(adding, tiny, tmp_path, monkeypatch, capsys):
    flags = ["--data", tiny, *AUTO, "--steps", 8, "--out", tmp_path]
    command(monkeypatch, train, *flags)
    said = capsys.readouterr().out
    assert "auto: 180 training frames" in said and "auto: 240 training frames" in said
    ckpt = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    first = torch.load(tmp_path / "earlier-1" / "ckpt.pt", weights_only=True)
    settings = ckpt["settings"]
    assert settings["no_validation"] and not first["settings"]["no_validation"]
    assert first["val_loss"] < math.inf and ckpt["val_loss"] == math.inf
    assert settings["steps"] == round(first["step"] * 240 / 180)
    # The share of the closed form was told by the run that was left out.
    torch.testing.assert_close(ckpt["model"]["share"], first["model"]["share"])
    assert not (first["model"]["share"] == 1).all()
    # The statistics are of all training runs: those of the other training are not in them.
    subject = data.Subject(tiny)
    everything = data.Normaliser.measure(subject, subject.segments("train", validation=False))
    np.testing.assert_array_equal(ckpt["normaliser"]["mean"], everything.mean)
    assert not np.array_equal(first["normaliser"]["mean"], everything.mean)

    again = tmp_path / "again"
    command(monkeypatch, train, *flags[:-1], again, "--no-refit")
    kept = torch.load(again / "ckpt.pt", weights_only=True)
    assert kept["step"] == first["step"] and not (again / "earlier-1").exists()
    for name, value in first["model"].items():
        assert torch.equal(value, kept["model"][name]), name


def test_auto_goes_on_where_it_was_killed(adding, tiny, tmp_path, monkeypatch):
    """In either training: what comes out is what an undisturbed one gives."""
    flags = ["--data", tiny, *AUTO, "--steps", 6]
    command(monkeypatch, train, *flags, "--out", tmp_path / "whole")
    expected = torch.load(tmp_path / "whole" / "ckpt.pt", weights_only=True)
    for number in (1, 2):
        out = tmp_path / f"killed-{number}"
        kill_in(monkeypatch, number, 3)
        with pytest.raises(SystemExit):
            command(monkeypatch, train, *flags, "--out", out)
        monkeypatch.undo()
        command(monkeypatch, train, "--out", out, "--resume")
        found = torch.load(out / "ckpt.pt", weights_only=True)
        for name, value in expected["model"].items():
            assert torch.equal(value, found["model"][name]), (number, name)


def kill_in(monkeypatch, number, step):
    """Stop the number-th training at a step, as Ctrl-C does."""
    from tools.run import Run

    count = {"runs": 0}
    enter, finish = Run.__enter__, Run.finish_step

    def entered(self):
        count["runs"] += 1
        return enter(self)

    def finished(self, loss):
        finish(self, loss)
        if count["runs"] == number and self.step == step:
            self.asked = 2

    monkeypatch.setattr(Run, "__enter__", entered)
    monkeypatch.setattr(Run, "finish_step", finished)


def test_auto_chooses_by_what_is_there_and_leaves_what_is_given(tiny):
    class Other:
        """A subject of another TR and length."""

        def __init__(self, tr, frames):
            self.tr, self.eeg = tr, np.zeros((4, 19, 100), np.float32)
            self.fmri = np.zeros((4, 50), np.float32)
            self.found = [(0, frames)]

        def segments(self, split, validation=True):
            return self.found

    def chosen(tr, frames, *flags):
        a = train.parse(["--data", tiny, *flags])
        auto.choose(a, Other(tr, frames), frames, train.SIZES["small"])
        train.choose_sizes(a, frames)
        return a

    assert [chosen(tr, 500).context * tr for tr in (0.4, 0.8, 2.0)] == pytest.approx(
        [4.8, 4.8, 4.0]
    )
    few, many = chosen(0.8, 500), chosen(0.8, 9000)
    assert (few.vary, few.loss, few.eeg_dropout) == (False, "vertex", 0.9)
    assert (many.vary, many.loss) == (True, "latent")
    assert few.closed_form and many.closed_form and few.predict == "v"
    given = chosen(0.8, 500, "--vary", "--context", "1", "--loss", "latent", "--no-closed-form")
    assert (given.vary, given.context, given.loss, given.closed_form) == (True, 1, "latent", False)
    missing = [name for name, value in vars(few).items() if value is None]
    unset = {"data", "device", "precision", "test", "val", "adapt", "ckpt", "bad_channels"}
    assert set(missing) <= unset, missing


def test_the_validation_loss_is_the_error_of_v(tiny, tmp_path, monkeypatch):
    """Of networks that predict eps as well: computed anew here, from z0."""
    monkeypatch.setattr(train.Run, "save", lambda self: None)
    seen = {}
    validate = train.validate

    def spied(net, weight, batches):
        loss = validate(net, weight, batches)
        errors = []
        for (z, n, eps, eeg, times), _, _ in batches.validation(net.schedule):
            with torch.no_grad():
                z_n = net.schedule.add_noise(z, n, eps)
                eps_hat = net(z_n, n, net.encoder(eeg), times)
            signal, noise = net.schedule.signal_noise(n, z)
            z0 = (z_n.double() - noise * eps_hat) / signal
            v_hat = (signal * z_n - z0) / noise  # z0 = signal z_n - noise v
            v = signal * eps - noise * z
            errors.append((v_hat - v).square().mean((1, 2)))
        seen[batches.a.predict] = loss, float(torch.cat(errors).mean())
        return loss

    monkeypatch.setattr(train, "validate", spied)
    for predict in ("eps", "v"):
        flags = [*SMALL, "--predict", predict, "--steps", 2]
        command(monkeypatch, train, "--data", tiny, *flags, "--out", tmp_path / predict)
    for loss, expected in seen.values():
        assert loss == pytest.approx(expected, rel=1e-3)


def test_spectra_computed_once_are_those_of_the_windows(tiny):
    subject = data.Subject(tiny)
    torch.manual_seed(0)
    W = subject.eeg.shape[-1]
    encoder = band_power.BandPowerEncoder(4, W, 8, cycles=20, filters=3, bands=4).eval()
    reads = []

    def read(rows):
        reads.append(len(rows))
        return torch.from_numpy(subject.eeg[rows])

    low, high = subject.runs[1]
    kept = band_power.computed_once(encoder, read, [(low, high)], len(subject.eeg), [0])
    count = len(reads)
    rows = np.arange(low, high)[None]
    whole = encoder(kept(rows, 0))
    torch.testing.assert_close(whole, encoder(torch.from_numpy(subject.eeg[rows])))
    assert len(reads) == count  # nothing is read again

    kept = band_power.computed_once(encoder, read, [(low, high)], len(subject.eeg), [0, W // 2])
    late = encoder(kept(rows, W // 2))
    exact = encoder(windows.cut(torch.from_numpy(subject.eeg[rows]), W // 2))
    # (But at the ends, where what is repeated is other EEG.)
    torch.testing.assert_close(late[:, 1:-1], exact[:, 1:-1], atol=2e-3, rtol=2e-3)
    assert (late - whole[:, :-1]).abs().max() > 0.05
    torch.testing.assert_close(encoder(kept(rows, 0)), whole, atol=2e-3, rtol=2e-3)
