"""The walk's blocks of code run, one after the other, and make what the page says they do."""

import os
import re
import sys

import pytest
import torch
from conftest import HERE, SMALL, command

import data
import train

sys.path.append(os.path.join(HERE, "docs"))
import walk

PAGE = os.path.join(HERE, "docs", "walk.md")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The names that the blocks make, in a folder with a small subject and a model of it."""
    folder = tmp_path_factory.mktemp("walk")
    sizes = dict(channels=4, fs=50, side=8, sources=4, background=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        data.synthetic("out/synthetic", runs=3, frames=320, **sizes)
        command(patch, train, "--data", "out/synthetic", "--steps", 150, *SMALL, "--lr", "3e-3")
        *_, names = walk.run(walk.blocks(), {})
    return names


def test_every_step_is_short_and_has_its_picture():
    with open(PAGE, encoding="utf-8") as f:
        steps = re.split(r"^## ", f.read(), flags=re.MULTILINE)[1:]
    assert len(steps) == len(walk.DRAWINGS) == len(walk.blocks()) == 6
    for i, (step, block) in enumerate(zip(steps, walk.blocks()), 1):
        lines = [line for line in block.splitlines() if line and not line.startswith("import")]
        assert len(lines) <= 12, f"step {i}"
        (picture,) = re.findall(r"^!\[.+\]\((.+)\)$", step, flags=re.MULTILINE)
        assert picture == f"pictures/walk-{i}.png"
        assert os.path.getsize(os.path.join(HERE, "docs", picture)) < 100_000


def test_what_latents_leave_out_is_what_they_cannot_say(made):
    autoencoder = made["study"].autoencoder
    torch.testing.assert_close(autoencoder.encode(made["kept"]), made["z"], atol=1e-4, rtol=0)
    left_out = autoencoder.encode(made["left_out"] + autoencoder.decode(0 * made["z"]))
    assert left_out.abs().max() < 1e-3
    assert made["left_out"].abs().mean() > 0.05


def test_noise_takes_over(made):
    """Eq. 2: less and less of the frame, until z_999 is the noise itself."""
    likeness = []
    for z_n in made["noisy"].values():
        likeness.append(torch.corrcoef(torch.stack([z_n.ravel(), made["z"].ravel()]))[0, 1].item())
    assert likeness[0] > 0.99 and likeness == sorted(likeness, reverse=True)
    torch.testing.assert_close(made["noisy"][999], made["eps"], atol=0.05, rtol=0)


def test_sampling_begins_at_noise_and_calls_the_network_fifty_times(made):
    steps = list(made["strip"])
    assert steps[0] == 999 and steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 50
    noise = torch.randn(made["drawn"].shape, generator=torch.Generator().manual_seed(7))
    assert torch.equal(made["strip"][999], noise[0])  # the last that was drawn, seed 7


def test_anchors_come_back_and_the_rest_is_the_networks(made):
    seen = made["mask"]
    completed = made["completed"]
    assert torch.equal(completed[seen], made["x"][seen])
    assert not torch.isclose(completed[~seen], made["x"][~seen]).all()
    assert torch.equal(made["range_part"][0, seen], made["z"][seen])
    assert made["range_part"][0, ~seen].count_nonzero() == 0
    assert made["null_part"][0, seen].abs().max() < 1e-6
    assert torch.equal((made["range_part"] + made["null_part"])[0, ~seen], made["held"][0, ~seen])


def test_a_mean_is_nearer_than_a_sample(made):
    errors = (made["frames"] - made["x"]).square().mean((1, 2))  # [8]
    assert errors[0] == made["error_of_one"]
    assert made["error_of_mean"] < errors.mean()
    # The samples' spread is what comes on top: mean of errors = error of mean + variance.
    on_top = made["frames"].var(0, correction=0).mean()
    torch.testing.assert_close(errors.mean(), made["error_of_mean"] + on_top)


def test_pictures_can_be_drawn(made):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    panels = [len(draw(plt, made).axes) for draw in walk.DRAWINGS]
    plt.close("all")
    assert panels == [2, 4, 4, 7, 20, 12]
