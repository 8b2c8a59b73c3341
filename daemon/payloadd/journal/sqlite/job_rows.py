"""Many rows of ``jobs`` with few statements.

Python lets its lock go around every step of a statement, and gets it back when the busy main
thread gives it away: after 5 ms, if that has work to do. A commit of 256 jobs and as many
settled ones made 512 steps, which took 470 ms beside a thread that never rests; a few steps
take 27. They are cheaper by themselves too: 1.6 us an inserted row instead of 2.1, 0.2 to 0.6
a deleted one instead of 1.3. Functions raise sqlite3.Error.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from payloadd.journal.sqlite import segment_files
from payloadd.journal.sqlite.segment_files import SegmentSpan

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Row = tuple[int, Any, Any, Any, Any, Any, Any, Any, Any]
"""seq, id, payloads, lines; segment, start, size of lines that are in a segment, else None;
stream; checksum, None in a row of version 3. As it was read: ``reading`` says whether it is."""
NewRow = tuple[int, bytearray, int, bytearray | bytes, int]
"""seq, id, payloads, lines, checksum. Python looks for an adapter of each parameter that is no
number, str or bytearray, so None and bytes were two thirds of what a small row costs."""
PlacedRow = tuple[int, bytearray, int, int, int, int, int]
"""seq, id, payloads; segment, start, size of lines that are in a segment; checksum."""
Range = tuple[int, int]
"""The first and the last ``seq`` of neighbours."""

IN_RANGE: Final = (
    "SELECT seq, id, payloads, lines, segment, start, size, stream, crc FROM jobs"
    " WHERE seq BETWEEN ? AND ? ORDER BY seq"
)
_ROWS_PER_STATEMENT: Final = (128, 64, 32, 16, 8, 4, 2, 1)
"""Rows of one statement. A few sizes, so that SQLite has to understand each only once; and not
more than 999 variables."""
_FEW: Final = 8
"""Neighbours that are worth no statement of their own, which costs 2 us and a step."""


def _insertions(values: str) -> dict[int, str]:
    return {
        count: f"INSERT INTO jobs VALUES {', '.join([values] * count)}"  # noqa: S608 - only marks
        for count in _ROWS_PER_STATEMENT
    }


_INSERTS: Final = _insertions("(?, ?, ?, ?, NULL, NULL, NULL, 0, ?)")
_PLACED_INSERTS: Final = _insertions("(?, ?, ?, x'', ?, ?, ?, 0, ?)")


def insert(connection: sqlite3.Connection, rows: Sequence[NewRow]) -> None:
    """Insert rows that hold their lines."""
    for some in _portions(rows):
        connection.execute(_INSERTS[len(some)], list(chain.from_iterable(some)))


def insert_placed(connection: sqlite3.Connection, rows: Sequence[PlacedRow]) -> None:
    """Insert rows whose lines are in a segment."""
    for some in _portions(rows):
        connection.execute(_PLACED_INSERTS[len(some)], list(chain.from_iterable(some)))


def delete(connection: sqlite3.Connection, ranges: Sequence[Range]) -> int:
    """Delete all rows in these ranges; returns how many there were."""
    few: list[int] = []
    deleted = 0
    for first, last in ranges:
        if last - first < _FEW:
            few += range(first, last + 1)
        else:
            statement = "DELETE FROM jobs WHERE seq BETWEEN ? AND ?"
            deleted += connection.execute(statement, (first, last)).rowcount
    return deleted + delete_each(connection, "jobs", "seq", few)


def delete_each(
    connection: sqlite3.Connection, table: str, column: str, values: Sequence[int]
) -> int:
    """Delete the row of each value; returns how many there were."""
    deleted = 0
    for some in _portions(values):
        deleted += connection.execute(_deletion(table, column, len(some)), some).rowcount
    return deleted


def merge(ranges: Sequence[Range]) -> list[Range]:
    """Return the ranges in order, neighbours as one."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and merged[-1][1] + 1 == first:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return merged


def size(row: Row) -> int:
    """Return the bytes of a row's lines, wherever they are."""
    return len(row[3]) if row[6] is None else row[6]


def lines(rows: Sequence[Row], state_dir: Path) -> list[bytes]:
    """Return the lines of each row, wherever they are."""
    places = [SegmentSpan(*row[4:7]) for row in rows if row[4] is not None]
    stored = iter(segment_files.read(state_dir, places))
    return [row[3] if row[4] is None else next(stored) for row in rows]


@cache
def _deletion(table: str, column: str, count: int) -> str:
    return f"DELETE FROM {table} WHERE {column} IN ({', '.join('?' * count)})"  # noqa: S608 - names of ours


def _portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    start, left = 0, len(values)
    for count in _ROWS_PER_STATEMENT:
        while left >= count:
            yield values[start : start + count]
            start += count
            left -= count
