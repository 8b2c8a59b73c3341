"""Read jobs back: pages of a stream, sealed batches, and the oldest job.

Functions run in the journal's thread and raise psycopg.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.journal.postgres import rows
from payloadd.journal.postgres.lane import UnreadableRow, number_of
from payloadd.journal.postgres.schema import PARTS, rows_table
from payloadd.model.job import Batch
from payloadd.model.streams import count_of, stream_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from psycopg import Connection

    from payloadd.journal.postgres.lane import Lane, StreamOfLane
    from payloadd.journal.postgres.settled import Range
    from payloadd.model.job import Job

_MOST_ROWS: Final = 256
"""Rows that are read in one call."""
_PART: Final = """
    (SELECT stream, last, jobs, payloads, size, crc, body FROM {table}
    WHERE stream = %(stream)s AND last > %(after)s AND last - jobs < %(until)s
    ORDER BY last LIMIT %(rows)s)
"""
_PAGE: Final = """
    SELECT last, jobs, payloads, size, crc, body FROM (
        SELECT *, sum(size) OVER (ORDER BY last) - size AS before FROM (
            {parts} ORDER BY last LIMIT %(rows)s) a) b
    WHERE before <= %(bytes)s ORDER BY last
"""
_SEALED: Final = b"""
    SELECT c.lane, c.stream, b.first
    FROM unnest(%b::int[], %b::int[], %b::bigint[]) AS c(lane, stream, after)
    CROSS JOIN LATERAL (
        SELECT first FROM payloadd.batches b
        WHERE b.lane = c.lane AND b.stream = c.stream AND b.first > c.after
        ORDER BY first LIMIT %b) b
    ORDER BY c.lane, c.stream, b.first
"""
_BATCH: Final = b"""
    SELECT last, jobs, key, format, encoder, crc, body FROM payloadd.batches
    WHERE lane = %b AND stream = %b AND first = %b
"""
_MOST_SEALED: Final = 100
_OLDEST: Final = """
    SELECT last, jobs, substring(body FROM 1 FOR jobs * {entry}) FROM ({parts}) a
    ORDER BY last LIMIT 1
"""
_FIRST_DETACHED: Final = b"""
    SELECT DISTINCT ON (stream) stream, first, accepted FROM payloadd.batches
    WHERE lane = %b AND body IS NOT NULL ORDER BY stream, first
