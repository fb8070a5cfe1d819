"""What is said of a whole reconstruction: did the EEG help, is each vertex followed in time?"""

import types

import numpy as np
import pytest

from evidence import helped
from tools import over_time, report

TR = 0.8
MAPS, V = 6, 40  # a small brain: so many maps that wax and wane, on so many vertices

# ---- Two hundred brains, side by side --------------------------------------------------


def waxing(rng, T, count):
    """Series [T,count] of unit variance, whose autocorrelation is 0.5 after 4 s, as BOLD's is."""
    around = np.fft.rfftfreq(2 * T)
    kernel = np.exp(-0.5 * (2 * np.pi * 3 * around) ** 2)[:, None]  # of 3 frames
    x = np.fft.irfft(kernel * np.fft.rfft(rng.standard_normal((2 * T, count)), axis=0), axis=0)
    return x[:T] / x.std()


def on_maps(series, maps):
    """Series [T,brains MAPS] on maps [brains,MAPS,V]: [T,brains V]."""
    x = np.einsum("tbm,bmv->tbv", series.reshape(len(series), *maps.shape[:2]), maps)
    return x.reshape(len(series), -1) / MAPS**0.5


def brains(rng, runs, slow, maps):
    """A list of runs [T,brains V], with their drifts or offsets, which are of no other run."""
    found = []
    for T in runs:
        x = on_maps(waxing(rng, T, len(maps) * MAPS), maps)
        if slow == "drift":
            t = np.linspace(-1, 1, T)[:, None]
            ramp, wave = rng.standard_normal((2, len(maps) * MAPS))
            wandering = np.sin(np.pi * t + rng.uniform(0, 6, wave.shape))
            x += on_maps(2 * ramp * t + 2 * wave * wandering, rng.standard_normal(maps.shape))
        if slow == "offset":
            x += 3 * rng.standard_normal((1, x.shape[1]))
        found.append(x)
    return found


def some_maps(rng, count):
    return rng.standard_normal((count, MAPS, V))


def one_each(count):
    """Each brain is a region: [count V,count]."""
    return np.repeat(np.eye(count), V, axis=0)


CASES = {
    "steady": ([300, 300], None),
    "drift": ([300, 300], "drift"),
    "offset": ([300, 300], "offset"),
    "many runs": ([120] * 12, None),
    "many runs that drift": ([120] * 12, "drift"),
    "one run": ([300], None),
}


@pytest.mark.parametrize("length", [3, 4, 5])
def test_shifts_of_short_stretches_find_nothing(length):
    """What --fd leaves: without drifts almost one shape remains, which no shift is like."""
    rng = np.random.default_rng(0)
    runs = [length] * 40 + [120] * 3
    truth, recon = (brains(rng, runs, None, some_maps(rng, 200)) for _ in range(2))
    S = []
    for x_hat, x in zip(recon, truth):
        run = np.stack([x_hat, x_hat, x])
        S.append(helped.likeness(helped.without_drift(run, TR), one_each(200)))
    assert (np.array(helped.p_of_shifts(S)) <= 0.02).sum() <= 10
    assert helped.p_of_shifts(S[:40]) == [None] * 200


@pytest.mark.parametrize("effect", [0, 0.25])
@pytest.mark.parametrize("case", CASES)
def test_shifts_find_what_is_there_and_nothing_else(case, effect):
    """Of 200 reconstructions that have nothing to do with the truth at most 5% are said to be
    helped; of 50 that correlate with it by 0.24, at least 90%."""
    count = 50 if effect else 200
    runs, slow = CASES[case]
    rng = np.random.default_rng(0)
    truth = brains(rng, runs, slow, some_maps(rng, count))
    recon = brains(rng, runs, slow, some_maps(rng, count))
    S = []
    for x_hat, x in zip(recon, truth):
        run = np.stack([x_hat + effect * x, x_hat, x])
        S.append(helped.likeness(helped.without_drift(run, TR), one_each(count)))
    p = helped.p_of_shifts(S)
    assert len(p) == count
    said = (np.array(p) <= 0.02).sum()
    assert said >= 45 if effect else said <= 10, said


