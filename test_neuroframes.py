"""How do we know? Closed forms first, then shapes, then the whole path on tiny subjects.

    python -m pytest
"""
import contextlib
import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import data
import sample as sampling
import train
from neuroframes import (BandPowerEncoder, DiT, GaussianPrior, LinearAutoencoder, NeuroFrames, NoiseSchedule,
                         Observation, range_null_projection, sample)

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
    eps_model = gaussian_eps(smooth_covariance(K), torch.zeros(K, dtype=torch.float64), schedule)
    y, mask = torch.randn(3, K, 2, dtype=torch.float64), torch.tensor([True, False, False, True, False])
    for anchors in (None, y):
        ours = sample(eps_model, (3, K, 2), schedule, 1000, 1.0, y=anchors, mask=mask, reuse_eps=False,
                      generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        g = torch.Generator().manual_seed(1)
        x = torch.randn(3, K, 2, generator=g, dtype=torch.float64)
        for n in range(999, -1, -1):
            abar, beta, alpha = schedule.alpha_bar[n], schedule.beta[n], 1 - schedule.beta[n]
            before = schedule.alpha_bar[n - 1] if n else torch.tensor(1.0, dtype=torch.float64)
            x0 = (x - (1 - abar).sqrt() * eps_model(x, torch.full((3,), n))) / abar.sqrt()
            if anchors is not None:
                x0 = torch.where(mask[:, None], y, x0)
            x = before.sqrt() * beta / (1 - abar) * x0 + alpha.sqrt() * (1 - before) / (1 - abar) * x
            if n:
                sigma = (beta * (1 - before) / (1 - abar)).sqrt()
                x = x + sigma * torch.randn(3, K, 2, generator=g, dtype=torch.float64)
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)

def prior_of(C, d):
    prior = GaussianPrior(d)  # d latents, each with covariance C [K,K] at whole frames
    prior.covariance = lambda a, b: C[a.long()][:, b.long()].expand(d, -1, -1)
    return prior

def frames_observation(d):
    autoencoder = LinearAutoencoder(d, d)  # kind 0: seen whole, -1: not at all; vertices are latents
    torch.nn.init.eye_(autoencoder.E)
    return Observation(autoencoder, torch.ones(1, d, dtype=torch.bool), torch.zeros(1, d))

def interrecon_experiment(seen, **settings):
    """(exact posterior variance, squared bias of the conditional mean, variance), mean over missing frames.
    With exact eps the sampler is affine in noise and anchors. Opposite noise cancels in a pair's mean, so sampling for each
    unit vector of y gives the conditional mean's matrix without sampling error; the squared bias is its distance from the
    Gaussian conditional, averaged over frames drawn from C."""
    schedule, K = NoiseSchedule(), 10
    C, seen = smooth_covariance(K), torch.tensor(seen)
    mask = torch.zeros(K, dtype=torch.bool).index_fill(0, seen, True)
    eps_model = gaussian_eps(C, torch.zeros(K, dtype=torch.float64), schedule)
    weighted = settings.pop("weighted", False)
    held = frames_observation(1).projection([0 if k in seen else -1 for k in range(K)], prior_of(C, 1), torch.arange(K))
    def run(y, **kw):
        how = dict(project=lambda z0, abar: held(z0, y, abar), dtype=y.dtype) if weighted else dict(y=y, mask=mask)
        return sample(eps_model, tuple(y.shape), schedule, reuse_eps=settings.get("reuse_eps", not weighted), **how, **{
            k: v for k, v in settings.items() if k != "reuse_eps"}, **kw)
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
    x, y = torch.randn(2, 4, 6, generator=g).double(), torch.randn(2, 4, 6, generator=g).double()
    x_hat = range_null_projection(x, y, mask[:, None])
    assert torch.equal(A @ x_hat, A @ y)                                               # A x_hat = y, to the last bit
    torch.testing.assert_close(x_hat, A_pinv @ (A @ y) + (torch.eye(4) - A_pinv @ A) @ x)
    plain = frames_observation(6).projection([0, -1, 0, -1])                           # the same, as an observation
    torch.testing.assert_close(plain(x, y, 0.3), x_hat)
    weighted = frames_observation(6).projection([0, -1, 0, -1], prior_of(smooth_covariance(4), 6), torch.arange(4))(x, y, 0.3)
    torch.testing.assert_close(A @ weighted, A @ y, atol=1e-4, rtol=0)                 # another pseudo-inverse: frames that
    assert (weighted - x)[:, 1].abs().min() > 1e-3                                     # were not seen follow those that were

