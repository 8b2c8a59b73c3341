"""The table ``segments``: which jobs of each stream can be in a segment.

A segment holds jobs of several streams, each in the order of their ``seq``. While there is only the
default stream, the name of a segment is the lowest ``seq`` that a job in it can have. Once there
are others, a row has the next ``seq`` of every stream at the time when the segment was begun. Rows
speed up the search for jobs that an index has lost; nothing else depends on them. Functions raise
sqlite3.Error.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite.checksum import of_values
from payloadd.model.streams import DEFAULT, MOST_NUMBERS, first_seq, stream_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from payloadd.journal.sqlite.job_rows import Range

_WRITE: Final = "INSERT OR REPLACE INTO segments (name, firsts, crc) VALUES (?, ?, ?)"
_FORGET: Final = """
    DELETE FROM segments WHERE name < (SELECT max(name) FROM segments WHERE name <= ?)
"""
_BEGIN: Final = "SELECT name, firsts, crc FROM segments WHERE name <= ? ORDER BY name DESC"
_END: Final = "SELECT name, firsts, crc FROM segments WHERE name > ? ORDER BY name"


def note(connection: sqlite3.Connection, name: int, firsts: Iterable[int], oldest: int) -> None:
    """Write the row of a new segment; forget rows of segments before ``oldest``.

    ``firsts``: the next ``seq`` of each stream. Runs in the transaction of the caller.
    """
    values = (name, array("q", firsts).tobytes())
    connection.execute(_WRITE, (*values, of_values(values)))
    connection.execute(_FORGET, (oldest,))


def ranges(connection: sqlite3.Connection, name: int) -> list[Range]:
    """Return ranges of ``seq`` that have all jobs which can be in the segment ``name``."""
    begin = _firsts(connection, _BEGIN, name) or {DEFAULT: 1}
    end = _firsts(connection, _END, name)
    if end is None:
        streams = sorted(begin)
        lasts = [first_seq(stream) for stream in [*streams[1:], MOST_NUMBERS]]
        return [(begin[stream], last) for stream, last in zip(streams, lasts, strict=True)]
    found = [
        (begin.get(stream, first_seq(stream) + 1), last - 1) for stream, last in sorted(end.items())
    ]
    return [range_ for range_ in found if range_[0] <= range_[1]]


def _firsts(connection: sqlite3.Connection, query: str, name: int) -> dict[int, int] | None:
    """Return the numbers of the first sound row that a query finds, by stream; None without one."""
    for found, firsts, crc in connection.execute(query, (name,)):
        if crc == of_values((found, firsts)) and len(firsts) % 8 == 0:
            return {stream_of(seq): seq for seq in array("q", firsts)}
    return None
