"""The method: fMRI frames from EEG by latent diffusion, completed by null-space sampling.

All of "Modeling Spatiotemporal Neural Frames for High Resolution Brain Dynamics" (CVPR 2026,
arXiv 2603.24176), in the order in which data flows through it. It needs torch and nothing else: no
files, no arguments, no printing. What we added to the paper stands in beyond/, one file per idea.
Here it left traces only: arguments that the paper does without (`encoder`, `positions`,
`eeg_positions`, `keys_values`, `tokens_per_frame`, the `abar` of `project`, `steps` as a tensor),
and `reuse_eps`, which is True by default and in the paper False.

    1  EEG encoder         eeg [B,L,C,W] -> h [B,L,d_e]               Section 3.3
    2  linear autoencoder  x [B,K,V] <-> z [B,K,d]                    Section 3.3
    3  noise schedule      z -> z_n                                   Eq. 1 and 2
    4  denoiser            (z_n, n, h) -> the noise in z_n            Section 3.2, Eq. 3
    5  sampler             noise -> z, held to what was observed      Algorithm 1

A *frame* is one picture of the brain, V numbers, taken every TR seconds (repetition time); a
*window* is K frames in a row, with the EEG that belongs to them. *Direct* reconstruction is from
EEG alone; in *InterRecon* some of a window's frames, the anchors, were observed, others missing.
A *token* is a vector that attention sees: an EEG token is the EEG of one frame's time, encoded; a
frame token is one frame's noisy latents. BOLD, what fMRI measures, follows the EEG by seconds, so
frames come here with the EEG of some seconds before (data.eeg_windows); what is left of the delay
is for cross-attention to find.

Notation, in all files (all else has a word for a name):

    B  windows at a time         C    EEG channels
    K  frames in a window        W    EEG samples in a frame's time (TR x sampling rate)
    V  vertices in a frame       L    EEG tokens that a window sees: K, or more around it
    d  latents of a frame        d_e  numbers in an EEG token
    T  frames in all             S    samples drawn of the same frames

    x           frames in z-scores: each vertex has mean 0 and variance 1 over training frames
    z, z_n      their latents; the latents with the noise of step n
    z0          an estimate of z, made from z_n
    eps         the noise in z_n: standard normal numbers
    n           diffusion step, one of N = 1,000. Here it counts from 0, in the paper from 1
    abar        alpha_bar[n], the share of z's variance that is left in z_n
    y, A        what was observed, y = A z, for whole frames. A^+ is A's pseudo-inverse
    E, D        principal axes, one in a row; and the map z -> x, which is E^T diag(latent_scale)
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

# ---- 1. EEG encoder --------------------------------------------------------------------


class EEGEncoder(nn.Module):
    """h = f_phi(s): temporal convolutions, [B,L,C,W] -> [B,L,dim], each frame's EEG on its own.

    Blocks of convolution with stride 2, batch norm and GELU; a mean over time; a two-layer MLP
    (Section 3.3). The paper gives no sizes. Ours: kernels of 7 samples; as many blocks as leave
    about 16 samples, each halving them; 64 channels, doubled by each block, to at most 512.
    """

    def __init__(self, channels, samples, dim):
        super().__init__()
        depth = max(2, round(math.log2(samples / 16)))
        widths = [channels] + [min(512, 64 * 2**i) for i in range(depth)]
        self.blocks = nn.Sequential()
        for c_in, c_out in zip(widths[:-1], widths[1:]):
            conv = nn.Conv1d(c_in, c_out, 7, stride=2, padding=3, bias=False)
            self.blocks.append(nn.Sequential(conv, nn.BatchNorm1d(c_out), nn.GELU()))
        self.mlp = nn.Sequential(nn.Linear(widths[-1], dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, eeg):
        B, L, C, W = eeg.shape
        u = self.blocks(eeg.reshape(B * L, C, W))  # [BL,widths[-1],W / 2^depth]
        u = u.mean(-1)  # [BL,widths[-1]] global average pool
        return self.mlp(u).view(B, L, -1)  # [B,L,dim]


# ---- 2. Linear autoencoder -------------------------------------------------------------


class LinearAutoencoder(nn.Module):
    """Frames of V vertices <-> d latents, by one linear map each way (Section 3.3).

        z = E (x - mean) / latent_scale          x = D z + mean,   D = E^T diag(latent_scale)

    Why linear? To complete whole frames, as here, it need not be: any encoder that works frame by
    frame gives the latents of an observed frame. Linear is the paper's choice, and gives two things
    more: an observed vertex is one linear equation in z, so that parts of frames can be observed
    too (beyond/any_vertices); and the mean of decoded samples is the decoded mean.

    Why PCA? The paper trains the maps by reconstruction error, and the best that linear maps can
    reach is the subspace of the leading principal components (Eckart and Young 1936; Baldi and
    Hornik 1989). So `fit` computes it. Of all bases of that subspace it takes the components
    themselves, E's rows, since along them latents are uncorrelated.

    Why unit variance? The noise schedule assumes it: if z has variance 1, z_n has variance
    abar + (1 - abar) = 1 at every step n, and ends as the pure noise that sampling begins with. So
    each latent is divided by its standard deviation (whitening), and the weakest counts in the loss
    as much as the strongest (beyond/vertex_loss).
    """

    def __init__(self, vertices, latent_dim):
        super().__init__()
        self.register_buffer("E", torch.zeros(latent_dim, vertices))  # [d,V]
        self.register_buffer("mean", torch.zeros(vertices))  # [V] of what it was fitted to, near 0
        self.register_buffer("latent_scale", torch.ones(latent_dim))  # [d] std of E (x - mean)

    @property
    def latent_dim(self):
        return len(self.E)

    def encode(self, x):  # [...,V] in z-scores
        return (x - self.mean) @ self.E.T / self.latent_scale  # [...,d]

    def decode(self, z):  # [...,d]
        return (z * self.latent_scale) @ self.E + self.mean  # [...,V] in z-scores

    @torch.no_grad()
    def fit(self, frames):
        """The closed-form optimum for frames [T,V]; returns the share of their variance kept.

        With the singular value decomposition x = U diag(s) Q^T (Q, for V is the vertices), E is the
        first d rows of Q^T. The smaller of two Gram matrices tells them: x x^T [T,T] has the
        eigenvectors U, from which Q^T = diag(1 / s) U^T x; x^T x [V,V] has Q. Both have the
        eigenvalues s^2. If the frames' rank is below d, there are as many latents as their rank.
        Raises ValueError if frames are not [T >= 2, V].
        """
        T, V = frames.shape
        if len(self.mean) != V or T < 2:
            raise ValueError(f"frames must be [T >= 2, {len(self.mean)}], got {[T, V]}")
        mean = frames.mean(0)  # [V]
        x = frames - mean  # [T,V]
        few = T <= V  # frames
        gram = x @ x.T if few else x.T @ x  # [T,T] or [V,V]
        power, basis = torch.linalg.eigh(gram.cpu().double())  # ascending: s^2, and U or Q

        rank = int((power > 1e-6 * power[-1]).sum())  # a float32 gram is good to 1e-7
        d = min(self.latent_dim, rank)
        singular = power[-d:].flip(0).sqrt()  # [d] the largest s
        basis = basis[:, -d:].flip(1)  # [T,d] or [V,d]
        E = basis.T.to(x)  # U^T [d,T], or Q^T [d,V]
        if few:
            E = (basis / singular).T.to(x) @ x  # diag(1 / s) U^T x = Q^T [d,V]
        self.set_axes(E, mean, singular / math.sqrt(T))
        return float(power[-d:].sum() / power.sum())

    def set_axes(self, E, mean, latent_scale):
        """Take these, in place of what is there: d may become smaller."""
        self.E = E.to(self.mean)
        self.latent_scale = latent_scale.to(self.mean)
        self.mean = mean.to(self.mean)


# ---- 3. Noise schedule -----------------------------------------------------------------


class NoiseSchedule:
    """How much noise there is at each of N steps. Tables are in float64, for a product of a
    thousand factors loses digits in float32; and on the CPU, for not every device has float64.

    beta[n]       variance of the noise that step n adds, linear in n (Eq. 1)
    alpha_bar[n]  product of 1 - beta up to n: from nearly 1, clean, to nearly 0, noise (Eq. 2)
    """

    def __init__(self, steps=1000, beta_start=1e-4, beta_end=0.02):
        self.steps = steps
        self.beta = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - self.beta, 0)

    def signal_noise(self, n, like):
        """sqrt(abar) and sqrt(1 - abar) for n [B], shaped to multiply `like` [B,...]."""
        shape = (-1,) + (1,) * (like.ndim - 1)
        tables = [self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()]  # [N] each
        # They are so small that they reach a GPU without the CPU waiting for it.
        tables = [u.to(like.dtype).to(like.device, non_blocking=like.is_cuda) for u in tables]
        signal, noise = (table[n].view(shape) for table in tables)  # [B,1,...] each
        return signal, noise

    def add_noise(self, z, n, eps):
        """Eq. 2: z_n = sqrt(abar) z + sqrt(1 - abar) eps."""
        signal, noise = self.signal_noise(n, z)
        return signal * z + noise * eps


# ---- 4. Denoiser: a diffusion transformer (DiT) ----------------------------------------


def sinusoid(position, dim, max_period=10000.0):
    """Encode real numbers, position [...] -> [...,dim]: diffusion steps, and times in frames.

    Times are real numbers: one network serves windows of any length, and points between frames.
    """
    rate = max_period ** (-torch.arange(dim // 2, device=position.device) / (dim // 2))  # [dim/2]
    angle = position[..., None].float() * rate  # [...,dim/2]
    return torch.cat([angle.cos(), angle.sin()], -1)  # [...,dim]


class Attention(nn.Module):
    """Multi-head attention of M queries x [B,M,width] to the keys and values of L tokens. These are
    computed apart: those of the EEG are the same at every step of a sampler."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, tokens):  # [B,L,width]
        kv = self.kv(tokens).unflatten(-1, (2, self.heads, -1))  # [B,L,2,heads,width/heads]
        return kv.permute(2, 0, 3, 1, 4)  # [2,B,heads,L,width/heads]

    def forward(self, x, keys_values):
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B,heads,M,width/heads]
        keys, values = keys_values  # [B,heads,L,width/heads] each
        u = F.scaled_dot_product_attention(q, keys, values)  # [B,heads,M,width/heads]
        return self.out(u.transpose(1, 2).flatten(2))  # [B,M,width]


