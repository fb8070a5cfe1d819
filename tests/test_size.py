"""Does it work at any size? Many processes, recordings too large for memory, and memory that runs
out."""

import concurrent.futures
import contextlib
import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import speed
import torch
from conftest import HERE, SMALL, command, read_json, read_log, run
from torch.distributed import run as distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import beyond
import data
import sample as sampling
import train
from beyond import joint
from neuroframes import DiT, LinearAutoencoder
from tools import large, memory
from tools.run import Run

# ---- Many processes --------------------------------------------------------------------


def torchrun(script, *flags):
    """torchrun --standalone --nproc_per_node=2 SCRIPT FLAGS. It is in a thread, since in the main
    one it would take over pytest's signals."""
    argv = ["--standalone", "--nproc_per_node=2", os.path.join(HERE, script), *map(str, flags)]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(distributed.main, argv).result()


def losses(folder):
    return [[line["loss"], line["val_loss"]] for line in read_log(folder)]


@pytest.mark.parametrize(
    "flags",
    [
        ["--eeg-dropout", "0", "--eeg-power", "log"],
        ["--eeg-encoder", "conv", "--no-vary", "--predict", "eps"],
        ["--eeg-dropout", "0", "--no-vary", "--autoencoder", "joint"],
    ],
)
def test_two_processes_do_what_one_does(tiny, tmp_path, monkeypatch, flags):
    """Shares of 5 windows are unequal, and batch norm sees all of them. (Dropout is drawn by each
    process for itself.)"""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    training = ["--data", tiny, *SMALL, "--batch-size", 5, "--steps", 6, "--lr", 3e-3, *flags]
    drawing = ["--ckpt", tmp_path / "one/ckpt.pt", "--device", "cpu"]
    drawing += ["--steps", 3, "--samples", 2, "--window", 12, "--batch-size", 2]
    for module, given in ((train, training), (sampling, drawing)):
        command(monkeypatch, module, *given, "--out", tmp_path / "one")
        torchrun(f"{module.__name__}.py", *given, "--out", tmp_path / "two")

    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    np.testing.assert_allclose(two, one, rtol=1e-4)
    paths = [tmp_path / name / "last.pt" for name in ("one", "two")]
    one, two = (torch.load(path, weights_only=True) for path in paths)
    for part in ("model", "autoencoder"):
        for name, weight in one[part].items():  # running statistics of batch norm among them
            torch.testing.assert_close(two[part][name], weight, atol=2e-3, rtol=2e-3, msg=name)
    for array in ("recon", "std"):
        one, two = (np.load(tmp_path / name / f"direct/{array}.npy") for name in ("one", "two"))
        np.testing.assert_allclose(two, one, atol=1e-3)


COUNTED = """
import collections, json, sys
sys.path.insert(0, {here!r})
import numpy as np
import data, neuroframes, train
from beyond import left_out, linear_gaussian
from tools import checks, ranks

calls = collections.Counter()

def counted(owner, name, size=lambda *_: 1):
    f = getattr(owner, name)
    def wrapped(*given):
        calls[name] += size(*given)
        return f(*given)
    setattr(owner, name, wrapped)

counted(data, "synthetic")
counted(data.Normaliser, "measure")
counted(neuroframes.LinearAutoencoder, "fit")
counted(neuroframes.LinearAutoencoder, "encode", lambda _, x: len(x))
counted(linear_gaussian.LinearGaussian, "fit")
counted(left_out, "variance")
counted(checks, "check_finite", lambda x, *_: np.shape(x)[-1] == 64 and len(x))
train.main(sys.argv[1:])
with open({out!r} + f"/{{ranks.RANK}}.json", "w") as f:
    json.dump(calls, f)
"""


