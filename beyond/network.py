"""The chapters of training, put together: band power for convolutions, v for eps, a prior for a
start."""

import functools

import numpy as np
import torch
import torch.distributed as dist

import people
from neuroframes import EEGEncoder, NeuroFrames

from . import (
    band_power,
    gaussian_prior,
    left_out,
    linear_gaussian,
    stacked,
    velocity,
    windows,
)


def say(text):
    """Print it; of torchrun's processes the first does."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(text)


def choose(a, subject, config):
    """(class of the networks, what it is made with): the paper's with its `config`, if train.py's
    flags a ask for them; else Network, and what chapters need."""
    chapters = {}
    if a.eeg_encoder == "bandpower":
        chapters["encoder_settings"] = band_power.settings(a, subject.tr)
    if a.predict == "v":
        chapters["predict"] = "v"
    if a.prior == "gaussian":
        chapters["prior"] = True
    if a.closed_form:
        chapters["linear"] = linear_gaussian.settings(config, subject)
        if hasattr(subject, "people"):
            chapters["members"] = len(subject.people)
    network = Network if chapters else NeuroFrames
    if a.adapt:
        network = functools.partial(people.adapt.begun, network, subject.group)
    return network, {**config, **chapters}


class Network(NeuroFrames):
    """The paper's networks, with band power for convolutions, v for eps, a prior for a start."""

    def __init__(
        self, encoder_settings=None, predict="eps", prior=False, linear=None, members=None, **sizes
    ):
        encoder = EEGEncoder
        if encoder_settings is not None:
            encoder = functools.partial(band_power.BandPowerEncoder, **encoder_settings)
        super().__init__(**sizes, encoder=encoder)
        self.predict = predict
        d = sizes["latent_dim"]
        self.prior = gaussian_prior.GaussianPrior(d) if prior else None
        self.linear = self.own = None
        if linear is not None:
            self.linear = linear_gaussian.LinearGaussian(d, **linear)
            self.register_buffer("share", torch.ones(stacked.LEVELS, d))  # of the closed form
        if members is not None:
            self.own = people.own.Own(self.linear, members)

    def with_prior(self, out, z_n, n, times):
        """The transformer's answer [B,K,d] at times [K], the prior's added: eps, or v."""
        if self.prior is None:
            return out
        return out + self.prior(z_n, n, self.schedule, self.predict, times)

    def finish(self, out, z_n, n, times):
        """eps_hat [B,K,d] from the transformer's answer."""
        out = self.with_prior(out, z_n, n, times)
        if self.predict == "eps":
            return out
        return velocity.eps_from_velocity(self.schedule, z_n, n, out)

    def forward(self, z_n, n, h, eeg_positions=None, keys_values=None):
        out = self.dit(z_n, n, h, None, eeg_positions, keys_values)  # [B,K,d]
        return self.finish(out, z_n, n, torch.arange(z_n.shape[1]))

    def squared_error(self, z, n, eps, h, eeg_positions=None):
        z_n = self.schedule.add_noise(z, n, eps)  # [B,K,d]
        out = self.dit(z_n, n, h, None, eeg_positions)  # [B,K,d]
        out = self.with_prior(out, z_n, n, torch.arange(z_n.shape[1]))
        target = eps if self.predict == "eps" else velocity.velocity(self.schedule, z, n, eps)
        return (out - target).square()


def fit(a, model, autoencoder, normaliser, subject, batches):
    """Fit what a Network knows in closed form, from train.Batches. Returns the network's buffers,
    latents [T,d] that the closed form expects, and what `measured` returns."""
    segments, read = batches.splits["train"], batches.read_eeg
    z = [batches.latents_of(np.arange(low, high))[0] for low, high in segments]
    prior = getattr(model, "prior", None) or gaussian_prior.GaussianPrior(autoencoder.latent_dim)
    prior.fit(z)
    expected = None
    if a.closed_form:
        say(people.own.fit(a, model, subject, read, segments, torch.cat(z).cpu()))
        expected = torch.zeros(batches.frames, model.share.shape[1])
        for low, high in batches.splits["val"]:
            expected[low:high] = people.own.expected(model, subject, read, low, high).cpu()
        model.share.copy_(torch.tensor(a.share if a.steps else 1.0))

    def frames(rows):
        return torch.from_numpy(normaliser.zscore(subject.fmri[rows]))

    variance = left_out.variance(frames, autoencoder, batches.splits)
    found = {"left_out": [u.cpu() for u in variance], "prior": prior.state_dict()}
    return dict(model.named_buffers()), expected, found


def measured(a, model, autoencoder, normaliser, subject, batches, from_first):
    """For train.py: `fit`, once for all processes. Returned is what sample.py would else measure,
    and cannot of a subject with test frames only; None if the autoencoder is not yet what it will
    be.

    from_first: (function, its arguments) -> what it returns in the first of torchrun's processes"""
    read = batches.read_eeg
    batches.see = windows.late(read)
    if a.autoencoder == "joint":
        return None
    given = a, model, autoencoder, normaliser, subject, batches
    buffers, batches.expected, found = from_first(fit, *given)
    model.load_state_dict(buffers, strict=False)
    if a.eeg_encoder == "bandpower":
        lates = [0, batches.W // 2] if a.vary else [0]
        runs = batches.splits["train"] + batches.splits["val"]
        see = band_power.computed_once(model.encoder, read, runs, batches.frames, lates)
        batches.see = see or batches.see
    return found
