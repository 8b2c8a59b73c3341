"""The journal in SQLite, with group commit.

A task that wants something written adds an operation to the group that is being collected, and
waits. One task takes the group, commits it in the journal's thread with one fsync, and answers all
requests in it. Meanwhile the next group collects. So requests share the cost of an fsync, and none
waits for more than two commits, unless requests of more than LARGEST_COMMIT bytes wait.

Settling is not urgent: after a crash the batch is stored again under the same key, which does no
harm. So a settle operation waits for the next commit.

A commit whose sync has failed may be in SQLite's log all the same, and a crash would bring it back
after its requests were refused. So the journal's thread overwrites it at once, before any request
is answered (see ``_write``). If the disk refuses that too, the response says that the outcome is
unknown.
"""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.refusals import journal_full, not_written, too_large
from payloadd.journal.sqlite.commit_queue import MOST_LARGE_ROWS, CommitQueue, TimeSlice, answer
from payloadd.journal.sqlite.damage_report import report_missing
from payloadd.journal.sqlite.disk import DiskState, outcome_unknown
from payloadd.journal.sqlite.disk_probe import lacks_space
from payloadd.journal.sqlite.idempotency import most_keys
from payloadd.journal.sqlite.jobs_in_memory import JobsInMemory
from payloadd.journal.sqlite.maintenance import Maintenance
from payloadd.journal.sqlite.offering import Offering
from payloadd.journal.sqlite.operations import (
    Abandon,
    Append,
    Bury,
    Clear,
    Expire,
    Revive,
    Seal,
    Settle,
    Stage,
)
from payloadd.journal.sqlite.schema import KEY_BYTES, ROW_BYTES
from payloadd.journal.sqlite.sealed_batches import SealedBatches
from payloadd.journal.sqlite.thread import JournalThread
from payloadd.model.streams import DEFAULT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.api import JournalListener, OutcomeCallback, Receipt
    from payloadd.journal.sqlite.commit_queue import CommitGroup
    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.operations import Operation
    from payloadd.model.job import Batch, Job, Part
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Tuning:
    """Times in seconds, and the portions of work between which other tasks run.

    They are no settings: the daemon uses the defaults, and tests use smaller values.
    """

    retry_interval: float = 0.5
    """Time between two attempts while the disk refuses a write or gives errors for a read."""
    last_commit_timeout: float = 10.0
    """Time for the last writes when the daemon ends."""
    maintenance_interval: float = 1.0
    stall_timeout: float = 5.0
    """Time without an answer of the disk after which requests are refused."""
    stall_check_interval: float = 1.0
    page_jobs: int = 200
    """Jobs that the thread reads in one call; commits come between two calls. SQLite gives up
    Python's lock with each row, and beside a busy event loop the thread waits for it each time."""
    page_bytes: int = 2 * 2**20
    """The same in bytes of payloads."""
    offered_jobs: int = 8000
    """Jobs that the pipeline gets in one call; other tasks run between two calls."""
    most_large_rows: int = MOST_LARGE_ROWS


DEFAULT_TUNING: Final = Tuning()