def test_processes_prepare_once_for_all(tiny, tmp_path, monkeypatch):
    """What is fitted, the first of them fits; frames are checked and encoded by all, each a share:
    of 300 in blocks of 128 one encodes 128. What is kept is as of one process, to the last bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = ["--data", tiny, *SMALL, "--closed-form", "--eeg-dropout", 0, "--no-vary"]
    given += ["--steps", 2]
    command(monkeypatch, train, *given, "--out", tmp_path / "one")
    script = tmp_path / "counted.py"
    script.write_text(COUNTED.format(here=HERE, out=str(tmp_path)))
    torchrun(str(script), *given, "--out", tmp_path / "two")

    first, second = (read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    once = {"measure": 1, "fit": 2, "variance": 1, "encode": 300 - 128 + 60, "check_finite": 180}
    assert first == once
    assert second == {"encode": 128, "check_finite": 120}
    one, two = (
        torch.load(tmp_path / name / "ckpt.pt", weights_only=True) for name in ("one", "two")
    )
    for part in ("autoencoder", "normaliser"):
        for name, values in one[part].items():
            assert torch.equal(two[part][name], values), name
    for values, others in zip(tree_leaves(one["measured"]), tree_leaves(two["measured"])):
        assert torch.equal(values, others)
    closed_form = [name for name in one["model"] if name.startswith(("linear.", "prior."))]
    assert len(closed_form) > 8
    for name in closed_form:
        torch.testing.assert_close(two["model"][name], one["model"][name], rtol=1e-6, atol=0)
    torch.testing.assert_close(two["model"]["share"], one["model"]["share"], atol=1e-3, rtol=0)


def test_what_the_first_process_cannot_ends_all(tmp_path, monkeypatch):
    """And none waits for it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "failing.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {HERE!r})\nimport data, train\n"
        "def fail(*_): raise MemoryError('no room')\n"
        "data.Normaliser.measure = fail\ntrain.main(sys.argv[1:])\n"
    )
    with pytest.raises(ChildFailedError):
        torchrun(str(script), *SMALL, "--steps", 2, "--out", tmp_path / "out")
    assert (tmp_path / "out/synthetic/subject.json").exists()
    assert not (tmp_path / "out/last.pt").exists()


# ---- Frames that do not fit into memory ------------------------------------------------


def low_rank(T, V, decay, seed=0):
    """Frames [T,V] whose power falls like component^-decay, and noise."""
    rng = np.random.default_rng(seed)
    power = np.arange(1, 201) ** -decay
    x = (rng.standard_normal((T, 200)) * power**0.5) @ rng.standard_normal((200, V))
    return torch.from_numpy(x + 0.3 * rng.standard_normal((T, V))).float()


@pytest.mark.parametrize(
    "T, block, rounded", [(300, 4096, True), (300, 256, False), (300, 256, True)]
)
def test_the_autoencoder_in_blocks_is_the_autoencoder(monkeypatch, T, block, rounded):
    """With all eigenvectors the same components; with the leading ones alone as much variance, and
    in bfloat16 hardly less. Axes are orthonormal to float32 all the same, and latents, of training
    frames, uncorrelated and of variance 1."""
    monkeypatch.setattr(large, "bfloat16_pays", lambda *_: rounded)
    x = low_rank(T, 1500, 1.0)
    plain = LinearAutoencoder(1500, 20)
    kept = plain.fit(x)
    blocks = LinearAutoencoder(1500, 20)
    kept_in_blocks = large.fit_in_blocks(blocks, lambda span: x[:, span].clone(), T, block)
    assert abs(kept - kept_in_blocks) < (1e-6 if block > T else 2e-4)
    error, in_blocks = ((m.decode(m.encode(x)) - x).square().mean() for m in (plain, blocks))
    assert in_blocks < 1.001 * error
    assert plain.E.shape == blocks.E.shape
    torch.testing.assert_close(blocks.E @ blocks.E.T, torch.eye(20), atol=1e-5, rtol=0)
    z = blocks.encode(x)
    torch.testing.assert_close(z.T @ z / T, torch.eye(20), atol=1e-5, rtol=0)
    if block > T:
        torch.testing.assert_close((plain.E * blocks.E).sum(1).abs(), torch.ones(20))
        torch.testing.assert_close(plain.mean, blocks.mean)


@pytest.mark.parametrize(
    "power, lost",
    [
        (1 / torch.arange(1, 1001.0), 3e-6),
        (torch.arange(1, 1001.0) ** -0.5, 2e-5),
        (2 - torch.arange(1000.0) / 1000, 6e-4),
    ],
)
def test_leading_eigenvectors_capture_what_all_would(power, lost):
    """Of matrices of known eigenvalues: less by the printed share of the whole, at most."""
    generator = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(1000, 1000, generator=generator).double())[0]
    gram = (axes * power.double()) @ axes.T
    for count in (8, 125):
        basis = large.leading(gram.float(), count)
        assert basis.shape == (1000, count)
        torch.testing.assert_close(basis.T @ basis, torch.eye(count), atol=1e-5, rtol=0)
        captured = (basis * (gram.float() @ basis)).sum()
        assert (power[:count].sum() - captured) / power.sum() < lost


