"""Chapters against closed forms and independent implementations."""

import contextlib
import functools
import glob
import os
import re
import types

import numpy as np
import pytest
import torch
from conftest import ar1

import beyond
import train
from beyond import (
    any_vertices,
    band_power,
    between_frames,
    computed_once,
    joint,
    left_out,
    network,
    opposite_pairs,
    second_order,
    velocity,
    vertex_loss,
    weighted_projection,
    whole_runs,
)
from beyond.gaussian_prior import GaussianPrior
from evidence import calibration
from evidence.spread import told, verdict
from neuroframes import LinearAutoencoder, NoiseSchedule, denoise, range_null_projection
from test_neuroframes import (
    EVERY_SECOND,
    NoDouble,
    gaussian_eps,
    interrecon_experiment,
    noise,
    smooth_covariance,
    trained_looking,
)

# ---- Projections -----------------------------------------------------------------------


def prior_of(C, d):
    """d latents, each with covariance C [K,K] at whole frames."""
    prior = GaussianPrior(d)
    prior.covariance = lambda times: C[times.long()][:, times.long()].expand(d, -1, -1)
    return prior


def weighted(C, seen, y):
    """(z0, abar) -> z0, the projection weighted by covariance C."""
    mask = torch.zeros(len(C), dtype=torch.bool).index_fill(0, seen, True)
    project = weighted_projection.weighted_projection(prior_of(C, 1), mask, torch.arange(len(C)))
    return lambda z0, abar: project(z0, y, abar)


@pytest.mark.parametrize("seen", [EVERY_SECOND, [0, 9]])
def test_the_weighted_pseudo_inverse_removes_the_bias(seen):
    exact, plain, _ = interrecon_experiment(seen, reuse_eps=True)
    _, bias, variance = interrecon_experiment(seen, weighted, reuse_eps=False)
    # Far anchors, [0, 9]: 0.00003, was 0.046, of a variance of 0.514.
    assert bias < 1e-4 * exact and bias < 0.01 * plain
    # 50 steps lose some variance, with or without anchors.
    assert 0.8 * exact < variance < 1.05 * exact


def test_weighted_projection_holds_what_was_seen_and_moves_what_was_not():
    seen = torch.tensor([True, False, True, False])
    x = torch.randn(2, 4, 6).double()
    y = torch.randn(2, 4, 6).double()
    project = weighted_projection.weighted_projection(
        prior_of(smooth_covariance(4), 6), seen, torch.arange(4)
    )
    moved = project(x, y, 0.3)
    torch.testing.assert_close(moved[:, seen], y[:, seen], atol=1e-4, rtol=0)
    assert (moved - x)[:, 1].abs().min() > 1e-3
    nothing = weighted_projection.weighted_projection(
        prior_of(smooth_covariance(4), 6), ~seen & seen, torch.arange(4)
    )
    torch.testing.assert_close(nothing(x, y, 0.3), x)


def unit_autoencoder(d):
    """Vertices are latents."""
    autoencoder = LinearAutoencoder(d, d)
    autoencoder.E = torch.eye(d)
    return autoencoder


def test_frames_seen_whole_as_observations_are_range_null_projection():
    rows = torch.ones(1, 6, dtype=torch.bool)
    x = torch.randn(2, 4, 6)
    nothing = torch.zeros(6)
    observation = any_vertices.Observation(unit_autoencoder(6), rows, nothing, [nothing[None]])
    y = torch.randn(2, 4, 6)
    mask = torch.tensor([True, False, True, False])
    found = observation.projection([0, -1, 0, -1], None, None)(x, y, 0.3)
    torch.testing.assert_close(found, range_null_projection(x, y, mask[:, None]))


def correlated_autoencoder(rng, V, d):
    """An autoencoder whose E [d,V] has equal columns; D [V,d], by which its latents decode; outside
    [V,V], which makes noise that E does not see."""
    scale = np.linspace(2.0, 1.0, d)
    E = np.linalg.qr(rng.standard_normal((V, d)))[0].T
    E[:, V - 1] = E[:, V - 2]
    D = np.linalg.pinv(E) * scale
    outside = 0.5 * (np.eye(V) - np.linalg.pinv(E) @ E)
    arrays = {"E": E, "D": D / scale, "mean": np.zeros(V), "latent_scale": scale}
    tensors = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
    autoencoder = joint.JointAutoencoder(V, d)
    autoencoder.load_state_dict(tensors)
    return autoencoder, D, outside


def observation_of(autoencoder, rows, frames):
    """Observation of what the autoencoder leaves out of frames [n,V]."""
    left_out = frames - autoencoder.decode(autoencoder.encode(frames))
    given = torch.from_numpy(rows), left_out.square().mean(0), left_out.split(1000)
    return any_vertices.Observation(autoencoder, *given)


def exact_posterior(D, outside, rows, kinds, C, x):
    """The mean [K d] of latents z [K,d] given frames x [K,V] at the vertices rows[kind], by numpy.

    x = D z + outside w, w white; latents have covariance C [K,K] in time.
    """
    K = len(x)
    d = D.shape[1]
    H = []
    R = []
    y = []
    for k, kind in enumerate(kinds):
        if kind >= 0:
            row = rows[kind]
            U, size, Qt = np.linalg.svd(D[row], full_matrices=False)
            keep = size > 1e-3 * size[0]
            fit = (U[:, keep] / size[keep]).T
            y.append(fit @ x[k][row])
            H.append(np.kron(np.eye(K)[k], Qt[keep]))
            R.append(torch.from_numpy(fit @ (outside @ outside.T)[np.ix_(row, row)] @ fit.T))
    H = np.concatenate(H)
    prior = np.kron(C, np.eye(d))
    of_y = H @ prior @ H.T + torch.block_diag(*R).numpy()
    return prior @ H.T @ np.linalg.solve(of_y, np.concatenate(y))


