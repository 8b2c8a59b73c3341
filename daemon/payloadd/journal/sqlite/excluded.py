"""The ranges of jobs that pages leave out, in little memory: there may be millions."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from payloadd.journal.sqlite.job_rows import Range


class ExcludedRanges:
    """Ranges of ``seq``, joined where they touch or overlap."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._firsts = array("q")
        self._lasts = array("q")
        for first, last in sorted(ranges):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(self._lasts[-1], last)
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def after(self, seq: int) -> Iterator[Range]:
        """Yield the ranges that do not end before ``seq``, in order."""
        for index in range(bisect_left(self._lasts, seq), len(self._lasts)):
            yield self._firsts[index], self._lasts[index]

    def has(self, seq: int) -> bool:
        """Return whether a number is in one of the ranges."""
        index = bisect_left(self._lasts, seq)
        return index < len(self._lasts) and self._firsts[index] <= seq

    def outside(self, first: int, last: int) -> Iterator[Range]:
        """Yield the parts of a range that no other range has, in order."""
        for start, end in self.after(first):
            if start > last:
                break
            if first < start:
                yield first, start - 1
            first = end + 1
        if first <= last:
            yield first, last