def modulate(x, scale, shift):
    return torch.addcmul(shift, x, 1 + scale)  # x (1 + scale) + shift, in one pass


def add_gated(x, gate, change):
    return torch.addcmul(x, gate, change)  # x + gate * change, in one pass


class Block(nn.Module):
    """Self-attention among the frames, cross-attention to the EEG, MLP (Figure 2a).

    Each is modulated by the diffusion step, as in DiT (Peebles and Xie 2023): n sets a scale and a
    shift after each layer norm, and a gate. All of these are 0 at first, so that a fresh block is
    the identity, from which deep networks train more easily ("adaLN-zero").
    """

    def __init__(self, width, heads):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # no weights: serves all three
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Linear(width, 9 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, n_code, eeg_keys_values):
        """x [B,M,width] tokens of noisy frames, n_code [B,width] what encodes n -> [B,M,width]."""
        modulation = self.modulation(n_code)[:, None]  # [B,1,9 width]
        for_self, for_cross, for_mlp = modulation.chunk(3, -1)  # [B,1,3 width] each

        scale, shift, gate = for_self.chunk(3, -1)  # [B,1,width] each
        u = modulate(self.norm(x), scale, shift)  # [B,M,width]
        u = self.self_attention(u, self.self_attention.keys_values(u))  # [B,M,width]
        x = add_gated(x, gate, u)  # [B,M,width]

        scale, shift, gate = for_cross.chunk(3, -1)
        u = modulate(self.norm(x), scale, shift)  # [B,M,width]
        u = self.cross_attention(u, eeg_keys_values)  # [B,M,width]
        x = add_gated(x, gate, u)  # [B,M,width]

        scale, shift, gate = for_mlp.chunk(3, -1)
        u = modulate(self.norm(x), scale, shift)  # [B,M,width]
        return add_gated(x, gate, self.mlp(u))  # [B,M,width]