def test_any_linear_observation():
    """Frames seen whole, in part (more vertices than latents, fewer, one twice) and not at all,
    against numpy's posterior."""
    rng = np.random.default_rng(0)
    K, d, V = 7, 3, 9
    autoencoder, D, outside = correlated_autoencoder(rng, V, d)
    rows = [[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7, [0] * 7 + [1] * 2]
    rows = np.array(rows, bool)
    frames = rng.standard_normal((4000, d)) @ D.T + rng.standard_normal((4000, V)) @ outside
    observation = observation_of(autoencoder, rows, torch.from_numpy(frames).float())

    kinds = [1, -1, 0, 2, 3, -1, 1]
    C = smooth_covariance(K)
    x = rng.standard_normal((K, V))
    known = torch.zeros(K, d).double()
    for k, kind in enumerate(kinds):
        known[k] = observation.latents(torch.from_numpy(x[k : k + 1]).float(), kind)[0]
    held = observation.projection(kinds, prior_of(C, d), torch.arange(K))

    def project(z0, abar):
        return held(z0, known, abar)

    schedule = NoiseSchedule()
    eps = gaussian_eps(C, torch.zeros(K).double(), schedule)
    z = denoise(eps, project, noise(0, pairs=True), (2, K, d), schedule, reuse_eps=False)
    exact = exact_posterior(D, outside, rows, kinds, C.numpy(), x)
    error = z.mean(0).numpy().ravel() - exact
    assert np.abs(error).max() < 0.1 * np.abs(exact).max()  # R is measured on 4,000 frames


def equations(observation, kind):
    """A [d,d] and R [d,d] of a pattern. A frame seen whole has A = I, R = 0; where nothing is said,
    A has rows of zeros, and R of the identity."""
    d = observation.autoencoder.latent_dim
    whole = kind >= 0 and kind not in observation.fits
    A = whole * torch.eye(d).double()
    R = torch.eye(d).double() - A
    if kind in observation.fits:
        F, power = observation.fits[kind]
        r = len(power)
        assert not F[r:].any()
        F = F[:r].double()
        A[:r] = torch.linalg.qr(F.T).Q.T
        R[:r, :r] = A[:r] @ torch.linalg.pinv(F.T @ F) @ A[:r].T
    return A, R


def by_one_inverse(observation, kinds, W, z0, y):
    """z0 + W A^T (A W A^T + R)^-1 (y - A z0), as it is written, of W [d,K,K]."""
    d, K, _ = W.shape
    dense = torch.einsum("dkl,de->kdle", W, torch.eye(d).double()).reshape(K * d, K * d)
    systems = [equations(observation, kind) for kind in kinds]
    A = torch.block_diag(*(A for A, _ in systems))
    R = torch.block_diag(*(R for _, R in systems))
    gain = dense @ A.T @ torch.linalg.pinv(A @ dense @ A.T + R)
    return z0 + ((y - z0).flatten(1) @ A.T @ gain.T).view_as(z0)


@pytest.mark.parametrize("kinds", [[0, 1, -1, 2, 1, -1], [1, -1, 1, 0, 1, 1], [2, 1, 2, 1, 2, 1]])
@pytest.mark.parametrize("weighted_by_time", [True, False])
def test_conjugate_gradients_solve_what_the_equation_says(monkeypatch, weighted_by_time, kinds):
    """Against one dense inverse of all frames of a window, at noisy steps and clean ones: to all
    digits, if it is asked of them; and as it is, to what TOLERANCE says."""
    rng = np.random.default_rng(0)
    K, d, V = 6, 4, 30
    autoencoder, _, _ = correlated_autoencoder(rng, V, d)
    rows = torch.zeros(3, V, dtype=torch.bool)
    rows[0] = True
    rows[1, :12] = True
    rows[2, 20:23] = True  # fewer vertices than latents
    left_out = torch.from_numpy(rng.standard_normal((400, V))).float()
    observation = any_vertices.Observation(autoencoder, rows, torch.ones(V), [left_out])
    prior = prior_of(smooth_covariance(K), d) if weighted_by_time else None
    times = torch.arange(K)
    held = observation.projection(kinds, prior, times)
    z0, y = torch.from_numpy(rng.standard_normal((2, 3, K, d)))
    for abar in NoiseSchedule().alpha_bar[[999, 600, 300, 20, 0]].tolist():
        W = (1 - abar) * torch.eye(K).double().expand(d, K, K)
        if prior is not None:
            W = weighted_projection.posterior(prior, times, abar)
        expected = by_one_inverse(observation, kinds, W, z0, y)
        moved = (expected - z0).norm()
        assert (held(z0, y, abar) - expected).norm() < 3 * any_vertices.TOLERANCE * moved
        with monkeypatch.context() as patched:
            patched.setattr(any_vertices, "TOLERANCE", 1e-6)
            torch.testing.assert_close(held(z0, y, abar), expected, atol=1e-4, rtol=1e-4)


def test_frames_seen_whole_are_exact_at_every_step_beside_frames_seen_in_part():
    """Also at n = 0, where W is a ten-thousandth of what it is at first."""
    rng = np.random.default_rng(0)
    K, d, V = 6, 3, 9
    autoencoder, _, _ = correlated_autoencoder(rng, V, d)
    rows = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])
    left_out = torch.from_numpy(rng.standard_normal((400, V))).float()
    observation = any_vertices.Observation(autoencoder, rows, torch.ones(V), [left_out])
    kinds = [0, 1, -1, 0, 1, -1]
    prior = prior_of(smooth_covariance(K), d)
    held = observation.projection(kinds, prior, torch.arange(K))
    z0 = torch.from_numpy(rng.standard_normal((2, K, d)))
    y = torch.from_numpy(rng.standard_normal((2, K, d)))
    for abar in (0.0, *NoiseSchedule().alpha_bar[[999, 500, 20, 0]].tolist()):
        moved = held(z0, y, abar)
        torch.testing.assert_close(moved[:, [0, 3]], y[:, [0, 3]], atol=1e-4, rtol=0)


