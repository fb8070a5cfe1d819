"""How long does each stage take at the paper's size, how much memory, and what limits it?

    python benchmarks/speed.py                  27,000 frames x 91,282 grayordinates
    python benchmarks/speed.py --scale 0.1      a tenth of the frames
    python benchmarks/speed.py --only training  one stage: see STAGES

Makes such a subject in OUT (8 GB, random but correlated, float16; 64 x 800 EEG samples a frame),
runs data.py, train.py and sample.py on it, and prints Markdown tables, each stage as it is
measured. What was measured is kept in OUT: a run that was killed goes on where it was (to measure a
stage anew, remove its file). Each stage stands beside
what this machine can do, measured just before it: a stage that is arithmetic is compared with the
rate of one large matrix product, in the stage's own precision, a stage that moves bytes with the
rate of copying. Ratios, unlike seconds, hold on other machines.

    GFLOP     multiply-adds x 2 of matrix products and convolutions, as torch.utils.flop_counter
              counts them
    of rate   GFLOP / seconds, over that of a product of two 4096 x 4096 matrices (on a GPU 8192) in
              float32, and in bfloat16 where training is in that
    peak      the most memory that the process had in the stage, mapped files included (Linux only),
              or on a GPU, there

`naive` and `diffusers` (pip install diffusers) are the rivals in sampling: the same blocks, called
as in training, and the blocks and the DDIMScheduler of that library, of the same width, depth and
tokens; each once in float32 and once in the precision of sample.py.
"""

import argparse
import contextlib
import datetime
import functools
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import data
import sample as sampling
import train
from beyond import any_vertices, joint, second_order
from beyond.computed_once import once
from beyond.gaussian_prior import GaussianPrior
from beyond.whole_runs import Windows
from neuroframes import LinearAutoencoder, NeuroFrames, denoise
from tools import checkpoints, large
from tools.device import autocast, has_bfloat16, pick_device
from tools.errors import fail, script
from tools.files import save_json
from tools.processes import in_batches
from tools.run import Run

RUN, C, W, TR, FS = 1350, 64, 800, 0.8, 1000  # CineBrain's: 20 runs of 18 minutes
NETWORK = {name: train.SIZES["large"][name] for name in ("latent_dim", "eeg_dim", "width", "depth")}
NETWORK["heads"] = 8

# ---- What the machine can do -----------------------------------------------------------


