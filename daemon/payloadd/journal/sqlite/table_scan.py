"""Read all readable rows of a table in a damaged file.

A table is a tree of pages in the order of its key. A damaged page hides its rows, and ends every
walk along the rows that reaches it. So a scan walks from both ends; the range between the two
places where these walks end is halved, and the scan starts again in its middle, a bounded number
of times.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from payloadd.journal.sqlite.job_rows import Range

RowValues = tuple[Any, ...]
"""The columns of one row of any table; where there is damage, of any types."""
R = TypeVar("R")
Walk: TypeAlias = "Generator[RowValues, None, R]"
"""Yields rows and returns the key where it ended."""

_NO_DAMAGE: Final = {5, 6, 7, 9, 10, 14}
"""SQLITE_BUSY, _LOCKED, _NOMEM, _INTERRUPT, _IOERR, _CANTOPEN: the file may be intact. A read does
not fill the disk: SQLITE_FULL is a page number beyond all limits."""
_UNREADABLE: Final = {266, 522, 8458}
"""SQLITE_IOERR_READ, _SHORT_READ, _CORRUPTFS: the disk cannot read a page."""
_MOST_HALVINGS: Final = 10
"""How often a gap is halved at most: a scan starts again at 1,024 places."""
_MOST_DISORDER: Final = 1000
"""Rows in the wrong order in one walk at most: damaged pages can form a circle."""
_MOST_SINGLE_ROWS: Final = 100_000
"""Rows read one by one at most, because their overflow pages may be damaged."""


def is_other_error(error: sqlite3.Error, *, tolerant: bool = False) -> bool:
    """Return whether a statement failed for another reason than a damaged file.

    ``tolerant``: a page that the disk cannot read counts as damaged.
    """
    if tolerant and is_unreadable(error):
        return False
    return ((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF) in _NO_DAMAGE


def is_unreadable(error: sqlite3.Error) -> bool:
    """Return whether the disk cannot read a page of the file."""
    return getattr(error, "sqlite_errorcode", None) in _UNREADABLE


class TableScan:
    """A scan of one table with an integer key, which is the first column. Raises sqlite3.Error."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        table: str,
        columns: str,
        *,
        tolerant: bool = False,
    ) -> None:
        """Prepare a scan; ``tolerant``: skip pages that the disk cannot read, too."""
        self._connection = connection
        self._tolerant = tolerant
        self._table = table
        self._columns = columns
        self._key = columns.split(",", 1)[0]
        self._single_rows_left = _MOST_SINGLE_ROWS
        self.gaps: list[Range] = []
        """Ranges of the key in which no row can be read and rows may be missing."""
        self.partial: list[int] = []
        """Keys of rows of which only the first columns can be read."""
        self.failed = False
        """Whether a part of the table could not be read."""
        self.found = 0
        """Number of rows that were yielded."""

    def rows(self, first: int, last: int) -> Iterator[RowValues]:
        """Yield every readable row with a key from ``first`` to ``last``.

        Where there is damage, rows may come out of order and twice.
        """
        for row in self._rows(first, last, _MOST_HALVINGS):
            self.found += 1
            yield row

    def _rows(self, first: int, last: int, depth: int) -> Walk[None]:
        while True:
            low = yield from self._upwards(first, last)
            # From the other end too, even without an error: a walk may end early unnoticed.
            high = yield from self._downwards(low, last)
            if high < low:
                return
            # Python fetches one row ahead, so an error loses the row before the unreadable one.
            lowest = self._key_at_end(low, high, "ASC")
            if lowest is None:
                break
            yield from self._single(lowest)
            if lowest > low:
                yield from self._gap(low, lowest - 1, depth)
            first, last = lowest + 1, high
        highest = self._key_at_end(low, high, "DESC")
        if highest is not None:
            yield from self._single(highest)
            if highest < high:
                yield from self._gap(highest + 1, high, depth)
            high = highest - 1
        if low <= high:
            yield from self._gap(low, high, depth)

    def _single(self, key: int) -> Iterator[RowValues]:
        """Yield the row with this key, or note that only a part of it can be read."""
        query = f"SELECT {self._columns} FROM {self._table} WHERE {self._key} = ?"  # noqa: S608 - names of ours
        try:
            row = self._connection.execute(query, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            if is_other_error(error, tolerant=self._tolerant):
                raise
            self.partial.append(key)
            self._single_rows_left -= 1
        else:
            if row is not None:
                yield row

    def _gap(self, low: int, high: int, depth: int) -> Walk[None]:
        """Scan both halves of a range whose ends cannot be read."""
        if depth == 0 or high - low < 2:  # noqa: PLR2004 - too few for a middle
            self.gaps.append((low, high))
            return
        middle = (low + high) // 2
        before = self.found
        for start, end in ((low, middle), (middle + 1, high)):
            yield from self._rows(start, end, depth - 1)
        if self.found == before:
            # No row in the whole range: note one gap, not a thousand.
            self.gaps = [gap for gap in self.gaps if not (low <= gap[0] and gap[1] <= high)]
            self.gaps.append((low, high))

    def _upwards(self, first: int, last: int) -> Walk[int]:
        """Yield rows from ``first`` on; return the key after the last one, or after the range.

        The walk continues where pages are not in order: the rows that follow may be new ones.
        """
        order = f"{self._key} ORDER BY {self._key}"
        low = first
        disorder = 0
        try:
            for row in self._query(order, first, last):
                if not low <= row[0] <= last:
                    self.failed = True
                    disorder += 1
                    if disorder > _MOST_DISORDER or not first <= row[0] <= last:
                        break
                yield row
                low = row[0] + 1
        except sqlite3.DatabaseError as error:
            if is_other_error(error, tolerant=self._tolerant):
                raise
            self.failed = True
        return low

    def _downwards(self, low: int, last: int) -> Walk[int]:
        """Yield rows from ``last`` down to ``low``; return the key before the last one yielded."""
        order = f"{self._key} ORDER BY {self._key} DESC"
        high = last
        try:
            for row in self._query(order, low, last):
                if not low <= row[0] <= high:
                    self.failed = True
                    return high
                yield row
                high = row[0] - 1
        except sqlite3.DatabaseError as error:
            if is_other_error(error, tolerant=self._tolerant):
                raise
            self.failed = True
            return high
        return low - 1

    def _key_at_end(self, low: int, high: int, order: str) -> int | None:
        """Return the first or last key of a range, None if it cannot be read."""
        if self._single_rows_left <= 0 or low > high:
            return None
        query = (
            f"SELECT {self._key} FROM {self._table} WHERE {self._key} BETWEEN ? AND ?"  # noqa: S608 - names of ours
            f" ORDER BY {self._key} {order} LIMIT 1"
        )
        try:
            found = self._connection.execute(query, (low, high)).fetchone()
        except sqlite3.DatabaseError as error:
            if is_other_error(error, tolerant=self._tolerant):
                raise
            return None
        return int(found[0]) if found is not None and low <= found[0] <= high else None

    def _query(self, order: str, first: int, last: int) -> sqlite3.Cursor:
        key, _, rest = order.partition(" ")
        return self._connection.execute(
            f"SELECT {self._columns} FROM {self._table}"  # noqa: S608 - names of ours
            f" WHERE {key} BETWEEN ? AND ? {rest}",
            (first, last),
        )
