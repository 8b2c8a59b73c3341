"""Leases of lanes: get one, show signs of life, take one whose owner shows none, give it back.

The *epoch* of a lane identifies its owner: a process that gets a lane counts it up, and each
transaction of a former owner fails at its fence (``payloadd.fence``). So no clock decides which
process may write. An owner counts the *beat* up; another process that sees the same beat for the
time of a lease takes the lane. It has to see that on one connection without a pause: after a
failover, for which all owners were cut off, each of them has time to return.

An owner that loses its connection keeps its lanes by its name, which no other process has.

An owner that was stopped within a transaction holds a lock on its lane. Therefore its backend is
ended before its lane is taken. Functions raise psycopg.Error.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from psycopg.types.json import Jsonb

from payloadd.journal.postgres.connection import LEASE
from payloadd.journal.postgres.lane import Lane
from payloadd.journal.postgres.rows import ROW_BYTES
from payloadd.journal.postgres.schema import PARTS, make_lane, rows_table, statement
from payloadd.journal.shared_lanes import LanePromise

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from psycopg import Connection

_OWNED: Final = f"""
    epoch = epoch + 1, beat = beat + 1, owner = %(owner)s, backend = pg_backend_pid(),
    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    expires = clock_timestamp() + interval '{LEASE} s'
