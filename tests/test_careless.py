"""The careless changes of careless.py can still be made: each stands once in its file."""

import careless
import house
import pytest


@pytest.mark.parametrize("change", careless.CHANGES, ids=lambda change: change[0])
def test_a_change_applies(change):
    _, path, old, new = change
    assert house.read(path).count(old) == 1 and old != new


def test_there_are_forty_six():
    assert len(careless.CHANGES) == len({change[0] for change in careless.CHANGES}) == 46
