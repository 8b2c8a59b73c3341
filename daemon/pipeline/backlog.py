"""Reads what waits in the journal, in order: sealed batches, and pages of all other jobs."""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import TYPE_CHECKING, Final

from daemon.pipeline import reading, rows
from daemon.pipeline.damage import corrupt
from daemon.pipeline.job import Batch
from daemon.pipeline.rows import IN_RANGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from daemon.pipeline.damage import DamagedRow
    from daemon.pipeline.job import Job
    from daemon.pipeline.rows import Range, Row
    from daemon.pipeline.totals import Totals

_MERGED_BEYOND: Final = 1000
_BEYOND: Final = 2**62
"""A ``seq`` that no job reaches."""


class Page:
    """Jobs that were read, and the rows among them that are damaged."""

    __slots__ = ("damaged", "jobs", "last")

    def __init__(self, jobs: list[Job], damaged: list[DamagedRow], last: int) -> None:
        self.jobs = jobs
        self.damaged = damaged
        self.last = last
        """The ``seq`` of the last row that was read."""


class Backlog:
    """Reads the rows of one connection. Methods raise sqlite3.Error."""

    def __init__(
        self, connection: sqlite3.Connection, state_dir: Path, apart: Sequence[Range]
    ) -> None:
        """Leave the ranges ``apart`` out of all pages: sealed, dead, or stored at the start."""
        self._connection = connection
        self._folder = state_dir
        self._apart = apart

    def page(self, after: int, most_jobs: int, most_bytes: int) -> Page:
        """Return the next jobs after ``seq``; see ``Database.page``."""
        found: list[Row] = []
        size = 0
        for row in islice(self._unsealed(after), most_jobs):
            size += reading.size(row)
            if found and size > most_bytes:
                break
            found.append(row)
        while True:
            try:
                jobs, damaged = reading.read(found, self._folder)
            except sqlite3.Error:
                # What lies in front of a place that cannot be read need not wait for it.
                if len(found) <= 1:
                    raise
                del found[len(found) // 2 :]
            else:
                return Page(jobs, damaged, found[-1][0] if found else after)

    def _unsealed(self, after: int) -> Iterator[Row]:
        """Yield the rows between and behind the ranges that are apart."""
        for first, last in [*self._apart, (_BEYOND, _BEYOND)]:
            if after < first - 1:
                yield from in_order(self._connection, after + 1, first - 1)
            after = max(after, last)

    def sealed(self, first: int) -> tuple[Batch | None, list[DamagedRow], int]:
        """Return a sealed batch with those members that are sound, the others, and its last seq.

        None if there is none any more.
        """
        row = self._connection.execute(
            "SELECT last, key, compression FROM batches WHERE first = ?", (first,)
        ).fetchone()
        if row is None:
            return None, [], first - 1
        last, key, compression = row
        members = list(in_order(self._connection, first, last))
        jobs, damaged = reading.read(members, self._folder)
        if not jobs:
            return None, damaged, last
        return Batch(tuple(jobs), key, compression, sealed=True), damaged, last


class Unread:
    """Counts down the jobs that were there at the start, as they are read."""

    def __init__(self, totals: Totals, sealed: Sequence[Range]) -> None:
        self.jobs = totals.jobs
        """Jobs that were not read so far."""
        self._following = totals.next
        # Those that wait as batches are read as batches, and all of them.
        self.jobs -= sum(last - first + 1 for first, last in sealed)

    def page(self, page: Page) -> None:
        """Count the rows of a page."""
        if self.jobs > 0:
            read = (*page.jobs, *page.damaged)
            self.jobs -= sum(row.seq < self._following for row in read)


class Gone:
    """The ranges of ``seq`` that were stored in this run.

    A damaged file may have copies of their rows, which appear when it is made sound.
    """

    def __init__(self) -> None:
        self._ranges: list[Range] = []
        self._most = _MERGED_BEYOND

    def add(self, ranges: Sequence[Range]) -> None:
        """Note stored jobs."""
        self._ranges += ranges
        if len(self._ranges) > self._most:
            # Seldom: what is stored about in order becomes a few ranges.
            self._most = 2 * len(self.take()) + _MERGED_BEYOND

    def take(self) -> list[Range]:
        """Return the ranges, neighbours as one."""
        self._ranges = rows.merge(self._ranges)
        return self._ranges


def in_order(connection: sqlite3.Connection, first: int, last: int) -> Iterator[Row]:
    """Yield the rows of a range; an order that cannot be is an error of the file."""
    before = first - 1
    for row in connection.execute(IN_RANGE, (first, last)):
        if not before < row[0] <= last:
            raise corrupt(f"the rows of jobs are out of order behind number {before}")
        before = row[0]
        yield row
