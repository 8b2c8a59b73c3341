"""Upload batches, and decide when a batch has ended; no other module decides that.

A batch ends in one of two ways, stored or dead. After any other error (the network is down, rights
are missing, the bucket does not exist yet) the worker logs the reason and tries again, for as long
as the daemon lives.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final, Self

import trio

from payloadd.errors import InvalidObjectError, StoreError, TransientStoreError, UploadOutcome
from payloadd.model.formats import FORMATS
from payloadd.model.job import Batch
from payloadd.observe.logs import get_logger
from payloadd.pipeline.retry import (
    FIRST_PAUSE,
    MAX_ATTEMPTS,
    RetryBudget,
    SharedTimeout,
    Timer,
    backoff,
    pause,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.api import Journal
    from payloadd.model.formats.api import EncodedObject
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.accounting import Accounting
    from payloadd.storage.api import Store

log = get_logger(__name__)

_COMPRESS_IN_THREAD: Final = 64 * 1024
"""Bytes above which compression would block the event loop for longer than a thread costs."""

# Jitter keeps workers apart; it does not have to be unpredictable.
_random = random.Random().random  # noqa: S311

Inbox = trio.MemorySendChannel[Batch]
"""The sending end of a worker's own channel."""


class Worker:
    """Upload batches; each call of ``run`` is one worker, and all workers share this object."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        accounting: Accounting,
        health: Health,
        metrics: Metrics,
        upload_timeout: float,
        release: Callable[[int], None],
    ) -> None:
        """Prepare the workers of one process.

        ``upload_timeout`` is in seconds. ``release`` is called with the bytes of each batch that
        has ended.
        """
        self._store = store
        self._journal = journal
        self._accounting = accounting
        self._health = health
        self._metrics = metrics
        self.timeout = SharedTimeout(upload_timeout)
        """The timeout of uploads, in force while its ``run`` runs."""
        self._release = release
        self._current_batches: list[_CurrentBatch] = []
        health.busy_workers = self._count_busy
        self._budget = RetryBudget()
        self._no_upload_before = 0.0
        """By trio's clock: the store asked for fewer requests."""
        self._recovered = trio.Event()
        """Set when an object is stored during a trouble of the store."""
        self._outcomes = {
            outcome: metrics.uploads.labelled(outcome.value) for outcome in UploadOutcome
        }
        self._stored = self._outcomes[UploadOutcome.STORED]

    async def run(
        self, idle: trio.MemorySendChannel[Inbox], next_nowait: Callable[[], Batch | None]
    ) -> None:
        """Register as idle, receive a batch, upload it; return when the inbox is closed.

        ``next_nowait`` returns a batch that is ready, or None.
        """
        with _CurrentBatch(idle, next_nowait) as current:
            self._current_batches.append(current)
            while True:
                failure: StoreError | None = None
                # One timer for all uploads until one of them fails.
                timer = Timer()
                with timer.scope:
                    while failure is None and not timer.expired:
                        if not (current.present or await current.receive()):
                            return
                        failure = await self._upload(current, timer)
                if timer.scope.cancelled_caught:
                    reason = f"no answer within UPLOAD_TIMEOUT ({self.timeout.seconds:g} s)"
                    failure = TransientStoreError("UploadTimeout", reason)
                if failure is not None:
                    await self._handle_failure(current, failure)

    async def _upload(self, current: _CurrentBatch, timer: Timer) -> StoreError | None:
        """Upload the current batch, then each batch that is ready when the one before has ended.

        Returns the error of the batch that failed, else None. The timer may have expired at the
        moment when the store answered: then it is used up, and no further upload begins with it.
        """
        while current.present and not timer.expired:
            if current.body is None:
                if current.batch.sealed:
                    await self._journal.seal(current.batch)
                current.body = await current.encoded()
            # A loop: meanwhile the store may have asked another worker for a longer wait.
            while self._no_upload_before > (start := trio.current_time()):  # noqa: ASYNC110
                await trio.sleep_until(self._no_upload_before)
            self.timeout.begin(timer, start)
            try:
                batch = current.batch
                await self._store.put(batch.key, current.body, batch.members, repeat=False)
            except StoreError as error:
                return error
            finally:
                self.timeout.end(timer)
            self._settle(current, current.body.size, trio.current_time() - start)
            current.replace()
        return None

    async def _handle_failure(self, current: _CurrentBatch, error: StoreError) -> None:
        """Wait until the current batch may be tried again, or make it a dead letter."""
        self._outcomes[error.outcome].inc()
        if isinstance(error, InvalidObjectError):
            self._bury(current.batch, error)
            current.replace()
        elif not (isinstance(error, TransientStoreError) and await self._retry(current, error)):
            self._report(current.batch.key, error)
            if isinstance(error, TransientStoreError) and error.throttled:
                self._delay_uploads(error.retry_after or 0.0)
            await self._pause(pause(current.round, _random()))
            current.begin_round()

    async def _retry(self, current: _CurrentBatch, error: TransientStoreError) -> bool:
        """Wait for the next attempt of the round; return False, at once, if it has no more."""
        cost = None
        if current.attempt < MAX_ATTEMPTS:
            cost = self._budget.spend(throttled=error.throttled)
        if cost is None:
            return False
        await self._back_off(current.attempt, error)
        current.attempt += 1
        current.cost = cost
        return True

    async def _pause(self, seconds: float) -> None:
        """Wait between two rounds; the success of another worker ends the wait early.

        It does not end it before FIRST_PAUSE: a batch that fails alone must not be tried again
        with every success of another batch.
        """
        await trio.sleep(min(seconds, FIRST_PAUSE))
        if seconds > FIRST_PAUSE and self._health.trouble("store") is not None:
            with trio.move_on_after(seconds - FIRST_PAUSE):
                await self._recovered.wait()

    async def _back_off(self, attempt: int, error: TransientStoreError) -> None:
        wait = backoff(
            attempt,
            _random(),
            throttled=error.throttled,
            at_least=error.retry_after or 0.0,
        )
        if error.throttled:
            self._delay_uploads(wait)
        await trio.sleep(wait)

    def _delay_uploads(self, seconds: float) -> None:
        """Delay the uploads of all workers: the store asks the daemon for less, not one worker."""
        self._no_upload_before = max(self._no_upload_before, trio.current_time() + seconds)

    def _settle(self, current: _CurrentBatch, size: int, seconds: float) -> None:
        self._budget.refund(current.cost)
        self._journal.settle(current.batch)
        self._accounting.settle(current.batch)
        self._release(current.batch.bytes)
        self._stored.inc()
        self._metrics.objects_stored.inc()
        self._metrics.object_bytes.observe(size)
        self._metrics.upload_seconds.observe(seconds)
        if self._health.trouble("store") is not None:
            # The store may work again: let the other workers try before their pause ends.
            self._recovered.set()
            self._recovered = trio.Event()
            self._end_trouble(current.batch)

    def _report(self, key: str, error: StoreError) -> None:
        if self._health.report("store", error.code, str(error), key):
            log.warning("store_unavailable", code=error.code, reason=str(error), key=key)

    def _end_trouble(self, batch: Batch) -> None:
        """Note that ``batch`` has ended; log it if no other batch waits for the store.

        A trouble ends with the batches that have it, not with the success of another batch: while
        the rights for one prefix are missing, every object below another prefix would end it.
        """
        trouble = self._health.clear("store", batch.key)
        if trouble is not None:
            log.info("store_available", waited=round(time.time() - trouble.since, 1))

    def _bury(self, batch: Batch, error: InvalidObjectError) -> None:
        self._end_trouble(batch)
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
        )

    def _count_busy(self) -> int:
        return sum([current.present for current in self._current_batches])


