"""Detection of rows of ``jobs`` that misplaced pages hide, or show a second time.

SQLite notices a damaged page, but not a page in the place of another one: reading skips some rows
and a deletion misses some, without an error. A file that was checked as a whole has no such pages.
For a file that was not, three things are kept in memory from the start on:

* how many jobs of earlier runs are still to be read: where some are left at the end, pages hide
  them;
* whether each stored row is found when it is deleted, see ``RowDeletion.missed``;
* which rows were deleted: a copy of one, which appears when the file is repaired, is deleted too
  and not stored again.

Where one of the first two does not add up, the file is checked as a whole, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import file_check, job_rows
from payloadd.journal.sqlite.damage import corrupt
from payloadd.journal.sqlite.schema import STORED_RANGES
from payloadd.model.streams import count_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from payloadd.journal.sqlite.backlog import Page
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.transaction import Totals

_MERGED_BEYOND: Final = 1000


class HiddenRows:
    """Counts the rows that one run has read and deleted. Methods raise sqlite3.Error."""

    def __init__(self, *, repaired: bool) -> None:
        """Begin with a file; ``repaired``: whether this start has repaired it."""
        self.sound = repaired
        """Whether the file was repaired in this run, or checked because rows seemed hidden."""
        self.checked = repaired
        """The same, or whether this start has checked the file because it is small."""
        self.unread = 0
        """Jobs of earlier runs that no page has returned so far."""
        self._following = 0
        self._deleted: list[Range] = []
        self._most_ranges = _MERGED_BEYOND

    def begin(
        self, connection: sqlite3.Connection, totals: Totals, sealed: Sequence[Range]
    ) -> None:
        """Count the jobs of earlier runs, without ``sealed`` batches: no page returns those."""
        self.unread = totals.jobs - sum(last - first + 1 for first, last in sealed)
        self._following = totals.next
        self.delete(connection.execute(STORED_RANGES).fetchall())

    def read(self, page: Page) -> None:
        """Note that the rows of a page were read."""
        if self.unread > 0:
            for found in (page.jobs, page.damaged):
                self.unread -= sum(count_of(row.seq) < self._following for row in found)

    def delete(self, stored: Sequence[Range]) -> None:
        """Note ranges of stored jobs, whose rows are deleted or wait for deletion."""
        if self.sound:
            return
        self._deleted += stored
        if len(self._deleted) > self._most_ranges:
            # Seldom: jobs are stored about in order, so their ranges become a few.
            self._deleted = job_rows.merge(self._deleted)
            self._most_ranges = 2 * len(self._deleted) + _MERGED_BEYOND

    def is_sound(self, connection: sqlite3.Connection) -> bool:
        """Return whether no page of the file is damaged or misplaced; reads all of it once."""
        self.sound = self.sound or file_check.find_problem(connection) is None
        self.checked |= self.sound
        return self.sound

    def check(self, connection: sqlite3.Connection, missed: int) -> None:
        """Raise the error of a damaged file where rows are ``missed`` and its pages are not sound.

        Where its pages are sound, the rows are really gone: the totals tell that.
        """
        if missed > 0 and not self.is_sound(connection):
            raise corrupt(f"{missed} rows of jobs are not where they should be")

    @property
    def deleted(self) -> list[Range]:
        """Ranges of stored jobs, in order: a repaired file must not have their rows again."""
        return job_rows.merge(self._deleted)

    def repaired(self) -> None:
        """Note that the file was repaired, without the rows of ``deleted``."""
        self._deleted = []
        self.sound = self.checked = True
