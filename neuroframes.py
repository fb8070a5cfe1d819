"""The method: fMRI frames from EEG by latent diffusion, completed by null-space sampling.

The whole of "Modeling Spatiotemporal Neural Frames for High Resolution Brain Dynamics" (CVPR 2026,
arXiv 2603.24176), in the order in which data flows through it. No files, arguments or printing.

    1  EEG encoders        eeg [B,K,C,W] -> h [B,K,d_e]                     Section 3.3
    2  linear autoencoder  x [B,K,V] <-> z [B,K,d]                          Section 3.3
    3  noise schedule      z -> z^(n)                                       Eq. 1-2
    4  denoiser            (z^(n), n, h) -> the noise in z^(n)              Section 3.2, Eq. 3
    5  sampler             noise -> z, held to the frames that were seen    Algorithm 1

B windows of K frames; V vertices, d latents a frame; C EEG channels, W samples a frame. Beware: k
counts frames (time), n counts diffusion steps, from 0 here and from 1 in the paper. In the paper's
symbols x is X, eeg S, h h_EEG, z_n x^(n), and alpha_bar the share of signal in the variance of z_n.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

# ---- 1. EEG encoders -------------------------------------------------------------------

class EEGEncoder(nn.Module):
    """The paper's temporal convolutional encoder: [B,K,C,W] -> [B,K,dim], each window on its own. Blocks
    of Conv1d (stride 2), BatchNorm and GELU, an average over time, a two-layer MLP (Section 3.3). The
    paper gives no sizes: ours stops when about 16 samples are left, and is at most 512 wide."""

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
    """A learned filter bank that ends in log power; same shapes as EEGEncoder.

    BOLD follows the *power* of EEG rhythms, not their voltage (Goense and Logothetis 2008). Stacked
    convolutions have to discover the squaring; here it is built in, and what is left to learn is
    where (spatial filters over channels) and at which frequencies (bands). By Parseval's theorem,
    to filter, square and average over time is to sum |X(f)|^2 with weights. Windows follow one
    another without a gap, so a window's spectrum is taken over `span` windows around it: rhythms
    1 Hz apart blur in 0.8 s, not in 2.4 s. cycles: the highest frequency, in cycles a window."""

    def __init__(self, channels, samples, dim, cycles=60, filters=64, bands=40, span=3, dropout=0.5):
        super().__init__()
        self.span = span
        bins = span * min(cycles, samples // 2)
        t = torch.arange(span * samples, dtype=torch.float64)
        angle = 2 * math.pi * torch.arange(1, bins + 1, dtype=torch.float64) * t[:, None] / len(t)
        # A Hann taper: an untapered window leaks the strong slow rhythms into all faster bins.
        taper = torch.hann_window(len(t), dtype=torch.float64)[:, None] / math.sqrt(len(t))
        basis = torch.cat([angle.cos(), angle.sin()], 1) * taper                                # [span W,2f]
        self.register_buffer("fourier", basis.float(), persistent=False)
        self.spatial = nn.Parameter(torch.randn(filters, channels) / math.sqrt(channels))       # [s,C]
        # Bands start as bumps, evenly spaced; a softmax over frequency keeps them positive.
        centre = torch.linspace(0, bins, bands + 2)[1:-1, None]
        bump = -0.5 * ((torch.arange(1, bins + 1) - centre) / (bins / bands)) ** 2              # [j,f]
        self.band_logits = nn.Parameter(bump.repeat(filters, 1, 1))                             # [s,j,f]
        self.norm = nn.BatchNorm1d(filters * bands)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(filters * bands, dim)

    def forward(self, eeg):
        B, K, C, W = eeg.shape
        with torch.autocast(eeg.device.type, enabled=False):  # the log of a tiny power needs float32
            side = self.span // 2  # beyond the sequence its first and last windows are repeated
            u = torch.cat([eeg[:, :1]] * side + [eeg] + [eeg[:, -1:]] * side, 1)  # [B,K+2side,C,W]
            u = u.float().transpose(1, 2).flatten(2)                       # [B,C,(K+2side)W] one recording
            u = u.unfold(-1, self.span * W, W).transpose(1, 2).flatten(0, 1)  # [BK,C,span W]
            u = u @ self.fourier                                           # [BK,C,2f] Fourier coefficients
            u = torch.einsum("sc,bcf->bsf", self.spatial, u)               # [BK,s,2f] spatial filters
            power = u.square().unflatten(-1, (2, -1)).sum(-2)              # [BK,s,f]  |X(f)|^2
            band = torch.einsum("bsf,sjf->bsj", power, self.band_logits.softmax(-1))  # [BK,s,j]
            u = self.norm(torch.log(band + 1e-12).flatten(1))              # [BK,sj]   log power
        return self.out(self.dropout(u)).view(B, K, -1)                    # [B,K,dim]


# ---- 2. Linear autoencoder -------------------------------------------------------------

class LinearAutoencoder(nn.Module):
    """Frames of V vertices <-> d latents, by one linear map each way (Section 3.3).

    Why linear? A mask over *frames* acts on the frame axis and E on the vertex axis, so they
    commute: anchor frames could be pinned in the latents of any frame-wise encoder. A mask over
    *vertices* is where linearity pays: A D z = y stays a linear system in z, with a pseudo-inverse.
    What would training find? The best linear autoencoder is the PCA subspace (Eckart and Young
    1936; Baldi and Hornik 1989), so `fit` computes it in closed form: E has orthonormal rows and
    D = E^T. Latents are then scaled to unit variance (whitened), the variance at which the noise
    schedule ends. With joint=True, E and D are free and trained by `reconstruction_loss`."""

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

    def encode(self, x):
        """x [...,V] in z-scores -> z [...,d]."""
        return (F.linear(x - self.mean, self.E) - self.latent_mean) / self.latent_scale

    def decode(self, z):
        """z [...,d] -> x [...,V] in z-scores."""
        D = self.D if self.joint else self.E.T
        return F.linear(z * self.latent_scale + self.latent_mean, D) + self.mean

    @torch.no_grad()
    def fit(self, frames, block=4096):
        """Closed-form optimum for frames [T,V], anything that slices like an array; returns the share of
        variance kept. The covariance of V = 91,282 vertices would be 33 GB; the Gram matrix X X^T [T,T] has
        the same nonzero eigenvalues, and E = S^-1 U^T X. It is summed over blocks of vertices, the most
        that is held; for T > V the V x V side is the small one. Lowers latent_dim to the frames' rank."""
        T, V = frames.shape
        if V != self.vertices or T < 2:
            raise ValueError(f"frames must be [T >= 2, {self.vertices}], got {[T, V]}")
        column = lambda s: torch.as_tensor(frames[:, s]).to(self.E) - self.mean[s]  # noqa: E731  [T,v]
        self.mean.zero_()
        spans = [slice(a, min(a + block, V)) for a in range(0, V, block)]
        self.mean = torch.cat([column(s).mean(0) for s in spans])                         # [V]
        if T <= V:
            gram = sum((c @ c.T).cpu().double() for c in map(column, spans))              # [T,T]
        else:
            gram = (column(slice(0, V)).T @ column(slice(0, V))).cpu().double()           # [V,V]
        power, U = torch.linalg.eigh(gram)                                                # ascending
        rank = int((power > 1e-6 * power[-1]).sum())  # float32 products are good to about 1e-7
        d = self.latent_dim = min(self.latent_dim, rank)
        scale, U = power[-d:].flip(0).sqrt(), U[:, -d:].flip(1)                           # [d], [T or V,d]
        weight = (U / scale if T <= V else U).T.float().to(self.E.device)                 # [d,T or V]
        E = torch.cat([weight @ column(s) for s in spans], 1) if T <= V else weight       # [d,V]
        self.E = nn.Parameter(E, requires_grad=False)
        self.latent_mean, self.latent_scale = torch.zeros(d).to(E), (scale / math.sqrt(T)).float().to(E)
        return float(power[-d:].sum() / power.sum())

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
    """beta_n linear in n, and what follows from it (Eq. 1-2); float64 [N], on the CPU."""

    def __init__(self, steps=1000, beta_start=1e-4, beta_end=0.02):
        self.steps = steps
        self.beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        self.alpha = 1 - self.beta
        self.alpha_bar = torch.cumprod(self.alpha, 0)

    def signal_noise(self, n, like):
        """sqrt(alpha_bar_n) and sqrt(1 - alpha_bar_n) for n [B], shaped to multiply `like` [B,...]."""
        pick = lambda c: c.to(like.dtype).to(like.device)[n].view(-1, *(1,) * (like.ndim - 1))  # noqa: E731
        return pick(self.alpha_bar.sqrt()), pick((1 - self.alpha_bar).sqrt())

    def add_noise(self, z, n, eps):
        """Eq. 2: z^(n) = sqrt(abar_n) z + sqrt(1 - abar_n) eps."""
        signal, noise = self.signal_noise(n, z)
        return signal * z + noise * eps

    def velocity(self, z, n, eps):
        """v = sqrt(abar_n) eps - sqrt(1 - abar_n) z (Salimans and Ho 2022). At the noisiest steps eps is all of
        z^(n), and predicting it teaches nothing; v is then -z, of which only the EEG can tell."""
        signal, noise = self.signal_noise(n, z)
        return signal * eps - noise * z

    def eps_from_velocity(self, z_n, n, v):
        """Solves the two equations above for eps."""
        signal, noise = self.signal_noise(n, z_n)
        return signal * v + noise * z_n


