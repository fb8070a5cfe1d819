"""How do we know? Closed forms first, then shapes, then the whole path on tiny subjects.

    python -m pytest
"""
import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

import data
import sample as sampling
import train
from neuroframes import (BandPowerEncoder, DiT, EEGEncoder, GaussianPrior, LinearAutoencoder, NeuroFrames, NoiseSchedule,
                         range_null_projection, sample)

torch.set_num_threads(2)

# ---- The sampler against Gaussians, whose exact noise predictor is known ---------------


def gaussian_eps(C, mean, schedule):
    """Exact E[eps | z^(n)] for frames z ~ N(mean, C), C [K,K], every latent alike: no training, no error."""
    K = len(C)

    def eps(z_n, n):
        abar = schedule.alpha_bar[n[0]]
        W = torch.linalg.inv(abar * C + (1 - abar) * torch.eye(K, dtype=C.dtype))
        return (1 - abar).sqrt() * torch.einsum("kj,bjd->bkd", W, z_n - abar.sqrt() * mean[:, None])
    return eps


def smooth_covariance(K=10, length=3.0, white=0.05):
    t = torch.arange(K, dtype=torch.float64)
    return (1 - white) * torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + white * torch.eye(K, dtype=torch.float64)


@pytest.mark.parametrize("steps, eta", [(200, 0.0), (500, 1.0), (1000, 1.0)])  # with fewer steps some variance is lost
def test_ddim_and_ddpm_reproduce_a_gaussian(steps, eta):
    schedule, K, n = NoiseSchedule(), 4, 20_000
    C, mean = 0.7 * smooth_covariance(K), torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=torch.float64)
    z = sample(gaussian_eps(C, mean, schedule), (n, K, 1), schedule, steps, eta, dtype=torch.float64,
               generator=torch.Generator().manual_seed(0))[..., 0]
    assert (z.mean(0) - mean).abs().max() < 0.03 and (z.T.cov() - C).abs().max() < 0.03  # 4 standard errors: 0.025


