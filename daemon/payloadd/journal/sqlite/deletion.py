"""Deletes the rows of what is stored: not a whole batch at once, but some with each commit.

Whoever waits for a commit waits for all that is in it. Those that deleted the 1,000 rows of a
batch took 0.84 ms and others 0.20, and one in a hundred did, at 17,000 requests a second: they
made the 99th percentile of an answer, which is 1.3 ms without them and was 1.6. So a large range
is noted in the table ``stored``, where it is as good as deleted.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import job_rows
from payloadd.journal.sqlite.checksum import of_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.journal.sqlite.job_rows import Range

_ROWS_PER_COMMIT: Final = 64
"""Rows that are deleted with a commit, which makes it 33 us longer: 0.18 ms instead of 0.15."""
_FEW: Final = 64
"""Rows of a range that are deleted at once."""
_SHARE: Final = 16
"""One of so many that wait, if that is more than _AT_ONCE: or they would become ever more where
batches are stored faster than they go."""

_RANGES: Final = "SELECT first, last FROM stored ORDER BY last"
_FIRST_LEFT: Final = "SELECT min(seq) FROM jobs WHERE seq BETWEEN ? AND ?"
_LAST_LEFT: Final = "SELECT max(seq) FROM jobs WHERE seq BETWEEN ? AND ?"
_INSERT: Final = "INSERT INTO stored (first, last, crc) VALUES (?, ?, ?)"
_DELETE: Final = "DELETE FROM stored WHERE last = ?"


class RowDeletion:
    """Knows which jobs are stored and still have rows. Methods raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.ranges: tuple[Range, ...] = tuple(map(self._left, connection.execute(_RANGES)))
        """What waits, the next first. A value, so that a commit that fails can have the old one."""
        self.absent = sum(map(self._absent_of, self.ranges))
        """Rows of these ranges that were never written: a request was given up before its end."""
        self.missed = 0
        """Rows that the last call of ``delete`` should have found and did not."""

    def delete(self, settled: Sequence[Range]) -> list[Range]:
        """Delete the rows of what is settled now, if they are few, and some of those that wait.

        Returns the ranges whose rows are gone.
        """
        gone = self._next()
        for one in job_rows.merge(settled):
            if _length(one) <= _FEW:
                gone.append(one)
            else:
                self.hide(one)
                self.ranges += (one,)
        self.missed = 0
        if gone:
            self.missed = sum([last - first + 1 for first, last in gone])
            self.missed -= job_rows.delete(self._connection, gone)
            excused = min(self.missed, self.absent)
            self.absent -= excused
            self.missed -= excused
        return gone

    def _left(self, range_: Range) -> Range:
        """Return a range without the rows at its beginning that an earlier run has deleted."""
        (first,) = self._connection.execute(_FIRST_LEFT, range_).fetchone()
        return (range_[1] + 1 if first is None else first, range_[1])

    def _next(self) -> list[Range]:
        """Take out what is deleted next: as many rows as are due, of one range or several.

        ``stored`` keeps a range as it was until all of it is gone; to delete a row again is easy.
        """
        gone: list[Range] = []
        waiting = deque(self.ranges)
        due = max(_ROWS_PER_COMMIT, sum(map(_length, waiting)) // _SHARE)
        while waiting and due > 0:
            first, last = waiting.popleft()
            if last - first < due:
                self._connection.execute(_DELETE, (last,))
            else:
                waiting.appendleft((first + due, last))
                last = first + due - 1
            gone.append((first, last))
            due -= last - first + 1
        self.ranges = tuple(waiting)
        return gone

    def give_up(self, range_: Range) -> None:
        """Delete the rows of a hidden range, of which not all may have been written."""
        self.ranges += (range_,)
        # Where the file is damaged it is about to be made sound, and read again.
        with suppress(sqlite3.Error):
            self.absent += self._absent_of(range_)

    def _absent_of(self, range_: Range) -> int:
        """Return how many numbers at the end of a range have no row: they were not written yet."""
        first, last = range_
        (newest,) = self._connection.execute(_LAST_LEFT, range_).fetchone()
        return last - first + 1 if newest is None else last - int(newest)

    def hide(self, range_: Range) -> None:
        """Note that the rows of a range are not part of the journal; they are not deleted."""
        self._connection.execute(_INSERT, (*range_, of_values(reversed(range_))))

    def show(self, range_: Range) -> None:
        """Make the rows of a hidden range part of the journal."""
        self._connection.execute(_DELETE, (range_[1],))

    def finish(self) -> None:
        """Delete them all, in one transaction; not the rows that are only hidden."""
        if not self.ranges:
            return
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            job_rows.delete(self._connection, self.ranges)
            job_rows.delete_each(
                self._connection, "stored", "last", [last for _, last in self.ranges]
            )
        self.ranges = ()


def _length(range_: Range) -> int:
    first, last = range_
    return last - first + 1
