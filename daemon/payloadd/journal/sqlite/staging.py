"""Write a request with too many parts for one commit in several commits.

All clients wait for a commit that is under way, so a commit must not write thousands of rows or
many MiB. A large request is written in steps of a few milliseconds, and small requests are
committed between them.

* The first step reserves the numbers of all parts and hides their range: it adds the range to the
  table ``stored``, whose rows are not part of the journal. The commit that accepts the request
  removes the range from the table. So a request is accepted whole or not at all. The rows that a
  crash leaves are deleted like the rows of stored batches.
* One request is staged at a time. Jobs that are committed meanwhile have higher numbers than the
  request and reach the workers after it: ``page`` reads up to the first number of the request only.
* Until the request is accepted, segments contain no new jobs but its own, because segments are in
  the order of the numbers of their jobs.
* After an error the request is refused, and its rows are deleted.

Methods raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from payloadd.journal.sqlite import idempotency, segments
from payloadd.model.streams import last_seq, stream_of

if TYPE_CHECKING:
    from payloadd.journal.key_clock import KeyClock
    from payloadd.journal.sqlite.deletion import RowDeletion
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.operations import Append, Stage
    from payloadd.journal.sqlite.segments import Segments
    from payloadd.journal.sqlite.transaction import CommitChanges


class Staging:
    """Accept requests, and write the parts of the request that is being staged."""

    def __init__(
        self, connection: sqlite3.Connection, deletion: RowDeletion, key_clock: KeyClock
    ) -> None:
        self._connection = connection
        self._deletion = deletion
        self.key_clock = key_clock
        self.range: Range | None = None
        """The first and last number of the staged request; None without one.

        An immutable value, so that a failed commit can restore the old one.
        """
        self._counts_ahead = 0
        """How far ``Totals.next`` was ahead of the first number of the staged request."""

    def accept(self, append: Append, changes: CommitChanges) -> None:
        """Accept a request, and write the parts that were not staged."""
        if append.staged:
            self._finish(append, changes)
            return
        append.jobs = []
        append.earlier = None
        if append.key is not None:
            append.earlier = idempotency.answer(
                self._connection, append, changes, self.key_clock.now()
            )
        if append.earlier is None:
            append.jobs = changes.accept(append.parts, append.stream)

    def stage(self, stage: Stage, changes: CommitChanges) -> None:
        """Write some parts of a request, or none if its Idempotency-Key is known."""
        append = stage.append
        if stage.start == 0:
            append.jobs = []
            append.earlier = None
            if append.key is not None:
                append.earlier = idempotency.find(self._connection, append, self.key_clock.now())
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
                self._connection, append, changes, self.key_clock.now()
            )
        if append.earlier is not None:
            append.jobs = []
            self.abandon()
            return
        self._add(append, append.staged, len(append.parts), changes)
        changes.accept_staged(append.jobs)
        self._deletion.show((first, last))
        self.range = None

    def abandon(self) -> None:
        """Let the staged rows be deleted with the next commits."""
        if self.range is not None:
            self._deletion.discard(self.range)
            self.range = None

    def _begin(self, append: Append, changes: CommitChanges) -> None:
        self.abandon()
        count = len(append.parts)
        self._counts_ahead = changes.next - changes.following[append.stream]
        append.first = changes.reserve(count, append.stream)
        self.range = (append.first, append.first + count - 1)
        self._deletion.hide(self.range)

    def _add(self, append: Append, start: int, end: int, changes: CommitChanges) -> None:
        # The commit may be a repetition: after a repair it is tried again.
        del append.jobs[start:]
        append.jobs += changes.stage(append.parts[start:end], append.first + start)

    def _check(self, append: Append) -> Range:
        """Return the numbers of the request's parts; raise an error if its rows were deleted."""
        if self.range is None or self.range[0] != append.first:
            raise sqlite3.OperationalError("the first rows of a large request are gone")
        return self.range

    def end_of_page(self, after: int) -> int:
        """Return the number below which all jobs of the stream of ``after`` may be read."""
        stream = stream_of(after)
        if self.range is not None and stream_of(self.range[0]) == stream:
            return self.range[0]
        return last_seq(stream) + 1

    def place(self, changes: CommitChanges, files: Segments, following: int) -> None:
        """Make rows of staged jobs, and put large ones into a segment where that is cheaper.

        ``following`` is ``Totals.next`` before the changes.
        """
        jobs, size = changes.large, changes.large_bytes
        if changes.staged or self.range is not None:
            changes.place_in_file(jobs)
            jobs = changes.staged
            size = sum([len(job.lines) for job in jobs])
        if size >= segments.WORTH_A_SYNC:
            name = following if jobs is changes.large else jobs[0].seq + self._counts_ahead
            changes.place(jobs, *files.write([job.lines for job in jobs], name))
        elif jobs is changes.large:
            changes.place_in_file(jobs)
        else:
            changes.place_in_rows(jobs)
