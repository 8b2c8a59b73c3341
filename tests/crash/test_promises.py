"""The checks of the torture find broken promises."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.crash.promises import Promises
from tests.crash.torture import read_bucket

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        pytest.param([b"1", b"2", b"3"], [], id="kept"),
        pytest.param([b"1", b"2"], [], id="uncertain-and-not-there"),
        pytest.param([b"1", b"3"], ["lost: 2"], id="lost"),
        pytest.param([b"1", b"2", b"2"], ["doubled: 2"], id="doubled"),
        pytest.param([b"1", b"2", b"3", b"3"], ["doubled: 3"], id="uncertain-and-doubled"),
        pytest.param([b"1", b"2", b"4"], ["stored, but refused: 4"], id="refused"),
        pytest.param([b"1", b"2", b"5"], ["stored, but never posted: 5"], id="never-posted"),
        pytest.param([], ["lost: 1", "lost: 2"], id="empty"),
    ],
)
def test_broken_promises_are_listed(stored: list[bytes], found: list[str]) -> None:
    """The torture would pass with any daemon."""
    promises = Promises()
    promises.acknowledge([b"1"])
    promises.leave_uncertain([b"2"])
    promises.acknowledge([b"2"])
    promises.leave_uncertain([b"3", b"2"])
    promises.refuse([b"4"])
    assert promises.violations(Counter(stored)) == found


def test_a_second_id_for_one_key_is_a_contradiction() -> None:
    """A client that repeats a request would get two ids for it."""
    promises = Promises()
    promises.keep_receipt("key", "first")
    promises.keep_receipt("key", "first")
    assert promises.violations(Counter()) == []
    promises.keep_receipt("key", "second")
    assert promises.violations(Counter()) == ["key key was answered with first and with second"]


def test_each_line_of_an_object_is_a_payload() -> None:
    """A payload that is twice in an object, or cut off, would not be found."""
    assert read_bucket({"a": b"1\n2\n", "b": b"2\n"}) == {b"1": 1, b"2": 2}
    with pytest.raises(AssertionError, match="cut off"):
        read_bucket({"a": b"1\n2"})
