"""What does a file of continuous EEG hold, and at which of its samples does each volume begin?

.npy [channels, samples] needs nothing more; .vhdr .set .edf .bdf .fif are read by mne, which also
filters. A run is read in pieces; one that is filtered lies in a temporary file until the end.
"""

import collections
import re
import tempfile
from dataclasses import dataclass

import numpy as np

from tools import files
from tools.checks import blaming
from tools.errors import fail

# EDF has no types of channels, and other formats often call all of them EEG: names tell as well.
OTHER = "(?i)e[ckmo]g|resp|pleth|puls|spo2|gsr|eda|status|trig|stim|mark|photic|aux|acc|cwl|misc"
BREAK = "(?i).*boundary|new segment|bad_acq_skip"


@dataclass
class Recording:
    """Continuous EEG of one run, which is read in pieces."""

    path: str
    source: object  # source(picks, start, stop) -> [picks,stop-start]
    picks: list  # the source's EEG channels: names, or rows of an .npy
    names: list  # [C] of channels; None of .npy, which has no names
    fs: float  # Hz
    samples: int
    said: dict  # what is known of it, for subject.json
    events: list  # (start, stop, description), in seconds
    average: bool = False  # the reference is the mean of all channels
    weights: object = None  # [C,picks] where channels are interpolated
    jitter: object = None  # s by which triggers are off the TR, at most

    @property
    def breaks(self):
        """[(start, stop)] in samples, where nothing was recorded; start == stop is a cut."""
        found = [event[:2] for event in self.events if re.match(BREAK, event[2]) and event[1] > 0]
        return [(round(start * self.fs), round(stop * self.fs)) for start, stop in found]

    def read(self, start, stop):
        """EEG [C,stop-start]."""
        eeg = np.asarray(self.source(self.picks, start, stop), float)  # [picks,t]
        if self.weights is not None:
            eeg = self.weights @ eeg  # [C,t]
        return eeg - eeg.mean(0) if self.average else eeg


# ---- Opening ---------------------------------------------------------------------------


def need_mne(what):
    """The package mne, which few need."""
    try:
        import mne
    except ImportError as error:
        fail(f"{what} needs mne; pip install mne", error)
    mne.set_log_level("error")
    return mne


def open_eeg(path, a):
    """The Recording in a file. a: the flags fs, channels, notch, band, resample, reference."""
    found = open_npy(path, a) if path.endswith(".npy") else open_with_mne(path, a)
    if a.notch or a.band or a.resample:
        change(found, a)
    if a.reference:
        found.average = True
        found.said["reference"] = a.reference
    return found


def open_npy(path, a):
    C, samples = files.load_npy(path, 2).shape
    if (a.channels or 1) > C:
        fail(f"{path}: has {C} channels; expected {a.channels} (--channels) or more")

    def source(picks, start, stop):
        return files.load_npy(path, 2)[picks, start:stop]  # anew: pages read so far are let go

    picks = list(range(C))[: a.channels]
    return Recording(path, source, picks, None, a.fs or 1000, samples, {}, [])


def open_with_mne(path, a):
    mne = need_mne(path)
    try:
        raw = mne.io.read_raw(path)
    except Exception as error:  # mne raises many kinds
        fail(f"{path}: not readable by mne ({error}); expected continuous EEG", error)
    info = raw.info
    fs = info["sfreq"]
    if a.fs and abs(a.fs - fs) > 1e-3:
        fail(f"--fs {a.fs:g}: {path} says {fs:g} Hz; leave --fs out")

    kinds = dict(zip(raw.ch_names, raw.get_channel_types()))
    names = [name for name in kinds if kinds[name] == "eeg" and not re.search(OTHER, name)]
    others = ", ".join(name for name in kinds if name not in names)
    if not names:
        fail(f"{path}: none of its channels is EEG: {others}")
    if others:
        print(f"{path}: left out, as no EEG: {others}")

    places = {ch["ch_name"]: ch["loc"][:3].tolist() for ch in info["chs"]}  # m
    known = [name for name in names if 0 < np.linalg.norm(places[name]) < np.inf]
    said = {"channels": names, "positions": {name: places[name] for name in known}}
    for key, unknown in (("highpass", 0), ("lowpass", fs / 2)):
        if info[key] != unknown:
            said[key] = info[key]
    stims = [name for name in kinds if kinds[name] == "stim"]
    return Recording(path, raw.get_data, names, names, fs, raw.n_times, said, marks(raw, stims))


