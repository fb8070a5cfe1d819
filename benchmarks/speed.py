"""How long does each stage take at the paper's size, how much memory, and what limits it?

    python benchmarks/speed.py                  27,000 frames x 91,282 grayordinates, 64 x 800 EEG samples a frame
    python benchmarks/speed.py --scale 0.1      a tenth of the frames

Makes such a subject in OUT (8 GB, random but correlated, float16), runs data.py, train.py and sample.py on it, and prints
Markdown tables. Each stage stands beside what this machine can do, measured just before it: a stage that is arithmetic is
compared with the rate of one large matrix product, in the stage's own precision, a stage that moves bytes with the rate of
copying. Ratios, unlike seconds, hold on other machines.

    GFLOP     multiply-adds x 2 of matrix products and convolutions, as torch.utils.flop_counter counts them
    of rate   GFLOP / seconds, over that of a product of two 4096 x 4096 matrices (on a GPU 8192) in float32, and in bfloat16
              where training is in that
    peak      the most memory that the process had in the stage, mapped files included (Linux only), or on a GPU, there

`naive` and `diffusers` (pip install diffusers) are the rivals in sampling: the same blocks, called as in training, and the
blocks and the DDIMScheduler of that library, of the same width, depth and tokens; each once with PyTorch's default matrix
products and once with sample.py's.
"""
import argparse
import contextlib
import datetime
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
import data  # noqa: E402
from tools import files, machine  # noqa: E402
from tools.errors import fail, script  # noqa: E402
import sample as sampling  # noqa: E402
import train  # noqa: E402
from neuroframes import LinearAutoencoder, NeuroFrames, NoiseSchedule, sample  # noqa: E402

RUN, C, W, TR, FS = 1350, 64, 800, 0.8, 1000  # CineBrain's: 20 runs of 18 minutes

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
            return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) * 1024 / 1e9
    return None

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
        self.found[name] = {"seconds": took, "gflop": counter.get_total_flops() / 1e9, "peak": peak(self.device), "gbyte": (bytes_moved or 0) / 1e9,
                            "share": (bytes_moved or counter.get_total_flops()) / took / rate, "rate": rate / 1e9}

    def wrap(self, owner, name, stage, bytes_moved=None):
        """Meter every call of owner.name."""
        f = getattr(owner, name)
        def metered(*args, **kw):
            with self.stage(stage, bytes_moved):
                return f(*args, **kw)
        setattr(owner, name, metered)

# ---- The subject -----------------------------------------------------------------------

def make_subject(folder, T, V):
    """T frames in runs of 1,350: 300 components that follow an AR(1) process, on random maps, and noise; pieces of 250 frames."""
    g = torch.Generator().manual_seed(0)
    maps = torch.randn(300, V, generator=g) / torch.arange(1, 301)[:, None] ** 0.5
    os.makedirs(folder, exist_ok=True)
    shapes = {"fmri": (T, V), "eeg": (T, C, W)}
    files = {name: open(os.path.join(folder, f"{name}.npy"), "wb") for name in shapes}
    for name, shape in shapes.items():
        np.lib.format.write_array_header_1_0(files[name], {"descr": "<f2", "fortran_order": False, "shape": shape})
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
    for file in files.values():
        file.close()
    runs = [[i, min(i + RUN, T)] for i in range(0, T, RUN)]
    with open(os.path.join(folder, "subject.json"), "w") as f:
        json.dump({"tr": TR, "fs": FS, "delay": 0.0, "source": "benchmarks/speed.py", "runs": runs, "first_volume": [0] * len(runs),
                   "checksums": {"fmri": f"{T} x {V}", "eeg": ""}}, f)

# ---- The stages, each function in a process of its own ---------------------------------

def prepare(a, meter):
    """data.py on one run of .npy files."""
    raw, T = os.path.join(a.out, "raw"), min(RUN, a.T)
    os.makedirs(raw, exist_ok=True)
    rng = np.random.default_rng(0)
    np.save(os.path.join(raw, "bold.npy"), rng.standard_normal((T + 5, a.V), dtype=np.float32))
    np.save(os.path.join(raw, "eeg.npy"), rng.standard_normal((C, (T + 5) * W), dtype=np.float32))
    with meter.stage(f"prepare one run ({T:,} frames)", bytes_moved=2 * 4 * T * (a.V + C * W)):
        data.main(["--bold", f"{raw}/bold.npy", "--eeg", f"{raw}/eeg.npy", "--tr", str(TR), "--out", f"{raw}/subject"])
    shutil.rmtree(raw)