# ---- 4. Denoiser: a Gaussian prior and the diffusion transformer (DiT) -----------------

class GaussianPrior(nn.Module):
    """The exact denoiser of a stationary Gaussian process with the latents' own autocovariance.

    BOLD is smooth in time. With C the K x K autocovariance of one latent, z^(n) has covariance
    abar C + (1 - abar) I, and E[eps | z^(n)] = sqrt(1 - abar) (abar C + (1 - abar) I)^-1 z^(n).
    The network adds what this leaves out, first of all what the EEG says: the skip connection of
    EDM (Karras et al. 2022), with a matrix for a number. The paper has none."""

    def __init__(self, latent_dim, lags=256):
        super().__init__()
        self.register_buffer("autocovariance", torch.zeros(lags, latent_dim))  # [lags,d]
        self.register_buffer("white", torch.zeros(latent_dim))                 # [d]
        self.spectra = {}

    @torch.no_grad()
    def fit(self, segments):
        """c[l] = mean z_t z_{t+l}, from segments [t,d] of consecutive latents. Divided by all frames, not
        by the pairs at lag l: only then is no variance negative. `white` is the part of c[0] that no lag
        shares, the scanner's noise: the smallest eigenvalue of 32 frames' covariance."""
        self.spectra, total = {}, sum(len(z) for z in segments)
        for lag in range(len(self.autocovariance)):
            self.autocovariance[lag] = sum((z[lag:] * z[: len(z[lag:])]).sum(0) for z in segments) / total
        self.white.zero_()
        self.white.copy_(torch.linalg.eigvalsh(self.covariance(torch.arange(32), torch.arange(32)))[:, 0].clamp(min=0))

    def covariance(self, a, b):
        """C [d,len(a),len(b)], float64, between times in frames. Between whole lags the smooth part of c is
        interpolated linearly, which multiplies its power spectrum by sinc^2: it stays positive."""
        c = F.pad(self.autocovariance.cpu().double(), (0, 0, 0, 2))  # [lags+2,d] zero beyond the last lag
        white = self.white.cpu().double()
        c[0] -= white
        lag = (a.cpu().double()[:, None] - b.cpu().double()).abs().clamp(max=len(c) - 2)  # [Ka,Kb]
        low = lag.long()
        C = torch.lerp(c[low], c[low + 1], (lag - low)[..., None])   # [Ka,Kb,d]
        return (C + white * (lag == 0)[..., None]).permute(2, 0, 1)

    def spectrum(self, positions):
        """C = U diag(power) U^T, in which inverses at any n are divisions: power [d,K], U [d,K,K], float64."""
        key = tuple(positions.tolist())
        if key not in self.spectra:
            power, U = torch.linalg.eigh(self.covariance(positions, positions))
            self.spectra[key] = power.clamp(min=0), U
        return self.spectra[key]

    def conditional_covariance(self, abar, positions):
        """W = Cov[z | z^(n)] = (1 - abar) C (abar C + (1 - abar) I)^-1, [d,K,K]; at abar = 0 it is C."""
        power, U = self.spectrum(positions)
        return (U * ((1 - abar) * power / (abar * power + 1 - abar))[:, None]) @ U.transpose(1, 2)

    def interleave(self, out, abar, points):
        """The network's answers `out` [B,u,K,d] for u sets of K frames -> the same for all points at once.
        What the EEG says of the mean m of z adds -sqrt(abar (1 - abar)) M^-1 m to eps, M = abar C + (1 - abar) I.
        M is known, so m is; but twice the points share it, so that each may say half as much."""
        u = out.shape[1]
        power, U = (s.to(out) for s in self.spectrum(points))
        gain = (abar * power / u + 1 - abar) / (abar * power + 1 - abar)
        out = out.transpose(1, 2).flatten(1, 2)
        out = torch.einsum("dkm,bdm->bkd", U, gain * torch.einsum("dkm,bkd->bdm", U, out))
        return out.unflatten(1, (-1, u)).transpose(1, 2)

    def forward(self, z_n, n, schedule, predict, positions):
        """The prior's eps or v for z_n [B,K,d], n [B], positions [K]."""
        power, U = (s.to(z_n) for s in self.spectrum(positions))
        with torch.autocast(z_n.device.type, enabled=False):
            signal, noise = schedule.signal_noise(n, z_n)             # [B,1,1]
            gain = noise if predict == "eps" else signal * noise * (1 - power)
            gain = gain / (signal**2 * power + noise**2)              # [B,d,K]
            u = torch.einsum("dkm,bkd->bdm", U, z_n)                  # [B,d,K] in the eigenbasis of time
            return torch.einsum("dkm,bdm->bkd", U, gain * u)          # [B,K,d]


