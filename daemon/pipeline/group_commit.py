"""The journal in SQLite, with group commit.

Whoever wants something written puts an operation into the group that is collecting and
waits; one task takes the whole group, commits it in a thread with one fsync, and answers all
who waited for it. Meanwhile the next group collects. So requests share the cost of an fsync,
and nobody waits for more than two, unless more than LARGEST_COMMIT has come.
Settling is not urgent (a row that outlives a crash is replayed under the same key): it rides
along with the next commit.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import RefusedError, TooLargeError
from daemon.pipeline.chores import Chores
from daemon.pipeline.disk import Disk, disk_error
from daemon.pipeline.groups import Groups
from daemon.pipeline.journal_thread import JournalThread
from daemon.pipeline.operations import Append, Bury, Clear, Expire, Receipt, Revive, Seal, Settle
from daemon.pipeline.reserve import LARGEST_COMMIT
from daemon.pipeline.schema import ROW_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from daemon.health import Health
    from daemon.metrics import Metrics
    from daemon.pipeline.database import Database
    from daemon.pipeline.job import Batch, Job, Part
    from daemon.pipeline.ledger import Ledger
    from daemon.pipeline.operations import Done, Operation
    from daemon.pipeline.window import Window


_AFTER_TROUBLE: Final = 0.5
"""Seconds between two attempts while the disk refuses writes."""
_LAST_COMMIT: Final = 10.0


class SqliteJournal:
    """A journal in one SQLite file."""

    def __init__(
        self,
        database: Database,
        window: Window,
        ledger: Ledger,
        health: Health,
        metrics: Metrics,
        max_bytes: int,
    ) -> None:
        self._database = database
        self._window = window
        self._ledger = ledger
        self._disk = Disk(health)
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._thread = JournalThread(self._disk)
        self._sealed = deque(database.sealed_firsts)
        # The first is committed next, the last collects. Each is bounded by LARGEST_COMMIT or
        # one request, all by max_bytes, and what is not a request by MAX_WORKERS.
        self._groups = Groups()
        self._chores = Chores(database, self._thread, self._disk, self._groups.add)
        self._bytes = 0

    def append(
        self, receipt: Receipt, parts: Sequence[Part], key: bytes | None, done: Done
    ) -> None:
        """Take in a request; see Journal."""
        size = sum([len(part.lines) + ROW_BYTES for part in parts])
        if size > self._max_bytes:
            raise TooLargeError(f"the request takes {size} bytes, more than JOURNAL_MAX_BYTES")
        if (refusal := self.refusal(size)) is not None:
            raise refusal
        self._groups.append(Append(receipt, parts, key, done), size, LARGEST_COMMIT)
        self._bytes += size

    def refusal(self, size: int = 1024) -> RefusedError | None:
        """Return why a request of ``size`` bytes would be refused now, or None."""
        if (refusal := self._disk.refusal()) is not None:
            return refusal
        totals = self._database.totals
        if totals.all_bytes + self._bytes + size > self._max_bytes:
            # A tenth of it: enough room for the client not to be turned away again at once.
            wait = self._ledger.rate.seconds_for(totals.payloads // 10)
            dead = f", {totals.dead_bytes} bytes of it dead letters" if totals.dead_bytes else ""
            return RefusedError("JOURNAL_FULL", f"the journal holds JOURNAL_MAX_BYTES{dead}", wait)
        return None

    async def seal(self, batch: Batch) -> None:
        """Make the members and the key of ``batch`` durable; see Journal."""
        group = self._groups.add(Seal(batch))
        self._groups.hurry()
        await group.done.wait()
        while group.successor is not None:
            group = group.successor
            await group.done.wait()

    def settle(self, batch: Batch) -> None:
        """Forget a stored batch with one of the next commits."""
        self._groups.add(Settle(batch))

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """Move a refused batch to the dead letters with one of the next commits."""
        self._groups.add(Bury(batch, code, reason))

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next unsealed jobs behind ``after``; see Journal.

        Not while nothing can be written: what is stored meanwhile waits in memory to be settled.
        """
        await self._disk.wait_writable()
        return await self._thread.read(self._database.page, after, most_jobs, most_bytes)

    async def pulse(self) -> None:
        """Return once a commit has come round, whether the disk took it or not; see Journal."""
        group = self._groups.next
        self._groups.hurry()
        await group.done.wait()

    async def sealed(self) -> Batch | None:
        """Return the next batch to replay; see Journal."""
        while self._sealed:
            batch = await self._thread.read(self._database.sealed, self._sealed.popleft())
            if batch is not None:
                self._ledger.enter(batch.jobs)
                return batch
        return None

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Write while the body runs, and once more behind it."""
        if not await self._thread.read(self._database.reserve.take):
            self._disk.failed(sqlite3.OperationalError("the disk has no room for a reserve"))
        self._go_on_clearing()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._commit_for_ever)
                nursery.start_soon(self._chores.run)
                nursery.start_soon(self._thread.watch)
                try:
                    yield
                finally:
                    self._thread.finish_within(_LAST_COMMIT)
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # it ends: see finish_within
                for _ in range(len(self._groups)):
                    await self.commit()

    async def aclose(self) -> None:
        """Close the file, if the disk lets us; SQLite mends it when it is opened again if not."""
        # Where it was never at work the disk may hang as well.
        self._thread.finish_within(_LAST_COMMIT)
        with trio.CancelScope(shield=True), suppress(sqlite3.Error):
            await self._thread.write(self._database.close)
        self._thread.end()

    async def _commit_for_ever(self) -> None:
        while True:
            if not self._disk.in_trouble:
                await self._groups.wait()
            if not await self.commit():
                await trio.sleep(_AFTER_TROUBLE)

    async def commit(self) -> bool:
        """Commit the next group; returns whether the disk took it and takes more."""
        group = self._groups.take()
        start = trio.current_time()
        room = False
        try:
            room = await self._thread.write(self._write, group.operations)
        except sqlite3.Error as error:
            group.successor = self._groups.next
            # Requests are refused; what the pipeline wants written must be, in the end.
            kept = [one for one in group.operations if isinstance(one, Seal | Settle | Bury)]
            self._groups.next.operations[:0] = kept
            self._chores.look_again()  # what revives dead letters is not kept
            self._disk.failed(error)
            group.answer(disk_error(error))
        else:
            self._metrics.commit_seconds.observe(trio.current_time() - start)
            self._publish(group.operations)
            self._disk.wrote(room=room)
            group.answer()
        finally:
            self._bytes -= group.bytes
        return room

    def _write(self, operations: Sequence[Operation]) -> bool:
        """Carry them out; returns whether there is room for more than they took."""
        in_trouble = self._disk.in_trouble
        try:
            if in_trouble:
                self._database.probe()
            self._database.commit(operations)
        except sqlite3.Error:
            self._database.reserve.give_up()
            raise
        return not in_trouble or self._take_back()

    def _take_back(self) -> bool:
        """Have the reserve again, behind a full disk; returns whether there is room for it.

        All that is stored by now makes room first: what comes next would find the disk full again.
        """
        self._database.make_room()
        return self._database.reserve.take_back()

    def _publish(self, operations: Sequence[Operation]) -> None:
        """Let the pipeline see what was committed, in the order of acceptance."""
        # Together: what is done once a group and not once a request was 10 us a request.
        accepted = 0
        jobs: list[Job] = []
        for operation in operations:
            match operation:
                case Append(receipt, earlier=None):
                    accepted += receipt.payloads
                    jobs += operation.jobs
                case Revive(firsts, payloads, more) if firsts:
                    self._ledger.revive(payloads)
                    self._sealed += firsts
                    self._window.nudge()
                    if more:
                        self._groups.add(Revive())
                case Expire(more=True):
                    self._groups.add(Expire())
        self._ledger.accept(accepted)
        self._window.offer(jobs)
        self._go_on_clearing()

    def _go_on_clearing(self) -> None:
        """Have another commit where rows wait to be deleted, if nothing else brings one about."""
        if self._database.clearance.ranges and not self._groups.next.operations:
            self._groups.add(Clear())