@pytest.mark.parametrize("frames", [0, 3, 5000])
def test_what_is_left_out_is_known_of_many_frames_few_or_none(frames):
    """R of 5,000 frames, in two blocks, is their covariance. 3 frames are not without variance in
    most directions of 6; of none it is that of vertices left out independently."""
    rng = np.random.default_rng(0)
    V, d = 12, 6
    autoencoder = LinearAutoencoder(V, d)
    autoencoder.E = torch.from_numpy(np.linalg.qr(rng.standard_normal((V, d)))[0].T).float()
    row = np.arange(V) < 8
    mix = rng.standard_normal((V, V))
    left_out = rng.standard_normal((frames, V)) @ mix.T
    variance = (mix**2).sum(1)
    blocks = torch.from_numpy(left_out).float().tensor_split(2) if frames else []
    given = torch.from_numpy(row)[None], torch.from_numpy(variance).float(), blocks
    A, R = equations(any_vertices.Observation(autoencoder, *given), 0)

    U, size, Qt = np.linalg.svd(autoencoder.E.T.numpy()[row], full_matrices=False)
    fit = A.numpy() @ Qt.T @ (U / size).T  # in the basis of A [d,8]
    exact = fit @ (mix @ mix.T)[np.ix_(row, row)] @ fit.T
    least, most = torch.linalg.eigvalsh(R)[[0, -1]]
    if frames == 0:
        independent = fit * variance[row] @ fit.T
        np.testing.assert_allclose(R.diagonal(), np.diag(independent), rtol=1e-4)
    if frames == 3:
        assert least > 1e-2 * np.linalg.eigvalsh(exact)[0] and most < 10 * exact.trace()
    if frames == 5000:
        np.testing.assert_allclose(R, exact, atol=0.05 * np.abs(exact).max())


def test_what_is_observed_of_frames_and_of_vertices_goes_together(tmp_path):
    rows = np.zeros((4, 6), bool)
    rows[0] = True
    mask = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0] * 6], bool)
    np.save(tmp_path / "mask.npy", mask)
    both = any_vertices.observe(rows, str(tmp_path / "mask.npy"), {})
    assert both.shape == (12, 6)
    for k in range(12):
        assert np.array_equal(both[k], rows[k % 4] | mask[k % 3])
    region = any_vertices.observe(rows, "left", {"left": mask[0]})
    assert region.shape == (4, 6) and region[:, 0].all() and region[1:, 1:].sum() == 0
    with pytest.raises(ValueError, match="neither a file nor a region"):
        any_vertices.observe(rows, "right", {"left": mask[0]})


# ---- Steps of second order -------------------------------------------------------------


@pytest.mark.parametrize("seen", [EVERY_SECOND, [0, 9]])
def test_fifteen_calls_of_second_order_have_the_posteriors_variance(seen):
    """Within 6% (DDIM's 50 calls lose 7 to 15%), and no bias either."""
    exact, bias, variance = interrecon_experiment(
        seen, weighted, second_order.denoise, steps=15, eta=0.0, reuse_eps=False
    )
    assert bias < 1e-3 * exact
    assert abs(variance / exact - 1) < 0.06


def test_it_is_dpm_solver_2m_as_printed():
    """Algorithm 2 of Lu et al. (2022), written out; its last step is of first order, to no noise
    at all."""
    schedule, K = NoiseSchedule(), 6
    eps_model = gaussian_eps(smooth_covariance(K), torch.ones(K).double(), schedule)
    ours = second_order.denoise(eps_model, None, noise(0), (3, K, 1), schedule, 12, 0.0, False)

    n, lambdas = second_order.even_steps(schedule, 12)
    assert len(n) == 12 and n[0] == 999 and n[-1] == 0
    alpha = schedule.alpha_bar[n].sqrt()
    sigma = (1 - schedule.alpha_bar[n]).sqrt()
    torch.testing.assert_close(lambdas, (alpha / sigma).log())
    assert lambdas.diff().max() < 1.2 * lambdas.diff().min()
    x = noise(0)((3, K, 1))
    D = []
    for i in range(12):
        D.append((x - sigma[i] * eps_model(x, n[i].expand(3))) / alpha[i])
        if i == 11:
            break
        h = lambdas[i + 1] - lambdas[i]
        ahead = D[i]
        if i:
            r = (lambdas[i] - lambdas[i - 1]) / h
            ahead = (1 + 1 / (2 * r)) * D[i] - 1 / (2 * r) * D[i - 1]
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * torch.expm1(-h) * ahead
    torch.testing.assert_close(ours, D[-1], rtol=1e-9, atol=1e-9)


def test_with_noise_and_with_the_network_s_own_eps_steps_are_of_first_order():
    schedule, K = NoiseSchedule(), 5
    eps_model = gaussian_eps(smooth_covariance(K), torch.zeros(K).double(), schedule)
    for project, eta, reuse_eps in ((None, 0.5, False), (lambda z0, abar: 0.9 * z0, 0.0, True)):
        settings = (2, K, 1), schedule, 9, eta, reuse_eps
        first = denoise(eps_model, project, noise(0), *settings)
        assert torch.equal(second_order.denoise(eps_model, project, noise(0), *settings), first)


