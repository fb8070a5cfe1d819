"""The method: fMRI frames from EEG by latent diffusion, completed by null-space sampling.

The whole of "Modeling Spatiotemporal Neural Frames for High Resolution Brain Dynamics" (CVPR 2026,
arXiv 2603.24176), in the order in which data flows through it. No files, arguments or printing.

    1  EEG encoders        eeg [B,K,C,W] -> h [B,K,d_e]                     Section 3.3
    2  linear autoencoder  x [B,K,V] <-> z [B,K,d]                          Section 3.3
    3  noise schedule      z -> z^(n)                                       Eq. 1-2
    4  denoiser            (z^(n), n, h) -> the noise in z^(n)              Section 3.2, Eq. 3
    5  sampler             noise -> z, held to what was seen                Algorithm 1

B windows of K frames of V vertices or d latents; of EEG: C channels of W samples a frame, or L tokens of d_e numbers.
n counts diffusion steps, from 0 here, from 1 in the paper, whose X, S, h_EEG, x^(n) are x, eeg, h, z_n. abar: alpha_bar
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

# ---- 1. EEG encoders -------------------------------------------------------------------
class EEGEncoder(nn.Module):
    """The paper's temporal convolutional encoder: [B,K,C,W] -> [B,K,dim], each window on its own (Section 3.3).
    The paper gives no sizes: ours halves the samples until about 16 are left, and is at most 512 wide."""
    def __init__(self, channels, samples, dim):
        super().__init__()
        depth = max(2, round(math.log2(samples / 16)))
        widths = [channels] + [min(512, 64 * 2**i) for i in range(depth)]
        self.blocks = nn.Sequential(*[
            nn.Sequential(nn.Conv1d(a, b, 7, stride=2, padding=3, bias=False), nn.BatchNorm1d(b), nn.GELU())
            for a, b in zip(widths[:-1], widths[1:])])
        self.mlp = nn.Sequential(nn.Linear(widths[-1], dim), nn.GELU(), nn.Linear(dim, dim))
    def forward(self, eeg):
        B, K, C, W = eeg.shape
        u = self.blocks(eeg.reshape(B * K, C, W))     # [BK,c,W/2^L]
        return self.mlp(u.mean(-1)).view(B, K, -1)    # [B,K,dim]  after a global average pool

class BandPowerEncoder(nn.Module):
    """Ours, not the paper's: a learned filter bank that ends in log power, and power if `plain`; shapes of EEGEncoder.

    BOLD follows the *power* of fields in the cortex (Goense and Logothetis 2008) and of EEG rhythms, alpha's with the
    sign reversed (Goldman et al. 2002). Squaring is built in; left to learn is where (filters over channels) and at
    which frequencies (bands; by Parseval, to filter, square and average is to sum |X(f)|^2 with weights). The log tames
    the long tail of power, but flattens bursts, which BOLD follows; plain power overfits where data are few. Spectra
    are taken over `span` windows: in 0.8 s rhythms 1 Hz apart blur. cycles: the highest frequency, cycles a window."""
    def __init__(self, channels, samples, dim, cycles=60, filters=64, bands=40, span=3, dropout=0.5, plain=True):
        super().__init__()
        features = (1 + plain) * filters * bands
        self.span, self.bins, self.plain = span, span * min(cycles, samples // 2), plain
        # A Hann taper: an untapered window leaks the strong slow rhythms into all faster bins.
        self.register_buffer("taper", torch.hann_window(span * samples) / math.sqrt(span * samples), persistent=False)
        self.spatial = nn.Parameter(torch.randn(filters, channels) / math.sqrt(channels))       # [s,C]
        # Bands start as bumps, evenly spaced; a softmax over frequency keeps them positive.
        centre, f = torch.linspace(0, self.bins, bands + 2)[1:-1, None], torch.arange(1, self.bins + 1)
        bump = -0.5 * ((f - centre) / (self.bins / bands)) ** 2                                 # [j,f]
        self.band_logits = nn.Parameter(bump.repeat(filters, 1, 1))                             # [s,j,f]
        self.norm, self.dropout, self.out = nn.BatchNorm1d(features), nn.Dropout(dropout), nn.Linear(features, dim)
    def forward(self, eeg):
        B, K, C, W = eeg.shape
        with torch.autocast(eeg.device.type, enabled=False):  # the log of a tiny power needs float32
            side = self.span // 2  # beyond the sequence its first and last windows are repeated
            u = torch.cat([eeg[:, :1]] * side + [eeg] + [eeg[:, -1:]] * side, 1)  # [B,K+2side,C,W]
            u = u.float().transpose(1, 2).flatten(2)                       # [B,C,(K+2side)W] one recording
            u = u.unfold(-1, self.span * W, W).transpose(1, 2).flatten(0, 1)  # [BK,C,span W]
            u = torch.fft.rfft(u * self.taper)[..., 1: self.bins + 1]      # [BK,C,f] complex, from bin 1 on
            u = torch.einsum("sc,bcf->bsf", self.spatial.to(u), u)         # [BK,s,f] spatial filters
            u = u.real**2 + u.imag**2                                      # [BK,s,f] power
            band = torch.einsum("bsf,sjf->bsj", u, self.band_logits.softmax(-1))  # [BK,s,j]
            u = torch.cat([torch.log(band + 1e-12)] + [band] * self.plain, 1)  # [BK,2s,j], or [BK,s,j] if not plain
            u = self.norm(u.flatten(1))                                    # [BK,2sj]
        return self.out(self.dropout(u)).view(B, K, -1)                    # [B,K,dim]

# ---- 2. Linear autoencoder -------------------------------------------------------------
class LinearAutoencoder(nn.Module):
    """Frames of V vertices <-> d latents, by one linear map each way (Section 3.3).

    Why linear? Masks over *frames* commute with E, which acts on vertices: anchor frames could be pinned in the
    latents of any frame-wise encoder. Masks over *vertices* are where linearity pays: what was seen stays a linear
    system in z (see Observation). What would training find? The best linear autoencoder is the PCA subspace (Eckart
    and Young 1936; Baldi and Hornik 1989), so `fit` computes it: E has orthonormal rows and D = E^T. Latents are then
    scaled to unit variance (whitened), the variance at which the noise schedule ends. With joint=True, E and D are
    free and trained by `reconstruction_loss`."""
    def __init__(self, vertices, latent_dim, joint=False):
        super().__init__()
        self.vertices, self.latent_dim, self.joint = vertices, latent_dim, joint
        self.E = nn.Parameter(torch.zeros(latent_dim, vertices), requires_grad=joint)
        if joint:
            nn.init.normal_(self.E, std=vertices**-0.5)
            self.D = nn.Parameter(self.E.detach().T.clone())  # transposed at the start, then on its own
        self.register_buffer("mean", torch.zeros(vertices))
        self.register_buffer("latent_mean", torch.zeros(latent_dim))
        self.register_buffer("latent_scale", torch.ones(latent_dim))
    def encode(self, x):  # x [...,V] in z-scores -> z [...,d]
        return (F.linear(x - self.mean, self.E) - self.latent_mean) / self.latent_scale
    def decode(self, z):  # z [...,d] -> x [...,V] in z-scores
        return F.linear(z * self.latent_scale + self.latent_mean, self.D if self.joint else self.E.T) + self.mean
    @torch.no_grad()
    def fit(self, frames, block=4096):
        """Closed-form optimum for frames [T,V], anything that slices like an array; returns the share of variance kept.
        The covariance of V = 91,282 vertices would be 33 GB; the Gram matrix X X^T [T,T] has the same nonzero eigen-
        values, and E = S^-1 U^T X. It is summed over blocks of vertices, of which one at a time is held; for T > V the
        V x V side is the small one. Lowers latent_dim to the frames' rank. block: vertices at a time, and the largest
        side for which all eigenvectors are computed in float64. Raises ValueError if frames are not [T >= 2, V]."""
        T, V = frames.shape
        if V != self.vertices or T < 2:
            raise ValueError(f"frames must be [T >= 2, {self.vertices}], got {[T, V]}")
        def column(s):
            x = torch.as_tensor(frames[:, s]).to(self.mean)                                  # [T,v]
            self.mean[s] = x.mean(0)
            return x - self.mean[s]
        spans = [slice(a, min(a + block, V)) for a in range(0, V, block)] if T <= V else [slice(0, V)]
        gram = torch.zeros(min(T, V), min(T, V), dtype=torch.float64)                     # [T,T] or [V,V]
        for c in map(column, spans):
            gram += (c @ c.T if T <= V else c.T @ c).cpu()
        if len(gram) <= block:
            power, U = torch.linalg.eigh(gram)                                            # ascending
        else:  # in float32, in half the time; then a power step, and a small problem in float64
            U = torch.linalg.qr(gram @ torch.linalg.eigh(gram.float())[1][:, -self.latent_dim:].double())[0]
            power, W = torch.linalg.eigh(U.T @ gram @ U)
            U = U @ W
        d = self.latent_dim = min(self.latent_dim, int((power > 1e-6 * power[-1]).sum()))  # float32: good to 1e-7
        scale, U = power[-d:].flip(0).sqrt(), U[:, -d:].flip(1)                           # [d], [T or V,d]
        weight = (U / scale if T <= V else U).T.float().to(self.mean.device)              # [d,T or V]
        self.E = nn.Parameter(weight.new_empty(d, V), requires_grad=False)
        for s in spans:
            self.E[:, s] = weight @ column(s) if T <= V else weight                       # [d,v]
        self.latent_mean, self.latent_scale = weight.new_zeros(d), (scale / math.sqrt(T)).to(weight)
        return float(power[-d:].sum() / gram.trace())
    def reconstruction_loss(self, x, momentum=0.01):
        """Joint mode: the loss of E and D on x [B,K,V], and z [B,K,d] for the DiT: at unit variance, and detached,
        for if the diffusion loss reached E, z would shrink, D undo it, and the noise be trivial to predict."""
        u = F.linear(x, self.E).float()                   # [B,K,d]
        loss = (F.linear(u, self.D) - x).square().mean()  # scalar
        with torch.no_grad():
            self.latent_mean.lerp_(u.mean((0, 1)), momentum)
            self.latent_scale.lerp_(u.std((0, 1)).clamp(min=1e-6), momentum)
        return loss, (u.detach() - self.latent_mean) / self.latent_scale

# ---- 3. Noise schedule -----------------------------------------------------------------
class NoiseSchedule:
    """beta_n, variance that step n adds, linear in n; alpha_bar_n, share of z's left by n (Eq. 1-2). float64, CPU."""
    def __init__(self, steps=1000, beta_start=1e-4, beta_end=0.02):
        self.steps = steps
        self.beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - self.beta, 0)
    def signal_noise(self, n, like):
        """sqrt(alpha_bar_n) and sqrt(1 - alpha_bar_n) for n [B], shaped to multiply `like` [B,...]."""
        pick = lambda c: c.to(like.dtype).to(like.device)[n].view(-1, *(1,) * (like.ndim - 1))  # noqa: E731
        return pick(self.alpha_bar.sqrt()), pick((1 - self.alpha_bar).sqrt())
    def add_noise(self, z, n, eps):
        """Eq. 2: z^(n) = sqrt(abar_n) z + sqrt(1 - abar_n) eps."""
        signal, noise = self.signal_noise(n, z)
        return signal * z + noise * eps
    def velocity(self, z, n, eps):
        """v = sqrt(abar_n) eps - sqrt(1 - abar_n) z (Salimans and Ho 2022), not in the paper. At the noisiest
        steps eps is all of z^(n), and predicting it teaches nothing; v is then -z, of which only the EEG can tell."""
        signal, noise = self.signal_noise(n, z)
        return signal * eps - noise * z
    def eps_from_velocity(self, z_n, n, v):
        signal, noise = self.signal_noise(n, z_n)
        return signal * v + noise * z_n  # the two equations above, solved for eps