def test_a_thousand_steps_at_eta_1_are_algorithm_1():
    """The loop against Algorithm 1 written out with its bars restored, on the same noise."""
    schedule, K = NoiseSchedule(), 5
    C = smooth_covariance(K)
    eps_model = gaussian_eps(C, torch.zeros(K, dtype=torch.float64), schedule)
    y, mask = torch.randn(3, K, 2, dtype=torch.float64), torch.tensor([True, False, False, True, False])
    for anchors in (None, y):
        ours = sample(eps_model, (3, K, 2), schedule, 1000, 1.0, y=anchors, mask=mask, reuse_eps=False,
                      generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        g = torch.Generator().manual_seed(1)
        x = torch.randn(3, K, 2, generator=g, dtype=torch.float64)
        for n in range(999, -1, -1):
            alpha, abar, beta = schedule.alpha[n], schedule.alpha_bar[n], schedule.beta[n]
            before = schedule.alpha_bar[n - 1] if n else torch.tensor(1.0, dtype=torch.float64)
            x0 = (x - (1 - abar).sqrt() * eps_model(x, torch.full((3,), n))) / abar.sqrt()
            if anchors is not None:
                x0 = torch.where(mask[:, None], y, x0)
            x = before.sqrt() * beta / (1 - abar) * x0 + alpha.sqrt() * (1 - before) / (1 - abar) * x
            if n:
                sigma = (beta * (1 - before) / (1 - abar)).sqrt()
                x = x + sigma * torch.randn(3, K, 2, generator=g, dtype=torch.float64)
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def interrecon_experiment(seen, **settings):
    """(exact posterior variance, squared bias of the conditional mean, variance), mean over missing frames.

    With exact eps the sampler is affine in noise and anchors. Opposite noise cancels in a pair's mean,
    so sampling for each unit vector of y gives the conditional mean's matrix without sampling error;
    the squared bias is its distance from the Gaussian conditional, averaged over frames drawn from C.
    """
    schedule, K = NoiseSchedule(), 10
    C, seen = smooth_covariance(K), torch.tensor(seen)
    mask = torch.zeros(K, dtype=torch.bool).index_fill(0, seen, True)
    eps_model = gaussian_eps(C, torch.zeros(K, dtype=torch.float64), schedule)
    if settings.pop("weighted", False):
        prior = GaussianPrior(1)
        prior.covariance = lambda a, b: C[None]
        settings["pseudo_inverse"] = lambda abar: prior.pseudo_inverse(abar, mask, torch.arange(K))
    run = lambda y, **kw: sample(eps_model, tuple(y.shape), schedule, y=y, mask=mask, **settings, **kw)  # noqa: E731
    y = torch.eye(K, dtype=torch.float64)[:, :, None].repeat(2, 1, 1)                  # [2K,K,1]
    z = run(y, antithetic=True, generator=torch.Generator().manual_seed(0))[..., 0]
    weights = z.unflatten(0, (2, K)).mean(0).T                                         # [K,K]: mean = weights @ y
    conditional = torch.zeros(K, K, dtype=torch.float64)
    conditional[:, seen] = C[:, seen] @ torch.linalg.inv(C[seen][:, seen])
    error = ((weights - conditional) * mask)[~mask]
    samples = run(torch.zeros(10_000, K, 1, dtype=torch.float64), generator=torch.Generator().manual_seed(0))[..., 0]
    exact = (C - conditional @ C).diagonal()[~mask].mean()
    return exact, (error @ C @ error.T).diagonal().mean(), samples[:, ~mask].var(0).mean()


EVERY_SECOND = [0, 2, 4, 6, 8]


@pytest.mark.parametrize("settings, bias, variance, mse", [
    (dict(reuse_eps=False, eta=0.0), 0.152, 0.331, 0.576),
    (dict(reuse_eps=False, eta=1.0, steps=1000), 0.044, 0.202, 0.341),
    (dict(reuse_eps=True, eta=0.0), 0.0014, 0.094, 0.192),
    (dict(reuse_eps=True, eta=1.0), 0.0019, 0.087, 0.186)])
def test_interrecon_experiment(settings, bias, variance, mse):
    """Which eps to keep after the projection: a table of an earlier, sampled measurement, within 15%."""
    exact, b, v = interrecon_experiment(EVERY_SECOND, **settings)
    assert abs(exact - 0.098) < 0.0005
    for found, table in ((b, bias), (v, variance), (b + v + exact, mse)):
        assert abs(found - table) <= 0.15 * table + 0.00005, (found, table)


@pytest.mark.parametrize("seen", [EVERY_SECOND, [0, 9]])
def test_the_weighted_pseudo_inverse_removes_the_bias(seen):
    exact, plain, _ = interrecon_experiment(seen)
    _, bias, variance = interrecon_experiment(seen, weighted=True)
    assert bias < 1e-4 * exact and bias < 0.01 * plain  # far anchors, [0, 9]: 0.00003, was 0.046, of a variance of 0.514
    assert 0.8 * exact < variance < 1.05 * exact        # 50 steps lose some variance, with or without anchors


def test_range_null_projection():
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([True, False, True, False])
    A = torch.diag(mask.double())
    A_pinv = torch.linalg.pinv(A)
    assert torch.equal(A @ A_pinv @ A, A)
    x, y = torch.randn(2, 4, 6, generator=g).double(), torch.randn(2, 4, 6, generator=g).double()
    x_hat = range_null_projection(x, y, mask)
    assert torch.equal(A @ x_hat, A @ y)                                               # A x_hat = y, to the last bit
    torch.testing.assert_close(x_hat, A_pinv @ (A @ y) + (torch.eye(4) - A_pinv @ A) @ x)
    prior = GaussianPrior(3)
    prior.fit([ar1(np.random.default_rng(0), 500, 3)])
    A_W = prior.pseudo_inverse(0.3, mask, torch.arange(4))                             # weighted, but a pseudo-inverse
    torch.testing.assert_close(A @ A_W @ A, A.expand(3, 4, 4), atol=1e-5, rtol=0)
    assert A_W[:, 1, 0].abs().min() > 0.01 and not A_W[:, :, ~mask].any()
    per_window = torch.stack([mask, ~mask])
    assert torch.equal(range_null_projection(x, y, per_window)[1], torch.where(mask[:, None], x[1], y[1]))


def test_samples_hold_the_anchors_and_repeat():
    schedule = NoiseSchedule()
    eps = gaussian_eps(smooth_covariance(6).float(), torch.zeros(6), schedule)
    y, mask = torch.randn(4, 6, 3), torch.tensor([True, False, False, True, False, False])
    z, again = (sample(eps, (4, 6, 3), schedule, 20, 0.5, y=y, mask=mask, generator=torch.Generator().manual_seed(3))
                for _ in range(2))
    assert z.dtype == torch.float32 and torch.equal(z, again)
    torch.testing.assert_close(z[:, mask], y[:, mask])


# ---- Schedule, prior, autoencoder ------------------------------------------------------


def test_schedule():
    s = NoiseSchedule()
    assert s.alpha_bar.dtype == torch.float64
    beta = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    np.testing.assert_allclose(s.alpha_bar.numpy(), np.exp(np.cumsum(np.log1p(-beta))), rtol=1e-12)
    z, eps, n = torch.randn(5, 3, 2).double(), torch.randn(5, 3, 2).double(), torch.tensor([0, 10, 500, 998, 999])
    z_n, v = s.add_noise(z, n, eps), s.velocity(z, n, eps)
    abar = s.alpha_bar[n][:, None, None]
    torch.testing.assert_close(z_n, abar.sqrt() * z + (1 - abar).sqrt() * eps)
    torch.testing.assert_close(s.eps_from_velocity(z_n, n, v), eps)
    torch.testing.assert_close(abar.sqrt() * z_n - (1 - abar).sqrt() * v, z)


def ar1(rng, frames, d):
    z = np.zeros((frames, d))
    for t in range(1, frames):
        z[t] = np.linspace(0.3, 0.9, d) * z[t - 1] + rng.standard_normal(d)
    return torch.from_numpy((z / z.std(0)).astype(np.float32))


def test_gaussian_prior_is_the_exact_denoiser():
    rng, s = np.random.default_rng(0), NoiseSchedule()
    z = ar1(rng, 2000, 3)
    prior = GaussianPrior(3)
    prior.fit([z[:1200], z[1200:]])
    torch.testing.assert_close(prior.autocovariance[0], z.square().mean(0))
    expected = ((z[:1198] * z[2:1200]).sum(0) + (z[1200:-2] * z[1202:]).sum(0)) / 2000
    torch.testing.assert_close(prior.autocovariance[2], expected)
    positions, n = torch.arange(5), torch.tensor([3, 600])
    z_n = torch.randn(2, 5, 3)
    eps, v = (prior(z_n, n, s, predict, positions) for predict in ("eps", "v"))
    C = prior.covariance(positions, positions)
    for b in range(2):
        abar = s.alpha_bar[n[b]]
        for d in range(3):
            direct = (1 - abar).sqrt() * torch.linalg.solve(abar * C[d] + (1 - abar) * torch.eye(5), z_n[b, :, d].double())
            torch.testing.assert_close(eps[b, :, d].double(), direct, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(s.eps_from_velocity(z_n, n, v), eps, atol=1e-5, rtol=1e-4)
    times = torch.tensor([0, 0.3, 1, 1.5, 2.25, 4, 7.5, 80])  # between frames, and beyond the last lag
    assert torch.linalg.eigvalsh(prior.covariance(times, times)).min() > -1e-12


def test_an_untrained_network_with_the_prior_is_the_gaussian_conditional():
    """Prior + null space, nothing learned yet: the posterior mean that sample.py prints as a control."""
    torch.manual_seed(0)
    z = ar1(np.random.default_rng(1), 4000, 4)
    model = NeuroFrames(3, 16, 4, "bandpower", 8, 16, 1, 2, predict="v", prior=True, encoder_settings={"bands": 4})
    model.eval().prior.fit([z])
    mask = torch.tensor([True, False, False, True, False, True])
    y = z[:12].reshape(2, 6, 4)
    eps = model.eps_model(model.encoder(torch.randn(2, 6, 3, 16)).repeat(2, 1, 1))
    mean = sample(eps, (4, 6, 4), model.schedule, 50, y=y.repeat(2, 1, 1), mask=mask, antithetic=True,
                  generator=torch.Generator().manual_seed(0)).unflatten(0, (2, 2)).mean(0)
    exact = torch.einsum("dko,bod->bkd", sampling.gaussian_weights(model.prior, mask.numpy()), y[:, mask])
    assert (mean - exact).detach().square().mean() < 0.01  # the sampler's own bias, as in the experiment above


@pytest.mark.parametrize("T, V", [(40, 300), (300, 40)])
def test_closed_form_autoencoder_equals_svd(T, V):
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.standard_normal((T, 12)) @ rng.standard_normal((12, V)) + 0.3 * rng.standard_normal((T, V))
                          + rng.standard_normal(V)).astype(np.float32))
    ae = LinearAutoencoder(V, 8)
    kept = ae.fit(x, block=64)
    U, S, Vt = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    torch.testing.assert_close(ae.decode(ae.encode(x)), x.mean(0) + (U[:, :8] * S[:8] @ Vt[:8]).float(), atol=2e-4, rtol=1e-3)
    assert abs(kept - float(S[:8].square().sum() / S.square().sum())) < 1e-5
    z = ae.encode(x)
    torch.testing.assert_close(z.T @ z / T, torch.eye(8), atol=1e-3, rtol=0)           # whitened
    torch.testing.assert_close(ae.encode(ae.decode(z)), z, atol=1e-3, rtol=0)          # E D = I


