"""The journal's SQLite file: every statement on jobs, and no async.

Synchronous on purpose: one connection, used by one thread at a time, a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), and after it a power cut loses nothing.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from daemon.pipeline import answers, dead_letters
from daemon.pipeline.job import Batch, Job
from daemon.pipeline.layout import Layout
from daemon.pipeline.operations import Append, Bury, Expire, Revive, Seal, Settle
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.schema import ROW_BYTES, connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from daemon.pipeline.job import Part
    from daemon.pipeline.operations import Operation

Row = tuple[int, bytes, int, bytes]

_FORGET_LAYOUTS: Final = """
    DELETE FROM layouts WHERE first <
    (SELECT max(first) FROM layouts WHERE first <=
    (SELECT coalesce((SELECT min(seq) FROM jobs), (SELECT next FROM totals))))
"""
_RANGE: Final = "SELECT seq, id, lines, payloads FROM jobs WHERE seq BETWEEN ? AND ? ORDER BY seq"
_BEYOND: Final = 2**62
"""A ``seq`` that no job reaches."""
_PAGES_WORTH_A_VACUUM: Final = 1024
_VACUUM_STEP: Final = 256


@dataclass(slots=True)
class Totals:
    """The next ``seq``, and what waits in the journal: jobs, payloads, bytes."""

    next: int
    jobs: int
    payloads: int
    bytes: int
    dead_bytes: int = 0
    """What dead letters take; not counted in the others."""

    @property
    def all_bytes(self) -> int:
        """What waits and what is dead: the size that is bounded."""
        return self.bytes + self.dead_bytes

    def change(self, jobs: int, payloads: int, size: int) -> None:
        """Count what came (or went, below zero)."""
        self.jobs += jobs
        self.payloads += payloads
        self.bytes += size + jobs * ROW_BYTES


class Database:
    """One open journal file. Methods raise sqlite3.Error."""

    def __init__(self, path: Path, max_length: int = 0) -> None:
        self.reserve = Reserve(path.parent, max_length)
        # The last run has left it: on a disk that is full SQLite needs room to open a file.
        self.reserve.give_up()
        self._connection = connect(path)
        totals = self._connection.execute("SELECT next, jobs, payloads, bytes FROM totals")
        self.totals = Totals(*totals.fetchone())
        self.count_dead()
        rows = self._connection.execute("SELECT first, last FROM batches ORDER BY first")
        sealed = [(first, last) for first, last in rows]
        self.sealed_firsts = [first for first, _ in sealed]
        """The first ``seq`` of each batch that was sealed before a crash: it is replayed whole."""
        dead = [(one.first, one.last) for one in dead_letters.ranges(self._connection)]
        # Their members do not come up again when the rest of the journal is read.
        self._apart = sorted(sealed + dead)

    def close(self) -> None:
        """Close the file; SQLite folds its log into it. The reserve stays, for the next start."""
        self._connection.close()

    def commit(self, operations: Iterable[Operation]) -> None:
        """Carry out all operations and make them durable together; on an error none."""
        execute = self._connection.execute
        before = replace(self.totals)
        try:
            execute("BEGIN IMMEDIATE")
            self._carry_out(operations)
            if self.totals != before:
                now = (self.totals.next, self.totals.jobs, self.totals.payloads, self.totals.bytes)
                execute("UPDATE totals SET next = ?, jobs = ?, payloads = ?, bytes = ?", now)
            execute("COMMIT")
        except BaseException:
            self.totals = before
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise

    def _carry_out(self, operations: Iterable[Operation]) -> None:
        rows: list[Row] = []
        for operation in operations:
            match operation:
                case Append():
                    self._append(operation, rows)
                case Seal(batch):
                    self._connection.execute(
                        "INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)",
                        (batch.jobs[0].seq, batch.jobs[-1].seq, batch.key, batch.compression),
                    )
                case Settle(batch):
                    self._forget(batch)
                case Bury(batch, code, reason):
                    self._bury(batch, code, reason)
                case Revive():
                    self._revive(operation)
                case Expire():
                    operation.more = answers.expire(self._connection)
        self._connection.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?)", rows)

    def _append(self, append: Append, rows: list[Row]) -> None:
        append.jobs = []
        if append.key is None:
            append.earlier = None
        else:
            append.earlier = answers.answer(self._connection, append.key, append.receipt)
        if append.earlier is not None:
            return
        append.jobs = self._take_in(append.parts, rows)

    def _take_in(self, parts: Sequence[Part], rows: list[Row]) -> list[Job]:
        totals = self.totals
        jobs = []
        for id_, lines, payloads in parts:
            jobs.append(Job(totals.next, id_, lines, payloads))
            rows.append((totals.next, id_.bytes, payloads, lines))
            totals.next += 1
            totals.change(1, payloads, len(lines))
        return jobs

    def _forget(self, batch: Batch) -> None:
        first, last = batch.jobs[0].seq, batch.jobs[-1].seq
        self._connection.execute("DELETE FROM jobs WHERE seq BETWEEN ? AND ?", (first, last))
        if batch.sealed:
            self._connection.execute("DELETE FROM batches WHERE first = ?", (first,))
        self.totals.change(-len(batch.jobs), -batch.payloads, -batch.bytes)

    def _bury(self, batch: Batch, code: str, reason: str) -> None:
        dead_letters.bury(self._connection, batch, code, reason)
        self.totals.change(-len(batch.jobs), -batch.payloads, -batch.bytes)
        self.totals.dead_bytes += batch.bytes + len(batch.jobs) * ROW_BYTES

    def _revive(self, revive: Revive) -> None:
        revived = dead_letters.revive(self._connection)
        for one in revived:
            self.totals.change(one.jobs, one.payloads, one.bytes)
            self.totals.dead_bytes -= one.room
        revive.firsts = [one.first for one in revived]
        revive.payloads = sum(one.payloads for one in revived)
        revive.more = len(revived) == dead_letters.AT_ONCE

    def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs after ``seq`` in order, without those sealed or dead at the start.

        At most ``most_jobs`` and ``most_bytes`` of payloads, but at least one job if there is one.
        """
        jobs: list[Job] = []
        size = 0
        for job in islice(self._unsealed(after), most_jobs):
            size += len(job.lines)
            if jobs and size > most_bytes:
                break
            jobs.append(job)
        return jobs

    def _unsealed(self, after: int) -> Iterator[Job]:
        """Yield the jobs between and behind the ranges that were sealed or dead at the start."""
        for first, last in [*self._apart, (_BEYOND, _BEYOND)]:
            if after < first - 1:
                yield from map(_job, self._connection.execute(_RANGE, (after + 1, first - 1)))
            after = max(after, last)

    def sealed(self, first: int) -> Batch:
        """Return a batch that is sealed, as it was."""
        _, last, key, compression = self._connection.execute(
            "SELECT * FROM batches WHERE first = ?", (first,)
        ).fetchone()
        rows = self._connection.execute(_RANGE, (first, last))
        return Batch(tuple(_job(row) for row in rows), key, compression, sealed=True)

    def count_dead(self) -> None:
        """Count what dead letters take: another process may have dropped some."""
        self.totals.dead_bytes = sum(one.room for one in dead_letters.ranges(self._connection))

    def layouts(self, now: Layout) -> list[tuple[int, Layout]]:
        """Note that ``now`` holds from the next job on; return all, each with its first ``seq``."""
        rows = self._connection.execute("SELECT * FROM layouts ORDER BY first").fetchall()
        known = [(row[0], Layout(row[1], row[2], row[3], alone=bool(row[4]))) for row in rows]
        if known and known[-1][1] == now:
            return known
        entry = (self.totals.next, now)
        self._connection.execute(
            "INSERT OR REPLACE INTO layouts VALUES (?, ?, ?, ?, ?)",
            (self.totals.next, now.template, now.host, now.compression, now.alone),
        )
        # Those that no job is left of are of no use any more.
        self._connection.execute(_FORGET_LAYOUTS)
        return [*(one for one in known if one[0] != self.totals.next), entry]

    def probe(self) -> None:
        """Write something durable, to see whether the disk takes it."""
        self._connection.execute("UPDATE totals SET next = next")

    def foreign_changes(self) -> int:
        """Return a number that is another one once another process has written."""
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def give_back(self) -> bool:
        """Give a step of free pages back to the file system; returns whether there is more."""
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        if free < _PAGES_WORTH_A_VACUUM:
            return False
        # A page a step; `execute` makes one step of what has no columns, a script all of them.
        self._connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_STEP})")
        if free - _VACUUM_STEP < _PAGES_WORTH_A_VACUUM:
            # The last step for now: the file is cut when the log is folded in.
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return True


def _job(row: tuple[int, bytes, bytes, int]) -> Job:
    seq, id_, lines, payloads = row
    return Job(seq, uuid.UUID(bytes=id_), lines, payloads)