class DiT(nn.Module):
    """eps_theta(z_n, n, h): the noise in a sequence of noisy latent frames (Section 3.2).

    What is a frame's token? The paper speaks of one for each vertex of each frame, 912,820 of them,
    over which no attention is possible; its sizes (latents and width both 1024) fit one token per
    frame. So one it is. tokens_per_frame splits a frame's latents among several, each with a
    learned embedding of its place. Self-attention runs over the tokens of all frames of a window,
    M = K tokens_per_frame.
    """

    def __init__(self, latent_dim, eeg_dim, width, depth, heads, tokens_per_frame=1):
        super().__init__()
        if latent_dim % tokens_per_frame or width % heads or width % 2:
            raise ValueError(
                f"tokens_per_frame {tokens_per_frame} must divide latent_dim {latent_dim}, "
                f"and 2 and heads {heads} must divide width {width}"
            )
        self.width, self.tokens_per_frame = width, tokens_per_frame
        latents_per_token = latent_dim // tokens_per_frame
        self.embed_z = nn.Linear(latents_per_token, width)
        self.embed_h = nn.Sequential(nn.Linear(eeg_dim, width), nn.LayerNorm(width))
        self.embed_n = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(tokens_per_frame, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, latents_per_token)
        for p in (*self.modulation.parameters(), *self.head.parameters()):
            nn.init.zeros_(p)  # a fresh network answers 0

    def time(self, positions, like):
        """Encode times in frames, [K] or [B,K] -> [B,K,width], in the dtype of `like` [B,...]."""
        return sinusoid(positions.expand(len(like), -1), self.width).to(like.dtype)

    def keys_values(self, h, eeg_positions):
        """What each block's cross-attention attends to. It depends on h [B,L,d_e] only, neither on
        z_n nor on n, so that a sampler can compute it once. For each block [2,B,heads,L,...]."""
        tokens = self.embed_h(h)  # [B,L,width]
        tokens = tokens + self.time(eeg_positions, tokens)  # [B,L,width]
        return [block.cross_attention.keys_values(tokens) for block in self.blocks]

    def forward(self, z_n, n, h, positions=None, eeg_positions=None, keys_values=None):
        """z_n [B,K,d], n [B] counting from 0 (or [1]: one for all), h [B,L,d_e] -> eps_hat [B,K,d].

        positions [K] or [B,K]: times of the frames, in frames; by default 0, 1, 2 ... (others only
        in beyond/between_frames)
        eeg_positions [L] or [B,L]: times of the EEG tokens; by default those of the frames
        keys_values: what self.keys_values gave, in place of h, if it was computed before
        """
        if positions is None:
            positions = torch.arange(z_n.shape[1], device=z_n.device)  # [K]
        if keys_values is None:
            times = positions if eeg_positions is None else eeg_positions
            keys_values = self.keys_values(h, times)
        n_code = F.silu(self.embed_n(sinusoid(n, self.width).to(self.place)))  # [B,width]

        u = z_n.unflatten(-1, (self.tokens_per_frame, -1))  # [B,K,tokens,d/tokens]
        u = self.embed_z(u) + self.place  # [B,K,tokens,width]
        u = u + self.time(positions, z_n)[:, :, None]  # [B,K,tokens,width]
        u = u.flatten(1, 2)  # [B,K tokens,width]

        for block, eeg_keys_values in zip(self.blocks, keys_values):
            u = block(u, n_code, eeg_keys_values)  # [B,K tokens,width]

        scale, shift = self.modulation(n_code)[:, None].chunk(2, -1)  # [B,1,width] each
        u = self.head(modulate(self.norm(u), scale, shift))  # [B,K tokens,d/tokens]
        return u.unflatten(1, (-1, self.tokens_per_frame)).flatten(2)  # [B,K,d]


