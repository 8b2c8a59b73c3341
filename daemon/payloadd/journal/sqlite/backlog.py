"""Reading of the backlog in order: sealed batches, and pages of all other jobs."""

from __future__ import annotations

import sqlite3
from heapq import merge
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import job_rows, segments
from payloadd.journal.sqlite.damage import corrupt
from payloadd.journal.sqlite.schema import ABOVE_ALL
from payloadd.model.formats import FORMATS
from payloadd.model.job import Batch
from payloadd.model.streams import first_seq, last_seq, stream_of
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.blocks import Blocks
    from payloadd.journal.sqlite.damage import DamagedRow
    from payloadd.journal.sqlite.excluded import ExcludedRanges
    from payloadd.journal.sqlite.job_rows import Range, Row
    from payloadd.journal.sqlite.read_errors import ReadErrors
    from payloadd.model.job import Job

log = get_logger(__name__)

BEYOND: Final = 2**62
"""A ``seq`` that no job reaches."""
_FIRST_SEALED: Final = f"SELECT min(first) FROM batches WHERE first > ? AND first < {ABOVE_ALL}"  # noqa: S608 - a number
_SEALED: Final = "SELECT first FROM batches WHERE first > ? AND first <= ? ORDER BY first LIMIT ?"
_MOST_SEALED: Final = 100


class Page:
    """Jobs that were read, and the damaged rows among them."""

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
        excluded: ExcludedRanges,
        read_errors: ReadErrors,
        blocks: Blocks,
    ) -> None:
        """Leave ``excluded`` out of pages: jobs that were sealed, dead or stored at the start."""
        self._connection = connection
        self._folder = state_dir
        self._excluded = excluded
        self._read_errors = read_errors
        self._blocks = blocks
        self._encoders: set[str | None] = set()
        """Former encoders of sealed batches that the log has named."""

    def page(
        self,
        after: int,
        most_jobs: int,
        most_bytes: int,
        end: int = BEYOND,
        hidden: Sequence[Range] = (),
    ) -> Page:
        """Return the next jobs after ``after`` and before ``end``; see ``Database.page``.

        Leaves out the ranges ``hidden``, too: their rows wait for deletion.
        """
        found: list[Row] = []
        size = 0
        for row in islice(self._waiting(after, end, hidden), most_jobs):
            size += job_rows.size(row)
            if found and size > most_bytes:
                break
            found.append(row)
        while True:
            try:
                jobs, damaged = job_rows.read_jobs(found, self._folder)
            except sqlite3.Error as error:
                if self._is_lasting(error):
                    jobs, damaged = job_rows.read_jobs(found, self._folder, tolerant=True)
                    return Page(jobs, damaged, found[-1][0])
                # Jobs in front of a place that cannot be read need not wait for it.
                if len(found) <= 1:
                    raise
                del found[len(found) // 2 :]
            else:
                return Page(jobs, damaged, found[-1][0] if found else after)

    def _waiting(self, after: int, end: int, hidden: Sequence[Range]) -> Iterator[Row]:
        """Yield the rows after ``after`` and before ``end`` that no left out range has."""
        left_out = self._excluded.after(after)
        if hidden:
            left_out = merge(left_out, sorted(hidden))
        for first, last in chain(left_out, [(BEYOND, BEYOND)]):
            if after < min(first, end) - 1:
                yield from self._rows(after + 1, min(first, end) - 1)
            if first >= end:
                return  # there may be millions of ranges in other streams
            after = max(after, last)

    def _rows(self, first: int, last: int) -> Iterator[Row]:
        """Yield the jobs of a range, whether they have rows or are in blocks, in order."""
        rows = in_order(self._connection, first, last)
        if not self._blocks.has_any(first, last):
            return rows
        return merge(rows, self._blocks.rows(self._connection, first, last), key=_seq)

    def _is_lasting(self, error: sqlite3.Error) -> bool:
        """Return whether the disk has failed for some seconds to read a part of a segment."""
        return segments.is_unreadable(error) and self._read_errors.note(str(error))

    def sealed_after(self, after: Mapping[int, int]) -> list[int]:
        """Return the first ``seq`` of the next sealed batch of each stream that has one.

        ``after``: by stream, the ``seq`` up to which batches are left out. Where only one stream
        has sealed batches, several of them are returned.
        """
        found: list[int] = []
        streams = self._streams_with_batches()
        most = 1 if len(streams) > 1 else _MOST_SEALED
        for stream in streams:
            bounds = (after.get(stream, first_seq(stream)), last_seq(stream), most)
            found += [first for (first,) in self._connection.execute(_SEALED, bounds)]
        return found

    def _streams_with_batches(self) -> list[int]:
        streams: list[int] = []
        after = 0
        while True:
            (first,) = self._connection.execute(_FIRST_SEALED, (after,)).fetchone()
            if first is None or first <= after:
                return streams
            streams.append(stream_of(first))
            after = last_seq(stream_of(first))

    def sealed(self, first: int) -> tuple[Batch | None, list[DamagedRow], int]:
        """Return the sealed batch of ``first`` with its sound members, the damaged ones, its end.

        The batch is None where no member is sound, or where there is no such batch any more. The
        end is the ``seq`` of the batch's last member, ``first - 1`` without a batch.
        """
        row = self._connection.execute(
            "SELECT last, key, compression, encoder FROM batches WHERE first = ?", (first,)
        ).fetchone()
        if row is None:
            return None, [], first - 1
        last, key, compression, encoder = row
        self._note_encoder(encoder, compression)
        members = list(self._rows(first, last))
        try:
            jobs, damaged = job_rows.read_jobs(members, self._folder)
        except sqlite3.Error as error:
            if not self._is_lasting(error):
                raise
            jobs, damaged = job_rows.read_jobs(members, self._folder, tolerant=True)
        if not jobs:
            return None, damaged, last
        return Batch(tuple(jobs), key, compression, sealed=True), damaged, last

    def _note_encoder(self, sealed: str | None, compression: str) -> None:
        """Log once that a batch was sealed by another encoder than the present one.

        Its object then has other bytes than the one that an earlier run may have uploaded under
        the same key. Both hold the same payloads, so either of them may be in the store.
        """
        present = FORMATS[compression].encoder
        # None: sealed by format version 3, or revived from a dead letter.
        if sealed not in {None, present, *self._encoders}:
            self._encoders.add(sealed)
            log.info("encoder_changed", sealed=sealed, present=present)


def _seq(row: Row) -> int:
    return row[0]


def in_order(connection: sqlite3.Connection, first: int, last: int) -> Iterator[Row]:
    """Yield the rows of a range in order of ``seq``.

    Raises the error of a damaged file where SQLite returns them in an impossible order.
    """
    before = first - 1
    for row in connection.execute(job_rows.IN_RANGE, (first, last)):
        if not before < row[0] <= last:
            raise corrupt(f"the rows of jobs are out of order after number {before}")
        before = row[0]
        yield row
