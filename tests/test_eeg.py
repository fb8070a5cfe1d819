"""Continuous EEG: what a file holds is read as it was written, and volumes begin at their triggers.

Files are written by pybv, edfio, scipy and mne, from numbers that the tests know."""

import collections
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from recordings import eeg
from tools.errors import Problem

FS = 250  # Hz
TR = 0.8  # s: 200 samples
NAMES = ["Fp1", "Fp2", "Cz", "ECG", "O1", "O2"]
FLAGS = ("fs", "channels", "band", "notch", "resample", "reference")
FLAGS += ("trigger", "start", "skip")


def given(**flags):
    return SimpleNamespace(**{**dict.fromkeys(FLAGS), **flags})


def noise(channels, samples, seed=0):
    """EEG in microvolts."""
    return 20 * np.random.default_rng(seed).standard_normal((channels, samples))


def brainvision(folder, values, at=(), names=NAMES, base="run-1", what=("Response", 128)):
    """A .vhdr of values [C,samples] in microvolts, with events at samples `at`."""
    pybv = pytest.importorskip("pybv")
    pytest.importorskip("mne")
    kind, code = what
    events = [dict(onset=int(i), type=kind, description=code, duration=1) for i in at]
    pybv.write_brainvision(
        data=values * 1e-6,
        sfreq=FS,
        ch_names=list(names),
        fname_base=base,
        folder_out=str(folder),
        events=events,
        resolution=0.01,
        overwrite=True,
    )
    return str(folder / f"{base}.vhdr")


def scanned(folder, at, volumes=20, **flags):
    """Onsets of volumes, in samples, in a recording with triggers R128 at samples `at`."""
    path = brainvision(folder, noise(6, 6000), at)
    flags = given(trigger="R128", **flags)
    return eeg.volume_onsets(eeg.open_eeg(path, flags), flags, volumes, TR)


# ---- What is read ----------------------------------------------------------------------


def test_values_and_names_are_those_written(tmp_path, capsys):
    values = noise(6, 3000)
    found = eeg.open_eeg(brainvision(tmp_path, values), given())
    kept = [0, 1, 2, 4, 5]  # without the ECG in the middle
    assert found.names == [NAMES[i] for i in kept] == found.said["channels"]
    assert "ECG" in capsys.readouterr().out
    assert (found.fs, found.samples, found.breaks) == (FS, 3000, [])
    np.testing.assert_allclose(found.read(40, 90) * 1e6, values[kept, 40:90], atol=0.006)
    assert found.said["positions"] == {} and "highpass" not in found.said


