"""Rows that a damaged file has lost, written again from memory.

A job that is in memory is going to be stored, even if its row is lost. Its row is written as it
was: so the job does not count as damaged, the totals count it until it is settled, and a crash
before the upload loses nothing. Functions raise sqlite3.Error, and write in the transaction of the
caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sqlite import job_rows
from payloadd.journal.sqlite.checksum import of_job, of_totals, of_values
from payloadd.journal.sqlite.small_tables import STORED

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container, Iterable, Sequence

    from payloadd.journal.sqlite.job_rows import Range, Row
    from payloadd.journal.sqlite.transaction import Totals
    from payloadd.model.job import Job


def restore_rows(
    connection: sqlite3.Connection, jobs: Iterable[Job], gone: Container[int] = ()
) -> int:
    """Write the row of each job whose row is missing or altered; returns how many.

    ``gone``: names of segments that do not exist any more; rows that refer to them are written too.
    """
    wanted = {job.seq: job for job in jobs}
    sound: set[int] = set()
    for range_ in job_rows.merge([(seq, seq) for seq in wanted]):
        for row in connection.execute(job_rows.IN_RANGE, range_):
            job = wanted.get(row[0])
            if job is not None and _is_row_of(job, row) and row[4] not in gone:
                sound.add(job.seq)
    lost = [job for seq, job in sorted(wanted.items()) if seq not in sound]
    job_rows.delete_each(connection, "jobs", "seq", [job.seq for job in lost])
    job_rows.insert(connection, [_row(job) for job in lost])
    return len(lost)


def _is_row_of(job: Job, row: Row) -> bool:
    """Return whether a row is as it was written for a job, without a read of its segment."""
    _, id_, payloads, lines, segment, _, size, stream, crc = row
    same = id_ == job.id.bytes and payloads == job.payloads and stream == 0
    same_lines = lines == job.lines if segment is None else size == len(job.lines)
    return bool(same and same_lines) and (crc is None or crc == _checksum(job))


def _row(job: Job) -> job_rows.NewRow:
    id_ = job.id.bytes
    return (job.seq, bytearray(id_), job.payloads, bytearray(job.lines), _checksum(job))


def _checksum(job: Job) -> int:
    return of_job(job.seq, job.id.bytes, job.payloads, job.lines)


def restore_totals(connection: sqlite3.Connection, totals: Totals) -> None:
    """Write the totals as of the last commit; the Idempotency-Keys in the file are counted."""
    (keys,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    row = (totals.next, totals.jobs, totals.payloads, totals.bytes, keys, totals.accepted)
    connection.execute("DELETE FROM totals")
    connection.execute(
        "INSERT INTO totals (next, jobs, payloads, bytes, keys, accepted, crc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*row, of_totals(row)),
    )


def restore_stored(connection: sqlite3.Connection, ranges: Sequence[Range]) -> None:
    """Write the ranges whose jobs are stored and whose rows wait for deletion."""
    rows = [*STORED.ends, *((last, first) for first, last in ranges if first <= last)]
    connection.execute("DELETE FROM stored")
    connection.executemany(
        "INSERT INTO stored (last, first, crc) VALUES (?, ?, ?)",
        [(*row, of_values(row)) for row in rows],
    )


def without(gaps: Sequence[Range], jobs: Iterable[Job]) -> list[Range]:
    """Return the gaps without those jobs at their ends that are in ``jobs``: they have rows."""
    present = {job.seq for job in jobs}
    left = []
    for first, last in gaps:
        low, high = first, last
        while low <= high and low in present:
            low += 1
        while low <= high and high in present:
            high -= 1
        if low <= high:
            left.append((low, high))
    return left
