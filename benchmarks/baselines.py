"""The rivals: four networks that the paper compares with, and ridge regression on band power.

    python benchmarks/baselines.py ridge --data out/synthetic
    python benchmarks/baselines.py e2fnet --data subjects/rest --no-validation
    python benchmarks/baselines.py ridge --data subjects/s01 --test ses-2

Each sees the EEG its own way and answers for one frame at a time; loader, splits, z-scores and
scores are the project's. Writes OUT/NAME/: recon.npy [T_test,V] in z-scores, frames.npy,
chosen.json, made_from.json. What is chosen (penalty or epochs) is chosen by MSE on the validation
run; with --no-validation the rival is then fitted anew on all training runs for as long, as
train.py's flag of the same name does for NeuroFrames. A killed run goes on where it stopped, and
one that is complete is left as it is: if made_from.json says that data and flags are the same.

The networks never had public code for 91,282 grayordinates. Their docstrings say what is original
and what we adapted. A sixth rival is a class with `fit` and `predict` (see Ridge), or a network
with `see` and `forward` (see CNNTC), and its line in RIVALS.
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
import data
from sample import frame_scores
from tools import checkpoints
from tools.device import pick_device
from tools.errors import fail, script
from tools.report import METRICS, Scores

# ---- What a rival sees of the EEG ------------------------------------------------------


def frames_in(segments):
    return np.concatenate([np.arange(low, high) for low, high in segments])


def neighbours(segments, lags):
    """Frames t [n] of the segments and EEG windows t + lags [n,L]; past a segment's border its last
    one is repeated."""
    windows = []
    for low, high in segments:
        t = np.arange(low, high)[:, None]
        windows.append(np.clip(t + np.array(lags), low, high - 1))
    return frames_in(segments), np.concatenate(windows)


def before(subject, count):
    """Lags of the `count` EEG windows that end when the frame is scanned. eeg[t] is already a delay
    older than frame t."""
    delay = subject.meta.get("delay_in_files", subject.meta["delay"])
    late = round(delay / subject.tr)
    return range(late - count + 1, late + 1)


def spectra(subject, normaliser, path, bins, highest, block=100):
    """|Fourier transform| of every frame's EEG window, [T,C,bins], at evenly spaced frequencies up
    to `highest` Hz (or half the sampling rate), without 0. Computed once, on disk: a network asks
    for each window many times."""
    T, C, W = subject.eeg.shape
    highest = min(highest, W / subject.tr / 2)
    turn = 2 * math.pi * highest * subject.tr / W  # of the last bin, from sample to sample
    angle = turn * torch.arange(1, bins + 1) / bins * torch.arange(W)[:, None]  # [W,bins]
    cos = angle.cos()
    sin = angle.sin()
    found = np.lib.format.open_memmap(path, "w+", np.float32, (T, C, bins))
    for i in tqdm(range(0, T, block), desc="spectra", unit="block"):
        s = torch.from_numpy(normaliser.eeg(subject.eeg[i : i + block]))  # [t,C,W]
        real = (s - s.mean(-1, keepdim=True)) @ cos  # [t,C,bins]
        found[i : i + block] = torch.hypot(real, s @ sin).numpy()
    return found


def standardised(features, segments):
    """(features - mean) / std, by channel and frequency over the frames of `segments`; in place."""
    t = frames_in(segments)
    mean = features[t].mean(0)
    std = features[t].std(0) + 1e-9
    for i in range(0, len(features), 1000):
        features[i : i + 1000] = (features[i : i + 1000] - mean) / std
    return features


def band_power(subject, normaliser, bands=15, highest=50.0, block=200):
    """Log power [T, C * bands] of every frame's EEG window, under a Hann taper."""
    W = subject.eeg.shape[2]
    top = min(highest * subject.tr, W // 2)  # cycles a window
    edges = np.unique(np.linspace(1, top + 1, bands + 1).round().astype(int))
    features = []
    for i in range(0, len(subject.eeg), block):
        s = normaliser.eeg(subject.eeg[i : i + block]) * np.hanning(W)  # [t,C,W]
        spectrum = np.abs(np.fft.rfft(s)) ** 2
        power = [spectrum[..., a:b].mean(-1) for a, b in zip(edges[:-1], edges[1:])]
        power = np.stack(power, -1)  # [t,C,bands]
        features.append(np.log(power + 1e-12).reshape(len(power), -1))
    return np.concatenate(features)


# ---- The classical one -----------------------------------------------------------------


class Columns:
    """Frames of a subject as one z-scored [T,V] array that reads the columns it is sliced for."""

    def __init__(self, subject, normaliser, index):
        self.subject, self.normaliser, self.index = subject, normaliser, index
        self.shape = (len(index), subject.fmri.shape[1])

    def __getitem__(self, key):
        columns, n = key[1], self.normaliser
        pieces = np.array_split(self.index, 1 + len(self.index) // 1024)  # map few pages at a time
        rows = [np.asarray(self.subject.fmri[piece, columns], np.float32) for piece in pieces]
        return (np.concatenate(rows) - n.mean[columns]) * n.inverse[columns]


class Ridge:
    """Ridge regression from log band power of every channel at lags -5 to 5 frames: the classical
    EEG-to-BOLD model, hard to beat on little data. Solved in the features or in the frames,
    whichever are fewer, once for all penalties."""

    penalties = [1e2, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6]

    def __init__(self, subject, normaliser, fitted, folder, a):
        self.subject, self.normaliser = subject, normaliser
        self.X = band_power(subject, normaliser)

    def features(self, segments):
        t, index = neighbours(segments, range(-5, 6))
        return t, self.X[index].reshape(len(t), -1)  # [n,11F]

    def fit(self, train, val, penalty=None):
        """{"penalty", "mse"}: the best penalty on `val`, and its MSE there."""
        self.t, X = self.features(train)
        self.mean = X.mean(0)
        self.std = X.std(0) + 1e-9
        X = (X - self.mean) / self.std
        if len(X) < X.shape[1]:
            self.power, U = np.linalg.eigh(X @ X.T)
            self.left = X.T @ U  # [F,r]
            self.right = U.T  # [r,n]
        else:
            self.power, U = np.linalg.eigh(X.T @ X)
            self.left = U
            self.right = (X @ U).T
        self.penalty = penalty
        if penalty is not None:
            return {"penalty": penalty}
        errors = self.errors(val)  # [penalties]
        self.penalty = self.penalties[errors.argmin()]
        found = [f"{p:g} {mse:.4f}" for p, mse in zip(self.penalties, errors)]
        print("ridge, validation MSE by penalty: " + ", ".join(found))
        return {"penalty": self.penalty, "mse": errors.min()}

    def errors(self, segments):
        """MSE [penalties] over the segments' frames and the vertices that vary."""
        t = frames_in(segments)
        truth = Columns(self.subject, self.normaliser, t)
        valid = self.normaliser.valid
        total = np.zeros(len(self.penalties))
        for span, guesses in self.solve(segments, self.penalties):
            x = truth[:, span][:, valid[span]]
            total += [((guess[:, valid[span]] - x) ** 2).sum() for guess in guesses]
        return total / len(t) / valid.sum()

    def solve(self, segments, penalties, block=8192):
        """(vertices, predictions [penalties][n,v]), a block of vertices at a time."""
        _, X = self.features(segments)
        left = (X - self.mean) / self.std @ self.left  # [n,r]
        fitted = Columns(self.subject, self.normaliser, self.t)
        V = fitted.shape[1]
        for i in range(0, V, block):
            span = slice(i, min(i + block, V))
            Y = fitted[:, span].astype(float)
            mean = Y.mean(0)
            right = self.right @ (Y - mean)  # [r,v]
            yield span, [left @ (right / (self.power[:, None] + p)) + mean for p in penalties]

    def predict(self, segments, out):
        for span, (guess,) in self.solve(segments, [self.penalty]):
            out[:, span] = guess


# ---- Networks: one loop for all, then the four -----------------------------------------


class Network(nn.Module):
    """A rival that is trained by steps. A subclass says what it sees (`see`: EEG features [T,C,F]
    and lags), how it maps s [B,L,C,F] to frames [B,V] (`forward`), its loss, batch, epochs and
    learning rate. Ours, for all four: the weights with the best MSE on validation are kept, and
    after `patience` epochs that were no better it ends. What is left of an epoch after the last
    full batch is left out: batch norm cannot do with one frame."""

    patience, clip, weight_decay = 3, None, 0.0

    def __init__(self, subject, normaliser, fitted, folder, a):
        super().__init__()
        torch.manual_seed(a.seed)
        self.subject, self.normaliser, self.folder = subject, normaliser, folder
        self.seed, self.device = a.seed, a.device
        self.C = subject.eeg.shape[1]
        self.V = subject.fmri.shape[1]
        self.windows, self.lags = self.see(fitted)
        self.build(a)
        self.to(a.device)
        self.optimizers = self.make_optimizers()

    def adamw(self, part):  # without weight decay AdamW is Adam
        decay = self.weight_decay
        return torch.optim.AdamW(part.parameters(), lr=self.lr, weight_decay=decay, fused=True)

    def make_optimizers(self):
        return [self.adamw(self)]

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
        s = torch.from_numpy(np.asarray(self.windows[index]))  # [B,L,C,F]
        x = torch.from_numpy(self.normaliser.zscore(self.subject.fmri[t]))  # [B,V]
        return s.to(self.device), x.to(self.device)

    @torch.no_grad()
    def blocks(self, segments, size=64):
        """(position, predictions [B,V], truth [B,V]) of the segments, in order."""
        self.eval()
        t, index = neighbours(segments, self.lags)
        for i in range(0, len(t), size):
            s, x = self.batch(t[i : i + size], index[i : i + size])
            yield i, self(s), x

    def mse(self, segments):
        """Over the segments' frames and the vertices that vary."""
        valid = torch.from_numpy(self.normaliser.valid).to(self.device)
        errors = [(y - x)[:, valid].square().mean(1).cpu() for _, y, x in self.blocks(segments)]
        return torch.cat(errors).mean().item()

    def fit(self, train, val, epochs=None):
        """{"epochs", "mse"}: how many were best on `val`, up to four answers an epoch; or train for
        `epochs`, judge nothing."""
        name = type(self).__name__
        t, index = neighbours(train, self.lags)
        length = max(1, len(t) // self.batch_size)  # steps of an epoch
        every = math.ceil(length / min(4, max(1, length // 40)))  # steps between two looks at val
        total = max(1, round((epochs or self.epochs) * length))
        path = os.path.join(self.folder, "refit.pt" if epochs else "fit.pt")
        step, best, kept = self.resume(path)
        saved = time.time()
        bar = tqdm(total=total, initial=step, unit="step", desc=name)
        while step < total and (epochs or step <= (best["epochs"] + self.patience) * length):
            epoch, place = divmod(step, length)
            last = min(place + every, length, place + total - step)
            losses = self.train_steps(t, index, epoch, range(place, last), bar)
            step += len(losses)
            if epochs is None:
                mse = self.mse(val)
                tqdm.write(
                    f"{name}: epoch {step / length:.2f}, loss {np.mean(losses):.4f}, "
                    f"validation MSE {mse:.4f}"
                )
                if mse < best["mse"]:
                    best = {"epochs": step / length, "mse": mse}
                    kept = {key: value.cpu().clone() for key, value in self.state_dict().items()}
            if time.time() - saved > 60:
                self.save(path, step, best, kept)
                saved = time.time()
        bar.close()
        if epochs is not None:
            return {"epochs": epochs}
        if not kept:
            fail(
                f"{name}: its validation MSE was never a number; look at the EEG, or lower lr in "
                "benchmarks/baselines.py"
            )
        self.load_state_dict(kept)
        return best

    def train_steps(self, t, index, epoch, places, bar):
        """Losses of the batches at `places` of an epoch, whose order follows from the seed."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(t), generator=generator).numpy()
        self.train()
        losses = []
        for i in places:
            k = np.sort(order[i * self.batch_size : (i + 1) * self.batch_size])
            losses.append(self.update(*self.batch(t[k], index[k])))
            bar.update()
        return losses

    def save(self, path, step, best, kept):
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"model": self.state_dict(), "optimizers": optimizers}
        checkpoints.save(path, {"step": step, "best": best, "kept": kept, **state})

    def resume(self, path):
        """(step, best, kept) to begin with, or as `save` left them."""
        if not os.path.exists(path):
            return 0, {"epochs": 0.0, "mse": math.inf}, {}
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.load_state_dict(state["model"])
        for optimizer, found in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(found)
        return state["step"], state["best"], state["kept"]

    def predict(self, segments, out):
        for i, guess, _ in self.blocks(segments):
            out[i : i + len(guess)] = guess.cpu().numpy()


class CNNTC(Network):
    """CNN-TC (Liu and Sajda 2019, as rebuilt by Calhas and Henriques 2022): EEG at one sample a TR
    -> dense 256 -> 1x1 convolutions, 256 -> output; no activation, so a linear map. MAE, Adam 1e-3,
    batch 2, 10 epochs.

    Adapted: the last layer gives V; the one sample, the window's mean voltage, is z-scored (it is
    tiny beside its largest |EEG|). At one time point a 1x1 convolution is a dense layer."""

    epochs, batch_size, lr = 10, 2, 1e-3

    def see(self, fitted):
        mean = []
        for i in range(0, len(self.subject.eeg), 500):
            s = self.normaliser.eeg(self.subject.eeg[i : i + 500])  # [t,C,W]
            mean.append(s.mean(-1, keepdims=True))
        return standardised(np.concatenate(mean), fitted), [0]  # [T,C,1]

    def build(self, a):
        self.net = nn.Sequential(
            nn.Flatten(), nn.Linear(self.C, 256), nn.Linear(256, 256), nn.Linear(256, self.V)
        )

    def forward(self, s):
        return self.net(s)  # [B,V]

    def loss(self, s, x):
        return (self(s) - x).abs().mean()


def sparsemax(u):
    """Projection of u [...,n] onto the simplex (Martins and Astudillo 2016): like softmax, with
    exact zeros."""
    ordered = u.sort(-1, descending=True).values
    total = ordered.cumsum(-1) - 1
    k = torch.arange(1, u.shape[-1] + 1, device=u.device)
    support = (k * ordered > total).sum(-1, keepdim=True)  # how many are not zero
    return (u - total.gather(-1, support - 1) / support).clamp(min=0)


class ResidualBlock3d(nn.Module):
    """CNN-TAG's: conv - maxpool - BN - ReLU - conv3 - BN - ReLU beside conv - maxpool - BN, added,
    ReLU."""

    def __init__(self, inside, outside, kernel, stride):
        super().__init__()

        def reduce():
            return [
                nn.Conv3d(inside, outside, kernel, stride),
                nn.MaxPool3d((2, 2, 1), 1),
                nn.BatchNorm3d(outside),
            ]

        self.long = nn.Sequential(
            *reduce(),
            nn.ReLU(),
            nn.Conv3d(outside, outside, 3, padding=1),
            nn.BatchNorm3d(outside),
            nn.ReLU(),
        )
        self.short = nn.Sequential(*reduce())

    def forward(self, u):
        return F.relu(self.long(u) + self.short(u))


class CNNTAG(Network):
    """CNN-TAG (Calhas and Henriques 2022): |FFT| of the ten TR windows before the frame, [64
    channels, 134 bins, 10]; sparse attention over electrodes; two residual blocks of 3D
    convolutions -> 1152 -> 343; random Fourier features, times a style vector of the attention
    weights; dense -> output. MAE + (1 - cosine of EEG and fMRI codes), Adam 3e-3, batch 4, 10
    epochs. No graph network, whatever the paper calls it.

    Adapted: the output is V, the fMRI encoder (training only) one linear map V -> 343; bins are
    evenly spaced up to 62 Hz, as theirs were, whatever the TR; other than 64 electrodes are
    interpolated to 64 after the attention."""

    epochs, batch_size, lr = 10, 4, 3e-3

    def see(self, fitted):
        path = os.path.join(self.folder, "spectra.npy")
        u = spectra(self.subject, self.normaliser, path, 134, 62.0)
        for i in range(0, len(u), 1000):  # z-scored over channels
            block = u[i : i + 1000]
            mean = block.mean(1, keepdims=True)
            std = block.std(1, keepdims=True) + 1e-9
            u[i : i + 1000] = (block - mean) / std
        return u, before(self.subject, 10)

    def build(self, a):
        C, H = self.C, 343
        self.electrodes = nn.Parameter(torch.randn(C, 1340) / math.sqrt(1340))
        self.conv = nn.Sequential(
            ResidualBlock3d(1, 4, (7, 37, 2), (3, 5, 1)),
            ResidualBlock3d(4, 4, (7, 7, 2), (2, 2, 1)),
        )
        self.code = nn.Linear(1152, H)
        self.style = nn.Linear(C * C, H)
        self.out = nn.Linear(H, self.V)
        self.scale = nn.Parameter(torch.tensor(math.sqrt(H / 2)))
        self.register_buffer("frequency", torch.randn(H, H))
        self.register_buffer("phase", 2 * math.pi * torch.rand(H))
        self.fmri = nn.Linear(self.V, H)

    def codes(self, s):
        u = s.permute(0, 2, 3, 1)  # [B,C,134,10]
        weights = sparsemax(u.flatten(2) @ self.electrodes.T)  # [B,C,C]
        v = weights @ u.flatten(2)  # [B,C,1340]
        if self.C != 64:
            v = F.interpolate(v.mT, 64, mode="linear").mT  # [B,64,1340]
        v = v.unflatten(2, u.shape[2:])  # [B,64,134,10]
        z = self.code(self.conv(v[:, None]).flatten(1))  # [B,343]
        return z, self.style(weights.flatten(1))

    def forward(self, s, codes=None):
        z, style = codes or self.codes(s)  # [B,343] each
        waves = torch.cos(z @ self.frequency / self.scale + self.phase)  # [B,343]
        features = math.sqrt(2 / len(self.phase)) * waves
        return self.out(features * style)  # [B,V]

    def loss(self, s, x):
        codes = self.codes(s)
        error = (self(s, codes) - x).abs().mean()
        return error + 1 - F.cosine_similarity(codes[0], self.fmri(x)).mean()


class ResidualBlock(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.net = nn.Sequential(
            nn.GroupNorm(8, inside),
            nn.SiLU(),
            nn.Conv2d(inside, outside, 3, padding=1),
            nn.GroupNorm(8, outside),
            nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1),
        )
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, u):
        return self.skip(u) + self.net(u)


class Attention2d(nn.Module):
    """Self-attention over the places of a feature map; heads of 32 channels."""

    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(8, c)
        self.qkv = nn.Conv2d(c, 3 * c, 1)
        self.out = nn.Conv2d(c, c, 1)

    def forward(self, u):
        qkv = self.qkv(self.norm(u)).flatten(2).unflatten(1, (3, -1, 32))  # [B,3,heads,32,HW]
        qkv = qkv.transpose(-1, -2).contiguous()  # [B,3,heads,HW,32]
        v = F.scaled_dot_product_attention(*qkv.unbind(1))  # [B,heads,HW,32]
        return u + self.out(v.transpose(-1, -2).flatten(1, 2).view_as(u))  # [B,c,H,W]


class UNet(nn.Module):
    """Two levels of c channels, the lower one with attention; no time embedding, for theirs is
    always that of t = 0."""

    def __init__(self, c):
        super().__init__()
        self.top = ResidualBlock(c, c)
        self.down = nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.low = nn.Sequential(
            ResidualBlock(c, c),
            Attention2d(c),
            ResidualBlock(c, c),
            Attention2d(c),
            ResidualBlock(c, c),
        )
        self.up = nn.Conv2d(c, c, 3, padding=1)
        self.end = ResidualBlock(2 * c, c)

    def forward(self, u):
        u = self.top(u)  # [B,c,H,W]
        v = F.interpolate(self.low(self.down(u)), size=u.shape[2:])  # [B,c,H,W]
        return self.end(torch.cat([u, self.up(v)], 1))  # [B,c,H,W]


def conv_relu(inside, outside, kernel=3, stride=1, padding=1):
    conv = nn.Conv2d(inside, outside, kernel, stride, padding)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


class E2fNet(Network):
    """E2fNet (Roos et al. 2025): 249 |FFT| bins of 20 TRs as an image, [20, C, 249]; convolutions
    over frequency to 64 x 64, a U-Net with attention of 256 channels, a decoder to 32 channels.
    AdamW 1e-3, batch 32, 50 epochs, clip 1.

    Adapted: theirs ends in a volume of 64 x 64 x 30; here 32 x 64 x 64 is average-pooled to 8 x 8,
    then linear 1024, linear V. Loss MSE alone: theirs has SSIM beside it, which over grayordinates
    in the order of their index means nothing. Bins are evenly spaced up to 75 Hz and z-scored on
    training frames. The image stays C high: interpolating it to 64 adds work, not information.
    --shrink divides the U-Net's 256 channels (of all widths none below 32)."""

    epochs, batch_size, lr, clip, weight_decay = 50, 32, 1e-3, 1.0, 0.01

    def see(self, fitted):
        path = os.path.join(self.folder, "spectra.npy")
        u = spectra(self.subject, self.normaliser, path, 249, 75.0)
        return standardised(u, fitted), before(self.subject, 20)

    def build(self, a):
        c = max(32, 256 // a.shrink)
        half = max(32, 128 // a.shrink)
        quarter = max(32, half // 2)
        self.net = nn.Sequential(
            conv_relu(20, 32, (1, 5), (1, 2), (0, 3)),
            conv_relu(32, 64, (1, 5), (1, 2), (0, 3)),
            conv_relu(64, half),
            nn.Conv2d(half, c, 3, padding=1),
            UNet(c),
            conv_relu(c, half),
            conv_relu(half, quarter),
            conv_relu(quarter, 32),
            nn.AdaptiveAvgPool2d(8),
            nn.Flatten(),
            nn.Linear(2048, 1024),
            nn.Linear(1024, self.V),
        )

    def forward(self, s):
        return self.net(s)  # [B,V]

    def loss(self, s, x):
        return F.mse_loss(self(s), x)


class E2fGAN(E2fNet):
    """E2fGAN (Roos et al. 2025): E2fNet and a discriminator. D learns the mean BCE of real and made
    frames, G the BCE of passing for real plus E2fNet's loss; AdamW 1e-3 for both.

    Adapted: their discriminator is four strided convolutions over a volume's slices; here a linear
    map V -> 1024 and an MLP, with as many layers and their batch norm, without which its answers
    grow without bounds. Theirs never calls eval() and leaves G's gradients in D; ours does not."""

    def build(self, a):
        super().build(a)
        layers = [nn.Linear(self.V, 1024), nn.LeakyReLU(0.2)]
        for inside, outside in ((1024, 256), (256, 64)):
            layers += [nn.Linear(inside, outside), nn.BatchNorm1d(outside), nn.LeakyReLU(0.2)]
        self.judge = nn.Sequential(*layers, nn.Linear(64, 1))

    def make_optimizers(self):
        return [self.adamw(part) for part in (self.net, self.judge)]

    def update(self, s, x):
        """The discriminator's step, then the generator's."""
        made = self(s)
        self.optimizers[1].zero_grad()
        ((self.taken_for(1, x) + self.taken_for(0, made.detach())) / 2).backward()
        self.optimizers[1].step()

        self.judge.requires_grad_(False)
        loss = self.taken_for(1, made) + F.mse_loss(made, x)
        self.optimizers[0].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
        self.optimizers[0].step()
        self.judge.requires_grad_(True)
        return loss.item()

    def taken_for(self, real, x):
        """BCE of the judgement that frames x are real (1) or made (0)."""
        said = self.judge(x)
        return F.binary_cross_entropy_with_logits(said, torch.full_like(said, real))


RIVALS = {"ridge": Ridge, "cnn_tc": CNNTC, "cnn_tag": CNNTAG, "e2fnet": E2fNet, "e2fgan": E2fGAN}

# ---- One rival, from the subject to its test frames ------------------------------------


def read_json(path):
    with open(path) as f:
        return json.load(f)


def write_json(path, value):
    with open(path + ".tmp", "w") as f:
        json.dump(value, f)
    os.replace(path + ".tmp", path)


def made_from(a, subject):
    """What a rival's results follow from, but for the code: plain values, as JSON has them."""
    found = {
        "checksums": subject.meta["checksums"],
        "shapes": [subject.fmri.shape, subject.eeg.shape],
        "segments": {split: subject.segments(split) for split in ("train", "val", "test")},
        "no_validation": a.no_validation,
        "seed": a.seed,
        "shrink": a.shrink,
    }
    return json.loads(json.dumps(found))


def check_made_from(folder, wanted):
    """Fail if what lies in the folder is of other data or flags, or does not say of which."""
    path = os.path.join(folder, "made_from.json")
    if not set(os.listdir(folder)) - {"made_from.json"}:
        write_json(path, wanted)
    found = read_json(path) if os.path.exists(path) else {}
    others = [name for name, value in wanted.items() if found.get(name) != value]
    if others:
        fail(
            f"{path}: {', '.join(others)} of what lies there are missing, or others than now; "
            "delete the folder, or name another --out"
        )


def opened(a):
    """The subject a.data, split as --test and --val say, if they are given."""
    subject = data.Subject(a.data)
    subject.split_by_names(vars(a))
    return subject


def run(a):
    """Fit a.rival, and write its test frames to OUT/NAME, which it returns. What is complete is
    left as it is, if it is of the same data and flags."""
    folder = os.path.join(a.out, a.rival)
    recon = os.path.join(folder, "recon.npy")
    os.makedirs(folder, exist_ok=True)
    subject = opened(a)
    check_made_from(folder, made_from(a, subject))
    if os.path.exists(recon):
        return folder
    test = subject.segments("test")
    rival = fitted(a, subject, folder)
    t = frames_in(test)
    np.save(os.path.join(folder, "frames.npy"), t)
    shape = len(t), subject.fmri.shape[1]
    out = np.lib.format.open_memmap(recon + ".tmp", "w+", np.float32, shape)
    rival.predict(test, out)
    out.flush()
    os.replace(recon + ".tmp", recon)
    for name in ("fit.pt", "refit.pt", "spectra.npy"):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    return folder


def fitted(a, subject, folder):
    """a.rival, with what is best on the validation run; what that was is in chosen.json."""
    train, val, test = (subject.segments(split) for split in ("train", "val", "test"))
    if not val or not test:
        fail(
            f"{a.data}: no validation or no test frames; a rival needs both, so three training "
            "runs and one more"
        )

    def fit(segments, *rest):
        normaliser = data.Normaliser.measure(subject, segments)
        rival = RIVALS[a.rival](subject, normaliser, segments, folder, a)
        return rival, rival.fit(segments, *rest)

    path = os.path.join(folder, "chosen.json")
    if not os.path.exists(path) or not a.no_validation:
        rival, chosen = fit(train, val)
        write_json(path, chosen)
    if a.no_validation:
        chosen = read_json(path)
        more = subject.segments("train", validation=False)
        rival, _ = fit(more, None, chosen.get("penalty") or chosen["epochs"])
    return rival


def add_flags(add):
    """Those that table.py has too."""
    add("--data", required=True, help="prepared subject")
    add("--no-validation", action="store_true", help="fit on all training runs, once all is chosen")
    add(
        "--shrink",
        type=int,
        default=8,
        help="divides the channels of E2fNet and E2fGAN; 1: theirs, for a GPU",
    )
    add("--seed", type=int, default=0, help="of weights, batches and noise")
    add("--device", type=pick_device, default=pick_device(None), help="cpu, cuda or mps")


def parse(argv):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("rival", choices=RIVALS)
    add_flags(p.add_argument)
    data.add_flags(p.add_argument)
    p.add_argument(
        "--out", default="out/rivals", help="folder for its results (default: out/rivals)"
    )
    return p.parse_args(argv)


@script
def main(argv=None):
    a = parse(argv)
    folder = run(a)
    subject = opened(a)
    train = subject.segments("train", validation=not a.no_validation)
    normaliser = data.Normaliser.measure(subject, train)
    recon = np.load(os.path.join(folder, "recon.npy"), mmap_mode="c")
    regions = {name: mask & normaliser.valid for name, mask in subject.rois.items()}
    seen, of_frame = data.patterns(np.zeros((1, len(normaliser.valid)), bool))  # nothing is
    timeline = data.timeline(subject.segments("test"), 100, of_frame)
    scores = Scores({"whole": normaliser.valid, **regions}, timeline, seen, frame_scores)
    for places in timeline.blocks:
        x = torch.from_numpy(normaliser.zscore(subject.fmri[timeline.rows[places]]))
        scores.add(a.rival, torch.from_numpy(recon[places]), x, places)
    chosen = read_json(os.path.join(folder, "chosen.json"))
    print(f"{a.rival}: " + ", ".join(f"{name} {value:g}" for name, value in chosen.items()))
    for region, row in scores.summary()[a.rival].items():
        print(f"{region:16} " + "  ".join(f"{m} {row[m]['mean']:.3f}" for m in METRICS))


if __name__ == "__main__":
    main()