def test_any_linear_observation():
    """Frames seen whole, in part (more vertices than latents, fewer, one twice) and not at all, against numpy's posterior."""
    rng, K, d, V = np.random.default_rng(0), 7, 3, 9
    scale, mean, E = np.array([2.0, 1.5, 1.0]), rng.standard_normal(V), np.linalg.qr(rng.standard_normal((V, d)))[0].T
    E[:, 8] = E[:, 7]
    D = np.linalg.pinv(E) * scale
    autoencoder, tensor = LinearAutoencoder(V, d, joint=True), lambda a: torch.from_numpy(a).float()
    autoencoder.load_state_dict({"E": tensor(E), "D": tensor(D / scale), "mean": tensor(mean), "latent_mean": torch.zeros(d),
                                 "latent_scale": tensor(scale)})
    rows = np.array([np.ones(V), np.arange(V) < 5, np.arange(V) < 2, np.arange(V) >= 7], bool)
    outside = 0.5 * (np.eye(V) - np.linalg.pinv(E) @ E)  # noise that E does not see
    frames = rng.standard_normal((4000, d)) @ D.T + rng.standard_normal((4000, V)) @ outside + mean
    observation, kinds, C = Observation(autoencoder, torch.from_numpy(rows), tensor(frames)), [1, -1, 0, 2, 3, -1, 1], smooth_covariance(K)
    x, H, R, y, known = rng.standard_normal((K, V)), [], [], [], torch.zeros(K, d).double()
    for k, kind in enumerate(kinds):
        if kind >= 0:
            U, S, Qt = np.linalg.svd(D[rows[kind]], full_matrices=False)
            keep, fit = S > 1e-3 * S[0], (U[:, S > 1e-3 * S[0]] / S[S > 1e-3 * S[0]]).T
            y.append(fit @ (x[k] - mean)[rows[kind]])
            H.append(np.kron(np.eye(K)[k], Qt[keep]))
            R.append(torch.from_numpy(fit @ (outside @ outside.T)[np.ix_(rows[kind], rows[kind])] @ fit.T))
        known[k] = observation.latents(tensor(x[k: k + 1]), kind)[0]
    H, prior = np.concatenate(H), np.kron(C.numpy(), np.eye(d))
    exact = prior @ H.T @ np.linalg.solve(H @ prior @ H.T + torch.block_diag(*R).numpy(), np.concatenate(y))
    held, schedule = observation.projection(kinds, prior_of(C, d), torch.arange(K)), NoiseSchedule()
    z = sample(gaussian_eps(C, torch.zeros(K).double(), schedule), (2, K, d), schedule, dtype=torch.float64, antithetic=True,
               project=lambda z0, abar: held(z0, known, abar), reuse_eps=False, generator=torch.Generator().manual_seed(0)).mean(0)
    assert np.abs(z.numpy().ravel() - exact).max() < 0.1 * np.abs(exact).max()  # R is measured on 4,000 frames

# ---- Schedule, prior, autoencoder ------------------------------------------------------
def test_schedule():
    s = NoiseSchedule()
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
    s, z, prior = NoiseSchedule(), ar1(np.random.default_rng(0), 2000, 3), GaussianPrior(3)
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

