"""What is said of a subject before training is so: planted lags, channels and artefacts are found,
and nothing is found where nothing was planted."""

import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import HERE, TINY, command

import data
from evidence import look
from recordings import eeg
from spaces import page
from spaces.outputs import Outputs

TR = 0.8
FS = 250  # Hz: 200 samples a frame


def resting(seed, frames, tr=TR):
    """EEG [4,samples] of 1/f noise, an alpha rhythm of 10 Hz that wanders, and heart beats."""
    rng = np.random.default_rng(seed)
    samples = round(frames * tr * FS)
    seconds = samples / FS
    white = np.fft.rfft(rng.standard_normal((4, samples)))
    pink = np.fft.irfft(white / np.sqrt(np.maximum(np.arange(white.shape[1]), 1)), samples)
    t = np.arange(samples) / FS
    alpha = np.sin(2 * np.pi * 10 * t + np.cumsum(rng.standard_normal(samples)) * 0.05)
    beats = np.cumsum(rng.normal(0.85, 0.05, int(seconds / 0.85)))
    pulse = np.exp(-(((t[:, None] - beats) / 0.03) ** 2)).sum(1)
    return 20 * pink / pink.std() + 15 * alpha + 20 * pulse


def subject(folder, runs, fmri, tr=TR, **meta):
    """runs: EEG [C,samples] of each; fmri [T,V]."""
    W = round(tr * FS)
    windows = [run[:, : run.shape[1] // W * W].reshape(len(run), -1, W) for run in runs]
    stops = np.cumsum([x.shape[1] for x in windows]).tolist()
    runs = list(zip([0, *stops[:-1]], stops))
    whole = np.concatenate(windows, 1).swapaxes(0, 1)  # [T,C,W]
    meta = {"first_volume": [0] * len(runs), "eeg": {}, **meta}
    found = SimpleNamespace(folder=str(folder), eeg=whole, fmri=fmri, tr=tr, runs=runs, meta=meta)
    found.segments = lambda split: [run for run in runs if split == "train"]
    return found


def told(found, capsys):
    """What is printed; nothing is drawn, which takes longer."""
    nothing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(look, "importlib", nothing)
        look.tell(found)
    return capsys.readouterr().out


def driven(rng, frames, lag):
    """EEG [4,frames 200], and BOLD [frames,30] that follows its alpha power `lag` frames later."""
    strength = np.exp(data.slow_noise(rng, frames + 40, 1, 1.5, TR)[:, 0] / 2)
    t = np.arange(frames * 200) / FS
    alpha = np.sin(2 * np.pi * 10 * t) * np.repeat(strength[20 : 20 + frames], 200)
    eeg = alpha + 0.5 * rng.standard_normal((4, len(t)))
    follows = strength[20 - lag : 20 - lag + frames]
    bold = 1000 + 5 * follows[:, None] + 3 * rng.standard_normal((frames, 30))
    return eeg, bold + 0.02 * np.arange(frames)[:, None]  # and a drift


@pytest.mark.parametrize("lag", [-5, 0, 3])
def test_a_planted_lag_is_found(tmp_path, capsys, lag):
    rng = np.random.default_rng(0)
    runs = [driven(rng, 160, lag) for _ in range(2)]
    eeg = [run[0] for run in runs]
    bold = np.concatenate([run[1] for run in runs])
    line = told(subject(tmp_path, eeg, bold), capsys)
    r, seconds, chance = re.search(
        r"r (\S+) of alpha, with BOLD (\S+) s later .* up to (\S+)", line
    ).groups()
    assert float(seconds) == pytest.approx(lag * TR, abs=0.05)
    assert float(r) > 0.6 > 0.5 > float(chance)


def test_r_is_what_it_says(tmp_path):
    """By a loop over lags; and b, p have neither mean nor trend."""
    rng = np.random.default_rng(1)
    b = rng.standard_normal(200)
    p = rng.standard_normal((200, 2))
    r, lags, _ = look.together(b, p, 2.0)
    np.testing.assert_allclose(lags, 2.0 * np.arange(-5, 8))
    for seconds, found in zip(lags, r):
        moved = np.roll(b, -round(seconds / 2))  # moved[t] = b[t + l]
        expected = moved @ p / np.sqrt((b @ b) * (p**2).sum(0))
        np.testing.assert_allclose(found, expected)
    x = rng.standard_normal((50, 3)) + np.outer(np.arange(50), [1, 2, -3])
    line = [np.polyval(np.polyfit(np.arange(50), column, 1), np.arange(50)) for column in x.T]
    np.testing.assert_allclose(look.without_trend(x), x - np.transpose(line), atol=1e-9)


def test_chance_is_not_often_exceeded():
    """Slow signals that have nothing to do with each other, of four runs, are within the band."""
    rng = np.random.default_rng(2)
    over = 0
    for _ in range(100):
        runs = [look.without_trend(data.slow_noise(rng, 304, 5, 2.0, TR)) for _ in range(4)]
        x = np.concatenate(runs)
        r, _, chance = look.together(x[:, 0], x[:, 1:], TR)
        over += np.abs(r).max() > chance
    assert over <= 12


def test_shuffled_eeg_is_within_the_band(tmp_path, capsys):
    rng = np.random.default_rng(3)
    eeg, bold = driven(rng, 300, 0)
    other, _ = driven(rng, 300, 0)
    line = told(subject(tmp_path, [other], bold), capsys)
    r, chance = re.search(r"r (\S+) of .* up to (\S+)", line).groups()
    assert abs(float(r)) <= float(chance)


def test_channels_that_are_flat_or_noisy_are_named(tmp_path, capsys):
    eeg = resting(0, 160)
    eeg = np.concatenate([eeg, resting(1, 160)])  # 8 channels
    bold = 1000 + np.random.default_rng(0).standard_normal((160, 9))
    names = {"eeg": {"channels": ["Fp1", "Fp2", "C3", "Cz", "C4", "O1", "Oz", "O2"]}}
    assert "median channel's): none" in told(subject(tmp_path, [eeg], bold, **names), capsys)
    eeg[3] = 0
    eeg[6] *= 10  # its power a hundredfold
    line = told(subject(tmp_path, [eeg], bold, **names), capsys)
    said = re.search(r"median channel's\): (.*)", line)[1]
    assert re.fullmatch(r"Cz 0\.00, Oz (\d+)\.\d+", said), said
    assert 50 < float(said.split()[-1]) < 200
    line = told(subject(tmp_path, [eeg], bold), capsys)
    assert "channel 3 0.00, channel 6" in line


def test_mains_are_told(tmp_path, capsys):
    eeg = resting(0, 160)
    bold = 1000 + np.random.default_rng(0).standard_normal((160, 9))
    t = np.arange(eeg.shape[1]) / FS
    line = told(subject(tmp_path, [eeg + 5 * np.sin(2 * np.pi * 50 * t)], bold), capsys)
    at = {hz: float(re.search(rf"at {hz} Hz: (\S+) times", line)[1]) for hz in (50, 60)}
    assert at[50] > 50 and at[60] < 2


def test_bold_is_told_as_numpy_says(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x = 500 + 4 * rng.standard_normal((200, 40)) * np.linspace(1, 3, 40)
    x += np.outer(np.arange(200), rng.uniform(-1, 1, 40))
    x[100] += 60  # a jump, and back
    x[:, 7] = 12.0
    line = told(subject(tmp_path, [resting(0, 200)], x), capsys)
    t = np.arange(200)
    ratio = []
    for column in x.T[np.arange(40) != 7]:
        rest = column - np.polyval(np.polyfit(t, column, 1), t)
        ratio.append(column.mean() / rest.std())
    assert f"tSNR {np.median(ratio):.0f}; 2.5% of vertices constant" in line
    assert "over 2 in 2 of 200" in line
    percent = x - x.mean(0)
    assert "tSNR unknown" in told(subject(tmp_path, [resting(0, 200)], percent), capsys)


def test_motion_is_that_of_the_confounds(tmp_path, capsys):
    """Of the volumes that were looked at; 5 came before their EEG."""
    moved = np.random.default_rng(0).uniform(0, 0.4, 165)
    moved[[3, 5, 20, 164]] = 0.9  # the first is of a volume that was dropped
    lines = ["framewise_displacement\tcsf", *(f"{x:.6f}\t1" for x in moved)]
    lines[1] = "n/a\t1"
    (tmp_path / "confounds.tsv").write_text("\n".join(lines))
    bold = 1000 + np.random.default_rng(0).standard_normal((160, 9))
    meta = {"taken_out": [{"confounds": str(tmp_path / "confounds.tsv")}], "first_volume": [5]}
    line = told(subject(tmp_path, [resting(0, 160)], bold, **meta), capsys)
    assert f"motion {moved[5:].mean():.2f} mm, over 0.5 in 3 of 160" in line
    (tmp_path / "confounds.tsv").unlink()
    line = told(subject(tmp_path, [resting(0, 160)], bold, **meta), capsys)
    assert " mm" not in line and "of the median" in line


@pytest.mark.parametrize("tr", [0.8, 2.0, 2.16])
def test_gradient_artefacts_are_noticed_and_nothing_else(tmp_path, capsys, tr):
    bold = 1000 + np.random.default_rng(0).standard_normal((150, 9))

    def noticed(values):
        line = told(subject(tmp_path, [values], bold, tr), capsys)
        return "gradient" in line and "eeg.npy" in line and "1/TR" in line

    values = resting(0, 120, tr)
    assert not noticed(values)
    assert not noticed(np.vstack([values, np.zeros(values.shape[1])]))  # a flat channel
    t = np.arange(values.shape[1]) / FS % tr
    bursts = np.random.default_rng(3).standard_normal(round(tr * FS) + 1)  # the same in each volume
    artefact = bursts[(t * FS).astype(int)]
    assert noticed(values + 200 * artefact)
    assert not noticed(values + 0.01 * artefact)


def test_short_runs_and_eeg_alone_are_not_looked_at(tmp_path, capsys):
    bold = np.zeros((110, 9))
    assert told(subject(tmp_path, [resting(0, 110)], bold), capsys) == ""
    long = np.zeros((160, 9))
    assert told(subject(tmp_path, [resting(0, 160)], long, eeg_alone=True), capsys) == ""


# ---- The command, the picture and the page ---------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look") / "subject"
    return data.synthetic(str(folder), **{**TINY, "frames": 300, "runs": 3, "fs": 100})


def test_check(prepared, monkeypatch, capsys):
    """--check looks at what is there, needs no other flag, and says where it drew."""
    command(monkeypatch, data, "--check", prepared, prepared)
    out = capsys.readouterr().out
    assert out.count("  test ") == out.count("run 1: tSNR") == 2
    assert -1 <= float(re.search(r"with BOLD (\S+) s later", out)[1]) <= 3
    pytest.importorskip("matplotlib")
    assert f"drawn: {prepared}/look.png" in out
    from matplotlib.image import imread

    picture = imread(f"{prepared}/look.png")
    assert picture.shape[:2] == (560, 880)


def test_without_torch_and_matplotlib(prepared):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None; import data; "
        "data.main(sys.argv[1:])"
    )
    argv = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(argv, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0 and "--check" in done.stdout, done.stderr


def test_flags_that_are_missing_without_check(monkeypatch, capsys):
    for flags in ([], ["--bold", "x.npy"], ["--bold", "x.npy", "--eeg", "y.npy"]):
        with pytest.raises(SystemExit):
            command(monkeypatch, data, *flags)
        assert "--eeg and --out" in capsys.readouterr().err


def test_how_regular_triggers_were():
    """The second comes 2 samples late, the fourth 1 early; the last is of no volume."""
    at = np.array([100, 302, 501, 700, 900, 1150])
    marks = [(sample / FS, sample / FS, "R128") for sample in at]
    recording = eeg.Recording("x.vhdr", None, [], [], FS, 2000, {}, marks)
    a = SimpleNamespace(trigger="R128", skip=0)
    np.testing.assert_allclose(eeg.volume_onsets(recording, a, 5, TR), at[:5])
    assert recording.jitter == pytest.approx(2 / FS)
    a = SimpleNamespace(trigger=None, start=None)
    recording = eeg.Recording("x.npy", None, [], [], FS, 2000, {}, [])
    eeg.volume_onsets(recording, a, 5, TR)
    assert recording.jitter is None


def test_the_page_shows_triggers_and_pictures(tmp_path):
    found = subject(tmp_path, [resting(0, 20), resting(1, 20)], np.zeros((40, 3)))
    found.meta |= {"names": ["rest <1>", "rest 2"], "jitter": [0.00125, None], "unusable": [25]}
    rows = re.findall("<tr>(.*?)</tr>", page.runs_table(found))
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows[1:]]
    assert cells == [
        ["rest &lt;1&gt;", "train", "20", "0", "1.250"],
        ["rest 2", "train", "20", "1", "none"],
    ]
    del found.meta["jitter"]  # as prepared before
    assert page.runs_table(found).count("<td>none</td>") == 2
    assert page.drawn("Before training", str(tmp_path / "look.png")) == ""
    (tmp_path / "look.png").write_bytes(b"\x89PNG")
    line = page.drawn("Before <training>", str(tmp_path / "look.png"))
    assert "<h2>Before &lt;training&gt;</h2>" in line and "base64,iVBORw==" in line


def test_maps_are_drawn_before_the_page_that_shows_them(tmp_path):
    pytest.importorskip("matplotlib")
    seen = []
    study = SimpleNamespace(subject=SimpleNamespace(space=None))
    outputs = Outputs(SimpleNamespace(plot=False, surfaces=None), study, SimpleNamespace(rows=[]))
    outputs.surfaces = SimpleNamespace(draw_median=lambda *given: seen.append("maps"))
    outputs.write_page = lambda *given: seen.append("page")
    outputs.write(str(tmp_path), {}, None, [], "direct")
    assert seen == ["maps", "page"]
