"""The rivals: four networks that the paper compares with, and ridge regression on band power.

    python benchmarks/baselines.py ridge --data out/synthetic
    python benchmarks/baselines.py e2fnet --data subjects/rest --no-validation

Each sees the EEG its own way and answers for one frame at a time; loader, splits, z-scores and scores are the project's.
Writes OUT/NAME/: recon.npy [T_test,V] in z-scores, frames.npy, chosen.json. What is chosen (penalty or epochs) is chosen
by MSE on the validation run; with --no-validation the rival is then fitted anew on all training runs for as long, as
train.py's flag of the same name does for NeuroFrames. A killed run goes on where it stopped.

The networks never had public code for 91,282 grayordinates. Their docstrings say what is original and what we adapted.
A sixth rival is a class with `fit` and `predict` (see Ridge), or a network with `see` and `forward` (see CNNTC), and
its line in RIVALS.
"""
import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data  # noqa: E402
from sample import METRICS, Scores  # noqa: E402
from tools import machine  # noqa: E402
from tools.errors import fail, script  # noqa: E402
from tools.files import Columns, save  # noqa: E402

# ---- What a rival sees of the EEG ------------------------------------------------------

def neighbours(segments, lags):
    """Frames t [n] of the segments and EEG windows t + lags [n,L]; past a segment's border its last one is repeated."""
    t = np.concatenate([np.arange(a, b) for a, b in segments])
    low, high = (np.repeat([s[i] for s in segments], [b - a for a, b in segments])[:, None] for i in (0, 1))
    return t, np.clip(t[:, None] + np.array(lags), low, high - 1)

def before(subject, count):
    """Lags of the `count` EEG windows that end when the frame is scanned. eeg[t] is already a delay older than frame t."""
    late = round(subject.meta.get("delay_in_files", subject.meta["delay"]) / subject.tr)
    return range(late - count + 1, late + 1)

def spectra(subject, normaliser, path, bins, highest, block=100):
    """|Fourier transform| of every frame's EEG window, [T,C,bins], at evenly spaced frequencies up to `highest` Hz (or half
    the sampling rate), without 0. Computed once, on disk: a network asks for each window many times."""
    T, C, W = subject.eeg.shape
    highest = min(highest, W / subject.tr / 2)
    angle = 2 * math.pi * highest * subject.tr / W * torch.arange(1, bins + 1) / bins * torch.arange(W)[:, None]  # [W,bins]
    cos, sin = angle.cos(), angle.sin()
    found = np.lib.format.open_memmap(path, "w+", np.float32, (T, C, bins))
    for i in tqdm(range(0, T, block), desc="spectra", unit="block"):
        s = torch.from_numpy(normaliser.eeg(subject.eeg[i: i + block]))             # [t,C,W]
        found[i: i + block] = torch.hypot((s - s.mean(-1, keepdim=True)) @ cos, s @ sin).numpy()
    return found

def standardised(features, segments):
    """(features - mean) / std, by channel and frequency over the frames of `segments`; in place."""
    t = np.concatenate([np.arange(a, b) for a, b in segments])
    mean, std = features[t].mean(0), features[t].std(0) + 1e-9
    for i in range(0, len(features), 1000):
        features[i: i + 1000] = (features[i: i + 1000] - mean) / std
    return features