@pytest.mark.parametrize("T, V", [(40, 300), (300, 40), (100, 300), (300, 80)])  # the last two are larger than a block
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
    x = torch.randn(50, 5) @ torch.randn(5, 80)
    ae = LinearAutoencoder(80, 20)
    ae.fit(x)
    assert ae.latent_dim == 5 and ae.E.shape == (5, 80)
    torch.testing.assert_close(ae.decode(ae.encode(x)), x, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="frames must be"):
        ae.fit(x[:, :10])

def test_joint_autoencoder_learns_the_pca_error_and_hides_from_the_diffusion_loss():
    torch.manual_seed(0)
    x = torch.randn(400, 4) @ torch.randn(4, 30) + 0.1 * torch.randn(400, 30)
    x -= x.mean(0)
    best, ae = LinearAutoencoder(30, 4), LinearAutoencoder(30, 4, joint=True)
    best.fit(x)
    floor = (best.decode(best.encode(x)) - x).square().mean()
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
    x, c, h, t = torch.randn(2, 6, 16), torch.randn(2, 16), torch.randn(2, 3, 10), torch.arange(3)
    for block, (kv, bias) in zip(dit.blocks, dit.condition(h, t, t)):
        assert torch.equal(block(x, block.modulation(c)[:, None], kv, bias), x)
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
    z, h, n, eeg_positions = torch.randn(2, 5, 12), torch.randn(2, 9, 10), torch.tensor([3, 500]), torch.arange(-2, 7)
    out = dit(z, n, h, eeg_positions=eeg_positions)
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
    assert model.encoder(eeg).shape == (2, 5, 8) and model.encoder(eeg[:, :1]).shape == (2, 1, 8)
    exact = model(z, n, model.encoder(eeg))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(z, n, model.encoder(eeg))
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()

class NoDouble(TorchDispatchMode):
    """Fails where a float64 tensor is computed on the meta device."""
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for u in out if isinstance(out, (list, tuple)) else [out]:
            assert not (torch.is_tensor(u) and u.is_meta and u.dtype == torch.float64), func
        return out

