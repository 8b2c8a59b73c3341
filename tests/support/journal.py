"""Shared by the tests of the journal: jobs by number, and a journal whose disk fails on command."""

from __future__ import annotations

import sqlite3
import threading
import uuid
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import trio

from payloadd.journal.api import Receipt
from payloadd.journal.open import journal_figures
from payloadd.journal.sqlite import block_rows
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import DEFAULT_TUNING, SqliteJournal, Tuning
from payloadd.journal.sqlite.operations import Append
from payloadd.model.job import Batch, Job, Part
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from payloadd.errors import RefusedError
    from payloadd.journal.sqlite.operations import Operation
    from payloadd.journal.sqlite.transaction import CommitChanges, Totals

TEST_TIMEOUT: Final = 60.0
"""Seconds after which a test that waits has failed."""
QUICK: Final = Tuning(retry_interval=0.02, maintenance_interval=0.02)
"""A journal that tries again, and is maintained, without delay."""


def id_of(number: int) -> uuid.UUID:
    """Return the UUIDv7 of a number, from the first minute of 2024."""
    return uuid.UUID(int=(1_704_067_200_000 << 80) | (0x7 << 76) | (0b10 << 62) | number)


def id_number(job_: Job) -> int:
    """Return the number of the id of a job; the inverse of ``id_of``."""
    return job_.id.int & (2**62 - 1)


def part(number: int, payloads: int = 1) -> Part:
    """Return a part whose payloads are its number."""
    return Part(id_of(number), b"%d\n" % number * payloads, payloads)


def parts(*numbers: int) -> list[Part]:
    """Return a part for each number."""
    return [part(number) for number in numbers]


def job(seq: int, lines: bytes | None = None, payloads: int = 1) -> Job:
    """Return the job that the part of number ``seq`` becomes."""
    return Job(seq, id_of(seq), b"%d\n" % seq if lines is None else lines, payloads)


def batch(*jobs: Job, sealed: bool = True) -> Batch:
    """Return the object of these jobs."""
    return Batch(jobs, f"k{jobs[0].seq}", "none", sealed)


def append(
    number: int, key: bytes | None = None, count: int = 1, *, like: int | None = None
) -> Append:
    """Return a request of ``count`` jobs, ``number`` and the next.

    ``like``: the number of the request whose payloads it has; None for its own.
    """
    numbers = range(number, number + count)
    parts_ = parts(*numbers)
    if like is not None:
        parts_ = [one._replace(lines=b"%d\n" % seq) for seq, one in enumerate(parts_, like)]
    return Append(Receipt(id_of(number), count), parts_, key)


def content(job_: Job) -> tuple[int, uuid.UUID, bytes, int]:
    """Return the values of a job, to compare it with another."""
    return job_.seq, job_.id, job_.lines, job_.payloads


def contents(jobs: Iterable[Job]) -> list[tuple[int, uuid.UUID, bytes, int]]:
    """Return the values of each job."""
    return [content(one) for one in jobs]