"""
_FREE: Final = statement(f"""
    UPDATE payloadd.lanes SET {_OWNED} WHERE lane = (
        SELECT lane FROM payloadd.lanes WHERE owner IS NULL
        AND CASE WHEN %(watermarks)s
            THEN marked IN ('open', 'opening', 'closed') ELSE until = '{{}}' END
        ORDER BY empty, lane LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING lane, epoch
""")
_TAKE: Final = statement(f"""
    UPDATE payloadd.lanes SET {_OWNED}
    WHERE lane = %(lane)s AND epoch = %(epoch)s AND beat = %(beat)s RETURNING epoch
""")
_KEEP: Final = statement(f"""
    UPDATE payloadd.lanes SET {_OWNED}
    WHERE lane = %(lane)s AND owner = %(owner)s RETURNING epoch
""")
_END_BACKEND: Final = """
    SELECT pg_terminate_backend(a.pid, 3000) FROM payloadd.lanes l JOIN pg_stat_activity a
    ON a.pid = l.backend AND a.backend_start = l.backend_start
    WHERE l.lane = %(lane)s AND a.pid <> pg_backend_pid()
"""
_END_BACKEND_AS_SEEN: Final = f"{_END_BACKEND} AND l.epoch = %(epoch)s AND l.beat = %(beat)s"
"""Not the backend of another process that was faster."""
_BEAT: Final = f"""
    UPDATE payloadd.lanes l SET beat = beat + 1, empty = held.empty,
    expires = clock_timestamp() + interval '{LEASE} s'
    FROM unnest(%b::int[], %b::bigint[], %b::bool[]) AS held(lane, epoch, empty)
    WHERE l.lane = held.lane AND l.epoch = held.epoch RETURNING l.lane
"""
_RELEASE: Final = """
    UPDATE payloadd.lanes SET epoch = epoch + 1, owner = NULL, backend = NULL,
    backend_start = NULL, expires = NULL, empty = %s WHERE lane = %s AND epoch = %s
"""
_PROMISE: Final = """
    UPDATE payloadd.lanes SET until = %s, marked = %s WHERE lane = %s AND epoch = %s RETURNING lane
"""
_OTHERS: Final = """
    SELECT lane, epoch, beat, owner IS NULL, empty,
    until <> '{}' AND marked IN ('open', 'opening', 'closing') FROM payloadd.lanes
    WHERE lane <> ALL(%b) ORDER BY lane
"""
_MARKED: Final = "SELECT DISTINCT lane FROM payloadd.dead WHERE retry"


class SeenLane(NamedTuple):
    """A lane of another process, or of none."""

    lane: int
    epoch: int
    beat: int
    free: bool
    """Whether it was given back."""
    empty: bool
    unclosed: bool
    """Whether it has watermarks that are not closed."""


def new_owner() -> str:
    """Return a new name for the owner of lanes: host, process id, and a random part."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(8).hex()}"


def get_free(connection: Connection[Any], owner: str, *, watermarks: bool) -> tuple[int, int]:
    """Get a lane that is free, one with jobs first, or a new one; return its number and epoch.

    ``watermarks``: whether the lane gets watermarks; without them it must not have any.
    """
    while True:
        values = {"owner": owner, "watermarks": watermarks}
        row = connection.execute(_FREE, values).fetchone()
        if row is not None:
            return row[0], row[1]
        make_lane(connection)


def take(connection: Connection[Any], seen: SeenLane, owner: str) -> int | None:
    """Take a lane as it was seen; return its epoch, or None if another process was faster."""
    connection.execute(statement(_END_BACKEND_AS_SEEN), seen._asdict())
    row = connection.execute(_TAKE, {"owner": owner, **seen._asdict()}).fetchone()
    return None if row is None else row[0]


def keep(connection: Connection[Any], lane: int, owner: str) -> int | None:
    """Keep a lane on a new connection; return its epoch, or None if another process has it.

    It is kept for as long as it has the name of this owner: an earlier attempt, whose answer was
    lost, may have counted the epoch up. When this returns, the outcome of every earlier transaction
    of this process is final.
    """
    connection.execute(_END_BACKEND, {"lane": lane})
    row = connection.execute(_KEEP, {"owner": owner, "lane": lane}).fetchone()
    return None if row is None else row[0]


def beat(connection: Connection[Any], lanes: Iterable[Lane]) -> set[int]:
    """Show a sign of life for each lane; return the numbers of those that are still held."""
    held = list(lanes)
    values = (
        [one.number for one in held],
        [one.epoch for one in held],
        [one.is_empty for one in held],
    )
    return {lane for (lane,) in connection.execute(_BEAT, values)}


def release(connection: Connection[Any], lane: Lane) -> None:
    """Give a lane back."""
    connection.execute(_RELEASE, (lane.is_empty, lane.number, lane.epoch))


def promise(connection: Connection[Any], lane: Lane, what: LanePromise) -> bool:
    """Make durable what the watermarks of a lane say; return whether the lane is still held."""
    values = (Jsonb(what.until), what.marked, lane.number, lane.epoch)
    return connection.execute(_PROMISE, values).fetchone() is not None


def others(connection: Connection[Any], held: Sequence[int]) -> list[SeenLane]:
    """Return the lanes that this process does not hold."""
    marked = {lane for (lane,) in connection.execute(_MARKED)}
    return [
        SeenLane(lane, epoch, beat_, free, empty and lane not in marked, unclosed)
        for lane, epoch, beat_, free, empty, unclosed in connection.execute(_OTHERS, (list(held),))
    ]


_SINCE: Final = """
    SELECT r.stream, r.last, r.jobs, r.payloads, r.size
    FROM unnest(%b::int[], %b::bigint[]) AS c(stream, following)
    JOIN {table} r ON r.stream = c.stream AND r.last >= c.following ORDER BY r.stream, r.last
"""
_ENDS: Final = """
    SELECT s.number, (SELECT max(r.last) FROM {table} r WHERE r.stream = s.number)
    FROM payloadd.streams s
"""
_SEALED: Final = """
    SELECT stream, first, last FROM payloadd.batches WHERE lane = %s AND body IS NULL
    ORDER BY stream, first
"""


def load(connection: Connection[Any], number: int, epoch: int, slot: int) -> Lane:
    """Read what a lane holds: its last checkpoint, and the rows that came after it."""
    row = connection.execute(
        "SELECT until, marked FROM payloadd.lanes WHERE lane = %s", (number,)
    ).fetchone()
    lane = Lane(number, epoch, slot)
    if row is not None:
        lane.promise = LanePromise(*row)
    row = connection.execute(
        "SELECT state FROM payloadd.checkpoints WHERE lane = %s", (number,)
    ).fetchone()
    lane.restore(row[0] if row else {})
    _count_new_rows(connection, lane)
    for part in range(PARTS):
        table = rows_table(number, part)
        found = connection.execute(statement(_ENDS.format(table=table))).fetchall()
        ends = {stream: last for stream, last in found if last is not None}
        if part != lane.part and ends:
            lane.ends[part] = ends
        elif part == lane.part:
            size = connection.execute("SELECT pg_total_relation_size(%s)", (table,)).fetchone()
            lane.part_bytes = size[0] if size and ends else 0
    sealed: dict[int, list[tuple[int, int]]] = {}
    for stream, first, last in connection.execute(_SEALED, (number,)):
        sealed.setdefault(stream, []).append((first, last))
    for stream, ranges in sealed.items():
        lane.stream(stream).sealed = ranges
    row = connection.execute(
        "SELECT (SELECT count(*) FROM payloadd.batches WHERE lane = %(lane)s),"
        " (SELECT coalesce(sum(size + jobs * %(beside)s), 0) FROM payloadd.dead"
        " WHERE lane = %(lane)s)",
        {"lane": number, "beside": ROW_BYTES},
    ).fetchone()
    if row is not None:
        lane.sealed, lane.dead_bytes = int(row[0]), int(row[1])
    lane.found = lane.newest(settled=True)
    return lane


def _count_new_rows(connection: Connection[Any], lane: Lane) -> None:
    numbers = [one for (one,) in connection.execute("SELECT number FROM payloadd.streams")]
    following = [lane.streams[one].following if one in lane.streams else 1 for one in numbers]
    for part in range(PARTS):
        query = statement(_SINCE.format(table=rows_table(lane.number, part)))
        for stream, last, jobs, payloads, size in connection.execute(query, (numbers, following)):
            one = lane.stream(stream)
            one.following = max(one.following, last + 1)
            lane.jobs += jobs
            lane.payloads += payloads
            lane.bytes += size + jobs * ROW_BYTES
            lane.dirty = True
