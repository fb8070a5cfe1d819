"""How are the weights found? One visible loop.

    python train.py                            the synthetic subject, minutes on two CPU cores
    python train.py --data cinebrain/sub1      a prepared subject (data.py), the paper's settings
    python train.py --out OUT --resume         go on from OUT/last.pt as if nothing had happened
    torchrun --standalone --nproc_per_node=4 train.py --data ...     four GPUs share each step's windows

Writes to OUT: ckpt.pt, the averaged weights with the lowest validation loss (without a validation run: the last) and
all that sample.py needs beside them; last.pt, the whole state of training; log.jsonl, one object a line.
"""
import argparse
import json
import math
import os
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import data
from tools import files, machine
from tools.errors import Parser, check_positive, check_range, check_values, doubts, fail, named, script
from neuroframes import LinearAutoencoder, NeuroFrames

# paper: sizes and optimiser of Section 4.1 (closed-form PCA, averaged weights, clipping, weight decay are ours). tiny:
# for the synthetic subject and sessions of minutes, which cannot carry the paper's 170 million weights.
PRESETS = {
    "paper": dict(frames=10, latent_dim=1024, autoencoder="pca", eeg_encoder="conv", eeg_dim=512, predict="eps",
                  prior="none", loss="latent", context=0, depth=6, heads=8, width=1024, epochs=200, batch_size=32,
                  lr=1e-4, warmup=0, ema=0.999, vary=False, eeg_filters=64, eeg_bands=40),
    "tiny": dict(frames=10, latent_dim=64, autoencoder="pca", eeg_encoder="bandpower", eeg_dim=128, predict="v",
                 prior="gaussian", loss="latent", context=6, depth=2, heads=8, width=128, epochs=60, batch_size=32,
                 lr=1e-3, warmup=100, ema=0.998, vary=True, eeg_filters=32, eeg_bands=16)}