def training(a, meter):
    """train.py as it is, with the paper's settings, but for the number of steps and for what is saved."""
    n = sum(high - low for low, high in data.Subject(a.subject).segments("train", validation=False))
    measure = data.Normaliser.measure
    meter.wrap(data.Normaliser, "measure", "statistics", bytes_moved=2 * n * (a.V + C * W))
    meter.wrap(LinearAutoencoder, "fit", "fit of the autoencoder")
    meter.wrap(train, "encode_all", "encoding of all frames")
    save = files.save
    steps(a, meter, "training step", 24, save=lambda path, state: state["step"] == 24 and save(path, state))
    once = measure(data.Subject(a.subject), [(0, 256)])
    data.Normaliser.measure = lambda *_: once  # not the point here
    steps(a, meter, "training step, --autoencoder joint", 8, "--autoencoder", "joint", save=lambda path, state: None)

def steps(a, meter, name, count, *flags, save):
    """Time train.py's steps from its own calls: draw_windows begins one, add_noise (joint: reconstruction_loss) ends its loading, update ends it."""
    begin, loaded, ended, counter = [], [], [], FlopCounterMode(display=False)
    draw_windows, add_noise, tqdm, joint = data.draw_windows, NoiseSchedule.add_noise, train.tqdm, LinearAutoencoder.reconstruction_loss
    def drawn(*args):
        if len(begin) == 1:  # the second step is counted, and not timed; the first warms up
            counter.__enter__()
        if not begin:
            peak(meter.device, reset=True)
        begin.append(time.perf_counter())
        return draw_windows(*args)
    def after_loading(f):
        def called(*args, **kw):
            if len(loaded) < len(begin):
                loaded.append(time.perf_counter())
            return f(*args, **kw)
        return called
    class Bar(tqdm):
        def update(self, n=1):
            if self.unit == "step":
                finished(meter.device)
                ended.append(time.perf_counter())
                if len(ended) == 2:
                    counter.__exit__(None, None, None)
            return super().update(n)
    data.draw_windows, NoiseSchedule.add_noise, train.tqdm, files.save = drawn, after_loading(add_noise), Bar, save
    LinearAutoencoder.reconstruction_loss = after_loading(joint)
    dtype = torch.bfloat16 if machine.has_bfloat16(meter.device) else torch.float32
    before = matmul_rate(meter.device, dtype)
    train.main(["--data", a.subject, "--out", os.path.join(a.out, "joint" if "joint" in flags else "out"), "--steps", str(count), "--no-validation", "--device",
                str(meter.device), *flags])
    data.draw_windows, NoiseSchedule.add_noise, train.tqdm, LinearAutoencoder.reconstruction_loss = draw_windows, add_noise, tqdm, joint
    most = peak(meter.device)
    took = np.median([e - b for b, e in zip(begin, ended)][2:])
    rate, flop = (before + matmul_rate(meter.device, dtype)) / 2, counter.get_total_flops()
    meter.found[name] = {"seconds": took, "gflop": flop / 1e9, "peak": most, "share": flop / took / rate, "rate": rate / 1e9,
                         "loader": float(np.median([b - a for a, b in zip(begin, loaded)][2:]) / took)}

def reconstruction(a, meter):
    """sample.py as it is, but for one diffusion step in place of 50."""
    parts = {"encode_eeg": [0.0, 0.0], "sample": [0.0, 0.0]}  # seconds, GFLOP
    def clock(name):
        f, part = getattr(sampling, name), parts[name]
        def clocked(*args, **kw):
            finished(meter.device)
            began = time.perf_counter()
            with FlopCounterMode(display=False) as counter:
                result = f(*args, **kw)
            finished(meter.device)
            part[0] += time.perf_counter() - began
            part[1] += counter.get_total_flops() / 1e9
            return result
        setattr(sampling, name, clocked)
    clock("encode_eeg"), clock("sample")
    with meter.stage("whole"):
        sampling.main(["--ckpt", os.path.join(a.out, "out", "ckpt.pt"), "--steps", "1", "--device", str(meter.device)])
    whole, (eeg, drawn) = meter.found.pop("whole"), parts.values()
    rest = [whole["seconds"] - eeg[0] - drawn[0], whole["gflop"] - eeg[1] - drawn[1]]
    for name, (took, gflop) in {"EEG of the test runs": eeg, "one diffusion step: 8 samples, and 8 with shuffled EEG": drawn,
                                "loading, decoding, scores, writing": rest}.items():
        meter.found[f"sample.py: {name}"] = {"seconds": took, "gflop": gflop, "peak": whole["peak"], "rate": whole["rate"],
                                             "share": gflop / took / whole["rate"]}

# ---- Sampling, three ways --------------------------------------------------------------

