"""Rows of the table ``jobs``: many written with few statements, and each checked when it is read.

Python releases its lock for every step of a statement, and gets it back only when the busy main
thread lets go of it: after 5 ms (``sys.getswitchinterval``) where that has work to do. So a commit
has few statements, and each of them has many rows.

A row that is read may hold anything: one flipped bit turns a number into text, a blob into NULL.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
import uuid
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.checksum import of_job
from payloadd.journal.sqlite.damage import DamagedRow
from payloadd.journal.sqlite.segments import SegmentSpan
from payloadd.model.job import Job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Row = tuple[int, Any, Any, Any, Any, Any, Any, Any, Any]
"""A row as it was read, not checked yet: seq, id, payloads, lines; segment, start, size of lines
that are in a segment, else None; stream; checksum, None in a row of format version 3."""
NewRow = tuple[int, bytearray, int, bytearray | bytes, int]
"""seq, id, payloads, lines, checksum. ``bytearray``, because sqlite3 searches an adapter for every
parameter that is not a number, str or bytearray: with ``bytes`` a small row costs far more."""
PlacedRow = tuple[int, bytearray, int, int, int, int, int]
"""seq, id, payloads; segment, start, size of lines that are in a segment; checksum."""
Range = tuple[int, int]
"""The first and the last ``seq`` of neighbouring jobs."""

IN_RANGE: Final = (
    "SELECT seq, id, payloads, lines, segment, start, size, stream, crc FROM jobs"
    " WHERE seq BETWEEN ? AND ? ORDER BY seq"
)
_ROWS_PER_STATEMENT: Final = (128, 64, 32, 16, 8, 4, 2, 1)
"""Numbers of rows that a statement may have: few, so that SQLite has to compile each of them only
once; and no statement has more than 999 variables, the limit of old versions of SQLite."""
_FEW: Final = 8
"""Neighbours up to which a range gets no DELETE statement of its own."""

_ID_BYTES: Final = 16
_MOST_BYTES: Final = 2**31
_UUID_VERSION: Final = 7
_YEAR_2200: Final = 7_258_118_400_000
"""In ms since 1970."""
_ALTERED: Final = "does not match its checksum"
_NO_JOB: Final = "is not a job"


def _insertions(values: str, insert: str = "INSERT") -> dict[int, str]:
    return {
        count: f"{insert} INTO jobs VALUES {', '.join([values] * count)}"
        for count in _ROWS_PER_STATEMENT
    }


_INSERTS: Final = _insertions("(?, ?, ?, ?, NULL, NULL, NULL, 0, ?)")
_REPLACEMENTS: Final = _insertions("(?, ?, ?, ?, NULL, NULL, NULL, 0, ?)", "INSERT OR REPLACE")
_PLACED_INSERTS: Final = _insertions("(?, ?, ?, x'', ?, ?, ?, 0, ?)")


def insert(connection: sqlite3.Connection, rows: Sequence[NewRow]) -> None:
    """Insert rows that hold their lines."""
    for some in _portions(rows):
        connection.execute(_INSERTS[len(some)], list(chain.from_iterable(some)))


def replace(connection: sqlite3.Connection, rows: Sequence[NewRow]) -> None:
    """Insert rows that hold their lines, in place of those that have the same numbers."""
    for some in _portions(rows):
        connection.execute(_REPLACEMENTS[len(some)], list(chain.from_iterable(some)))


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
    """Delete the row of each value of ``column``; returns how many there were."""
    deleted = 0
    for some in _portions(values):
        deleted += connection.execute(_deletion(table, column, len(some)), some).rowcount
    return deleted


def merge(ranges: Sequence[Range]) -> list[Range]:
    """Return the ranges in order, neighbouring ones joined. They must not overlap."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and merged[-1][1] + 1 == first:
            merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return merged


def lines(rows: Sequence[Row], state_dir: Path) -> list[bytes]:
    """Return the lines of each row, from the row or from its segment, unchecked."""
    spans = [SegmentSpan(*row[4:7]) for row in rows if row[4] is not None]
    in_segments = iter(segments.read(state_dir, spans))
    return [row[3] if row[4] is None else next(in_segments) for row in rows]