def test_npy_is_read_as_before_and_needs_no_mne(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mne", None)
    values = noise(6, 3000).astype(np.float32)
    np.save(tmp_path / "eeg.npy", values)
    path = str(tmp_path / "eeg.npy")
    found = eeg.open_eeg(path, given(channels=4))
    assert (found.names, found.fs, found.samples) == (None, 1000, 3000)
    np.testing.assert_array_equal(found.read(10, 20), values[:4, 10:20])
    average = eeg.open_eeg(path, given(fs=100, reference="average"))
    expected = values[:, 10:20] - values[:, 10:20].mean(0, dtype=np.float64)
    np.testing.assert_allclose(average.read(10, 20), expected, atol=1e-5)
    assert average.fs == 100 and average.said == {"reference": "average"}
    for flags in (dict(band=[1, 40]), dict(notch=50), dict(resample=100)):
        with pytest.raises(Problem, match="mne; pip install mne"):
            eeg.open_eeg(path, given(**flags))
    with pytest.raises(Problem, match="some.vhdr needs mne; pip install mne"):
        eeg.open_eeg("some.vhdr", given())


def test_a_rate_that_the_file_contradicts(tmp_path):
    path = brainvision(tmp_path, noise(6, 1000))
    assert eeg.open_eeg(path, given(fs=FS)).fs == FS
    with pytest.raises(Problem, match="--fs 500: .*says 250 Hz"):
        eeg.open_eeg(path, given(fs=500))


def test_files_that_are_none(tmp_path):
    pytest.importorskip("mne")
    (tmp_path / "run.vhdr").write_text("nothing")
    (tmp_path / "run.edf").write_bytes(b"0" * 300)
    for name in ("run.vhdr", "run.edf", "missing.set", "run.txt"):
        with pytest.raises(Problem, match="not readable by mne"):
            eeg.open_eeg(str(tmp_path / name), given())
    path = brainvision(tmp_path, noise(2, 1000), names=["ECG", "VEOG"])
    with pytest.raises(Problem, match="none of its channels is EEG: ECG, VEOG"):
        eeg.open_eeg(path, given())


def test_edf_with_annotations_and_a_trigger_channel(tmp_path, capsys):
    """Two ways to say when volumes begin give the same onsets."""
    edfio = pytest.importorskip("edfio")
    pytest.importorskip("mne")
    values = noise(4, 6000)
    at = 500 + 200 * np.arange(20)
    status = np.zeros(6000)
    for i in at:
        status[i : i + 3] = 128
    labels = ["Fp1", "EOG left", "Cz", "Resp"]
    limits = dict(sampling_frequency=FS, physical_range=(-200, 200))
    signals = [
        edfio.EdfSignal(x, label=label, physical_dimension="uV", **limits)
        for x, label in zip(values.clip(-200, 200), labels)
    ]
    whole = dict(physical_range=(-32768, 32767), digital_range=(-32768, 32767))
    signals.append(edfio.EdfSignal(status, FS, label="Status", **whole))
    notes = [edfio.EdfAnnotation(i / FS, None, "Scan Start") for i in at]
    path = str(tmp_path / "run.edf")
    edfio.Edf(signals, annotations=notes).write(path)

    found = eeg.open_eeg(path, given())
    assert found.names == ["Fp1", "Cz"]
    assert "EOG left, Resp, Status" in capsys.readouterr().out
    assert collections.Counter(event[2] for event in found.events) == {"Scan Start": 20, "128": 20}
    np.testing.assert_allclose(found.read(0, 6000) * 1e6, values[[0, 2]], atol=0.01)
    for name in ("128", "Scan Start", "Scan"):
        np.testing.assert_allclose(eeg.volume_onsets(found, given(trigger=name), 20, TR), at)


def test_bdf_with_its_status_channel(tmp_path, capsys):
    """24 bits, as BioSemi has them, with triggers in Status."""
    edfio = pytest.importorskip("edfio")
    pytest.importorskip("mne")
    if not hasattr(edfio, "Bdf"):
        pytest.skip("this edfio writes no BDF")
    values = noise(3, 6000)
    at = 500 + 200 * np.arange(20)
    status = np.zeros(6000)
    for i in at:
        status[i : i + 3] = 128
    limits = dict(physical_range=(-300, 300), physical_dimension="uV")
    signals = [
        edfio.BdfSignal(x.clip(-300, 300), FS, label=label, **limits)
        for x, label in zip(values, ["A1", "EXG ECG", "B32"])
    ]
    signals.append(edfio.BdfSignal(status, FS, label="Status", physical_range=(-8388608, 8388607)))
    path = str(tmp_path / "run.bdf")
    edfio.Bdf(signals).write(path)

    found = eeg.open_eeg(path, given())
    assert (found.names, found.fs, found.samples) == (["A1", "B32"], FS, 6000)
    assert "EXG ECG, Status" in capsys.readouterr().out
    np.testing.assert_allclose(found.read(100, 400) * 1e6, values[[0, 2], 100:400], atol=1e-4)
    np.testing.assert_allclose(eeg.volume_onsets(found, given(trigger="128"), 20, TR), at)


def test_fif_that_begins_late_and_skips(tmp_path):
    """Annotations count from when the amplifier was started, samples from the file's first."""
    mne = pytest.importorskip("mne")
    info = mne.create_info(["Cz", "Pz", "STI 014"], FS, ["eeg", "eeg", "stim"])
    values = np.vstack([1e-6 * noise(2, 3000), np.zeros(3000)])
    values[2, 1000:1005] = 7
    raw = mne.io.RawArray(values, info, first_samp=400, verbose="error")
    raw.set_meas_date(0)
    marks = mne.Annotations(
        [(400 + 500) / FS, (400 + 800) / FS], [60 / FS, 0], ["BAD_ACQ_SKIP", "V"]
    )
    marks = mne.Annotations(marks.onset, marks.duration, marks.description, raw.info["meas_date"])
    raw.set_annotations(marks)
    raw.set_montage("biosemi64", verbose="error")
    path = str(tmp_path / "run_eeg.fif")
    raw.save(path, fmt="double", verbose="error")
    found = eeg.open_eeg(path, given())
    assert found.breaks == [(500, 560)]
    np.testing.assert_allclose(eeg.triggers(found, "V"), [800])
    np.testing.assert_allclose(eeg.triggers(found, "7"), [1000])
    assert set(json.loads(json.dumps(found.said))["positions"]) == {"Cz", "Pz"}
    assert 0.05 < np.linalg.norm(found.said["positions"]["Cz"]) < 0.2  # metres
    np.testing.assert_allclose(found.read(30, 60), values[:2, 30:60], rtol=1e-6)


def eeglab(path, values, latencies, names):
    """A .set with boundary events at latencies, from 1, each of 300 samples that were cut out."""
    savemat = pytest.importorskip("scipy.io").savemat
    kinds = [("type", object), ("latency", float), ("duration", float)]
    events = np.array([("boundary", latency, 300.0) for latency in latencies], kinds)
    places = np.array([(name,) for name in names], [("labels", object)])
    C, samples = values.shape
    content = dict(data=values, srate=float(FS), nbchan=C, pnts=samples, trials=1)
    content |= dict(xmin=0.0, xmax=(samples - 1) / FS, event=events, chanlocs=places)
    content |= dict(setname="run", filename="run.set", epoch=[], icawinv=[], icaweights=[])
    savemat(path, {"EEG": content})


def test_what_is_cut_out_breaks_a_recording(tmp_path, capsys):
    pytest.importorskip("mne")
    values = noise(3, 3000)
    path = str(tmp_path / "run.set")
    eeglab(path, values, [0.5, 1000.5, 2000.5], ["Fz", "Cz", "Pz"])
    found = eeg.open_eeg(path, given())
    np.testing.assert_allclose(found.read(0, 3000) * 1e6, values, atol=1e-3)
    cuts = [start for start, _ in found.breaks]
    assert len(cuts) == 2 and all(start == stop for start, stop in found.breaks)
    np.testing.assert_allclose(cuts, [1000, 2000], atol=1)  # before the first there is nothing

    text = tmp_path / "run-1.vmrk"
    header = brainvision(tmp_path, noise(6, 3000))
    lines = (
        text.read_text(encoding="utf-8").rstrip("\n")
        + "\nMk1=New Segment,,1,1,0\nMk2=New Segment,,1501,1,0\n"
    )
    text.write_text(lines, encoding="utf-8")
    found = eeg.open_eeg(header, given())
    assert found.breaks == [(1500, 1500)]
    half = eeg.open_eeg(header, given(resample=125))
    assert half.breaks == [(750, 750)]
    capsys.readouterr()
    starts = [1400, 1401, 1450, 1499, 1500, 1600]
    broken = eeg.check_continuous(found, starts, 100)
    assert broken.tolist() == [False, True, True, True, False, False]


def test_windows_within_a_stretch_that_was_skipped(tmp_path):
    np.save(tmp_path / "eeg.npy", noise(2, 1000))
    found = eeg.open_eeg(str(tmp_path / "eeg.npy"), given(fs=100))
    found.events.append((3.0, 5.0, "BAD_ACQ_SKIP"))
    starts = [199, 200, 201, 350, 499, 500]
    broken = eeg.check_continuous(found, starts, 100)
    assert broken.tolist() == [False, False, True, True, True, False]


# ---- Filters ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npy", "vhdr"])
def test_band_notch_and_resample(tmp_path, kind):
    """Rhythms within the band stay as they are, others go; as scipy's filter has it."""
    signal = pytest.importorskip("scipy.signal")
    pytest.importorskip("mne")
    t = np.arange(20 * FS) / FS
    rhythms = {hz: np.sin(2 * np.pi * hz * t) for hz in (0.05, 10, 50, 95)}
    values = np.stack([50 * sum(rhythms.values()), 50 * rhythms[10]])
    if kind == "npy":
        path = str(tmp_path / "eeg.npy")
        np.save(path, values)
        unit = 1
    else:
        path = brainvision(tmp_path, values, names=["Cz", "Pz"])
        unit = 1e6
    flags = dict(fs=FS, band=[1, 70], notch=50)
    found = eeg.open_eeg(path, given(**flags))
    inner = slice(5 * FS, 15 * FS)
    mine = found.read(0, found.samples) * unit
    np.testing.assert_allclose(mine[:, inner], 50 * np.stack([rhythms[10]] * 2)[:, inner], atol=1)
    sos = signal.butter(4, [1, 35], "bandpass", fs=FS, output="sos")
    np.testing.assert_allclose(mine[0, inner], signal.sosfiltfilt(sos, values[0])[inner], atol=3)
    assert (found.said["highpass"], found.said["lowpass"], found.said["notch"]) == (1, 70, 50)

    with pytest.raises(Problem, match=r"--band \[1, 400\].*Nyquist"):
        eeg.open_eeg(path, given(fs=FS, band=[1, 400]))

    slow = eeg.open_eeg(path, given(**flags, resample=100))
    assert (slow.fs, slow.samples) == (100, 2000)
    expected = 50 * np.sin(2 * np.pi * 10 * np.arange(500, 1500) / 100)
    np.testing.assert_allclose(slow.read(500, 1500)[0] * unit, expected, atol=1)


def test_filters_do_not_reach_over_a_cut(tmp_path):
    """Where an amplifier was stopped its offset jumps, and a filter would ring there."""
    pytest.importorskip("mne")
    values = noise(2, 10 * FS)
    values[:, 5 * FS :] += 5000
    path = str(tmp_path / "run.set")
    around = slice(4 * FS, 6 * FS)
    largest = []
    for cuts in ([5 * FS + 0.5], []):
        eeglab(path, values, [0.5, *cuts], ["Fz", "Cz"])
        found = eeg.open_eeg(path, given(band=[1, 40]))
        largest.append(np.abs(found.read(0, found.samples)[:, around]).max() * 1e6)
    assert largest[0] < 100 < 1000 < largest[1]


def test_average_reference_is_that_of_mne(tmp_path):
    mne = pytest.importorskip("mne")
    path = brainvision(tmp_path, noise(6, 1000))
    found = eeg.open_eeg(path, given(reference="average"))
    raw = mne.io.read_raw(path, preload=True, verbose="error").drop_channels("ECG")
    raw.set_eeg_reference("average", verbose="error")
    np.testing.assert_allclose(found.read(0, 1000), raw.get_data(), atol=1e-12)


# ---- When volumes begin ----------------------------------------------------------------

EVEN = 700 + 200 * np.arange(20)


def test_each_volume_begins_at_its_own_trigger(tmp_path, capsys):
    at = EVEN + np.random.default_rng(1).integers(-1, 2, 20)  # jitter of a sample
    np.testing.assert_allclose(scanned(tmp_path, at), at)
    flags = given(trigger="R128", resample=125)
    half = eeg.open_eeg(str(tmp_path / "run-1.vhdr"), flags)
    np.testing.assert_allclose(eeg.volume_onsets(half, flags, 20, TR), at / 2)


def test_a_trigger_that_was_not_recorded(tmp_path, capsys):
    at = EVEN + np.random.default_rng(1).integers(-1, 2, 20)
    np.testing.assert_allclose(scanned(tmp_path, np.delete(at, 7)), at, atol=1.5)
    assert "1 missing" in capsys.readouterr().out
    np.testing.assert_allclose(scanned(tmp_path, np.delete(at, [7, 8])), at, atol=1.5)
    for lost in ([7, 12], [0], [19], [18, 19], [3, 19]):  # holes, and what nobody can know
        with pytest.raises(Problem):
            scanned(tmp_path, np.delete(at, lost))


def test_a_trigger_for_each_slice(tmp_path, capsys):
    at = 700 + 50 * np.arange(80)
    np.testing.assert_allclose(scanned(tmp_path, at), EVEN)
    assert "4 in each of 20 volumes" in capsys.readouterr().out
    np.testing.assert_allclose(scanned(tmp_path, np.delete(at, 4)), EVEN)
    with pytest.raises(Problem, match="79 triggers"):
        scanned(tmp_path, at[:-1])


def test_more_triggers_than_volumes(tmp_path, capsys):
    at = 100 + 200 * np.arange(25)
    with pytest.raises(Problem, match="25 triggers R128.*20 volumes.*--skip N"):
        scanned(tmp_path, at)
    np.testing.assert_allclose(scanned(tmp_path, at, skip=3), at[3:23])
    assert "2 after the last volume are left out" in capsys.readouterr().out
    np.testing.assert_allclose(scanned(tmp_path, at, skip=0), at[:20])
    np.testing.assert_allclose(scanned(tmp_path, at, skip=5), at[5:])
    with pytest.raises(Problem, match="19 triggers R128 after the first 6"):
        scanned(tmp_path, at, skip=6)
    another = np.r_[at[:21], at[20] + 333, at[20] + 340]  # what follows is of no scan
    np.testing.assert_allclose(scanned(tmp_path, another, skip=1), at[1:21])


def test_too_few_triggers_and_intervals_that_are_off(tmp_path):
    with pytest.raises(Problem, match="18 triggers R128.*20 volumes"):
        scanned(tmp_path, EVEN[:18])
    at = EVEN.copy()
    at[9:] += 3
    with pytest.raises(Problem, match=r"number 10, at 10\.012 s, comes 0\.8120 s .*0\.8000 s"):
        scanned(tmp_path, at)
    with pytest.raises(Problem, match="number 2, .* comes 1.6000 s"):
        scanned(tmp_path, 100 + 400 * np.arange(10), volumes=10)
    with pytest.raises(Problem, match="1 triggers"):
        scanned(tmp_path, [500])
    assert scanned(tmp_path, [500], volumes=1) == [500]


def test_a_trigger_of_another_name_lists_those_there_are(tmp_path):
    path = brainvision(tmp_path, noise(6, 6000), EVEN, what=("Stimulus", 1))
    found = eeg.open_eeg(path, given())
    assert collections.Counter(event[2] for event in found.events) == {"Stimulus/S  1": 20}
    with pytest.raises(Problem, match="--trigger R128: .*20 Stimulus/S  1"):
        eeg.triggers(found, "R128")
    for name in ("S  1", "Stimulus/S  1", "1"):
        np.testing.assert_allclose(eeg.triggers(found, name), EVEN)
    with pytest.raises(Problem):
        eeg.triggers(found, "S  12"[:3])  # 'S  ' is no whole word of it


def test_without_triggers_volumes_follow_the_start(tmp_path):
    np.save(tmp_path / "eeg.npy", noise(2, 6000))
    found = eeg.open_eeg(str(tmp_path / "eeg.npy"), given(fs=FS))
    np.testing.assert_allclose(eeg.volume_onsets(found, given(), 20, TR), 200 * np.arange(20))
    late = given(start=-TR)  # the EEG starts one TR after the first volume
    np.testing.assert_allclose(eeg.volume_onsets(found, late, 20, TR), 200 * np.arange(20) - 200)


# ---- Channels --------------------------------------------------------------------------


def heads(folder, names, values, base):
    path = brainvision(folder, values, names=names, base=base)
    return eeg.open_eeg(path, given())


def standard(count):
    """Names of the 10-05 system and smooth EEG [count,500] on them."""
    mne = pytest.importorskip("mne")
    places = mne.channels.make_standard_montage("biosemi64").get_positions()["ch_pos"]
    names = list(places)[:count]
    xyz = np.array([places[name] for name in names])
    sources = noise(3, 500)
    return names, (xyz / np.linalg.norm(xyz, axis=1)[:, None]) @ sources


def test_channels_are_put_together_by_name(tmp_path):
    names, values = standard(8)
    order = np.random.default_rng(2).permutation(8)
    first = heads(tmp_path, names, values, "run-1")
    second = heads(tmp_path, [names[i] for i in order], values[order], "run-2")
    assert eeg.channels_in_common([first, second]) == names == second.names
    np.testing.assert_array_equal(first.read(5, 50), second.read(5, 50))
    np.testing.assert_allclose(second.read(5, 50) * 1e6, values[:, 5:50], atol=0.006)
    assert second.said["channels"] == names


def test_runs_that_lack_channels(tmp_path, capsys):
    """61 channels against 58: an error, those of both, or made from their neighbours."""
    mne = pytest.importorskip("mne")
    names, values = standard(61)
    lost = ["Cz", "FC3", "P2"]
    kept = [i for i, name in enumerate(names) if name not in lost]

    def pair():
        first = heads(tmp_path, names, values, "run-1")
        return first, heads(tmp_path, [names[i] for i in kept], values[kept], "run-2")

    listed = ", ".join(name for name in names if name in lost)
    with pytest.raises(Problem, match=f"run-2.vhdr: has no channel {listed}"):
        eeg.channels_in_common(pair())

    both = pair()
    assert eeg.channels_in_common(both, "intersect") == [names[i] for i in kept]
    assert f"58 channels are in all runs; left out: {listed}" in capsys.readouterr().out
    np.testing.assert_array_equal(both[0].read(0, 99), both[1].read(0, 99))

    first, second = pair()
    assert eeg.channels_in_common([second, first], "interpolate") == second.names == first.names
    assert set(second.names) == set(names) and f"interpolated: {listed}" in capsys.readouterr().out
    made = second.read(0, 500)
    truth = first.read(0, 500)
    places = [second.names.index(name) for name in lost]
    for i in range(61):
        r = np.corrcoef(made[i], truth[i])[0, 1]
        assert r > (0.95 if i in places else 0.999999)

    raw = mne.io.RawArray(truth, mne.create_info(first.names, FS, "eeg"), verbose="error")
    templates = mne.channels.get_builtin_montages()  # its names change with mne's versions
    raw.set_montage(next(name for name in templates if name.endswith("_1005")), match_case=False)
    raw.info["bads"] = lost
    raw.interpolate_bads(verbose="error")
    np.testing.assert_allclose(made, raw.get_data(), atol=1e-12)


def test_channels_that_no_one_knows_the_place_of(tmp_path):
    first = heads(tmp_path, ["E1", "E2", "E3"], noise(3, 500), "run-1")
    second = heads(tmp_path, ["E1", "E2"], noise(2, 500), "run-2")
    with pytest.raises(Problem, match="run-2.vhdr: .*cannot be interpolated"):
        eeg.channels_in_common([first, second], "interpolate")
    third = heads(tmp_path, ["X1"], noise(1, 500), "run-3")
    with pytest.raises(Problem, match="run-1.vhdr"):
        eeg.channels_in_common([first, third], "intersect")


def test_npy_has_no_names_to_go_by(tmp_path):
    np.save(tmp_path / "eeg.npy", noise(3, 500))
    found = eeg.open_eeg(str(tmp_path / "eeg.npy"), given())
    assert eeg.channels_in_common([found, found]) is None
    named = heads(tmp_path, ["Cz", "Pz", "Fz"], noise(3, 500), "run-1")
    with pytest.raises(Problem, match="eeg.npy: has no channel Cz, Pz, Fz"):
        eeg.channels_in_common([named, found])