class DiffusersDenoiser(nn.Module):
    """The DiT of diffusers' own blocks: adaLN-zero, self-attention, cross-attention, MLP."""

    def __init__(self, latent_dim, eeg_dim, width, depth, heads):
        super().__init__()
        from diffusers.models.attention import BasicTransformerBlock
        self.embed_z, self.embed_h = nn.Linear(latent_dim, width), nn.Linear(eeg_dim, width)
        self.blocks = nn.ModuleList([BasicTransformerBlock(
            width, heads, width // heads, cross_attention_dim=width, activation_fn="gelu", num_embeds_ada_norm=1000,
            attention_bias=True, norm_type="ada_norm_zero", norm_elementwise_affine=False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, latent_dim)

    def forward(self, z_n, n, h):
        u, h, label = self.embed_z(z_n), self.embed_h(h), torch.zeros_like(n)                  # [B,K,w], [B,L,w], [B]
        for block in self.blocks:
            u = block(u, encoder_hidden_states=h, timestep=n, class_labels=label)              # [B,K,w]
        return self.head(self.norm(u))                                                         # [B,K,d]

def samplers(device, windows, samples, context, calls, K=10):
    """{way: function that draws `samples` of `windows` windows in `calls` network calls} for the paper's network."""
    paper = train.PRESETS["paper"]
    d, e = paper["latent_dim"], paper["eeg_dim"]
    torch.manual_seed(0)
    model = NeuroFrames(C, W, d, eeg_dim=e, width=paper["width"], depth=paper["depth"], heads=paper["heads"]).to(device).eval()
    for block in [*model.dit.blocks, model.dit]:  # a fresh network answers 0, whatever the sampler gets wrong
        nn.init.normal_(block.modulation.weight, std=0.02)
    nn.init.normal_(model.dit.head.weight, std=0.02)
    h, w = torch.randn(1, windows * K, 1, e, device=device), sampling.Windows(windows * K, K, 0)
    times = (w.start[:, None] + torch.arange(-context, K + context)).clamp(0, windows * K - 1)  # [n,L]
    tokens = h[0, :, 0][times.to(device)].repeat(samples, 1, 1)                                # [Sn,L,d_e]
    positions = (times - w.start[:, None]).float().repeat(samples, 1).to(device)               # [Sn,L]
    start = torch.randn(samples, windows * K, d, generator=torch.Generator().manual_seed(0)).to(device)
    schedule, chunk = model.schedule, 16 * samples

    def draw(eps, z):
        g = torch.Generator().manual_seed(0)
        return sample(eps, tuple(z.shape), schedule, calls, generator=g, device=device)
    def cached():
        return draw(w.eps_model(model, h, context, samples, 16), start).view(samples * windows, K, d)
    def naive():
        def eps(z_n, n):
            return torch.cat([model(*u[:3], eeg_positions=u[3]) for u in zip(*(v.split(chunk) for v in (z_n, n, tokens, positions)))])
        return draw(eps, start.view(samples * windows, K, d))
    def fast(way):
        def f():
            with machine.fast_products():
                return way()
        return f
    ways = {"sample.py": fast(cached), "naive": naive, "naive, products as in sample.py": fast(naive)}
    with contextlib.suppress(ImportError):
        from diffusers import DDIMScheduler
        rival = DiffusersDenoiser(d, e, paper["width"], paper["depth"], paper["heads"]).to(device).eval()
        def diffusers():
            scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
            scheduler.set_timesteps(calls)
            z = start.view(samples * windows, K, d)
            for n in scheduler.timesteps:
                eps = torch.cat([rival(u, n.expand(len(u)).to(device), v) for u, v in zip(z.split(chunk), tokens.split(chunk))])
                z = scheduler.step(eps, n, z).prev_sample
            return z
        ways |= {"diffusers": diffusers, "diffusers, products as in sample.py": fast(diffusers)}
    return ways

@torch.no_grad()
def rivals(a, meter):
    for context in (0, 6):
        ways, found = samplers(meter.device, 8, 8, context, 5), {}
        torch.testing.assert_close(ways["sample.py"](), ways["naive, products as in sample.py"](), atol=1e-3, rtol=1e-3)
        for _ in range(2):  # in turn, that a machine whose speed drifts is fair to all
            for way, f in ways.items():
                found[way] = min(found.get(way, 1e9), seconds(f, meter.device, 1))
        for way, took in found.items():
            meter.found[f"{way}, --context {context}"] = {"seconds": took, "ratio": took / found["sample.py"]}

@torch.no_grad()
def growth(a, meter):
    """Time at one, two and four times the size of each thing."""
    subject, paper = data.Subject(a.subject), train.PRESETS["paper"]
    n = min(2048, a.T)
    normaliser = data.Normaliser.measure(subject, [(0, n)])
    class Part:
        fmri = subject.fmri[:n]
    def encode(frames, vertices):
        part, z = Part(), data.Normaliser(normaliser.mean[:vertices], normaliser.std[:vertices], normaliser.eeg_scale)
        part.fmri = Part.fmri[:frames, :vertices]
        autoencoder = LinearAutoencoder(vertices, paper["latent_dim"]).to(meter.device)
        return seconds(lambda: train.encode_all(autoencoder, part, z, meter.device), meter.device, 2)
    def draw(windows, samples):
        return seconds(samplers(meter.device, windows, samples, 0, 2)["sample.py"], meter.device, 2)
    for name, times in {"frames (encoding)": [encode(n * i // 4, a.V) for i in (1, 2, 4)],
                        "vertices (encoding)": [encode(n // 2, a.V * i // 4) for i in (1, 2, 4)],
                        "windows (sampling)": [draw(16 * i, 4) for i in (1, 2, 4)],
                        "samples (sampling)": [draw(16, 2 * i) for i in (1, 2, 4)]}.items():
        meter.found[name] = {"seconds": times}

# ---- The run ---------------------------------------------------------------------------

def child(stage, a, path):
    meter = Meter(machine.pick_device(a.device))
    stage(a, meter)
    with open(path, "w") as f:
        json.dump(meter.found, f)

@script
def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scale", type=float, default=1.0, help="share of 27,000 frames (default: 1)")
    p.add_argument("--vertices", type=int, default=91_282, help="default: 91,282")
    p.add_argument("--out", default="out/speed", help="folder for the subject and the checkpoint (default: out/speed)")
    p.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    a = p.parse_args(argv)
    a.T, a.V, a.subject = max(2 * RUN, round(27_000 * a.scale)), a.vertices, os.path.join(a.out, "subject")
    size = [a.T, a.V]
    if not os.path.exists(os.path.join(a.subject, "subject.json")) or list(data.Subject(a.subject).fmri.shape) != size:
        print(f"making {a.subject}: {a.T:,} frames x {a.V:,} vertices", flush=True)
        make_subject(a.subject, a.T, a.V)
    found, path = {}, os.path.join(a.out, "stage.json")
    for stage in (prepare, training, reconstruction, rivals, growth):
        process = multiprocessing.get_context("spawn").Process(target=child, args=(stage, a, path))
        process.start()
        process.join()
        if process.exitcode:
            fail(f"{stage.__name__} ended with status {process.exitcode}")
        with open(path) as f:
            found[stage.__name__] = json.load(f)

    device = machine.pick_device(a.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    print(f"\n    python benchmarks/speed.py {' '.join(sys.argv[1:])}\n\n{name} ({platform.machine()}), Python {platform.python_version()}, "
          f"torch {torch.__version__}, {datetime.date.today()}. {a.T:,} frames x {a.V:,} vertices, EEG {C} x {W}.\n")
    print("| stage | seconds | peak, GB | GFLOP, or GB moved | measured rate | of rate |\n|---|---|---|---|---|---|")
    for name, row in {**found["prepare"], **found["training"], **found["reconstruction"]}.items():
        done, unit = (f"{row['gbyte']:.1f} GB", "GB/s") if row.get("gbyte") else (f"{row['gflop']:,.0f}", "GFLOP/s")
        memory = "" if row["peak"] is None else f"{row['peak']:.1f}"
        print(f"| {name} | {row['seconds']:.2f} | {memory} | {done} | {row['rate']:.0f} {unit} | {row['share']:.0%} |")
    step, joint = (found["training"][f"training step{s}"] for s in ("", ", --autoencoder joint"))
    fit = found["training"]["fit of the autoencoder"]
    count = 200 * round(a.T * 0.75) // 320
    print(f"\nA training step waits {step['loader']:.1%} of its time for data (joint: {joint['loader']:.1%}); joint takes "
          f"{joint['seconds'] / step['seconds']:.2f} times as long.\nThe fit takes {1 / fit['share']:.2f} times as long as its matrix "
          f"products at the measured rate.\n200 epochs are {count:,} steps: {count * step['seconds'] / 60:,.0f} minutes at this rate.\n")
    print("| sampling: 8 windows x 8 samples x 5 calls | seconds | over sample.py |\n|---|---|---|")
    for name, row in found["rivals"].items():
        print(f"| {name} | {row['seconds']:.2f} | {row['ratio']:.2f} |")
    print("\n| seconds at 1, 2 and 4 times the number of | 1 | 2 | 4 |\n|---|---|---|---|")
    for name, row in found["growth"].items():
        print(f"| {name} | " + " | ".join(f"{t:.2f}" for t in row["seconds"]) + " |")

if __name__ == "__main__":
    main()
