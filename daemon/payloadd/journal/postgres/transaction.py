"""The transaction of a commit: new rows, keys and seals, and checkpoints of lanes.

All statements go to the server together, behind a fence that fails if another process has taken a
lane. Without keys the transaction is that of the pipeline itself, which its end commits (PostgreSQL
documentation, 34.5 "Pipeline Mode"). With keys there is a second round trip in between: which jobs
there are depends on what keys are known.

Functions run in the journal's thread and raise psycopg.Error.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from psycopg.types.json import Jsonb

from payloadd.journal.postgres import rows
from payloadd.journal.postgres.lane import range_of, slot_of
from payloadd.journal.postgres.schema import rows_table, truncate
from payloadd.model.formats import FORMATS
from payloadd.model.job import IdSource, Job, accepted_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import Connection, Cursor

    from payloadd.journal.postgres.keys import SharedKeys
    from payloadd.journal.postgres.lane import BuriedBatch, Lane, UnreadableRow
    from payloadd.journal.postgres.operations import PendingRequest
    from payloadd.journal.postgres.rows import NewRow
    from payloadd.model.job import Batch

DAMAGED: Final = "DAMAGED"
"""The code of dead letters that damage has made."""

_FENCE: Final = b"SELECT payloadd.fence(%b::int[], %b::bigint[])"
_INSERT: Final = """
    INSERT INTO {table} (stream, last, jobs, payloads, size, crc, body)
    VALUES (%b, %b, %b, %b, %b, %b, %b)
"""
_INSERT_ALONE: Final = """
    WITH held AS MATERIALIZED (SELECT payloadd.fence(%b::int, %b::bigint) AS ok)
    INSERT INTO {table} (stream, last, jobs, payloads, size, crc, body)
    SELECT %b::int, %b::bigint, %b::int, %b::bigint, %b::bigint, %b::bigint, %b::bytea
    FROM held WHERE ok
