"""Upload batches, and decide when a batch has ended; no other module decides that.

A batch ends in one of two ways, stored or dead. After any other error (the network is down, rights
are missing, the bucket does not exist yet) the worker puts it back, to be tried again for as long
as the daemon lives, and takes the next one.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import (
    InvalidObjectError,
    LaneLostError,
    OperatorStoreError,
    StoreError,
    TransientStoreError,
    UploadOutcome,
)
from payloadd.observe.logs import get_logger
from payloadd.pipeline.admission import UploadAdmission
from payloadd.pipeline.current_batch import CurrentBatch
from payloadd.pipeline.dead_letter_flood import DeadLetterFlood
from payloadd.pipeline.retry import MAX_ATTEMPTS, RetryBudget, SharedTimeout, Timer, backoff
from payloadd.storage.api import Progress, watched_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Batch
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.given_up import GivenUpJobs
    from payloadd.pipeline.idle import Inbox
    from payloadd.pipeline.queue import JobChannel
    from payloadd.storage.api import Store

log = get_logger(__name__)

_QUICK: Final = 1.0
"""Seconds within which an attempt must have failed to be repeated at once. A slower failure would
hold the worker, and be reported late."""

# Jitter keeps workers apart; it does not have to be unpredictable.
_random = random.Random().random  # noqa: S311


class Worker:
    """Upload batches; each call of ``run`` is one worker, and all workers share this object."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        accounting: Accounting,
        health: Health,
        metrics: Metrics,
        channel: JobChannel,
        settings: Settings,
    ) -> None:
        """Prepare the MAX_WORKERS workers of one process; ``channel`` counts what they hold."""
        self._store = store
        self._journal = journal
        self._accounting = accounting
        self._metrics = metrics
        self._release = channel.release
        self.admission = UploadAdmission(
            channel, accounting, journal, health, metrics, settings.max_workers
        )
        """Decides which uploads may start."""
        self.timeout = SharedTimeout(settings.upload_timeout, self.admission.stall)
        """The timeout of uploads, in force while its ``run`` runs."""
        self.given_up: GivenUpJobs | None = None
        """The jobs whose requests were given up; None where that does not happen."""
        self._current_batches: list[CurrentBatch] = []
        health.busy_workers = self._count_busy
        self._budget = RetryBudget()
        self._flood = DeadLetterFlood()
        self._process_limiter = trio.CapacityLimiter(1)
        """Lets one batch at a time wait in a thread for the process of its format."""
        self._outcomes = {
            outcome: metrics.uploads.labelled(outcome.value) for outcome in UploadOutcome
        }
        self._stored = self._outcomes[UploadOutcome.STORED]

    async def run(
        self, register: Callable[[Inbox], None], next_nowait: Callable[[], Batch | None]
    ) -> None:
        """Register as idle, receive a batch, upload it; return when the inbox is closed.

        ``next_nowait`` returns a batch that is ready, or None.
        """
        progress = Progress()
        watched_progress.set(progress)
        found = self._accounting.newest_found
        limiter = self._process_limiter
        with CurrentBatch(register, next_nowait, found, limiter) as current:
            self._current_batches.append(current)
            while True:
                failure: StoreError | None = None
                # One timer for all uploads until one of them fails.
                timer = current.timer = Timer(progress, current.key)
                with timer.scope:
                    while failure is None and not timer.expired:
                        if not (current.present or await current.receive()):
                            return
                        failure = await self._upload(current, timer)
                if timer.scope.cancelled_caught:
                    failure = self._timed_out(current, timer)
                if failure is not None and self._is_given_up(current):
                    self._end_given_up(current, failure)
                elif failure is not None:
                    await self._handle_failure(current, failure)

    async def _upload(self, current: CurrentBatch, timer: Timer) -> StoreError | None:
        """Upload the current batch, then each batch that is ready when the one before has ended.

        Returns the error of the batch that failed, else None. The timer may have expired at the
        moment when the store answered: then it is used up, and no further upload begins with it.
        """
        while current.present and not timer.expired:
            batch = current.batch
            if self.given_up is not None and not self.given_up.is_wanted(batch):
                self.given_up.drop(batch.jobs)
                current.replace()
                continue
            if current.body is None:
                if batch.sealed and not current.sealed:
                    try:
                        await self._journal.seal(batch)
                    except LaneLostError:
                        self._forget(batch)
                        current.replace()
                        continue
                    current.sealed = True
                try:
                    current.body = await current.encoded()
                except StoreError as error:
                    return error
            current.started = start = trio.current_time()
            self.timeout.begin(timer, start)
            try:
                put = self._store.put
                await put(batch.key, current.body, batch.members, repeat=current.repeat)
            except StoreError as error:
                return error
            finally:
                self.timeout.end(timer)
            self._settle(current, current.body, trio.current_time() - start)
            current.replace()
        return None

    def _timed_out(self, current: CurrentBatch, timer: Timer) -> StoreError:
        """Return the error of an upload that did not progress for UPLOAD_TIMEOUT."""
        self.admission.time_out(current.started)
        sent, seconds = timer.progress.sent(), trio.current_time() - current.started
        size = 0 if current.body is None else current.body.size
        limit = f"no progress within UPLOAD_TIMEOUT ({self.timeout.seconds:g} s)"
        if self._is_given_up(current):
            limit = "not confirmed within REQUEST_TIMEOUT"
        reason = (
            f"{limit}: {sent} of {size}"
            f" bytes were sent in {seconds:.1f} s, {sent / max(seconds, 0.001) / 1000:.1f} kB/s"
        )
        return TransientStoreError("UploadTimeout", reason)

    def cancel_unwanted(self, is_wanted: Callable[[Batch], bool]) -> None:
        """Cancel the uploads of batches that are not wanted."""
        for current in self._current_batches:
            if current.present and not is_wanted(current.batch):
                current.timer.expired = True
                current.timer.scope.cancel()

    def _is_given_up(self, current: CurrentBatch) -> bool:
        return self.given_up is not None and not self.given_up.is_wanted(current.batch)

    def _end_given_up(self, current: CurrentBatch, error: StoreError) -> None:
        """Drop a batch whose upload has failed, or took too long for its requests."""
        assert self.given_up is not None  # noqa: S101
        self._outcomes[error.outcome].inc()
        self.admission.give_up(current.batch.key, error)
        self.given_up.drop(current.batch.jobs)
        current.replace()

    async def _handle_failure(self, current: CurrentBatch, error: StoreError) -> None:
        """Try the current batch again at once, put it back, or make it a dead letter."""
        self._outcomes[error.outcome].inc()
        now = trio.current_time()
        if isinstance(error, InvalidObjectError):
            if self._flood.refuse(now, error.code):
                self._bury(current.batch, error)
                current.replace()
                return
            error = OperatorStoreError(
                error.code,
                f"{error}; not a dead letter, because the store has refused more than 100 objects"
                " in a minute with this error",
            )
        if isinstance(error, TransientStoreError) and not error.throttled:
            if now - current.started < _QUICK and await self._retry(current, error):
                return
            current.repeat = True
        waiting = current.put_back()
        if isinstance(error, TransientStoreError) and error.throttled:
            await self.admission.throttle(waiting, error, started=current.started)
        else:
            await self.admission.fail(waiting, error)
        current.replace()

    async def _retry(self, current: CurrentBatch, error: TransientStoreError) -> bool:
        """Wait for the next attempt of the round; return False, at once, if it has no more."""
        cost = None
        if current.attempt < MAX_ATTEMPTS and error.retry_after is None:
            cost = self._budget.spend()
        if cost is None:
            return False
        await trio.sleep(backoff(current.attempt, _random()))
        current.attempt += 1
        current.cost = cost
        current.repeat = True
        return True

    def _settle(self, current: CurrentBatch, body: EncodedObject, seconds: float) -> None:
        batch = current.batch
        self._budget.refund(current.cost)
        self._journal.settle(batch)
        self._accounting.settle(batch, body.size)
        self._release(batch.bytes)
        self._stored.inc()
        self._metrics.objects_stored.inc()
        self._metrics.object_bytes.observe(body.size)
        self._metrics.upload_seconds.observe(seconds)
        if body.misfits:
            self._metrics.count_misfits(body.misfits)
        if not self.admission.quiet:
            self.admission.store(batch.key, current.started, retried=current.rounds > 0)

    def _forget(self, batch: Batch) -> None:
        """Drop a batch whose jobs another process has."""
        self._accounting.leave(batch.jobs)
        self._release(batch.bytes)

    def _bury(self, batch: Batch, error: InvalidObjectError) -> None:
        self._journal.bury(batch, error.code, str(error))
        self._accounting.bury(batch)
        self._release(batch.bytes)
        log.error(
            "payloads_dead",
            id=str(batch.id),
            code=error.code,
            reason=str(error),
            key=batch.key,
            payloads=batch.payloads,
            **self._stream_field(batch),
        )

    def _stream_field(self, batch: Batch) -> dict[str, str]:
        """Return the field of the log with the name of the stream, if it has one."""
        name = self._accounting.stream_name(batch.jobs[0].seq)
        return {} if name is None else {"stream": name}

    def _count_busy(self) -> int:
        return sum([current.present for current in self._current_batches])