def parse(argv=None):
    p = Parser(description="Train on one subject.",
               epilog="Flags without a default take it from --preset; see PRESETS in train.py.")
    add = p.add_argument
    add("--data", type=named, help="prepared subject (default: a synthetic one, made in OUT)")
    add("--out", type=named, default="out", help="folder for checkpoints and log (default: out)")
    add("--preset", choices=PRESETS, help="default: tiny for the synthetic subject, paper for any other")
    add("--frames", type=int, help="frames a window, K; lower it if memory runs out")
    add("--latent-dim", type=int, help="numbers a frame, d; lowered to the rank of the training frames")
    add("--autoencoder", choices=["pca", "joint"], help="in closed form, or trained along with the rest (slow)")
    add("--eeg-encoder", choices=["conv", "bandpower"], help="the paper's, or a filter bank that ends in power")
    add("--eeg-dim", type=int, help="numbers an EEG token, d_e")
    add("--eeg-filters", type=int, help="bandpower: spatial filters; lower it if memory or time runs out")
    add("--eeg-bands", type=int, help="bandpower: frequency bands a filter; lower it if memory or time runs out")
    add("--eeg-power", choices=["both", "log"], default="both", help="bandpower: log and plain, or log for few data")
    add("--eeg-dropout", type=float, default=0.5, help="bandpower: share hidden a step (default: 0.5); few data: 0.9")
    add("--context", type=int, help="EEG windows shown before and after the K frames")
    add("--vary", action=argparse.BooleanOptionalAction, help="windows of K/3 to 3K frames, EEG cut between frames too")
    add("--predict", choices=["eps", "v"], help="what the network predicts: the noise, or the velocity")
    add("--prior", choices=["none", "gaussian"], help="start from the Gaussian denoiser of the latents, or not")
    add("--loss", choices=["latent", "vertex"], help="every latent counts alike, or by how far it moves the vertices")
    add("--tokens-per-frame", type=int, default=1, help="spatial tokens a frame; more cost memory and time")
    add("--depth", type=int, help="transformer blocks; lower it if time runs out")
    add("--heads", type=int, help="attention heads")
    add("--width", type=int, help="transformer width; lower it first if memory or time runs out")
    add("--steps", type=int, help="training steps (default: from --epochs)")
    add("--epochs", type=int, help="passes over the training frames; lower it if time runs out")
    add("--batch-size", type=int, help="windows a step; lower it if memory runs out")
    add("--lr", type=float, help="peak learning rate")
    add("--warmup", type=int, help="steps of linear warm-up before a cosine decay to 0; 0 keeps the rate constant")
    add("--weight-decay", type=float, default=0.01, help="of AdamW (default: 0.01)")
    add("--ema", type=float, help="decay a step of the moving average (EMA) of the weights, which is what is kept")
    add("--no-validation", action="store_true", help="train on that run too; choose --steps with validation first")
    add("--compile", action="store_true", help="compile the transformer, where there is a compiler")
    add("--seed", type=int, default=0, help="of weights, windows and noise (default: 0)")
    add("--device", help="cpu, cuda or mps (default: the best there is)")
    add("--resume", action="store_true", help="go on from OUT/last.pt with its settings, bit for bit on CPU")
    add("--debug", action="store_true", help="show where an error came from")
    a = p.parse_args(argv)
    a.data = a.data and os.path.abspath(a.data)
    a.preset = a.preset or ("paper" if a.data else "tiny")
    given = {name for name in PRESETS[a.preset] if getattr(a, name) is not None}
    for name in PRESETS[a.preset].keys() - given:
        setattr(a, name, PRESETS[a.preset][name])
    check_positive(a, "frames", "latent_dim", "eeg_dim", "eeg_filters", "eeg_bands", "tokens_per_frame", "depth",
                   "heads", "width", "steps", "epochs", "batch_size", "lr")
    check_range(a, 0, 1, "ema", "eeg_dropout"), check_range(a, 0, 10**9, "context", "warmup", "weight_decay", "seed")
    if a.autoencoder == "joint":  # latents move while E is trained: no covariance, no orthonormal D, one process
        if machine.WORLD > 1 or given & {"prior", "loss"} and (a.prior, a.loss) != ("none", "latent"):
            fail("--autoencoder joint goes with --prior none and --loss latent only, and without torchrun")
        a.prior, a.loss = "none", "latent"
    return a

@torch.no_grad()
def encode_all(autoencoder, subject, normaliser, device, block=128):
    """Latents [T,d] of every frame: with them cached, V never appears in the loop."""
    spans = [slice(i, i + block) for i in range(0, len(subject.fmri), block)]
    return torch.cat([autoencoder.encode(torch.from_numpy(normaliser.zscore(subject.fmri[s])).to(device))
                      for s in tqdm(spans, desc="encoding", unit="block", disable=len(spans) < 50)])

