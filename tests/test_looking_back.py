"""What is said of a whole reconstruction: did the EEG help, is each vertex followed in time?"""

import types

import numpy as np
import pytest

from beyond import helped, over_time

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
        run = {"recon": x_hat + effect * x, "truth": x}
        S.append(helped.likeness(run, TR, one_each(count)))
    p = helped.p_of_shifts(S)
    assert p.shape == (count,)
    said = (p <= 0.02).sum()
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
    seen = np.array([[True] * count * V, [False] * count * V])
    D = []
    for x, own, shuffled in zip(truth, *guesses):
        pattern = np.where(np.arange(len(x)) % 10 == 0, 0, -1)
        own = 0.5 * (own + effect * x)
        shuffled = 0.5 * shuffled
        own[pattern == 0] = shuffled[pattern == 0] = x[pattern == 0]
        run = {"recon": own, "shuffled": shuffled, "truth": x, "pattern": pattern}
        D.append(helped.advantage(run, TR, one_each(count), seen))
    p = helped.p_of_signs(D, max(30, sum(runs) // 24))
    said = (p <= 0.02).sum()
    assert said >= 45 if effect else said <= 10, said


# ---- The pieces, by other means --------------------------------------------------------


def fitted(x, columns, rows):
    """x without what the columns explain of it in some rows."""
    weight = np.linalg.lstsq(columns[rows], x[rows], rcond=None)[0]
    return x - columns @ weight


def slow_columns(T, tr):
    """1, and cosines of k half waves in T frames whose period is 128 s or more."""
    columns = [np.ones(T)]
    k = 1
    while 2 * T * tr / k >= 128:
        columns.append(np.cos(np.pi * k * (np.arange(T) + 0.5) / T))
        k += 1
    return np.stack(columns, 1)


@pytest.mark.parametrize("tr", [0.8, 2.0])
def test_likeness_at_each_lag(tr):
    rng = np.random.default_rng(1)
    T = 150
    recon, truth = rng.standard_normal((2, T, 7)) + 5 * np.linspace(-1, 1, T)[:, None]
    regions = np.stack([np.arange(7) < 3, np.ones(7, bool)], 1)
    S = helped.likeness({"recon": recon, "truth": truth}, tr, regions)
    columns = slow_columns(T, tr)
    a, b = (fitted(x, columns, np.arange(T)) for x in (recon, truth))
    waves = np.arange(int(T * tr / 128) + 2)  # whole ones, to the first that is faster than 128 s
    angle = 2 * np.pi * np.outer(np.arange(T), waves) / T
    whole_waves = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    b = fitted(b, whole_waves, np.arange(T))
    for lag in (0, 1, 30, 149):
        products = (np.roll(a, lag, axis=0) * b).sum(0)
        np.testing.assert_allclose(S[lag], products @ regions, atol=1e-9)


def test_advantage_is_of_what_was_not_seen():
    """Errors less what is slow, as fitted to the frames that were not seen whole."""
    rng = np.random.default_rng(1)
    T = 200
    own, shuffled, truth = rng.standard_normal((3, T, 7))
    seen = np.stack([np.ones(7), np.arange(7) < 2, np.zeros(7)]).astype(bool)
    pattern = np.arange(T) % 4 % 3 - (np.arange(T) % 4 == 2) * 3  # 0, 1, -1, 0
    own[seen[pattern]] = truth[seen[pattern]]
    shuffled[seen[pattern]] = truth[seen[pattern]]
    run = {"recon": own, "shuffled": shuffled, "truth": truth, "pattern": pattern}
    D = helped.advantage(run, TR, np.eye(7), seen)
    columns = slow_columns(T, TR)
    missing = np.flatnonzero(pattern != 0)
    left = [fitted(x - truth, columns, missing) ** 2 for x in (shuffled, own)]
    expected = np.where(seen[pattern], 0, left[0] - left[1])
    np.testing.assert_allclose(D, expected, atol=1e-9)
    slow = columns @ rng.standard_normal((columns.shape[1], 7))  # what is slow changes nothing
    moved = {**run, "recon": np.where(pattern[:, None] == 0, own, own + slow)}
    np.testing.assert_allclose(helped.advantage(moved, TR, np.eye(7), seen), expected, atol=1e-9)


def test_vertices_in_parts_sum_to_the_whole():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 10))
    regions = rng.random((10, 3)) < 0.5
    asked = []

    def part(columns):
        asked.append(x[:, columns].shape[1])
        return x[:, columns]

    total = helped.over_vertices(part, regions, T=2**20)  # four vertices at a time
    np.testing.assert_allclose(total, x @ regions)
    assert asked == [4, 4, 2]


