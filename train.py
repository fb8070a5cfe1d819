"""How are the weights found? One visible loop, at the end of this file.

    python train.py                          the synthetic subject, minutes on two CPU cores
    python train.py --data subjects/rest     a prepared subject (data.py)
    python train.py --data S1 S2 S3          several people (people/)
    python train.py --adapt 10 --ckpt C --data S9    the model C of several, tuned to one more
    python train.py --preset paper           the paper's method
    python train.py --out OUT --resume       go on from OUT/last.pt as if nothing had happened

Without --preset it is not as in the paper: beyond/auto.py looks at the subject and chooses what
suits it. If there are three training runs or more, it trains twice: at first without the last of
them, to choose by, and then on all.

Writes to OUT: ckpt.pt, the averaged weights with the lowest validation loss (without a validation
run: the last ones) and all that sample.py needs beside them; last.pt, the whole state of training;
log.jsonl, one object a line.

To skip at a first reading: lines that name `beyond`, whose chapters are what the paper does not
have (with --preset paper `vary` and `closed_form` are False, `shift` 0, `extra` 0.0 and `weight`
1.0, and branches that ask for joint and vertex are not taken); and what `processes` is for: alone,
it hands on what it is given (`share_of_mean`: the mean); with torchrun several processes share the
work.

What must not leak from the test runs into training? Runs are split as wholes, for windows of one
run share its slow fluctuations; no window, nor the EEG around it, reaches over the border of a
stretch (successive frames of one run in one split); the means and deviations of z-scores, the EEG's
scale and the autoencoder come from training frames alone; the checkpoint is chosen on a run of its
own, the validation run. (What was done to the recordings before, such as cleaning, is out of
reach.)
"""

import copy
import functools
import math

import numpy as np
import torch
from tqdm import tqdm

import data
from neuroframes import LinearAutoencoder, NeuroFrames
from tools import checkpoints, device, large, memory, processes
from tools.checks import blaming, check_training, fill, settle_training
from tools.errors import Parser, named, script
from tools.ranks import RANK, WORLD
from tools.run import Run
from tools.subjects import opened

try:
    import beyond
except ModuleNotFoundError:  # the five scripts alone: the paper's method, without chapters
    beyond = None

# ---- Settings --------------------------------------------------------------------------

PAPER = {  # the paper's choice, where a flag of beyond/ (--eeg-encoder ...) offers another
    "autoencoder": "pca",
    "eeg_encoder": "conv",
    "predict": "eps",
    "prior": "none",
    "loss": "latent",
    "context": 0,
    "vary": False,
    "closed_form": False,
}
ENOUGH = 10_000  # training frames, from which on the paper's sizes fit
SIZES = {  # which of them is taken: see choose_sizes
    "large": {  # the paper's, for 21,600 frames: 170 million weights (Section 4.1)
        "latent_dim": 1024,  # d
        "eeg_dim": 512,  # d_e
        "width": 1024,
        "depth": 6,
        "epochs": 200,
        "lr": 1e-4,
        "warmup": 0,
        "ema": 0.999,
    },
    "small": {  # for fewer: the synthetic subject, sessions of minutes
        "latent_dim": 64,
        "eeg_dim": 128,
        "width": 128,
        "depth": 2,
        "epochs": 60,
        "lr": 1e-3,
        "warmup": 100,
        "ema": 0.998,
    },
}


def parse(argv=None):
    p = Parser(description="Train. Sizes without a default follow the subject, see SIZES here.")
    add = p.add_argument
    add("--data", nargs="+", type=named, help="prepared subject, or people (default: synthetic)")
    add("--out", type=named, default="out", help="folder for checkpoints and log (default: out)")
    add("--preset", choices=["auto", "paper", "tiny"], default="auto", help="(default: auto)")
    add("--frames", type=int, default=10, help="frames a window, K; lower it if memory runs out")
    add("--latent-dim", type=int, help="latents of a frame, d; lowered to the frames' rank")
    add("--eeg-dim", type=int, help="numbers in an EEG token, d_e")
    add("--tokens-per-frame", type=int, default=1, help="more cost memory and time (default: 1)")
    add("--width", type=int, help="of the transformer; lower it first if memory or time runs out")
    add("--depth", type=int, help="transformer blocks; lower it if time runs out")
    add("--heads", type=int, default=8, help="attention heads (default: 8)")
    add("--steps", type=int, help="training steps (default: from --epochs)")
    add("--epochs", type=int, help="passes over the training frames; lower it if time runs out")
    add("--batch-size", type=int, default=32, help="windows a step; lower it if memory runs out")
    add("--lr", type=float, help="peak learning rate")
    add("--warmup", type=int, help="steps of linear rise, under a cosine to 0; 0: constant")
    add("--weight-decay", type=float, default=0.01, help="of AdamW (default: 0.01)")
    add("--ema", type=float, help="decay a step of the averaged weights, which are what is kept")
    add("--no-validation", action="store_true", help="train on that run too, for a known --steps")
    add("--compile", action="store_true", help="compile the transformer, where possible")
    add("--seed", type=int, default=0, help="of weights, windows and noise (default: 0)")
    add("--resume", action="store_true", help="go on from OUT/last.pt, bit for bit on CPU")
    device.add_training_flags(add)
    data.add_flags(add)
    if beyond:
        beyond.add_training_flags(add)
    a = p.parse_args(argv)
    settle_training(a, PAPER, beyond)  # what is not given: PAPER, or with --preset tiny, TINY
    return a


