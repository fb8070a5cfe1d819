"""What is known of frames before anything is learned?

BOLD is smooth in time. If latents were a stationary Gaussian process with the autocovariance that
they have in the training frames, the noise in z_n could be told in closed form. With C [K,K] the
covariance of one latent (latents are taken for independent of each other: PCA makes them
uncorrelated at equal times), z_n has covariance abar C + (1 - abar) I, and

    E[eps | z_n] = sqrt(1 - abar) (abar C + (1 - abar) I)^-1 z_n

The network adds what this leaves out, first of all what the EEG says.

Seam    eps_model(z_n, n): a skip connection around the network
Source  the skip connection of EDM (Karras et al. 2022), with a matrix in place of a number
Gain    synthetic, every second frame observed: MSE 0.367 -> 0.139
"""

import torch
from torch import nn


class GaussianPrior(nn.Module):
    """The exact denoiser of a stationary Gaussian process with the latents' own autocovariance."""

    def __init__(self, latent_dim, lags=256):
        super().__init__()
        self.register_buffer("autocovariance", torch.zeros(lags, latent_dim))  # [lags,d]
        self.register_buffer("white", torch.zeros(latent_dim))  # [d]
        self.spectra = {}

    @torch.no_grad()
    def fit(self, segments):
        """autocovariance[l]: mean of z_t z_{t+l} over all pairs in segments [t,d], faded out where
        pairs are few, and towards the last lag. (Divided by all frames it would be positive as it
        is, but too small where segments are short.) white: what of the variance no other frame
        shares, the least eigenvalue of the covariance of 32 frames."""
        total = sum(map(len, segments))
        lags = len(self.autocovariance)
        for lag in range(lags):
            products = torch.cat([z[lag:] * z[: len(z[lag:])] for z in segments])  # [pairs,d]
            fading = 1 - lag / lags
            share = len(products) / total * fading
            # The mean over pairs, times share (2 - share), which is flat at 1, and 0 at 0.
            self.autocovariance[lag] = products.sum(0) / total * fading * (2 - share)

        # Noise may have left frequencies of negative power: they get none, and the variance stays.
        c = self.autocovariance.cpu().double()  # [lags,d]
        power = torch.fft.hfft(c, dim=0).clamp(min=0)  # [2 lags - 2,d] as if time were a circle
        c_positive = torch.fft.ihfft(power, dim=0).real  # [lags,d]
        self.autocovariance.copy_(c_positive * c[0] / c_positive[0])

        t = torch.arange(32)
        self.white.copy_(torch.linalg.eigvalsh(self.covariance(t))[:, 0].clamp(min=0))
        self.spectra = {}

    def covariance(self, times):
        """Between times in frames [K]: [d,K,K], float64. Beyond the lags it is 0.

        Between whole lags what is not white is interpolated linearly, which multiplies its power
        spectrum by sinc^2: what was positive stays so."""
        c = nn.functional.pad(self.autocovariance.T.cpu().double(), (0, 2))  # [d,lags+2]
        white = self.white.cpu().double()
        c[:, 0] -= white
        lag = (times[:, None] - times.double()).abs().clamp(max=len(self.autocovariance))
        whole = lag.long()
        smooth = torch.lerp(c[:, whole], c[:, whole + 1], lag.frac())  # [d,K,K]
        return smooth + white[:, None, None] * (lag == 0)

    def spectrum(self, times):
        """C = basis diag(power) basis^T, with which inverses at any n are divisions: power [d,K],
        basis [d,K,K], float64."""
        key = tuple(times.tolist())
        if key not in self.spectra:
            power, basis = torch.linalg.eigh(self.covariance(times))
            self.spectra[key] = power.clamp(min=0), basis
        return self.spectra[key]

    def filter(self, z, times, gain):
        """z [B,K,d] times gain(power [d,K]) in the eigenbasis of time."""
        key = (*times.tolist(), z.dtype, z.device)
        if key not in self.spectra:  # kept there: a copy at each step would wait for a GPU
            self.spectra[key] = [u.to(z) for u in self.spectrum(times)]
        power, basis = self.spectra[key]  # [d,K], [d,K,K]
        with torch.autocast(z.device.type, enabled=False):
            u = gain(power) * torch.einsum("dkm,bkd->bdm", basis, z)  # [B,d,K]
            return torch.einsum("dkm,bdm->bkd", basis, u)  # [B,K,d]

    def forward(self, z_n, n, schedule, predict, times):
        """The prior's eps, or with predict "v" the velocity that belongs to it, for z_n [B,K,d] at
        times [K] and steps n [B]."""
        signal, noise = schedule.signal_noise(n, z_n)  # [B,1,1] each

        def gain(power):
            answer = noise if predict == "eps" else signal * noise * (1 - power)
            return answer / (signal**2 * power + noise**2)

        return self.filter(z_n, times, gain)


def latents(frames, autoencoder, segments):
    """Latents [t,d] of each of segments [low, high), on the CPU, to fit a prior to.

    frames: rows -> frames in z-scores [n,V]."""
    found = []
    for low, high in segments:
        blocks = torch.arange(low, high).split(256)
        z = [autoencoder.encode(frames(rows).to(autoencoder.E.device)) for rows in blocks]
        found.append(torch.cat(z).cpu())
    return found


def add_flags(add):
    add("--prior", choices=["none", "gaussian"], help="start from the Gaussian denoiser, or not")