# ---- Velocity, prior -------------------------------------------------------------------


def test_velocity_is_eps_and_z_in_other_words():
    s = NoiseSchedule()
    n = torch.tensor([0, 10, 500, 998, 999])
    z = torch.randn(5, 3, 2).double()
    eps = torch.randn(5, 3, 2).double()
    z_n = s.add_noise(z, n, eps)
    v = velocity.velocity(s, z, n, eps)
    torch.testing.assert_close(velocity.eps_from_velocity(s, z_n, n, v), eps)
    abar = s.alpha_bar[n][:, None, None]
    torch.testing.assert_close(abar.sqrt() * z_n - (1 - abar).sqrt() * v, z)


def positive_autocovariance(segments, lags):
    """By numpy: means over pairs, times s (2 - s) of their share s, without negative power."""
    total = sum(map(len, segments))
    c = np.zeros((lags, segments[0].shape[1]))
    for lag in range(lags):
        pairs = [(z[t], z[t + lag]) for z in segments for t in range(len(z) - lag)]
        share = len(pairs) / total * (lags - lag) / lags
        if pairs:
            c[lag] = share * (2 - share) * np.mean([a * b for a, b in pairs], 0)
    k = np.arange(lags)
    cosine = np.cos(np.pi * k[:, None] * k / (lags - 1))
    weight = np.where((k == 0) | (k == lags - 1), 1, 2)
    power = np.maximum(cosine * weight @ c, 0)  # at frequencies k / (2 lags - 2)
    found = cosine * weight @ power
    return c[0] * found / found[0]


def test_autocovariance_is_the_mean_over_pairs_and_positive():
    """Of stretches of 40 frames as of one of 4,000: the share of pairs does not lower it. However
    few and short they are, no combination of frames has a negative variance."""
    z = ar1(np.random.default_rng(0), 4000, 3)
    whole, cut, few = (GaussianPrior(3, lags=60) for _ in range(3))
    whole.fit([z])
    stretches = z.split(40)
    cut.fit(stretches)
    torch.testing.assert_close(cut.autocovariance[0], z.square().mean(0))
    far = (cut.autocovariance - whole.autocovariance)[:12].abs().max()
    assert far < 0.045  # divided by all frames 0.09: of lag 10 a quarter of the pairs is missing
    assert cut.autocovariance[40:].abs().max() < 0.01

    few.fit([z[:25], z[100:118]])
    expected = positive_autocovariance([z[:25].numpy(), z[100:118].numpy()], 60)
    np.testing.assert_allclose(few.autocovariance, expected, atol=1e-5)
    for prior in (whole, cut, few):
        t = torch.arange(60)
        assert torch.linalg.eigvalsh(prior.covariance(t)).min() > -1e-5


def test_gaussian_prior_is_the_exact_denoiser():
    s = NoiseSchedule()
    z = ar1(np.random.default_rng(0), 2000, 3)
    prior = GaussianPrior(3)
    prior.fit([z[:1200], z[1200:]])
    torch.testing.assert_close(prior.autocovariance[0], z.square().mean(0))
    expected = positive_autocovariance([z[:1200].numpy(), z[1200:].numpy()], 256)
    np.testing.assert_allclose(prior.autocovariance, expected, atol=1e-5)
    times = torch.arange(5)
    n = torch.tensor([3, 600])
    z_n = torch.randn(2, 5, 3)
    eps, v = (prior(z_n, n, s, predict, times) for predict in ("eps", "v"))
    C = prior.covariance(times)
    for b in range(2):
        abar = s.alpha_bar[n[b]]
        for d in range(3):
            mixed = abar * C[d] + (1 - abar) * torch.eye(5)
            direct = (1 - abar).sqrt() * torch.linalg.solve(mixed, z_n[b, :, d].double())
            torch.testing.assert_close(eps[b, :, d].double(), direct, atol=1e-5, rtol=1e-4)
    same = velocity.eps_from_velocity(s, z_n, n, v)
    torch.testing.assert_close(same, eps, atol=1e-5, rtol=1e-4)
    times = torch.tensor([0, 0.3, 1, 1.5, 2.25, 4, 7.5, 80])  # between frames, beyond the last lag
    assert torch.linalg.eigvalsh(prior.covariance(times)).min() > -1e-12


# ---- Networks --------------------------------------------------------------------------


def small_network(encoder="bandpower", predict="v", prior=True):
    settings = {"bands": 4, "filters": 3} if encoder == "bandpower" else None
    torch.manual_seed(0)
    sizes = dict(channels=4, samples=32, latent_dim=6, eeg_dim=8, width=16, depth=2, heads=2)
    model = trained_looking(network.Network(settings, predict, prior, **sizes))
    if prior:
        model.prior.fit([ar1(np.random.default_rng(0), 200, 6)])
    return model


@pytest.mark.parametrize("predict", ["eps", "v"])
@pytest.mark.parametrize("prior", [False, True])
def test_the_network_answers_eps_whatever_it_predicts(predict, prior):
    """Its loss is that of what it predicts; a loss of 0 means that its eps is exact."""
    model = small_network("conv", predict, prior)
    z = torch.randn(2, 5, 6)
    eps = torch.randn(2, 5, 6)
    n = torch.tensor([50, 900])
    h = torch.randn(2, 5, 8)
    times = torch.arange(5)
    s = model.schedule
    z_n = s.add_noise(z, n, eps)
    target = eps if predict == "eps" else velocity.velocity(s, z, n, eps)
    known = model.prior(z_n, n, s, predict, times) if prior else 0.0
    losses = model.squared_error(z, n, eps, h)
    torch.testing.assert_close(losses, (model.dit(z_n, n, h) + known - target).square())
    model.dit.forward = lambda *rest: target - known
    assert model.squared_error(z, n, eps, h).max() < 1e-8
    torch.testing.assert_close(model(z_n, n, h), eps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["conv", "bandpower"])