"""
"""Fence and row in one statement, for the commit that has nothing else: the usual one."""
_SEAL: Final = b"""
    INSERT INTO payloadd.batches
    (lane, stream, first, last, jobs, payloads, size, accepted, key, format, encoder)
    VALUES (%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
    ON CONFLICT (lane, stream, first) DO UPDATE SET last = excluded.last, jobs = excluded.jobs,
    payloads = excluded.payloads, size = excluded.size, key = excluded.key,
    format = excluded.format, encoder = excluded.encoder
"""
_STATE: Final = b"UPDATE payloadd.checkpoints SET state = %b WHERE lane = %b"
_END: Final = b"""
    DELETE FROM payloadd.batches b USING unnest(%b::int[], %b::bigint[]) AS ended(stream, first)
    WHERE b.lane = %b AND b.stream = ended.stream AND b.first = ended.first
"""
_BURY: Final = b"""
    INSERT INTO payloadd.dead
    (lane, stream, first, last, jobs, payloads, size, key, format, id, at, code, reason, crc, body)
    VALUES (%b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b, %b)
    ON CONFLICT (lane, stream, first) DO NOTHING
"""
_DETACH: Final = b"""
    UPDATE payloadd.batches SET crc = %b, body = %b WHERE lane = %b AND stream = %b AND first = %b
"""


class Commit:
    """The requests and seals of one commit, and what they wrote."""

    def __init__(self, appends: Sequence[PendingRequest], seals: Sequence[Batch]) -> None:
        self.appends = appends
        self.seals = seals
        self.rows: list[NewRow] = []
        """The rows of the last attempt."""
        self.table = ""
        """The table into which these were written."""
        self.own: Lane | None = None
        """The lane into which these were written."""
        self._part = 0
        self._due: Sequence[Lane] = ()

    def write(
        self,
        connection: Connection[Any],
        own: Lane,
        lanes: Mapping[int, Lane],
        keys: SharedKeys,
        due: Sequence[Lane],
    ) -> None:
        """Write all of it, and the checkpoints of the lanes ``due``, in one transaction.

        Requests go into the lane ``own``; ``lanes`` are the held lanes by slot. Once this returns
        all of it is committed. If it raises, nothing is, or the outcome is not known.
        """
        self.rows = []
        self.own, self._part, self._due = own, own.part, due
        self.table = rows_table(own.number, own.part)
        seals = [(lanes[slot_of(batch.jobs[0].seq)], batch) for batch in self.seals]
        fenced = {lane.number: lane for lane in [*([own] if self.appends else ()), *due]}
        fenced |= {lane.number: lane for lane, _ in seals}
        keyed = [one for one in self.appends if one.key is not None]
        if not (keyed or seals or due):
            self._number(own)
            if len(self.rows) == 1:
                query = _INSERT_ALONE.format(table=self.table).encode()
                connection.execute(query, (own.number, own.epoch, *self.rows[0]))
                return
            self.rows = []
        periods = keys.prepare(connection) if keyed else ()
        with connection.pipeline(), connection.cursor() as cursor:
            if keyed:
                cursor.execute(b"BEGIN")
            fence(cursor, [*fenced.values()])
            if keyed:
                keys.insert(cursor, keyed, periods)
            if self.appends:
                self._number(own)
                insert = _INSERT.format(table=self.table).encode()
                for row in self.rows:
                    cursor.execute(insert, row)
            for lane, batch in seals:
                cursor.execute(_SEAL, _seal_row(lane, batch))
            for lane in due:
                write_checkpoint(cursor, lane)
            if keyed:
                cursor.execute(b"COMMIT")

    def _number(self, own: Lane) -> None:
        """Make jobs of the requests, and rows of the jobs; those of a stream are neighbours."""
        of_stream: dict[int, list[Job]] = {}
        following: dict[int, int] = {}
        for append in self.appends:
            if append.earlier is not None:
                continue
            number = append.stream
            jobs = of_stream.get(number)
            if jobs is None:
                jobs = of_stream[number] = []
                following[number] = own.base(number) + own.stream(number).following
            seq = following[number] + len(jobs)
            append.jobs = [Job(one, *part) for one, part in enumerate(append.parts, seq)]
            jobs += append.jobs
        for number, jobs in of_stream.items():
            first = following[number] - own.base(number)
            self.rows += rows.new_rows(number, first, jobs)

    def applied(self, lanes: Mapping[int, Lane]) -> None:
        """Note in the held lanes that the last attempt is committed."""
        for lane in self._due:
            checkpoint_written(lane)
        if self.own is not None:
            for row in self.rows:
                self.own.append(row, self._part)
        for batch in self.seals:
            if (sealed := lanes.get(slot_of(batch.jobs[0].seq))) is not None:
                sealed.sealed += 1

    def is_there(self, connection: Connection[Any]) -> bool:
        """Return whether the rows of the last attempt are in the journal.

        Valid only once its outcome is final: see ``leases.keep``.
        """
        if not self.rows:
            return False
        query = f"SELECT FROM {self.table} WHERE stream = %b AND last = %b AND crc = %b"
        one = self.rows[0]
        values = (one.stream, one.last, one.crc)
        return connection.execute(query.encode(), values).fetchone() is not None


def write_probe(cursor: Cursor[Any], table: str, body: bytes) -> None:
    """Write a row of no stream into a table that is empty, for a transaction that is rolled back.

    TRUNCATE makes a new file first, which the end of the transaction removes: nothing stays.
    """
    truncate(cursor, table)
    insert = (
        f"INSERT INTO {table} (stream, last, jobs, payloads, size, crc, body)"
        " VALUES (-1, 0, 0, 0, 0, 0, %b)"
    )
    cursor.execute(insert.encode(), (body,))


def fence(cursor: Cursor[Any], lanes: Sequence[Lane]) -> None:
    """Let the transaction fail unless this process holds the lanes."""
    held = sorted((lane.number, lane.epoch) for lane in lanes)
    cursor.execute(_FENCE, ([one for one, _ in held], [one for _, one in held]))


def write_checkpoint(cursor: Cursor[Any], lane: Lane) -> None:
    """Write which numbers of a lane are settled, and what follows from that."""
    cursor.execute(_STATE, (Jsonb(lane.checkpoint()), lane.number))
    for buried in lane.buried:
        cursor.execute(_BURY, _dead_row(lane, buried))
    for row in lane.damaged:
        cursor.execute(_BURY, _damaged_row(lane, row))
    for batch in lane.detached:
        stream, first, last = range_of(batch.jobs)
        crc, body = encode_batch(stream, last, batch)
        cursor.execute(_DETACH, (crc, body, lane.number, stream, first))
    if lane.ended:
        streams, firsts = zip(*lane.ended, strict=True)
        cursor.execute(_END, (list(streams), list(firsts), lane.number))


def checkpoint_written(lane: Lane) -> None:
    """Note that ``write_checkpoint`` is committed."""
    lane.dirty = False
    lane.ended = {}
    lane.buried, lane.damaged, lane.detached = [], [], []


def _seal_row(lane: Lane, batch: Batch) -> tuple[object, ...]:
    stream, first, last = range_of(batch.jobs)
    return (
        *(lane.number, stream, first, last, len(batch.jobs), batch.payloads, batch.bytes),
        *(accepted_ms(batch), batch.key, batch.format_name),
        FORMATS[batch.format_name].encoder,
    )


def accepted_ms(batch: Batch) -> int:
    """Return when the first job of a batch was accepted, in milliseconds of Unix time."""
    return round(accepted_at(batch.jobs[0].id) * 1000)


def _dead_row(lane: Lane, buried: BuriedBatch) -> tuple[object, ...]:
    batch = buried.batch
    stream, first, last = range_of(batch.jobs)
    crc, body = encode_batch(stream, last, batch)
    return (
        *(lane.number, stream, first, last, len(batch.jobs), batch.payloads, batch.bytes),
        *(batch.key, batch.format_name, batch.id, buried.at, buried.code, buried.reason),
        *(crc, body),
    )


def encode_batch(stream: int, last: int, batch: Batch) -> tuple[int, bytes]:
    """Return checksum and body with all jobs of a batch; missing ones leave empty entries."""
    jobs: list[Job] = []
    for job in batch.jobs:
        while jobs and jobs[-1].seq + 1 < job.seq:
            jobs.append(rows.missing(jobs[-1].seq + 1))
        jobs.append(job)
    return rows.encode(stream, last, jobs)


def _damaged_row(lane: Lane, row: UnreadableRow) -> tuple[object, ...]:
    """Return the dead letter of a row that cannot be read; it keeps the bytes that are there."""
    (id_,) = IdSource().new_ids(1)
    first = row.last - row.jobs + 1
    crc = rows.checksum(row.stream, row.last, row.jobs, row.body)
    return (
        *(lane.number, row.stream, first, row.last, row.jobs, row.payloads, row.size),
        *("", "", id_, int(time.time()), DAMAGED, "the row does not match its checksum"),
        *(crc, row.body),
    )