def seconds(f, device, repeats=3):
    """The least time of f(), after one call that is not counted."""
    times = []
    for _ in range(1 + repeats):
        finished(device)
        began = time.perf_counter()
        f()
        finished(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def finished(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def matmul_rate(device, dtype=torch.float32):
    """FLOP/s of one large product."""
    n = 8192 if device.type == "cuda" else 4096
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / seconds(lambda: a @ a, device)


def copy_rate():
    """Bytes/s read and written by a copy in memory."""
    a = torch.ones(2**26)
    b = torch.empty_like(a)
    return 2 * 4 * a.numel() / seconds(lambda: b.copy_(a), torch.device("cpu"))


def peak(device, reset=False):
    """GB, the most since the last reset; None where that is not known."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device) / 1e9
    with contextlib.suppress(OSError, StopIteration):
        if reset:
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
        with open("/proc/self/status") as f:
            line = next(line for line in f if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024 / 1e9
    return None


# ---- Meters ----------------------------------------------------------------------------


@contextlib.contextmanager
def replaced(owner, name, f):
    """owner.name is f, for a while."""
    before = getattr(owner, name)
    setattr(owner, name, f)
    try:
        yield
    finally:
        setattr(owner, name, before)


class Clock:
    """Adds up the seconds and GFLOP of all calls of a function."""

    def __init__(self, device):
        self.device, self.seconds, self.gflop = device, 0.0, 0.0

    def around(self, f):
        @functools.wraps(f)
        def clocked(*args, **kw):
            finished(self.device)
            began = time.perf_counter()
            with FlopCounterMode(display=False) as counter:
                result = f(*args, **kw)
            finished(self.device)
            self.seconds += time.perf_counter() - began
            self.gflop += counter.get_total_flops() / 1e9
            return result

        return clocked


class Meter:
    """Stages of one process: {name: {seconds, gflop, peak, rate, ...}}."""

    def __init__(self, device):
        self.device, self.found = device, {}

    @contextlib.contextmanager
    def stage(self, name, bytes_moved=None):
        rate = copy_rate() if bytes_moved else matmul_rate(self.device)
        peak(self.device, reset=True)
        with FlopCounterMode(display=False) as counter:
            finished(self.device)
            began = time.perf_counter()
            yield
            finished(self.device)
        took = time.perf_counter() - began
        flop = counter.get_total_flops()
        self.found[name] = {
            "seconds": took,
            "gflop": flop / 1e9,
            "peak": peak(self.device),
            "gbyte": (bytes_moved or 0) / 1e9,
            "share": (bytes_moved or flop) / took / rate,
            "rate": rate / 1e9,
        }

    def around(self, f, stage, bytes_moved=None):
        """f, every call of which is a stage."""

        @functools.wraps(f)
        def metered(*args, **kw):
            with self.stage(stage, bytes_moved):
                return f(*args, **kw)

        return metered


# ---- The subject -----------------------------------------------------------------------


def make_subject(folder, T, V):
    """T frames in runs of 1,350: 300 components that follow an AR(1) process, on random maps, and
    noise; pieces of 250 frames."""
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(300, V, generator=g) / torch.arange(1, 301)[:, None] ** 0.5
    os.makedirs(folder, exist_ok=True)
    shapes = {"fmri": (T, V), "eeg": (T, C, W)}
    with contextlib.ExitStack() as stack:
        files = {}
        for name, shape in shapes.items():
            path = os.path.join(folder, f"{name}.npy")
            files[name] = stack.enter_context(open(path, "wb"))
            header = {"descr": "<f2", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)
        state = torch.randn(300, generator=g)
        for i in range(0, T, 250):
            z = []
            for _ in range(min(250, T - i)):
                state = 0.9 * state + 0.19**0.5 * torch.randn(300, generator=g)
                z.append(state)
            x = torch.stack(z) @ maps
            x = 10 + x + torch.empty_like(x).normal_(generator=g)
            eeg = torch.randn(len(z), C, W, generator=g)
            files["fmri"].write(x.half().numpy().data)
            files["eeg"].write(eeg.half().numpy().data)

    runs = [[i, min(i + RUN, T)] for i in range(0, T, RUN)]
    meta = {
        "tr": TR,
        "fs": FS,
        "delay": 0.0,
        "source": "benchmarks/speed.py",
        "runs": runs,
        "first_volume": [0] * len(runs),
        "checksums": {"fmri": f"{T} x {V}", "eeg": ""},
    }
    with open(os.path.join(folder, "subject.json"), "w") as f:
        json.dump(meta, f)


# ---- The stages, each function in a process of its own ---------------------------------


def prepare(a, meter):
    """data.py on one run of .npy files."""
    raw = os.path.join(a.out, "raw")
    T = min(RUN, a.T)
    os.makedirs(raw, exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(os.path.join(raw, "bold.npy"), rng.standard_normal((T + 5, a.V), dtype=np.float32))
    np.save(os.path.join(raw, "eeg.npy"), rng.standard_normal((C, (T + 5) * W), dtype=np.float32))
    flags = ["--bold", f"{raw}/bold.npy", "--eeg", f"{raw}/eeg.npy", "--tr", str(TR)]
    with meter.stage(f"prepare one run ({T:,} frames)", bytes_moved=2 * 4 * T * (a.V + C * W)):
        data.main([*flags, "--out", f"{raw}/subject"])
    shutil.rmtree(raw)


def training(a, meter):
    """train.py as it is, with the paper's settings, but for the number of steps and for what is
    saved."""
    subject = data.Subject(a.subject)
    n = sum(high - low for low, high in subject.segments("train", validation=False))
    measure = data.Normaliser.measure
    save = checkpoints.save

    def save_last(path, state):
        if state["step"] == 24:
            save(path, state)

    statistics = meter.around(measure, "statistics", bytes_moved=2 * n * (a.V + C * W))
    fit = meter.around(large.fit, "fit of the autoencoder")
    encode_all = meter.around(train.encode_all, "encoding of all frames")
    with (
        replaced(data.Normaliser, "measure", statistics),
        replaced(large, "fit", fit),
        replaced(train, "encode_all", encode_all),
        replaced(checkpoints, "save", save_last),
    ):
        steps(a, meter, "training step", 24, "out")


def along(a, meter):
    """Steps of --autoencoder joint; in a process of their own, for what others leave in memory
    would count."""
    known = data.Normaliser.measure(data.Subject(a.subject), [(0, 256)])  # not the point here
    with (
        replaced(data.Normaliser, "measure", lambda *_: known),
        replaced(checkpoints, "save", lambda path, state: None),
    ):
        flags = "--autoencoder", "joint"
        steps(a, meter, "training step, --autoencoder joint", 8, "joint", *flags)


class StepClock:
    """When each of `count` steps of train.py began, and ended; the seconds for which it waited for
    data; and what steps before the last needed of memory. The last is counted, not timed: while it
    is counted, arrays are kept for longer."""

    def __init__(self, device, count):
        self.device, self.count = device, count
        self.peak = None
        self.began = []
        self.ended = []
        self.loading = []
        self.spent = 0.0  # of what was loading, on the joint autoencoder's loss
        self.counter = FlopCounterMode(display=False)

    def around_draw(self, f):
        def draw(*args):
            if not self.began:
                peak(self.device, reset=True)
            if len(self.began) == self.count - 1:
                self.peak = peak(self.device)
                self.counter.__enter__()
            self.spent = 0.0
            self.began.append(time.perf_counter())
            batch = f(*args)
            self.loading.append(time.perf_counter() - self.began[-1] - self.spent)
            return batch

        return draw

    def around_loss(self, f):
        def loss(*args):
            began = time.perf_counter()
            found = f(*args)
            self.spent += time.perf_counter() - began
            return found

        return loss

    def around_finish(self, f):
        def finish_step(*args):
            f(*args)
            finished(self.device)
            self.ended.append(time.perf_counter())
            if len(self.ended) == self.count:
                self.counter.__exit__(None, None, None)

        return finish_step


def steps(a, meter, name, count, out, *flags):
    """Time train.py's steps from its own calls: Batches.draw begins one and loads what it needs,
    Run.finish_step ends it."""
    clock = StepClock(meter.device, count)
    dtype = torch.bfloat16 if has_bfloat16(meter.device) else torch.float32
    sizes = {**train.SIZES["large"], "heads": NETWORK["heads"], "steps": count}
    given = ["--data", a.subject, "--out", os.path.join(a.out, out), "--preset", "paper"]
    given += ["--no-validation", "--device", str(meter.device), *flags]
    for size, value in sizes.items():  # however few frames there are
        given += [f"--{size.replace('_', '-')}", str(value)]
    before = matmul_rate(meter.device, dtype)
    maps = joint.JointAutoencoder
    with (
        replaced(train.Batches, "draw", clock.around_draw(train.Batches.draw)),
        replaced(maps, "encode", clock.around_loss(maps.encode)),
        replaced(maps, "decode", clock.around_loss(maps.decode)),
        replaced(joint, "learn", clock.around_loss(joint.learn)),
        replaced(Run, "finish_step", clock.around_finish(Run.finish_step)),
    ):
        train.main(given)
    rate = (before + matmul_rate(meter.device, dtype)) / 2
    flop = clock.counter.get_total_flops()
    timed = slice(1, count - 1)  # the first warms up
    took = np.median([end - begin for begin, end in zip(clock.began, clock.ended)][timed])
    meter.found[name] = {
        "seconds": took,
        "gflop": flop / 1e9,
        "peak": clock.peak,
        "share": flop / took / rate,
        "rate": rate / 1e9,
        "loader": float(np.median(clock.loading[timed]) / took),
    }


def reconstruction(a, meter):
    """sample.py as it is, but for one diffusion step in place of 50."""
    eeg = Clock(meter.device)
    drawn = Clock(meter.device)
    ckpt = os.path.join(a.out, "out", "ckpt.pt")
    with (
        replaced(sampling.Study, "encode_eeg", eeg.around(sampling.Study.encode_eeg)),
        replaced(second_order, "denoise", drawn.around(second_order.denoise)),
        meter.stage("whole"),
    ):
        sampling.main(["--ckpt", ckpt, "--steps", "1", "--device", str(meter.device)])
    whole = meter.found.pop("whole")
    rest = Clock(meter.device)
    rest.seconds = whole["seconds"] - eeg.seconds - drawn.seconds
    rest.gflop = whole["gflop"] - eeg.gflop - drawn.gflop
    parts = {
        "EEG of the test runs": eeg,
        "one diffusion step: 8 samples, and 8 with shuffled EEG": drawn,
        "loading, decoding, scores, writing": rest,
    }
    for name, part in parts.items():
        meter.found[f"sample.py: {name}"] = {
            "seconds": part.seconds,
            "gflop": part.gflop,
            "peak": whole["peak"],
            "rate": whole["rate"],
            "share": part.gflop / part.seconds / whole["rate"],
        }


# ---- Sampling, three ways --------------------------------------------------------------


class DiffusersDenoiser(nn.Module):
    """The DiT of diffusers' own blocks: adaLN-zero, self-attention, cross-attention, MLP."""

    def __init__(self, latent_dim, eeg_dim, width, depth, heads):
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock

        self.embed_z = nn.Linear(latent_dim, width)
        self.embed_h = nn.Linear(eeg_dim, width)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = BasicTransformerBlock(
                width,
                heads,
                width // heads,
                cross_attention_dim=width,
                activation_fn="gelu",
                num_embeds_ada_norm=1000,
                attention_bias=True,
                norm_type="ada_norm_zero",
                norm_elementwise_affine=False,
            )
            self.blocks.append(block)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, latent_dim)

    def forward(self, z_n, n, h):
        u = self.embed_z(z_n)  # [B,K,width]
        h = self.embed_h(h)  # [B,L,width]
        label = torch.zeros_like(n)  # [B]
        for block in self.blocks:
            u = block(u, encoder_hidden_states=h, timestep=n, class_labels=label)  # [B,K,width]
        return self.head(self.norm(u))  # [B,K,d]


def looking_trained(device):
    """The paper's network, with weights where fresh ones are 0: those answer 0, whatever a sampler
    gets wrong."""
    torch.manual_seed(0)
    model = NeuroFrames(C, W, **NETWORK).to(device).eval()
    for block in [*model.dit.blocks, model.dit]:
        nn.init.normal_(block.modulation.weight, std=0.02)
    nn.init.normal_(model.dit.head.weight, std=0.02)
    return model


class Samplers:
    """Ways to draw `samples` of `windows` windows of K frames, side by side, in `calls` calls of
    the paper's network. Each is a method that returns z [samples windows,K,d] of the same noise."""

    def __init__(self, device, windows, samples, context, calls, K=10):
        self.device, self.samples, self.context, self.calls = device, samples, context, calls
        self.model = looking_trained(device)
        self.together = 16 * samples  # windows that the network answers for at a time
        T = windows * K
        d = NETWORK["latent_dim"]
        self.h = torch.randn(1, T, 1, NETWORK["eeg_dim"], device=device)
        self.w = Windows([i * K for i in range(windows)], K, T)
        tokens, times = self.w.eeg(self.h, context)
        self.tokens = tokens[:, 0].repeat(samples, 1, 1)  # [samples windows,L,d_e]
        self.times = times.repeat(samples, 1)  # [samples windows,L]
        self.run_shape = samples, T, d
        self.shape = samples * windows, K, d
        self.diffusers = None
        with contextlib.suppress(ImportError):
            self.diffusers = DiffusersDenoiser(**NETWORK).to(device).eval()

    def noise(self, shape):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(self.device)

    def draw(self, eps_model, shape):
        return denoise(eps_model, None, self.noise, shape, self.model.schedule, self.calls)

    def ours(self):
        """sample.py's: whole runs, and what can be computed once."""

        def model_of(tokens, times):
            return once(self.model, tokens[:, 0], times)

        batches = functools.partial(in_batches, 16)
        eps_model = self.w.eps_model(model_of, self.h, self.context, self.samples, batches)
        return self.draw(eps_model, self.run_shape).view(self.shape)

    def naive(self):
        """The same blocks, called as in training."""

        def eps_model(z_n, n):
            batches = zip(*(u.split(self.together) for u in (z_n, n, self.tokens, self.times)))
            return torch.cat([self.model(*batch) for batch in batches])

        return self.draw(eps_model, self.shape)

    def of_diffusers(self):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
        scheduler.set_timesteps(self.calls)
        z = self.noise(self.shape)
        for n in scheduler.timesteps:
            eps = []
            for u, h in zip(z.split(self.together), self.tokens.split(self.together)):
                eps.append(self.diffusers(u, n.expand(len(u)).to(self.device), h))
            z = scheduler.step(torch.cat(eps), n, z).prev_sample
        return z


def samplers(device, windows, samples, context, calls, K=10):
    """{way: function that draws `samples` of `windows` windows in `calls` network calls} for the
    paper's network."""
    ways = Samplers(device, windows, samples, context, calls, K)
    products = autocast(device, NETWORK["width"])
    found = {
        "sample.py": products(ways.ours),
        "sample.py, float32": ways.ours,
        "naive, float32": ways.naive,
        "naive": products(ways.naive),
    }
    if ways.diffusers is not None:
        found["diffusers, float32"] = ways.of_diffusers
        found["diffusers"] = products(ways.of_diffusers)
    return found


def path(a, meter):
    """What a user does: train.py without flags, sample.py, sample.py --interrecon."""
    out = os.path.join(a.out, "path")
    ckpt = ["--ckpt", os.path.join(out, "ckpt.pt")]
    commands = {
        "train.py without flags": lambda: train.main(["--data", a.subject, "--out", out]),
        "sample.py": lambda: sampling.main(ckpt),
        "sample.py --interrecon": lambda: sampling.main([*ckpt, "--interrecon"]),
    }
    for name, command in commands.items():
        peak(meter.device, reset=True)
        began = time.perf_counter()
        command()
        took = time.perf_counter() - began
        meter.found[name] = {"seconds": took, "peak": peak(meter.device)}


def part_seen(device, rows):
    """(Observation of the vertices rows [patterns,V] at 1,024 latents, a prior that is smooth in
    time)."""
    d = NETWORK["latent_dim"]
    V = rows.shape[1]
    torch.manual_seed(0)
    autoencoder = LinearAutoencoder(V, d).to(device)
    autoencoder.E = torch.linalg.qr(torch.randn(V, d))[0].T.contiguous().to(device)
    autoencoder.latent_scale = torch.linspace(8, 0.5, d, device=device)
    left_out = torch.randn(500, V, device=device)
    prior = GaussianPrior(d)
    walk = torch.randn(2000, d).cumsum(0)
    slow = walk[20:] - walk[:-20]
    prior.fit([slow / slow.std(0)])
    rows = rows.to(device)
    return any_vertices.Observation(autoencoder, rows, left_out.var(0), [left_out]), prior


@torch.no_grad()
def observed(a, meter, K=10, V=20_000):
    """One projection onto a part of the vertices, mean over the steps of sample.py, beside the
    network's call that it follows: all frames seen alike, and each in a part of its own."""
    sixth = (torch.arange(V) < V // 6)[None]
    halves = torch.rand(K, V, generator=torch.Generator().manual_seed(0)) < 0.5
    model = looking_trained(meter.device)
    abars = model.schedule.alpha_bar[second_order.even_steps(model.schedule, 15)[0]].tolist()

    def beside(name, rows, patterns, B):
        observation, prior = part_seen(meter.device, rows)
        project = observation.projection(patterns, prior, torch.arange(K))
        x = torch.randn(B, K, V, device=meter.device)
        y = [observation.latents(x[:, k], p) for k, p in enumerate(patterns)]
        y = torch.stack(y, 1)  # [B,K,d]
        z = torch.randn_like(y)
        h = torch.randn(B, K, NETWORK["eeg_dim"], device=meter.device)
        n = torch.zeros(B, dtype=torch.long, device=meter.device)
        call = once(model, h, torch.arange(K, device=meter.device).expand(B, -1))
        with autocast(meter.device, NETWORK["width"]):
            network = seconds(lambda: call(z, n), meter.device, 2)
        took = [seconds(lambda abar=abar: project(z, y, abar), meter.device, 1) for abar in abars]
        mean = float(np.mean(took))
        meter.found[f"{name}: the network's call"] = {"seconds": network, "ratio": 1.0}
        meter.found[f"{name}: the projection"] = {"seconds": mean, "ratio": mean / network}

    beside("64 windows, all frames alike", sixth, [0] * K, 64)
    beside("8 samples of a window, each frame another half", halves, list(range(K)), 8)


@torch.no_grad()
def rivals(a, meter):
    for context in (0, 6):
        ways = samplers(meter.device, 8, 8, context, 5)
        same = [ways[way]() for way in ("sample.py, float32", "naive, float32")]
        torch.testing.assert_close(*same, atol=1e-3, rtol=1e-3)
        found = {}
        for _ in range(2):  # in turn, that a machine whose speed drifts is fair to all
            for way, f in ways.items():
                found[way] = min(found.get(way, 1e9), seconds(f, meter.device, 1))
        for way, took in found.items():
            ratio = took / found["sample.py"]
            meter.found[f"{way}, --context {context}"] = {"seconds": took, "ratio": ratio}


class Part:
    """The first frames and vertices of a subject, in memory."""

    def __init__(self, fmri):
        self.fmri = fmri


@torch.no_grad()
def growth(a, meter):
    """Time at one, two and four times the size of each thing."""
    subject = data.Subject(a.subject)
    n = min(2048, a.T)
    whole = data.Normaliser.measure(subject, [(0, n)])
    fmri = subject.fmri[:n]

    def encode(frames, vertices):
        part = Part(fmri[:frames, :vertices])
        mean = whole.mean[:vertices]
        normaliser = data.Normaliser(mean, whole.std[:vertices], whole.eeg_scale)
        autoencoder = LinearAutoencoder(vertices, NETWORK["latent_dim"]).to(meter.device)
        given = autoencoder, part, normaliser, meter.device
        return seconds(lambda: train.encode_all(*given), meter.device, 2)

    def draw(windows, samples):
        way = samplers(meter.device, windows, samples, 0, 2)["sample.py"]
        return seconds(way, meter.device, 2)

    times = {
        "frames (encoding)": [encode(n * i // 4, a.V) for i in (1, 2, 4)],
        "vertices (encoding)": [encode(n // 2, a.V * i // 4) for i in (1, 2, 4)],
        "windows (sampling)": [draw(16 * i, 4) for i in (1, 2, 4)],
        "samples (sampling)": [draw(16, 2 * i) for i in (1, 2, 4)],
    }
    meter.found |= {name: {"seconds": found} for name, found in times.items()}


# ---- The run ---------------------------------------------------------------------------


def child(stage, a, path):
    meter = Meter(pick_device(a.device))
    stage(a, meter)
    save_json(path + ".partial", meter.found)
    os.replace(path + ".partial", path)


def measured(a, stage):
    """What a stage's process found, now or before."""
    path = os.path.join(a.out, f"{stage.__name__}-{a.T}x{a.V}.json")
    if not os.path.exists(path):
        process = multiprocessing.get_context("spawn").Process(target=child, args=(stage, a, path))
        process.start()
        process.join()
        if process.exitcode:
            fail(f"{stage.__name__} ended with status {process.exitcode}")
    with open(path) as f:
        return json.load(f)


def show_machine(a):
    device = pick_device(a.device)
    machine = f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    size = f"{a.T:,} frames x {a.V:,} vertices, EEG {C} x {W}"
    print(f"\n    python benchmarks/speed.py {' '.join(sys.argv[1:])}\n")
    print(f"{machine} ({platform.machine()}), {versions}, {datetime.date.today()}. {size}.\n")


def show_stages(rows, T):
    print("| stage | seconds | peak, GB | GFLOP, or GB moved | measured rate | of rate |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        done, unit = f"{row['gflop']:,.0f}", "GFLOP/s"
        if row.get("gbyte"):
            done, unit = f"{row['gbyte']:.1f} GB", "GB/s"
        memory = "" if row["peak"] is None else f"{row['peak']:.1f}"
        took = f"{row['seconds']:.2f} | {memory} | {done}"
        print(f"| {name} | {took} | {row['rate']:.0f} {unit} | {row['share']:.0%} |")


def show_path(rows, T):
    print("\n| what a user does | minutes | peak, GB |\n|---|---|---|")
    for name, row in rows.items():
        memory = "" if row["peak"] is None else f"{row['peak']:.1f}"
        print(f"| {name} | {row['seconds'] / 60:.1f} | {memory} |")


def show_training(rows, T):
    show_stages(rows, T)
    step = rows["training step"]
    over = 1 / rows["fit of the autoencoder"]["share"]
    count = 200 * round(T * 0.75) // 320
    minutes = count * step["seconds"] / 60
    print(
        f"\nA training step waits {step['loader']:.1%} of its time for data.\n"
        f"The fit takes {over:.2f} times as long as its matrix products at the measured rate.\n"
        f"200 epochs are {count:,} steps: {minutes:,.0f} minutes at this rate.\n"
    )


def show_ratios(rows, T):
    print("\n| | seconds | over the first, or the call above |\n|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} |")


def show_growth(rows, T):
    print("\n| seconds at 1, 2 and 4 times the number of | 1 | 2 | 4 |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(f"{t:.2f}" for t in row["seconds"]) + " |")


STAGES = {
    prepare: show_stages,
    training: show_training,
    along: show_stages,
    reconstruction: show_stages,
    observed: show_ratios,
    rivals: show_ratios,
    growth: show_growth,
    path: show_path,
}


def parse(argv):
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = p.add_argument
    add("--scale", type=float, default=1.0, help="share of 27,000 frames (default: 1)")
    add("--vertices", type=int, default=91_282, help="default: 91,282")
    add(
        "--out",
        default="out/speed",
        help="folder for the subject and the checkpoint (default: out/speed)",
    )
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    names = [stage.__name__ for stage in STAGES]
    add("--only", nargs="+", choices=names, default=names, help="these stages (default: all)")
    a = p.parse_args(argv)
    a.T = max(2 * RUN, round(27_000 * a.scale))
    a.V = a.vertices
    a.subject = os.path.join(a.out, "subject")
    return a


@script
def main(argv=None):
    a = parse(argv)
    there = os.path.exists(os.path.join(a.subject, "subject.json"))
    if not there or data.Subject(a.subject).fmri.shape != (a.T, a.V):
        print(f"making {a.subject}: {a.T:,} frames x {a.V:,} vertices", flush=True)
        make_subject(a.subject, a.T, a.V)
    show_machine(a)
    for stage, show in STAGES.items():
        if stage.__name__ in a.only:
            show(measured(a, stage), a.T)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