async def until(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds."""
    with trio.fail_after(TEST_TIMEOUT):
        while not condition():  # noqa: ASYNC110 - no event reports the change
            await trio.sleep(0.005)


def disk_full() -> sqlite3.OperationalError:
    """Return the error that SQLite raises when the disk is full."""
    return sqlite3.OperationalError("database or disk is full")


def sealed(database: Database, first: int) -> Batch:
    """Return the sealed batch that begins with ``first``, which must exist."""
    found = database.sealed(first)
    assert found is not None
    return found


def compact_segments(database: Database) -> None:
    """Compact the segments, as a round of maintenance does."""
    database.compaction.begin()
    while database.compaction.step():
        pass


def unpack(database: Database) -> None:
    """Unpack all blocks, so that all jobs have rows."""
    database.blocks.unpack_all(database._connection)


def jobs_in_file(path: Path) -> int:
    """Return how many jobs a file has that is in use, in rows and in blocks.

    Without settled jobs in blocks.
    """
    with closing(sqlite3.connect(path)) as other:
        stored = other.execute("SELECT first, last FROM stored").fetchall()
        (rows,) = other.execute("SELECT count(*) FROM jobs").fetchone()
        found = block_rows.waiting(other, stored)
        return int(rows) + sum(one.last - one.first + 1 for one in found)


class FaultyConnection:
    """A connection that records its statements, and fails those that begin with ``fails``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.statements: list[str] = []
        self.fails: str | None = None

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:  # noqa: ANN401 - any SQL value
        """Run a statement, or fail."""
        self.statements.append(statement)
        if self.fails is not None and statement.startswith(self.fails):
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(statement, *arguments)

    def executemany(self, statement: str, *arguments: Any) -> sqlite3.Cursor:  # noqa: ANN401 - as above
        """Run a statement with many rows, or fail."""
        self.statements.append(statement)
        if self.fails is not None and statement.startswith(self.fails):
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.executemany(statement, *arguments)

    def __enter__(self) -> Self:
        """Commit or roll back after the body, as a connection does."""
        self._connection.__enter__()
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """Commit or roll back."""
        return self._connection.__exit__(type_, error, traceback)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as above
        return getattr(self._connection, name)


class FaultyDatabase(Database):
    """A journal file that records commits, fails on command, and can be stopped in a commit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commits: list[list[Operation]] = []
        """The operations of each commit that succeeded, without empty commits."""
        self.failures = 0
        self.write_error: Callable[[], Exception] | None = None
        self.read_error: Callable[[], Exception] | None = None
        self.page_error: Callable[[], Exception] | None = None
        self._gate = threading.Event()
        self._gate.set()
        self._inside = threading.Event()
        self._reads = threading.Event()
        self._reads.set()

    def commit(self, operations: Sequence[Operation]) -> None:
        """Commit, or fail after the last operation."""
        self._inside.set()
        assert self._gate.wait(TEST_TIMEOUT)
        operations = list(operations)
        super().commit(operations)
        if operations:
            self.commits.append(operations)

    def _write(self, changes: CommitChanges) -> Totals:
        totals = super()._write(changes)
        if self.write_error is not None:
            self.failures += 1
            raise self.write_error()
        return totals

    def probe(self) -> None:
        """Write, or fail."""
        if self.write_error is not None:
            self.failures += 1
            raise self.write_error()
        super().probe()

    def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Read, or fail."""
        self._maybe_fail()
        if self.page_error is not None:
            raise self.page_error()
        return super().page(after, most_jobs, most_bytes)

    def foreign_changes(self) -> int:
        """Read the state of the file, or fail."""
        self._maybe_fail()
        return super().foreign_changes()

    def _maybe_fail(self) -> None:
        self._inside.set()
        assert self._reads.wait(TEST_TIMEOUT)
        if self.read_error is not None:
            raise self.read_error()

    def hold(self) -> None:
        """Stop the next commit until ``release_gate``."""
        self._inside.clear()
        self._gate.clear()

    def hold_reads(self) -> None:
        """Stop the next read, and with it the thread, until ``release_gate``."""
        self._inside.clear()
        self._reads.clear()

    async def held(self) -> None:
        """Return once a commit or a read is stopped."""
        assert await trio.to_thread.run_sync(self._inside.wait, TEST_TIMEOUT)

    def release_gate(self) -> None:
        """Let stopped commits and reads continue."""
        self._gate.set()
        self._reads.set()


@dataclass
class JournalRig:
    """A journal with the parts of the daemon around it."""

    database: FaultyDatabase
    journal: SqliteJournal
    feeder: QueueFeeder
    channel: JobChannel
    accounting: Accounting
    health: Health
    metrics: Metrics
    answered: list[uuid.UUID] = field(default_factory=list)
    """The ids of the accepted requests, in the order of their callbacks."""

    async def accept(
        self, number: int, key: bytes | None = None, count: int = 1, *, like: int | None = None
    ) -> Receipt:
        """Append a request of ``count`` jobs from ``number`` on; return the receipt."""
        wanted = append(number, key, count, like=like)
        outcomes: list[Receipt | RefusedError] = []
        answered = trio.Event()

        def done(outcome: Receipt | RefusedError) -> None:
            outcomes.append(outcome)
            if isinstance(outcome, Receipt):
                self.answered.append(outcome.id)
            answered.set()

        self.journal.append(wanted.receipt, wanted.parts, key, done)
        await answered.wait()
        if isinstance(outcomes[0], Receipt):
            return outcomes[0]
        raise outcomes[0]

    def receive_all(self) -> list[int]:
        """Receive all queued jobs; return their numbers."""
        return [self.channel.receive_nowait().seq for _ in range(self.channel.jobs)]


def make_rig(
    path: Path,
    *,
    max_bytes: int = 10**9,
    max_jobs: int = 1000,
    tuning: Tuning = DEFAULT_TUNING,
) -> JournalRig:
    """Return a journal in the file ``path``."""
    database = FaultyDatabase(path)
    health = Health()
    health.journal_figures = lambda: journal_figures(database)
    metrics = Metrics(health.snapshot)
    accounting = Accounting(metrics)
    channel = JobChannel(max_jobs, 10**6)
    feeder = QueueFeeder(channel, accounting)
    feeder.leave(database.totals.next - 1)
    listener = PipelineListener(channel, feeder, accounting, metrics)
    journal = SqliteJournal(database, listener, health, metrics, max_bytes, tuning)
    return JournalRig(database, journal, feeder, channel, accounting, health, metrics)


@asynccontextmanager
async def open_rig(
    path: Path, *, max_bytes: int = 10**9, tuning: Tuning = DEFAULT_TUNING
) -> AsyncIterator[JournalRig]:
    """Run a journal while the body runs; a test that hangs fails."""
    rig = make_rig(path, max_bytes=max_bytes, tuning=tuning)
    try:
        with trio.fail_after(TEST_TIMEOUT):
            async with rig.journal.running():
                yield rig
                rig.database.release_gate()
    finally:
        rig.database.release_gate()
        with trio.CancelScope(shield=True):
            await rig.journal.aclose()