def test_bfloat16_autocast_is_close_to_float32(encoder):
    """What a GPU runs, here on the CPU."""
    model = small_network(encoder)
    z = torch.randn(2, 5, 6)
    n = torch.tensor([50, 900])
    eeg = torch.randn(2, 5, 4, 32)
    assert model.encoder(eeg).shape == (2, 5, 8) and model.encoder(eeg[:, :1]).shape == (2, 1, 8)
    exact = model(z, n, model.encoder(eeg))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(z, n, model.encoder(eeg))
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("encoder, predict", [("conv", "eps"), ("bandpower", "v")])
def test_float64_stays_on_the_cpu(encoder, predict, monkeypatch):
    """MPS has no float64. The meta device stands in for it; it has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = small_network(encoder, predict)
    times = torch.arange(5)
    seen = torch.tensor([True, False, True, False, False])
    held = weighted_projection.weighted_projection(model.prior, seen, times)
    model.prior.spectrum(times)  # kept from now on
    model = model.to("meta")
    z = torch.empty(2, 5, 6, device="meta")
    n = torch.zeros(2, dtype=torch.long, device="meta")
    draw = opposite_pairs.draw(torch.Generator().manual_seed(0), "meta", 2)
    with NoDouble():
        autoencoder = joint.JointAutoencoder(9, 6).to("meta")
        h = model.encoder(torch.empty(2, 5, 4, 32, device="meta"))
        model.squared_error(z, n, z, h).sum().backward()
        losses = autoencoder.decode(autoencoder.encode(autoencoder.decode(z))).mean((1, 2))
        joint.learn(autoencoder, z, losses, lambda x: x)
        denoise(
            lambda z_n, n: model(z_n, n, h),
            lambda z0, abar: held(z0, z, 0.5),
            draw,
            (2, 5, 6),
            model.schedule,
            3,
            1.0,
        )


def test_band_power_hears_power_and_not_phase():
    torch.manual_seed(0)
    encoder = band_power.BandPowerEncoder(1, 64, 8, filters=1, bands=8, span=3).eval()
    powers = []
    t = torch.arange(5 * 64) / 64
    encoder.norm.register_forward_pre_hook(lambda _, inputs: powers.append(inputs[0].detach()))
    for cycles, phase, size in ((4, 0.0, 1.0), (4, 1.0, 1.0), (4, 0.0, 3.0), (28, 0.0, 1.0)):
        wave = size * torch.sin(2 * np.pi * cycles * t + phase)
        encoder(wave.view(1, 5, 1, 64))
    # The window whose neighbours are on both sides: log [bands], plain [bands].
    logs, plain = zip(*(power[2].chunk(2) for power in powers))
    torch.testing.assert_close(logs[0], logs[1], atol=1e-3, rtol=1e-6)
    torch.testing.assert_close(logs[0].exp(), plain[0] + 1e-12, atol=1e-3, rtol=1e-6)
    loud = logs[0] > -10  # quieter bands hold rounding errors
    louder = torch.full((int(loud.sum()),), 2 * np.log(3.0))
    torch.testing.assert_close((logs[2] - logs[0])[loud], louder, atol=1e-3, rtol=0)
    assert logs[0].argmax() < logs[3].argmax()  # bands are in the order of their frequencies


def test_plain_power_is_heard_in_any_units():
    """Of EEG a thousandth as large batch norm makes the same."""
    torch.manual_seed(0)
    encoder = band_power.BandPowerEncoder(3, 32, 8, filters=2, bands=4)
    heard = []
    encoder.norm.register_forward_hook(lambda *rest: heard.append(rest[-1].detach()))
    eeg = torch.randn(4, 9, 3, 32)
    for units in (1.0, 1e-3):
        encoder(units * eeg)
    plain = [u.chunk(2, 1)[1] for u in heard]
    torch.testing.assert_close(plain[0], plain[1], atol=1e-3, rtol=1e-3)
    assert plain[0].std(0).min() > 0.9


def test_band_power_looks_at_its_neighbours_only():
    torch.manual_seed(0)
    encoder = trained_looking(band_power.BandPowerEncoder(3, 32, 8, filters=2, bands=4))
    eeg = torch.randn(1, 7, 3, 32)
    h = encoder(eeg)
    eeg[0, 3] = torch.randn(3, 32)
    moved = (encoder(eeg) - h).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == [False, False, True, True, True, False, False]
    encoder.train()
    assert not torch.equal(encoder(eeg), encoder(eeg))  # dropout


def joint_maps(x, d, lr=1e-2):
    """(JointAutoencoder, its function from rows of frames x [T,V] to latents and their loss)."""
    subject = types.SimpleNamespace(fmri=x.numpy())
    normaliser = types.SimpleNamespace(zscore=lambda frames: frames)
    a = types.SimpleNamespace(latent_dim=d)
    given = a, subject, normaliser, None, torch.device("cpu"), lambda summed: summed
    autoencoder, latents = joint.start(*given)
    autoencoder.optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=lr, weight_decay=0)
    return autoencoder, latents


def test_joint_autoencoder_learns_the_pca_error_and_hides_from_the_diffusion_loss():
    torch.manual_seed(0)
    x = torch.randn(400, 4) @ torch.randn(4, 30) + 0.1 * torch.randn(400, 30)
    x -= x.mean(0)
    best = LinearAutoencoder(30, 4)
    best.fit(x)
    floor = (best.decode(best.encode(x)) - x).square().mean()
    autoencoder, latents = joint_maps(x, 4)
    rows = np.arange(400).reshape(40, 10)
    for _ in range(800):
        z, _ = latents(rows)
        assert not z.requires_grad and autoencoder.E.grad is None
    with torch.no_grad():
        z, losses = latents(rows)
    assert losses.shape == (40,) and floor <= losses.mean() < 1.1 * floor
    torch.testing.assert_close(z.std((0, 1)), torch.ones(4), atol=0.05, rtol=0)
    again = autoencoder.decode(autoencoder.encode(x))
    exact = x @ autoencoder.E.T @ autoencoder.D.T
    torch.testing.assert_close(again, exact, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert latents(rows)[0].dtype == torch.float32


def test_joint_maps_step_alone_and_the_other_weights_of_their_optimizer_stay():
    """Their step is AdamW's with the gradient of the mean loss."""
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    rows = np.arange(6).reshape(3, 2)
    other = torch.nn.Parameter(torch.ones(2))
    autoencoder, latents = joint_maps(x, 2)
    E, D = (weights.detach().clone().requires_grad_() for weights in autoencoder.parameters())
    autoencoder.optimizer = torch.optim.AdamW([other, autoencoder.E, autoencoder.D], lr=0.1)
    latents(rows)
    assert torch.equal(other, torch.ones(2))

    (x @ E.T @ D.T - x).square().mean().backward()
    torch.optim.AdamW([E, D], lr=0.1).step()
    torch.testing.assert_close(autoencoder.E, E)
    torch.testing.assert_close(autoencoder.D, D)


