"""How do we know? Closed forms for the method; all else is tested in tests/.

    python -m pytest

The sampler needs no trained network to be tested: for frames from a Gaussian process the exact
noise predictor is known, and with it what any sampler should return.
"""

import functools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuroframes import (
    DiT,
    EEGEncoder,
    LinearAutoencoder,
    NeuroFrames,
    NoiseSchedule,
    denoise,
    range_null_projection,
    sample,
    sinusoid,
)

torch.set_num_threads(1)  # of small tensors more threads make nothing faster
DOUBLE = torch.float64

# ---- The sampler against Gaussians, whose exact noise predictor is known ---------------


def gaussian_eps(C, mean, schedule):
    """Exact E[eps | z_n] for frames z ~ N(mean, C), C [K,K], every latent alike."""

    def eps(z_n, n):
        abar = schedule.alpha_bar[n[0]]
        mixed = abar * C + (1 - abar) * torch.eye(len(C), dtype=C.dtype)  # covariance of z_n
        difference = z_n - abar.sqrt() * mean[:, None]
        return (1 - abar).sqrt() * torch.einsum("kj,bjd->bkd", torch.linalg.inv(mixed), difference)

    return eps


def smooth_covariance(K=10, length=3.0, white=0.05):
    t = torch.arange(K, dtype=DOUBLE)
    smooth = torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2)
    return (1 - white) * smooth + white * torch.eye(K, dtype=DOUBLE)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def noise(seed, pairs=False):
    """A `draw` for denoise in float64; pairs: the second half of a batch is minus the first."""
    generator = seeded(seed)

    def draw(shape):
        if not pairs:
            return torch.randn(shape, generator=generator, dtype=DOUBLE)
        half = torch.randn(shape[0] // 2, *shape[1:], generator=generator, dtype=DOUBLE)
        return torch.cat([half, -half])

    return draw


# With fewer steps some variance is lost.
@pytest.mark.parametrize("steps, eta", [(200, 0.0), (500, 1.0), (1000, 1.0)])
def test_ddim_and_ddpm_reproduce_a_gaussian(steps, eta):
    schedule, K, n = NoiseSchedule(), 4, 20_000
    C = 0.7 * smooth_covariance(K)
    mean = torch.tensor([1.0, -0.5, 0.3, 0.0], dtype=DOUBLE)
    eps = gaussian_eps(C, mean, schedule)
    z = denoise(eps, None, noise(0), (n, K, 1), schedule, steps, eta)[..., 0]
    assert (z.mean(0) - mean).abs().max() < 0.03  # 4 standard errors: 0.025
    assert (z.T.cov() - C).abs().max() < 0.03


@pytest.mark.parametrize("anchored", [False, True])
def test_a_thousand_steps_at_eta_1_are_algorithm_1(anchored):
    """The loop against Algorithm 1 written out with its bars restored, on the same noise."""
    schedule, K = NoiseSchedule(), 5
    eps_model = gaussian_eps(smooth_covariance(K), torch.zeros(K, dtype=DOUBLE), schedule)
    y = torch.randn(3, K, 2, dtype=DOUBLE, generator=seeded(2))
    mask = torch.tensor([True, False, False, True, False])
    generator = seeded(1)
    held = y if anchored else torch.zeros_like(y)
    seen = mask if anchored else torch.zeros_like(mask)
    ours = sample(eps_model, y.shape, schedule, 1000, 1.0, held, seen, False, generator)

    generator = seeded(1)
    x = torch.randn(3, K, 2, generator=generator, dtype=DOUBLE)
    for n in range(999, -1, -1):
        abar, beta, alpha = schedule.alpha_bar[n], schedule.beta[n], 1 - schedule.beta[n]
        before = schedule.alpha_bar[n - 1] if n else torch.tensor(1.0, dtype=DOUBLE)
        x0 = (x - (1 - abar).sqrt() * eps_model(x, torch.full((3,), n))) / abar.sqrt()
        if anchored:
            x0 = torch.where(mask[:, None], y, x0)
        x = before.sqrt() * beta / (1 - abar) * x0 + alpha.sqrt() * (1 - before) / (1 - abar) * x
        if n:
            sigma = (beta * (1 - before) / (1 - abar)).sqrt()
            x = x + sigma * torch.randn(3, K, 2, generator=generator, dtype=DOUBLE)
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


EVERY_SECOND = [0, 2, 4, 6, 8]


def interrecon_experiment(seen, project_of=None, sampler=denoise, **settings):
    """(exact posterior variance, squared bias of the conditional mean, variance), mean over missing
    frames, of frames from a Gaussian process of which those in `seen` were observed.

    With exact eps the sampler is affine in noise and anchors. Opposite noise cancels in a pair's
    mean, so sampling for each unit vector of y gives the conditional mean's matrix without
    sampling error; the squared bias is its distance from the Gaussian conditional, averaged over
    frames drawn from C. project_of(C, seen, y) -> project: another projection than the paper's.
    """
    schedule, K = NoiseSchedule(), 10
    C, seen = smooth_covariance(K), torch.tensor(seen)
    mask = torch.zeros(K, dtype=torch.bool).index_fill(0, seen, True)
    eps_model = gaussian_eps(C, torch.zeros(K, dtype=DOUBLE), schedule)

    def run(y, draw):
        def project(z0, abar):
            return range_null_projection(z0, y, mask[:, None])

        held = project_of(C, seen, y) if project_of else project
        return sampler(eps_model, held, draw, tuple(y.shape), schedule, **settings)[..., 0]

    y = torch.eye(K, dtype=DOUBLE)[:, :, None].repeat(2, 1, 1)  # [2K,K,1]
    weights = run(y, noise(0, pairs=True)).unflatten(0, (2, K)).mean(0).T  # mean = weights @ y
    conditional = torch.zeros(K, K, dtype=DOUBLE)
    conditional[:, seen] = C[:, seen] @ torch.linalg.inv(C[seen][:, seen])
    error = ((weights - conditional) * mask)[~mask]
    samples = run(torch.zeros(10_000, K, 1, dtype=DOUBLE), noise(0))
    exact = (C - conditional @ C).diagonal()[~mask].mean()
    return exact, (error @ C @ error.T).diagonal().mean(), samples[:, ~mask].var(0).mean()


@pytest.mark.parametrize(
    "settings, bias, variance, mse",
    [
        (dict(reuse_eps=False, eta=0.0), 0.152, 0.331, 0.576),
        (dict(reuse_eps=False, eta=1.0, steps=1000), 0.044, 0.202, 0.341),
        (dict(reuse_eps=True, eta=0.0), 0.0014, 0.094, 0.192),
        (dict(reuse_eps=True, eta=1.0), 0.0019, 0.087, 0.186),
    ],
)
def test_which_epsilon_to_keep_after_the_projection(settings, bias, variance, mse):
    """A table of an earlier, sampled measurement, within 15%."""
    exact, b, v = interrecon_experiment(EVERY_SECOND, **settings)
    assert abs(exact - 0.098) < 0.0005
    for found, table in ((b, bias), (v, variance), (b + v + exact, mse)):
        assert abs(found - table) <= 0.15 * table + 0.00005, (found, table)


def test_range_null_projection():
    mask = torch.tensor([True, False, True, False])
    A = torch.diag(mask.double())
    A_pinv = torch.linalg.pinv(A)
    x, y = (torch.randn(2, 4, 6, generator=seeded(seed), dtype=DOUBLE) for seed in (0, 1))
    x_hat = range_null_projection(x, y, mask[:, None])
    assert torch.equal(A @ x_hat, A @ y)  # A x_hat = y, to the last bit
    torch.testing.assert_close(x_hat, A_pinv @ (A @ y) + (torch.eye(4) - A_pinv @ A) @ x)


def test_noise_goes_to_the_device_of_y_also_if_nothing_was_observed():
    """The generator is on the CPU, the network on a device: "meta" stands in for it."""
    y = torch.empty(2, 3, 4, device="meta", dtype=torch.float64)
    seen = []

    def eps_model(z_n, n):
        seen.append((z_n.device.type, n.device.type, z_n.dtype))
        return z_n

    generator = torch.Generator().manual_seed(0)
    z = sample(eps_model, y.shape, NoiseSchedule(), steps=2, eta=1, y=y, generator=generator)
    assert seen == [("meta", "meta", torch.float64)] * 2
    assert z.device.type == "meta" and z.shape == y.shape


def test_sample_keeps_dtype_device_and_what_was_observed():
    schedule = NoiseSchedule()
    visited = []

    def eps_model(z_n, n):
        assert n.dtype == torch.long and n.shape == (2,)
        visited.append(int(n[0]))
        return 0.3 * z_n

    y = torch.randn(2, 3, 4, dtype=DOUBLE, generator=seeded(0))
    mask = torch.tensor([[True, False, False], [False, True, True]])
    z = sample(eps_model, (2, 3, 4), schedule, 5, 1.0, y, mask, generator=seeded(1))
    assert z.dtype == DOUBLE and torch.equal(z[mask], y[mask]) and not torch.equal(z, y)
    assert visited == [999, 749, 500, 250, 0] == np.linspace(999, 0, 5).round().astype(int).tolist()
    direct = sample(eps_model, (2, 3, 4), schedule, 5, generator=seeded(1))
    assert direct.dtype == torch.float32 and direct.shape == (2, 3, 4)
    again = sample(eps_model, (2, 3, 4), schedule, 5, generator=seeded(1))
    other = sample(eps_model, (2, 3, 4), schedule, 5, generator=seeded(2))
    assert torch.equal(direct, again) and not torch.equal(direct, other)


# ---- Schedule and loss -----------------------------------------------------------------


def test_schedule():
    s = NoiseSchedule()
    beta = 1e-4 + (0.02 - 1e-4) * np.arange(1000) / 999
    exact = np.exp(np.cumsum(np.log1p(-beta)))
    np.testing.assert_allclose(s.alpha_bar.numpy(), exact, rtol=1e-12)
    n = torch.tensor([0, 10, 500, 998, 999])
    z, eps = (torch.randn(5, 3, 2, generator=seeded(seed), dtype=DOUBLE) for seed in (0, 1))
    abar = s.alpha_bar[n][:, None, None]
    torch.testing.assert_close(s.add_noise(z, n, eps), abar.sqrt() * z + (1 - abar).sqrt() * eps)


def test_the_loss_is_equation_3():
    """Of a network that answers 0 it is eps squared; of one that knows z exactly it is 0."""
    model = NeuroFrames(3, 32, 6, 8, 16, 1, 2)
    n, h = torch.tensor([3, 700]), torch.randn(2, 5, 8)
    z, eps = torch.randn(2, 5, 6), torch.randn(2, 5, 6)
    torch.testing.assert_close(model.squared_error(z, n, eps, h), eps.square())
    signal, level = model.schedule.signal_noise(n, z)
    model.dit.forward = lambda z_n, n, *_, **__: (z_n - signal * z) / level
    assert model.squared_error(z, n, eps, h).max() < 1e-4


def test_sinusoid_encodes_real_numbers():
    found = sinusoid(torch.tensor([0.0, 2.5]), 6)
    rate = 10000.0 ** (-np.arange(3) / 3)
    expected = np.concatenate([np.cos(2.5 * rate), np.sin(2.5 * rate)])
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)
    assert found[0].tolist() == [1, 1, 1, 0, 0, 0]