def choose_sizes(a, training_frames):
    """Fill in the sizes that flags leave open."""
    fits = a.preset == "paper" and training_frames >= ENOUGH
    fill(a, SIZES["large" if fits else "small"])
    if a.steps is None:
        a.steps = max(1, a.epochs * training_frames // (a.frames * a.batch_size))


# ---- What the loop is given ------------------------------------------------------------


def find_autoencoder(a, subject, normaliser, rows, saved, where):
    """The linear autoencoder, fitted to training frames, those `rows` of fmri.npy, or as `saved`;
    on the CPU."""
    autoencoder = LinearAutoencoder(subject.fmri.shape[1], a.latent_dim).to(where)
    if saved:
        autoencoder.set_axes(**saved)
    else:
        # 8,192 frames are enough for 1,024 components, and their Gram matrix fits into memory.
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), 8192)).astype(int)]
        large.fit(autoencoder, subject, normaliser, chosen)  # = autoencoder.fit, piece by piece
    return autoencoder.cpu()


@torch.no_grad()
def encode_all(autoencoder, subject, normaliser, where, block=128):
    """Latents [T,d] of every frame: with them cached, V never appears in the loop. Of torchrun's
    processes each encodes a share."""
    z = torch.zeros(len(subject.fmri), autoencoder.latent_dim, device=where)
    starts = range(RANK * block, len(z), WORLD * block)
    for i in tqdm(starts, desc="encoding", disable=len(starts) < 50):
        span = slice(i, i + block)
        x = torch.from_numpy(normaliser.zscore(subject.fmri[span])).to(where)
        z[span] = autoencoder.encode(x)
    return processes.summed(z)


def build(a, subject, latent_dim):
    """(model, the settings that build it): the paper's, or with what chapters put in its places."""
    _, C, W = subject.eeg.shape
    config = {"channels": C, "samples": W, "latent_dim": latent_dim}
    names = "eeg_dim", "width", "depth", "heads", "tokens_per_frame"
    config |= {name: getattr(a, name) for name in names}
    network = NeuroFrames
    if beyond:
        network, config = beyond.network.choose(a, subject, config)
    with blaming(a, "width", "heads", "tokens_per_frame"):  # if they do not fit, name the flag
        return network(**config), config