def read_jobs(
    rows: Sequence[Row], state_dir: Path, *, tolerant: bool = False
) -> tuple[list[Job], list[DamagedRow]]:
    """Return the jobs of the rows that are as they were written, and the damaged rows.

    Both are in the order of ``rows``. ``tolerant``: a job whose bytes the disk cannot read is
    damaged; else that raises sqlite3.Error, because a second attempt may succeed.
    """
    jobs: list[Job] = []
    damaged: list[DamagedRow] = []
    shaped: list[Row] = []
    for row in rows:
        if _is_shaped(row):
            shaped.append(row)
        else:
            damaged.append(_damaged(row, _NO_JOB))
    for row, found in zip(shaped, _lines(shaped, state_dir, tolerant=tolerant), strict=True):
        if isinstance(found, str):
            damaged.append(_damaged(row, found))
        elif _is_sound(row, found):
            jobs.append(Job(row[0], uuid.UUID(bytes=row[1]), found, row[2]))
        else:
            damaged.append(_damaged(row, _ALTERED))
    return jobs, damaged


def size(row: Row) -> int:
    """Return the bytes of a row's lines, wherever they are; a guess where the row is damaged."""
    length = row[6]
    if isinstance(length, int) and 0 <= length < _MOST_BYTES:
        return length
    return len(row[3]) if isinstance(row[3], bytes | str) else 0


def _is_shaped(row: Row) -> bool:
    """Return whether the columns of a row have the types and limits of a job's row."""
    _, id_, payloads, in_row, segment, start, length, stream, crc = row
    no_segment = segment is None and start is None and length is None
    return (
        isinstance(id_, bytes)
        and len(id_) == _ID_BYTES
        and isinstance(payloads, int)
        and isinstance(in_row, bytes)
        and (no_segment or _is_span(segment, start, length))
        and stream == 0
        and (crc is None or isinstance(crc, int))
    )


def is_surely_sound(row: Row) -> bool:
    """Return whether a row that holds its lines matches its checksum; False without a checksum."""
    return row[8] is not None and row[4] is None and _is_shaped(row) and _is_sound(row, row[3])


def _is_span(segment: object, start: object, length: object) -> bool:
    return (
        isinstance(segment, int)
        and isinstance(start, int)
        and isinstance(length, int)
        and segment >= 0
        and start >= 0
        and 0 <= length < _MOST_BYTES
    )


def _is_sound(row: Row, found: bytes) -> bool:
    """Return whether a row, with the lines that were found, is as it was written."""
    seq, id_, payloads, *_, stream, crc = row
    if crc is None:
        return _is_plausible(id_, payloads, found)
    # The number of a dead letter of damage is negated.
    return bool(crc == of_job(abs(seq), id_, payloads, found, stream))


def _is_plausible(id_: bytes, payloads: int, found: bytes) -> bool:
    """Return whether a row of version 3, which has no checksum, may be as it was written."""
    job_id = uuid.UUID(bytes=id_)
    return (
        job_id.version == _UUID_VERSION
        and job_id.int >> 80 < _YEAR_2200
        and found[-1:] in {b"", b"\n"}
        and found.count(b"\n") == payloads
    )


def _lines(rows: Sequence[Row], state_dir: Path, *, tolerant: bool) -> list[bytes | str]:
    """Return the lines of each row, or as a str the reason why they cannot be read."""
    try:
        return list(lines(rows, state_dir))
    except sqlite3.Error as error:
        _raise_unless_damage(error, tolerant=tolerant)
    return [_lines_of_one(row, state_dir, tolerant=tolerant) for row in rows]


def _lines_of_one(row: Row, state_dir: Path, *, tolerant: bool) -> bytes | str:
    try:
        return lines([row], state_dir)[0]
    except sqlite3.Error as error:
        _raise_unless_damage(error, tolerant=tolerant)
        if segments.is_unreadable(error):
            return f"is in the segment {row[4]}, where it cannot be read ({error.sqlite_errorname})"
        missing = getattr(error, "sqlite_errorname", "") == "ENOENT"
        return f"is in the segment {row[4]}, which is {'missing' if missing else 'too short'}"


def _raise_unless_damage(error: sqlite3.Error, *, tolerant: bool) -> None:
    if not (segments.is_damage(error) or (tolerant and segments.is_unreadable(error))):
        raise error


def _damaged(row: Row, reason: str) -> DamagedRow:
    return DamagedRow(row[0], row[1], row[2], size(row), reason)


@cache
def _deletion(table: str, column: str, count: int) -> str:
    return f"DELETE FROM {table} WHERE {column} IN ({', '.join('?' * count)})"  # noqa: S608 - names of ours


def _portions(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield ``values`` in pieces of the sizes that a statement may have."""
    start, left = 0, len(values)
    for count in _ROWS_PER_STATEMENT:
        while left >= count:
            yield values[start : start + count]
            start += count
            left -= count