class NeuroFrames(nn.Module):
    """The two networks that are trained together, and their loss.

    The encoder is called by itself, h = model.encoder(eeg): a sampler needs it once, the denoiser
    at every step.
    """

    def __init__(
        self,
        channels,
        samples,
        latent_dim,
        eeg_dim=512,
        width=1024,
        depth=6,
        heads=8,
        tokens_per_frame=1,
        encoder=EEGEncoder,
    ):
        super().__init__()
        self.schedule = NoiseSchedule()
        self.encoder = encoder(channels, samples, eeg_dim)  # [B,L,C,W] -> [B,L,d_e]
        self.dit = DiT(latent_dim, eeg_dim, width, depth, heads, tokens_per_frame)

    def forward(self, z_n, n, h, eeg_positions=None, keys_values=None):
        """eps_theta(z_n, n, h), [B,K,d]; see DiT.forward."""
        return self.dit(z_n, n, h, eeg_positions=eeg_positions, keys_values=keys_values)

    def squared_error(self, z, n, eps, h, eeg_positions=None):
        """Eq. 3 before its mean is taken: (eps - eps_theta(z_n, n, h))^2, [B,K,d]."""
        z_n = self.schedule.add_noise(z, n, eps)  # [B,K,d]
        eps_hat = self(z_n, n, h, eeg_positions)  # [B,K,d]
        return (eps_hat - eps).square()