def learning_rate(a, step):
    """Linear warm-up, then half a cosine down to 0; with --warmup 0 the rate is constant, as in the paper."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / a.steps))
    return a.lr * min((step + 1) / a.warmup, cosine) if a.warmup else a.lr

@script
def main(argv=None):
    a = parse(argv)
    device = machine.pick_device(a.device)
    with machine.memory_advice(device, a, "batch_size", "width", "latent_dim"), files.held(a.out):
        with machine.Signals() as signals:
            train(a, device, signals)
    machine.part()

def train(a, device, signals):
    """From the flags `a` to OUT/ckpt.pt. signals: a machine.Signals, which the loop asks after every step."""
    last_path, best_path, log_path = (os.path.join(a.out, name) for name in ("last.pt", "ckpt.pt", "log.jsonl"))
    rank, world = machine.RANK, machine.WORLD  # torchrun's processes: all compute, the first prints and writes
    resumed = files.load_state(last_path, best_path) if a.resume else None
    if resumed:  # a subject that was moved may be named anew
        kept = ("out", "device", "resume", "debug", *["data"] * bool(a.data))
        vars(a).update({k: v for k, v in resumed["settings"].items() if k not in kept})
        machine.say(f"all settings but --out, --device and --data are those of {last_path}")
    torch.manual_seed(a.seed)

    # ---- data: stretches of whole runs, z-scored with training statistics
    folder = a.data or os.path.join(a.out, "synthetic")
    if not a.data and not os.path.exists(folder) and rank == 0:
        data.synthetic(folder)
    machine.barrier()
    subject = data.Subject(folder)
    check_values(subject)
    if resumed and resumed["checksums"] != subject.meta["checksums"]:
        fail(f"{folder}: is not the data that {last_path} was trained on; start anew without --resume")
    segments = {s: subject.segments(s, validation=not a.no_validation) for s in ("train", "val")}
    if a.frames > max((hi - lo for lo, hi in segments["train"]), default=0):
        fail(f"--frames {a.frames}: no training stretch of {folder} is that long; lower it, or look at its split")
    normaliser = data.Normaliser.measure(subject, segments["train"])
    validation = [w for w in data.tile(segments["val"], a.frames) if w[1] == a.frames]
    index = np.concatenate([np.arange(lo, hi) for lo, hi in segments["train"]])  # training frames
    a.steps = a.steps or max(1, a.epochs * len(index) // (a.frames * a.batch_size))

    # ---- linear autoencoder: in closed form, then every frame's latent is computed once
    joint = a.autoencoder == "joint"
    V, (_, C, W) = subject.fmri.shape[1], subject.eeg.shape
    d = len(resumed["autoencoder"]["E"]) if resumed else a.latent_dim
    autoencoder = LinearAutoencoder(V, d, joint).to(device)
    if resumed:
        with files.this_version(last_path):
            autoencoder.load_state_dict(resumed["autoencoder"])
    elif not joint:
        fitted = index[np.linspace(0, len(index) - 1, min(len(index), 8192)).astype(int)]  # enough for 1,024 latents
        kept = autoencoder.fit(files.Columns(subject, normaliser, fitted))
        machine.say(f"autoencoder: {autoencoder.latent_dim} latents (of {d} asked for) keep {kept:.1%} of the variance "
                    f"of {len(fitted):,} training frames; {(~normaliser.valid).sum():,} vertices do not vary")
    machine.broadcast(autoencoder.state_dict().values())  # eigenvectors of two machines may differ in sign
    z_all = None if joint else encode_all(autoencoder, subject, normaliser, device)  # [T,d]

    # ---- model; its exponential moving average (EMA), less noisy than the last weights; optimiser
    bands = dict(cycles=round(75 * subject.tr), filters=a.eeg_filters, bands=a.eeg_bands, dropout=a.eeg_dropout,
                 plain=a.eeg_power == "both")  # up to 75 Hz, where the paper's EEG is cut off
    config = dict(channels=C, samples=W, latent_dim=autoencoder.latent_dim, eeg_encoder=a.eeg_encoder,
                  eeg_dim=a.eeg_dim, width=a.width, depth=a.depth, heads=a.heads, predict=a.predict,
                  tokens_per_frame=a.tokens_per_frame, prior=a.prior == "gaussian",
                  encoder_settings=bands if a.eeg_encoder == "bandpower" else {})
    try:
        model, averaged = NeuroFrames(**config).to(device), NeuroFrames(**config).to(device)
    except ValueError as error:  # heads or tokens that do not divide what they should
        fail(f"--width {a.width} --heads {a.heads} --tokens-per-frame {a.tokens_per_frame}: {error}", error)
    schedule = model.schedule
    if model.prior:
        model.prior.fit([z_all[lo:hi] for lo, hi in segments["train"]])
    averaged.eval().load_state_dict(model.state_dict())
    # D has orthonormal columns, so an error in latent_scale z is the same error in the vertices.
    weight = autoencoder.latent_scale**2 if a.loss == "vertex" else torch.ones_like(autoencoder.latent_scale)
    weight = weight / weight.mean()  # [d]
    trained = [p for p in [*model.parameters(), *autoencoder.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=a.lr, weight_decay=a.weight_decay, fused=device.type in ("cpu", "cuda"))
    if a.compile:
        machine.compiled(model.dit, device)
    bf16 = machine.has_bfloat16(device)
    machine.say(f"{sum(p.numel() for p in trained):,} weights on {device} in {'bfloat16' if bf16 else 'float32'}; "
                f"{a.steps:,} steps of {a.batch_size} windows of {a.frames} frames; {len(index):,} training frames")
    machine.say(*doubts(a, subject, len(index)), sep="\n")
    to_device = lambda array: torch.from_numpy(array).to(device)  # noqa: E731
    eeg_of = machine.reader(subject.eeg.shape, lambda s: normaliser.eeg(subject.eeg[s]), device)  # [B,L] -> [B,L,C,W]
    def batch(windows, shift=0):
        """z [B,K,d] (joint mode: frames x [B,K,V]), eeg [B,L,C,W] cut `shift` samples late, its times [B,L]."""
        frames, eeg, eeg_positions = data.window_indices(windows, a.context)
        z = to_device(normaliser.zscore(subject.fmri[frames])) if joint else z_all[to_device(frames)]
        positions = (eeg_positions + shift / W).astype(np.float32)
        return z, data.shift_windows(eeg_of(eeg), shift), to_device(positions)

    def diffusion_loss(net, z, n, eps, eeg, eeg_positions):
        """Eq. 3 (with --predict v on v, with --loss vertex weighted), one number a window [B]."""
        out = net(schedule.add_noise(z, n, eps), n, net.encoder(eeg), eeg_positions=eeg_positions)  # [B,K,d]
        target = eps if a.predict == "eps" else schedule.velocity(z, n, eps)
        return ((out - target).square() * weight).mean((1, 2))

    def objective(z, n, eps, eeg, eeg_positions):
        reconstruction, z = autoencoder.reconstruction_loss(z) if joint else (0.0, z)  # z [B,K,d], without gradient
        return diffusion_loss(model, z, n, eps, eeg, eeg_positions).mean() + reconstruction
    objective = machine.parallel(objective, [model, autoencoder] if joint else [model])

    @torch.no_grad()
    def validate():
        """Loss of the averaged weights on the validation run, on noise that is the same every time."""
        total = torch.zeros(2, device=device)  # sum, count
        for i in range(rank * a.batch_size, len(validation), world * a.batch_size):
            z, eeg, eeg_positions = batch(validation[i: i + a.batch_size])
            x, z = z, autoencoder.encode(z) if joint else z
            reconstruction = (autoencoder.decode(z) - x).square().mean((1, 2)) if joint else 0.0
            for level in range(8):  # spread over the schedule: one random step a window would be far noisier
                g = torch.Generator().manual_seed(level)
                n = ((level + torch.rand(len(z), generator=g)) / 8 * schedule.steps).long().to(device)
                eps = torch.randn(z.shape, generator=g).to(device)
                loss = diffusion_loss(averaged, z, n, eps, eeg, eeg_positions) + reconstruction  # [B]
                total += torch.stack([loss.sum(), loss.new_tensor(len(loss))])
        return float(torch.divide(*machine.summed(total)))

    # ---- where to begin. losses: of the steps since the last line of the log
    step, best, losses = 0, {"val_loss": math.inf, "step": 0}, []
    if resumed:
        with files.this_version(last_path):
            model.load_state_dict(resumed["model"])
            averaged.load_state_dict(resumed["averaged"])
            optimizer.load_state_dict(resumed["optimizer"])
        step, best, losses = resumed["step"], resumed["best"], resumed["losses"]
        files.rewind(log_path, step)
        machine.say(f"resuming at step {step}")
        resumed = None  # its copy of the weights is no longer needed
    else:
        files.set_aside(a.out, ("ckpt.pt", "last.pt", "log.jsonl"))

    # ---- the loop. All that is random in a step follows from (seed, step): a resumed run is the same run.
    every, began = max(1, min(500, a.steps // 20)), time.time()
    bar = tqdm(total=a.steps, initial=step, unit="step", disable=rank > 0)
    signals.wait()  # from here on Ctrl-C and SIGTERM are answered at the end of a step
    while step < a.steps:
        model.train()
        torch.manual_seed(a.seed * 1_000_003 + step)
        rng, K, shift = np.random.default_rng([a.seed, step]), a.frames, 0
        if a.vary:  # as many frames a step, in windows of any length; EEG cut anywhere between two frames
            K, shift = max(1, round(a.frames * 3 ** rng.uniform(-1, 1))), int(rng.integers(W))
        windows = data.draw_windows(segments["train"], K, max(world, a.batch_size * a.frames // K), rng)
        n = torch.randint(schedule.steps, (len(windows),))                       # [B]
        eps = torch.randn(len(windows), windows[0][1], autoencoder.latent_dim)   # [B,K,d] drawn for all processes
        n, eps = n[rank::world].to(device), eps[rank::world].to(device)
        if rank > 0:
            torch.manual_seed((a.seed * 1_000_003 + step) * world + rank)        # for a dropout of its own
        z, eeg, eeg_positions = batch(windows[rank::world], shift)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            # Scaled by its share of the windows: the mean over processes is the mean over windows.
            loss = objective(z, n, eps, eeg, eeg_positions) * (len(z) * world / len(windows))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(a, step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        # Early averages follow the weights closely, or samples drawn soon after the start would be noise.
        decay = min(a.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, now in zip(averaged.state_dict().values(), model.state_dict().values()):
                average.lerp_(now, 1 - decay) if average.is_floating_point() else average.copy_(now)
        loss, asked = machine.summed(torch.stack([loss.detach() / world, loss.new_tensor(signals.caught)])).tolist()
        if not math.isfinite(loss):
            fail(f"--lr {a.lr}: the loss is {loss} at step {step}; lower it, or lengthen --warmup")
        losses.append(loss)
        bar.update()
        stop, logged = asked > 0 and step < a.steps, step % every == 0 or step == a.steps  # one was asked to: all stop
        if logged:
            val_loss = validate() if validation else None
            record = {"step": step, "loss": float(np.mean(losses)), "val_loss": val_loss,
                      "lr": learning_rate(a, step - 1), "seconds": round(time.time() - began, 2)}
            losses, better = [], val_loss is None or val_loss < best["val_loss"]
            best = {"val_loss": math.inf if val_loss is None else val_loss, "step": step} if better else best
            bar.set_postfix(loss=f"{record['loss']:.3f}", val=f"{val_loss:.3f}" if validation else "none")
            if rank == 0:
                with files.writing(log_path), open(log_path, "a") as f:
                    f.write(json.dumps(record) + "\n")
            if rank == 0 and better:
                files.save(best_path, {
                    "config": config, "model": averaged.state_dict(), "autoencoder": autoencoder.state_dict(),
                    "normaliser": {k: torch.from_numpy(getattr(normaliser, k)) for k in ("mean", "std", "eeg_scale")},
                    "settings": vars(a), "subject": os.path.abspath(folder), "checksums": subject.meta["checksums"],
                    **best})
        if rank == 0 and (logged or stop):
            files.save(last_path, {
                "model": model.state_dict(), "averaged": averaged.state_dict(), "autoencoder": autoencoder.state_dict(),
                "optimizer": optimizer.state_dict(), "settings": vars(a), "step": step, "best": best, "losses": losses,
                "checksums": subject.meta["checksums"]})
        if stop:
            bar.close()
            machine.say(f"stopped at step {step} of {a.steps}, saved; to go on: python train.py --out {a.out} --resume")
            machine.part()
            sys.exit(128 + (signals.caught or int(asked)))
    bar.close()
    best_was = f"step {best['step']} of {a.steps}, validation loss {best['val_loss']:.4f}"
    machine.say(f"wrote {best_path}: " + (best_was if validation else f"step {a.steps}, without validation"))

if __name__ == "__main__":
    main()