def test_p_of_shifts_counts_those_that_are_as_good():
    S = np.zeros((100, 3))
    S[0] = 1
    S[35, 1] = 2  # one of the 41 at 30 to 70
    S[[30, 70], 2] = 1
    S[[29, 71]] = 9  # too near
    assert helped.p_of_shifts([S]) is None  # 41 are too few
    wider = np.insert(S, [50] * 20, 0, axis=0)  # 61, at 30 to 90
    np.testing.assert_allclose(helped.p_of_shifts([wider]) * 62, [1, 2, 3])
    short = np.zeros((12, 1))
    short[[0, 3, 9]] = 1  # in a run of 12 those at 4 to 8
    assert helped.p_of_shifts([short] * 2) is None  # 25
    assert helped.p_of_shifts([short] * 3) == 1 / 1000
    short[4] = 1
    assert helped.p_of_shifts([short] * 3) == pytest.approx(1 / 125, abs=0.01)
    assert helped.p_of_shifts([short] * 3) > 1 / 1000
    tiny = [np.zeros((1, 1)), np.zeros((2, 1))]  # they say nothing, and do no harm
    assert helped.p_of_shifts([*tiny, wider[:, :1]]) == 1 / 1000


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
    assert helped.p_of_signs([np.ones((150, 1))], 30) is None  # five blocks
    assert helped.p_of_signs([np.ones((151, 1))], 30) < 0.02  # six, all alike: 1 / 64
    assert helped.p_of_signs([np.zeros((180, 1))], 30) == 1


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