# ---- 4. Denoiser: a Gaussian prior and the diffusion transformer (DiT) -----------------
class GaussianPrior(nn.Module):
    """Ours, not the paper's: the exact denoiser of a stationary Gaussian process with the latents' own autocovariance.

    BOLD is smooth in time. With C the K x K autocovariance of one latent, z^(n) has covariance abar C + (1 - abar) I,
    and E[eps | z^(n)] = sqrt(1 - abar) (abar C + (1 - abar) I)^-1 z^(n). The network adds what this leaves out, first
    of all what the EEG says: the skip connection of EDM (Karras et al. 2022), with a matrix for a number."""
    def __init__(self, latent_dim, lags=256):
        super().__init__()
        self.register_buffer("autocovariance", torch.zeros(lags, latent_dim))  # [lags,d]
        self.register_buffer("white", torch.zeros(latent_dim))                 # [d]
        self.spectra = {}
    @torch.no_grad()
    def fit(self, segments):
        """c[l] = mean z_t z_{t+l} over segments [t,d], divided by all frames and not by the pairs at lag l: only then
        is no variance negative. white: what of c[0] no other frame shares, the least eigenvalue of C of 32 frames."""
        total, t = sum(len(z) for z in segments), torch.arange(32)
        for lag in range(len(self.autocovariance)):
            self.autocovariance[lag] = sum((z[lag:] * z[: len(z[lag:])]).sum(0) for z in segments) / total
        self.white.copy_(torch.linalg.eigvalsh(self.covariance(t, t))[:, 0].clamp(min=0))
        self.spectra = {}
    def covariance(self, a, b):
        """C [d,len(a),len(b)], float64, between times in frames. Between whole lags what is not white is interpolated
        linearly, which multiplies its power spectrum by sinc^2: positive stays positive. Beyond the lags it is 0."""
        c, white = F.pad(self.autocovariance.cpu().double(), (0, 0, 0, 2)), self.white.cpu().double()
        c[0] -= white
        lag = (a.cpu().double()[:, None] - b.cpu().double()).abs().clamp(max=len(c) - 2)  # [Ka,Kb]
        smooth = torch.lerp(c[lag.long()], c[lag.long() + 1], lag.frac()[..., None])      # [Ka,Kb,d]
        return (smooth + white * (lag == 0)[..., None]).permute(2, 0, 1)
    def spectrum(self, positions):
        """C = U diag(power) U^T, in which inverses at any n are divisions: power [d,K], U [d,K,K], float64."""
        key = tuple(positions.tolist())
        if key not in self.spectra:
            power, U = torch.linalg.eigh(self.covariance(positions, positions))
            self.spectra[key] = power.clamp(min=0), U
        return self.spectra[key]
    def filter(self, z, positions, gain):
        """z [B,K,d] times gain(power [d,K]) in the eigenbasis of time, where power is that of C."""
        power, U = (u.to(z) for u in self.spectrum(positions))
        with torch.autocast(z.device.type, enabled=False):
            return torch.einsum("dkm,bdm->bkd", U, gain(power) * torch.einsum("dkm,bkd->bdm", U, z))
    def forward(self, z_n, n, schedule, predict, positions):
        """The prior's eps or v for z_n [B,K,d], n [B], positions [K]."""
        signal, noise = schedule.signal_noise(n, z_n)  # [B,1,1]
        return self.filter(z_n, positions, lambda power: (
            noise if predict == "eps" else signal * noise * (1 - power)) / (signal**2 * power + noise**2))
    def interleave(self, out, abar):
        """The network's eps or v for u sets of frames, [B,u,K,d] -> [B,Ku,d], all their points. A mean m of z adds
        -sqrt(abar (1 - abar)) (abar C + (1 - abar) I)^-1 m to eps. A set alone, with 1/u of the points, sees smooth
        components of C with 1/u of the power; the gain turns its inverse into that of all points together."""
        u, out = out.shape[1], out.transpose(1, 2).flatten(1, 2)
        return self.filter(out, torch.arange(out.shape[1]) / u,
                           lambda power: (abar * power / u + 1 - abar) / (abar * power + 1 - abar))

