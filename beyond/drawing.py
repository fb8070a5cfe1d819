"""The chapters of sampling, put together: how sample.py draws if not as the paper."""

import functools

import numpy as np
import torch
from tqdm import tqdm

import people
from neuroframes import range_null_projection

from . import (
    any_vertices,
    between_frames,
    computed_once,
    gaussian_prior,
    left_out,
    opposite_pairs,
    second_order,
    stacked,
    weighted_projection,
    whole_runs,
)
from .windows import cut

LATENTS_AT_ONCE = 2**25  # drawn together: 134 MB a copy, a dozen copies at the peak


class WholeRuns:
    """Runs as a whole, samples in opposite pairs, missing frames and vertices by their covariance
    with what was observed. Methods as of sample.WindowsApart.

    a      flags of sample.py
    study  what it has opened
    seen   bool [patterns,V]: which vertices were observed in a pattern; in the last, none
    """

    def __init__(self, a, study, seen):
        self.a, self.study, self.seen = a, study, seen
        self.generator = torch.Generator().manual_seed(a.seed)
        self.correction = opposite_pairs.correction(a.samples)
        a.projection = a.projection or "weighted"
        a.steps = a.steps or second_order.default_calls(a)
        self.prior = getattr(study.model, "prior", None)  # of latents, without EEG
        whole_runs.settle(a, study.settings, self.prior)

        rows = torch.from_numpy(seen[:-1])
        self.whole = rows.all(1)  # [patterns but the last]
        self.linear = getattr(study.model, "linear", None)
        if self.prior is None and a.interrecon:  # the control, and the weights of the projection
            self.prior = gaussian_prior.GaussianPrior(study.autoencoder.latent_dim)
            self.prior.load_state_dict(measured(study)["prior"])
        # What the EEG leaves open has less covariance than latents have.
        self.left = self.prior if self.linear is None else self.linear.residual
        self.observation = None
        if (rows.any(1) & ~self.whole).any():
            rows = rows.to(study.device)
            unseen = left_out.residuals(study.frames, study.autoencoder, study.splits)
            variance, unison = measured(study)["left_out"]
            given = study.autoencoder, rows, variance * unison, unseen
            self.observation = any_vertices.Observation(*given)

    def groups(self, stretches):
        """Stretches that are drawn together: a few, so that memory is that of the longest."""
        a, longest = self.a, max(high - low for low, high in stretches)
        latents = a.samples * a.upsample * self.study.autoencoder.latent_dim * longest
        size = latents * a.window // (a.window - a.overlap)
        count = max(1, LATENTS_AT_ONCE // size)
        return [stretches[i : i + count] for i in range(0, len(stretches), count)]

    def encode_eeg(self, split):
        """What the EEG says of a split's frames, at times TR / points apart: tokens
        [T,points,d_e]; and with a closed form beside them what it expects, [T,points,d_e + d]."""
        study, points = self.study, self.a.upsample
        found = []
        for j in range(points):
            late = round(j * study.subject.eeg.shape[-1] / points)  # samples
            h = study.encode_eeg(split, functools.partial(cut, samples=late), more=1)
            if self.linear is not None:
                runs = study.splits[split]
                given = study.model, study.subject, study.read_eeg
                m = [people.own.expected(*given, *run, late) for run in runs]
                h = torch.cat([h, torch.cat(m)], -1)
            found.append(h)
        return torch.stack(found, 1)

    def left_out(self):
        """The variance of what latents leave out of a frame [V]."""
        return measured(self.study)["left_out"][0].cpu()

    def latents(self, x, pattern):
        """A^T y [n,d] of frames x [n,V] that were observed in one pattern."""
        if self.observation is None:
            return self.study.autoencoder.encode(x)
        return self.observation.latents(x, pattern)

    def project_of(self, patterns, prior):
        """(z0, y, abar) -> z0 for a window whose points were observed in these patterns [K],
        weighted by a prior's covariance, if not None."""
        times = torch.arange(len(patterns)) / self.a.upsample
        if any(p >= 0 and not self.whole[p] for p in patterns):
            return self.observation.projection(patterns, prior, times)
        seen = torch.tensor(patterns) >= 0  # [K] whole, or not at all
        if prior is not None:
            return weighted_projection.weighted_projection(prior, seen, times)
        return lambda z0, y, abar: range_null_projection(z0, y, seen[:, None].to(y.device))

    def runs(self, stretches):
        """[(places [B,T], Windows)] of each length T that some of the stretches have."""
        a = self.a
        found = []
        for T in sorted({high - low for low, high in stretches}):
            starts = np.array([low for low, high in stretches if high - low == T])
            tiles = self.study.tile([(0, T)], a.window, a.overlap)
            first = [tile.start for tile in tiles]
            windows = whole_runs.Windows(first, tiles[0].length, T, a.upsample)
            found.append((starts[:, None] + np.arange(T), windows))
        return found

    def in_place(self, stretches, z):
        """z [S,T points,d] of stretches that follow one another, of z [S,B,T points,d] for each
        of their lengths."""
        places = np.concatenate([k.ravel() for k, _ in self.runs(stretches)])
        parts = [part.unflatten(2, (-1, self.a.upsample)).flatten(1, 2) for part in z]
        return torch.cat(parts, 1)[:, places.argsort()].flatten(1, 2)

    def draw(self, name, stretches, y, pattern, h):
        """z [S,T points,d] of stretches that follow one another. Of the frames of all stretches:
        what was observed y [T_all,d], its pattern [T_all], EEG tokens h [T_all,points,d_e]."""
        runs = self.runs(stretches)
        steps = len(runs) * self.a.steps
        with tqdm(total=steps, desc=name, unit="step", disable=self.study.quiet) as bar:
            z = [self.draw_alike(w, y[k], pattern[k[0]], h[k], bar) for k, w in runs]
        return self.in_place(stretches, z)

    def draw_alike(self, windows, y, pattern, h, bar):
        """z [S,B,T points,d] of B runs of one length: y [B,T,d], pattern [T], h
        [B,T,points,d_e]."""
        a, study, S = self.a, self.study, self.a.samples
        plain = a.projection == "plain"
        prior = None if plain else self.left

        context = study.settings["context"]

        def model_of(h, times):  # [B,points,L,d_e or d_e + d], [B,L]
            d_e = study.settings["eeg_dim"]
            if a.upsample == 1:
                network = computed_once.once(study.model, h[:, 0, :, :d_e], times)
            else:
                network = between_frames.eps_model(study.model, h[..., :d_e], times)
            if self.linear is None:
                return network
            expected = h[:, :, context : context + windows.K, d_e:]  # [B,points,K,d]
            return stacked.stacked(study.model, network, expected)

        in_batches = functools.partial(study.in_batches, a.batch_size)
        eps = windows.eps_model(model_of, h, context, S, in_batches)

        def eps_model(z_n, n):
            bar.update()
            return eps(z_n, n)

        project_of = functools.partial(self.project_of, prior=prior)
        project = windows.project(project_of, pattern, y.to(study.device))
        noise = opposite_pairs.draw(self.generator, study.device, S)
        B, T, d = y.shape
        shape, schedule = (S * B, T * a.upsample, d), study.model.schedule
        # Weighted, z0 is a posterior mean, and the eps that belongs to it is its own.
        z = second_order.denoise(eps_model, project, noise, shape, schedule, a.steps, a.eta, plain)
        return z.cpu().unflatten(0, (S, B))

    def conditional(self, stretches, y, pattern, h=None):
        """The Gaussian conditional mean of the frames given y, z [1,T points,d]: without EEG; or,
        with h of all frames as of `encode_eeg`, around what the closed form expects."""
        d = y.shape[-1]
        prior = self.prior if h is None else self.left
        project_of = functools.partial(self.project_of, prior=prior)
        z = []
        for k, windows in self.runs(stretches):
            guess = torch.zeros(*k.shape, self.a.upsample, d, device=self.study.device)
            if h is not None:
                guess = h[k][..., -d:]  # m
            guess = guess.flatten(1, 2)
            project = windows.project(project_of, pattern[k[0]], y[k].to(self.study.device))
            if project is not None:
                guess = project(guess, 0.0)  # abar 0: z_n says nothing, only y does
            z.append(guess.cpu()[None])
        return self.in_place(stretches, z)


# ---- What training frames tell ---------------------------------------------------------


def measured(study):
    """What network.measured returned, as the checkpoint has it, or measured now."""
    if not study.measured:
        given = study.frames, study.autoencoder
        prior = gaussian_prior.GaussianPrior(study.autoencoder.latent_dim)
        prior.fit(gaussian_prior.latents(*given, study.splits["train"]))
        study.measured = {
            "left_out": left_out.variance(*given, study.splits),
            "prior": prior.state_dict(),
        }
    return study.measured