# ---- Linear autoencoder ----------------------------------------------------------------


@pytest.mark.parametrize("T, V", [(40, 300), (300, 40)])
def test_closed_form_autoencoder_equals_svd(T, V):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((T, 12)) @ rng.standard_normal((12, V))
    x += 0.3 * rng.standard_normal((T, V)) + rng.standard_normal(V)
    x = torch.from_numpy(x.astype(np.float32))
    autoencoder = LinearAutoencoder(V, 8)
    kept = autoencoder.fit(x)
    U, S, Vt = torch.linalg.svd((x - x.mean(0)).double(), full_matrices=False)
    exact = x.mean(0) + (U[:, :8] * S[:8] @ Vt[:8]).float()
    z = autoencoder.encode(x)
    torch.testing.assert_close(autoencoder.decode(z), exact, atol=2e-4, rtol=1e-3)
    assert abs(kept - float(S[:8].square().sum() / S.square().sum())) < 1e-5
    torch.testing.assert_close(z.T @ z / T, torch.eye(8), atol=1e-3, rtol=0)  # whitened
    back = autoencoder.encode(autoencoder.decode(z))
    torch.testing.assert_close(back, z, atol=1e-3, rtol=0)  # E D = I
    eye = autoencoder.E @ autoencoder.E.T
    torch.testing.assert_close(eye, torch.eye(8), atol=1e-4, rtol=0)  # orthonormal rows


