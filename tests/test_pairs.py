"""Which files belong together?"""

import types

import pytest

from recordings import pairs
from tools.errors import Problem


def flags(tmp_path, bold, eeg, **other):
    """data.py's flags, for files of these names, which are made."""
    for name in (*bold, *eeg):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    given = {"bold": [str(tmp_path / "**/*bold*")], "eeg": [str(tmp_path / "**/*eeg*")]}
    return types.SimpleNamespace(**given | {"by_order": False, "like": None, "out": "out"} | other)


def found(a):
    """[(run's name, BOLD files, EEG file)], without their folders."""

    def name(path):
        return path.replace("\\", "/").rsplit("/", 1)[-1]

    return [(p.name, [name(path) for path in p.bold], name(p.eeg)) for p in pairs.pairs(a)]


def test_by_every_entity_that_both_names_have(tmp_path):
    """Order would pair checker with inscapes, and rest with none."""
    bold = [f"sub-1_task-{task}_run-0{run}_bold.npy" for task, run in (("checker", 1), ("rest", 2))]
    bold.append("sub-1_task-rest_run-10_bold.npy")
    eeg = [f"sub-1/eeg/task-{t}_run-{r}_eeg.npy" for t, r in (("rest", 10), ("rest", 2))]
    eeg.append("sub-1/eeg/sub-1_task-checker_acq-x_eeg.vhdr")  # that task has but one run
    assert found(flags(tmp_path, bold, eeg)) == [
        ("sub-1_task-checker_run-1", [bold[0]], "sub-1_task-checker_acq-x_eeg.vhdr"),
        ("sub-1_task-rest_run-2", [bold[1]], "task-rest_run-2_eeg.npy"),
        ("sub-1_task-rest_run-10", [bold[2]], "task-rest_run-10_eeg.npy"),
    ]


def test_hemispheres_are_one_run(tmp_path):
    bold = [f"sub-1_run-{run}_hemi-{side}_bold.func.gii" for run in (1, 2) for side in "LR"]
    eeg = ["sub-1_run-1_eeg.npy", "sub-1_run-2_eeg.npy"]
    assert [run[1] for run in found(flags(tmp_path, bold, eeg))] == [bold[:2], bold[2:]]


@pytest.mark.parametrize(
    "bold, eeg, words",
    [
        # Tasks that only one of both has: by order they would go together.
        (["task-a_bold.npy", "task-b_bold.npy"], ["task-b_eeg.npy", "task-c_eeg.npy"], "task-a"),
        (["run-1_bold.npy"], ["run-1_eeg.npy", "run-2_eeg.npy"], "run-2_eeg.npy"),
        (["one_bold.npy", "two_bold.npy"], ["one_eeg.npy", "two_eeg.npy"], "--by-order"),
        (["run-1_bold.npy"], ["run-1_eeg.npy", "run-1_acq-x_eeg.npy"], "expected one partner"),
        (["run-1_bold.npy", "run-1_x_bold.npy"], ["run-1_eeg.npy"], "expected one partner"),
        (["sub-1_run-1_bold.npy"], ["sub-2_run-1_eeg.npy", "sub-1_run-1_eeg.npy"], "sub-2"),
    ],
)
def test_what_stays_alone_is_an_error(tmp_path, bold, eeg, words):
    with pytest.raises(Problem, match=words):
        found(flags(tmp_path, bold, eeg))


def test_by_order_only_if_asked(tmp_path, capsys):
    bold, eeg = ["b2_bold.npy", "b10_bold.npy"], ["x_eeg.npy", "y_eeg.npy"]
    a = flags(tmp_path, bold, eeg, by_order=True)
    assert found(a) == [("b2_bold", ["b2_bold.npy"], "x_eeg.npy"), ("b10_bold", [bold[1]], eeg[1])]
    assert "b10_bold.npy + " in capsys.readouterr().out
    with pytest.raises(Problem, match="2 runs of --bold, 3 of --eeg"):
        found(flags(tmp_path, bold, [*eeg, "z_eeg.npy"], by_order=True))


def test_several_people_get_a_folder_each(tmp_path):
    bold = [f"sub-{sub}/sub-{sub}_run-{run}_bold.npy" for sub in ("1", "2") for run in (1, 2)]
    eeg = [name.replace("bold", "eeg") for name in bold]
    with pytest.raises(Problem, match="sub-1, sub-2 are several people"):
        pairs.people(flags(tmp_path, bold, eeg))
    people = pairs.people(flags(tmp_path, bold, eeg, out="there/{sub}"))
    assert [(folder, len(own)) for folder, own in people] == [
        ("there/sub-1", 2),
        ("there/sub-2", 2),
    ]
    assert {pair.sub for pair in people[1][1]} == {"2"}


def test_a_pattern_that_finds_nothing_says_so(tmp_path):
    with pytest.raises(Problem, match="finds no file"):
        found(flags(tmp_path, [], ["run-1_eeg.npy"]))


def test_files_that_are_listed_keep_their_order(tmp_path):
    """With names that say nothing, the order is all there is."""
    bold, eeg = ["second_bold.npy", "first_bold.npy"], ["x2_eeg.npy", "x1_eeg.npy"]
    a = flags(tmp_path, bold, eeg, by_order=True)
    a.bold = [str(tmp_path / name) for name in bold]
    a.eeg = [str(tmp_path / name) for name in eeg]
    assert [run[1:] for run in found(a)] == [([bold[0]], eeg[0]), ([bold[1]], eeg[1])]
    # What is listed as a shell sorts is what it found.
    there = [str(tmp_path / f"run-{run}_bold.npy") for run in (10, 2)]
    assert pairs.natural(there[1]) < pairs.natural(there[0])
    for name in ("run-10_bold.npy", "run-2_bold.npy"):
        (tmp_path / name).touch()
    assert pairs.find("--bold", there) == there[::-1]
    assert pairs.find("--bold", [*there, there[0]]) == there[::-1]  # named twice


def test_the_left_hemisphere_goes_first(tmp_path):
    bold = [f"run-{run}_hemi-{side}_bold.func.gii" for run in (1, 2) for side in "RL"]
    eeg = ["run-1_eeg.npy", "run-2_eeg.npy"]
    a = flags(tmp_path, bold, eeg)
    a.bold = [str(tmp_path / name) for name in bold]
    assert [run[1] for run in found(a)] == [bold[1::-1], bold[:1:-1]]


def test_brackets_in_the_name_of_a_folder(tmp_path):
    (tmp_path / "study1").mkdir()
    (tmp_path / "study1/run-1_bold.npy").touch()  # what the pattern study[1] would find
    bold = [f"study[1]/run-{run}_bold.npy" for run in (1, 2, 10)]
    flags(tmp_path, bold, [])
    there = [str(tmp_path / name) for name in bold]
    assert pairs.find("--bold", [str(tmp_path / "study[1]/*bold.npy")]) == there
    assert pairs.find("--bold", [str(tmp_path / "study[[]1]/run-[12]_*")]) == there[:2]
    assert pairs.find("--bold", there[:1]) == there[:1]