@pytest.mark.parametrize("encoder, predict", [("conv", "eps"), ("bandpower", "v")])
def test_float64_stays_on_the_cpu(encoder, predict, monkeypatch):
    """MPS has no float64. The meta device, which only knows shapes and dtypes (and no autocast), stands in for it."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model, times = NeuroFrames(4, 32, 6, encoder, 8, 16, 2, 2, predict=predict, prior=True), torch.arange(5)
    model.prior.fit([ar1(np.random.default_rng(0), 200, 6)])
    held = frames_observation(6).projection([0, -1, 0, -1, -1], model.prior, times)
    model.prior.spectrum(times)  # of the prior: kept from now on
    model, z, n = model.to("meta"), torch.empty(2, 5, 6, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    with NoDouble():
        ae, h = LinearAutoencoder(9, 6, joint=True).to("meta"), model.encoder(torch.empty(2, 5, 4, 32, device="meta"))
        loss, _ = ae.reconstruction_loss(ae.decode(model.schedule.velocity(z, n, z)))
        (model(model.schedule.add_noise(z, n, z), n, h).sum() + loss).backward()
        eps = lambda z_n, n: model.schedule.eps_from_velocity(z_n, n, model(z_n, n, h))  # noqa: E731
        sample(eps, (2, 5, 6), model.schedule, 3, 1.0, project=lambda z0, abar: held(z0, z, 0.5), device="meta", antithetic=True)

def test_band_power_hears_power_and_not_phase():
    torch.manual_seed(0)
    net, powers, t = BandPowerEncoder(1, 64, 8, filters=1, bands=8, span=3).eval(), [], torch.arange(5 * 64) / 64
    net.norm.register_forward_hook(lambda module, inputs, output: powers.append(inputs[0].detach()))
    for cycles, phase, size in ((4, 0.0, 1.0), (4, 1.0, 1.0), (4, 0.0, 3.0), (28, 0.0, 1.0)):
        net((size * torch.sin(2 * np.pi * cycles * t + phase)).view(1, 5, 1, 64))
    middle, plain = zip(*(p[2].chunk(2) for p in powers))  # [bands] of the window whose neighbours are on both sides
    torch.testing.assert_close((middle[0], middle[0].exp()), (middle[1], plain[0] + 1e-12), atol=1e-3, rtol=1e-6)
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
    assert first.eeg.shape == (300, 4, 40) and first.driven.shape == (300, 64)
    middle = (first.fmri[:-1] + first.fmri[1:]) / 2  # half a TR later, BOLD is near to the mean of its neighbours
    near = [np.corrcoef(first.between[k: 300 - 2 + k][:, 0], middle[1:, 0])[0, 1] for k in (0, 1, 2)]
    assert near[1] > max(near[0], near[2])

def test_eeg_windows_follow_the_delay():
    first, starts = data.eeg_windows(samples=10_000, volumes=20, tr=0.72, fs=500, delay=4.0)
    assert first == 6 and starts[0] == round((6 * 0.72 - 4) * 500) == 160 and np.all(np.diff(starts) == 360) and len(starts) == 14
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

def test_normaliser_uses_the_given_frames_and_spares_constant_vertices(tiny, monkeypatch):
    subject = data.Subject(tiny)
    monkeypatch.setattr(data.Subject, "fmri", np.array(subject.fmri))
    subject.fmri[:, 3] = 700.1
    subject.fmri[:, 4] = 1e-6 * np.arange(300)  # a constant without its mean: rounding errors are left
    normaliser, frames = data.Normaliser.measure(subject, [(0, 60), (60, 120)], block=50), subject.fmri[:120].astype(np.float64)
    np.testing.assert_allclose(normaliser.mean, frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(normaliser.std[5:], frames.std(0)[5:], rtol=1e-5)
    np.testing.assert_allclose(normaliser.eeg_scale, np.abs(subject.eeg[:120]).max((0, 2)))
    z = normaliser.zscore(subject.fmri)
    assert not normaliser.valid[3:5].any() and normaliser.valid.sum() == 62 and not z[:, 3:5].any()
    np.testing.assert_allclose(normaliser.raw(z), subject.fmri, rtol=1e-5, atol=1e-3)

def test_windows_cover_and_stay_inside():
    windows = data.tile([(0, 25), (25, 32)], 10)
    assert windows == [(0, 10, 0, 25), (10, 10, 0, 25), (15, 10, 0, 25), (25, 7, 25, 32)]
    frames, eeg, positions = data.window_indices(windows[:3], context=4)
    assert eeg[0].tolist() == [0] * 4 + list(range(15)) and eeg[2].tolist() == list(range(11, 25)) + [24] * 5
    assert np.array_equal(positions, eeg[:, :-1] - frames[:, :1])
    assert [w[0] for w in data.tile([(0, 25), (25, 32)], 10, 6)] == [0, 4, 8, 12, 15, 25]
    drawn = data.draw_windows([(0, 5), (5, 30), (30, 42)], 10, 20_000, np.random.default_rng(0))
    starts, counts = np.unique([w[0] for w in drawn], return_counts=True)
    assert starts.tolist() == list(range(5, 21)) + list(range(30, 33)) and {w[1] for w in drawn} == {10}
    assert np.abs(counts - 20_000 / 19).max() < 5 * (20_000 / 19) ** 0.5 and all(w[2] <= w[0] <= w[3] - 10 for w in drawn)
    recording = torch.arange(2 * 36.0).view(2, 36)
    windows = recording.unflatten(1, (6, 6)).transpose(0, 1)[None]                     # [1,6,2,6] of 6 samples
    assert torch.equal(data.shift_windows(windows, 4)[0, 2], recording[:, 16:22])

# ---- Scores and controls ---------------------------------------------------------------
def test_scores_and_interpolation_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((4, 30)), rng.standard_normal((4, 30))
    s = sampling.frame_scores(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    for u, v, found in zip(a, b, s):
        expected = [((u - v) ** 2).mean(), np.corrcoef(u, v)[0, 1], u @ v / np.linalg.norm(u) / np.linalg.norm(v)]
        np.testing.assert_allclose(found, expected)
    assert sampling.frame_scores(torch.zeros(1, 5), torch.randn(1, 5))[0, 1:].tolist() == [0, 0]  # not NaN
    x, seen = torch.randn(6, 4), np.array([1, 4])
    y = sampling.linear_interpolation(seen, np.arange(6), lambda k: x[k])
    np.testing.assert_allclose(y, np.stack([np.interp(np.arange(6), seen, c) for c in x[seen].T], 1), rtol=1e-6)
    assert not sampling.linear_interpolation(seen[:0], np.arange(6), lambda k: x[k]).any()

def test_calibration_of_a_normal():
    error = torch.from_numpy(2 * np.random.default_rng(0).standard_normal(100_000))
    for claim, in_50, in_90 in ((2.0, 0.5, 0.9), (1.0, 0.264, 0.589)):
        found = sampling.calibration_summary(sum(sampling.calibration(e, torch.full_like(e, claim)) for e in error.split(30_000)))
        u = torch.linspace(-15, 15, 3001).double()  # the CRPS by its definition, the integral of (F(u) - 1[u > error])^2
        crps = (torch.special.ndtr(u / claim) - (u > error[:5000, None]).double()).square().sum(1).mean() * 0.01
        assert abs(found["coverage_50"] - in_50) < 0.006 and abs(found["coverage_90"] - in_90) < 0.006
        assert abs(found["spread_to_error"] - claim / 2) < 0.01 and abs(found["crps"] - crps) < 0.03

@pytest.fixture(scope="module")
def process():
    """An untrained model with a prior is the exact denoiser of a Gaussian process; EEG tokens that it ignores."""
    torch.manual_seed(0)
    white, kernel = torch.randn(6, 20_000, 2), torch.exp(-0.5 * (torch.arange(-12, 13) / 2.0) ** 2)
    z = torch.nn.functional.conv1d(white.transpose(1, 2).reshape(12, 1, -1), kernel.view(1, 1, -1)).view(6, 2, -1).transpose(1, 2)
    model = NeuroFrames(3, 16, 2, "bandpower", 8, 16, 1, 2, predict="v", prior=True, encoder_settings={"bands": 4}).eval()
    model.prior.fit(list(z / z.std() + 0.2 * torch.randn(z.shape)))
    return model

def test_whole_runs_have_no_seams(process):
    C = process.prior.covariance(torch.arange(60), torch.arange(60))[0]
    for overlap, low, high in ((0, 4.0, 20.0), (10, 0.9, 1.1)):
        w = sampling.Windows(60, 20, overlap)
        eps = w.eps_model(process, torch.zeros(1, 60, 1, 8), 2, 1000, 4)
        z = sample(eps, (1000, 60, 2), process.schedule, 100, generator=torch.Generator().manual_seed(0))
        jump = z.diff(dim=1).square().mean((0, 2))
        assert low < jump[w.start[1:] - 1].mean() / jump.mean() < high  # the squared jump at a border, over the mean
    lagged = [float((z[:, :60 - k] * z[:, k:]).mean()) for k in range(6)]
    np.testing.assert_allclose(lagged, C[0, :6], atol=0.05)

@pytest.mark.parametrize("u", [1, 2])
def test_whole_runs_complete_their_anchors(process, u):
    """Windows, also with points between the frames, against the Gaussian conditional of the whole run."""
    t, T, generator = torch.arange(50 * u) / u, 50, torch.Generator().manual_seed(0)
    kinds = np.where(np.arange(T) % 5 == 0, 0, -1)
    C = process.prior.covariance(t, t)
    y = torch.linalg.cholesky(C[:, ::u, ::u] + 1e-9 * torch.eye(T)) @ torch.randn(2, T, 1, generator=generator).double()
    anchors = np.arange(0, T * u, 5 * u)
    exact = C[:, :, anchors] @ torch.linalg.inv(C[:, anchors][:, :, anchors]) @ y[:, ::5]
    w = sampling.Windows(T, 20, 10, u)
    project = w.projection(frames_observation(2), process.prior, kinds, y[..., 0].T[None].float())
    z = sample(w.eps_model(process, torch.zeros(1, T, u, 8), 2, 2, 4), (2, T * u, 2), process.schedule, project=project,
               reuse_eps=False, antithetic=True, generator=generator).mean(0)
    assert (z.T - exact[..., 0]).square().mean() < 0.01 * exact.square().mean()

def test_interleaved_sets_share_what_the_eeg_says(process):
    """Each set of points says exactly what a mean of 1 adds to eps; together they must say what it adds to all points."""
    for abar in (0.01, 0.3, 0.9):
        shift = lambda t: torch.linalg.solve(abar * process.prior.covariance(t, t) + (1 - abar) * torch.eye(len(t)),  # noqa: E731
                                             torch.ones(2, len(t), 1).double())[..., 0].T.float()
        out = process.prior.interleave(shift(torch.arange(40)).repeat(1, 2, 1, 1), abar)[0]
        exact = shift(torch.arange(80) / 2)
        assert (out - exact)[20:60].abs().max() < 0.05 * exact[20:60].abs().max()

# ---- The whole path, as commands -------------------------------------------------------
SMALL = ["--preset", "tiny", "--width", "16", "--heads", "2", "--depth", "1", "--eeg-dim", "8", "--eeg-filters", "4",
         "--eeg-bands", "4", "--latent-dim", "6", "--batch-size", "4", "--frames", "6", "--context", "2", "--warmup", "2"]
def command(monkeypatch, module, *flags):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    module.main()

def test_training_lowers_the_validation_loss(tiny, tmp_path, monkeypatch):
    command(monkeypatch, train, "--data", tiny, "--steps", 60, *SMALL, "--lr", "3e-3", "--out", tmp_path)
    losses = [json.loads(line)["val_loss"] for line in open(tmp_path / "log.jsonl")]
    assert torch.load(tmp_path / "ckpt.pt", weights_only=True)["val_loss"] == min(losses) < losses[0]

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
    keys, label = {1: ("L_V1_ROI", (1, 0, 0, 1)), 2: ("R_A1_ROI", (0, 1, 0, 1)), 0: ("???", (0, 0, 0, 0))}, np.zeros((1, 40), "f4")
    label[0, :10], label[0, 30:35] = 1, 2
    axes = nib.cifti2.LabelAxis(["parcels"], [keys]), space[np.arange(40)]
    nib.save(nib.Cifti2Image(label, axes), str(root / "parcels.dlabel.nii"))
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
    eeg -= eeg.mean(1, keepdims=True)  # without the offset of a run
    np.testing.assert_allclose(subject.eeg[45 + 3], eeg[:, 3 * 40: 4 * 40], atol=1e-6)  # volume 5 + 3 at 6.4 s; EEG from 2.4 s
    assert {k: int(m.sum()) for k, m in subject.rois.items()} == {"visual": 10, "visual+audio": 15, "mine": 7}
    assert np.flatnonzero(subject.rois["visual+audio"]).tolist() == list(range(10)) + list(range(30, 35))

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
    observed = np.isin(np.arange(45) % 6, [0, 5] if "--anchors" in flags else [0, 2, 4] if flags else [])
    if flags:
        assert np.array_equal(recon[observed], truth[observed]) and not std[observed].any()
        assert metrics["anchor_residual"] == 0.0 < metrics["residual_before"]
    assert std[~observed].any(0)[normaliser.valid].all()
    region, scores = subject.rois["visual"] & normaliser.valid, metrics["scores"]
    r = np.mean([np.corrcoef(recon[t, region], truth[t, region])[0, 1] for t in np.flatnonzero(~observed)])
    mse = ((recon - truth)[~observed][:, normaliser.valid] ** 2).mean()
    np.testing.assert_allclose([scores["neuroframes"]["visual"]["r"]["mean"], scores["neuroframes"]["whole"]["mse"]["mean"]],
                               [r, mse], atol=1e-5)
    assert scores.keys() == {"neuroframes", "neuroframes_1", "mean_frame", "shuffled_eeg",
                             *(("no_null_space", "linear", "gaussian") if flags else ())}
    assert scores["neuroframes"].keys() == {"whole", "visual", "visual+audio", "mine"}
    image = nib.load(out / "recon.dtseries.nii")
    series = image.header.get_axis(0)
    assert image.header.get_axis(1) == session[1] and series.start == pytest.approx(5 * 0.8)
    assert (series.size, series.step, series.unit) == (45, 0.8, "SECOND")
    np.testing.assert_allclose(image.get_fdata(), normaliser.raw(recon), rtol=1e-5)
    assert (image.get_fdata()[:, 5] == 12.0).all()  # the constant vertex comes back as it was
    table = capsys.readouterr().out
    assert ("The EEG" in table or "whether the EEG" in table) and ("The null space: MSE" in table) == bool(flags)

def test_partial_frames_points_between_frames_and_calibration(session, trained, tmp_path, monkeypatch, capsys):
    flags = ["--ckpt", trained / "ckpt.pt", "--out", tmp_path, "--samples", 2, "--steps", 3, "--frames", 5]
    command(monkeypatch, sampling, *flags, "--observe", "visual", "--gap", 3, "--upsample", 2)
    recon, truth, t = (np.load(tmp_path / f"interrecon/{name}.npy") for name in ("recon", "truth", "frames"))
    subject, metrics = data.Subject(str(trained / "subject")), json.load(open(tmp_path / "interrecon/metrics.json"))
    whole, visual = np.isin(np.arange(45) % 5, [0, 3]), subject.rois["visual"]
    assert np.array_equal(t, 135 + np.arange(90) / 2) and recon.shape == (90, 48)
    assert np.array_equal(recon[::2][whole], truth[whole]) and np.array_equal(recon[::2][:, visual], truth[:, visual])
    assert not np.array_equal(recon[::2], truth) and "visual" not in metrics["scores"]["neuroframes"]
    free = ~visual & (truth.std(0) > 0)  # the whole is what of it was not observed
    mse = ((recon[::2] - truth)[~whole][:, free] ** 2).mean()
    assert metrics["scores"]["neuroframes"]["whole"]["mse"]["mean"] == pytest.approx(mse, rel=1e-5)
    assert nib.load(tmp_path / "interrecon/recon.dtseries.nii").header.get_axis(0).step == 0.4
    mask = np.stack([np.arange(48) < 20, np.zeros(48, bool), np.arange(48) >= 20])
    np.save(tmp_path / "mask.npy", mask)
    command(monkeypatch, sampling, *flags, "--observe", tmp_path / "mask.npy", "--projection", "plain", "--calibrate")
    recon, mask = np.load(tmp_path / "interrecon/recon.npy"), np.tile(mask, (15, 1))
    assert np.array_equal(recon[mask], truth[mask]) and not np.isclose(recon[~mask], truth[~mask])[:, None].all()
    assert len(json.load(open(tmp_path / "interrecon/metrics.json"))["calibration"]) == 3 and "hold the truth" in capsys.readouterr().out

def test_any_length_from_one_checkpoint_and_more_test_runs(tiny, tmp_path, monkeypatch):
    command(monkeypatch, train, "--data", tiny, "--steps", 2, *SMALL, "--tokens-per-frame", 2, "--out", tmp_path)
    for window in (3, 30):
        command(monkeypatch, sampling, "--ckpt", tmp_path / "ckpt.pt", "--window", window, "--steps", 2, "--samples", 1)
        assert json.load(open(tmp_path / "direct/metrics.json"))["ceiling"]["whole"]["r"] > 0.3

def test_cinebrain_folders_are_not_delayed_twice(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "fmri").mkdir(), (tmp_path / "eeg").mkdir()
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
