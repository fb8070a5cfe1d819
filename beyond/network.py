"""The chapters of training, put together: band power for convolutions, v for eps, a prior for a
start."""

import functools

import torch

from neuroframes import EEGEncoder, NeuroFrames

from tools.ranks import say

from . import band_power, gaussian_prior, linear_gaussian, stacked, velocity


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
    return Network if chapters else NeuroFrames, {**config, **chapters}


class Network(NeuroFrames):
    """The paper's networks, with band power for convolutions, v for eps, a prior for a start."""

    def __init__(self, encoder_settings=None, predict="eps", prior=False, linear=None, **sizes):
        encoder = EEGEncoder
        if encoder_settings is not None:
            encoder = functools.partial(band_power.BandPowerEncoder, **encoder_settings)
        super().__init__(**sizes, encoder=encoder)
        self.predict = predict
        d = sizes["latent_dim"]
        self.prior = gaussian_prior.GaussianPrior(d) if prior else None
        self.linear = None
        if linear is not None:
            self.linear = linear_gaussian.LinearGaussian(d, **linear)
            self.register_buffer("share", torch.ones(stacked.LEVELS, d))  # of the closed form

    def fit(self, a, subject, z_all, batches):
        """What is known in closed form, from latents z_all [T,d] and the EEG of a train.Batches;
        and the spectra of the EEG, if windows never begin between frames."""
        segments = batches.splits["train"]
        z = [z_all[low:high] for low, high in segments]
        read = batches.read_eeg
        if self.prior is not None:
            self.prior.fit(z)
        if self.linear is not None:
            say(self.linear.fit(read, segments, z, subject.tr, linear_gaussian.delay(subject)))
            if a.steps:
                share = 0.5 if a.share is None else torch.tensor(a.share)
                self.share.copy_(share)  # before a validation run tells, or as another one told

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
