"""Which numbers of a stream are settled: all up to a low-water mark, and ranges above it.

Batches are stored in nearly the order of their jobs, so there are few ranges, and they close
towards the mark. No row is deleted for a settled batch.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Range = tuple[int, int]
"""The first and the last number of neighbours."""


class SettledNumbers:
    """The settled numbers of one stream."""

    __slots__ = ("_firsts", "_lasts", "low")

    def __init__(self, low: int = 0, ranges: Iterable[Sequence[int]] = ()) -> None:
        self.low = low
        """Every number up to this one is settled; the next one is not."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self._firsts.append(first)
            self._lasts.append(last)

    def __len__(self) -> int:
        """Return the number of ranges above the low-water mark."""
        return len(self._firsts)

    def ranges(self) -> list[Range]:
        """Return the settled ranges above the low-water mark, in order."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def add(self, first: int, last: int) -> None:
        """Settle the numbers ``first`` to ``last``; some of them may be settled already."""
        firsts, lasts = self._firsts, self._lasts
        if first <= self.low + 1:
            self.low = max(self.low, last)
            gone = 0
            while gone < len(firsts) and firsts[gone] <= self.low + 1:
                self.low = max(self.low, lasts[gone])
                gone += 1
            if gone:
                del firsts[:gone], lasts[:gone]
            return
        # The ranges that touch the new one become one with it.
        start = bisect_left(lasts, first - 1)
        end = bisect_right(firsts, last + 1)
        if start < end:
            first, last = min(first, firsts[start]), max(last, lasts[end - 1])
        firsts[start:end] = [first]
        lasts[start:end] = [last]

    def holes(self, until: int) -> list[Range]:
        """Return the ranges above the low-water mark, up to ``until``, that are not settled."""
        found: list[Range] = []
        following = self.low + 1
        for first, last in zip(self._firsts, self._lasts, strict=True):
            if first > until:
                break
            found.append((following, first - 1))
            following = last + 1
        if following <= until:
            found.append((following, until))
        return found
