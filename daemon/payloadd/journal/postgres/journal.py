"""The journal in PostgreSQL, with group commit.

Requests that come while a commit is under way share the next one, as in the journal in SQLite. All
calls to the server are made in a thread, one at a time, under one lock: so the jobs of a commit
reach the pipeline before a page that has them is read.

A commit whose answer is lost is *in doubt*: the process connects again, keeps its lanes, which
commits something, and reads whether the rows are there. If not, it commits the same requests again.
Clients wait for that, for ``doubt_timeout`` at most.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from payloadd.errors import LaneLostError
from payloadd.journal.postgres.attempt import Attempt, publish
from payloadd.journal.postgres.calls import FAILURES, DatabaseCalls
from payloadd.journal.postgres.connection import reason
from payloadd.journal.postgres.holding import LaneHolder
from payloadd.journal.postgres.keys import KEY_BYTES
from payloadd.journal.postgres.lane import BuriedBatch, slot_of
from payloadd.journal.postgres.operations import (
    PendingRequest,
    PendingSeal,
    RefusedBatch,
    StoredBatch,
)
from payloadd.journal.postgres.pending import CommittedTogether, PendingOperations
from payloadd.journal.postgres.promises import LanePromises
from payloadd.journal.postgres.rows import ROW_BYTES
from payloadd.journal.postgres.schema import FENCED
from payloadd.journal.postgres.sealed_batches import SealedBatchReader
from payloadd.journal.postgres.state import DatabaseState, outcome_unknown
from payloadd.journal.postgres.times import DEFAULT_TIMES, LeaseTimes
from payloadd.journal.refusals import journal_full, not_written, too_large
from payloadd.model.streams import DEFAULT
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.api import JournalListener, OutcomeCallback, Receipt
    from payloadd.journal.postgres.holding import KnownStreams
    from payloadd.journal.postgres.lane import UnreadableRow
    from payloadd.journal.postgres.session import Session
    from payloadd.model.job import Batch, Job, Part
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics

log = get_logger(__name__)


class PostgresJournal:
    """A journal that several processes share; see the protocol ``Journal``."""

    durable = True

    def __init__(
        self,
        session: Session,
        listener: JournalListener,
        health: Health,
        metrics: Metrics,
        max_bytes: int,
        known: KnownStreams,
        tuning: LeaseTimes = DEFAULT_TIMES,
    ) -> None:
        """Use an open session; ``max_bytes`` is JOURNAL_MAX_BYTES."""
        self.session = session
        self._listener = listener
        self._metrics = metrics
        self._max_bytes = max_bytes
        self._tuning = tuning
        self.calls = DatabaseCalls(session, tuning, self._recover)
        streams = known.with_watermarks
        self.promises = None if streams is None else LanePromises(self.calls, streams)
        self.state = DatabaseState(health)
        self._queue = PendingOperations()
        self._bytes = 0
        """Bytes of the requests that wait for a commit."""
        self._current: Attempt | None = None
        """The commit under way."""
        self._sealed = SealedBatchReader(self.calls, listener, self._is_ending, self._bury_damaged)
        self._holder = LaneHolder(
            self.calls, self._recover, listener, metrics, known, max_bytes, self.promises
        )

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
        if self.promises is not None and (early := self.promises.refusal_of(receipt)) is not None:
            raise early
        self._queue.append(PendingRequest(receipt, parts, key, done, size, stream, marks))
        self._bytes += size

    def refusal(self, size: int = 1024) -> RefusedError | None:
        """Return the error that a request of ``size`` bytes would get now, or None."""
        if self.state.in_trouble and (refusal := self.state.refusal()) is not None:
            return refusal
        if self.promises is not None and (refusal := self.promises.refusal()) is not None:
            return refusal
        session = self.session
        if not session.has_own:
            return None  # for the moment in which a lane is replaced
        own = session.own
        if (used := own.bytes + own.dead_bytes + self._bytes) + size > self._max_bytes:
            return journal_full(self._listener, self._max_bytes, used, own.dead_bytes, own.payloads)
        return None

    async def wait_for_room(self) -> None:
        """Return once few parts of large requests wait for a commit."""
        await self._queue.wait_for_room()

    async def seal(self, batch: Batch) -> None:
        """Make the members and the key of ``batch`` durable; see ``Journal``."""
        seal = PendingSeal(batch)
        self._queue.seal(seal)
        await seal.ended.wait()
        if seal.lost:
            raise LaneLostError

    def settle(self, batch: Batch) -> None:
        """Remove a stored batch with one of the next commits."""
        self._queue.end(StoredBatch(batch))

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """Make a dead letter of a refused batch with one of the next commits."""
        self._queue.end(RefusedBatch(batch, code, reason))

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs behind ``after``; see ``Journal``."""
        async with self.calls.lock:
            while True:
                found = await self.calls.read(self.session.page, after, most_jobs, most_bytes)
                if found.damaged:
                    await self._bury_damaged(after, found.damaged)
                if found.jobs or not found.damaged:
                    return found.jobs

    async def _bury_damaged(self, seq: int, rows: Sequence[UnreadableRow]) -> None:
        """Make dead letters of rows of the lane of ``seq`` that cannot be read. The lock is held.

        The jobs of such a row are settled with the next checkpoint.
        """
        lane = self.session.lanes.get(slot_of(seq))
        if lane is not None:
            payloads = sum([lane.bury_damaged(row) for row in rows])
            self._listener.damaged(payloads)
            log.error("journal_damaged", lane=lane.number, payloads=payloads, rows=len(rows))
            await self.calls.write(self.session.checkpoint)

    async def sealed(self) -> Batch | None:
        """Return the next sealed batch that is not in memory; see ``Journal``."""
        return await self._sealed.next_batch()

    def _is_ending(self, first: int) -> bool:
        """Return whether the end of the batch with this first ``seq`` waits for a commit."""
        lane = self.session.lanes.get(slot_of(first))
        if lane is not None and lane.is_ended(first):
            return True
        ends = self._queue.next_group.ends
        return any(one.batch.jobs[0].seq == first for one in ends)

    async def pulse(self) -> None:
        """Return once a commit has ended, whether it succeeded or not."""
        group = self._queue.next_group
        group.flush = True
        self._queue.commit_soon()
        await group.ended.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Commit while the body runs, and commit the last operations after the body."""
        async with trio.open_nursery() as watching:
            watch = await watching.start(self.calls.watch)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._commit_repeatedly)
                    nursery.start_soon(self._holder.run)
                    try:
                        yield
                    finally:
                        nursery.cancel_scope.cancel()
            finally:
                with trio.move_on_after(self._tuning.last_commit_timeout, shield=True):
                    await self._finish()
                self._refuse_all(not_written("the daemon ends"))
                watch.cancel()

    async def _finish(self) -> None:
        """Commit what is left, and give the lanes back."""
        while self._current is not None or not self._queue.is_empty:
            await self.commit()
        async with self.calls.lock:
            await self.calls.write(self.session.finish)

    async def _commit_repeatedly(self) -> None:
        while True:
            if self._current is None:
                await self._queue.wait_until_due()
            await self.commit()

    async def commit(self) -> None:
        """Commit the next group, and return once it is committed."""
        async with self.calls.lock:
            if self._current is None:
                self._current = Attempt(self._queue.take_group())
                self._end_batches(self._current.group)
            attempt = self._current
            start = trio.current_time()
            while not attempt.committed:
                self._drop_lost_seals(attempt)
                if self.promises is not None:
                    self.promises.refuse_early(attempt)
                try:
                    await self.calls.once(self.session.commit, attempt.commit)
                    attempt.committed = True
                except FAILURES as error:
                    await self._recover(error, attempt)
            self._metrics.commit_seconds.observe(trio.current_time() - start)
            with trio.CancelScope(shield=True):  # each request must get its response
                await publish(attempt, self._listener, self.session.lanes)
            self._bytes -= attempt.group.bytes
            self._current = None
            try:
                if attempt.group.flush:
                    await self.calls.write(self.session.checkpoint)
            finally:
                attempt.group.ended.set()

    def _end_batches(self, group: CommittedTogether) -> None:
        """Note stored and dead batches in their lanes; the next checkpoint makes it durable."""
        lanes = self.session.lanes
        for one in group.ends:
            lane = lanes.get(slot_of(one.batch.jobs[0].seq))
            if lane is None:
                # Another process has the lane, and stores the batch again under the same key.
                self._listener.revived(one.batch.payloads)
            elif isinstance(one, StoredBatch):
                lane.settle(one.batch)
            else:
                lane.bury(BuriedBatch(one.batch, one.code, one.reason, int(time.time())))

    def _drop_lost_seals(self, attempt: Attempt) -> None:
        lanes = self.session.lanes
        for seal in attempt.group.seals:
            if slot_of(seal.batch.jobs[0].seq) not in lanes:
                seal.lost = True
                seal.ended.set()
        attempt.group.seals = [one for one in attempt.group.seals if not one.lost]
        attempt.commit.seals = [one.batch for one in attempt.group.seals]

    async def _recover(self, error: Exception, attempt: Attempt | None = None) -> None:
        """Make the next call possible after an error; ``attempt`` failed with it.

        Connects again, until that succeeds, or replaces lanes that are lost.
        """
        if getattr(error, "sqlstate", None) == FENCED:
            try:
                self._holder.lose(await self.calls.once(self.session.find_lost))
                await self._holder.ensure_own()
            except FAILURES as another:
                error = another
            else:
                return
        began = trio.current_time()
        if attempt is not None:
            attempt.failures += 1
        while not await self._connect_again(error, attempt):
            if attempt and trio.current_time() > began + self._tuning.doubt_timeout:
                attempt.refuse(outcome_unknown(reason(error)))
            await trio.sleep(self._tuning.retry_interval)
        self.state.succeeded()
        if attempt is not None and not attempt.committed:
            attempt.drop_refused()

    async def _connect_again(self, error: Exception, attempt: Attempt | None) -> bool:
        """Make one attempt to connect, and to keep the lanes; return whether it succeeded."""
        self.state.failed(error)
        self._refuse_waiting(not_written(reason(error)))
        if attempt is not None:
            attempt.group.ended.set()  # a pulse: the attempt has ended
        commit = None if attempt is None or attempt.committed else attempt.commit
        try:
            lost, outcome = await self.calls.once(self.session.recover, commit)
            self._holder.lose(lost)
            if attempt is not None:
                attempt.note(outcome)
            await self._holder.ensure_own()
            if attempt is not None and attempt.failures > 1 and not attempt.committed:
                # Nothing of it is there, and the server may refuse it again, as with a full disk.
                attempt.refuse(not_written(reason(error)))
                await self.calls.once(self.session.probe)
        except FAILURES as another:
            self.state.failed(another)
            return False
        return True

    def _refuse_waiting(self, refusal: RefusedError) -> None:
        for append in self._queue.take_requests():
            self._bytes -= append.size
            if append.done is not None:
                append.done(refusal)
        self._queue.renew_event()

    def _refuse_all(self, refusal: RefusedError) -> None:
        """Refuse what could not be committed before the daemon had to end."""
        if self._current is not None:
            self._current.refuse(outcome_unknown("the daemon ends"))
        self._refuse_waiting(refusal)