# ---- More than memory holds ------------------------------------------------------------


def test_eeg_read_from_disk_is_that_kept_in_memory(tiny, tmp_path, monkeypatch):
    found = {}
    reads = {}
    scaled = data.Normaliser.eeg
    for name, room in (("kept", 2**30), ("read", 0)):
        rows = []

        def counted(self, eeg, rows=rows):
            rows.append(len(eeg))
            return scaled(self, eeg)

        monkeypatch.setattr(data.Normaliser, "eeg", counted)
        monkeypatch.setattr(memory, "EEG_ON_CPU", room)
        out = tmp_path / name
        command(monkeypatch, train, "--data", tiny, "--steps", 4, *SMALL, "--out", out)
        found[name] = losses(out)
        reads[name] = len(rows)
    assert found["kept"] == found["read"]
    assert reads["kept"] == 2 and reads["read"] > 4  # 300 frames in blocks of 256; each batch


def test_runs_drawn_one_after_the_other(tiny, tmp_path, monkeypatch):
    """However long the session, sample.py holds the latents of a few runs; here one of three, of
    which one is shorter. The frames stay in their places: with almost all of each observed, what is
    not depends little on the noise."""
    folder = tmp_path / "three"
    folder.mkdir()
    for name in ("fmri.npy", "eeg.npy"):
        (folder / name).symlink_to(f"{tiny}/{name}")
    meta = read_json(f"{tiny}/subject.json")
    meta["split"] = {"train": list(range(120)), "test": [*range(120, 230), *range(240, 300)]}
    (folder / "subject.json").write_text(json.dumps(meta))
    command(monkeypatch, train, "--data", folder, "--steps", 2, *SMALL, "--out", tmp_path)

    mask = np.arange(64) % 8 != 0
    np.save(tmp_path / "mask.npy", mask)
    groups = beyond.WholeRuns.groups
    counts = []

    def counted(self, stretches):
        counts.append(len(groups(self, stretches)))
        return groups(self, stretches)

    monkeypatch.setattr(beyond.WholeRuns, "groups", counted)
    guesses = []
    for size in (2**25, 1):
        monkeypatch.setattr(beyond.drawing, "LATENTS_AT_ONCE", size)
        flags = "--ckpt", tmp_path / "ckpt.pt", "--observe", tmp_path / "mask.npy"
        command(monkeypatch, sampling, *flags, "--steps", 5, "--device", "cpu")
        recon, truth = (np.load(tmp_path / f"interrecon/{name}.npy") for name in ("recon", "truth"))
        assert np.array_equal(recon[:, mask], truth[:, mask])
        guesses.append(recon[:, ~mask].ravel())
    assert counts == [1, 3]
    assert np.corrcoef(*guesses)[0, 1] > 0.99


# ---- Memory that runs out --------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are Linux's")
@pytest.mark.parametrize(
    "script, flags, advice",
    [
        (
            "train.py",
            ["--width", "65536"],
            "--batch-size from 4 to 2, then --width from 65536 to 32768",
        ),
        (
            "sample.py",
            ["--samples", "10000000"],
            "--batch-size from 16 to 8, then --samples from 10000000 to 5000000",
        ),
    ],
)
def test_out_of_memory_says_what_to_lower(tiny, trained, tmp_path, script, flags, advice):
    import resource

    given = ["--data", tiny, *SMALL]
    if script == "sample.py":
        given = ["--ckpt", trained / "ckpt.pt", "--device", "cpu"]
    most = 3 * 2**30

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    done = run(script, *given, *flags, "--out", tmp_path, preexec_fn=limit)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: out of memory on cpu. Lower " + advice in done.stderr


def test_joint_maps_begin_as_each_other_and_lie_as_adamw_wants_them():
    """What is not contiguous, fused AdamW copies at each step."""
    maps = joint.JointAutoencoder(9, 4)
    assert torch.equal(maps.D, maps.E.T) and maps.D.is_contiguous()
    with torch.no_grad():
        maps.D += 1
    assert not torch.equal(maps.D, maps.E.T)


