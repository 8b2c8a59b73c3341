"""The journal in SQLite, with group commit.

Whoever wants something written puts an operation into the group that is collecting and
waits; one task takes the whole group, commits it in a thread with one fsync, and answers all
who waited for it. Meanwhile the next group collects. So requests share the cost of an fsync,
and nobody waits for more than two, unless more than LARGEST_COMMIT has come.
Settling is not urgent (a row that outlives a crash is replayed under the same key): it rides
along with the next commit.

A commit whose sync fails may be in SQLite's log all the same, and a crash would bring it back after
its requests were refused. So the journal's thread writes over it at once, before any request is
answered (see ``_write``). Where the disk refuses that too, the answer says that the outcome is
unknown.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import RefusedError, TooLargeError
from payloadd.journal.operations import (
    Abandon,
    Append,
    Bury,
    Clear,
    Expire,
    Receipt,
    Revive,
    Seal,
    Settle,
    Stage,
)
from payloadd.journal.sqlite.commit_queue import CommitQueue, TimeSlice, answer
from payloadd.journal.sqlite.disk import Disk, disk_error, outcome_unknown
from payloadd.journal.sqlite.idempotency import most_keys
from payloadd.journal.sqlite.identity import FOREIGN
from payloadd.journal.sqlite.jobs_in_memory import JobsInMemory
from payloadd.journal.sqlite.maintenance import Maintenance
from payloadd.journal.sqlite.schema import KEY_BYTES, ROW_BYTES
from payloadd.journal.sqlite.thread import JournalThread
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from payloadd.journal.api import JournalAccounts, JournalListener
    from payloadd.journal.operations import Done, Operation
    from payloadd.journal.sqlite.commit_queue import CommitGroup
    from payloadd.journal.sqlite.database import Database
    from payloadd.model.job import Batch, Job, Part
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics


log = get_logger(__name__)

_AFTER_TROUBLE: Final = 0.5
"""Seconds between two attempts while the disk refuses writes."""
_LAST_COMMIT: Final = 10.0
_JOBS_AT_ONCE: Final = 1000
"""Jobs that are read back in one call of the thread: 5 ms."""
_BYTES_AT_ONCE: Final = 2 * 2**20
_OFFERED_AT_ONCE: Final = 8000
"""Jobs that are shown to the pipeline in one turn of the event loop: 2 ms."""


class SqliteJournal:
    """A journal in one SQLite file."""

    def __init__(
        self,
        database: Database,
        feeder: JournalListener,
        accounting: JournalAccounts,
        health: Health,
        metrics: Metrics,
        max_bytes: int,
    ) -> None:
        self._database = database
        self._feeder = feeder
        self._accounting = accounting
        self._health = health
        self._disk = Disk(health)
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._thread = JournalThread(self._disk)
        self._sealed = deque(database.sealed_firsts)
        # Requests are bounded by max_bytes, and what is not a request by MAX_WORKERS.
        self._commit_queue = CommitQueue()
        self._maintenance = Maintenance(
            database, self._thread, self._disk, accounting, self._commit_queue.add
        )
        self._in_memory = JobsInMemory(database, accounting, self._commit_queue)
        self._bytes = 0
        self._staged: Append | None = None
        """The request of which parts are written and others not yet."""
        self._newest_behind = 0
        """The last job that was committed behind the staged request, and waits for that."""
        self._unknown = False
        """Whether a commit that failed may come back with a crash."""
        database.most_keys = most_keys(max_bytes)
        metrics.idempotency_keys.set_function(lambda: database.totals.keys)
        _tell_damage(database, health, metrics)

    def append(
        self, receipt: Receipt, parts: Sequence[Part], key: bytes | None, done: Done
    ) -> None:
        """Take in a request; see Journal."""
        size = sum([len(part.lines) + ROW_BYTES for part in parts])
        if key is not None and parts:
            size += KEY_BYTES
        if size > self._max_bytes:
            raise TooLargeError(f"the request takes {size} bytes, more than JOURNAL_MAX_BYTES")
        if (refusal := self.refusal(size)) is not None:
            raise refusal
        self._commit_queue.append(Append(receipt, parts, key, done, size))
        self._bytes += size

    def refusal(self, size: int = 1024) -> RefusedError | None:
        """Return why a request of ``size`` bytes would be refused now, or None."""
        if self._disk.in_trouble and (refusal := self._disk.refusal()) is not None:
            return refusal
        totals = self._database.totals
        if totals.all_bytes + self._bytes + size > self._max_bytes:
            # A tenth of it: enough room for the client not to be turned away again at once.
            wait = self._accounting.rate.seconds_for(totals.payloads // 10)
            dead = f", {totals.dead_bytes} bytes of it dead letters" if totals.dead_bytes else ""
            return RefusedError("JOURNAL_FULL", f"the journal holds JOURNAL_MAX_BYTES{dead}", wait)
        return None

    async def wait_for_room(self) -> None:
        """Return once few large requests wait for a commit; see Journal."""
        await self._commit_queue.wait_for_room()

    async def seal(self, batch: Batch) -> None:
        """Make the members and the key of ``batch`` durable; see Journal."""
        group = self._commit_queue.add(Seal(batch))
        self._commit_queue.hurry()
        await group.done.wait()
        while group.successor is not None:
            group = group.successor
            await group.done.wait()

    def settle(self, batch: Batch) -> None:
        """Forget a stored batch with one of the next commits."""
        self._commit_queue.add(Settle(batch))

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """Move a refused batch to the dead letters with one of the next commits."""
        self._commit_queue.add(Bury(batch, code, reason))

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next unsealed jobs behind ``after``; see Journal.

        Not while nothing can be written: what is stored meanwhile waits in memory to be settled.
        """
        await self._disk.wait_writable()
        try:
            return await self._read_pages(after, most_jobs, most_bytes)
        finally:
            # From here on they are where the caller has them: the window enters them at once.
            self._database.handed.pop("page", None)
            self._database.handed.pop("pages", None)

    async def _read_pages(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Read in pieces, with commits between them: 5,000 rows take 0.1 s."""
        found: list[Job] = []
        size = 0
        while True:
            some = await self._thread.read(
                self._database.page,
                after,
                min(_JOBS_AT_ONCE, most_jobs - len(found)),
                min(_BYTES_AT_ONCE, most_bytes - size),
            )
            size += sum([len(job.lines) for job in some])
            if found and size > most_bytes:
                break  # one job that is larger than what was left: it comes with the next page
            found += some
            self._database.handed["pages"] = found
            if not some or len(found) == most_jobs or size >= most_bytes:
                break
            after = some[-1].seq
        return found

    async def pulse(self) -> None:
        """Return once a commit has come round, whether the disk took it or not; see Journal."""
        group = self._commit_queue.next
        self._commit_queue.hurry()
        await group.done.wait()

    async def sealed(self) -> Batch | None:
        """Return the next batch to replay; see Journal."""
        while self._sealed:
            batch = await self._thread.read(self._database.sealed, self._sealed.popleft())
            self._database.handed.pop("sealed", None)
            if batch is not None:
                self._accounting.enter(batch.jobs)
                return batch
        return None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Write while the body runs, and once more behind it."""
        if not await self._thread.read(self._database.reserve.take):
            self._disk.failed(sqlite3.OperationalError("the disk has no room for a reserve"))
        self._go_on_clearing()
        self._in_memory.start()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._commit_for_ever)
                nursery.start_soon(self._maintenance.run)
                nursery.start_soon(self._thread.watch)
                try:
                    yield
                finally:
                    self._thread.finish_within(_LAST_COMMIT)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # it ends: see finish_within
                await self.commit()
                while self._commit_queue.requests_wait:
                    await self.commit()

    async def aclose(self) -> None:
        """Close the file, if the disk lets us; SQLite mends it when it is opened again if not."""
        # Where it was never at work the disk may hang as well.
        self._thread.finish_within(_LAST_COMMIT)
        # An end before the daemon has listened (an address in use) has shown it to no operator.
        self._database.high_water.acknowledged = self._health.phase != "starting"
        with trio.CancelScope(shield=True), suppress(sqlite3.Error):
            await self._thread.write(self._database.close)
        self._thread.end()

    async def _commit_for_ever(self) -> None:
        while True:
            if not self._disk.in_trouble:
                await self._commit_queue.wait()
            if not await self.commit():
                await trio.sleep(_AFTER_TROUBLE)

    async def commit(self) -> bool:
        """Commit what is next; returns whether the disk took it and takes more."""
        group = self._commit_queue.take()
        start = trio.current_time()
        self._unknown = True
        self._in_memory.begin_commit(group.operations)
        try:
            room = await self._thread.write(self._write, group.operations)
        except sqlite3.Error as error:
            await self._refuse(group, error)
            self._in_memory.end_commit()
            return False
        finally:
            self._bytes -= group.bytes
        self._metrics.keys_evicted.value = self._database.totals.evicted
        self._metrics.commit_seconds.observe(trio.current_time() - start)
        time_slice = TimeSlice()
        await self._publish(group.operations, time_slice)
        self._in_memory.end_commit()
        self._disk.wrote(room=room)
        await answer(group.operations, time_slice)
        group.done.set()
        return room

    async def _refuse(self, group: CommitGroup, error: sqlite3.Error) -> None:
        """Refuse all requests; what the pipeline wants written must be, in the end."""
        group.successor = self._commit_queue.next
        kept = [one for one in group.operations if isinstance(one, Seal | Settle | Bury | Abandon)]
        self._commit_queue.next.operations[:0] = kept
        self._maintenance.look_again()  # what revives dead letters is not kept
        self._disk.failed(error)
        not_begun = self._commit_queue.take_all()
        if self._staged is not None:
            self._commit_queue.add(Abandon())
        self._bytes -= not_begun.bytes
        time_slice = TimeSlice()
        refusal = outcome_unknown(error) if self._unknown else disk_error(error)
        await answer(group.operations, time_slice, refusal)
        await answer(not_begun.operations, time_slice, disk_error(error))
        group.done.set()

    def _write(self, operations: Sequence[Operation]) -> bool:
        """Carry them out; returns whether there is room for more than they took."""
        in_trouble = self._disk.in_trouble
        begun = False
        try:
            if in_trouble:
                self._database.probe()
            begun = True
            self._database.commit(operations)
            self._in_memory.committed()
        except sqlite3.Error:
            self._database.reserve.give_up()
            if begun and self._database.in_doubt:
                # What is written takes the place of its first page in the log, and SQLite reads
                # nothing behind a page that does not continue the checksum of the one before.
                with suppress(sqlite3.Error):
                    self._database.probe()
            self._unknown = begun and self._database.in_doubt
            raise
        return not in_trouble or self._take_back()

    def _take_back(self) -> bool:
        """Have the reserve again, behind a full disk; returns whether there is room for it.

        All that is stored by now makes room first: what comes next would find the disk full again.
        """
        self._database.free_space()
        return self._database.reserve.take_back()

    async def _publish(self, operations: Sequence[Operation], time_slice: TimeSlice) -> None:
        """Let the pipeline see what was committed, in the order of acceptance."""
        # Together: what is done once a group and not once a request was 10 us a request.
        accepted = 0
        jobs: list[Job] = []
        for operation in operations:
            match operation:
                case Append(receipt, earlier=None):
                    accepted += receipt.payloads
                    jobs += operation.jobs
                case Stage(append, _, end) if append.earlier is None:
                    append.staged = end
                    self._staged = append
                case Abandon():
                    self._end_staging()
                case Revive(firsts, payloads, more) if firsts:
                    self._accounting.revive(payloads)
                    self._sealed += firsts
                    self._feeder.nudge()
                    if more:
                        self._commit_queue.add(Revive())
                case Expire(more=True):
                    self._commit_queue.add(Expire())
        self._accounting.accept(accepted)
        await self._show(operations, jobs, time_slice)
        self._go_on_clearing()

    async def _show(
        self, operations: Sequence[Operation], jobs: Sequence[Job], time_slice: TimeSlice
    ) -> None:
        """Offer jobs to the pipeline, those behind a staged request only when it is accepted."""
        if self._staged is None:
            await self._offer(jobs, time_slice)
        elif any(one is self._staged for one in operations):
            own = len(self._staged.jobs)
            await self._offer(jobs[:own], time_slice)
            self._end_staging()
            await self._offer(jobs[own:], time_slice)
        elif jobs:
            self._newest_behind = jobs[-1].seq

    async def _offer(self, jobs: Sequence[Job], time_slice: TimeSlice) -> None:
        for start in range(0, len(jobs), _OFFERED_AT_ONCE):
            if start:
                await time_slice.pause()
            self._feeder.offer(jobs[start : start + _OFFERED_AT_ONCE])

    def _end_staging(self) -> None:
        """Let the pipeline have what was committed behind the staged request."""
        self._staged = None
        self._feeder.leave(self._newest_behind)

    def _go_on_clearing(self) -> None:
        """Have another commit where rows wait to be deleted, if nothing else brings one about."""
        if self._database.deletion.ranges and not self._commit_queue.next.operations:
            self._commit_queue.add(Clear())


def _tell_damage(database: Database, health: Health, metrics: Metrics) -> None:
    """Say what the start has found to be missing; the daemon goes on with what is there."""
    damage = database.high_water.damage
    if database.high_water.unreadable:
        log.error("journal_mark_damaged", note="whether payloads are missing is not known")
    if damage is None:
        return
    cause = FOREIGN if damage.foreign else "journal.db-wal was missing, cut off or damaged"
    log.error(
        "journal_damaged",
        missing=damage.payloads,
        at_least=damage.at_least,
        stored_again=damage.again,
        kept=list(damage.files),
        reason=f"{cause}, at this start or an earlier one",
    )
    metrics.payloads_missing.set(damage.payloads)
    if damage.payloads or damage.foreign:
        health.report(
            "journal_data",
            "PAYLOADS_MISSING",
            f"{damage} accepted payloads are not in the journal any more: {cause}; have them sent"
            " again, then stop and start the daemon to end this",
        )
