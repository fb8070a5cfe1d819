"""The house stands as docs/house.md says: ceilings, layout, imports, the paper alone."""

import ast
import glob
import json
import os
import shutil
import subprocess
import sys

import house
import pytest
from conftest import HERE, TINY

import data


def test_ceilings_and_layout():
    assert house.over() == []


def test_tokens_do_not_depend_on_layout_or_words():
    source = 'def f(x):\n    """Words."""\n    return f"{x + 1} and {x}"  # why\n'
    packed = 'def f(x): return f"{x + 1} and {x}"\n'
    counts = [house.count_tokens(s, house.docstring_lines(ast.parse(s))) for s in (source, packed)]
    assert counts == [8, 8]
    for bad in ("a, b = f(), g()", "f(), g()", "x = 1 if a else 2 if b else 3", "f = lambda: 1"):
        assert any(house.is_packed(node) for node in ast.walk(ast.parse(bad))), bad
    for good in ("a, b = c, 1", "a, b = f()", "x = 1 if a else 2", "f(lambda: 1)"):
        assert not any(house.is_packed(node) for node in ast.walk(ast.parse(good))), good


def imported(path):
    """First names of what a file imports of ours."""
    names = set()
    for node in ast.walk(ast.parse(house.read(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    places = "beyond", "people", "recordings", "spaces", "evidence", "tools"
    return names & {"neuroframes", "data", "train", "sample", *places}


ALLOWED = {
    "neuroframes.py": set(),
    "data.py": {"tools", "recordings"},
    "train.py": {"neuroframes", "data", "tools", "beyond"},
    "sample.py": {"neuroframes", "data", "tools", "beyond", "spaces", "evidence"},
    "beyond": {"neuroframes", "people"},
    "people": {"tools"},
    "recordings": {"tools", "spaces", "evidence"},
    "spaces": {"tools"},
    "evidence": {"spaces", "tools"},
    "tools": set(),
}


@pytest.mark.parametrize("place", ALLOWED)
def test_imports_run_one_way(place):
    paths = [place] if place.endswith(".py") else glob.glob(f"{place}/*.py", root_dir=HERE)
    assert paths
    for path in paths:
        assert imported(path) <= ALLOWED[place], path


def test_the_method_imports_torch_only():
    tree = ast.parse(house.read("neuroframes.py"))
    names = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    froms = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names == {"math", "torch", "torch.nn.functional"} and froms == {"torch"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The five scripts and tools/, and nothing else, and a small subject where theirs would be."""
    root = tmp_path_factory.mktemp("alone")
    for name in (*house.CORE, "test_neuroframes.py"):
        shutil.copy(os.path.join(HERE, name), root)
    shutil.copytree(os.path.join(HERE, "tools"), root / "tools")
    data.synthetic(str(root / "out/synthetic"), **TINY)
    return root


def run(folder, *argv):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)


def test_the_paper_stands_alone(alone):
    """As it is run there, but for the size of the subject and the number of steps."""
    small = "--epochs", "4", "--latent-dim", "8", "--width", "32", "--depth", "1"
    done = run(alone, "train.py", "--preset", "paper", *small)
    assert done.returncode == 0, done.stderr
    for flags in (["--interrecon", "--paper"], ["--paper", "--steps", "1000", "--eta", "1"]):
        done = run(alone, "sample.py", *flags)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((alone / "out/interrecon/metrics.json").read_text())
    asked = {k: metrics[k] for k in ("samples", "steps", "eta", "projection", "overlap", "window")}
    assert asked == dict(samples=1, steps=50, eta=0, projection="paper", overlap=0, window=10)
    assert metrics["anchor_residual"] == 0
    assert metrics["scores"].keys() >= {"neuroframes", "shuffled_eeg", "no_null_space", "linear"}
    assert metrics["over_time"]["difference"].keys() == metrics["scores"]["ceiling"].keys()
    assert metrics["runs"] and (alone / "out/interrecon/r_time.npy").exists()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["train.py"], "--preset paper is missing"),
        (["sample.py", "--interrecon"], "--paper is missing"),
        (["data.py", "--bold", "x", "--eeg", "y", "--out", "z"], "recordings"),
    ],
)
def test_what_needs_a_folder_that_is_not_there_says_so(alone, argv, words):
    done = run(alone, *argv)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and words in line and "Traceback" not in done.stderr
