"""Reads what waits in the journal, in order: sealed batches, and pages of all other jobs."""

from __future__ import annotations

import sqlite3
from itertools import islice
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import row_reader, segment_files
from payloadd.journal.sqlite.damage import corrupt
from payloadd.journal.sqlite.job_rows import IN_RANGE
from payloadd.model.job import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import DamagedRow
    from payloadd.journal.sqlite.job_rows import Range, Row
    from payloadd.journal.sqlite.read_errors import Patience
    from payloadd.model.job import Job

BEYOND: Final = 2**62
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
        self,
        connection: sqlite3.Connection,
        state_dir: Path,
        apart: Sequence[Range],
        patience: Patience,
    ) -> None:
        """Leave the ranges ``apart`` out of all pages: sealed, dead, or stored at the start."""
        self._connection = connection
        self._folder = state_dir
        self._apart = apart
        self._patience = patience

    def page(self, after: int, most_jobs: int, most_bytes: int, end: int = BEYOND) -> Page:
        """Return the next jobs after ``after`` and before ``end``; see ``Database.page``."""
        found: list[Row] = []
        size = 0
        for row in islice(self._unsealed(after, end), most_jobs):
            size += row_reader.size(row)
            if found and size > most_bytes:
                break
            found.append(row)
        while True:
            try:
                jobs, damaged = row_reader.read(found, self._folder)
            except sqlite3.Error as error:
                if self._lasts(error):
                    jobs, damaged = row_reader.read(found, self._folder, tolerant=True)
                    return Page(jobs, damaged, found[-1][0])
                # What lies in front of a place that cannot be read need not wait for it.
                if len(found) <= 1:
                    raise
                del found[len(found) // 2 :]
            else:
                return Page(jobs, damaged, found[-1][0] if found else after)

    def _unsealed(self, after: int, end: int) -> Iterator[Row]:
        """Yield the rows before ``end`` that are between and behind the ranges that are apart."""
        for first, last in [*self._apart, (BEYOND, BEYOND)]:
            if after < min(first, end) - 1:
                yield from in_order(self._connection, after + 1, min(first, end) - 1)
            after = max(after, last)

    def _lasts(self, error: sqlite3.Error) -> bool:
        """Return whether the disk has not given a part of a segment back for some seconds."""
        return segment_files.is_unreadable(error) and self._patience.ran_out(str(error))

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
        try:
            jobs, damaged = row_reader.read(members, self._folder)
        except sqlite3.Error as error:
            if not self._lasts(error):
                raise
            jobs, damaged = row_reader.read(members, self._folder, tolerant=True)
        if not jobs:
            return None, damaged, last
        return Batch(tuple(jobs), key, compression, sealed=True), damaged, last


def in_order(connection: sqlite3.Connection, first: int, last: int) -> Iterator[Row]:
    """Yield the rows of a range; an order that cannot be is an error of the file."""
    before = first - 1
    for row in connection.execute(IN_RANGE, (first, last)):
        if not before < row[0] <= last:
            raise corrupt(f"the rows of jobs are out of order behind number {before}")
        before = row[0]
        yield row