# ---- Speed that costs nothing ----------------------------------------------------------


@pytest.fixture
def small_network(monkeypatch):
    """The network of benchmarks/speed.py, small."""
    sizes = {"latent_dim": 16, "eeg_dim": 8, "width": 32, "depth": 2}
    monkeypatch.setattr(speed, "NETWORK", {**sizes, "heads": 4})
    monkeypatch.setitem(train.SIZES, "large", {**train.SIZES["large"], **sizes})


class Crossings(TorchDispatchMode):
    """Notes the sizes of tensors of the CPU that operators put together with the meta device."""

    def __init__(self):
        super().__init__()
        self.sizes, self.ignored = [], False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x) and x.ndim]
        places = {x.device.type for x in [*given, made] if torch.is_tensor(x)}
        if places == {"cpu", "meta"} and not self.ignored:
            self.sizes += [x.numel() for x in given if x.device.type == "cpu"]
        return made


@pytest.fixture
def on_meta(monkeypatch):
    """train.py with its loop on the meta device, which stands in for a GPU: tensors there have
    shapes and no values, so that whoever reads one fails. Returns what crosses over to it in the
    loop, but for what memory.to_device sends, and once for each length; and the runs."""
    meta = torch.device("meta")
    crossings, runs = Crossings(), []
    prepare, send = train.prepare, memory.to_device

    def prepared(a, where, run):
        batches, autoencoder, model, ckpt = prepare(a, torch.device("cpu"), run)
        z_all = batches.latents_of(np.arange(batches.frames))[0].to(meta)
        batches.latents_of = lambda rows: (memory.taken(z_all, rows), 0.0)
        batches.where = meta
        if getattr(model, "prior", None):
            for K in range(1, 3 * a.frames + 1):
                model.prior.filter(z_all.new_zeros(1, K, z_all.shape[1]), torch.arange(K), abs)
        return batches, autoencoder.to(meta), model.to(meta), ckpt

    def sent(*given):
        crossings.ignored = True
        found = send(*given)
        crossings.ignored = False
        return found

    def steps(self):
        runs.append(self)
        self.signals.wait()
        self.bar = tqdm(disable=True)
        with crossings:
            yield from range(self.a.steps)

    monkeypatch.setattr(train.device, "pick_device", lambda _: meta)
    monkeypatch.setattr(train, "prepare", prepared)
    monkeypatch.setattr(memory, "to_device", sent)
    monkeypatch.setattr(Run, "steps", steps)
    monkeypatch.setattr(Run, "is_due", lambda self: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(train.device, "autocast", lambda *_: contextlib.nullcontext())
    adamw = torch.optim.AdamW  # fused there is not for meta
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, fused, **given: adamw(p, **given))
    return crossings.sizes, runs


PAPER = "--predict", "eps", "--eeg-encoder", "conv", "--prior", "none", "--no-closed-form"


@pytest.mark.parametrize("flags", [["--vary"], ["--no-vary"], PAPER])
def test_no_step_of_training_waits_for_a_gpu(tiny, tmp_path, monkeypatch, on_meta, flags):
    """No value is read there, and nothing but the schedule's tables is sent there by the way."""
    crossed, runs = on_meta
    command(monkeypatch, train, "--data", tiny, *SMALL, *flags, "--steps", 6, "--out", tmp_path)
    (run,) = runs
    assert run.step == 6 and len(run.unread) == 6 and not run.losses
    assert {loss.device.type for loss in run.unread} == {"meta"}
    assert set(crossed) == {1000}
    with pytest.raises(RuntimeError, match="meta"):
        run.read_losses()


@pytest.mark.parametrize("flags", [[], PAPER])
def test_products_are_in_bfloat16_and_losses_are_not(tiny, tmp_path, monkeypatch, flags):
    answers, losses = [], []
    of_windows, answer = train.window_losses, DiT.forward

    def noted_losses(*given):
        losses.append(of_windows(*given))
        return losses[-1]

    def noted_answer(*given, **named):
        answers.append(answer(*given, **named))
        return answers[-1]

    monkeypatch.setattr(train, "window_losses", noted_losses)
    monkeypatch.setattr(DiT, "forward", noted_answer)
    given = ["--data", tiny, *SMALL, *flags, "--precision", "bfloat16", "--no-validation"]
    command(monkeypatch, train, *given, "--steps", 2, "--out", tmp_path)
    assert {out.dtype for out in answers} == {torch.bfloat16} and len(answers) == 2
    assert {loss.dtype for loss in losses} == {torch.float32} and len(losses) == 2
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert {w.dtype for w in state["model"].values() if w.is_floating_point()} == {torch.float32}


