"""Dead letters of the held lanes: those that an operator has marked, and the bytes of all.

Functions run in the journal's thread and raise psycopg.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from payloadd.journal.postgres.lane import RevivedBatch
from payloadd.journal.postgres.rows import ROW_BYTES
from payloadd.journal.postgres.transaction import checkpoint_written, fence, write_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg import Connection

    from payloadd.journal.postgres.lane import Lane

_ANY_MARKED: Final = "SELECT FROM payloadd.dead WHERE retry AND lane = ANY(%b) LIMIT 1"
_REVIVE: Final = """
    WITH revived AS (
        DELETE FROM payloadd.dead d USING (
            SELECT lane, stream, first FROM payloadd.dead WHERE retry AND lane = ANY(%b)
            ORDER BY lane, stream, first LIMIT 100) m
        WHERE d.lane = m.lane AND d.stream = m.stream AND d.first = m.first RETURNING d.*)
    INSERT INTO payloadd.batches
    (lane, stream, first, last, jobs, payloads, size, accepted, key, format, crc, body)
    SELECT lane, stream, first, last, jobs, payloads, size,
    ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint, key, format, crc, body
    FROM revived RETURNING lane, stream, first, jobs, payloads, size
"""
_IS_SEALED: Final = "SELECT FROM payloadd.batches WHERE lane = %b AND stream = %b AND first = %b"
_BYTES: Final = f"SELECT lane, sum(size + jobs * {ROW_BYTES}) FROM payloadd.dead GROUP BY lane"


def revive(connection: Connection[Any], lanes: Sequence[Lane]) -> int:
    """Turn dead letters of lanes that are marked into sealed batches, 100 at most.

    Returns their payloads.
    """
    held = {lane.number: lane for lane in lanes}
    if connection.execute(_ANY_MARKED, (list(held),)).fetchone() is None:
        return 0
    revived: list[tuple[Lane, RevivedBatch]] = []
    try:
        with connection.transaction(), connection.cursor() as cursor:
            fence(cursor, lanes)
            for number, *values in cursor.execute(_REVIVE, (list(held),)).fetchall():
                lane, batch = held[number], RevivedBatch(*values)
                revived.append((lane, batch))
                _count(lane, batch)
            for lane in {one for one, _ in revived}:
                write_checkpoint(cursor, lane)
    except BaseException:
        for lane, batch in revived:
            lane.revive(-batch.jobs, -batch.payloads, -batch.size)
            lane.reviving.append(batch)
        raise
    for lane in {one for one, _ in revived}:
        checkpoint_written(lane)
    return sum([batch.payloads for _, batch in revived])


def find_revived(connection: Connection[Any], lanes: Sequence[Lane]) -> int:
    """Count dead letters whose revival turns out to be committed; return their payloads.

    Valid only once the outcome of the transaction is final: see ``leases.keep``.
    """
    found: list[tuple[Lane, RevivedBatch]] = []
    for lane in lanes:
        for batch in lane.reviving:
            values = (lane.number, batch.stream, batch.first)
            if connection.execute(_IS_SEALED, values).fetchone() is not None:
                found.append((lane, batch))
    # After the last statement: an error repeats all of it.
    for lane in lanes:
        lane.reviving = []
    for lane, batch in found:
        _count(lane, batch)
    return sum([batch.payloads for _, batch in found])


def _count(lane: Lane, batch: RevivedBatch) -> None:
    lane.stream(batch.stream)
    lane.revive(batch.jobs, batch.payloads, batch.size)


def count(connection: Connection[Any], lanes: Sequence[Lane]) -> None:
    """Count the bytes of the dead letters of lanes."""
    sizes = dict(connection.execute(_BYTES).fetchall())
    for lane in lanes:
        if not lane.buried:
            lane.dead_bytes = int(sizes.get(lane.number, 0))