# ---- 5. Sampler: DDPM, DDIM and InterRecon in one loop ---------------------------------


def range_null_projection(z0, y, mask):
    """z0 <- A^+ y + (I - A^+ A) z0: A's range from what was observed, its null space from z0.

    A = diag(mask) keeps what was observed (bool, of a shape that broadcasts with z0 and y), and is
    its own pseudo-inverse. So the sum takes each number from y or from z0 as it is, and A z0 = y
    holds to the last bit. The rest of y is not looked at.
    """
    return torch.where(mask, y, z0)


@torch.no_grad()
def denoise(eps_model, project, draw, shape, schedule, steps=50, eta=0.0, reuse_eps=True):
    """Algorithm 1, given three functions: from noise to latent frames z [B,K,d], in `steps` steps.

    eps_model  (z_n [B,K,d], n LongTensor [B] counting from 0) -> the noise in z_n [B,K,d]
    project    (z0 [B,K,d], abar) -> z0, moved to what was observed, or None: nothing was. (abar
               says how far z0 can be trusted, which only projections of beyond/ ask)
    draw       shape -> standard normal noise of that shape
    steps      how many, even in n; or which, a LongTensor of n (beyond/second_order)
    eta        how much fresh noise a step adds. 0, none: DDIM (Song et al. 2021); 1: DDPM
    reuse_eps  which eps goes on with a z0 that was moved: the network's (True), or one computed
               from it (False, the paper)? See below

    How do observed frames help the others? At each step they are put in their place in z0, so that
    the next z_n has the truth there; and the network, which attends from every frame to all others,
    sees it when it next answers for those.

    Which eps? Where a frame is missing, z0 was not moved, and both are the same. Where it was
    observed, the network's belongs to the z0 before: z_n = sqrt(abar) z0 + sqrt(1 - abar) eps.

    False, the paper: solve the same equation again for the z0 after it. (Algorithm 1 does so, and
    does not say it.) That gives eps + sqrt(abar / (1 - abar)) (z0 before - y): a share of the old,
    wrong z0 is in the next z_n.

    True, DDNM (Wang et al. 2023): keep the network's. Nothing of the old z0 is left, so that z_n
    comes close to y sooner, while the missing frames are still being decided.

    In a Gaussian process of variance 1, whose exact answer is known, the mean of the missing frames
    has a squared bias of 0.15 with False, of 0.0016 with True (eta 0; test_neuroframes.py). With N
    steps, eta 1 and False this loop is Algorithm 1.
    """
    visited = steps
    if not torch.is_tensor(steps):
        visited = torch.linspace(schedule.steps - 1, 0, steps, dtype=torch.float64).round().long()
    abars = schedule.alpha_bar[visited].tolist() + [1.0]  # after the last step no noise is left
    z_n = draw(shape)  # [B,K,d] at the first n: noise
    for n, abar, abar_next in zip(visited.tolist(), abars[:-1], abars[1:]):
        # Eq. 2 solved for z: what is left when all that the network calls noise is taken out.
        eps = eps_model(z_n, torch.full((shape[0],), n, device=z_n.device))  # [B,K,d]
        z0 = (z_n - math.sqrt(1 - abar) * eps) / math.sqrt(abar)  # [B,K,d]

        # What was observed takes its place. Eq. 2 solved for eps: the noise that fits this z0.
        if project is not None:
            z0 = project(z0, abar)  # [B,K,d]
            if not reuse_eps:
                eps = (z_n - math.sqrt(abar) * z0) / math.sqrt(1 - abar)  # [B,K,d]

        # DDIM's step to the next noise level, with z0, the old noise, and fresh noise:
        #     z_next = sqrt(abar_next) z0 + sqrt(1 - abar_next - sigma^2) eps + sigma fresh
        # The three shares make variance 1 again. sigma is such that eta = 1, with an eps that
        # belongs to this z0, gives DDPM's posterior q(z_next | z_n, z0), also where steps are
        # skipped: abar / abar_next is the alpha of all that lie between. After the last step
        # abar_next = 1, so that sigma = 0 and z_next = z0: observed frames end as they were.
        sigma = eta * math.sqrt((1 - abar_next) / (1 - abar) * (1 - abar / abar_next))
        eps_share = math.sqrt(max(1 - abar_next - sigma**2, 0.0))  # not below 0 by rounding
        z_n = math.sqrt(abar_next) * z0 + eps_share * eps  # [B,K,d]
        if sigma > 0:
            z_n = z_n + sigma * draw(shape)  # [B,K,d]
    return z_n


def sample(
    eps_model,
    shape,
    schedule,
    steps=50,
    eta=0.0,
    y=None,
    mask=None,
    reuse_eps=True,
    generator=None,
):
    """`denoise` with the paper's projection and torch's noise: latent frames z of `shape` [B,K,d].

    y, mask    InterRecon: latents y [B,K,d], of which the frames where mask, bool [K] or [B,K], is
               True were observed. Without mask nothing was: the frames come from the EEG alone
    reuse_eps  the better of two by default; the paper's is False. See `denoise`
    generator  of the noise; its device draws it, so that a seed means the same on any device
    Returns z in the dtype and on the device of y; without y, in float32 where the noise is drawn.
    """
    # Where noise is drawn, and what z is like (dtype, device).
    origin = None if generator is None else generator.device
    like = torch.empty(0, device=origin) if y is None else y

    def draw(shape):
        noise = torch.randn(
            shape, generator=generator, device=origin or like.device, dtype=like.dtype
        )
        return noise.to(like.device)

    def project(z0, abar):
        return range_null_projection(z0, y, mask[..., None])  # A = diag(mask) over the frames

    held = None if mask is None else project
    return denoise(eps_model, held, draw, shape, schedule, steps, eta, reuse_eps)
