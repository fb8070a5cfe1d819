"""The closed form of several people: what is each one's own, who gets it, and who does not."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY
from test_closed_form import planted

import beyond
import data
import sample
import train
from beyond.linear_gaussian import LinearGaussian
from people import own
from tools import subjects

RUNS = 4
FRAMES = 220  # of a run


class Group:
    """As People, of people with 4 runs each and 3 channels."""

    def __init__(self, *numbers):
        self.people = [SimpleNamespace(number=number) for number in numbers]
        self.mixed = np.eye(3, dtype=np.float32)

    def person(self, frame):
        return self.people[frame // (RUNS * FRAMES)]

    def align(self, person):
        return self.mixed


def model_of(members, d=2):
    linear = LinearGaussian(d, 3, cycles=15, bands=9, tr=0.8, delay=4.0)
    model = SimpleNamespace(linear=linear, own=None)
    if members:
        model.own = own.Own(linear, members)
    return model


def learned(sizes, adapt=None, model=None):
    """(model, function from rows to EEG, latents, training segments [low, high) of all, the last
    run of each) of people who show so many times of the same."""
    rng = np.random.default_rng(0)
    eeg, z, segments = planted(rng, True, 5.0, runs=RUNS * len(sizes), frames=FRAMES)
    z = z * torch.tensor(sizes).repeat_interleave(RUNS * FRAMES)[:, None]

    def read(rows):
        return torch.from_numpy(eeg[rows])

    last = segments[RUNS - 1 :: RUNS]
    training = [run for run in segments if run not in last]
    known = torch.cat([z[low:high] for low, high in training])
    model = model or model_of(len(sizes))
    flags = SimpleNamespace(adapt=adapt)
    own.fit(flags, model, Group(*range(len(sizes))), read, training, known)
    return model, read, z, training, last


def of(z, segments):
    return torch.cat([z[low:high] for low, high in segments])


def test_who_shows_twice_as_much_is_expected_to():
    model, read, z, training, last = learned([1.0, 1.0, 2.0])
    m = [own.expected(model, Group(0, 1, 2), read, *run) for run in last]
    shown = [float((u * z[low:high]).sum() / u.square().sum()) for u, (low, high) in zip(m, last)]
    assert np.allclose(shown, 1, atol=0.1)  # of what is expected
    alone = [model.linear.expected(read, *run) for run in last]
    shown = [float((u * z[a:b]).sum() / u.square().sum()) for u, (a, b) in zip(alone, last)]
    assert shown[2] > 1.3 and shown[0] < 0.9  # one number for all

    # On the same EEG.
    low, high = last[0]
    one, two = (own.expected(model, Group(k), read, low, high) for k in (0, 2))
    factor = (one * two).sum() / one.square().sum()
    assert 1.8 < factor < 2.2


def test_shares_are_of_what_both_say_of_runs_that_they_were_not_fitted_to():
    model, read, z, training, _ = learned([1.0, 3.0])
    again = model_of(0).linear
    of_all, _ = again.fit(read, training, of(z, training))
    assert torch.equal(again.weight, model.linear.weight)
    for k in (0, 1):
        mine = training[3 * k : 3 * k + 3]
        alone = model_of(0).linear
        of_own, _ = alone.fit(read, mine, of(z, mine))
        assert torch.equal(alone.weight, model.own.each[k].weight)
        both = np.stack([of_all.split(3 * FRAMES)[k].numpy().ravel(), of_own.numpy().ravel()], 1)
        shares = np.linalg.lstsq(both, of(z, mine).numpy().ravel(), rcond=None)[0]
        np.testing.assert_allclose(model.own.shares[k], shares, rtol=1e-3)


def test_who_is_as_all_are_keeps_what_all_have():
    model, read, z, _, last = learned([1.0, 1.0, 1.0])
    for run in last:
        m = own.expected(model, Group(0, 1, 2), read, *run)
        of_all = model.linear.expected(read, *run)
        assert (m - of_all).square().mean() < 0.03 * of_all.square().mean()


def test_somebody_new_gets_what_all_have_and_numbers_decide_not_rows():
    model, read, _, _, last = learned([1.0, 2.0])
    run = last[0]
    of_all = model.linear.expected(read, *run)
    assert torch.equal(own.expected(model, Group(None), read, *run), of_all)
    moved = [
        own.expected(model, group, read, *run)
        for group in (Group(1), Group(1, 0), Group(1, None), Group(0, 1))
    ]
    assert torch.equal(moved[0], moved[1]) and torch.equal(moved[0], moved[2])
    assert not torch.allclose(moved[0], moved[3])
    assert own.expected(SimpleNamespace(linear=model.linear, own=None), None, read, *run).equal(
        of_all
    )


def test_a_part_is_added_to_a_group_that_stays():
    """One more, who shows three times as much: of the group's closed form, and of these runs."""
    group = learned([1.0, 1.0])[0]
    before = {name: x.clone() for name, x in group.linear.state_dict().items()}
    adapted = SimpleNamespace(linear=group.linear, own=own.Own(model_of(0).linear, 1))
    _, read, z, training, last = learned([3.0], adapt=10, model=adapted)
    for name in ("chosen", "mean", "std", "weight", "bias"):
        assert torch.equal(getattr(adapted.linear, name), before[name])
    assert not torch.equal(
        adapted.linear.residual.autocovariance, before["residual.autocovariance"]
    )
    m = own.expected(adapted, Group(0), read, *last[0])
    truth = of(z, last[:1])
    assert (truth - m).var() < 0.2 * truth.var()
    assert (truth - group.linear.expected(read, *last[0])).var() > 0.4 * truth.var()