@pytest.mark.parametrize("mode", ["direct", "interrecon"])
def test_p_is_of_each_region(mode):
    """The reconstruction knows the first half of the vertices, and nothing of the second; the runs
    are those given, and no other."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 600, 20))
    truth = waxing(rng, 600, 20)
    half = np.arange(20) < 10
    recon = waxing(rng, 600, 20) * ~half + 0.3 * truth * half
    arrays = {"truth": truth, "recon": recon + 0.1 * noise[0], "shuffled": 0.3 * noise[1]}
    arrays["pattern"] = np.full(600, -1)
    runs = [{name: x[low : low + 300] for name, x in arrays.items()} for low in (0, 300)]
    regions = {"whole": np.ones(20, bool), "known": half, "not": ~half}
    scores = {
        method: {name: {"r": {"mean": r + i}} for i, name in enumerate(regions)}
        for method, r in (("neuroframes", 0.5), ("shuffled_eeg", 0.25))
    }
    metrics = {"mode": mode, "frames": 10, "test_frames": 600, "scores": scores}
    found = helped.look(runs, regions, np.zeros((1, 20), bool), TR, metrics)
    assert found["known"]["p"] <= 0.001 and found["not"]["p"] > 0.05
    assert {row["r_gain"] for row in found.values()} == {0.25}
    if mode == "interrecon":
        metrics["frames"] = 150  # a period of anchors: four blocks
        found = helped.look(runs, regions, np.zeros((1, 20), bool), TR, metrics)
        assert found["whole"]["p"] is None


# ---- r over time -----------------------------------------------------------------------


@pytest.fixture
def followed():
    """Three runs of 100, 30 and 200 frames on 9 vertices: what look_back gets, and where it was
    free."""
    rng = np.random.default_rng(2)
    T = 330
    truth = rng.standard_normal((T, 9)).astype("f4")
    truth[:, 8] = 0.3  # does not vary
    recon = (0.4 * truth + rng.standard_normal((T, 9))).astype("f4")
    recon[:, 7] = 0.7  # does not vary
    shuffled = rng.standard_normal((T, 9)).astype("f4")
    seen = np.stack([np.ones(9), np.arange(9) < 2, np.zeros(9)]).astype(bool)
    seen[1, 6] = seen[2, 6] = True  # never free
    arrays = {"truth": truth, "recon": recon, "shuffled": shuffled}
    arrays["pattern"] = rng.integers(-1, 2, T)
    edges = [(0, 100), (100, 130), (130, 330)]
    runs = [{name: x[low:high] for name, x in arrays.items()} for low, high in edges]
    regions = {"whole": np.ones(9, bool), "few": np.arange(9) % 3 == 1, "none": np.arange(9) == 6}
    return runs, regions, seen


def pooled_r(runs):
    """r of pairs of series of each run, each less its own mean."""
    a, b = (np.concatenate([run[i] - run[i].mean() for run in runs]) for i in range(2))
    return np.corrcoef(a, b)[0, 1]


def test_r_over_time_is_numpys(followed):
    runs, regions, seen = followed
    scores, maps = over_time.look(runs, regions, seen)
    for rows, r, name in zip(scores.values(), maps, ("recon", "shuffled")):
        expected = np.full(9, np.nan)
        for v in range(6):
            free = [~seen[run["pattern"], v] for run in runs]
            pairs = [(run[name][f, v], run["truth"][f, v]) for f, run in zip(free, runs)]
            expected[v] = pooled_r([np.float64(pair) for pair in pairs])
        expected[7] = 0 if name == "recon" else r[7]  # the mean of a constant
        np.testing.assert_allclose(r, expected, atol=1e-6)
        assert rows.keys() == {"whole", "few"}
        courses = []
        few = np.flatnonzero(regions["few"])
        for run in runs:
            free = np.where(seen[run["pattern"]][:, few], np.nan, 1)
            some = ~np.isnan(free).all(1)
            pair = [np.nanmean(run[x][some][:, few] * free[some], 1) for x in (name, "truth")]
            courses.append(np.float64(pair))
        assert rows["few"]["r_mean_course"] == pytest.approx(pooled_r(courses), abs=1e-6)
        assert rows["few"]["r_vertices"] == pytest.approx(r[few].mean())
        assert rows["whole"]["r_vertices"] == pytest.approx(np.nanmean(r))
    own, shuffled, difference = scores.values()
    for what in ("r_vertices", "r_mean_course"):
        assert difference["few"][what] == own["few"][what] - shuffled["few"][what]
    lines = over_time.lines(scores)
    numbers = "{:.3f}, {:.3f}; with shuffled EEG {:.3f}, {:.3f}"
    assert numbers.format(*own["few"].values(), *shuffled["few"].values()) in lines[2]


def test_r_over_time_knows_no_offsets_and_follows_its_vertices(followed):
    runs, regions, seen = followed
    seen[1] = seen[2] = False
    _, (before, _) = over_time.look(runs, regions, seen)
    rng = np.random.default_rng(0)
    moved = [{**run, "recon": 3 * run["recon"] + 5 * rng.standard_normal(9)} for run in runs]
    _, (after, _) = over_time.look(moved, regions, seen)
    np.testing.assert_allclose(after, before, atol=1e-6)
    order = rng.permutation(9)
    names = "recon", "shuffled", "truth"
    permuted = [{**run, **{name: run[name][:, order] for name in names}} for run in runs]
    _, (after, _) = over_time.look(permuted, regions, seen)
    np.testing.assert_array_equal(after, before[order])
    late = [{**run, "recon": np.roll(run["recon"], 1, axis=0)} for run in runs]
    _, (after, _) = over_time.look(late, regions, seen)
    assert np.abs(after[:7]).max() < 0.2 < before[:7].min()


def test_scores_of_each_run():
    """Two runs, of which the second has a frame without anything to score."""
    windows = {
        "neuroframes": {
            "whole": [np.full((3, 3), [1, 2, 3.0]), np.array([[5, 6, 7], [7, 8, 9.0]])]
        },
        "mean_frame": {"whole": [np.full((3, 3), 4.0), np.full((2, 3), 9.0)]},
    }
    results = types.SimpleNamespace(
        timeline=types.SimpleNamespace(
            rows=np.arange(10, 18),
            stretches=[(0, 3), (3, 6), (6, 8)],
            pattern=np.array([-1, -1, -1, -1, 0, -1, 0, 0]),
        ),
        regions={"whole": np.array([True, True, False])},
        seen=np.array([[True, True, False], [False, False, False]]),
        scores=types.SimpleNamespace(windows=windows),
        subject=types.SimpleNamespace(when=lambda row: (row - 9, 0.5 * row)),
    )
    first, second, third = over_time.of_runs(results)
    assert first == dict(run=1, start=5, frames=3, mse=1, r=2, cos=3, mean_frame_mse=4)
    assert second == dict(run=4, start=6.5, frames=3, mse=6, r=7, cos=8, mean_frame_mse=9)
    assert third == dict(run=7, start=8, frames=2)
