"""Deletion of the rows of stored batches, some with each commit, and of the file's free pages.

Every request of a commit waits for all that is in that commit. To delete all rows of a large batch
in one commit was measurable in the slowest answers. So the range of a large batch is noted in the
table ``stored``: from that commit on its jobs are no part of the journal. Its rows are deleted with
this commit and the next ones, a few at a time.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import job_rows
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.schema import STORED_RANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence

    from payloadd.journal.sqlite.job_rows import Range

_SHARE: Final = 16
"""Each commit deletes at least one in so many of the waiting rows: with a fixed number they would
pile up where batches are stored faster than their rows are deleted."""

_FIRST_LEFT: Final = "SELECT min(seq) FROM jobs WHERE seq BETWEEN ? AND ?"
_LAST_LEFT: Final = "SELECT max(seq) FROM jobs WHERE seq BETWEEN ? AND ?"
_INSERT: Final = "INSERT INTO stored (first, last, crc) VALUES (?, ?, ?)"
_DELETE: Final = "DELETE FROM stored WHERE last = ?"


class RowDeletion:
    """The ranges of jobs that are stored and still have rows. Methods raise sqlite3.Error."""

    rows_per_commit = 64
    """Rows that a commit deletes at least, if so many wait."""
    small_range = 64
    """Rows up to which a range is deleted by the commit that settles it."""

    def __init__(
        self, connection: sqlite3.Connection, in_blocks: Container[Range], *, checked: bool
    ) -> None:
        """Read the ranges from the table ``stored``.

        ``in_blocks``: those whose jobs are in blocks, which have no rows. ``checked``: whether all
        pages of the file were checked. If they were not, a misplaced page may hide rows, which a
        repair brings back. So a range without a row at one of its ends stays in the table until a
        start has checked the file.
        """
        self._connection = connection
        found = [one for one in connection.execute(STORED_RANGES) if one not in in_blocks]
        self.ranges: tuple[Range, ...] = tuple(map(self._left, found))
        """Ranges that wait for deletion, the next one first. A tuple, so that a commit that fails
        can restore the old value."""
        absent = [self._absent_of(one) for one in self.ranges]
        self.absent = sum(absent)
        """Numbers in these ranges that never had a row: a staged request was given up."""
        self._kept: frozenset[int] = frozenset()
        """``last`` of the ranges that stay in the table."""
        if not checked:
            each = zip(found, self.ranges, absent, strict=True)
            self._kept = frozenset(whole[1] for whole, left, none in each if whole != left or none)
        self.missed = 0
        """Rows that the last call of ``delete`` should have found and did not."""

    def delete(
        self, settled: Sequence[Range], before: Callable[[list[Range]], None] | None = None
    ) -> list[Range]:
        """Delete small ranges of ``settled``, and some rows of the ranges that wait.

        Large ranges of ``settled`` wait from now on. Returns the ranges whose rows are deleted.
        ``before`` is called with them before the deletion.
        """
        deleted = self._take_due()
        for range_ in job_rows.merge(settled):
            if _length(range_) <= self.small_range:
                deleted.append(range_)
            else:
                self.hide(range_)
                self.ranges += (range_,)
        self.missed = 0
        if deleted:
            if before is not None:
                before(deleted)
            self.missed = sum([last - first + 1 for first, last in deleted])
            self.missed -= job_rows.delete(self._connection, deleted)
            excused = min(self.missed, self.absent)
            self.absent -= excused
            self.missed -= excused
        return deleted

    def _left(self, range_: Range) -> Range:
        """Return a range without the rows at its beginning that an earlier run has deleted."""
        (first,) = self._connection.execute(_FIRST_LEFT, range_).fetchone()
        return (range_[1] + 1 if first is None else first, range_[1])

    def _take_due(self) -> list[Range]:
        """Remove from ``ranges`` as many rows as this commit deletes, and return their ranges.

        The row of ``stored`` stays unchanged until its whole range is deleted: a start may find a
        range of which some rows are deleted already.
        """
        due_ranges: list[Range] = []
        waiting = deque(self.ranges)
        due = max(self.rows_per_commit, sum(map(_length, waiting)) // _SHARE)
        while waiting and due > 0:
            first, last = waiting.popleft()
            if last - first < due:
                if last not in self._kept:
                    self._connection.execute(_DELETE, (last,))
            else:
                waiting.appendleft((first + due, last))
                last = first + due - 1
            due_ranges.append((first, last))
            due -= last - first + 1
        self.ranges = tuple(waiting)
        return due_ranges

    def discard(self, range_: Range) -> None:
        """Have the rows of a hidden range deleted, of which some may not have been written."""
        self.ranges += (range_,)
        # Where the file is damaged, it is about to be repaired and its ranges are read again.
        with suppress(sqlite3.Error):
            self.absent += self._absent_of(range_)

    def _absent_of(self, range_: Range) -> int:
        """Return how many numbers at the end of a range have no row: none was written so far."""
        first, last = range_
        (newest,) = self._connection.execute(_LAST_LEFT, range_).fetchone()
        return last - first + 1 if newest is None else last - int(newest)

    def hide(self, range_: Range) -> None:
        """Take a range out of the journal without deleting its rows: note it in ``stored``."""
        self._connection.execute(_INSERT, (*range_, of_values(reversed(range_))))

    def show(self, range_: Range) -> None:
        """Make the rows of a hidden range part of the journal: remove it from ``stored``."""
        self._connection.execute(_DELETE, (range_[1],))

    def finish(self) -> None:
        """Delete all rows that wait, in one transaction; a range that is only hidden stays."""
        if not self.ranges:
            return
        lasts = [last for _, last in self.ranges if last not in self._kept]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            job_rows.delete(self._connection, self.ranges)
            job_rows.delete_each(self._connection, "stored", "last", lasts)
        self.ranges = ()


class Vacuum:
    """Returns free pages of the file to the file system. Methods raise sqlite3.Error."""

    least_pages = 1024
    """Free pages from which it is worth it; fewer are left for the next rows."""
    pages_per_step = 256

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def step(self) -> bool:
        """Return some free pages to the file system; returns whether there are more."""
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        if free < self.least_pages:
            return False
        # The statement frees one page per step. As it has no columns, ``execute`` makes only one
        # step of it; ``executescript`` makes all of them.
        self._connection.executescript(f"PRAGMA incremental_vacuum({self.pages_per_step})")
        if free - self.pages_per_step < self.least_pages:
            # The last step for now. The file becomes shorter with the checkpoint.
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return True


def _length(range_: Range) -> int:
    first, last = range_
    return last - first + 1