def test_nobody_elses_part_is_moved_and_what_both_miss_is_kept():
    model, read, z, training, _ = learned([1.0, 1.0])
    other = learned([1.0, 5.0])[0]
    assert not torch.equal(other.linear.weight, model.linear.weight)
    first, second = (
        [torch.equal(x, y) for x, y in zip(m.state_dict().values(), n.state_dict().values())]
        for m, n in zip(model.own.each, other.own.each)
    )
    assert all(first) and not all(second)
    left = [
        z[low:high] - own.expected(model, Group(0, 1), read, low, high) for low, high in training
    ]
    seen = torch.cat(left).var()  # of frames that it has seen; what it keeps is of unseen ones
    assert seen < model.linear.residual.autocovariance[0].mean() < 2 * seen


# ---- Of files --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    sizes = TINY | {"runs": 4, "frames": 60}
    return [data.synthetic(str(root / f"S{i}"), seed=i, **sizes) for i in range(1, 5)]


@pytest.fixture(scope="module")
def group(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("group")
    flags = *SMALL, "--closed-form", "--steps", "0", "--leave-out", "S3"
    train.main(["--data", *folders[:3], "--out", str(out), *flags])
    return out / "ckpt.pt"


def test_their_own_part_sees_eeg_as_it_was(folders):
    settings = {"test": None, "val": None, "no_validation": False, "preset": "tiny"}
    people = subjects.opened(data, beyond, folders[:2], settings | {"data": folders[:2]})

    def read(rows):
        return torch.from_numpy(people.eeg[rows])

    second = people.people[1]
    rows = second.start + np.arange(5)
    assert people.person(second.start) is second and second.number == 1
    found = own.as_it_was(people, second, read)(rows)
    scaled = people.own(second).eeg(second.eeg[:5])
    np.testing.assert_allclose(found, scaled, atol=1e-4)
    assert not np.allclose(read(rows), scaled, atol=0.1)


def test_who_is_left_out_has_no_part(group):
    weights = torch.load(group, weights_only=True)["model"]
    assert weights["own.shares"].shape == (3, 2)
    assert weights["own.shares"][2].tolist() == [1, 0]
    assert not weights["own.each.2.weight"].any()
    for k in (0, 1):
        assert weights["own.shares"][k, 1] != 0 and weights[f"own.each.{k}.weight"].any()


def reconstructed(ckpt, out, *folders):
    """Test frames of all of them, as sample.py has them."""
    flags = "--steps", "3", "--samples", "2", "--device", "cpu"
    sample.main(["--ckpt", str(ckpt), "--out", str(out), "--data", *folders, *flags])
    return np.load(out / "direct/recon.npy")


def test_who_is_left_out_is_sampled_with_what_all_have(group, folders, tmp_path):
    """Also with others, one of whom lends the EEG for other_eeg, and one whom nobody knows."""
    alone = reconstructed(group, tmp_path / "alone", folders[2])
    assert np.isfinite(alone).all() and len(alone) == 240
    several = reconstructed(group, tmp_path / "several", *folders[2:])
    np.testing.assert_allclose(several[:240], alone, atol=1e-3)

    # The same numbers, if they are taken for somebody new: only by whom they are known differs.
    ckpt = torch.load(group, weights_only=True)
    ckpt["checksums"]["S3"] = {"fmri": "of somebody else"}
    torch.save(ckpt, tmp_path / "ckpt.pt")
    unknown = reconstructed(tmp_path / "ckpt.pt", tmp_path / "unknown", folders[2])
    np.testing.assert_allclose(unknown, alone, atol=1e-3)


def test_whose_part_it_is_does_not_hang_on_who_else_is_opened(folders, tmp_path):
    flags = *SMALL, "--closed-form", "--steps", "0"
    train.main(["--data", *folders[:3], "--out", str(tmp_path / "out"), *flags])
    ckpt = tmp_path / "out/ckpt.pt"
    every = reconstructed(ckpt, tmp_path / "all", *folders[:3])
    second = every[len(every) // 3 : 2 * len(every) // 3]
    alone = reconstructed(ckpt, tmp_path / "alone", folders[1])
    np.testing.assert_allclose(alone, second, atol=1e-3)
    renamed = str(tmp_path / "A2")  # sorted before the others
    shutil.copytree(folders[1], renamed)
    first = reconstructed(ckpt, tmp_path / "first", folders[0], renamed, folders[3])
    np.testing.assert_allclose(first[: len(alone)], second, atol=1e-3)

    # Without parts of their own it would be something else; and somebody new has none.
    state = torch.load(ckpt, weights_only=True)
    state["model"]["own.shares"] = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    torch.save(state, tmp_path / "none.pt")
    without = reconstructed(tmp_path / "none.pt", tmp_path / "b", folders[0], renamed, folders[3])
    assert np.abs(without[: len(alone)] - second).max() > 0.01
    new = 4 * 60 - 5
    np.testing.assert_array_equal(without[-new:], first[-new:])
