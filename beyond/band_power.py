"""What in the EEG tells of BOLD?

BOLD follows the *power* of fields in the cortex (Goense and Logothetis 2008) and of EEG rhythms,
alpha's with the sign reversed (Goldman et al. 2002). Convolutions must find out how to square. Here
squaring is built in, and what is left to learn is where (filters over channels) and at which
frequencies (bands).

    power of filter s in band j of a window:  sum over f of w_sj(f) |sum over c of a_sc X_c(f)|^2

with X_c(f) the window's Fourier transform in channel c: by Parseval, to filter, square and average
is to sum |X(f)|^2 with weights. Handed on are its logarithm, which tames the long tail of power,
and beside it the power itself, for the logarithm flattens bursts, which BOLD follows. (Plain power
overfits where data are few: `plain=False`.)

Seam    encoder(eeg): [B,K,C,W] -> [B,K,d_e]
Source  ours; learned filter banks on log power: Schirrmeister et al. 2017 (shallow ConvNet)
Gain    synthetic, direct: MSE 0.765 -> 0.582, with all other chapters there
"""

import math

import torch
from torch import nn

from .windows import around

AT_MOST = 2**32  # bytes of spectra that are kept; 64 channels, 27,000 frames: 2.5e9


def spectra(eeg, bins, span=3):
    """Fourier transforms of EEG windows that follow one another, [B,L+span-1,C,W] ->
    [B,L,C,bins], complex, without bin 0: each of `span` windows under a Hann taper. (Without it, a
    window leaks the strong slow rhythms into all faster bins.)"""
    length = span * eeg.shape[-1]
    taper = torch.hann_window(length, device=eeg.device) / math.sqrt(length)
    u = eeg.transpose(1, 2).flatten(2)  # [B,C,(L+span-1) W] one recording
    u = u.unfold(-1, length, eeg.shape[-1])  # [B,C,L,span W]
    u = torch.fft.rfft(u * taper)[..., 1 : bins + 1]  # [B,C,L,bins]
    return u.transpose(1, 2)  # [B,L,C,bins]


def computed_once(encoder, read, stretches, frames, lates):
    """As windows.late, but to what the encoder makes of EEG first, its spectra [B,L,C,bins], which
    are kept for all frames of some stretches, cut late by each number of samples of `lates` (in
    half precision, if these are several). None if they would take more than AT_MOST: then each step
    computes what it needs, which takes several times as long. read: rows -> EEG."""
    dtype = torch.float32 if len(lates) == 1 else torch.float16
    shape = frames, encoder.spatial.shape[1], encoder.bins, 2
    if len(lates) * math.prod(shape) * dtype.itemsize > AT_MOST:
        return None
    kept = {late: torch.zeros(shape, dtype=dtype) for late in lates}
    for late, parts in kept.items():
        for low, high in stretches:
            found = [spectra(eeg[None], encoder.bins)[0] for eeg in around(read, low, high, late)]
            parts[low:high] = torch.view_as_real(torch.cat(found))

    def see(rows, late):
        rows = torch.from_numpy(rows[:, :-1] if late else rows)
        found = kept[late][rows].float()  # [B,L,C,bins,2]
        return torch.view_as_complex(found)

    return see


class BandPowerEncoder(nn.Module):
    """A learned filter bank that ends in power; shapes of neuroframes.EEGEncoder.

    cycles   the highest frequency, in cycles a window (a frame's time)
    filters  spatial filters; bands: frequency bands of each
    span     windows over which spectra are taken: in 0.8 s alone, rhythms 1 Hz apart blur
    """

    def __init__(
        self,
        channels,
        samples,
        dim,
        cycles=60,
        filters=64,
        bands=40,
        span=3,
        dropout=0.5,
        plain=True,
    ):
        super().__init__()
        self.span, self.plain = span, plain
        self.bins = span * min(cycles, samples // 2)  # of the spectrum, without bin 0
        self.spatial = nn.Parameter(torch.randn(filters, channels) / math.sqrt(channels))
        # Bands start as bumps, evenly spaced; a softmax over frequency keeps them positive.
        centre = torch.linspace(0, self.bins, bands + 2)[1:-1, None]  # [bands,1]
        f = torch.arange(1, self.bins + 1)
        bump = -0.5 * ((f - centre) / (self.bins / bands)) ** 2  # [bands,bins]
        self.band_logits = nn.Parameter(bump.repeat(filters, 1, 1))  # [filters,bands,bins]
        features = (1 + plain) * filters * bands
        # Plain power has the units of EEG squared, so that its variance may be below the usual eps.
        self.norm = nn.BatchNorm1d(features, eps=1e-20)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(features, dim)

    def forward(self, eeg):
        """eeg [B,K,C,W]; or its spectra [B,K,C,bins], as of `computed_once`."""
        with torch.autocast(eeg.device.type, enabled=False):  # logs of tiny powers need float32
            u = eeg
            if not eeg.is_complex():
                side = self.span // 2  # beyond the sequence its first and last windows are repeated
                around = [eeg[:, :1]] * side + [eeg] + [eeg[:, -1:]] * side
                u = torch.cat(around, 1).float()  # [B,K+2side,C,W]
                u = spectra(u, self.bins, self.span)  # [B,K,C,bins]
            B, K, _, _ = u.shape
            u = u.flatten(0, 1)  # [BK,C,bins]
            u = torch.einsum("sc,bcf->bsf", self.spatial.to(u), u)  # [BK,filters,bins]
            u = u.real**2 + u.imag**2  # [BK,filters,bins] power
            weights = self.band_logits.softmax(-1)  # [filters,bands,bins]
            power = torch.einsum("bsf,sjf->bsj", u, weights)  # [BK,filters,bands]
            u = torch.cat([torch.log(power + 1e-12)] + [power] * self.plain, 1)
            u = self.norm(u.flatten(1))  # [BK,features]
        return self.out(self.dropout(u)).view(B, K, -1)  # [B,K,dim]


def settings(a, tr):
    """Of train.py's flags: what BandPowerEncoder is made with. tr in seconds."""
    return {
        "cycles": round(75 * tr),  # up to 75 Hz, where the paper's EEG is cut off
        "filters": a.eeg_filters or 32,
        "bands": a.eeg_bands or 16,
        "dropout": 0.5 if a.eeg_dropout is None else a.eeg_dropout,
        "plain": a.eeg_power != "log",
    }


def add_flags(add):
    add("--eeg-encoder", choices=["conv", "bandpower"], help="the paper's, or one of band power")
    add("--eeg-filters", type=int, help="spatial filters; lower it if memory or time runs out")
    add("--eeg-bands", type=int, help="frequency bands a filter; lower it likewise")
    add(
        "--eeg-power",
        choices=["both", "log"],
        help="log and plain (default), or log: few data",
    )
    add(
        "--eeg-dropout",
        type=float,
        help="share of powers hidden a step (default: 0.5); few data: 0.9",
    )