class _CurrentBatch:
    """The batch of one worker, its object, and its attempts so far; a context manager.

    A worker without a batch registers itself with the dispatcher, or gets a batch that is ready
    from ``following``.
    """

    __slots__ = (
        "_batches",
        "_following",
        "_idle",
        "_inbox",
        "attempt",
        "batch",
        "body",
        "cost",
        "present",
        "round",
    )

    batch: Batch
    """Exists only while ``present`` is true, as all that follow."""
    body: EncodedObject | None
    """The object; None until it is encoded."""
    round: int
    """The round of attempts, from 1."""
    attempt: int
    """The attempt within the round, from 1."""
    cost: int | None
    """Tokens of the budget that the last retry of this round cost; None: no retry."""

    def __init__(
        self, idle: trio.MemorySendChannel[Inbox], following: Callable[[], Batch | None]
    ) -> None:
        """Begin without a batch.

        The dispatcher receives the inboxes of idle workers from ``idle``; ``following`` returns a
        batch that is ready, or None.
        """
        self._idle = idle
        self._inbox, self._batches = trio.open_memory_channel[Batch](0)
        self._following = following
        self.present = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.close()
        self._batches.close()

    async def receive(self) -> bool:
        """Register as idle and wait for a batch; return False if the inbox was closed instead."""
        self._idle.send_nowait(self._inbox)
        try:
            self._begin(await self._batches.receive())
        except trio.EndOfChannel:
            return False
        return True

    def replace(self) -> None:
        """Begin with the batch that is ready, or have none."""
        batch = self._following()
        if batch is not None:
            self._begin(batch)
        else:
            # Else an idle worker keeps its last batch in memory, which no bound counts.
            del self.batch, self.body
            self.present = False

    async def encoded(self) -> EncodedObject:
        """Return the object of the batch; compress a large one in a thread."""
        batch = self.batch
        encode = FORMATS[batch.format_name].encode
        if not _is_slow(batch):
            return encode(batch.jobs)
        return await trio.to_thread.run_sync(encode, batch.jobs, abandon_on_cancel=True)

    def begin_round(self) -> None:
        """Begin the next round: attempts count from 1 again."""
        self.round += 1
        self.attempt = 1
        self.cost = None

    def _begin(self, batch: Batch) -> None:
        self.present = True
        self.batch = batch
        self.round = self.attempt = 1
        self.cost = None
        self.body = None
        if not batch.sealed and not _is_slow(batch):
            self.body = FORMATS[batch.format_name].encode(batch.jobs)


def _is_slow(batch: Batch) -> bool:
    """Return whether encoding the batch would block the event loop for too long."""
    return batch.bytes > _COMPRESS_IN_THREAD and FORMATS[batch.format_name].cpu_bound