def test_a_loss_that_is_none_is_found_when_it_is_read(tiny, tmp_path, monkeypatch, capsys):
    """With the number of its step, and before weights are kept that it has spoiled."""
    draw = train.Batches.draw

    def spoiled(self, step, *rest):
        (z, n, eps, *eeg), count = draw(self, step, *rest)
        return (z, n, eps * (float("inf") if step == 12 else 1.0), *eeg), count

    monkeypatch.setattr(train.Batches, "draw", spoiled)
    given = ["--data", tiny, *SMALL, "--steps", 100, "--out", tmp_path]
    with pytest.raises(SystemExit):
        command(monkeypatch, train, *given)
    assert "--lr 0.001: the loss is nan at step 13; lower it" in capsys.readouterr().err
    assert [line["step"] for line in read_log(tmp_path)] == [5, 10]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 10


@torch.no_grad()
@pytest.mark.parametrize("context", [0, 2])
def test_sampling_with_what_is_computed_once_is_the_same(small_network, context):
    ways = speed.samplers(torch.device("cpu"), 3, 2, context, 4, K=5)
    once = ways["sample.py"]()
    naive = ways["naive"]()
    torch.testing.assert_close(once, naive, atol=1e-4, rtol=1e-4)
    assert naive.std() > 0.1


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch, capsys):
    """Of two stages that are asked for one is there; of others nothing is said."""
    a = speed.parse(["--scale", "0.2", "--out", str(tmp_path)])
    kept = {"samples (sampling)": {"seconds": [0.25, 0.5, 1.0]}}
    (tmp_path / f"growth-{a.T}x{a.V}.json").write_text(json.dumps(kept))
    begun = []

    def measure(stage, a, path):
        begun.append(stage.__name__)
        with open(path, "w") as f:
            json.dump({"train.py without flags": {"seconds": 90.0, "peak": None}}, f)

    class Now:
        def __init__(self, target, args):
            self.start = lambda: measure(*args)
            self.exitcode = 0

        def join(self):
            pass

    monkeypatch.setattr(
        speed.multiprocessing, "get_context", lambda _: SimpleNamespace(Process=Now)
    )
    monkeypatch.setattr(speed, "make_subject", lambda *_: None)
    for _ in range(2):
        speed.main(["--scale", "0.2", "--out", str(tmp_path), "--only", "growth", "path"])
        said = capsys.readouterr().out
        assert "| samples (sampling) | 0.25 | 0.50 | 1.00 |" in said
        assert "| train.py without flags | 1.5 |  |" in said and "rivals" not in said
    assert begun == ["path"]


@pytest.mark.parametrize("stage", [speed.observed])
def test_a_stage_of_sampling_is_timed(small_network, monkeypatch, stage):
    monkeypatch.setattr(speed, "seconds", lambda f, *_: f() is not None and 1.0)
    meter = speed.Meter(torch.device("cpu"))
    stage(None, meter)
    assert [row["ratio"] for row in meter.found.values()] == [1.0] * 4


def test_every_stage_is_timed(small_network, tmp_path, monkeypatch):
    """Each of them finds in the scripts what it measures: what is not called, or by another name,
    takes no arithmetic."""
    for name, value in {"RUN": 60, "C": 2, "W": 40, "FS": 50}.items():
        monkeypatch.setattr(speed, name, value)
    monkeypatch.setattr(speed, "matmul_rate", lambda *_: 1e10)
    a = speed.parse(["--vertices", "30", "--out", str(tmp_path), "--device", "cpu"])
    a.T = 300
    speed.make_subject(a.subject, a.T, a.V)
    meter = speed.Meter(torch.device("cpu"))
    speed.training(a, meter)
    speed.along(a, meter)
    speed.reconstruction(a, meter)
    assert meter.found.pop("statistics")["gbyte"] > 0
    assert len(meter.found) == 7
    (rest,) = [name for name in meter.found if "loading" in name]
    for name, row in meter.found.items():
        assert row["seconds"] > 0 and (row["gflop"] > 0 or name == rest), name