class Batches:
    """Draws windows of the training runs, and goes through those of the validation run.

    A batch is (z [B,K,d], n [B], eps [B,K,d], EEG [B,L,C,W], its times [B,L] in frames), on the
    device: what `window_losses` compares. In validation the loss of an autoencoder that is trained
    along (beyond/joint) comes with it, or 0.
    """

    def __init__(self, a, subject, normaliser, splits, latents_of, where):
        self.a, self.splits, self.where = a, splits, where  # splits: name -> [(low, high)]
        self.latents_of = latents_of  # rows [B,K] -> z [B,K,d], and a loss of their own or 0
        self.frames, _, self.W = subject.eeg.shape
        self.read_eeg = memory.reader(subject, normaliser, where)  # rows [B,L] -> [B,L,C,W]
        tiles = data.tile(splits["val"], a.frames)
        self.validation_windows = [window for window in tiles if window.length == a.frames]

    def see(self, rows, shift):
        """EEG for the encoder. (beyond/network replaces it: cut `shift` samples late, or spectra
        that were computed before.)"""
        return self.read_eeg(rows)

    def read(self, windows, shift=0):
        """z, EEG, its times (0: a window's first frame), reconstruction error or 0. shift:
        beyond/windows."""
        rows, eeg_rows, times = data.window_indices(windows, self.a.context, int(shift > 0))
        z, extra = self.latents_of(rows)
        eeg = self.see(eeg_rows, shift)
        if shift > 0:
            times = times[:, :-1] + shift / self.W
        return *memory.to_device(self.where, z, eeg, torch.from_numpy(times)), extra

    def draw(self, step, d, schedule):
        """(batch, number of windows) of a step. All that is random follows from (seed, step). Of
        torchrun's processes each gets its share of the windows; the number is that of all."""
        seed = self.a.seed * 1_000_003 + step
        torch.manual_seed(seed)  # so that --resume draws the same
        rng = np.random.default_rng([self.a.seed, step])
        K, shift = self.a.frames, 0
        if self.a.vary:
            K, shift = beyond.windows.draw_length(rng, K, self.W)
        count = max(WORLD, self.a.batch_size * self.a.frames // K)  # as many frames, whatever K is
        windows = data.draw_windows(self.splits["train"], K, count, rng)
        n = torch.randint(schedule.steps, (count,))
        eps = torch.randn(count, windows[0].length, d)  # K, or less where runs are shorter
        windows, n, eps = processes.share(windows, n, eps)
        processes.seed_dropout(seed)  # of encoders that have one
        z, eeg, times, _ = self.read(windows, shift)
        n, eps = memory.to_device(self.where, n, eps)
        return (z, n, eps, eeg, times), count

    def validation(self, schedule):
        """(batch, extra loss, windows) of the validation run, on noise that is the same every
        time."""
        size, windows = self.a.batch_size, self.validation_windows
        for i in range(RANK * size, len(windows), WORLD * size):
            some = windows[i : i + size]
            z, eeg, times, extra = self.read(some)
            for level in range(8):  # each window at all levels of noise, evenly
                g = torch.Generator().manual_seed(level)
                n = (level + torch.rand(len(z), generator=g)) / 8 * schedule.steps
                eps = torch.randn(z.shape, generator=g)
                n, eps = memory.to_device(self.where, n.long(), eps)
                yield (z, n, eps, eeg, times), extra, some


# ---- The steps of the loop -------------------------------------------------------------


def window_losses(net, weight, z, n, eps, eeg, times):
    """Eq. 3, one number a window [B]. weight: 1, or what each latent counts [d]."""
    h = net.encoder(eeg)  # [B,L,d_e]
    return (net.squared_error(z, n, eps, h, times) * weight).mean((1, 2))


@torch.no_grad()
def validate(net, weight, batches):
    """Mean loss of the windows of the validation run, as errors of v (and, of latents that are
    trained along, their reconstruction error); None if there are none.

    An error in eps is sqrt(abar) times that in v (beyond/velocity), so that at noisy steps, where
    sampling begins, eps hides what matters: a network with the lower error in eps may draw samples
    of twenty times the variance."""
    if not batches.validation_windows:
        return None
    total = torch.zeros(2, device=batches.where)  # sum, count
    for batch, extra, _ in batches.validation(net.schedule):
        losses = window_losses(net, weight, *batch)  # [B]
        if batches.a.predict == "eps":
            losses = losses / net.schedule.alpha_bar[batch[1].cpu()].to(losses)
        total[0] += (losses + extra).sum()
        total[1] += len(losses)
    loss, count = processes.summed(total)
    return float(loss / count)


def learning_rate(a, step):
    """Half a cosine down to 0, at first under a linear warm-up; --warmup 0: constant, the paper."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / a.steps))
    return a.lr * min((step + 1) / a.warmup, cosine) if a.warmup else a.lr


@torch.no_grad()
def update_average(averaged, model, ema, step):
    """average <- decay average + (1 - decay) weights, at each step.

    The last weights are noisy, because every step follows one batch; their average is not, and
    samples from it are better. Early on it must follow the weights closely, or it would be full of
    the random ones of the start: 1 - decay = 9 / (11 + step) averages over the last ninth of the
    steps so far."""
    decay = min(ema, (2 + step) / (11 + step))
    for average, now in zip(averaged.state_dict().values(), model.state_dict().values()):
        if average.is_floating_point():
            average.lerp_(now, 1 - decay)
        else:  # whole numbers, such as batch norm's count of steps
            average.copy_(now)


# ---- The run ---------------------------------------------------------------------------


def open_subject(a, run):
    """(subject, its training and validation stretches, rows of its training frames)."""
    folders = a.data or [processes.from_first(data.ready, a.out)]
    subject = opened(data, beyond, folders, vars(a))  # of several people: people/
    run.check_data(subject)
    splits = {s: subject.segments(s, not a.no_validation) for s in ("train", "val")}
    check_training(a, subject, splits["train"], ENOUGH)
    rows = np.concatenate([np.arange(*span) for span in splits["train"]])
    if a.preset == "auto":
        beyond.auto.choose(a, subject, len(rows), SIZES["small"])
    choose_sizes(a, len(rows))
    return subject, splits, rows


def prepare(a, where, run):
    """(batches, autoencoder, model, what ckpt.pt holds beside their weights)."""
    torch.manual_seed(a.seed)
    subject, splits, rows = open_subject(a, run)
    normaliser = processes.from_first(
        data.Normaliser.measure, subject, splits["train"], a.preset != "paper"
    )
    saved = run.restored("autoencoder")
    if a.autoencoder == "joint":
        autoencoder, latents_of = beyond.joint.start(
            a, subject, normaliser, saved, where, processes.summed
        )
    else:
        autoencoder = processes.from_first(
            find_autoencoder, a, subject, normaliser, rows, saved, where
        ).to(where)
        z_all = encode_all(autoencoder, subject, normaliser, where)  # [T,d]

        def latents_of(rows):
            return memory.taken(z_all, rows), 0.0

    model, config = build(a, subject, autoencoder.latent_dim)
    batches = Batches(a, subject, normaliser, splits, latents_of, where)
    statistics = checkpoints.tensors(normaliser, "mean", "std", "eeg_scale")
    ckpt = {"config": config, "normaliser": statistics, "subject": subject.folder}
    if beyond:  # what chapters know in closed form; kept is what sample.py asks of training frames
        ckpt["measured"] = beyond.measured(
            a, model, autoencoder, normaliser, subject, batches, processes.from_first
        )
    return batches, autoencoder, model.to(where), ckpt


def train(a, where, run):
    """From the flags a to OUT/ckpt.pt.

    run  a tools.run.Run, which counts steps, keeps files and ends the loop at Ctrl-C
    """
    batches, autoencoder, model, ckpt = prepare(a, where, run)
    averaged = copy.deepcopy(model).eval()  # the moving average of the weights
    weight = 1.0  # of each latent in the loss
    if a.loss == "vertex":
        weight = beyond.vertex_loss.weight(autoencoder)
    # (PCA has no parameters; those of beyond/joint take their steps in `draw`.)
    trained = [p for p in [*model.parameters(), *autoencoder.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=a.lr, weight_decay=a.weight_decay, fused=True)
    autoencoder.optimizer = optimizer  # for beyond/joint alone
    if a.compile:
        device.compiled(model.dit, where)
    # losses_of(*batch) = window_losses(model, weight, *batch); of several processes' gradients the
    # mean is taken.
    losses_of = processes.parallel(functools.partial(window_losses, model, weight), model)
    run.begin(model=model, averaged=averaged, autoencoder=autoencoder, optimizer=optimizer)
    ckpt |= {"model": averaged.state_dict(), "autoencoder": autoencoder.state_dict()}  # views
    if a.steps == 0:  # beyond/linear_gaussian alone
        run.keep(**ckpt)

    for step in run.steps():
        # First of all, for beyond/joint takes its steps as windows are drawn.
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(a, step)

        # Windows, diffusion steps and noise, and Eq. 3 on them. Where that is faster, in bfloat16.
        model.train()
        with device.autocast(where, a.width, a.precision):
            batch, count = batches.draw(step, autoencoder.latent_dim, model.schedule)
            losses = losses_of(*batch)  # [B]
            loss = processes.share_of_mean(losses, count)  # with one process: losses.mean()

        # Down the gradient; a batch that is unlike others may not throw the weights far.
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # at once: the next step needs their memory
        update_average(averaged, model, a.ema, step)
        run.finish_step(loss)  # noted, not read: the CPU need not wait for a GPU

        # Twenty times in all, or every 500 steps: is the average the best so far, on the
        # validation run?
        if run.is_due():
            val_loss = validate(averaged, weight, batches)
            run.log(val_loss, learning_rate(a, step))
            if run.is_best(val_loss):  # the lowest so far; without a validation run always
                if a.closed_form:
                    beyond.stacked.fit(averaged, batches)
                run.keep(**ckpt)  # ckpt.pt
            run.save()  # last.pt, for --resume
    run.report()


@script
def main(argv=None):
    given = parse(argv)
    # (Once; --preset auto: twice, at first to choose, and then on all training runs.)
    for a in beyond.auto.passes(given) if beyond else [given]:
        where = device.pick_device(a.device)
        with memory.advice(where, a, "batch_size", "width", "latent_dim"), Run(a) as run:
            train(a, where, run)
        processes.part()


if __name__ == "__main__":
    main()
