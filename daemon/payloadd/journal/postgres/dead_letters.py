"""Dead letters of the held lanes: those that an operator has marked, and the bytes of all.

Functions run in the journal's thread and raise psycopg.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

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
    FROM revived RETURNING lane, stream, jobs, payloads, size
"""
_BYTES: Final = f"SELECT lane, sum(size + jobs * {ROW_BYTES}) FROM payloadd.dead GROUP BY lane"


def revive(connection: Connection[Any], lanes: Sequence[Lane]) -> int:
    """Turn dead letters of lanes that are marked into sealed batches, 100 at most.

    Returns their payloads.
    """
    held = {lane.number: lane for lane in lanes}
    if connection.execute(_ANY_MARKED, (list(held),)).fetchone() is None:
        return 0
    revived: list[tuple[Lane, int, int, int]] = []
    try:
        with connection.transaction(), connection.cursor() as cursor:
            fence(cursor, lanes)
            for number, stream, *counts in cursor.execute(_REVIVE, (list(held),)).fetchall():
                lane = held[number]
                lane.stream(stream)
                revived.append((lane, *counts))
                lane.revive(*counts)
            for lane in {one[0] for one in revived}:
                write_checkpoint(cursor, lane)
    except BaseException:
        for lane, jobs, payloads, size in revived:
            lane.revive(-jobs, -payloads, -size)
        raise
    for lane in {one[0] for one in revived}:
        checkpoint_written(lane)
    return sum([payloads for _, _, payloads, _ in revived])


def count(connection: Connection[Any], lanes: Sequence[Lane]) -> None:
    """Count the bytes of the dead letters of lanes."""
    sizes = dict(connection.execute(_BYTES).fetchall())
    for lane in lanes:
        if not lane.buried:
            lane.dead_bytes = int(sizes.get(lane.number, 0))
