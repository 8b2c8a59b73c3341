"""What is in memory of blocks: their jobs by stream, and their ranges in the table ``stored``."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from payloadd.journal.sqlite.schema import ROW_BYTES

if TYPE_CHECKING:
    from payloadd.journal.sqlite.block_format import NewBlock


class LiveBlock:
    """A block that is in the table."""

    __slots__ = ("left", "noted", "number", "runs", "since", "size")

    def __init__(self, block: NewBlock, since: list[int], jobs: int) -> None:
        self.number = block.number
        self.runs = block.runs
        self.size = len(block.lines) + jobs * ROW_BYTES
        """Bytes of its jobs, as JOURNAL_MAX_BYTES counts them."""
        self.since = since
        """When the first job of each run was accepted, in Unix ms."""
        self.left = jobs
        """How many of its jobs are not settled."""
        self.noted: list[NotedRange] = []
        """The ranges in ``stored`` that have jobs of this block."""


class NotedRange:
    """A range in ``stored`` whose jobs are in blocks."""

    __slots__ = ("blocks", "first", "last", "left")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.left = 0
        """How many blocks have these jobs and are not deleted."""
        self.blocks: list[LiveBlock] = []
        """These blocks; empty after the commit."""


class StreamRuns:
    """The jobs of one stream that are in blocks and not settled, in order of ``seq``."""

    __slots__ = ("entries", "firsts")

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.entries: list[tuple[int, int, LiveBlock, int]] = []
        """First and last ``seq``, their block, and ``LiveBlock.since`` of the run."""

    def within(self, first: int, last: int) -> slice:
        """Return which entries have jobs of a range."""
        start = bisect_right(self.firsts, first)
        if start and self.entries[start - 1][1] >= first:
            start -= 1
        return slice(start, bisect_right(self.firsts, last))

    def cut(self, first: int, last: int) -> None:
        """Remove a range."""
        where = self.within(first, last)
        found = self.entries[where]
        left = []
        if found:
            low, _, block, since = found[0]
            if low < first:
                left.append((low, first - 1, block, since))
            _, high, block, since = found[-1]
            if high > last:
                left.append((last + 1, high, block, since))
        self.entries[where] = left
        self.firsts[where] = [one[0] for one in left]
