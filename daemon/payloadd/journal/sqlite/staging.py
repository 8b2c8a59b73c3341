"""Requests with too many parts for one commit, written in several.

All clients wait for a commit that is under way, and 10,000 rows or 16 MiB take 0.1 to 0.3 s. So a
large request is written in steps of some milliseconds, and commits of small requests come between
them.

* The first step takes the numbers of all parts and hides their range: it is noted in the table
  ``stored``, whose rows are not part of the journal. The commit that accepts the request removes
  that note. So a request is accepted whole or not at all; what a crash leaves of it is deleted, as
  the rows of stored batches are.
* One request is staged at a time. Jobs that are committed meanwhile have higher numbers than the
  request, and go to the workers behind it: ``page`` reads no further than to its first number.
* Until the request is accepted only its own jobs are written into segments: segments are in the
  order of their jobs' numbers.
* After an error the request is refused, and its rows are given up.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from payloadd.journal.sqlite import idempotency, segments
from payloadd.journal.sqlite.backlog import BEYOND

if TYPE_CHECKING:
    from payloadd.journal.operations import Append, Stage
    from payloadd.journal.sqlite.deletion import RowDeletion
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.segments import Segments
    from payloadd.journal.sqlite.transaction import CommitChanges


class Staging:
    """The request that is being staged, if there is one."""

    def __init__(self, connection: sqlite3.Connection, deletion: RowDeletion) -> None:
        self._connection = connection
        self._clearance = deletion
        self.range: Range | None = None
        """The numbers of its parts. A value, so that a commit that fails can have the old one."""

    def take_in(self, append: Append, changes: CommitChanges) -> None:
        """Accept a request, and write those of its parts that were not staged."""
        if append.staged:
            self._finish(append, changes)
            return
        append.jobs = []
        append.earlier = None
        if append.key is not None:
            append.earlier = idempotency.answer(
                self._connection, append.key, append.receipt, changes
            )
        if append.earlier is None:
            append.jobs = changes.take_in(append.parts)

    def stage(self, stage: Stage, changes: CommitChanges) -> None:
        """Write some parts of a request; none if its Idempotency-Key has been answered before."""
        append = stage.append
        if stage.start == 0:
            append.jobs = []
            append.earlier = None
            if append.key is not None:
                append.earlier = idempotency.find(self._connection, append.key, append.receipt)
            if append.earlier is not None:
                return
            self._begin(append, changes)
        self._check(append)
        self._add(append, stage.start, stage.end, changes)

    def _finish(self, append: Append, changes: CommitChanges) -> None:
        first, last = self._check(append)
        append.earlier = None
        if append.key is not None:
            append.earlier = idempotency.answer(
                self._connection, append.key, append.receipt, changes
            )
        if append.earlier is not None:
            append.jobs = []
            self.abandon()
            return
        self._add(append, append.staged, len(append.parts), changes)
        changes.take_in_staged(append.jobs)
        self._clearance.show((first, last))
        self.range = None

    def abandon(self) -> None:
        """Have the staged rows deleted."""
        if self.range is not None:
            self._clearance.discard(self.range)
            self.range = None

    def _begin(self, append: Append, changes: CommitChanges) -> None:
        self.abandon()
        append.first = changes.next
        changes.next += len(append.parts)
        self.range = (append.first, changes.next - 1)
        self._clearance.hide(self.range)

    def _add(self, append: Append, start: int, end: int, changes: CommitChanges) -> None:
        # A commit may be tried a second time.
        del append.jobs[start:]
        append.jobs += changes.stage(append.parts[start:end], append.first + start)

    def _check(self, append: Append) -> Range:
        """Return the numbers of the request's parts; an error if its rows were given up."""
        if self.range is None or self.range[0] != append.first:
            raise sqlite3.OperationalError("the first rows of a large request are gone")
        return self.range

    @property
    def first(self) -> int:
        """The number before which all jobs are part of the journal."""
        return BEYOND if self.range is None else self.range[0]

    def place(self, changes: CommitChanges, files: Segments, following: int) -> None:
        """Make rows of large and of staged jobs; lines go into a segment where that is cheaper.

        ``following`` is the next ``seq`` before the changes.
        """
        jobs, size = changes.large, changes.large_bytes
        if changes.staged or self.range is not None:
            changes.place_in_rows(jobs)
            jobs = changes.staged
            size = sum([len(job.lines) for job in jobs])
        if size < segments.WORTH_A_SYNC:
            changes.place_in_rows(jobs)
        else:
            name = min(following, jobs[0].seq)
            changes.place(jobs, *files.write([job.lines for job in jobs], name))