def band_power(subject, normaliser, bands=15, highest=50.0, block=200):
    """Log power [T, C * bands] of every frame's EEG window, under a Hann taper."""
    W = subject.eeg.shape[2]
    top = min(highest * subject.tr, W // 2)  # cycles a window
    edges = np.unique(np.linspace(1, top + 1, bands + 1).round().astype(int))
    features = []
    for i in range(0, len(subject.eeg), block):
        spectrum = np.abs(np.fft.rfft(normaliser.eeg(subject.eeg[i: i + block]) * np.hanning(W))) ** 2
        power = np.stack([spectrum[..., a:b].mean(-1) for a, b in zip(edges[:-1], edges[1:])], -1)
        features.append(np.log(power + 1e-12).reshape(len(power), -1))
    return np.concatenate(features)

# ---- The classical one -----------------------------------------------------------------

class Ridge:
    """Ridge regression from log band power of every channel at lags -5 to 5 frames: the classical EEG-to-BOLD model, hard to
    beat on little data. Solved in the features or in the frames, whichever are fewer, once for all penalties."""
    penalties = [1e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6]

    def __init__(self, subject, normaliser, fitted, folder, a):
        self.subject, self.normaliser = subject, normaliser
        self.X = band_power(subject, normaliser)

    def features(self, segments):
        t, index = neighbours(segments, range(-5, 6))
        return t, self.X[index].reshape(len(t), -1)                                       # [n,11F]

    def fit(self, train, val, penalty=None):
        """{"penalty", "mse"}: the best penalty on `val`, and its MSE there."""
        self.t, X = self.features(train)
        self.mean, self.std = X.mean(0), X.std(0) + 1e-9
        X = (X - self.mean) / self.std
        if len(X) < X.shape[1]:
            self.power, U = np.linalg.eigh(X @ X.T)
            self.left, self.right = X.T @ U, U.T                                          # [F,r], [r,n]
        else:
            self.power, U = np.linalg.eigh(X.T @ X)
            self.left, self.right = U, (X @ U).T
        self.penalty = penalty
        if penalty is None:
            t, _ = self.features(val)
            error, valid = np.zeros(len(self.penalties)), self.normaliser.valid
            for span, guesses in self.solve(val, self.penalties):
                x = Columns(self.subject, self.normaliser, t)[:, span][:, valid[span]]
                error += [((g[:, valid[span]] - x) ** 2).sum() for g in guesses]
            self.penalty = self.penalties[error.argmin()]
            print("ridge, validation MSE by penalty: " + ", ".join(
                f"{p:g} {e / len(t) / valid.sum():.4f}" for p, e in zip(self.penalties, error)))
            return {"penalty": self.penalty, "mse": error.min() / len(t) / valid.sum()}
        return {"penalty": penalty}

    def solve(self, segments, penalties, block=8192):
        """(vertices, predictions [penalties][n,v]), a block of vertices at a time."""
        _, X = self.features(segments)
        left, V = (X - self.mean) / self.std @ self.left, self.subject.fmri.shape[1]      # [n,r]
        for i in range(0, V, block):
            span = slice(i, min(i + block, V))
            Y = Columns(self.subject, self.normaliser, self.t)[:, span].astype(float)
            right = self.right @ (Y - Y.mean(0))                                          # [r,v]
            yield span, [left @ (right / (self.power[:, None] + p)) + Y.mean(0) for p in penalties]

    def predict(self, segments, out):
        for span, (guess,) in self.solve(segments, [self.penalty]):
            out[:, span] = guess

# ---- Networks: one loop for all, then the four -----------------------------------------

class Network(nn.Module):
    """A rival that is trained by steps. A subclass says what it sees (`see`: EEG features [T,C,F] and lags), how it maps
    s [B,L,C,F] to frames [B,V] (`forward`), its loss, batch, epochs and learning rate. Ours, for all four: the weights with the
    best MSE on validation are kept, and after `patience` epochs that were no better it ends. What is left of an epoch after
    the last full batch is left out: batch norm cannot do with one frame."""
    patience, clip, weight_decay = 3, None, 0.0

    def __init__(self, subject, normaliser, fitted, folder, a):
        super().__init__()
        torch.manual_seed(a.seed)
        self.subject, self.normaliser, self.folder, self.seed, self.device = subject, normaliser, folder, a.seed, a.device
        self.C, self.V = subject.eeg.shape[1], subject.fmri.shape[1]
        self.windows, self.lags = self.see(fitted)
        self.build(a)
        self.to(a.device)
        self.optimizers = self.make_optimizers()

    def make_optimizers(self):  # without weight decay AdamW is Adam
        return [torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)]

    def update(self, s, x):
        """One step on s [B,L,C,F] and x [B,V]."""
        self.optimizers[0].zero_grad()
        loss = self.loss(s, x)
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.parameters(), self.clip)
        self.optimizers[0].step()
        return loss.item()

    def batch(self, t, index):
        s = torch.from_numpy(np.asarray(self.windows[index]))                             # [B,L,C,F]
        return s.to(self.device), torch.from_numpy(self.normaliser.zscore(self.subject.fmri[t])).to(self.device)

    @torch.no_grad()
    def blocks(self, segments, size=64):
        """(position, predictions [B,V], truth [B,V]) of the segments, in order."""
        self.eval()
        t, index = neighbours(segments, self.lags)
        for i in range(0, len(t), size):
            s, x = self.batch(t[i: i + size], index[i: i + size])
            yield i, self(s), x

    def fit(self, train, val, epochs=None):
        """{"epochs", "mse"}: how many were best on `val`, up to four answers an epoch; or train for `epochs`, judge nothing."""
        t, index = neighbours(train, self.lags)
        valid, name = torch.from_numpy(self.normaliser.valid).to(self.device), type(self).__name__
        length = max(1, len(t) // self.batch_size)                                        # steps of an epoch
        every = math.ceil(length / min(4, max(1, length // 40)))                          # steps between two looks at val
        total = max(1, round((epochs or self.epochs) * length))
        path, step, saved = os.path.join(self.folder, "refit.pt" if epochs else "fit.pt"), 0, time.time()
        best, kept = {"epochs": 0.0, "mse": math.inf}, {}
        if os.path.exists(path):
            state = torch.load(path, map_location=self.device, weights_only=True)
            step, best, kept = state["step"], state["best"], state["kept"]
            self.load_state_dict(state["model"])
            for optimizer, found in zip(self.optimizers, state["optimizers"]):
                optimizer.load_state_dict(found)
        bar = tqdm(total=total, initial=step, unit="step", desc=name)
        while step < total and (epochs or step <= (best["epochs"] + self.patience) * length):
            epoch, place = divmod(step, length)
            order = torch.randperm(len(t), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)).numpy()
            self.train()
            losses = []
            for i in range(place, min(place + every, length, place + total - step)):
                k = np.sort(order[i * self.batch_size: (i + 1) * self.batch_size])
                losses.append(self.update(*self.batch(t[k], index[k])))
                bar.update()
            step += len(losses)
            if epochs is None:
                mse = torch.cat([(y - x)[:, valid].square().mean(1).cpu() for _, y, x in self.blocks(val)]).mean().item()
                tqdm.write(f"{name}: epoch {step / length:.2f}, loss {np.mean(losses):.4f}, validation MSE {mse:.4f}")
                if mse < best["mse"]:
                    best = {"epochs": step / length, "mse": mse}
                    kept = {key: value.cpu().clone() for key, value in self.state_dict().items()}
            if time.time() - saved > 60:
                save(path, {"step": step, "best": best, "kept": kept, "model": self.state_dict(),
                            "optimizers": [o.state_dict() for o in self.optimizers]})
                saved = time.time()
        bar.close()
        if epochs is None and not kept:
            fail(f"{name}: its validation MSE was never a number; look at the EEG, or lower lr in benchmarks/baselines.py")
        if kept:
            self.load_state_dict(kept)
        return best if epochs is None else {"epochs": epochs}

    def predict(self, segments, out):
        for i, guess, _ in self.blocks(segments):
            out[i: i + len(guess)] = guess.cpu().numpy()


class CNNTC(Network):
    """CNN-TC (Liu and Sajda 2019, as rebuilt by Calhas and Henriques 2022): EEG at one sample a TR -> dense 256 -> 1x1
    convolutions, 256 -> output; no activation, so a linear map. MAE, Adam 1e-3, batch 2, 10 epochs.
    Adapted: the last layer gives V; the one sample, the window's mean voltage, is z-scored (it is tiny beside the largest
    |EEG|). At one time point a 1x1 convolution is a dense layer."""
    epochs, batch_size, lr = 10, 2, 1e-3

    def see(self, fitted):
        mean = np.concatenate([self.normaliser.eeg(self.subject.eeg[i: i + 500]).mean(-1, keepdims=True)
                               for i in range(0, len(self.subject.eeg), 500)])            # [T,C,1]
        return standardised(mean, fitted), [0]

    def build(self, a):
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(self.C, 256), nn.Linear(256, 256), nn.Linear(256, self.V))

    def forward(self, s):
        return self.net(s)                                                                # [B,V]

    def loss(self, s, x):
        return (self(s) - x).abs().mean()


def sparsemax(u):
    """Projection of u [...,n] onto the simplex (Martins and Astudillo 2016): like softmax, with exact zeros."""
    ordered, k = u.sort(-1, descending=True).values, torch.arange(1, u.shape[-1] + 1, device=u.device)
    total = ordered.cumsum(-1) - 1
    support = (k * ordered > total).sum(-1, keepdim=True)                                 # how many are not zero
    return (u - total.gather(-1, support - 1) / support).clamp(min=0)


class ResidualBlock3d(nn.Module):
    """CNN-TAG's: conv - maxpool - BN - ReLU - conv3 - BN - ReLU beside conv - maxpool - BN, added, ReLU."""

    def __init__(self, inside, outside, kernel, stride):
        super().__init__()
        def reduce():
            return [nn.Conv3d(inside, outside, kernel, stride), nn.MaxPool3d((2, 2, 1), 1), nn.BatchNorm3d(outside)]
        self.long = nn.Sequential(*reduce(), nn.ReLU(), nn.Conv3d(outside, outside, 3, padding=1),
                                  nn.BatchNorm3d(outside), nn.ReLU())
        self.short = nn.Sequential(*reduce())

    def forward(self, u):
        return F.relu(self.long(u) + self.short(u))


class CNNTAG(Network):
    """CNN-TAG (Calhas and Henriques 2022): |FFT| of the ten TR windows before the frame, [64 channels, 134 bins, 10]; sparse
    attention over electrodes; two residual blocks of 3D convolutions -> 1152 -> 343; random Fourier features, times a
    style vector of the attention weights; dense -> output. MAE + (1 - cosine of EEG and fMRI codes), Adam 3e-3, batch 4,
    10 epochs. No graph network, whatever the paper calls it.
    Adapted: the output is V, the fMRI encoder (training only) one linear map V -> 343; bins are evenly spaced up to 62 Hz,
    as theirs were, whatever the TR; other than 64 electrodes are interpolated to 64 after the attention."""
    epochs, batch_size, lr = 10, 4, 3e-3

    def see(self, fitted):
        u = spectra(self.subject, self.normaliser, os.path.join(self.folder, "spectra.npy"), 134, 62.0)
        for i in range(0, len(u), 1000):  # z-scored over channels
            block = u[i: i + 1000]
            u[i: i + 1000] = (block - block.mean(1, keepdims=True)) / (block.std(1, keepdims=True) + 1e-9)
        return u, before(self.subject, 10)

    def build(self, a):
        C, H = self.C, 343
        self.electrodes = nn.Parameter(torch.randn(C, 1340) / math.sqrt(1340))
        self.conv = nn.Sequential(ResidualBlock3d(1, 4, (7, 37, 2), (3, 5, 1)), ResidualBlock3d(4, 4, (7, 7, 2), (2, 2, 1)))
        self.code, self.style, self.out = nn.Linear(1152, H), nn.Linear(C * C, H), nn.Linear(H, self.V)
        self.scale = nn.Parameter(torch.tensor(math.sqrt(H / 2)))
        self.register_buffer("frequency", torch.randn(H, H))
        self.register_buffer("phase", 2 * math.pi * torch.rand(H))
        self.fmri = nn.Linear(self.V, H)

    def codes(self, s):
        u = s.permute(0, 2, 3, 1)                                                         # [B,C,134,10]
        weights = sparsemax(u.flatten(2) @ self.electrodes.T)                             # [B,C,C]
        u = (weights @ u.flatten(2)).view_as(u)                                           # [B,C,134,10]
        if self.C != 64:
            u = F.interpolate(u.flatten(2).mT, 64, mode="linear").mT.unflatten(2, u.shape[2:])  # [B,64,134,10]
        z = self.code(self.conv(u[:, None]).flatten(1))                                   # [B,343]
        return z, self.style(weights.flatten(1))

    def forward(self, s, codes=None):
        z, style = codes or self.codes(s)                                                 # [B,343] each
        features = math.sqrt(2 / len(self.phase)) * torch.cos(z @ self.frequency / self.scale + self.phase)
        return self.out(features * style)                                                 # [B,V]

    def loss(self, s, x):
        codes = self.codes(s)
        return (self(s, codes) - x).abs().mean() + 1 - F.cosine_similarity(codes[0], self.fmri(x)).mean()


class ResidualBlock(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.net = nn.Sequential(nn.GroupNorm(8, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1),
                                 nn.GroupNorm(8, outside), nn.SiLU(), nn.Conv2d(outside, outside, 3, padding=1))
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, u):
        return self.skip(u) + self.net(u)


class Attention2d(nn.Module):
    """Self-attention over the places of a feature map; heads of 32 channels."""

    def __init__(self, c):
        super().__init__()
        self.norm, self.qkv, self.out = nn.GroupNorm(8, c), nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, u):
        qkv = self.qkv(self.norm(u)).flatten(2).unflatten(1, (3, -1, 32)).transpose(-1, -2)  # [B,3,h,HW,32]
        v = F.scaled_dot_product_attention(*qkv.contiguous().unbind(1))                   # [B,h,HW,32]
        return u + self.out(v.transpose(-1, -2).flatten(1, 2).view_as(u))                 # [B,c,H,W]


class UNet(nn.Module):
    """Two levels of c channels, the lower one with attention; no time embedding, for theirs is always that of t = 0."""

    def __init__(self, c):
        super().__init__()
        self.top, self.down = ResidualBlock(c, c), nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.low = nn.Sequential(ResidualBlock(c, c), Attention2d(c), ResidualBlock(c, c), Attention2d(c), ResidualBlock(c, c))
        self.up, self.end = nn.Conv2d(c, c, 3, padding=1), ResidualBlock(2 * c, c)

    def forward(self, u):
        u = self.top(u)                                                                   # [B,c,H,W]
        v = F.interpolate(self.low(self.down(u)), size=u.shape[2:])                       # [B,c,H,W]
        return self.end(torch.cat([u, self.up(v)], 1))                                    # [B,c,H,W]


def conv_relu(inside, outside, kernel=3, stride=1, padding=1):
    return nn.Sequential(nn.Conv2d(inside, outside, kernel, stride, padding), nn.BatchNorm2d(outside), nn.ReLU())


class E2fNet(Network):
    """E2fNet (Roos et al. 2025): 249 |FFT| bins of 20 TRs as an image, [20, C, 249]; convolutions over frequency to 64 x 64,
    a U-Net with attention of 256 channels, a decoder to 32 channels. AdamW 1e-3, batch 32, 50 epochs, clip 1.
    Adapted: theirs ends in a volume of 64 x 64 x 30; here 32 x 64 x 64 is average-pooled to 8 x 8, then linear 1024, linear
    V. Loss MSE alone: theirs has SSIM beside it, which over grayordinates in the order of their index means nothing. Bins
    are evenly spaced up to 75 Hz and z-scored on training frames. The image stays C high: interpolating it to 64 adds
    work, not information. --shrink divides the U-Net's 256 channels (of all widths none below 32)."""
    epochs, batch_size, lr, clip, weight_decay = 50, 32, 1e-3, 1.0, 0.01

    def see(self, fitted):
        u = spectra(self.subject, self.normaliser, os.path.join(self.folder, "spectra.npy"), 249, 75.0)
        return standardised(u, fitted), before(self.subject, 20)

    def build(self, a):
        half, c = max(32, 128 // a.shrink), max(32, 256 // a.shrink)
        self.net = nn.Sequential(
            conv_relu(20, 32, (1, 5), (1, 2), (0, 3)), conv_relu(32, 64, (1, 5), (1, 2), (0, 3)), conv_relu(64, half),
            nn.Conv2d(half, c, 3, padding=1), UNet(c), conv_relu(c, half), conv_relu(half, max(32, half // 2)),
            conv_relu(max(32, half // 2), 32), nn.AdaptiveAvgPool2d(8), nn.Flatten(),
            nn.Linear(2048, 1024), nn.Linear(1024, self.V))

    def forward(self, s):
        return self.net(s)                                                                # [B,V]

    def loss(self, s, x):
        return F.mse_loss(self(s), x)


class E2fGAN(E2fNet):
    """E2fGAN (Roos et al. 2025): E2fNet and a discriminator. D learns the mean BCE of real and made frames, G the BCE of
    passing for real plus E2fNet's loss; AdamW 1e-3 for both.
    Adapted: their discriminator is four strided convolutions over a volume's slices; here a linear map V -> 1024 and an MLP,
    with as many layers and their batch norm, without which its answers grow without bounds. Theirs never calls eval() and
    leaves G's gradients in D; ours does not."""

    def build(self, a):
        super().build(a)
        layers = [nn.Linear(self.V, 1024), nn.LeakyReLU(0.2)]
        for inside, outside in ((1024, 256), (256, 64)):
            layers += [nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.LeakyReLU(0.2)]
        self.judge = nn.Sequential(*layers, nn.Linear(64, 1))

    def make_optimizers(self):
        return [torch.optim.AdamW(part.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)
                for part in (self.net, self.judge)]

    def update(self, s, x):
        made, bce = self(s), F.binary_cross_entropy_with_logits
        real, fake = self.judge(x), self.judge(made.detach())
        self.optimizers[1].zero_grad()
        ((bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))) / 2).backward()
        self.optimizers[1].step()
        self.judge.requires_grad_(False)
        fake = self.judge(made)
        loss = bce(fake, torch.ones_like(fake)) + F.mse_loss(made, x)
        self.optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizers[0].step()
        self.judge.requires_grad_(True)
        return loss.item()


RIVALS = {"ridge": Ridge, "cnn_tc": CNNTC, "cnn_tag": CNNTAG, "e2fnet": E2fNet, "e2fgan": E2fGAN}

# ---- One rival, from the subject to its test frames ------------------------------------

def run(a):
    """Fit a.rival, and write its test frames to OUT/NAME, which it returns. What is complete is left as it is."""
    folder = os.path.join(a.out, a.rival)
    recon, chosen_path = os.path.join(folder, "recon.npy"), os.path.join(folder, "chosen.json")
    if os.path.exists(recon):
        return folder
    os.makedirs(folder, exist_ok=True)
    subject = data.Subject(a.data)
    train, val, test = (subject.segments(split) for split in ("train", "val", "test"))
    if not val or not test:
        fail(f"{a.data}: no validation or no test frames; a rival needs both, so three training runs and one more")

    def fit(segments, *rest):
        rival = RIVALS[a.rival](subject, data.Normaliser.measure(subject, segments), segments, folder, a)
        return rival, rival.fit(segments, *rest)
    if not os.path.exists(chosen_path) or not a.no_validation:
        rival, chosen = fit(train, val)
        with open(chosen_path + ".tmp", "w") as f:
            json.dump(chosen, f)
        os.replace(chosen_path + ".tmp", chosen_path)
    if a.no_validation:
        chosen = json.load(open(chosen_path))
        rival, _ = fit(subject.segments("train", validation=False), None, chosen.get("penalty") or chosen["epochs"])
    t = np.concatenate([np.arange(low, high) for low, high in test])
    np.save(os.path.join(folder, "frames.npy"), t)
    out = np.lib.format.open_memmap(recon + ".tmp", "w+", np.float32, (len(t), subject.fmri.shape[1]))
    rival.predict(test, out)
    out.flush()
    os.replace(recon + ".tmp", recon)
    for name in ("fit.pt", "refit.pt", "spectra.npy"):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    return folder

def flags(p):
    """Those that table.py has too."""
    p.add_argument("--data", required=True, help="prepared subject")
    p.add_argument("--no-validation", action="store_true", help="fit on all training runs, once all is chosen")
    p.add_argument("--shrink", type=int, default=8, help="divides the channels of E2fNet and E2fGAN; 1: theirs, for a GPU")
    p.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    p.add_argument("--device", type=machine.pick_device, default=machine.pick_device(None), help="cpu, cuda or mps")

@script
def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rival", choices=RIVALS)
    flags(p)
    p.add_argument("--out", default="out/rivals", help="folder for its results (default: out/rivals)")
    a = p.parse_args(argv)
    folder, subject = run(a), data.Subject(a.data)
    normaliser = data.Normaliser.measure(subject, subject.segments("train", validation=not a.no_validation))
    recon, t = np.load(os.path.join(folder, "recon.npy"), mmap_mode="c"), np.load(os.path.join(folder, "frames.npy"))
    regions = {"whole": normaliser.valid, **{k: m & normaliser.valid for k, m in subject.rois.items()}}
    scores = Scores(regions, np.zeros((1, 1), bool))
    for i in range(0, len(t), 100):
        x = torch.from_numpy(normaliser.zscore(subject.fmri[t[i: i + 100]]))
        scores.add(a.rival, torch.from_numpy(recon[i: i + 100]), x, np.zeros(len(x), int))
    print(f"{a.rival}: " + ", ".join(f"{k} {v:g}" for k, v in json.load(open(os.path.join(folder, "chosen.json"))).items()))
    for region, row in scores.summary()[a.rival].items():
        print(f"{region:16} " + "  ".join(f"{m} {row[m]['mean']:.3f}" for m in METRICS))

if __name__ == "__main__":
    main()