def test_autoencoder_stops_at_the_rank():
    rng = np.random.default_rng(0)
    x = torch.from_numpy((rng.standard_normal((50, 5)) @ rng.standard_normal((5, 80))).astype(np.float32))
    ae = LinearAutoencoder(80, 20)
    ae.fit(x)
    assert ae.latent_dim == 5 and ae.E.shape == (5, 80)
    torch.testing.assert_close(ae.decode(ae.encode(x)), x, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="frames must be"):
        ae.fit(x[:, :10])


def test_joint_autoencoder_learns_the_pca_error_and_hides_from_the_diffusion_loss():
    torch.manual_seed(0)
    x = torch.randn(400, 4) @ torch.randn(4, 30) + 0.1 * torch.randn(400, 30)
    x = x - x.mean(0)
    best = LinearAutoencoder(30, 4)
    best.fit(x)
    floor = (best.decode(best.encode(x)) - x).square().mean()
    ae = LinearAutoencoder(30, 4, joint=True)
    optimizer = torch.optim.Adam(ae.parameters(), lr=1e-2)
    for _ in range(800):
        loss, z = ae.reconstruction_loss(x[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not z.requires_grad and floor <= loss < 1.1 * floor
    torch.testing.assert_close(z.std((0, 1)), torch.ones(4), atol=0.05, rtol=0)
    torch.testing.assert_close(ae.decode(ae.encode(x)), x @ ae.E.T @ ae.D.T, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert ae.reconstruction_loss(x[None])[1].dtype == torch.float32


# ---- Networks --------------------------------------------------------------------------


def test_fresh_dit_blocks_are_the_identity():
    torch.manual_seed(0)
    dit = DiT(12, 10, 16, 3, 4, tokens_per_frame=2)
    x, c, h, lag = torch.randn(2, 6, 16), torch.randn(2, 16), torch.randn(2, 5, 16), torch.randn(2, 1, 6, 5)
    for block in dit.blocks:
        assert torch.equal(block(x, c, h, lag), x)
    assert torch.equal(dit(torch.randn(2, 3, 12), torch.tensor([0, 999]), torch.randn(2, 3, 10)), torch.zeros(2, 3, 12))


def trained_looking(module):
    """Give a fresh network weights that are nowhere zero, so that what it ignores is by design."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return module.eval()


def test_dit_reads_steps_times_and_eeg():
    torch.manual_seed(0)
    dit = trained_looking(DiT(12, 10, 16, 2, 4, tokens_per_frame=3))
    z, h, n = torch.randn(2, 5, 12), torch.randn(2, 9, 10), torch.tensor([3, 500])
    eeg_positions = torch.arange(-2, 7)
    out = dit(z, n, h, eeg_positions=eeg_positions)
    assert out.shape == (2, 5, 12)
    torch.testing.assert_close(out[:1], dit(z[:1], n[:1], h[:1], eeg_positions=eeg_positions))  # items are independent
    order = torch.randperm(9)  # tokens are known by their time, not by their place in memory
    torch.testing.assert_close(out, dit(z, n, h[:, order], eeg_positions=eeg_positions[order]), atol=1e-5, rtol=1e-4)
    for changed in (dict(n=n + 100), dict(eeg_positions=eeg_positions + 1), dict(h=h.flip(0)), dict(positions=torch.arange(5) + 0.5)):
        assert (out - dit(**{**dict(z_n=z, n=n, h=h, eeg_positions=eeg_positions), **changed})).abs().max() > 1e-3
    with pytest.raises(ValueError, match="tokens_per_frame 5"):
        DiT(12, 10, 16, 2, 4, tokens_per_frame=5)


@pytest.mark.parametrize("encoder", ["conv", "bandpower"])
def test_bfloat16_autocast_is_close_to_float32(encoder):
    """What a GPU runs, here on the CPU."""
    torch.manual_seed(0)
    model = trained_looking(NeuroFrames(4, 32, 6, encoder, 8, 16, 2, 2, predict="v", prior=True))
    model.prior.fit([ar1(np.random.default_rng(0), 200, 6)])
    z, n, eeg = torch.randn(2, 5, 6), torch.tensor([50, 900]), torch.randn(2, 5, 4, 32)
    exact = model(z, n, model.encoder(eeg))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(z, n, model.encoder(eeg))
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("encoder", [EEGEncoder, BandPowerEncoder])
def test_encoder_shapes(encoder):
    net = encoder(5, 48, 24).eval()
    for K in (1, 7):
        assert net(torch.randn(3, K, 5, 48)).shape == (3, K, 24)


def test_band_power_hears_power_and_not_phase():
    torch.manual_seed(0)
    net = BandPowerEncoder(1, 64, 8, filters=1, bands=8, span=3)
    powers = []
    net.norm.register_forward_hook(lambda module, inputs, output: powers.append(inputs[0]))
    t = torch.arange(5 * 64) / 64
    tone = lambda cycles, phase, size=1.0: (size * torch.sin(2 * np.pi * cycles * t + phase)).view(1, 5, 1, 64)  # noqa: E731
    with torch.no_grad():
        for eeg in (tone(4, 0.0), tone(4, 1.0), tone(4, 0.0, 3.0), tone(28, 0.0)):
            net.eval()(eeg)
    middle = [p[2] for p in powers]  # [bands] of the window whose neighbours are on both sides
    torch.testing.assert_close(middle[0], middle[1], atol=1e-3, rtol=0)
    loud = middle[0] > -10  # quieter bands hold rounding errors
    torch.testing.assert_close((middle[2] - middle[0])[loud], torch.full((int(loud.sum()),), 2 * np.log(3.0)), atol=1e-3, rtol=0)
    assert middle[0].argmax() < middle[3].argmax()  # bands are in the order of their frequencies


# ---- Data ------------------------------------------------------------------------------


TINY = dict(runs=5, frames=60, channels=4, fs=50, side=8, sources=4, background=3)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return data.synthetic(str(tmp_path_factory.mktemp("tiny") / "subject"), **TINY)


def test_synthetic_is_a_function_of_its_seed(tiny, tmp_path):
    data.synthetic(str(tmp_path / "a"), **TINY)
    data.synthetic(str(tmp_path / "b"), seed=1, **TINY)
    first, again, other = (data.Subject(str(f)) for f in (tiny, tmp_path / "a", tmp_path / "b"))
    assert first.meta["checksums"] == again.meta["checksums"] != other.meta["checksums"]
    assert first.eeg.shape == (300, 4, 40) and first.sources.shape == (300, 4)


def test_eeg_windows_follow_the_delay():
    first, starts = data.eeg_windows(samples=10_000, volumes=20, tr=0.72, fs=500, delay=4.0)
    assert first == 6 and starts[0] == round((6 * 0.72 - 4) * 500) == 160
    assert np.all(np.diff(starts) == 360) and len(starts) == 14
    assert data.eeg_windows(samples=1_500, volumes=20, tr=0.72, fs=500, delay=4.0)[1][-1] + 360 <= 1_500


def test_splits_are_whole_runs(tiny):
    subject = data.Subject(tiny)
    parts = {s: subject.segments(s) for s in ("train", "val", "test")}
    assert parts == {"train": [(0, 60), (60, 120), (120, 180)], "val": [(180, 240)], "test": [(240, 300)]}
    assert subject.segments("train", validation=False)[-1] == (180, 240) and not subject.segments("val", validation=False)
    test = list(range(10, 20)) + list(range(290, 300))  # and frame 20 in neither part
    subject.meta["split"] = {"test": test, "train": sorted(set(range(300)) - {20, *test})}
    assert subject.segments("test") == [(10, 20), (290, 300)]
    assert subject.segments("train")[:2] == [(0, 10), (21, 60)] and subject.segments("val") == [(240, 290)]


def test_normaliser_uses_the_given_frames_and_spares_constant_vertices(tiny):
    subject = data.Subject(tiny)
    subject.fmri = np.array(subject.fmri)
    subject.fmri[:, 3] = 700.1
    normaliser = data.Normaliser.measure(subject, [(0, 60), (60, 120)], block=50)
    train_frames = subject.fmri[:120].astype(np.float64)
    np.testing.assert_allclose(normaliser.mean, train_frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normaliser.std[4:], train_frames.std(0)[4:], rtol=1e-5)
    np.testing.assert_allclose(normaliser.eeg_scale, np.abs(subject.eeg[:120]).max((0, 2)))
    z = normaliser.zscore(subject.fmri)
    assert not normaliser.valid[3] and normaliser.valid.sum() == 63 and not z[:, 3].any()
    np.testing.assert_allclose(normaliser.raw(z), subject.fmri, rtol=1e-5)


def test_windows_cover_and_stay_inside():
    windows = data.tile([(0, 25), (25, 32)], 10)
    assert windows == [(0, 10, 0, 25), (10, 10, 0, 25), (15, 10, 0, 25), (25, 7, 25, 32)]
    frames, eeg, positions = data.window_indices(windows[:3], context=4)
    assert frames.shape == (3, 10) and eeg.shape == (3, 18)
    assert eeg[0].tolist() == [0] * 4 + list(range(14)) and eeg[2].tolist() == list(range(11, 25)) + [24] * 4
    assert np.array_equal(positions, eeg - frames[:, :1])


# ---- Scores and controls ---------------------------------------------------------------


def test_scores_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 30)), rng.standard_normal((4, 30))
    s = sampling.frame_scores(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    for k in range(4):
        cos = a[k] @ b[k] / np.linalg.norm(a[k]) / np.linalg.norm(b[k])
        np.testing.assert_allclose(s[k], [((a[k] - b[k]) ** 2).mean(), np.corrcoef(a[k], b[k])[0, 1], cos])
    assert sampling.frame_scores(torch.zeros(1, 5), torch.randn(1, 5))[0, 1:].tolist() == [0, 0]  # not NaN


def test_interpolations_against_closed_forms():
    x, mask = torch.randn(6, 4).double(), np.array([False, True, False, False, True, False])
    y = sampling.linear_interpolation(x, mask)
    for v in range(4):
        np.testing.assert_allclose(y[:, v], np.interp(np.arange(6), [1, 4], x[[1, 4], v]))
    prior = GaussianPrior(2)
    prior.autocovariance[:] = 0.8 ** torch.arange(256.0)[:, None] * torch.tensor([1.0, 2.0])  # AR(1): nearest anchors decide
    weights = sampling.gaussian_weights(prior, mask)
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[0, 0], torch.tensor([0.8, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[0, 5], torch.tensor([0.0, 0.8]), atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[0, 4], torch.tensor([0.0, 1.0]), atol=1e-4, rtol=0)


# ---- The whole path, as commands -------------------------------------------------------

SMALL = ["--preset", "tiny", "--width", "16", "--heads", "2", "--depth", "1", "--eeg-dim", "8", "--eeg-filters", "4",
         "--eeg-bands", "4", "--latent-dim", "6", "--batch-size", "4", "--frames", "6", "--context", "2", "--warmup", "2"]


def command(monkeypatch, module, *flags):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    module.main()


def same(a, b):
    """Equality of nested checkpoints, to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in ("out", "resume"))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


@pytest.mark.parametrize("flags", [[], ["--autoencoder", "joint", "--predict", "eps", "--eeg-encoder", "conv"]])
def test_resume_is_bit_exact(tiny, tmp_path, monkeypatch, flags):
    flags = ["--data", tiny, "--steps", 8, *SMALL, *flags]
    command(monkeypatch, train, *flags, "--out", tmp_path / "whole")
    save, saved = train.save, []

    def save_and_die(path, state):
        save(path, state)
        saved.append(path)
        if sum(p.endswith("last.pt") for p in saved) == 3:
            raise KeyboardInterrupt
    monkeypatch.setattr(train, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        command(monkeypatch, train, *flags, "--out", tmp_path / "parts")
    monkeypatch.setattr(train, "save", save)
    assert torch.load(tmp_path / "parts/last.pt", weights_only=True)["step"] == 3
    command(monkeypatch, train, "--out", tmp_path / "parts", "--resume")
    for name in ("last.pt", "ckpt.pt"):
        whole, parts = (torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "parts"))
        assert same(whole, parts), name
    logs = [[{**json.loads(line), "seconds": 0} for line in open(tmp_path / run / "log.jsonl")] for run in ("whole", "parts")]
    assert logs[0] == logs[1] and len(logs[0]) == 8 and logs[0][-1]["val_loss"] is not None


def test_training_lowers_the_validation_loss(tiny, tmp_path, monkeypatch):
    command(monkeypatch, train, "--data", tiny, "--steps", 60, *SMALL, "--lr", "3e-3", "--out", tmp_path)
    losses = [json.loads(line)["val_loss"] for line in open(tmp_path / "log.jsonl")]
    best = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert best["val_loss"] == min(losses) < losses[0]


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    """A raw session on disk: 4 runs of CIFTI-2 and continuous EEG, 40 cortical vertices and 2 x 2 x 2 voxels."""
    root, rng = tmp_path_factory.mktemp("session"), np.random.default_rng(0)
    Axis = nib.cifti2.BrainModelAxis
    space = (Axis.from_surface(np.arange(2, 27), 64, "CortexLeft") + Axis.from_surface(np.arange(15), 64, "CortexRight")
             + Axis.from_mask(np.ones((2, 2, 2), bool), affine=np.eye(4), name="thalamus_left"))
    raw = []
    for run in range(4):
        x = (1000 + ar1(rng, 50, 48).numpy()).astype(np.float32)
        x[:, 5] = 12.0  # a vertex without variance
        data.save_dtseries(str(root / f"run-{run + 1}_bold.dtseries.nii"), x, space, 0.8, 0.0)
        np.save(root / f"run-{run + 1}_eeg.npy", rng.standard_normal((3, 50 * 40)).astype(np.float32))
        raw.append(x)
    keys = {1: ("L_V1_ROI", (1, 0, 0, 1)), 2: ("R_A1_ROI", (0, 1, 0, 1)), 0: ("???", (0, 0, 0, 0))}
    cortex = space[np.arange(40)]
    label = np.zeros((1, 40), np.float32)
    label[0, :10], label[0, 30:35] = 1, 2
    nib.save(nib.Cifti2Image(label, (nib.cifti2.LabelAxis(["parcels"], [keys]), cortex)), str(root / "parcels.dlabel.nii"))
    np.save(root / "mine.npy", np.arange(48) < 7)
    return root, space, raw


@pytest.fixture(scope="session")
def trained(session, tmp_path_factory):
    """Prepared by the command, trained by the command."""
    root, out = session[0], tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        command(patch, data, "--bold", root / "run-*_bold.dtseries.nii", "--eeg", root / "run-*_eeg.npy", "--fs", 50, "--out",
                out / "subject", "--parcels", root / "parcels.dlabel.nii", root / "mine.npy")
        command(patch, train, "--data", out / "subject", "--steps", 5, *SMALL, "--out", out)
    return out


def test_prepared_session(session, trained):
    subject = data.Subject(str(trained / "subject"))
    assert subject.runs == [[0, 45], [45, 90], [90, 135], [135, 180]] and subject.meta["first_volume"] == [5] * 4
    np.testing.assert_array_equal(subject.fmri[45:90], session[2][1][5:])
    eeg = np.load(session[0] / "run-2_eeg.npy")
    np.testing.assert_array_equal(subject.eeg[45 + 3], eeg[:, 3 * 40: 4 * 40])  # volume 5 + 3 at 6.4 s; its EEG from 2.4 s
    assert {k: int(m.sum()) for k, m in subject.rois.items()} == {"visual": 10, "visual+audio": 15, "mine": 7}
    assert np.flatnonzero(subject.rois["visual+audio"]).tolist() == list(range(10)) + list(range(30, 35))
    assert not os.path.exists(str(trained / "subject") + ".partial")


@pytest.mark.parametrize("flags", [[], ["--interrecon"], ["--interrecon", "--anchors", "0,5", "--samples", "3"]])
def test_sample_writes_what_it_says(session, trained, tmp_path, monkeypatch, capsys, flags):
    command(monkeypatch, sampling, "--ckpt", trained / "ckpt.pt", "--out", tmp_path, "--samples", 2, "--steps", 5, *flags)
    out = tmp_path / ("interrecon" if flags else "direct")
    recon, truth, std, frames = (np.load(out / f"{name}.npy") for name in ("recon", "truth", "std", "frames"))
    metrics = json.load(open(out / "metrics.json"))
    subject = data.Subject(str(trained / "subject"))
    normaliser = data.Normaliser.measure(subject, [(0, 45), (45, 90)])
    assert frames.tolist() == list(range(135, 180)) and metrics["test_frames"] == 45
    np.testing.assert_allclose(truth, normaliser.zscore(subject.fmri[135:180]), atol=1e-5)
    observed = np.zeros(45, bool)
    if flags:  # windows of 6 from 135; the last starts at 39 and repeats frames 39, 40, 41, which are scored once
        pattern = [0, 5] if "--anchors" in flags else [0, 2, 4]
        for start, first_new in [*((i, i) for i in range(0, 42, 6)), (39, 42)]:
            observed[[start + k for k in pattern if start + k >= first_new]] = True
        assert np.array_equal(recon[observed], truth[observed]) and not std[observed].any()
        assert metrics["anchor_residual"] == 0.0
    assert std[~observed].any(0)[normaliser.valid].all()
    region = subject.rois["visual"] & normaliser.valid
    r = np.mean([np.corrcoef(recon[t, region], truth[t, region])[0, 1] for t in np.flatnonzero(~observed)])
    mse = ((recon - truth)[~observed][:, normaliser.valid] ** 2).mean()
    scores = metrics["scores"]
    np.testing.assert_allclose([scores["neuroframes"]["visual"]["r"]["mean"], scores["neuroframes"]["whole"]["mse"]["mean"]],
                               [r, mse], atol=1e-5)
    controls = {"mean_frame", "shuffled_eeg"} | ({"no_null_space", "linear", "gaussian"} if flags else set())
    assert scores.keys() == {"neuroframes", "neuroframes_1"} | controls
    assert scores["neuroframes"].keys() == {"whole", "visual", "visual+audio", "mine"}
    image = nib.load(out / "recon.dtseries.nii")
    series, space = image.header.get_axis(0), image.header.get_axis(1)
    assert space == session[1] and (series.size, series.step, series.unit) == (45, 0.8, "SECOND")
    assert series.start == pytest.approx(5 * 0.8)
    np.testing.assert_allclose(image.get_fdata(), normaliser.raw(recon), rtol=1e-5)
    assert (image.get_fdata()[:, 5] == 12.0).all()  # the constant vertex comes back as it was
    table = capsys.readouterr().out
    assert "EEG" in table.splitlines()[-2] and ("null space" in table.splitlines()[-2]) == bool(flags)


def test_any_length_from_one_checkpoint_and_more_test_runs(tiny, tmp_path, monkeypatch):
    command(monkeypatch, train, "--data", tiny, "--steps", 2, *SMALL, "--tokens-per-frame", 2, "--out", tmp_path)
    for frames in (3, 30):
        command(monkeypatch, sampling, "--ckpt", tmp_path / "ckpt.pt", "--frames", frames, "--steps", 2, "--samples", 1)
        metrics = json.load(open(tmp_path / "direct/metrics.json"))
        assert metrics["frames"] == frames and metrics["ceiling"]["whole"]["r"] > 0.3


def test_cinebrain_folders_are_not_delayed_twice(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    os.makedirs(tmp_path / "fmri")
    os.makedirs(tmp_path / "eeg")
    x, s = rng.standard_normal((40, 9)).astype(np.float32), rng.standard_normal((40, 5, 16)).astype(np.float32)
    for i in range(40):
        np.save(tmp_path / f"fmri/{i + 3}.npy", x[i])
        np.save(tmp_path / f"eeg/{i + 3}.npy", s[i])
    os.remove(tmp_path / "eeg/12.npy")  # a frame that only one folder has ends the run there
    clips = [{"fmri": [f"some/where/{i}.npy" for i in range(c, c + 5)], "eeg": []} for c in (23, 38)]
    json.dump(clips, open(tmp_path / "split.json", "w"))
    command(monkeypatch, data, "--bold", tmp_path / "fmri", "--eeg", tmp_path / "eeg", "--out", tmp_path / "sub", "--tr", 0.8,
            "--channels", 4, "--frames-per-run", 20, "--split", tmp_path / "split.json")
    subject = data.Subject(str(tmp_path / "sub"))
    assert subject.runs == [[0, 9], [9, 19], [19, 39]] and subject.meta["delay"] == 0
    assert subject.meta["first_volume"] == [0, 10, 0]
    np.testing.assert_array_equal(subject.fmri[9], x[10])
    np.testing.assert_array_equal(subject.eeg[9], s[10, :4])
    assert subject.segments("test") == [(19, 24), (34, 39)] and subject.segments("val") == [(24, 34)]


@pytest.mark.parametrize("module, flags, culprit", [
    (data, ["--bold", "none*", "--eeg", "none*", "--out", "x"], "none*"),
    (data, ["--bold", "{root}/run-*bold*", "--eeg", "{root}/run-1_eeg.npy", "--out", "x"], "4 files"),
    (data, ["--bold", "{root}/run-1_eeg.npy", "--eeg", "{root}/run-1_eeg.npy", "--out", "x"], "--tr"),
    (data, ["--bold", "{root}/run-1_bold*", "--eeg", "{root}/run-1_eeg.npy", "--out", "x", "--fs", "500"], "run-1_eeg.npy"),
    (data, ["--bold", "{root}/parcels.dlabel.nii", "--eeg", "{root}/run-1_eeg.npy", "--out", "x"], "parcels.dlabel.nii"),
    (data, ["--bold", "{root}/run-1_bold*", "--eeg", "{root}/run-1_eeg.npy", "--out", "{root}", "--fs", "50"], "no prepared"),
    (train, ["--data", "nowhere"], "nowhere"), (train, ["--out", "nowhere", "--resume"], "nowhere"),
    (train, ["--data", "{tiny}", "--preset", "tiny", "--frames", "99", "--out", "x"], "--frames 99"),
    (sampling, ["--ckpt", "nowhere.pt"], "nowhere.pt"),
    (sampling, ["--ckpt", "{trained}/ckpt.pt", "--out", "x", "--interrecon", "--anchors", "0,6"], "--anchors 0,6"),
    (sampling, ["--ckpt", "{trained}/ckpt.pt", "--out", "x", "--interrecon", "--gap", "1"], "--gap 1")])
def test_errors_name_the_culprit(session, tiny, trained, tmp_path, monkeypatch, module, flags, culprit):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        command(monkeypatch, module, *[f.format(root=session[0], tiny=tiny, trained=trained) for f in flags])
    assert str(error.value).startswith("error: ") and culprit in str(error.value)
