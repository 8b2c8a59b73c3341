"""Empty the tables of a lane, so that they take no more space than the jobs in them need.

A table whose rows are all settled is truncated. Where a few old jobs keep a table from that, such
as batches that the store does not take, their rows are moved into the table that is filled. Where
there are thousands of such batches, each of which leaves a gap between settled numbers, their
payloads are copied into the table of the sealed batches, and their numbers count as settled.

Functions run in the journal's thread and raise psycopg.Error.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg

from payloadd.journal.postgres import lane as lanes
from payloadd.journal.postgres import reading
from payloadd.journal.postgres.schema import rows_table, truncate
from payloadd.journal.postgres.transaction import checkpoint_written, fence, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

    from payloadd.journal.postgres.lane import Lane

_REST: Final = """
    FROM {old} r WHERE EXISTS (
        SELECT FROM unnest(%b::int[], %b::bigint[], %b::bigint[]) AS h(stream, first, last)
        WHERE h.stream = r.stream AND r.last >= h.first AND r.last - r.jobs < h.last)
"""
_SIZE: Final = "SELECT coalesce(sum(r.size), 0)::bigint " + _REST
_MOVE: Final = "INSERT INTO {new} SELECT r.* " + _REST + " ON CONFLICT DO NOTHING"
_WORTH_IT: Final = 4
"""Rows are moved where they are less than one part in so many of a full table."""
_ATTACHED: Final = b"""
    SELECT stream, first FROM payloadd.batches WHERE lane = %b AND body IS NULL
    ORDER BY accepted LIMIT %b
"""
_MOST_DETACHED: Final = 200
"""Sealed batches that are copied in one call: commits wait for it."""


def empty(connection: Connection[Any], lane: Lane, parts: Sequence[int]) -> None:
    """Truncate tables of a lane, whose rows are all settled, and write a checkpoint.

    Does nothing while another session reads one of the tables, such as pg_dump.
    """
    with suppress(psycopg.errors.LockNotAvailable):
        _empty(connection, lane, parts)


def _empty(connection: Connection[Any], lane: Lane, parts: Sequence[int]) -> None:
    with connection.transaction(), connection.cursor() as cursor:
        fence(cursor, [lane])
        write_checkpoint(cursor, lane)
        for part in parts:
            truncate(cursor, rows_table(lane.number, part))
    checkpoint_written(lane)
    for part in parts:
        del lane.ends[part]


def move_rest(connection: Connection[Any], lane: Lane) -> None:
    """Move the rows with unsettled jobs out of the oldest table, if they are few; truncate it.

    Does nothing while another session reads the table.
    """
    with suppress(psycopg.errors.LockNotAvailable):
        _move_rest(connection, lane)


def _move_rest(connection: Connection[Any], lane: Lane) -> None:
    part = lane.next_part
    holes = lane.holes(part)
    columns = [list(column) for column in zip(*holes, strict=True)] or [[], [], []]
    old, new = rows_table(lane.number, part), rows_table(lane.number, lane.part)
    with connection.transaction(), connection.cursor() as cursor:
        fence(cursor, [lane])
        row = cursor.execute(_SIZE.format(old=old).encode(), columns).fetchone()
        size = int(row[0]) if row else 0
        if size * _WORTH_IT > lanes.PART_BYTES:
            return
        cursor.execute(_MOVE.format(old=old, new=new).encode(), columns)
        truncate(cursor, old)
    del lane.ends[part]
    lane.part_bytes += size


def detach(connection: Connection[Any], lane: Lane) -> None:
    """Copy the payloads of the oldest sealed batches into their own rows."""
    found = connection.execute(_ATTACHED, (lane.number, _MOST_DETACHED)).fetchall()
    for stream, first in found:
        if lane.is_ended(lane.base(stream) + first):
            continue
        batch = reading.sealed(connection, lane, lane.base(stream) + first).batch
        if batch is not None:
            lane.detach(batch)
    empty(connection, lane, [])