def test_autoencoder_stops_at_the_rank():
    x = torch.randn(50, 5, generator=seeded(0)) @ torch.randn(5, 80, generator=seeded(1))
    autoencoder = LinearAutoencoder(80, 20)
    autoencoder.fit(x)
    assert autoencoder.latent_dim == 5 and autoencoder.E.shape == (5, 80)
    again = autoencoder.decode(autoencoder.encode(x))
    torch.testing.assert_close(again, x, atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="frames must be"):
        autoencoder.fit(x[:, :10])


def test_whitened_latents_keep_variance_1_at_every_step():
    x = torch.randn(400, 30, generator=seeded(0)) * torch.linspace(0.1, 5, 30)
    autoencoder = LinearAutoencoder(30, 10)
    autoencoder.fit(x)
    z, s = autoencoder.encode(x), NoiseSchedule()
    for n in (0, 100, 500, 999):
        eps = torch.randn(z.shape, generator=seeded(n))
        z_n = s.add_noise(z, torch.full((400,), n), eps)
        assert (z_n.var(0) - 1).abs().max() < 0.3 and abs(z_n.var() - 1) < 0.05


# ---- Networks --------------------------------------------------------------------------


def trained_looking(module):
    """Give a fresh network weights that are nowhere zero, so that what it ignores is by design."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn(p.shape))
    return module.eval()


def test_eeg_encoder_reads_each_frame_on_its_own():
    torch.manual_seed(0)
    for samples in (32, 100, 800):
        encoder = trained_looking(EEGEncoder(4, samples, 8))
        eeg = torch.randn(2, 3, 4, samples)
        h = encoder(eeg)
        assert h.shape == (2, 3, 8)
        changed = eeg.clone()
        changed[1, 2] += torch.randn(4, samples)
        far = (encoder(changed) - h).abs().amax(-1)
        assert far[1, 2] > 1e-3 and (far > 0).sum() == 1
        lengths = [w.shape[0] for w in encoder.state_dict().values() if w.ndim == 3]
        assert len(lengths) == max(2, round(math.log2(samples / 16))) and max(lengths) <= 512


def test_fresh_dit_blocks_are_the_identity():
    torch.manual_seed(0)
    dit = DiT(12, 10, 16, 3, 4, tokens_per_frame=2)
    x, step, h = torch.randn(2, 6, 16), torch.randn(2, 16), torch.randn(2, 3, 10)
    for block, keys_values in zip(dit.blocks, dit.keys_values(h, torch.arange(3))):
        assert torch.equal(block(x, step, keys_values), x)
    out = dit(torch.randn(2, 3, 12), torch.tensor([0, 999]), h)
    assert torch.equal(out, torch.zeros(2, 3, 12))


def test_dit_reads_steps_times_and_eeg():
    torch.manual_seed(0)
    dit = trained_looking(DiT(12, 10, 16, 2, 4, tokens_per_frame=3))
    given = dict(
        z_n=torch.randn(2, 5, 12),
        n=torch.tensor([3, 500]),
        h=torch.randn(2, 9, 10),
        eeg_positions=torch.arange(-2, 7),
    )
    out = dit(**given)
    one = {name: value if name == "eeg_positions" else value[:1] for name, value in given.items()}
    torch.testing.assert_close(out[:1], dit(**one))  # items are independent
    order = torch.randperm(9)  # tokens are known by their time, not by their place in memory
    mixed = dit(**{**given, "h": given["h"][:, order], "eeg_positions": order - 2})
    torch.testing.assert_close(out, mixed, atol=1e-5, rtol=1e-4)
    keys_values = dit.keys_values(given["h"], given["eeg_positions"])
    kept = dit(given["z_n"], given["n"], None, keys_values=keys_values)
    torch.testing.assert_close(out, kept)
    for changed in (
        dict(n=given["n"] + 100),
        dict(eeg_positions=given["eeg_positions"] + 1),
        dict(eeg_positions=-given["eeg_positions"]),
        dict(h=given["h"].flip(0)),
        dict(positions=torch.arange(5) + 0.5),
        dict(positions=-torch.arange(5)),
        dict(z_n=given["z_n"].flip(1)),
    ):
        assert (out - dit(**{**given, **changed})).abs().max() > 1e-3, changed.keys()
    by_default = dit(**given, positions=torch.arange(5))
    torch.testing.assert_close(out, by_default)
    one_n = dit(**{**given, "n": torch.tensor([3])})  # one for all
    torch.testing.assert_close(one_n, dit(**{**given, "n": torch.tensor([3, 3])}))
    with pytest.raises(ValueError, match="tokens_per_frame 5"):
        DiT(12, 10, 16, 2, 4, tokens_per_frame=5)


def test_every_frame_sees_all_frames_and_all_eeg():
    torch.manual_seed(0)
    dit = trained_looking(DiT(6, 8, 16, 1, 2))
    z_n, n, h = torch.randn(1, 4, 6), torch.tensor([300]), torch.randn(1, 4, 8)
    out = dit(z_n, n, h)
    for k in range(4):
        moved = z_n.clone()
        moved[0, k] += 1
        assert (dit(moved, n, h) - out).abs().amax((0, 2)).min() > 1e-5
        heard = h.clone()
        heard[0, k] = heard[0, k].flip(0)
        assert (dit(z_n, n, heard) - out).abs().amax((0, 2)).min() > 1e-5


def test_bfloat16_autocast_is_close_to_float32():
    """What a GPU runs, here on the CPU."""
    torch.manual_seed(0)
    model = trained_looking(NeuroFrames(4, 32, 6, 8, 16, 2, 2))
    z, n, eeg = torch.randn(2, 5, 6), torch.tensor([50, 900]), torch.randn(2, 5, 4, 32)
    exact = model(z, n, model.encoder(eeg))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(z, n, model.encoder(eeg))
    assert (rough - exact).abs().max() < 0.05 * exact.abs().max()


class NoDouble(TorchDispatchMode):
    """Fails where a float64 tensor is computed on the meta device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for u in out if isinstance(out, (list, tuple)) else [out]:
            assert not (torch.is_tensor(u) and u.is_meta and u.dtype == DOUBLE), func
        return out