def marks(raw, stims):
    """Events (start, stop, description) of annotations and of trigger channels, in seconds."""
    import mne

    events = []
    for mark in raw.annotations:
        start = mark["onset"] - raw.first_time
        # A cut may have a duration, which is that of what was cut out.
        skipped = mark["description"].upper().startswith("BAD_ACQ_SKIP")
        events.append((start, start + skipped * mark["duration"], mark["description"]))
    if stims:
        for sample, _, code in mne.find_events(raw, stims, shortest_event=1):
            start = (sample - raw.first_samp) / raw.info["sfreq"]
            events.append((start, start, str(code)))
    return events


def change(found, a, block=100_000):
    """Filter and resample a Recording, in a mapped copy: 64 channels at 5 kHz fill memory."""
    mne = need_mne("--notch, --band or --resample")
    C = len(found.picks)
    with tempfile.TemporaryFile() as file:  # has no name: it is gone when the process ends
        copy = np.memmap(file, float, "w+", shape=(C, found.samples))
    for i in range(0, found.samples, block):
        copy[:, i : i + block] = found.read(i, min(i + block, found.samples))
    raw = mne.io.RawArray(copy, mne.create_info(found.names or C, found.fs, "eeg"))
    for start, stop in found.breaks:  # mne's filters do not reach over what is so called
        raw.annotations.append(start / found.fs, (stop - start) / found.fs, "BAD_ACQ_SKIP")
    with blaming(a, "notch", "band", "resample"):
        if a.notch:
            raw.notch_filter(np.arange(a.notch, found.fs / 2, a.notch))  # its multiples too
            found.said["notch"] = a.notch
        if a.band:
            raw.filter(*a.band)
            found.said["highpass"], found.said["lowpass"] = a.band
        if a.resample:
            # Padded by a whole second: by mne's own choice all would be up to half a sample late.
            raw.resample(a.resample, npad=round(found.fs))
    found.source = raw.get_data
    found.fs = raw.info["sfreq"]
    found.samples = raw.n_times


# ---- When volumes begin ----------------------------------------------------------------


def triggers(recording, name):
    """Samples of the events `name`, in order."""
    word = rf"(?<!\w){re.escape(name)}(?!\w)"  # R128 of Response/R128
    found = [start for start, _, what in recording.events if re.search(word, what)]
    if not found:
        counts = ", ".join(
            f"{count} {what}"
            for what, count in collections.Counter(
                event[2] for event in recording.events
            ).most_common(20)
        )
        fail(f"--trigger {name}: {recording.path} has none; it has {counts or 'no events'}")
    return np.unique(found) * recording.fs


