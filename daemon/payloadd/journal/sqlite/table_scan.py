"""Reads all that can be read of a table whose file is damaged.

A table is a tree of pages in the order of its key. A page that is gone takes its rows along,
and ends every walk that comes to it; so the rows are walked to from both ends, and between the
two places where that ends from points in between, a bounded number of them.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from payloadd.journal.sqlite.job_rows import Range

Values = tuple[Any, ...]
R = TypeVar("R")
Walk: TypeAlias = "Generator[Values, None, R]"
"""Yields rows, and returns how far it came."""

_TROUBLE: Final = {5, 6, 7, 9, 10, 13, 14}
"""SQLITE_BUSY, _LOCKED, _NOMEM, _INTERRUPT, _IOERR, _FULL, _CANTOPEN."""
_UNREADABLE: Final = {266, 522, 8458}
"""SQLITE_IOERR_READ, _SHORT_READ, _CORRUPTFS: the disk does not give a page back."""
_DEPTH: Final = 10
"""A gap is halved so often at most: 1,024 places at which to begin again."""
_MOST_DISORDER: Final = 1000
"""Rows that come before the row in front of them, in one walk: pages can refer to each other."""
_MOST_ROWS_ALONE: Final = 100_000
"""Rows that are passed over one by one because a part of them is elsewhere and gone."""


def is_trouble(error: sqlite3.Error, *, tolerant: bool = False) -> bool:
    """Return whether a statement failed for another reason than a damaged file.

    ``tolerant``: a page that the disk does not give back is damaged.
    """
    if tolerant and is_unreadable(error):
        return False
    return ((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF) in _TROUBLE


def is_unreadable(error: sqlite3.Error) -> bool:
    """Return whether the disk does not give a page of the file back."""
    return getattr(error, "sqlite_errorcode", None) in _UNREADABLE


class Scan:
    """One walk through a table with an integer key, the first of the columns."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        table: str,
        columns: str,
        *,
        tolerant: bool = False,
    ) -> None:
        """Begin; ``tolerant``: pages that the disk does not give back are passed over too."""
        self._connection = connection
        self._tolerant = tolerant
        self._table = table
        self._columns = columns
        self._key = columns.split(",", 1)[0]
        self._rows_alone = _MOST_ROWS_ALONE
        self.gaps: list[Range] = []
        """Ranges of the key in which nothing can be read, and in which rows may have been."""
        self.partial: list[int] = []
        """Keys of rows that are there, of which only the first columns can be read."""
        self.failed = False
        """Whether anything could not be read."""
        self.found = 0

    def rows(self, first: int, last: int) -> Iterator[Values]:
        """Yield every row of a range; where there is damage out of order, and some rows twice."""
        for row in self._rows(first, last, _DEPTH):
            self.found += 1
            yield row

    def _rows(self, first: int, last: int, depth: int) -> Walk[None]:
        while True:
            low = yield from self._upwards(first, last)
            # From the other end too, unless it says the same: a walk may end early unnoticed.
            high = yield from self._downwards(low, last)
            if high < low:
                return
            # The row before the one that cannot be read is lost with it: Python fetches ahead.
            lowest = self._key_at_end(low, high, "ASC")
            if lowest is None:
                break
            yield from self._alone(lowest)
            if lowest > low:
                yield from self._gap(low, lowest - 1, depth)
            first, last = lowest + 1, high
        highest = self._key_at_end(low, high, "DESC")
        if highest is not None:
            yield from self._alone(highest)
            if highest < high:
                yield from self._gap(highest + 1, high, depth)
            high = highest - 1
        if low <= high:
            yield from self._gap(low, high, depth)

    def _alone(self, key: int) -> Iterator[Values]:
        """Yield the row with this key, or note that only a part of it can be read."""
        query = f"SELECT {self._columns} FROM {self._table} WHERE {self._key} = ?"  # noqa: S608 - names of ours
        try:
            row = self._connection.execute(query, (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            if is_trouble(error, tolerant=self._tolerant):
                raise
            self.partial.append(key)
            self._rows_alone -= 1
        else:
            if row is not None:
                yield row

    def _gap(self, low: int, high: int, depth: int) -> Walk[None]:
        """Begin again in the middle of a range whose ends cannot be read."""
        if depth == 0 or high - low < 2:  # noqa: PLR2004 - too few for a middle
            self.gaps.append((low, high))
            return
        middle = (low + high) // 2
        before = self.found
        for start, end in ((low, middle), (middle + 1, high)):
            yield from self._rows(start, end, depth - 1)
        if self.found == before:
            # Nothing in it at all: one gap, and not a thousand.
            self.gaps = [gap for gap in self.gaps if not (low <= gap[0] and gap[1] <= high)]
            self.gaps.append((low, high))

    def _upwards(self, first: int, last: int) -> Walk[int]:
        """Yield rows from ``first`` on; returns the key behind the last, or behind the range.

        Where pages are not in order the walk goes on: what it comes to next was not seen so far.
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
            if is_trouble(error, tolerant=self._tolerant):
                raise
            self.failed = True
        return low

    def _downwards(self, low: int, last: int) -> Walk[int]:
        """Yield rows from ``last`` down to ``low``; returns the key before the last of them."""
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
            if is_trouble(error, tolerant=self._tolerant):
                raise
            self.failed = True
            return high
        return low - 1

    def _key_at_end(self, low: int, high: int, order: str) -> int | None:
        """Return the first or last key of a range, if so much can be read."""
        if self._rows_alone <= 0 or low > high:
            return None
        query = (
            f"SELECT {self._key} FROM {self._table} WHERE {self._key} BETWEEN ? AND ?"  # noqa: S608 - names of ours
            f" ORDER BY {self._key} {order} LIMIT 1"
        )
        try:
            found = self._connection.execute(query, (low, high)).fetchone()
        except sqlite3.DatabaseError as error:
            if is_trouble(error, tolerant=self._tolerant):
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