"""
_OLDEST_SEALED: Final = b"SELECT min(accepted) FROM payloadd.batches WHERE lane = %b"
_TO_THE_END: Final = 2**62


class StreamPage(NamedTuple):
    """Jobs that were read, and damaged rows among them."""

    jobs: list[Job]
    damaged: list[UnreadableRow]


def page(
    connection: Connection[Any], lane: Lane, after: int, most_jobs: int, most_bytes: int
) -> StreamPage:
    """Return the next jobs of a stream behind the ``seq`` ``after``; see ``Journal.page``."""
    number = number_of(after)
    stream = lane.streams.get(number)
    found = StreamPage([], [])
    if stream is None:
        return found
    position = max(count_of(after), stream.settled.low)
    size = 0
    while position < stream.following - 1:
        read = _rows(connection, lane, number, (position, _TO_THE_END), most_bytes - size)
        if not read:
            break
        for last, jobs, payloads, row_size, crc, body in read:
            base = lane.base(number)
            try:
                members = rows.decode(number, last, jobs, crc, body, base)
            except rows.WrongChecksumError:
                found.damaged.append(UnreadableRow(number, last, jobs, payloads, row_size, body))
                members = []
            for job in _wanted(members, stream, base + position, base):
                size += len(job.lines)
                if found.jobs and (len(found.jobs) == most_jobs or size > most_bytes):
                    return found
                found.jobs.append(job)
            position = last
        if len(found.jobs) >= most_jobs or size >= most_bytes:
            break
    return found


def _wanted(jobs: Sequence[Job], stream: StreamOfLane, after: int, base: int) -> Iterator[Job]:
    """Yield the jobs behind ``after`` that are not settled, and not sealed by another run."""
    if not jobs:
        return
    begin, end = jobs[0].seq - base, jobs[-1].seq - base
    out = [
        (first, last)
        for first, last in (*stream.settled.ranges(), *stream.sealed)
        if first <= end and last >= begin
    ]
    for job in jobs:
        number = job.seq - base
        if job.seq > after and not any(first <= number <= last for first, last in out):
            yield job


def _rows(
    connection: Connection[Any], lane: Lane, stream: int, between: Range, most_bytes: int
) -> Sequence[tuple[int, int, int, int, int, bytes]]:
    """Return rows of a stream with jobs behind ``between[0]`` and up to ``between[1]``."""
    values = {
        "stream": stream,
        "after": between[0],
        "until": between[1],
        "rows": _MOST_ROWS,
        "bytes": max(0, most_bytes),
    }
    query = _PAGE.format(parts=_parts(lane))
    return connection.execute(query.encode(), values, binary=True).fetchall()


def _parts(lane: Lane) -> str:
    return " UNION ALL ".join(
        _PART.format(table=rows_table(lane.number, part)) for part in range(PARTS)
    )


def sealed_after(
    connection: Connection[Any], lanes: Iterable[Lane], after: Mapping[int, int]
) -> list[int]:
    """Return the first ``seq`` of the next sealed batch of each stream that has one.

    ``after``: by stream of the pipeline, the ``seq`` up to which batches are left out. Where only
    one stream has sealed batches, several of them are returned.
    """
    held = {lane.number: lane for lane in lanes}
    streams = [(lane, number) for lane in held.values() for number in lane.streams]
    begin = [count_of(after.get(stream_of(lane.base(number)), 0)) for lane, number in streams]
    values = [lane.number for lane, _ in streams], [number for _, number in streams], begin
    found = connection.execute(_SEALED, (*values, _MOST_SEALED)).fetchall()
    firsts = [held[lane].base(stream) + first for lane, stream, first in found]
    if len({stream_of(first) for first in firsts}) > 1:
        next_of = {stream_of(first): first for first in reversed(firsts)}
        return sorted(next_of.values())
    return firsts


class SealedRow(NamedTuple):
    """A sealed batch as it was read."""

    batch: Batch | None
    """None where it is gone, or where no member can be read."""
    encoder: str | None
    damaged: list[UnreadableRow]


def sealed(connection: Connection[Any], lane: Lane, first_seq: int) -> SealedRow:
    """Return the sealed batch with this first ``seq``."""
    stream, first = number_of(first_seq), count_of(first_seq)
    row = connection.execute(_BATCH, (lane.number, stream, first), binary=True).fetchone()
    if row is None:
        return SealedRow(None, None, [])
    last, count, key, format_name, encoder, crc, body = row
    base = lane.base(stream)
    damaged: list[UnreadableRow] = []
    if body is not None:
        try:
            jobs = rows.decode(stream, last, last - first + 1, crc, body, base)
        except rows.WrongChecksumError:
            damaged.append(UnreadableRow(stream, last, last - first + 1, 0, len(body), body))
            jobs = []
    else:
        jobs = []
        position = first - 1
        while position < last:
            read = _rows(connection, lane, stream, (position, last), _TO_THE_END)
            for end, members, payloads, size, row_crc, row_body in read:
                try:
                    decoded = rows.decode(stream, end, members, row_crc, row_body, base)
                except rows.WrongChecksumError:
                    damaged.append(UnreadableRow(stream, end, members, payloads, size, row_body))
                    decoded = []
                jobs += [job for job in decoded if first <= job.seq - base <= last]
                position = end
            if not read:
                break
    if not jobs:
        return SealedRow(None, encoder, damaged)
    whole = len(jobs) == count
    return SealedRow(
        Batch(tuple(jobs), key, format_name, sealed=True, whole=whole), encoder, damaged
    )


def oldest(connection: Connection[Any], lane: Lane) -> int | None:
    """Return when the oldest job of a lane was accepted, in milliseconds; None without jobs."""
    found = [oldest_of(connection, lane, number) for number in lane.streams]
    if lane.sealed:
        row = connection.execute(_OLDEST_SEALED, (lane.number,)).fetchone()
        found += row or ()
    return min([one for one in found if one is not None], default=None)


def oldest_of(connection: Connection[Any], lane: Lane, number: int) -> int | None:
    """Return when the oldest job of a stream of a lane was accepted; sealed ones with a copy not.

    In milliseconds of Unix time; None without jobs.
    """
    job = _first_of(connection, lane, number)
    return None if job is None else job[1]


def _first_of(connection: Connection[Any], lane: Lane, number: int) -> tuple[int, int] | None:
    """Return number and time of the first job of a stream of a lane that is not settled."""
    stream = lane.streams.get(number)
    if stream is None or stream.is_settled:
        return None
    low = stream.settled.low
    query = _OLDEST.format(parts=_parts(lane), entry=rows.ENTRY_BYTES).encode()
    values = {"stream": number, "after": low, "until": _TO_THE_END, "rows": 1}
    row = connection.execute(query, values, binary=True).fetchone()
    if row is None:
        return None
    last, jobs, head = row
    index = max(0, low - (last - jobs))
    return last - jobs + 1 + index, rows.id_in(head, index) >> 80


def oldest_by_stream(connection: Connection[Any], lane: Lane) -> dict[int, tuple[int, int]]:
    """Return the lowest ``seq`` of each stream that is neither stored nor dead, and its time.

    See ``JournalListener.oldest_accepted``.
    """
    found = {}
    for number, stream in lane.streams.items():
        if stream.is_settled:
            continue
        base, first = lane.base(number), stream.settled.low + 1
        job = _first_of(connection, lane, number)
        if job is None or job[0] != first:
            job = (first, 0)  # its row is lost: it is not stored, and its time is not known
        found[stream_of(base)] = (base + job[0], job[1])
    for number, first, accepted in connection.execute(_FIRST_DETACHED, (lane.number,)):
        base = lane.base(number)
        job = (base + first, accepted)
        found[stream_of(base)] = min(job, found.get(stream_of(base), job))
    return found


def count(connection: Connection[Any], lane: Lane, number: int) -> tuple[int, int, int]:
    """Return the jobs of a stream of a lane that are not settled, their payloads and bytes."""
    stream = lane.streams.get(number)
    jobs = payloads = size = 0
    detached = connection.execute(_COUNT_DETACHED, (lane.number, number)).fetchone()
    if detached is not None:
        jobs, payloads, size = (int(one) for one in detached)
    position = 0 if stream is None else stream.settled.low
    while stream is not None and position < stream.following - 1:
        values = {"stream": number, "after": position, "until": _TO_THE_END, "rows": _MOST_ROWS}
        query = _COUNT.format(parts=_parts(lane)).encode()
        read = connection.execute(query, values, binary=True).fetchall()
        for last, members, row_payloads, row_size in read:
            first = last - members + 1
            holes = stream.settled.holes(last)
            part = sum(max(0, min(end, last) - max(begin, first) + 1) for begin, end in holes)
            jobs += part
            payloads += row_payloads * part // members
            size += row_size * part // members + part * rows.ROW_BYTES
            position = last
        if not read:
            break
    return jobs, payloads, size


_COUNT: Final = """
    SELECT last, jobs, payloads, size FROM ({parts} ORDER BY last LIMIT %(rows)s) a ORDER BY last
"""
_COUNT_DETACHED: Final = b"""
    SELECT coalesce(sum(jobs), 0), coalesce(sum(payloads), 0), coalesce(sum(size), 0)
    FROM payloadd.batches WHERE lane = %b AND stream = %b AND body IS NOT NULL
"""
