"""Notices rows of ``jobs`` that damaged pages hide, or show a second time.

SQLite notices a damaged page, but not a page in the place of another one: a walk along the rows
passes over some and a deletion misses some, without an error. A file that was checked as a whole
has no such pages. Of one that was not, three things are noted in memory from the start on:

* how many jobs are still to be read: where some are left at the end, they were passed over;
* whether each stored row is there to be deleted, see ``Clearance.missed``;
* which rows were deleted: a copy of theirs, which appears when the file is made sound, is deleted
  too, and not stored again.

Each of the first two is a suspicion, for which the file is checked as a whole, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import file_check, job_rows
from payloadd.journal.sqlite.damage import corrupt

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from payloadd.journal.sqlite.backlog import Page
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.transaction import Totals

_STORED: Final = "SELECT first, last FROM stored"
_MERGED_BEYOND: Final = 1000


class Hidden:
    """What one run knows of the rows of one journal. Methods raise sqlite3.Error."""

    def __init__(self, *, sound: bool) -> None:
        """Begin with a file that is ``sound``: made so or checked just now."""
        self.sound = sound
        """Whether the file was made sound or checked in this run, at the start or later."""
        self.unread = 0
        """Jobs of earlier runs that no page has shown so far."""
        self._following = 0
        self._gone: list[Range] = []
        self._most = _MERGED_BEYOND

    def begin(
        self, connection: sqlite3.Connection, totals: Totals, sealed: Sequence[Range]
    ) -> None:
        """Note what there is at a start. ``sealed`` batches are read otherwise than in pages."""
        self.unread = totals.jobs - sum(last - first + 1 for first, last in sealed)
        self._following = totals.next
        self.delete(connection.execute(_STORED).fetchall())

    def read(self, page: Page) -> None:
        """Note the rows of a page."""
        if self.unread > 0:
            for found in (page.jobs, page.damaged):
                self.unread -= sum(row.seq < self._following for row in found)

    def delete(self, stored: Sequence[Range]) -> None:
        """Note jobs whose rows are deleted, or are going to be."""
        if self.sound:
            return
        self._gone += stored
        if len(self._gone) > self._most:
            # Seldom: what is stored about in order becomes a few ranges.
            self._gone = job_rows.merge(self._gone)
            self._most = 2 * len(self._gone) + _MERGED_BEYOND

    def is_sound(self, connection: sqlite3.Connection) -> bool:
        """Return whether the pages of the file are in order; reads all of it once."""
        self.sound = self.sound or file_check.find_problem(connection) is None
        return self.sound

    def check(self, connection: sqlite3.Connection, missed: int) -> None:
        """Raise the error of a damaged file where rows are missed because of its pages."""
        if missed > 0 and not self.is_sound(connection):
            raise corrupt(f"{missed} rows of jobs are not where they should be")

    @property
    def gone(self) -> list[Range]:
        """Rows that were deleted: a file that is made sound must not have them again."""
        return job_rows.merge(self._gone)

    def made_sound(self) -> None:
        """Note that the file was made sound, without the rows that are ``gone``."""
        self._gone = []
        self.sound = True
