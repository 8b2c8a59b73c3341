"""Settled numbers: a low-water mark and the ranges above it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from payloadd.journal.postgres.settled import SettledNumbers

_RANGES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(0, 8)).map(lambda one: (one[0], one[0] + one[1])),
    max_size=30,
)


@given(_RANGES)
def test_they_are_the_numbers_of_all_ranges(ranges: list[tuple[int, int]]) -> None:
    """A job would be stored twice, or never."""
    settled = SettledNumbers()
    expected: set[int] = set()
    for first, last in ranges:
        settled.add(first, last)
        expected.update(range(first, last + 1))
        again = SettledNumbers(settled.low, settled.ranges())
        for one in (settled, again):
            found = set(range(1, one.low + 1))
            for begin, end in one.ranges():
                assert begin > one.low + 1
                found.update(range(begin, end + 1))
            assert found == expected
            assert one.ranges() == sorted(one.ranges())
            holes = {number for a, b in one.holes(70) for number in range(a, b + 1)}
            assert holes == set(range(1, 71)) - expected