def sinusoid(position, dim, max_period=10000.0):
    """Encode real numbers, position [...] -> [...,dim]: diffusion steps, and times, which are floats, so that a
    longer sequence or EEG cut between two frames needs no other network."""
    rate = max_period ** (-torch.arange(dim // 2, device=position.device) / (dim // 2))    # [dim/2]
    angle = position[..., None].float() * rate                                             # [...,dim/2]
    return torch.cat([angle.cos(), angle.sin()], -1)                                       # [...,dim]

class Attention(nn.Module):
    """Multi-head attention of x [B,M,w] to L tokens, given their keys and values [2,B,heads,L,w/heads]."""
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
    def keys_values(self, tokens):
        return self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [2,B,heads,L,w/heads]
    def forward(self, x, kv, bias=None):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                     # [B,heads,M,w/heads]
        u = F.scaled_dot_product_attention(q, *kv, None if bias is None else bias.to(q))  # as q, under autocast too
        return self.out(u.transpose(1, 2).flatten(2))                                     # [B,M,w]

class Block(nn.Module):
    """Self-attention, cross-attention to the EEG, MLP; each modulated by the diffusion step.

    adaLN-zero, adaptive layer norm (Peebles and Xie 2023): n sets scale and shift after each LayerNorm, and gates that
    are 0 at first: a fresh block is the identity. Ours: each cross-attention head looks around a learned delay of its
    own, EEG time minus frame time, on top of the 4 s by which the data are paired: a tap of a haemodynamic response."""
    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.self_attention, self.cross_attention = Attention(width, heads), Attention(width, heads)
        self.delay = nn.Parameter(torch.linspace(-5, 4, heads)[:, None, None])  # frames; -5: EEG 5 TR + 4 s older
        self.log_spread = nn.Parameter(torch.zeros(heads, 1, 1))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 9 * width)
        for p in self.modulation.parameters():
            nn.init.zeros_(p)
    def forward(self, x, modulation, kv, bias):
        # x [B,M,w] tokens of noisy frames; modulation [B,1,9w] of DiT.modulations; kv, bias: the EEG, of DiT.condition
        s1, b1, g1, s2, b2, g2, s3, b3, g3 = modulation.chunk(9, -1)                           # [B,1,w] each
        u = torch.addcmul(b1, self.norm(x), 1 + s1)                                            # [B,M,w] norm (1+s) + b
        x = torch.addcmul(x, g1, self.self_attention(u, self.self_attention.keys_values(u)))   # [B,M,w] x + g attention
        u = torch.addcmul(b2, self.norm(x), 1 + s2)                                            # [B,M,w]
        x = torch.addcmul(x, g2, self.cross_attention(u, kv, bias))                            # [B,M,w]
        u = torch.addcmul(b3, self.norm(x), 1 + s3)                                            # [B,M,w]
        return torch.addcmul(x, g3, self.mlp(u))                                               # [B,M,w]

class DiT(nn.Module):
    """eps_theta(z^(n), n, h): the noise in a sequence of noisy latent frames (Section 3.2).

    The paper speaks of K x V = 912,820 vertex tokens, which no attention can hold; by its details one frame is one
    token (latent 1024 = width 1024). tokens_per_frame splits a frame into P tokens, each with a learned embedding."""
    def __init__(self, latent_dim, eeg_dim, width, depth, heads, tokens_per_frame=1):
        super().__init__()
        if latent_dim % tokens_per_frame or width % heads or width % 2:
            raise ValueError(f"tokens_per_frame {tokens_per_frame} must divide latent_dim {latent_dim}, and 2 and "
                             f"heads {heads} must divide width {width}")
        self.width, self.P = width, tokens_per_frame
        piece = latent_dim // tokens_per_frame
        self.embed_z = nn.Linear(piece, width)
        self.embed_h = nn.Sequential(nn.Linear(eeg_dim, width), nn.LayerNorm(width))
        self.embed_n = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(tokens_per_frame, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, piece)
        for p in (*self.modulation.parameters(), *self.head.parameters()):  # a fresh network answers 0
            nn.init.zeros_(p)
    def time(self, positions, like):
        return sinusoid(positions.expand(len(like), -1), self.width).to(like.dtype)            # [B,K,w]
    def condition(self, h, positions, eeg_positions):
        """A block each: keys, values of h [B,L,d_e]; bias, log of a Gaussian around a head's delay. Not of z_n or n."""
        lag = eeg_positions.expand(len(h), -1)[:, None] - positions[..., None].float()         # [B,K,L]
        lag = lag.repeat_interleave(self.P, 1)[:, None]                                        # [B,1,KP,L]
        h = self.embed_h(h) + self.time(eeg_positions, h)                                      # [B,L,w]
        return [(b.cross_attention.keys_values(h), -0.5 * ((lag - b.delay) * torch.exp(-b.log_spread)) ** 2)
                for b in self.blocks]                             # [2,B,heads,L,w/heads], [B,heads,KP,L]
    def modulations(self, n):
        """The diffusion step's scales, shifts, gates: a tensor for each block and the head. Not of z_n or the EEG."""
        c = F.silu(self.embed_n(sinusoid(n, self.width).to(self.place)))                       # [B,w]
        return [layer.modulation(c)[:, None] for layer in (*self.blocks, self)]                # [B,1,9w] each, [B,1,2w]
    def forward(self, z_n, n, h, positions=None, eeg_positions=None, condition=None, modulations=None):
        """z_n [B,K,d], n [B] or [1] from 0, h [B,L,d_e] -> [B,K,d]. Times in frames: positions [K] or [B,K], by default
        0, 1...; eeg_positions [L] or [B,L], by default the same: give them where L > K (EEG before and after)."""
        positions = torch.arange(z_n.shape[1], device=z_n.device) if positions is None else positions
        condition = condition or self.condition(h, positions, positions if eeg_positions is None else eeg_positions)
        *modulations, last = modulations or self.modulations(n)
        u = self.embed_z(z_n.unflatten(-1, (self.P, -1))) + self.place                         # [B,K,P,w]
        u = (u + self.time(positions, z_n)[:, :, None]).flatten(1, 2)                          # [B,KP,w]
        for block, modulation, (kv, bias) in zip(self.blocks, modulations, condition):
            u = block(u, modulation, kv, bias)                                                 # [B,KP,w]
        scale, shift = last.chunk(2, -1)                                                       # [B,1,w] each
        u = self.head(torch.addcmul(shift, self.norm(u), 1 + scale))                           # [B,KP,d/P]
        return u.unflatten(1, (-1, self.P)).flatten(2)                                         # [B,K,d]

class NeuroFrames(nn.Module):
    """EEG encoder and denoiser. predict: "eps", the noise (Eq. 3), or "v", see velocity. prior: add GaussianPrior's."""
    def __init__(self, channels, samples, latent_dim, eeg_encoder="conv", eeg_dim=512, width=1024, depth=6,
                 heads=8, tokens_per_frame=1, predict="eps", prior=False, encoder_settings=None):
        super().__init__()
        self.predict, self.schedule = predict, NoiseSchedule()
        encoder = {"conv": EEGEncoder, "bandpower": BandPowerEncoder}[eeg_encoder]
        self.encoder = encoder(channels, samples, eeg_dim, **(encoder_settings or {}))
        self.dit = DiT(latent_dim, eeg_dim, width, depth, heads, tokens_per_frame)
        self.prior = GaussianPrior(latent_dim) if prior else None
    def forward(self, z_n, n, h, eeg_positions=None, condition=None, u=1, modulations=None):
        """z_n [B,Ku,d], n [B] ([1] if u > 1), EEG h [Bu,L,d_e] at eeg_positions [Bu,L] -> eps or v, [B,Ku,d]. With u
        points a frame the network is asked about u sets of points one frame apart, as it was trained, each with EEG cut
        at its own times; the prior, which knows the times between, puts the sets together."""
        sets = z_n.unflatten(1, (-1, u)).transpose(1, 2).flatten(0, 1)                         # [Bu,K,d]
        out = self.dit(sets, n, h, None, eeg_positions, condition, modulations)                # [Bu,K,d]
        if u > 1:
            out = self.prior.interleave(out.unflatten(0, (-1, u)), self.schedule.alpha_bar[n[0]].item())
        if self.prior is not None:
            out = out + self.prior(z_n, n, self.schedule, self.predict, torch.arange(z_n.shape[1]) / u)
        return out
    def eps_model(self, h, eeg_positions, K, modulations):
        """(z_n [SB,Ku,d], n) -> eps for `sample`: S samples of B windows with EEG h [B,u,L,d_e]; one n for all.
        Computed once: the EEG's keys and values, here; modulations(n), by the caller, who caches DiT.modulations."""
        B, u = h.shape[:2]
        h, eeg_positions = h.flatten(0, 1), eeg_positions.repeat_interleave(u, 0)              # [Bu,L,d_e], [Bu,L]
        once = self.dit.condition(h, torch.arange(K, device=h.device), eeg_positions)
        def eps(z_n, n):
            S = len(z_n) // B
            condition = [(kv.repeat(1, S, 1, 1, 1), bias.repeat(S, 1, 1, 1)) for kv, bias in once]
            out = self(z_n, n[:1], h, eeg_positions, condition, u, modulations(int(n[0])))
            return out if self.predict == "eps" else self.schedule.eps_from_velocity(z_n, n[:1], out)
        return eps

# ---- 5. Sampler: DDPM, DDIM and InterRecon in one loop ---------------------------------
def range_null_projection(x0, y, mask):
    """x0 <- A^+ y + (I - A^+ A) x0: what was seen (the range), and the guess for what y leaves open (A's null space).
    A = diag(mask), so that A^+ = A and the sum is a choice: A x0 = y to the last bit. All broadcast, mask bool."""
    return torch.where(mask, y, x0)

class Observation:
    """Frames seen whole (the paper's case), in part (ours) or not at all, as linear systems A z = y in their latents.
    This is what a linear decoder is for: x = D z + mean holds vertex by vertex, so that vertices O of a frame say
    D_O z = x_O - mean_O. With the SVD D_O = U S Q^T, A = Q^T [r,d] and y = S^-1 U^T (x_O - mean_O): the pseudo-inverse
    of the decoder's observed rows, computed once; where it is over-determined, the least-squares fit. Latents that O
    hardly shows (S below 1e-3 of the largest) are left out of A. D z is not all of x, so that y - A z has a
    covariance R, measured on training frames: where it is large, the model is believed more than y. For a frame seen
    whole A = I, y = encode(x) and R = 0.
    rows    bool [P,V]: which vertices were seen; a frame's kind is an index into rows, -1: nothing was seen
    frames  [n,V] training frames in z-scores, on which R is measured"""
    @torch.no_grad()
    def __init__(self, autoencoder, rows, frames):
        self.autoencoder, self.systems, d = autoencoder, [], autoencoder.latent_dim
        zero = autoencoder.decode(torch.zeros_like(autoencoder.latent_scale))                 # [V] the frame of z = 0
        for row in [*rows, torch.zeros_like(rows[0])]:  # the last, kind -1: nothing was seen
            A, R, fit = torch.eye(d).double(), torch.zeros(d, d).double(), None
            if not row.all():
                D = (autoencoder.D if autoencoder.joint else autoencoder.E.T)[row] * autoencoder.latent_scale  # [O,d]
                power, Q = torch.linalg.eigh((D.T @ D).cpu().double())                        # S^2 [d], Q [d,d]
                power, Q = power[power > 1e-6 * power[-1]], Q[:, power > 1e-6 * power[-1]]
                A, fit = Q.T, (row, zero[row], (Q / power @ Q.T).to(D) @ D.T)                 # Q S^-1 U^T [d,O]
            self.systems.append((A, R, fit))  # R = 0 for now: self.latents needs A and fit, R the error of latents
            error = (self.latents(frames, -1) - autoencoder.encode(frames)) @ A.T.to(zero)    # [n,r]
            self.systems[-1] = (A, (error.T @ error).cpu().double() / len(error), fit)
    def latents(self, x, kind):
        """A^T y [n,d] of frames x [n,V] of one kind."""
        if self.systems[kind][2] is None:
            return self.autoencoder.encode(x)
        row, zero, fit = self.systems[kind][2]
        return (x[:, row] - zero) @ fit.T
    def projection(self, kinds, prior=None, points=None):
        """The function (z0 [B,K,d], A^T y [B,K,d], abar) -> z0, moved to what was seen of K frames, as R allows:
        z0 + G (y - A z0), with the gain G = W A^T (A W A^T + R)^-1 and W = Cov[z | z^(n)], by the prior at times points
        [K]: what was not seen follows what was, and for a Gaussian process z0 becomes E[z | z^(n), y]. Without a prior
        z is taken for white, W = (1 - abar) I: where R = 0, G = A^+ and this is the range-null projection."""
        A, R, fit = zip(*(self.systems[kind] for kind in kinds))
        frames_only, gains = all(f is None or not len(a) for f, a in zip(fit, A)), {}
        def gain(abar):
            if prior is None:
                inverse = [torch.linalg.inv(torch.eye(len(a)) + r / (1 - abar)) for a, r in zip(A, R)]
                return torch.stack([a.T @ u @ a for a, u in zip(A, inverse)])                      # [K,d,d]
            power, U = prior.spectrum(points)  # W = (1 - abar) C (abar C + (1 - abar) I)^-1, and C at abar = 0
            W = (U * ((1 - abar) * power / (abar * power + 1 - abar))[:, None]) @ U.mT         # [d,K,K]
            if frames_only:  # a K x K system for each latent; frames not seen get the identity's rows
                m = torch.tensor([f is None for f in fit]).double()
                AWA = m[:, None] * W * m + torch.diag(1 - m) + 1e-6 * W[:, :1, :1] * torch.diag(m)
                return (W * m) @ torch.linalg.inv(AWA) * m                                     # [d,K,K]
            WA = torch.cat([W[..., k].T[..., None] * a.T for k, a in enumerate(A)], -1)        # [K,d,M]
            AWA = torch.cat([a @ u for a, u in zip(A, WA)]) + torch.block_diag(*R)             # [M,M]
            return WA.flatten(0, 1) @ torch.linalg.inv(AWA + 1e-6 * torch.eye(len(AWA)))       # [Kd,M]
        def project(z0, y, abar):
            if abar not in gains:
                gains.clear(), gains.update({abar: gain(abar).to(z0)})  # of this step only: they can be large
            if prior is None or frames_only:  # frame by frame, or latent by latent
                return z0 + torch.einsum("kde,bke->bkd" if prior is None else "dkj,bjd->bkd", gains[abar], y - z0)
            error = torch.cat([u @ a.T.to(u) for u, a in zip((y - z0).unbind(1), A)], -1)      # [B,M]
            return z0 + (error @ gains[abar].T).view_as(z0)                                    # [B,K,d]
        return project

@torch.no_grad()
def sample(eps_model, shape, schedule, steps=50, eta=0.0, y=None, mask=None, reuse_eps=True, generator=None,
           project=None, antithetic=False, dtype=None, device=None):
    """Algorithm 1: from noise to latent frames z [B,K,d] in `steps` network calls.
    eps_model   (z_n [B,K,d], n LongTensor [B] counting from 0) -> eps [B,K,d]
    eta         fresh noise a step. 0: none, DDIM (Song et al. 2021). 1: DDPM; Algorithm 1 if steps = N, reuse_eps=False
    y, mask     frames seen, y [B,K,d] in latents, mask bool [K] or [B,K]: InterRecon. Else direct
    project     (z0, abar) -> z0, Observation's projection with its A^T y filled in; in place of y and mask
    reuse_eps   True, for A^+: keep the network's eps (as DDNM; Wang et al. 2023). Recomputing it from z0, as Algorithm
                1 does unsaid, has 100 times the squared bias. False, for a prior's gain: its z0 is E[z | z^(n), y]
    antithetic  items i and i + B/2 get opposite noise: what is odd in it cancels from a pair's mean
    As printed, Algorithm 1 lacks the bars of its alphas and diverges, and Section 3.2 has one too many, on alpha_n.
    q(z^(n-1) | z^(n), z0) has mean (sqrt(abar_{n-1}) beta_n z0 + sqrt(alpha_n) (1 - abar_{n-1}) z^(n)) / (1 - abar_n):
    the update below, written with eps. For skipped steps n > n', abar_n / abar_n' takes the place of alpha_n."""
    if y is not None:
        dtype, device = dtype or y.dtype, device or y.device
        project = lambda z0, abar: range_null_projection(z0, y, mask[..., None])  # noqa: E731  A = diag(mask)
    if antithetic and shape[0] % 2:
        raise ValueError(f"antithetic sampling pairs items: the batch must be even, got {shape[0]}")
    draw_on, pair = generator.device if generator is not None else device, 2 if antithetic else 1
    def draw():
        noise = torch.randn(shape[0] // pair, *shape[1:], generator=generator, device=draw_on, dtype=dtype)
        return torch.cat([noise, -noise][:pair]).to(device or draw_on)
    visited = torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    z = draw()  # z^(N), [B,K,d]
    for i, n in enumerate(visited):
        abar = schedule.alpha_bar[n].item()
        abar_next = schedule.alpha_bar[visited[i + 1]].item() if i + 1 < len(visited) else 1.0
        eps = eps_model(z, torch.full((shape[0],), n, device=z.device))   # [B,K,d]
        z0 = (z - math.sqrt(1 - abar) * eps) / math.sqrt(abar)            # [B,K,d] clean frames, estimated
        if project is not None:
            z0 = project(z0, abar)                                        # [B,K,d] A z0 = y, or nearer to it if R > 0
            if not reuse_eps:
                eps = (z - math.sqrt(abar) * z0) / math.sqrt(1 - abar)    # [B,K,d] Eq. 2 solved for eps
        # Zero at the last step, where abar' = 1: no noise is left in what is returned.
        sigma = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
        z = math.sqrt(abar_next) * z0 + math.sqrt(max(1 - abar_next - sigma**2, 0.0)) * eps  # [B,K,d]
        if sigma > 0:
            z = z + sigma * draw()                                        # [B,K,d]
    return z
