"""The journal's SQLite file: every statement on jobs, and no async.

Synchronous on purpose: one connection, used by one thread at a time, a whole group of
operations in one transaction. In WAL mode with ``synchronous=FULL`` a commit is one fsync
(https://www.sqlite.org/wal.html), and after it a power cut loses nothing.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final

from daemon.pipeline.job import Batch, Job, Part
from daemon.pipeline.layout import Layout
from daemon.pipeline.operations import Append, Bury, Expire, Receipt, Revive, Seal, Settle
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.schema import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from daemon.pipeline.operations import Operation

KEEP_ANSWERS: Final = 24 * 3600
"""Seconds for which an Idempotency-Key is known."""
ROW_BYTES: Final = 64
"""What a row takes beside its payloads, about: a journal of tiny payloads is bounded too."""

Row = tuple[int, bytes, int, bytes]

_EXPIRE: Final = """
    DELETE FROM answers WHERE key IN
    (SELECT key FROM answers WHERE expires <= ? ORDER BY expires LIMIT 5000)
"""
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

    def change(self, jobs: int, payloads: int, size: int) -> None:
        """Count what came (or went, below zero)."""
        self.jobs += jobs
        self.payloads += payloads
        self.bytes += size + jobs * ROW_BYTES


class Database:
    """One open journal file. Methods raise sqlite3.Error."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self.reserve = Reserve(path.parent)
        totals = self._connection.execute("SELECT next, jobs, payloads, bytes FROM totals")
        self.totals = Totals(*totals.fetchone())
        # Batches that were sealed before a crash: they are replayed as they are, so their
        # members do not come up again when the rest of the journal is read.
        self._sealed = list(self._connection.execute("SELECT * FROM batches ORDER BY first"))

    def close(self) -> None:
        """Close the file; SQLite folds its log into it."""
        self.reserve.give_up()
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
                    self._revive(operation, rows)
                case Expire():
                    self._connection.execute(_EXPIRE, (int(time.time()),))
        self._connection.executemany("INSERT INTO jobs VALUES (?, ?, ?, ?)", rows)

    def _append(self, append: Append, rows: list[Row]) -> None:
        append.jobs = []
        append.earlier = None if append.key is None else self._answer(append.key, append.receipt)
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

    def _answer(self, key: bytes, receipt: Receipt) -> Receipt | None:
        """Return what ``key`` was answered with before, or note that it is now."""
        now = int(time.time())
        row = self._connection.execute(
            "SELECT id, payloads FROM answers WHERE key = ? AND expires > ?", (key, now)
        ).fetchone()
        if row is not None:
            return Receipt(uuid.UUID(bytes=row[0]), row[1])
        self._connection.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
            (key, receipt.id.bytes, receipt.payloads, now + KEEP_ANSWERS),
        )
        return None

    def _forget(self, batch: Batch) -> None:
        first, last = batch.jobs[0].seq, batch.jobs[-1].seq
        self._connection.execute("DELETE FROM jobs WHERE seq BETWEEN ? AND ?", (first, last))
        if batch.sealed:
            self._connection.execute("DELETE FROM batches WHERE first = ?", (first,))
        size = sum(len(job.lines) for job in batch.jobs)
        self.totals.change(-len(batch.jobs), -batch.payloads, -size)

    def _bury(self, batch: Batch, code: str, reason: str) -> None:
        self._forget(batch)
        self._connection.execute(
            "INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
            (str(batch.id), int(time.time()), code, reason, batch.key, batch.payloads, batch.lines),
        )

    def _revive(self, revive: Revive, rows: list[Row]) -> None:
        """Take in one dead letter that is marked: it may be as large as an object."""
        row = self._connection.execute(
            "SELECT id, lines, payloads FROM dead WHERE retry ORDER BY id LIMIT 1"
        ).fetchone()
        revive.jobs = []
        if row is not None:
            self._connection.execute("DELETE FROM dead WHERE id = ?", (row[0],))
            revive.jobs = self._take_in([Part(uuid.UUID(row[0]), row[1], row[2])], rows)

    def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs after ``seq`` in order, without those that are sealed.

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
        """Yield the jobs between and behind the ranges that were sealed before the start."""
        for first, last in [*((row[0], row[1]) for row in self._sealed), (_BEYOND, _BEYOND)]:
            if after < first:
                yield from map(_job, self._connection.execute(_RANGE, (after + 1, first - 1)))
            after = max(after, last)

    @property
    def sealed_firsts(self) -> list[int]:
        """The first ``seq`` of each batch that was sealed before the start."""
        return [row[0] for row in self._sealed]

    def sealed(self, first: int) -> Batch:
        """Return a batch that was sealed before the start, as it was."""
        _, last, key, compression = next(row for row in self._sealed if row[0] == first)
        rows = self._connection.execute(_RANGE, (first, last))
        return Batch(tuple(_job(row) for row in rows), key, compression, sealed=True)

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
        # The statement frees a page a row: it has to be read to its end.
        self._connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_STEP})").fetchall()
        return True


def _job(row: tuple[int, bytes, bytes, int]) -> Job:
    seq, id_, lines, payloads = row
    return Job(seq, uuid.UUID(bytes=id_), lines, payloads)
