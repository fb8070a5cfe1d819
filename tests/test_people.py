"""Several people at once: as one subject, each in their own units, split as if alone."""

import itertools
import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import torch
from conftest import SMALL, TINY, contents, read_json

import beyond
import data
import sample
import train
from evidence import people as of_people
from tools import subjects

SETTINGS = {"test": None, "val": None, "no_validation": False, "preset": "tiny"}
FAST = ["--steps", "3", "--samples", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """S1 to S4, four people of 4 runs of 40 frames."""
    root = tmp_path_factory.mktemp("people")
    sizes = TINY | {"runs": 4, "frames": 40}
    return [data.synthetic(str(root / f"S{i}"), seed=i, **sizes) for i in range(1, 5)]


def opened(folders, **settings):
    settings = SETTINGS | {"data": list(folders)} | settings
    return subjects.opened(data, beyond, settings["data"], settings)


def changed(folder, to, change, *names, **said):
    """A copy of a subject, whose arrays `names` and what subject.json says are changed."""
    shutil.copytree(folder, to)
    for name in names:
        array = change(np.load(f"{to}/{name}.npy"))
        np.save(f"{to}/{name}.npy", array.astype(np.float32))
    meta = read_json(f"{to}/subject.json")
    with open(f"{to}/subject.json", "w", encoding="utf-8") as f:
        json.dump({**meta, "checksums": {"fmri": str(to)}, **said}, f)
    return str(to)


def learn(folders, out, *flags):
    train.main(["--data", *folders, "--out", str(out), *SMALL, "--steps", "6", *flags])
    return torch.load(out / "ckpt.pt", weights_only=True)


@pytest.fixture(scope="module")
def group(folders, tmp_path_factory):
    """A model of S1, S2 and S3."""
    out = tmp_path_factory.mktemp("group")
    learn(folders[:3], out)
    return out


def weights(ckpt):
    return {**ckpt["model"], **ckpt["autoencoder"], **ckpt["normaliser"]}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


# ---- As one subject --------------------------------------------------------------------


def whitened(u, known):
    """EEG u [t,C,W], uncorrelated and of variance 1 in what is known of it."""
    x = known.swapaxes(0, 1).reshape(known.shape[1], -1).astype(np.float64)  # [C,t W]
    axes, power, _ = np.linalg.svd(x @ x.T / x.shape[1])
    return (axes / power**0.5) @ axes.T @ u


def test_views_are_each_persons_own_units(folders):
    people = opened(folders[:3])
    frames = []
    eeg = []
    for folder in folders[:3]:
        one = data.Subject(folder)
        training = np.r_[tuple(slice(*s) for s in one.segments("train"))]
        x = one.fmri.astype(np.float64)
        frames.append((x - x[training].mean(0)) / x[training].std(0))
        scale = np.median(np.abs(one.eeg[training]).max(2), 0)  # [C]
        u = (one.eeg / scale[:, None]).clip(-5, 5).astype(np.float64)
        eeg.append(whitened(u, u[training]))
    T = len(one.fmri)
    rows = np.array([[0, T - 1, T], [2 * T + 3, T + 1, 5]])
    for view, whole in ((people.fmri, np.concatenate(frames)), (people.eeg, np.concatenate(eeg))):
        assert view.shape == whole.shape and len(view) == 3 * T
        for index in (slice(T - 2, T + 2), slice(None, None, 7), rows, 3, -1, rows[:, :0]):
            found = view[index]
            assert found.dtype == np.float32
            assert np.allclose(found, whole[index], atol=1e-4)
    some = people.fmri[rows[0], 5:9]
    assert np.allclose(some, np.concatenate(frames)[rows[0], 5:9], atol=1e-4)


def test_each_is_split_as_if_alone_and_keeps_the_name(folders):
    people = opened(folders[:3])
    T = len(data.Subject(folders[0]).fmri)
    for split in ("train", "val", "test"):
        alone = [data.Subject(folder).segments(split) for folder in folders[:3]]
        moved = [(i * T + a, i * T + b) for i, spans in enumerate(alone) for a, b in spans]
        assert people.segments(split) == moved
    assert len(people.segments("test")) == len(people.segments("val")) == 3
    assert people.meta["names"][3:5] == ["S1_run-4", "S2_run-1"]
    assert people.when(T)[0] == 5
    assert people.when(T)[1] == data.Subject(folders[1]).when(0)[1]
    assert people.when(T - 1)[1] == data.Subject(folders[0]).when(T - 1)[1]


def runs_of(people, split):
    return [people.meta["names"][people.when(low)[0] - 1] for low, _ in people.segments(split)]


def test_a_slash_at_the_end_changes_no_order(folders):
    """As a shell completes names. Each of several processes has to find the same order."""
    for order in itertools.permutations(folders[:3]):
        people = opened([f"{folder}/" for folder in order] + [order[0]])
        assert [person.folder for person in people.people] == folders[:3]


def test_names_choose_among_the_runs_of_all(folders):
    left = opened(folders[:3], test=["S3"])  # --leave-out S3
    assert runs_of(left, "test") == [f"S3_run-{i}" for i in range(1, 5)]
    assert runs_of(left, "val") == ["S1_run-4", "S2_run-4"]
    assert runs_of(left, "train") == [f"S{i}_run-{j}" for i in (1, 2) for j in (1, 2, 3)]
    named = opened(folders[:3], test=["run-1"], val=["S2_run-3"])
    assert runs_of(named, "test") == ["S1_run-1", "S2_run-1", "S3_run-1"]
    assert runs_of(named, "val") == ["S1_run-4", "S2_run-3", "S3_run-4"]
    kept = opened(folders[:2], val=["S1_run-1"])
    assert runs_of(kept, "test") == ["S1_run-4", "S2_run-4"]


def test_what_a_split_leaves_unused_stays_so(folders, tmp_path):
    split = {"train": list(range(30)), "test": list(range(40, 60))}
    odd = changed(folders[0], tmp_path / "S1", None, split=split, unusable=[3])
    people = opened([folders[1], odd], test=["S2_run-1"])
    start = next(person.start for person in people.people if person.folder == odd)
    used = [
        t for s in ("train", "val", "test") for span in people.segments(s) for t in range(*span)
    ]
    own = {t - start for t in used if 0 <= t - start < 160}
    assert own == {*range(30), *range(40, 60)} - {3}


class Watched:
    """An array that notes how many rows are read of it at a time, and cannot be read as a whole."""

    def __init__(self, array, read):
        self.array, self.read = array, read
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __len__(self):
        return len(self.array)

    def __array__(self, *_, **__):
        raise AssertionError("all of it is read")

    def __getitem__(self, index):
        found = np.array(self.array[index])
        self.read.append(found.size // int(np.prod(self.shape[1:])))
        return found


def test_no_more_is_read_than_what_is_asked_for(folders, monkeypatch):
    read = []
    for name in ("fmri", "eeg"):
        array = getattr(data.Subject, name)
        watched = property(lambda self, get=array.fget: Watched(get(self), read))
        monkeypatch.setattr(data.Subject, name, watched)
    people = opened(folders[:3], test=["S3"])
    people.segments("train")
    assert read == []
    T = len(people.fmri)
    measure = data.Normaliser.measure
    monkeypatch.setattr(data.Normaliser, "measure", lambda *a: measure(*a, block=16))
    people.fmri[0]
    assert max(read) == 16 and sum(read) < 2 * T  # of S1, once
    read.clear()
    people.fmri[1]
    people.eeg[np.array([[2, 3], [4, 2]])]
    people.eeg[5]
    assert read == [1, 4, 120, 1]  # the alignment of S1, by all its training frames, once
    people.fmri[[1, T - 1]]
    read.clear()
    people.fmri[[1, T - 1, 2]]
    assert read == [2, 1]


def test_regions_are_those_that_all_have(folders, tmp_path):
    own = changed(folders[1], tmp_path / "S2", None)
    patch = data.Subject(folders[0]).rois["patch"]
    np.savez(f"{own}/rois.npz", patch=patch, mine=~patch)
    assert opened([folders[0], own]).rois.keys() == {"patch"}
    np.savez(f"{own}/rois.npz", patch=~patch)
    assert opened([folders[0], own]).rois == {}


def test_what_a_reference_has_emptied_stays_empty(folders, tmp_path):
    """The average reference leaves one direction without power: it is not blown up."""
    referenced = changed(folders[0], tmp_path / "S1", lambda x: x - x.mean(1, keepdims=True), "eeg")
    people = opened([referenced, folders[1]])
    eeg = people.eeg[:120]
    assert np.isfinite(eeg).all()
    covariance = np.einsum("tcw,tdw->cd", eeg, eeg) / eeg[:, 0].size
    power = np.linalg.eigvalsh(covariance)
    assert power[0] < 1e-3 and np.allclose(power[1:], 1, atol=0.3)


# ---- Channels that only some have ------------------------------------------------------

CAPS = "AzBCD", "xCADB", "DyCBAz", "BDCA"  # of S1 to S4; A to D are the synthetic ones


def caps(folders, to, names=CAPS):
    """People whose EEG has these channels: of A to D each its own, of others noise."""
    made = []
    for folder, own in zip(folders, names):

        def change(eeg, own=own):
            there = dict(zip("ABCD", eeg.swapaxes(0, 1)))
            return np.stack([there.get(name, noisy(eeg[:, 0])) for name in own], 1)

        sums = data.Subject(folder).meta["checksums"]
        said = {"eeg": {"channels": list(own)}, "checksums": {**sums, "cap": own}}
        made.append(changed(folder, to / os.path.basename(folder), change, "eeg", **said))
    return made


def test_channels_that_all_have_are_as_if_there_were_no_others(folders, tmp_path, monkeypatch):
    mixed = caps(folders[:3], tmp_path / "mixed")
    plain = caps(folders[:3], tmp_path / "plain", ["ABCD"] * 3)
    settings = SETTINGS | {"data": mixed, "bad_channels": "intersect"}
    people = subjects.opened(data, beyond, mixed, settings)
    expected = opened(plain)
    assert people.eeg.shape == expected.eeg.shape == (480, 4, 40)
    for name in ("eeg", "fmri"):
        found = getattr(people, name)[:]
        assert np.array_equal(found, getattr(expected, name)[:])
    assert settings["channels"] == people.meta["eeg"]["channels"] == list("ABCD")
    later = opened(mixed[1:], bad_channels="intersect")
    assert later.meta["eeg"]["channels"] == list("CADB")  # as the first has them

    read = []
    array = data.Subject.eeg
    watched = property(lambda self: Watched(array.fget(self), read))
    monkeypatch.setattr(data.Subject, "eeg", watched)
    people.eeg[[3, 170]]
    assert read == [1, 1]


def test_the_names_of_the_model_decide_which_channels_are_used(folders, tmp_path, capsys):
    """In training, sampling and adapting; also in other orders, among others."""
    flags = "--bad-channels", "intersect"
    made = {}
    for kind, names in (("mixed", CAPS), ("plain", ["ABCD"] * 4)):
        *group, new = caps(folders, tmp_path / kind, names)
        out = tmp_path / kind / "out"
        ckpt = learn(group, out, *(flags if kind == "mixed" else ()))
        asked = "--ckpt", str(out / "ckpt.pt"), "--data", new
        sample.main([*asked, "--out", str(tmp_path / kind), *FAST])
        recon = np.load(tmp_path / kind / "direct/recon.npy")
        tuned = tmp_path / kind / "tuned"
        adapt = "--adapt", "1", "--steps", "3", "--warmup", "0", "--device", "cpu"
        train.main([*adapt, *asked, "--out", str(tuned)])
        tuned = torch.load(tuned / "ckpt.pt", weights_only=True)
        made[kind] = ckpt, recon, tuned
    for i in (0, 2):
        assert same(weights(made["mixed"][i]), weights(made["plain"][i]))
        assert made["mixed"][i]["settings"]["channels"] == list("ABCD")
    assert np.array_equal(made["mixed"][1], made["plain"][1])

    (less,) = caps(folders[3:], tmp_path / "less", ["DBxz"])
    mixed = "--ckpt", tmp_path / "mixed/out/ckpt.pt"
    for main, more in ((sample.main, ()), (train.main, ("--adapt", 1))):
        line = refused(capsys, main, *mixed, "--data", less, "--out", tmp_path / "no", *more)
        assert less in line and "has no A, C;" in line and "D, B, x, z" in line
    plain = "--ckpt", tmp_path / "plain/out/ckpt.pt"
    other = tmp_path / "mixed/S4"
    assert "channels are" in refused(capsys, sample.main, *plain, "--data", other)


def test_channels_that_cannot_be_put_in_common(folders, tmp_path, capsys):
    def said(names, *flags):
        people = caps(folders, tmp_path / "-".join(names), names)
        line = refused(capsys, train.main, "--data", *people, "--out", tmp_path / "out", *flags)
        return people, line

    flag = "--bad-channels", "intersect"
    people, line = said(["ABCz", "ABCD"])
    assert "differ in names of channels" in line and " ".join(flag) in line and "D, z" in line
    _, line = said(["ABCD", "DCBA"])
    assert " ".join(flag) in line and "order" in line
    people, line = said(["AB", "BC", "CA"], *flag)
    assert people[2] in line and "has no B;" in line and "C, A" in line
    nameless = [people[0], folders[1]]
    line = refused(capsys, train.main, "--data", *nameless, "--out", tmp_path / "out", *flag)
    assert folders[1] in line and "it has none" in line
    line = refused(capsys, train.main, "--data", *nameless, "--out", tmp_path / "out")
    assert "differ in names" in line and " ".join(flag) not in line
    line = refused(capsys, train.main, "--data", *folders[:2], "--out", tmp_path / "out", *flag)
    assert folders[0] in line and "no names of channels" in line
    line = refused(capsys, train.main, "--data", people[0], "--out", tmp_path / "out", *flag)
    assert "several people" in line


# ---- Training and sampling -------------------------------------------------------------


def test_the_units_of_one_person_change_nothing(folders, group, tmp_path):
    louder = changed(folders[1], tmp_path / "S2", lambda x: 1024 * x, "fmri", "eeg")
    views = [opened([folders[0], second]) for second in (folders[1], louder)]
    for name in ("fmri", "eeg"):
        assert np.array_equal(*[getattr(view, name)[150:] for view in views])
    ckpt = learn([folders[0], louder, folders[2]], tmp_path / "out")
    assert same(weights(ckpt), weights(torch.load(group / "ckpt.pt", weights_only=True)))
    found = []
    for out in (group, tmp_path / "out"):
        sample.main(["--ckpt", str(out / "ckpt.pt"), "--out", str(tmp_path / out.name), *FAST])
        found.append(np.load(tmp_path / out.name / "direct/recon.npy"))
    assert np.array_equal(*found)
    assert np.abs(ckpt["normaliser"]["mean"]).max() < 0.1
    assert np.abs(ckpt["normaliser"]["std"] - 1).max() < 0.1
    scale = ckpt["normaliser"]["eeg_scale"]
    assert scale.min() > 1 and scale.max() < 1.5 * scale.min()  # that of channels of variance 1


def test_who_is_left_out_reaches_no_weight_and_the_others_do(folders, tmp_path):
    def noise(x):
        return x + x.std() * np.random.default_rng(0).standard_normal(x.shape)

    def last_run(x):
        return np.concatenate([x[:-40], noise(x[-40:])])

    flags = "--leave-out", "S3", "--no-validation"
    before = weights(learn(folders[:3], tmp_path / "a", *flags))
    other = changed(folders[2], tmp_path / "S3", noise, "fmri", "eeg")
    assert same(before, weights(learn([*folders[:2], other], tmp_path / "b", *flags)))
    first = changed(folders[0], tmp_path / "S1", last_run, "fmri", "eeg")  # what was its test
    assert not same(before, weights(learn([first, *folders[1:3]], tmp_path / "c", *flags)))


def test_of_the_group_each_persons_test_runs_are_scored(folders, group, tmp_path, capsys):
    ckpt = ["--ckpt", str(group / "ckpt.pt"), *FAST]
    sample.main([*ckpt, "--out", str(tmp_path / "all")])
    metrics = read_json(tmp_path / "all/direct/metrics.json")
    assert [run["name"] for run in metrics["runs"]] == ["S1_run-4", "S2_run-4", "S3_run-4"]
    recon, truth = (np.load(tmp_path / f"all/direct/{x}.npy") for x in ("recon", "truth"))
    error = ((recon - truth) ** 2).mean(1).reshape(3, -1).mean(1)
    scores = metrics["people"]["scores"]
    assert np.allclose([scores[f"S{i}"]["mse"] for i in (1, 2, 3)], error, rtol=1e-4)
    nothing = (truth**2).mean(1).reshape(3, -1).mean(1)
    assert np.allclose([scores[f"S{i}"]["mean_frame_mse"] for i in (1, 2, 3)], nothing, rtol=1e-4)
    assert np.isclose(scores["mean over people"]["mse"], error.mean(), rtol=1e-4)
    width = 4.30265 * error.std(ddof=1) / 3**0.5  # Student's t of 2 degrees of freedom
    assert np.isclose(scores["95% interval: +-"]["mse"], width, rtol=1e-3)
    better = metrics["people"]["better than the mean frame"]
    assert better["people"] == (error < nothing).sum() and better["of"] == 3

    sample.main([*ckpt, "--out", str(tmp_path / "one"), "--data", folders[1]])
    printed = capsys.readouterr()
    assert "not trained on" not in printed.out + printed.err
    metrics = read_json(tmp_path / "one/direct/metrics.json")
    assert metrics["people"]["scores"].keys() == {"S2", "mean over people"}
    frames = len(truth) // 3
    alone = np.load(tmp_path / "one/direct/truth.npy")
    assert np.array_equal(alone, truth[frames : 2 * frames])


def test_somebody_new_is_scored_on_all_frames(folders, group, tmp_path, capsys):
    flags = ["--ckpt", str(group / "ckpt.pt"), *FAST, "--out", str(tmp_path)]
    sample.main([*flags, "--data", folders[3], folders[0]])
    printed = capsys.readouterr()
    said = [x for x in printed.out.splitlines() if "new to the model" in x]
    assert len(said) == 1 and folders[3] in said[0] and "own mean" in said[0]
    assert "not trained on" not in printed.out + printed.err
    metrics = read_json(tmp_path / "direct/metrics.json")
    names = [run["name"] for run in metrics["runs"]]
    assert names == ["S1_run-4", "S4_run-1", "S4_run-2", "S4_run-3", "S4_run-4"]
    x = data.Subject(folders[3]).fmri[:].astype(np.float64)
    z = (x - x.mean(0)) / x.std(0)
    ckpt = torch.load(group / "ckpt.pt", weights_only=True)
    z = (z - ckpt["normaliser"]["mean"].numpy()) / ckpt["normaliser"]["std"].numpy()
    assert np.allclose(np.load(tmp_path / "direct/truth.npy")[-len(z) :], z, atol=1e-3)


def test_eeg_alone_is_reconstructed_in_the_groups_units(folders, group, tmp_path):
    meta = {"eeg_alone": True, "split": {"test": list(range(len(data.Subject(folders[3]).fmri)))}}
    alone = changed(folders[3], tmp_path / "S9", lambda x: 0 * x, "fmri", **meta)
    flags = ["--ckpt", str(group / "ckpt.pt"), *FAST]
    sample.main([*flags, "--out", str(tmp_path / "a"), "--data", alone])
    sample.main([*flags, "--out", str(tmp_path / "b"), "--data", folders[3]])
    found = [np.load(tmp_path / f"{x}/direct/recon.npy") for x in "ab"]
    assert np.array_equal(*found) and not (tmp_path / "a/direct/truth.npy").exists()


def test_a_vertex_that_is_flat_in_one_is_nobodys(folders, tmp_path):
    """Else that person's 0 would be right for free, and the others' z-scores larger there."""

    def flat(x):
        x[:, 5] = 7
        return x

    other = changed(folders[1], tmp_path / "S2", flat, "fmri")
    people = opened([folders[0], other, folders[2]])
    z = people.fmri[:]
    assert not z[:, 5].any() and z[:, [4, 6]].any(0).all()
    assert np.array_equal(people.fmri[3:9, 4:7], z[3:9, 4:7])
    valid = data.Normaliser.measure(people, people.segments("train")).valid
    assert not valid[5] and valid.sum() == people.fmri.shape[1] - 1
    # Somebody new, in whom it is flat, is no reason to leave it out.
    known = {
        name: data.Subject(folders[i]).meta["checksums"] for i, name in enumerate(["S1", "S3"])
    }
    ckpt = {"checksums": known}
    settings = SETTINGS | {"data": [folders[0], folders[1]]}
    mixed = subjects.opened(data, beyond, [folders[0], other], settings, ckpt)
    assert mixed.fmri[:40, 5].any() and not mixed.fmri[-40:, 5].any()
    with_all = opened(folders[:3]).fmri[:]
    assert with_all[:, 5].any() and np.array_equal(with_all[:, 6:], z[:, 6:])


def test_resumed_as_if_nothing_had_happened(folders, group, tmp_path):
    out = tmp_path / "out"
    learn(folders[:3], out, "--steps", "3", "--warmup", "0", "--lr", "1e-3")
    whole = learn(folders[:3], tmp_path / "whole", "--steps", "6", "--warmup", "0", "--lr", "1e-3")
    state = torch.load(out / "last.pt", weights_only=True)
    state["settings"]["steps"] = 6
    torch.save(state, out / "last.pt")
    train.main(["--out", str(out), "--resume", "--device", "cpu"])
    after = torch.load(out / "ckpt.pt", weights_only=True)
    assert after["settings"]["data"] == folders[:3]
    assert same(weights(whole), weights(after)) and after["step"] == whole["step"]
    with pytest.raises(SystemExit):
        train.main(["--out", str(out), "--resume", "--data", *folders[1:]])


def test_names_of_people_stay_in_what_is_written(trained, tmp_path):
    """Series and their descriptions, frames.tsv, the page."""
    both = [
        changed(trained / "subject", tmp_path / f"sub-{i}", lambda x, i=i: i * x, "fmri")
        for i in (1, 2)
    ]
    learn([str(tmp_path / "sub-*")], tmp_path / "out")
    sample.main(["--ckpt", str(tmp_path / "out/ckpt.pt"), *FAST])
    names = {path.name for path in contents(tmp_path / "out/direct")}
    run = data.Subject(both[0]).meta["names"][-1]
    for person in ("sub-1", "sub-2"):
        series = f"{person}_{run}_desc-recon_bold"
        assert f"{series}.dtseries.nii" in names
        about = read_json(tmp_path / f"out/direct/{series}.json")
        assert about["Sources"] == [str(tmp_path / person)]
        # In the scanner's units, which are twice as large in the second.
        truth = nibabel.load(
            tmp_path / f"out/direct/{series.replace('recon', 'truth')}.dtseries.nii"
        )
        subject = data.Subject(str(tmp_path / person))
        raw = subject.fmri[slice(*subject.runs[-1])]
        np.testing.assert_allclose(truth.get_fdata(), raw, rtol=1e-5, atol=1e-3)
        recon = nibabel.load(tmp_path / f"out/direct/{series}.dtseries.nii").get_fdata()
        assert np.abs(recon / raw - 1).max() < 0.5
    assert {"frames.tsv", "desc-r_statmap.dscalar.nii"} <= names


def test_auto_trains_on_several(folders, tmp_path):
    flags = "--steps 4 --width 16 --heads 2 --depth 1 --latent-dim 6 --batch-size 4 --frames 6"
    train.main(["--data", *folders[:2], "--out", str(tmp_path), "--device", "cpu", *flags.split()])
    sample.main(["--ckpt", str(tmp_path / "ckpt.pt"), *FAST, "--interrecon"])
    assert len(read_json(tmp_path / "interrecon/metrics.json")["runs"]) == 2


# ---- What the others tell --------------------------------------------------------------


def guesses(*flags):
    """{method: frames [T,V]} and metrics of sample.py."""
    made = {}

    def also(method, places, x_hat):
        made.setdefault(method, []).append(np.asarray(x_hat))

    sample.main(list(map(str, [*flags, *FAST])), also)
    out = flags[flags.index("--out") + 1]
    (mode,) = os.listdir(out)
    made = {method: np.concatenate(blocks) for method, blocks in made.items()}
    return made, read_json(out / mode / "metrics.json")


def noisy(x):
    return x.std() * np.random.default_rng(0).standard_normal(x.shape)


def test_runs_named_as_bids_has_them_share_a_film(folders, tmp_path):
    """Their names begin with the person's, which is not of the moment."""
    films = [f"task-film_run-{k}" for k in range(1, 5)]
    viewers = []
    for i in (1, 2):
        names = [f"sub-{i:02}_{film}" for film in films]
        viewers.append(changed(folders[i - 1], tmp_path / f"S{i}", None, names=names))
    people = opened(viewers, test=["S2"])
    assert people.films == 2 * films
    assert people.same_moment is not None and people.segments("others")


def test_what_is_locked_to_the_film_is_known_from_the_others(folders, tmp_path, capsys):
    """All have the same BOLD, in their own units, and EEG that tells nothing."""
    viewers = []
    for i in (1, 2, 3):
        louder = changed(folders[0], tmp_path / f"bold/S{i}", lambda x, i=i: i * x + 7 * i, "fmri")
        viewers.append(changed(louder, tmp_path / f"S{i}", noisy, "eeg", checksums={"fmri": i}))
    learn(viewers, tmp_path / "out", "--leave-out", "S3", "--no-validation")
    ckpt = "--ckpt", tmp_path / "out/ckpt.pt"
    made, metrics = guesses(*ckpt, "--out", tmp_path / "all")
    absent = "not scored, for no frame of theirs is for the test: S1, S2"
    assert absent in capsys.readouterr().out
    truth = np.load(tmp_path / "all/direct/truth.npy")
    assert len(truth) == 160
    np.testing.assert_allclose(made["same_moment"], truth, atol=1e-3)
    assert metrics["scores"]["same_moment"]["whole"]["mse"]["mean"] < 1e-6
    assert metrics["people"]["scores"]["S3"]["same_moment_mse"] < 1e-6
    better = metrics["people"]["better than the others at the same moment"]
    assert better == {"people": 0, "of": 1, "p": 1.0}
    assert made["other_eeg"].shape == truth.shape

    made, metrics = guesses(*ckpt, "--out", tmp_path / "alone", "--data", viewers[2])
    assert "not scored" not in capsys.readouterr().out
    assert not {"same_moment", "other_eeg"} & (made.keys() | metrics["scores"].keys())
    assert metrics["people"]["scores"]["S3"].keys() == {
        *("mse", "r", "mean_frame_mse", "shuffled_eeg_mse")
    }


def test_only_training_frames_of_others_at_the_same_moment(folders, tmp_path):
    """run-2 of S1 and S2 is the test, of S3 is for training, of S4 for validation."""
    flags = {"test": ["S1_run-2", "S2_run-2"], "val": ["S4_run-2"]}
    people = opened(folders, **flags)
    rows = np.arange(45, 52)  # of run-2 of S1
    known = people.same_moment[rows]
    np.testing.assert_allclose(known, people.fmri[2 * 160 + rows], atol=1e-6)

    def run_2(x):
        return np.concatenate([x[:40], noisy(x[40:80]), x[80:]])

    for i in (1, 2, 4):
        other = [*folders]
        other[i - 1] = changed(folders[i - 1], tmp_path / f"a/S{i}", run_2, "fmri")
        assert np.array_equal(known, opened(other, **flags).same_moment[rows])
    third = changed(folders[2], tmp_path / "b/S3", run_2, "fmri")
    after = opened([*folders[:2], third, folders[3]], **flags).same_moment[rows]
    assert np.abs(known - after).max() > 0.1

    both = opened(folders, test=["S1_run-2", "S2_run-2"])
    mean = (both.fmri[2 * 160 + rows] + both.fmri[3 * 160 + rows]) / 2
    np.testing.assert_allclose(both.same_moment[rows], mean, atol=1e-6)
    assert opened(folders, test=["run-2"]).same_moment is None  # nobody trains on it
    assert not hasattr(opened(folders[:1], test=["run-2"]), "same_moment")


def test_a_moment_is_counted_from_the_start_of_the_run(folders, tmp_path):
    first = data.Subject(folders[2]).meta["first_volume"]
    later = changed(folders[2], tmp_path / "S3", None, first_volume=[x + 2 for x in first])
    people = opened([folders[0], later], test=["S1_run-2"])
    known = people.same_moment[np.arange(40, 80)]
    assert not known[:2].any()  # S3 has EEG from two volumes later on
    np.testing.assert_allclose(known[2:], people.fmri[160 + 40 : 160 + 78], atol=1e-6)
    assert people.segments("others") == []
    people = opened([folders[0], later], test=["S3_run-2"])
    assert people.segments("others") == []  # S1's run ends earlier


def test_the_next_person_with_as_many_frames_lends_the_eeg(folders, tmp_path):
    def cut(name, stop):
        runs = [[0, 40], [40, 80], [80, 120], [120, stop]]
        at = tmp_path / f"{stop}/{name}"
        return changed(folders[int(name[1]) - 1], at, None, runs=runs)

    def others(*folders):
        return [
            (low // 160 + 1, low % 160, high - low)
            for low, high in opened(folders).segments("others")
        ]

    assert others(*folders[:3]) == [(2, 120, 40), (3, 120, 40), (1, 120, 40)]
    short = cut("S2", 150)
    assert others(folders[0], short, folders[2]) == [(3, 120, 40), (3, 120, 30), (1, 120, 40)]
    assert others(folders[0], short, cut("S3", 159)) == []  # nobody for S1's last frame


@pytest.mark.parametrize("flags", [[], ["--interrecon"], ["--upsample", 2]])
def test_other_eeg_is_that_of_the_next_person(folders, group, tmp_path, flags):
    state = torch.load(group / "ckpt.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, w in state["model"].items():  # as if trained: the EEG matters
        if w.is_floating_point() and "running" not in name and "prior" not in name:
            w += 0.15 * torch.randn(w.shape, generator=generator)
    torch.save(state, tmp_path / "ckpt.pt")
    ckpt = "--ckpt", tmp_path / "ckpt.pt", *flags
    made, metrics = guesses(*ckpt, "--out", tmp_path / "before")
    assert "same_moment" not in made  # run-4 is everyone's test
    error = ((made["other_eeg"] - np.load(next(tmp_path.glob("before/*/truth.npy")))) ** 2).mean(1)
    if not flags:
        scores = metrics["people"]["scores"]
        per_person = error.reshape(3, -1).mean(1)
        found = [scores[f"S{i}"]["other_eeg_mse"] for i in (1, 2, 3)]
        np.testing.assert_allclose(found, per_person, rtol=1e-4)
        assert metrics["people"]["better than with another person's EEG"]["of"] == 3

    # The EEG of run 4 of the next person, as loud as it is in this one.
    people = opened(folders[:3])
    swapped = []
    for i, folder in enumerate(folders[:3]):
        person, lender = (people.people[k % 3] for k in (i, i + 1))
        lent = people.align(lender) @ people.own(lender).eeg(lender.eeg[120:])
        lent = np.linalg.inv(people.align(person)) @ lent
        lent = lent * people.own(person).eeg_scale[:, None]
        sums = data.Subject(folder).meta["checksums"]

        def change(eeg, lent=lent):
            return np.concatenate([eeg[:120], lent])

        swapped.append(changed(folder, tmp_path / f"S{i + 1}", change, "eeg", checksums=sums))
    after, _ = guesses(*ckpt, "--out", tmp_path / "after", "--data", *swapped)
    free = slice(1, None, 2 if "--interrecon" in flags else 1)  # what is not put back
    np.testing.assert_allclose(after["neuroframes"][free], made["other_eeg"][free], atol=1e-4)
    assert np.abs(made["neuroframes"] - made["other_eeg"]).max() > 1e-2


# ---- What does not go together ---------------------------------------------------------


def refused(capsys, main, *flags):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, flags)))
    assert ended.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


WRONG = {
    "TR": {"change": None, "said": {"tr": 2.0}, "words": "differ in TR: 0.8 and 2.0"},
    "delay": {"change": None, "said": {"delay": 5.0}, "words": "differ in delay"},
    "V": {"change": lambda x: x[:, :-1], "arrays": ["fmri"], "words": "vertices: 64 and 63"},
    "C": {"change": lambda x: x[:, 1:], "arrays": ["eeg"], "words": "(4, 40) and (3, 40)"},
    "names": {"change": None, "said": {"eeg": {"channels": list("abcd")}}, "words": "names of ch"},
    "EEG alone": {"change": None, "said": {"eeg_alone": True}, "words": "eeg_alone"},
}


@pytest.mark.parametrize("what", WRONG)
def test_people_who_are_not_alike_are_refused(folders, tmp_path, capsys, what):
    how = WRONG[what]
    arrays = how.get("arrays", [])
    other = changed(folders[1], tmp_path / "S2", how["change"], *arrays, **how.get("said", {}))
    os.remove(f"{other}/rois.npz")
    line = refused(capsys, train.main, "--data", folders[0], other, "--out", tmp_path / "out")
    assert how["words"] in line and folders[0] in line and other in line and "prepare" in line


def test_other_things_that_cannot_be(folders, group, tmp_path, capsys):
    out = "--out", tmp_path / "out"
    again = shutil.copytree(folders[0], tmp_path / "S7")
    assert "S7" in refused(capsys, train.main, "--data", folders[0], again, *out)
    twin = changed(folders[0], tmp_path / "S1", None)
    assert "name" in refused(capsys, train.main, "--data", folders[0], twin, *out)
    both = "--data", *folders[:2]
    line = refused(capsys, train.main, *both, "--leave-out", "S8", *out)
    assert "S8" in line and "S1_run-1" in line
    assert "S9" in refused(capsys, train.main, *both, "--val", "S1", "--test", "S9", *out)
    learn(folders[:1], tmp_path / "single")
    ckpt = "--ckpt", tmp_path / "single/ckpt.pt"
    assert "trained on one" in refused(capsys, sample.main, *ckpt, "--data", *folders[:2])
    nan = changed(folders[1], tmp_path / "S5", lambda x: np.where(x == x[7, 3], np.nan, x), "fmri")
    line = refused(capsys, train.main, "--data", folders[0], nan, *out)
    assert f"{nan}/fmri.npy" in line and "frame 7, vertex 3" in line


def test_one_person_is_as_before(folders, tmp_path):
    ckpt = learn(folders[:1], tmp_path / "out")
    assert ckpt["settings"]["data"] == [ckpt["subject"]] == folders[:1]
    assert "leave_out" not in ckpt["settings"]
    sample.main(["--ckpt", str(tmp_path / "out/ckpt.pt"), *FAST])
    metrics = read_json(tmp_path / "out/direct/metrics.json")
    assert "people" not in metrics and "name" not in metrics["runs"][0]
    assert not {"same_moment", "other_eeg"} & metrics["scores"].keys()


# ---- What is said of people ------------------------------------------------------------


def test_intervals_and_signs():
    table = {1: 12.7062, 2: 4.30265, 4: 2.77645, 9: 2.26216, 29: 2.04523}
    for degrees, t in table.items():
        assert np.isclose(of_people.student(degrees), t, rtol=1e-4)
    for better in itertools.product([False, True], repeat=5):
        flips = itertools.product([False, True], repeat=5)
        p = np.mean([sum(flip) >= sum(better) for flip in flips])
        assert of_people.sign_test(list(better)) == p