def test_float64_stays_on_the_cpu():
    """MPS has no float64. The meta device, which only knows shapes and dtypes, stands in for it."""
    model = NeuroFrames(4, 32, 6, 8, 16, 2, 2).to("meta")
    z, n = torch.empty(2, 5, 6, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    autoencoder = LinearAutoencoder(9, 6).to("meta")
    mask = torch.zeros(5, dtype=torch.bool, device="meta")
    with NoDouble():
        h = model.encoder(torch.empty(2, 5, 4, 32, device="meta"))
        z = autoencoder.encode(autoencoder.decode(z))
        model.squared_error(z, n, z, h).mean().backward()
        sample(lambda z_n, n: model(z_n, n, h), z.shape, model.schedule, 3, 1.0, z, mask)


# ---- All of it, in forty lines ---------------------------------------------------------


def test_trained_and_sampled_in_forty_lines():
    """Frames that follow the EEG's mean voltage: learned, and then told from EEG alone."""
    torch.manual_seed(0)
    B, K, V, d, W, steps = 64, 4, 20, 3, 32, 300
    maps = torch.randn(d, V)

    def recording(count):
        source = torch.randn(count, K, d)
        eeg = source[..., None] + 0.5 * torch.randn(count, K, d, W)  # a channel for each source
        return eeg, source @ maps + 0.1 * torch.randn(count, K, V)

    eeg, x = recording(1024)
    autoencoder = LinearAutoencoder(V, d)
    autoencoder.fit(x.flatten(0, 1))
    z = autoencoder.encode(x)

    model = NeuroFrames(d, W, d, eeg_dim=32, width=32, depth=1, heads=2)
    model.schedule = NoiseSchedule(beta_end=0.01)  # errors in eps weigh less where little is left
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(steps):
        batch = torch.randint(len(z), (B,))
        n, eps = torch.randint(model.schedule.steps, (B,)), torch.randn(B, K, d)
        loss = model.squared_error(z[batch], n, eps, model.encoder(eeg[batch])).mean()
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model.eval()
    eeg, x = recording(64)
    h, error = model.encoder(eeg), []
    for tokens in (h, h.flip(0)):  # the EEG of each window, and another one's
        eps_model = functools.partial(model, h=tokens)
        z = sample(eps_model, (64, K, d), model.schedule)
        error.append((autoencoder.decode(z) - x).square().mean() / x.square().mean())
    assert error[0] < 0.3 and error[1] > 1, error