def volume_onsets(recording, a, volumes, tr):
    """Samples [volumes] at which volumes begin: at their triggers, or from --start on by the TR."""
    path, fs = recording.path, recording.fs
    if a.trigger is None:
        if recording.breaks:
            fail(f"{path}: is cut, so that nobody knows when later volumes begin; give --trigger")
        return ((a.start or 0) + tr * np.arange(volumes)) * fs

    onsets = triggers(recording, a.trigger)[a.skip or 0 :]
    gaps = np.diff(onsets)
    each = round(tr * fs / np.median([*gaps[:volumes], tr * fs])) or 1  # a volume; or one a slice
    step = tr * fs / each  # samples
    counts = np.round(gaps / step)  # steps from each trigger to the next
    places = np.cumsum([0, *counts])  # [triggers], in steps
    needed = volumes * each

    # A hole of whole steps that gives the right count is a trigger that was not recorded. After
    # the last volume there may be anything.
    before = places[:-1] < needed - 1
    holes = (counts > 1) & before
    wrong = np.abs(gaps - counts * step) * before  # [triggers - 1] samples
    off = wrong > 2 * counts + 1e-3
    if holes.sum() > 1:
        off |= holes
    found = f"{path}: {len(onsets)} triggers {a.trigger} after the first {a.skip or 0}"
    if off.any():
        i = np.argmax(off)
        fail(
            f"{found}: number {i + 2}, at {onsets[i + 1] / fs:.3f} s, comes {gaps[i] / fs:.4f} s "
            f"after the one before; expected {step / fs:.4f} s, {each} in a volume of {tr:g} s "
            "(--skip N leaves out N triggers before the first volume)"
        )
    lacking = needed - 1 - places[-1]
    if lacking > 0 or (lacking < 0 and a.skip is None):
        fail(
            f"{found}; expected {needed}, {each} in each of {volumes} volumes. If there are some "
            "before the first volume of the BOLD file (dummy scans) or after its last (a scan "
            "broken off), give --skip N: how many come before, perhaps 0. If some are missing: is "
            "it the EEG of that scan?"
        )
    filled = counts[holes].sum() - holes.sum()
    print(
        f"{found}, {each} in each of {volumes} volumes: {filled:.0f} missing are put in, "
        f"{np.sum(places >= needed)} after the last volume are left out"
    )
    recording.jitter = wrong.max(initial=0) / fs
    return np.interp(np.arange(0, needed, each), places, onsets)


def check_continuous(recording, starts, W):
    """Which windows [start, start + W) hold a break, and are to be left out: bool [windows]."""
    starts = np.asarray(starts)
    broken = np.zeros(len(starts), bool)
    for start, stop in recording.breaks:
        broken |= (starts < stop) & (starts + W > start)
    return broken


# ---- Channels --------------------------------------------------------------------------


def channels_in_common(recordings, mode="error"):
    """Names of the channels that all recordings are read with from now on; None of .npy.

    mode, where some have not all: "error"; "intersect": those that all have; "interpolate".
    """
    names = list(dict.fromkeys(name for r in recordings for name in r.names or []))
    places = {name: x for r in recordings for name, x in r.said.get("positions", {}).items()}
    if not names:
        return None
    if mode == "intersect":
        left_out = [name for name in names if any(name not in r.names for r in recordings)]
        names = [name for name in names if name not in left_out]
        print(f"{len(names)} channels are in all runs; left out: {', '.join(left_out) or 'none'}")
    for r in recordings:
        have = r.names or []
        missing = [name for name in names if name not in have]
        listed = ", ".join(missing)
        if not names or (missing and mode == "error"):
            fail(
                f"{r.path}: has no channel {listed}, as others have; expected the same in all runs"
            )
        if missing:
            r.weights = interpolation(r.path, names, have, places)
            print(f"{r.path}: interpolated: {listed}")
        else:
            r.picks = names
        r.names = r.said["channels"] = names
        r.said["positions"] = {name: places[name] for name in names if name in places}
    return names


def interpolation(path, names, have, places):
    """[names,have] how each of `names` is made of those a run has, by mne's splines."""
    import mne

    same = [[float(name == other) for other in have] for name in names]
    raw = mne.io.RawArray(same, mne.create_info(names, 1, "eeg"))
    raw.info["bads"] = [name for name in names if name not in have]
    templates = mne.channels.get_builtin_montages()
    montage = next(name for name in templates if name.endswith("_1005"))  # by any version's name
    if set(names) <= set(places):
        montage = mne.channels.make_dig_montage(places, coord_frame="head")
    try:
        raw.set_montage(montage, match_case=False)
        raw.interpolate_bads()
    except Exception as error:  # mne raises many kinds
        fail(f"{path}: its missing channels cannot be interpolated ({error})", error)
    return raw.get_data()