def sinusoid(position, dim, max_period=10000.0):
    """Encode real numbers, position [...] -> [...,dim]: diffusion steps, and times in frames, which are
    floats, so that a frame between two others or in a longer sequence needs no other network."""
    rate = torch.exp(-math.log(max_period) * torch.arange(dim // 2, dtype=torch.float32) / (dim // 2))
    angle = position[..., None].float() * rate.to(position.device)  # [...,dim/2]
    return torch.cat([angle.cos(), angle.sin()], -1)                # [...,dim]


class Attention(nn.Module):
    """Multi-head attention of x [B,M,w] to the keys and values [B,heads,L,w/heads] of L other tokens."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def split(self, u):
        return u.unflatten(-1, (self.heads, -1)).transpose(1, 2)          # [B,M,w] -> [B,heads,M,w/heads]

    def keys_values(self, context):
        return [self.split(u) for u in self.kv(context).chunk(2, -1)]     # [B,heads,L,w/heads] each

    def forward(self, x, keys, values, bias=None):
        bias = None if bias is None else bias.to(keys.dtype)              # under autocast they would differ
        u = F.scaled_dot_product_attention(self.split(self.q(x)), keys, values, bias)
        return self.out(u.transpose(1, 2).flatten(2))                     # [B,M,w]


class Block(nn.Module):
    """Self-attention, cross-attention to the EEG, MLP; each modulated by the diffusion step.

    adaLN-zero (Peebles and Xie 2023): shift and scale act after each LayerNorm, and a gate on each
    branch starts at zero, so that a fresh block is the identity; re-initialising all Linear layers would
    undo that. Each head of the cross-attention looks around a delay of its own, a learned Gaussian bump
    over EEG time minus frame time in frames, one tap of a haemodynamic response, beyond the 4 s by
    which the data are paired and which the paper leaves at that."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.self_attention, self.cross_attention = Attention(width, heads), Attention(width, heads)
        self.delay = nn.Parameter(torch.linspace(-5, 4, heads)[:, None, None])  # frames
        self.log_spread = nn.Parameter(torch.zeros(heads, 1, 1))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def condition(self, h, lag):
        """What the cross-attention needs of the EEG h [B,L,w]; lag [B,1,M,L] is EEG time - frame time."""
        bias = -0.5 * ((lag - self.delay) * torch.exp(-self.log_spread)) ** 2  # [B,heads,M,L]
        return *self.cross_attention.keys_values(h), bias

    def forward(self, x, c, condition):
        # x [B,M,w] tokens of noisy frames; c [B,w] diffusion step
        s1, b1, g1, s2, b2, g2, s3, b3, g3 = self.modulation(F.silu(c))[:, None].chunk(9, -1)  # [B,1,w] each
        u = self.norm(x) * (1 + s1) + b1                                       # [B,M,w]
        x = x + g1 * self.self_attention(u, *self.self_attention.keys_values(u))  # [B,M,w]
        u = self.norm(x) * (1 + s2) + b2                                       # [B,M,w]
        x = x + g2 * self.cross_attention(u, *condition)                       # [B,M,w]
        u = self.norm(x) * (1 + s3) + b3                                       # [B,M,w]
        return x + g3 * self.mlp(u)                                            # [B,M,w]


class DiT(nn.Module):
    """eps_theta(z^(n), n, h): the noise in a sequence of noisy latent frames (Section 3.2).

    The paper speaks of K x V = 912,820 vertex tokens, which no attention can hold; by its details one
    frame is one token (latent 1024 = width 1024). tokens_per_frame splits a frame into P tokens with
    a learned embedding each. EEG tokens carry the same encoding of time as the frames."""

    def __init__(self, latent_dim, eeg_dim, width, depth, heads, tokens_per_frame=1):
        super().__init__()
        if latent_dim % tokens_per_frame or width % heads or width % 2:
            raise ValueError(f"latent_dim {latent_dim} must be a multiple of tokens_per_frame {tokens_per_frame}, "
                             f"width {width} even and a multiple of heads {heads}")
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
        for layer in (self.modulation, self.head):  # a fresh network answers 0
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def time(self, positions, like):
        return sinusoid(positions.expand(len(like), -1), self.width).to(like.dtype)  # [B,K,w]

    def condition(self, h, positions, eeg_positions):
        """What depends on neither z_n nor n, one entry a block: the sampler computes it once, not 50 times."""
        lag = eeg_positions.expand(len(h), -1)[:, None] - positions.expand(len(h), -1)[..., None]  # [B,K,L]
        lag = lag.float().repeat_interleave(self.P, 1)[:, None]                      # [B,1,KP,L]
        h = self.embed_h(h) + self.time(eeg_positions, h)                            # [B,L,w]
        return [block.condition(h, lag) for block in self.blocks]

    def forward(self, z_n, n, h, positions=None, eeg_positions=None, condition=None):
        """z_n [B,K,d], n [B] or [1] from 0, h [B,L,d_e] -> [B,K,d]. positions [K] or [B,K] and eeg_positions
        [L] or [B,L] are times in frames, by default 0, 1, 2... L > K: EEG from before and after the frames."""
        K = z_n.shape[1]
        if positions is None:
            positions = torch.arange(K, device=z_n.device)
        if eeg_positions is None:
            eeg_positions = positions if h.shape[1] == K else torch.arange(h.shape[1], device=h.device)
        if condition is None:
            condition = self.condition(h, positions, eeg_positions)
        c = self.embed_n(sinusoid(n, self.width).to(z_n.dtype))                      # [B,w]
        u = self.embed_z(z_n.unflatten(-1, (self.P, -1))) + self.place               # [B,K,P,w]
        u = (u + self.time(positions, z_n)[:, :, None]).flatten(1, 2)                # [B,KP,w]
        for block, known in zip(self.blocks, condition):
            u = block(u, c, known)                                                   # [B,KP,w]
        scale, shift = self.modulation(F.silu(c))[:, None].chunk(2, -1)              # [B,1,w] each
        u = self.head(self.norm(u) * (1 + scale) + shift)                            # [B,KP,d/P]
        return u.unflatten(1, (K, self.P)).flatten(2)                                # [B,K,d]


class NeuroFrames(nn.Module):
    """EEG encoder and denoiser, what train.py trains and sample.py loads. predict: "eps", the noise (Eq. 3),
    or "v", see velocity. prior: add GaussianPrior's answer."""

    def __init__(self, channels, samples, latent_dim, eeg_encoder="conv", eeg_dim=512, width=1024, depth=6,
                 heads=8, tokens_per_frame=1, predict="eps", prior=False, encoder_settings=None):
        super().__init__()
        self.predict, self.schedule = predict, NoiseSchedule()
        encoder = {"conv": EEGEncoder, "bandpower": BandPowerEncoder}[eeg_encoder]
        self.encoder = encoder(channels, samples, eeg_dim, **(encoder_settings or {}))
        self.dit = DiT(latent_dim, eeg_dim, width, depth, heads, tokens_per_frame)
        self.prior = GaussianPrior(latent_dim) if prior else None

    def forward(self, z_n, n, h, positions=None, eeg_positions=None, condition=None):
        """z_n [B,K,d], n [B], encoded EEG h [B,L,d_e], positions [K] -> eps or v, [B,K,d]."""
        if positions is None:
            positions = torch.arange(z_n.shape[1])
        out = self.dit(z_n, n, h, positions.to(z_n.device), eeg_positions, condition)
        return out if self.prior is None else out + self.prior(z_n, n, self.schedule, self.predict, positions)

    def target(self, z, n, eps):
        """What `forward` is compared with in the loss (Eq. 3)."""
        return eps if self.predict == "eps" else self.schedule.velocity(z, n, eps)

    def eps_model(self, h, eeg_positions, K):
        """The function (z_n [S B,K u,d], n) -> eps that `sample` calls, with one n for all, for S samples of B
        windows of K frames with EEG h [B,u,L,d_e]. With u > 1, u - 1 points lie between two frames, and the
        EEG is cut at their times too. The network is asked about each set of points one TR apart, which is
        what it was trained on, and the prior puts the sets together."""
        B, u = h.shape[:2]
        frames, points = torch.arange(K, device=h.device), torch.arange(K * u) / u
        h, eeg_positions = h.flatten(0, 1), eeg_positions.repeat_interleave(u, 0)  # [Bu,L,d_e], [Bu,L]
        known = self.dit.condition(h, frames, eeg_positions)

        def eps(z_n, n):
            each = [[k.repeat(len(z_n) // B, 1, 1, 1) for k in block] for block in known]
            sets = z_n.unflatten(1, (K, u)).transpose(1, 2).flatten(0, 1)                # [SBu,K,d]
            out = self.dit(sets, n[:1], h, frames, eeg_positions, each).unflatten(0, (-1, u))  # [SB,u,K,d]
            if u > 1:
                out = self.prior.interleave(out, self.schedule.alpha_bar[n[0]], points)
            out = out.transpose(1, 2).flatten(1, 2)                                      # [SB,Ku,d]
            if self.prior is not None:
                out = out + self.prior(z_n, n[:1], self.schedule, self.predict, points)
            return out if self.predict == "eps" else self.schedule.eps_from_velocity(z_n, n[:1], out)
        return eps


# ---- 5. Sampler: DDPM, DDIM and InterRecon in one loop ---------------------------------

def range_null_projection(x0, y, mask):
    """x0 <- A^+ y + (I - A^+ A) x0: keep what was seen, and the guess for what was not. A = diag(mask), so
    A^+ = A and the sum is a choice: A x0 = y to the last bit. x0, y [B,K,d] with a mask over frames,
    bool [K,1] or [B,K,1]; or [K,V] with a mask over vertices, bool [K,V]."""
    return torch.where(mask, y, x0)


class Observation:
    """Frames that were seen whole, in part or not at all, as linear systems A z = y in their latents.

    This is what a linear decoder is for: x = D z + mean holds row by row, so vertices O seen of a frame
    say D_O z = x_O - mean_O. With the SVD D_O = U S Q^T, A = Q^T [r,d] and y = S^-1 U^T (x_O - mean_O):
    the pseudo-inverse of the decoder's observed rows, computed once. With more vertices than latents y is
    their least-squares fit; latents that O hardly shows, S < 1e-3 of the largest, are not in A. The fit
    is not exact, for D z is not all of x: the covariance R of y - A z is measured on training frames,
    and where R is large the model is believed more than y. Seen whole, A = I, y = E x and R = 0.

    rows    bool [P,V]: which vertices are seen; frame k of a stretch has row k mod P
    frames  [n,V] training frames in z-scores, from which R is measured; only used for partial rows"""

    def __init__(self, autoencoder, rows, frames=None):
        self.autoencoder, self.rows, d = autoencoder, rows, autoencoder.latent_dim
        eye = torch.eye(d, dtype=torch.float64)
        self.systems = {"whole": (eye, 0 * eye, None), "unseen": (eye[:0], eye[:0, :0], None)}  # kind: A, R, fit
        self.kinds = []  # of each row
        for row in rows:
            kind = "whole" if row.all() else "unseen" if not row.any() else row.cpu().numpy().tobytes()
            self.kinds.append(kind)
            if kind not in self.systems:
                self.systems[kind] = self.solve(row, frames)

    @torch.no_grad()
    def solve(self, row, frames):
        ae = self.autoencoder
        D_O = (ae.decode(torch.eye(ae.latent_dim, device=row.device)) - ae.decode(0 * ae.latent_scale))[:, row]  # [d,O]
        power, Q = torch.linalg.eigh((D_O @ D_O.T).cpu().double())          # S^2 [d], Q [d,d]
        Q, power = Q[:, power > 1e-6 * power[-1]], power[power > 1e-6 * power[-1]]
        fit = ((Q / power).to(D_O).T @ D_O, row)                            # S^-1 U^T [r,O]
        error = self.fit(frames, fit) - (ae.encode(frames) @ Q.to(D_O))     # [n,r]
        return Q.T, (error.T @ error).cpu().double() / len(error), fit

    def fit(self, x, fit):
        """y [n,r] of frames x [n,V]"""
        weight, row = fit
        return (x - self.autoencoder.decode(0 * self.autoencoder.latent_scale))[:, row] @ weight.T

    @torch.no_grad()
    def latents(self, x, kind):
        """A^T y [n,d] of frames x [n,V], all seen through the same row."""
        A, _, fit = self.systems[kind]
        return self.autoencoder.encode(x) if fit is None else self.fit(x, fit) @ A.to(x)

    def projection(self, kinds, prior=None, positions=None):
        """The function (z0 [B,K,d], A^T y [B,K,d], abar) -> z0 that agrees with what was seen.

        z0 + G (y - A z0) with the gain G = W A^T (A W A^T + R)^-1. Without a prior W = I, each frame on its
        own: where R = 0, G = A^+, and this is the range-null projection. With one W = Cov[z | z^(n)], and
        frames not seen follow those on which they depend: for a Gaussian process z0 is E[z | z^(n), y]."""
        A, R = zip(*(self.systems[kind][:2] for kind in kinds))
        if prior is None:
            P = torch.stack([a.T @ torch.linalg.inv(torch.eye(len(r)) + r) @ a for a, r in zip(A, R)])  # [K,d,d]
            return lambda z0, y, abar: z0 + torch.einsum("kde,bke->bkd", P.to(z0), y - z0)
        gains, m = {}, torch.tensor([kind == "whole" for kind in kinds]).double()

        def gain(abar):
            W = prior.conditional_covariance(abar, positions)                     # [d,K,K]
            if set(kinds) <= {"whole", "unseen"}:  # then the latents are independent
                seen = m[:, None] * W * m + torch.diag(1 - m) + 1e-6 * W[:, :1, :1] * torch.diag(m)  # A W A^T
                return (W * m) @ torch.linalg.inv(seen) * m                       # [d,K,K]
            WA = torch.cat([W[:, :, j].T[..., None] * a.T for j, a in enumerate(A)], -1)  # [K,d,M]
            seen = torch.cat([a @ u for a, u in zip(A, WA)]) + torch.block_diag(*R)       # [M,M]
            return WA.flatten(0, 1) @ torch.linalg.inv(seen + 1e-6 * torch.eye(len(seen)))  # [Kd,M]

        def project(z0, y, abar):
            G = gains.setdefault(abar, None)
            if G is None:
                G = gains[abar] = gain(abar).to(z0)
            if G.ndim == 3:
                return z0 + torch.einsum("dkj,bjd->bkd", G, y - z0)
            error = torch.cat([u @ a.T.to(z0) for u, a in zip((y - z0).unbind(1), A)], -1)  # [B,M]
            return z0 + (error @ G.T).view_as(z0)                                 # [B,K,d]
        return project


@torch.no_grad()
def sample(eps_model, shape, schedule, steps=50, eta=0.0, y=None, mask=None, reuse_eps=True, generator=None,
           project=None, antithetic=False, dtype=None, device=None):
    """Algorithm 1: from noise to latent frames z [B,K,d] in `steps` network calls.

    eps_model   (z_n [B,K,d], n LongTensor [B] counting from 0) -> eps [B,K,d]
    eta         0: DDIM (Song et al. 2021). 1: DDPM; with steps = N, Algorithm 1.
    y, mask     frames seen, y [B,K,d] in latents, mask bool [K] or [B,K]: InterRecon. Else direct.
    reuse_eps   keep the network's eps after the projection (as DDNM; Wang et al. 2023), or recompute it from
                z^(n) and z0, as Algorithm 1 does without saying so: a hundred times the squared bias.
    project     (z0, abar) -> z0 in place of y and mask: what Observation's projection gives. With a
                prior, recompute eps: no bias where the prior is right. (test_neuroframes.py measures it.)
    antithetic  items i and i + B/2 get opposite noise. Each is as good a sample as any, but what is
                odd in the noise cancels from a pair's mean (Hammersley and Morton 1956).
    dtype, device   default to those of y, else to torch's dtype and the generator's device.

    The printed Algorithm 1 has lost the bars of its alphas and diverges. The mean of q(z^(n-1) | z^(n), z0)
    has coefficients sqrt(abar_{n-1}) beta_n / (1 - abar_n) and sqrt(alpha_n) (1 - abar_{n-1}) / (1 - abar_n).
    The update is that mean, written with eps. For skipped steps n > n', abar_n / abar_n' takes the place of
    alpha_n: beta_n is the noise of one step only.
    """
    if antithetic and shape[0] % 2:
        raise ValueError(f"antithetic sampling pairs items: the batch must be even, got {shape[0]}")
    if y is not None:
        dtype, device = dtype or y.dtype, device or y.device
        project = lambda z0, abar: range_null_projection(z0, y, mask[..., None])  # noqa: E731
    draw_on = generator.device if generator is not None else device
    device = device or draw_on

    def draw():
        half = (shape[0] // 2, *shape[1:]) if antithetic else shape
        noise = torch.randn(half, generator=generator, device=draw_on, dtype=dtype).to(device)
        return torch.cat([noise, -noise]) if antithetic else noise

    visited = torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    z = draw()  # z^(N), [B,K,d]
    for i, n in enumerate(visited):
        abar = schedule.alpha_bar[n].item()
        abar_next = schedule.alpha_bar[visited[i + 1]].item() if i + 1 < len(visited) else 1.0
        eps = eps_model(z, torch.full((shape[0],), n, device=z.device))   # [B,K,d]
        z0 = (z - math.sqrt(1 - abar) * eps) / math.sqrt(abar)            # [B,K,d] clean frames, estimated
        if project is not None:
            z0 = project(z0, abar)                                        # [B,K,d] now A z0 = y
            if not reuse_eps:
                eps = (z - math.sqrt(abar) * z0) / math.sqrt(1 - abar)    # [B,K,d] Eq. 2 solved for eps
        # Zero at the last step, where abar' = 1: no noise is left in what is returned.
        sigma = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
        z = math.sqrt(abar_next) * z0 + math.sqrt(max(1 - abar_next - sigma**2, 0.0)) * eps  # [B,K,d]
        if sigma > 0:
            z = z + sigma * draw()                                        # [B,K,d]
    return z