def test_vertex_loss_weighs_latents_as_vertices_do():
    """The weighted squared error of latents is proportional to that of the vertices that they
    decode to."""
    x = torch.randn(300, 20) * torch.linspace(0.2, 3, 20)
    autoencoder = LinearAutoencoder(20, 8)
    autoencoder.fit(x)
    weight = vertex_loss.weight(autoencoder)
    assert weight.mean() == pytest.approx(1) and weight[0] > weight[-1]
    error = torch.randn(5, 8)
    moved = autoencoder.decode(error) - autoencoder.decode(torch.zeros(5, 8))
    ratio = moved.square().sum(1) / (weight * error.square()).sum(1)
    torch.testing.assert_close(ratio, ratio[:1].expand(5), rtol=1e-4, atol=0)


# ---- Drawing ---------------------------------------------------------------------------


def test_opposite_pairs():
    draw = opposite_pairs.draw(torch.Generator().manual_seed(0), "cpu", 4)
    first = draw((8, 3, 2))
    second = draw((8, 3, 2))
    assert torch.equal(first[:4], -first[4:]) and not torch.equal(first, second)
    odd = opposite_pairs.draw(torch.Generator().manual_seed(0), "cpu", 3)((6, 3, 2))
    assert not any(torch.equal(odd[i], -odd[j]) for i in range(6) for j in range(6))
    assert [opposite_pairs.correction(n) for n in (1, 2, 3, 4)] == [1, 0, 1, 0]


