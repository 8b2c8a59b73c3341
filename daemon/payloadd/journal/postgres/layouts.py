"""The names of streams, which all lanes share, and the layouts of the jobs of each lane.

Functions run in the journal's thread and raise psycopg.Error.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Final

from psycopg.types.json import Jsonb

from payloadd.errors import StartError
from payloadd.journal.postgres.transaction import fence
from payloadd.model.layout import Layout
from payloadd.model.streams import DEFAULT, MOST_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import Connection

    from payloadd.journal.postgres.lane import Lane

_READ: Final = """
    SELECT stream, first, layout FROM payloadd.layouts WHERE lane = %s ORDER BY stream, first
"""
_NOTE: Final = """
    INSERT INTO payloadd.layouts (lane, stream, first, layout) VALUES (%s, %s, %s, %s)
    ON CONFLICT (lane, stream, first) DO UPDATE SET layout = excluded.layout
"""
_FORGET: Final = """
    DELETE FROM payloadd.layouts l WHERE lane = %(lane)s AND stream = %(stream)s AND EXISTS (
        SELECT FROM payloadd.layouts n WHERE n.lane = %(lane)s AND n.stream = %(stream)s
        AND n.first > l.first AND n.first <= %(low)s + 1)
"""
_LOCK_STREAMS: Final = "LOCK TABLE payloadd.streams IN SHARE ROW EXCLUSIVE MODE"

Known = dict[tuple[int, int], Layout]
"""Layouts by stream and number of the first job that each holds for, in order."""


def read(connection: Connection[Any], lane: Lane) -> Known:
    """Return the layouts of a lane."""
    found = connection.execute(_READ, (lane.number,)).fetchall()
    return {(stream, first): _layout(values) for stream, first, values in found}


def note_new(
    connection: Connection[Any], lane: Lane, known: Known, new: Mapping[int, Layout | None]
) -> Known:
    """Note the layouts of new jobs, by stream, where they are others than before; return these.

    Layouts that no unsettled job needs are deleted.
    """
    newest = {stream: layout for (stream, _), layout in known.items()}
    noted: Known = {}
    for stream, layout in new.items():
        if layout is None or newest.get(stream) == layout:
            continue
        first = lane.stream(stream).following
        noted[stream, first] = layout
        with connection.transaction(), connection.cursor() as cursor:
            fence(cursor, [lane])
            cursor.execute(_NOTE, (lane.number, stream, first, Jsonb(asdict(layout))))
            low = lane.stream(stream).settled.low
            cursor.execute(_FORGET, {"lane": lane.number, "stream": stream, "low": low})
    return noted


def _layout(values: Mapping[str, Any]) -> Layout:
    known = {one.name for one in fields(Layout)}
    return Layout(**{name: one for name, one in values.items() if name in known})


def read_streams(connection: Connection[Any]) -> dict[int, str]:
    """Return the names of all streams by number."""
    return dict(connection.execute("SELECT number, name FROM payloadd.streams").fetchall())


def number_streams(connection: Connection[Any], wanted: Sequence[str]) -> dict[int, str]:
    """Give a number to each stream that has none; return the names of all by number.

    Raises StartError where no number is left.
    """
    names = read_streams(connection)
    if set(wanted) <= set(names.values()):
        return names
    with connection.transaction():
        connection.execute(_LOCK_STREAMS)
        names = read_streams(connection)
        for name in wanted:
            if name not in names.values():
                number = max(names, default=DEFAULT) + 1
                if number >= MOST_NUMBERS:
                    raise StartError("STREAMS: the journal has no number left for another stream")
                names[number] = name
                connection.execute(
                    "INSERT INTO payloadd.streams (number, name) VALUES (%s, %s)", (number, name)
                )
    return names