@pytest.mark.parametrize("effect", [0, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_signs_find_what_is_there_and_nothing_else(case, effect):
    """The same for InterRecon, every tenth frame observed, of reconstructions by one model from
    EEG that says nothing, and from EEG that does."""
    count = 50 if effect else 200
    runs, slow = CASES[case]
    rng = np.random.default_rng(0)
    truth = brains(rng, runs, slow, some_maps(rng, count))
    maps = some_maps(rng, count)
    guesses = [brains(rng, runs, slow, maps) for _ in range(2)]
    D = []
    for x, own, shuffled in zip(truth, *guesses):
        run = np.stack([0.5 * (own + effect * x), 0.5 * shuffled, x])
        run[:, ::10] = 0
        D.append(helped.advantage(helped.without_drift(run, TR), one_each(count)))
    p = helped.p_of_signs(D, max(30, sum(runs) // 24))
    said = (np.array(p) <= 0.02).sum()
    assert said >= 45 if effect else said <= 10, said


# ---- The pieces, by other means --------------------------------------------------------


def fitted(x, columns, rows):
    """x without what the columns explain of it in some rows."""
    weight = np.linalg.lstsq(columns[rows], x[rows], rcond=None)[0]
    return x - columns @ weight


def slow_columns(T, tr):
    """1, cosines of k half waves in T frames whose period is 128 s or more, and two more."""
    columns = [np.ones(T)]
    k = 1
    while 2 * T * tr / max(1, k - 2) >= 128 or k <= 2:
        columns.append(np.cos(np.pi * k * (np.arange(T) + 0.5) / T))
        k += 1
    return np.stack(columns, 1)


@pytest.mark.parametrize("tr, waves", [(0.8, 4), (2.0, 7), (0.1, 3)])
def test_likeness_at_each_lag(tr, waves):
    rng = np.random.default_rng(1)
    T = 150
    x = rng.standard_normal((3, T, 7)) + 5 * np.linspace(-1, 1, T)[:, None]
    S = helped.likeness(helped.without_drift(x, tr), np.eye(7))
    columns = slow_columns(T, tr)
    assert columns.shape[1] == waves
    a, _, b = (fitted(series, columns, np.arange(T)) for series in x)
    for lag in (0, 1, 30, 149):
        np.testing.assert_allclose(S[lag], (np.roll(a, lag, axis=0) * b).sum(0), atol=1e-9)


def test_advantage_is_of_what_was_not_seen():
    """Errors less what is slow, as fitted to the frames that were not seen whole, which are 0."""
    rng = np.random.default_rng(1)
    T = 200
    x = rng.standard_normal((3, T, 7))
    whole = np.arange(T) % 3 == 0
    x[:, whole] = 0
    x[:, :, :2] = 0  # two vertices are always seen
    D = helped.advantage(helped.without_drift(x, TR), np.eye(7))
    columns = slow_columns(T, TR)
    missing = np.flatnonzero(~whole)
    own, shuffled = (fitted(guess - x[2], columns, missing) ** 2 for guess in x[:2])
    expected = np.where(whole[:, None], 0, shuffled - own)
    np.testing.assert_allclose(D, expected, atol=1e-9)
    assert not D[:, :2].any()
    slow = columns @ rng.standard_normal((columns.shape[1], 7))  # what is slow changes nothing
    moved = x + np.where(whole[:, None], 0, slow) * np.array([1, 0, 0])[:, None, None]
    D = helped.advantage(helped.without_drift(moved, TR), np.eye(7))
    np.testing.assert_allclose(D, expected, atol=1e-9)


def test_p_of_shifts_counts_those_that_are_as_good():
    S = np.zeros((100, 3))
    S[0] = 1
    S[35, 1] = 2  # one of the 41 at 30 to 70
    S[[30, 70], 2] = 1
    S[[29, 71]] = 9  # too near
    assert helped.p_of_shifts([S]) == [None] * 3  # 41 are too few
    wider = np.insert(S, [50] * 20, 0, axis=0)  # 61, at 30 to 90
    np.testing.assert_allclose(helped.p_of_shifts([wider]), np.array([1, 2, 3]) / 62)
    short = np.zeros((12, 1))
    short[[0, 3, 9]] = 1  # in a run of 12 those at 4 to 8
    assert helped.p_of_shifts([short] * 2) == [None]  # 25
    assert helped.p_of_shifts([short] * 3) == [1 / 1000]
    short[4] = 1
    (p,) = helped.p_of_shifts([short] * 3)
    assert 1 / 1000 < p == pytest.approx(1 / 125, abs=0.01)
    tiny = [np.zeros((1, 1)), np.zeros((2, 1))]  # they say nothing, and do no harm
    assert helped.p_of_shifts([*tiny, wider[:, :1]]) == [1 / 1000]


def test_p_of_signs_in_blocks():
    """Blocks of 30 frames, of each run apart; the share of signs is that of all of them."""
    rng = np.random.default_rng(0)
    runs = [rng.standard_normal((n, 2)) + 0.1 for n in (100, 61, 30)]
    D = []
    for run in runs:
        D += [run[i : i + 30].sum(0) for i in range(0, len(run), 30)]
    assert len(D) == 8
    signs = np.array(np.meshgrid(*[[1, -1]] * 8)).reshape(8, -1).T
    exact = (signs @ np.array(D) >= np.sum(D, 0) - 1e-12).mean(0)
    np.testing.assert_allclose(helped.p_of_signs(runs, 30), exact, atol=0.02)
    assert 0.02 < exact.min() < exact.max() < 0.98
    assert helped.p_of_signs([np.ones((150, 1))], 30) == [None]  # five blocks
    assert helped.p_of_signs([np.ones((151, 1))], 30)[0] < 0.02  # six, all alike: 1 / 64
    assert helped.p_of_signs([np.zeros((180, 1))], 30) == [1]


# ---- What is said of it ----------------------------------------------------------------


def scored(r, shuffled):
    """Scores with these r."""
    return {
        method: {"whole": {"r": {"mean": value}}, "patch": {"r": {"mean": value / 2}}}
        for method, value in (("neuroframes", r), ("shuffled_eeg", shuffled))
    }


@pytest.mark.parametrize(
    "p, r, shuffled, words",
    [
        (0.001, 0.520, 0.010, "The EEG helped: r 0.520 with it, 0.010 with shuffled EEG (p 0.001"),
        (0.02, 0.520, 0.516, "The EEG helped, but hardly: r 0.520"),
        (0.021, 0.520, 0.010, "The EEG did not help measurably: r 0.520"),
        (0.001, 0.010, 0.011, "The EEG did not help measurably: r 0.010"),
        (None, 0.520, 0.010, "Too few frames to tell"),
    ],
)
def test_verdict(p, r, shuffled, words):
    metrics = {"mode": "direct", "scores": scored(r, shuffled)}
    metrics["helped"] = {
        "whole": {"p": p, "r_gain": r - shuffled},
        "patch": {"p": p and 0.5, "r_gain": 0.0},
    }
    said = helped.verdict(metrics)
    assert said.startswith(words)
    assert (", 0.5 patch)." in said) == (p is not None)
    metrics["scores"]["ceiling"] = {"whole": {"r": {"mean": 0.542}}}
    assert ("r 0.520 of a possible 0.542 with it" in helped.verdict(metrics)) == (
        p is not None and r == 0.520
    )
    metrics["mode"] = "interrecon"
    assert helped.verdict(metrics) == said


def written(truth, recon, shuffled, edges, regions, seen, pattern):
    """What report.Results has when all is written; edges: where runs start and end."""
    stretches = list(zip(edges[:-1], edges[1:]))
    timeline = types.SimpleNamespace(
        stretches=stretches, pattern=pattern, rows=np.arange(edges[-1])
    )
    return types.SimpleNamespace(
        arrays={"recon": recon, "shuffled": shuffled, "truth": truth},
        timeline=timeline,
        regions=regions,
        seen=seen,
        subject=types.SimpleNamespace(tr=TR),
    )


@pytest.mark.parametrize("mode", ["direct", "interrecon"])
def test_p_is_of_each_region(mode):
    """The reconstruction knows the first half of the vertices, and nothing of the second; the runs
    are those given, and no other."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 600, 20))
    truth = waxing(rng, 600, 20)
    half = np.arange(20) < 10
    recon = waxing(rng, 600, 20) * ~half + 0.3 * truth * half
    regions = {"whole": np.ones(20, bool), "known": half, "not": ~half}
    given = regions, np.zeros((1, 20), bool), np.full(600, -1)
    results = written(truth, recon + 0.1 * noise[0], 0.3 * noise[1], [0, 300, 600], *given)
    scores = {
        method: {name: {"r": {"mean": r + i}} for i, name in enumerate(regions)}
        for method, r in (("neuroframes", 0.5), ("shuffled_eeg", 0.25))
    }
    metrics = {"mode": mode, "frames": 10, "test_frames": 600, "scores": scores, "calibration": {}}
    scores["neuroframes_1"] = scores["mean_frame"] = {"whole": {"mse": {"mean": 1.0}}}
    rows = dict.fromkeys(regions, {"r_vertices": 0.3, "r_mean_course": 0.4})
    metrics["over_time"] = {"neuroframes": rows, "shuffled_eeg": rows}
    looked = helped.Helped(results, metrics)
    over_time.look(results, [looked])
    *_, said = looked.tell()
    found = metrics["helped"]
    assert said == helped.verdict(metrics) and found.keys() == regions.keys()
    assert found["known"]["p"] <= 0.001 and found["not"]["p"] > 0.05
    assert {row["r_gain"] for row in found.values()} == {0.25}
    if mode == "interrecon":
        metrics["frames"] = 150  # a period of anchors: four blocks
        looked = helped.Helped(results, metrics)
        over_time.look(results, [looked])
        looked.tell()
        assert {row["p"] for row in metrics["helped"].values()} == {None}


# ---- r over time -----------------------------------------------------------------------


@pytest.fixture
def followed():
    """Three runs of 100, 30 and 200 frames on 9 vertices: some were seen, some are flat."""
    rng = np.random.default_rng(2)
    T = 330
    truth = rng.standard_normal((T, 9)).astype("f4")
    truth[:, 8] = 0.3  # does not vary
    recon = (0.4 * truth + rng.standard_normal((T, 9))).astype("f4")
    recon[:, 7] = 0.7  # does not vary
    shuffled = rng.standard_normal((T, 9)).astype("f4")
    seen = np.stack([np.ones(9), np.arange(9) < 2, np.zeros(9)]).astype(bool)
    seen[1, 6] = seen[2, 6] = True  # never free
    pattern = rng.integers(-1, 2, T)
    vertex = np.arange(9)
    regions = {"whole": vertex != 6, "few": vertex % 3 == 1, "alike": (vertex > 2) & (vertex < 6)}
    return written(truth, recon, shuffled, [0, 100, 130, 330], regions, seen, pattern)


def test_deviations_in_parts_are_those_of_the_whole(followed, monkeypatch):
    """Four vertices at a time, each run less its mean of what was not seen."""
    (whole,) = over_time.deviations(followed)
    monkeypatch.setattr(over_time, "AT_ONCE", 4 * 330)
    parts = list(over_time.deviations(followed))
    assert [x.shape for x, _ in parts] == [(3, 330, 4), (3, 330, 4), (3, 330, 1)]
    for part, expected, axis in zip(zip(*parts), whole, (2, 0)):
        np.testing.assert_allclose(np.concatenate(part, axis), expected)
    x, share = whole
    free = ~followed.seen[followed.timeline.pattern]
    for low, high in followed.timeline.stretches:
        for v in (0, 1, 2, 3, 4, 5, 7, 8):
            here = low + np.flatnonzero(free[low:high, v])
            for series, name in zip(x, ("recon", "shuffled", "truth")):
                values = np.float64(followed.arrays[name][here, v])
                np.testing.assert_allclose(series[here, v], values - values.mean(), atol=1e-9)
    assert not x[:, ~free].any()
    means = [x[0][:, mask].mean(1) for mask in followed.regions.values()]
    np.testing.assert_allclose(x[0] @ share, np.transpose(means), atol=1e-9)


def pooled_r(runs):
    """r of pairs of series of each run, each less its own mean."""
    a, b = (np.concatenate([run[i] - run[i].mean() for run in runs]) for i in range(2))
    return np.corrcoef(a, b)[0, 1]


def test_r_over_time_is_numpys(followed):
    maps, scores = over_time.look(followed, [])
    stretches = followed.timeline.stretches
    free = ~followed.seen[followed.timeline.pattern]
    truth = np.float64(followed.arrays["truth"])
    assert scores.keys() == {"neuroframes", "shuffled_eeg", "difference"}
    for rows, r, name in zip(scores.values(), maps, ("recon", "shuffled")):
        recon = np.float64(followed.arrays[name])

        def r_of(columns, frames, recon=recon):
            pairs = []
            for low, high in stretches:
                here = low + np.flatnonzero(frames[low:high])
                pairs.append([x[here][:, columns].mean(1) for x in (recon, truth)])
            return pooled_r(pairs)

        expected = [r_of([v], free[:, v]) for v in range(6)]
        np.testing.assert_allclose(r[:6], expected, atol=1e-6)
        assert np.isnan(r[6]) and r[8] == pytest.approx(0, abs=1e-6)
        assert name == "shuffled" or r[7] == pytest.approx(0, abs=1e-6)
        for region, mask in followed.regions.items():
            assert rows[region]["r_vertices"] == pytest.approx(np.mean(r[mask]))
        # Vertices that were seen at the same times: r of the mean is that of their mean course.
        assert rows["alike"]["r_mean_course"] == pytest.approx(
            r_of([3, 4, 5], free[:, 3]), abs=1e-6
        )
    own, shuffled, difference = scores.values()
    assert own.keys() == followed.regions.keys()
    for what in ("r_vertices", "r_mean_course"):
        assert difference["few"][what] == own["few"][what] - shuffled["few"][what]
    lines = helped.followed(scores)
    numbers = "{:.3f}, {:.3f}; with shuffled EEG {:.3f}, {:.3f}"
    assert numbers.format(*own["few"].values(), *shuffled["few"].values()) in lines[2]


def test_r_of_a_mean_course_whose_vertices_were_seen_at_different_times(followed):
    """A vertex has a share in it where it was not seen: its deviation from its own mean."""
    _, scores = over_time.look(followed, [])
    ((x, _),) = over_time.deviations(followed)
    recon, _, truth = x[:, :, followed.regions["few"]].sum(2)
    r = recon @ truth / np.sqrt(recon @ recon * (truth @ truth))
    assert scores["neuroframes"]["few"]["r_mean_course"] == pytest.approx(r)


def test_r_over_time_knows_no_offsets_and_follows_its_vertices(followed):
    followed.seen[1] = followed.seen[2] = False
    before = over_time.look(followed, [])[0][0]
    rng = np.random.default_rng(0)
    arrays = followed.arrays
    offsets = np.repeat(5 * rng.standard_normal((3, 9)), [100, 30, 200], axis=0)
    followed.arrays = {**arrays, "recon": 3 * arrays["recon"] + offsets}
    np.testing.assert_allclose(over_time.look(followed, [])[0][0], before, atol=1e-6)
    order = rng.permutation(9)
    followed.arrays = {name: x[:, order] for name, x in arrays.items()}
    followed.regions["whole"] = followed.regions["whole"][order]
    np.testing.assert_array_equal(over_time.look(followed, [])[0][0], before[order])
    followed.regions["whole"] = np.ones(9, bool)
    followed.arrays = {**arrays, "recon": np.roll(arrays["recon"], 1, axis=0)}
    after = over_time.look(followed, [])[0][0]
    assert np.abs(after[:6]).max() < 0.2 < before[:6].min()


# ---- Scores of frames ------------------------------------------------------------------


@pytest.fixture
def scored_frames():
    """Scores of three runs, in windows of two: the last frame of the second run was seen whole, and
    so was the third run. The second vertex is seen in some. (scores, {method: frames}, truth)"""
    rng = np.random.default_rng(0)
    timeline = types.SimpleNamespace(
        rows=np.arange(10, 18),
        stretches=[(0, 3), (3, 6), (6, 8)],
        pattern=np.array([-1, 1, -1, -1, 1, 0, 0, 0]),
        blocks=[np.arange(*edges) for edges in ((0, 2), (2, 3), (3, 5), (5, 6), (6, 8))],
    )
    regions = {"whole": np.array([True, True, False]), "first": np.array([True, False, False])}
    seen = np.array([[True, True, False], [False, True, False], [False, False, False]])

    def score(x_hat, x):
        return np.stack([(x_hat - x).mean(-1), x_hat.max(-1), x.max(-1)], -1)

    scores = report.Scores(regions, timeline, seen, score)
    truth = rng.standard_normal((8, 3))
    guesses = {"neuroframes": rng.standard_normal((8, 3)), "mean_frame": np.zeros((8, 3))}
    for method, x_hat in guesses.items():
        for k in timeline.blocks:
            scores.add(method, x_hat[k], truth[k], k)
    # By hand: both vertices in frames 0, 2, 3; the first in 1, 4; none in 5, 6, 7.
    columns = {0: 2, 1: 1, 2: 2, 3: 2, 4: 1}
    expected = {
        method: np.concatenate(
            [score(x[t : t + 1, :n], truth[t : t + 1, :n]) for t, n in columns.items()]
        )
        for method, x in guesses.items()
    }
    return scores, expected


def test_scores_are_of_what_was_not_seen(scored_frames):
    scores, expected = scored_frames
    table = scores.summary()
    assert table.keys() == {"neuroframes", "mean_frame"}
    own = expected["neuroframes"]
    cells = table["neuroframes"]["whole"]
    assert table["neuroframes"].keys() == {"whole", "first"} and cells.keys() == {"mse", "r", "cos"}
    windows = [own[:2].mean(0), own[2], own[3:].mean(0)]
    np.testing.assert_allclose([cell["mean"] for cell in cells.values()], own.mean(0))
    np.testing.assert_allclose([cell["std"] for cell in cells.values()], np.std(windows, 0))


def test_scores_of_each_run(scored_frames):
    scores, expected = scored_frames
    runs = scores.runs(lambda row: (row - 9, 0.5 * row))
    assert [list(row.values())[:3] for row in runs] == [[1, 5, 3], [4, 6.5, 3], [7, 8, 2]]
    names = ["run", "start", "frames", "mse", "r", "cos", "mean_frame_mse"]
    for row, here in zip(runs, (slice(0, 3), slice(3, 5))):
        assert list(row) == names
        own = expected["neuroframes"][here].mean(0)
        rival = expected["mean_frame"][here, 0].mean()
        np.testing.assert_allclose(list(row.values())[3:], [*own, rival])
    assert list(runs[2].values())[3:] == [None] * 4  # nothing of it was to be found