def test_what_is_computed_once_is_the_same():
    model = small_network()
    h = torch.randn(3, 7, 8)
    times = torch.arange(-1.0, 6)
    z_n = torch.randn(6, 5, 6)
    n = torch.full((6,), 300)
    answer = computed_once.once(model, h, times)
    naive = model(z_n, n, h.repeat(2, 1, 1), times)
    torch.testing.assert_close(answer(z_n, n), naive, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def process():
    """A model with a prior whose network answers 0, as a fresh one does (here at once), is the
    exact denoiser of a Gaussian process."""
    torch.manual_seed(0)
    white = torch.randn(6, 20_000, 2)
    kernel = torch.exp(-0.5 * (torch.arange(-12, 13) / 2.0) ** 2)
    flat = white.transpose(1, 2).reshape(12, 1, -1)
    z = torch.nn.functional.conv1d(flat, kernel.view(1, 1, -1)).view(6, 2, -1).transpose(1, 2)
    sizes = dict(channels=3, samples=16, latent_dim=2, eeg_dim=8, width=16, depth=1, heads=2)
    model = network.Network({"bands": 4}, "v", True, **sizes).eval()
    model.prior.fit(list(z / z.std() + 0.2 * torch.randn(z.shape)))
    model.dit.forward = lambda z_n, *_, **__: torch.zeros_like(z_n)
    return model


def in_batches(f, *tensors):
    """As tools.processes does, four windows at a time."""
    batches = enumerate(zip(*(tensor.split(4) for tensor in tensors)))
    return torch.cat([f(i, *batch) for i, batch in batches])


def windows_of(T, K, overlap, points=1):
    starts = [min(i, T - K) for i in range(0, T - overlap, K - overlap)]
    return whole_runs.Windows(starts, K, T, points)


def eps_of(w, model, samples):
    """Its eps, with EEG tokens that are ignored."""

    def model_of(tokens, times):
        if w.points == 1:
            return computed_once.once(model, tokens[:, 0], times)
        return between_frames.eps_model(model, tokens, times)

    return w.eps_model(model_of, torch.zeros(1, w.T, w.points, 8), 2, samples, in_batches)


def test_blending_a_run_that_all_windows_agree_on_changes_nothing():
    w = windows_of(25, 10, 5, 2)
    z = torch.randn(3, 50, 2)
    torch.testing.assert_close(w.blend(z[:, w.index]), z)
    parts = torch.zeros(1, len(w.start), 20, 1)
    parts[0, 1] = 1.0
    share = w.blend(parts)[0, :, 0]  # what the second window has to say: most in its middle
    assert (share[:10] == 0).all() and share[19] > 0.4 and share.argmax() in range(17, 23)


def test_windows_see_the_eeg_around_them():
    w = windows_of(12, 6, 2)
    h = torch.arange(12.0).view(1, 12, 1, 1)
    tokens, times = w.eeg(h, 2)
    assert w.start.tolist() == [0, 4, 6]
    assert tokens[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert times[0].tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7]
    assert tokens[1, 0, :, 0].tolist() == list(range(2, 12)) and times[1].tolist() == list(
        range(-2, 8)
    )


def test_whole_runs_have_no_seams(process):
    C = process.prior.covariance(torch.arange(60))[0]
    for overlap, low, high in ((0, 4.0, 20.0), (10, 0.9, 1.1)):
        w = windows_of(60, 20, overlap)
        draw = opposite_pairs.draw(torch.Generator().manual_seed(0), "cpu", 1)
        z = denoise(eps_of(w, process, 1000), None, draw, (1000, 60, 2), process.schedule, 100)
        jump = z.diff(dim=1).square().mean((0, 2))
        # The squared jump at a border, over the mean.
        assert low < jump[w.start[1:] - 1].mean() / jump.mean() < high
    lagged = [float((z[:, : 60 - k] * z[:, k:]).mean()) for k in range(6)]
    np.testing.assert_allclose(lagged, C[0, :6], atol=0.05)


@pytest.mark.parametrize("points", [1, 2])
def test_whole_runs_complete_their_anchors(process, points):
    """Windows, also with points between the frames, against the Gaussian conditional of the run."""
    T = 50
    t = torch.arange(T * points) / points
    kinds = np.where(np.arange(T) % 5 == 0, 0, -1)
    C = process.prior.covariance(t)
    root = torch.linalg.cholesky(C[:, ::points, ::points] + 1e-9 * torch.eye(T))
    generator = torch.Generator().manual_seed(0)
    y = root @ torch.randn(2, T, 1, generator=generator).double()
    anchors = np.arange(0, T * points, 5 * points)
    exact = C[:, :, anchors] @ torch.linalg.inv(C[:, anchors][:, :, anchors]) @ y[:, ::5]

    def project_of(seen):
        times = torch.arange(len(seen)) / points
        mask = torch.tensor(seen) >= 0
        return weighted_projection.weighted_projection(process.prior, mask, times)

    w = windows_of(T, 20, 10, points)
    project = w.project(project_of, kinds, y[..., 0].T[None].float())
    draw = opposite_pairs.draw(generator, "cpu", 2)
    shape = 2, T * points, 2
    z = denoise(eps_of(w, process, 2), project, draw, shape, process.schedule, reuse_eps=False)
    assert (z.mean(0).T - exact[..., 0]).square().mean() < 0.01 * exact.square().mean()
    assert w.project(project_of, np.full(T, -1), y) is None


def test_interleaved_sets_share_what_the_eeg_says(process):
    """Each set of points says exactly what a mean of 1 adds to eps; together they must say what it
    adds to all points."""

    def shift(t, abar):
        mixed = abar * process.prior.covariance(t) + (1 - abar) * torch.eye(len(t))
        return torch.linalg.solve(mixed, torch.ones(2, len(t), 1).double())[..., 0].T.float()

    for abar in (0.01, 0.3, 0.9):
        sets = shift(torch.arange(40), abar).repeat(1, 2, 1, 1)
        out = between_frames.interleave(process.prior, sets, abar)[0]
        exact = shift(torch.arange(80) / 2, abar)
        assert (out - exact)[20:60].abs().max() < 0.05 * exact[20:60].abs().max()


# ---- Calibration -----------------------------------------------------------------------


def test_calibration_of_a_normal():
    error = torch.from_numpy(2 * np.random.default_rng(0).standard_normal(100_000))
    u = torch.linspace(-15, 15, 3001).double()
    for claim, in_50, in_90 in ((2.0, 0.5, 0.9), (1.0, 0.264, 0.589)):
        # So many samples that std is known.
        spread = calibration.Spread(torch.zeros(1), torch.tensor([True]), samples=10**9, lost=0)
        for e in error[:, None].split(30_000):
            spread.add(torch.zeros_like(e), e.isnan(), e, torch.full_like(e, claim))
        found = spread.summary()["samples"]
        # The CRPS by its definition, the integral of (F(u) - 1[u > error])^2.
        step = (u > error[:5000, None]).double()
        crps = (torch.special.ndtr(u / claim) - step).square().sum(1).mean() * 0.01
        assert abs(found["coverage_50"] - in_50) < 0.006
        assert abs(found["coverage_90"] - in_90) < 0.006
        assert abs(found["spread_to_error"] - claim / 2) < 0.01 and abs(found["crps"] - crps) < 0.03


@pytest.mark.parametrize("together", [1, 6])
def test_vertices_that_are_left_out_in_unison_are_counted(together):
    """Of patches of 6 that move as one, 6; the latent keeps nothing."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 120 // together, generator=g).repeat_interleave(together, 1)
    splits = {"val": [(0, 250), (250, 400)], "train": []}
    variance, unison = left_out.variance(lambda rows: x[rows], LinearAutoencoder(120, 1), splits)
    torch.testing.assert_close(variance, x.square().mean(0))
    assert unison == pytest.approx(together, rel=0.05)


@pytest.mark.parametrize(
    "degrees, in_50, in_90", [(2, 0.816, 2.920), (4, 0.741, 2.132), (7, 0.711, 1.895)]
)
def test_students_quantiles_are_those_of_the_printed_table(degrees, in_50, in_90):
    degrees = torch.tensor(degrees).double()
    assert calibration.as_normal(in_50, degrees) == pytest.approx(0.67449, rel=0.006)
    assert calibration.as_normal(in_90, degrees) == pytest.approx(1.64485, rel=0.01)


@pytest.mark.parametrize("samples", [8, 9])
@pytest.mark.parametrize("unseen", [0.0, 0.3, 3.0])
def test_samples_of_the_truths_own_distribution_are_about_right(samples, unseen):
    """8 in opposite pairs, 9 single ones, at vertices that are more and less sure; beside them a
    known variance that latents leave out. 50% and 90% of the truth are in the intervals."""
    g = torch.Generator().manual_seed(0)
    sigma = torch.linspace(0.5, 2, 200).double()
    draw = opposite_pairs.draw(g, "cpu", samples)
    drawn = sigma * draw((samples, 1000, 200)).double()
    truth = sigma * torch.randn(1000, 200, generator=g).double()
    x = truth + unseen**0.5 * sigma * torch.randn(1000, 200, generator=g)
    lost = opposite_pairs.correction(samples)
    spread = calibration.Spread(unseen * sigma**2, torch.ones(200, dtype=torch.bool), samples, lost)
    std = drawn.std(0, correction=lost)
    spread.add(x, torch.zeros(1000, 200, dtype=torch.bool), drawn.mean(0), std)
    found = spread.summary()["and what latents leave out"]
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.01)
    assert found["spread_to_error"] == pytest.approx(1, abs=0.02)
    assert told(spread.summary())[-1].endswith("about right.")


def test_intervals_are_judged_by_both_shares_and_the_spread():
    names = "coverage_50", "coverage_90", "spread_to_error"
    cases = {
        (0.48, 0.91, 1.05): "about right",
        (0.48, 0.87, 1.05): "too narrow",
        (0.45, 0.90, 0.85): "too narrow",
        (0.54, 0.91, 1.20): "too wide",
        (0.50, 0.90, 3.20): "too wide",
        (0.60, 0.87, 1.00): "of the wrong shape",
    }
    for values, word in cases.items():
        assert verdict(dict(zip(names, values))) == word, values


def test_spread_counts_what_is_free_and_takes_its_scale_from_what_it_was_given():
    g = torch.Generator().manual_seed(0)
    valid = torch.tensor([True] * 9 + [False])
    spread = calibration.Spread(torch.zeros(10), valid, samples=8, lost=0)
    x = torch.zeros(500, 10)
    mask = torch.zeros(500, 10, dtype=torch.bool)
    mask[:, 0] = True
    mean = 3 * torch.randn(500, 10, generator=g)
    mean[:, [0, 9]] = 1e6  # observed, or constant: does not count
    std = torch.ones(500, 10)
    spread.fit_scale([(None, x, mask, {"neuroframes": (mean, std, None)})])
    *_, (_, scale) = spread.claims.values()
    assert scale == pytest.approx(3, rel=0.05) and not spread.sums
    spread.add(x, mask, mean, std)
    found = spread.summary()
    assert [round(f["spread_to_error"] * 3, 1) for f in found.values()] == [1, 1, 3]


def test_spread_of_many_vertices_is_that_of_every_nth():
    """Of 21,000 every third; the points between frames do not count."""
    g = torch.Generator().manual_seed(0)
    V, points = 21_000, 2
    given = torch.rand(V, generator=g), torch.rand(V, generator=g) < 0.9  # left out, valid
    x, mean = torch.randn(4, V, generator=g), torch.randn(8, V, generator=g)
    std, mask = torch.rand(8, V, generator=g), torch.rand(4, V, generator=g) < 0.3
    found = []
    for step, between in ((1, points), (3, 1)):
        some, frames = slice(None, None, step), slice(None, None, points // between)
        spread = calibration.Spread(*(u[some] for u in given), 8, 0, between)
        spread.add(x[:, some], mask[:, some], mean[frames, some], std[frames, some])
        found.append(spread.sums)
    for sums, expected in zip(*(sums.values() for sums in found)):
        torch.testing.assert_close(sums, expected)
        assert sums[-1] == (~mask & given[1])[:, ::3].sum() < x.numel() / 3


def test_all_flags_of_chapters_have_a_help_text():
    seen = []
    add = functools.partial(lambda name, **how: seen.append((name, how.get("help"))))
    beyond.add_training_flags(add)
    beyond.add_sampling_flags(add)
    names = [name for name, _ in seen]
    assert len(set(names)) == len(names) and all(text for _, text in seen)


def test_each_chapter_opens_with_question_seam_source_and_gain():
    """Those in the list at the head of beyond/, and no others but the two that join them."""
    joining = {"__init__", "network", "drawing"}
    paths = glob.glob(os.path.join(os.path.dirname(beyond.__file__), "*.py"))
    names = {os.path.basename(path)[:-3] for path in paths} - joining
    assert names == set(re.findall(r"(?<=    )[a-z_]+(?=  )|(?<=  )[a-z_]+(?=  )", beyond.__doc__))
    for name in names:
        opening = getattr(beyond, name).__doc__
        assert opening.splitlines()[0].endswith("?"), name
        for word in ("Seam    ", "Source  ", "Gain    "):
            assert word in opening, (name, word)
        assert re.search(r"\d|none", opening.split("Gain    ")[1]), name


def test_presets_settle_the_same_flags():
    """One that is missing would stay None, without a word."""
    assert train.PAPER.keys() == beyond.TINY.keys()