class SqliteJournal:
    """A journal in one SQLite file with its segments; see the protocol ``Journal``."""

    durable = True

    def __init__(
        self,
        database: Database,
        listener: JournalListener,
        health: Health,
        metrics: Metrics,
        max_bytes: int,
        tuning: Tuning = DEFAULT_TUNING,
    ) -> None:
        """Use an open database; ``max_bytes`` is JOURNAL_MAX_BYTES."""
        self._database = database
        self._listener = listener
        self._health = health
        self._disk = DiskState(health)
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._tuning = tuning
        self._thread = JournalThread(
            self._disk, tuning.retry_interval, tuning.stall_timeout, tuning.stall_check_interval
        )
        self._sealed = SealedBatches(database, self._thread, listener)
        # Waiting requests are bounded by max_bytes, the other operations by MAX_WORKERS.
        self._commit_queue = CommitQueue(tuning.most_large_rows)
        add, interval = self._commit_queue.add, tuning.maintenance_interval
        self._maintenance = Maintenance(database, self._thread, self._disk, listener, add, interval)
        self._in_memory = JobsInMemory(database, listener, self._commit_queue)
        self._bytes = 0
        """Bytes of the requests that wait for a commit."""
        self._offering = Offering(listener, tuning.offered_jobs)
        self._unknown = False
        """Whether a failed commit may come back with a crash."""
        database.most_keys = most_keys(max_bytes)
        report_missing(database, health)

    def append(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
        *,
        marks: bytes | None = None,
    ) -> None:
        """Accept a request with the next commits; see ``Journal``.

        Raises RefusedError (JOURNAL_FULL, DISK_ERROR) or TooLargeError.
        """
        size = sum([len(part.lines) + ROW_BYTES for part in parts])
        if key is not None and parts:
            size += KEY_BYTES
        if size > self._max_bytes:
            raise too_large(size)
        if (refusal := self.refusal(size)) is not None:
            raise refusal
        self._commit_queue.append(Append(receipt, parts, key, done, size, stream, marks=marks))
        self._bytes += size

    def refusal(self, size: int = 1024) -> RefusedError | None:
        """Return the error that a request of ``size`` bytes would get now, or None."""
        if self._disk.in_trouble and (refusal := self._disk.refusal()) is not None:
            return refusal
        totals = self._database.totals
        if (used := totals.all_bytes + self._bytes) + size > self._max_bytes:
            return journal_full(
                self._listener, self._max_bytes, used, totals.dead_bytes, totals.payloads
            )
        return None

    async def wait_for_room(self) -> None:
        """Return once few rows of large requests wait for a commit."""
        await self._commit_queue.wait_for_room()

    async def seal(self, batch: Batch) -> None:
        """Make the members and the key of ``batch`` durable; see ``Journal``."""
        group = self._commit_queue.add(Seal(batch))
        self._commit_queue.commit_soon()
        await group.ended.wait()
        while group.successor is not None:
            group = group.successor
            await group.ended.wait()

    def settle(self, batch: Batch) -> None:
        """Remove a stored batch with one of the next commits."""
        self._commit_queue.add(Settle(batch))

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """Make a dead letter of a refused batch with one of the next commits."""
        self._commit_queue.add(Bury(batch, code, reason))

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs behind ``after``; see ``Journal``.

        Waits while nothing can be written: batches that are stored meanwhile stay in memory until
        they can be settled.
        """
        await self._disk.wait_writable()
        try:
            return await self._read_page(after, most_jobs, most_bytes)
        finally:
            # The listener knows the jobs from here on: the caller registers them without a pause.
            self._database.handed.pop("page", None)
            self._database.handed.pop("pages", None)

    async def _read_page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Read in pieces, with commits between them: a whole page would delay every commit."""
        found: list[Job] = []
        size = 0
        while True:
            piece = await self._thread.read(
                self._database.page,
                after,
                min(self._tuning.page_jobs, most_jobs - len(found)),
                min(self._tuning.page_bytes, most_bytes - size),
            )
            size += sum([len(job.lines) for job in piece])
            if found and size > most_bytes:
                break  # a single job that is larger than the rest of the page: the next page has it
            found += piece
            self._database.handed["pages"] = found
            if not piece or len(found) == most_jobs or size >= most_bytes:
                break
            after = piece[-1].seq
        return found

    async def pulse(self) -> None:
        """Return once a commit has ended, whether it succeeded or not."""
        group = self._commit_queue.next_group
        self._commit_queue.commit_soon()
        await group.ended.wait()

    async def sealed(self) -> Batch | None:
        """Return the next sealed batch that is not in memory; see ``Journal``."""
        return await self._sealed.next_batch(self._in_memory.ending)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commit while the body runs, and commit the last operations after the body."""
        if not await self._thread.read(self._database.reserve.create):
            self._disk.write_failed(
                sqlite3.OperationalError("the disk has no space for the reserve")
            )
        self._commit_deletions()
        self._in_memory.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._commit_repeatedly)
                nursery.start_soon(self._maintenance.run)
                nursery.start_soon(self._thread.watch)
                try:
                    yield
                finally:
                    self._thread.finish_within(self._tuning.last_commit_timeout)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # bounded by finish_within
                await self.commit()
                while self._commit_queue.requests_wait:
                    await self.commit()

    async def aclose(self) -> None:
        """Close the file. If the disk refuses that, SQLite recovers the file at the next start."""
        # Also if ``running`` was never entered: the disk may hang in this case, too.
        self._thread.finish_within(self._tuning.last_commit_timeout)
        # If the daemon ends before it listens (an address in use), no operator has seen the report.
        self._database.high_water.acknowledged = self._health.phase != "starting"
        with trio.CancelScope(shield=True), suppress(sqlite3.Error):
            await self._thread.write(self._database.close)
        self._thread.end()

    async def _commit_repeatedly(self) -> None:
        while True:
            if not self._disk.in_trouble:
                await self._commit_queue.wait_until_due()
            if not await self.commit():
                await trio.sleep(self._tuning.retry_interval)

    async def commit(self) -> bool:
        """Commit the next group; return whether the disk took it and has space for more."""
        group = self._commit_queue.take_group()
        start = trio.current_time()
        self._unknown = True
        self._in_memory.begin_commit(group.operations)
        try:
            has_space = await self._thread.write(self._write, group.operations)
        except sqlite3.Error as error:
            await self._refuse(group, error)
            self._in_memory.end_commit()
            return False
        finally:
            self._bytes -= group.bytes
        had_postponed = self._commit_queue.add_postponed()
        self._metrics.keys_evicted.value = self._database.totals.evicted
        self._metrics.commit_seconds.observe(trio.current_time() - start)
        time_slice = TimeSlice()
        await self._publish(group.operations, time_slice)
        self._in_memory.end_commit()
        if not had_postponed:  # else the trouble lasts until those are committed
            self._disk.write_succeeded(has_space=has_space, failure=self._database.files.failure)
        await answer(group.operations, time_slice)
        group.ended.set()
        return has_space

    async def _refuse(self, group: CommitGroup, error: sqlite3.Error) -> None:
        """Refuse all requests after a failed commit; keep the operations of the pipeline."""
        group.successor = self._commit_queue.next_group
        kept = [one for one in group.operations if isinstance(one, Seal | Settle | Bury | Abandon)]
        if self._disk.in_trouble:
            # With the space of the reserve a dead letter failed again: it needs rows for its jobs.
            # Stored batches, which free space, are settled by a commit without it.
            self._commit_queue.postponed += [one for one in kept if isinstance(one, Bury)]
            kept = [one for one in kept if not isinstance(one, Bury)]
        self._commit_queue.next_group.operations[:0] = kept
        # Revive operations are not kept: maintenance adds them again.
        self._maintenance.check_other_processes()
        self._disk.write_failed(error)
        not_begun = self._commit_queue.take_requests()
        if self._offering.staged is not None:
            self._commit_queue.add(Abandon())
        self._bytes -= not_begun.bytes
        time_slice = TimeSlice()
        refusal = outcome_unknown(error) if self._unknown else not_written(error)
        await answer(group.operations, time_slice, refusal)
        await answer(not_begun.operations, time_slice, not_written(error))
        group.ended.set()

    def _write(self, operations: Sequence[Operation]) -> bool:
        """Commit operations in the journal's thread; return whether the disk has space for more."""
        in_trouble = self._disk.in_trouble
        if in_trouble:
            self._unknown = False
            try:
                self._database.probe()
            except sqlite3.Error:
                self._database.reserve.release()
                raise
        self._commit_operations(operations, may_repeat=not in_trouble)
        self._in_memory.committed()
        return not in_trouble or self._restore_reserve()

    def _commit_operations(self, operations: Sequence[Operation], *, may_repeat: bool) -> None:
        """Commit operations; on a disk that is full of what stored jobs have left, once more."""
        try:
            self._database.commit(operations)
        except sqlite3.Error as error:
            self._database.reserve.release()
            if self._database.in_doubt:
                # The probe overwrites the first page of the failed commit in SQLite's log. SQLite
                # reads no page that does not continue the checksum of the page before it.
                with suppress(sqlite3.Error):
                    self._database.probe()
            self._unknown = self._database.in_doubt
            if self._unknown or not (may_repeat and lacks_space(error) and self._restore_reserve()):
                raise
            self._commit_operations(operations, may_repeat=False)

    def _restore_reserve(self) -> bool:
        """Create missing files and the disk reserve again; return whether that succeeded."""
        if not self._database.restore_files():
            return False
        # Stored rows are deleted first. Otherwise the next commit would find the disk full again.
        self._database.free_space()
        # Postponed operations may need the space of the reserve.
        return not self._commit_queue.postponed and self._database.reserve.recreate()

    async def _publish(self, operations: Sequence[Operation], time_slice: TimeSlice) -> None:
        """Report a commit to the pipeline, in the order of acceptance."""
        # Once for all requests: reports for each request were a measurable part of its cost.
        accepted = 0
        jobs: list[Job] = []
        others: dict[int, list[Job]] = {}
        for operation in operations:
            match operation:
                case Append(receipt, earlier=None):
                    accepted += receipt.payloads
                    if operation.stream == DEFAULT:
                        jobs += operation.jobs
                    else:
                        others.setdefault(operation.stream, []).extend(operation.jobs)
                case Stage(append, _, end) if append.earlier is None:
                    append.staged = end
                    self._offering.staged = append
                case Abandon():
                    self._offering.end_staging()
                case Revive() if operation.firsts:
                    self._listener.revived(operation.payloads)
                    if operation.more:
                        self._commit_queue.add(Revive())
                case Expire(more=True):
                    self._commit_queue.add(Expire())
        self._listener.accepted(accepted)
        await self._offering.offer(operations, DEFAULT, jobs, time_slice)
        if others:
            await self._offering.offer_others(operations, others, time_slice)
        self._commit_deletions()

    def _commit_deletions(self) -> None:
        """Add an operation if rows wait for deletion and no other operation causes a commit."""
        if self._database.deletion_waits and not self._commit_queue.next_group.operations:
            self._commit_queue.add(Clear())
