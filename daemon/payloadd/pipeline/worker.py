"""Uploads batches: the one place that decides a batch's fate.

A batch ends in one of two ways, stored or dead. Whatever else happens (a network that is
down, rights that are missing, a bucket that is not there yet) the worker says what it waits
for and tries again, for as long as the daemon lives.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import trio

from payloadd.errors import InvalidObjectError, StoreError, TransientStoreError, UploadOutcome
from payloadd.observe.logs import get_logger
from payloadd.pipeline.current_batch import CurrentBatch
from payloadd.pipeline.retry import FIRST_PAUSE, MAX_ATTEMPTS, RetryBudget, backoff, pause
from payloadd.pipeline.shared_timeout import SharedTimeout, Timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.api import Journal
    from payloadd.model.job import Batch
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.current_batch import Inbox
    from payloadd.storage.api import Store

log = get_logger(__name__)

# Jitter keeps workers apart; nobody has to be kept from guessing it.
_random = random.Random().random  # noqa: S311


class Worker:
    """What all workers share; ``run`` is one worker."""

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
        self._store = store
        self._journal = journal
        self._accounting = accounting
        self._health = health
        self._metrics = metrics
        self.timeout = SharedTimeout(upload_timeout)
        self._release = release
        self._current_batches: list[CurrentBatch] = []
        metrics.workers_busy.set_function(
            lambda: sum([current.full for current in self._current_batches])
        )
        self._budget = RetryBudget()
        self._calm_after = 0.0
        self._mended = trio.Event()
        self._outcomes = {outcome: metrics.uploads.at(outcome.value) for outcome in UploadOutcome}
        self._stored = self._outcomes[UploadOutcome.STORED]

    async def run(
        self, idle: trio.MemorySendChannel[Inbox], next_nowait: Callable[[], Batch | None]
    ) -> None:
        """Register as idle, take a batch, upload it, until no more will come.

        ``next_nowait`` gives a batch that is there already, or None. Uploads end in time only
        while ``timeout`` runs.
        """
        with CurrentBatch(idle, next_nowait) as current:
            self._current_batches.append(current)
            while True:
                failure: StoreError | None = None
                # One for all uploads until one of them fails.
                timer = Timer()
                with timer.scope:
                    while failure is None and not timer.ran_out:
                        if not (current.full or await current.fill()):
                            return
                        failure = await self._upload(current, timer)
                if timer.scope.cancelled_caught:
                    reason = f"no answer within UPLOAD_TIMEOUT ({self.timeout.seconds:g} s)"
                    failure = TransientStoreError("UploadTimeout", reason)
                if failure is not None:
                    await self._go_on_after(current, failure)

    async def _upload(self, current: CurrentBatch, timer: Timer) -> StoreError | None:
        """Bring a batch to its end, and those that are there when it has come to it.

        Returns what the store said against the one in hand. A timer that ran out when the answer
        was there already is used up: nothing more is begun with it.
        """
        while current.full and not timer.ran_out:
            if current.body is None:
                if current.batch.sealed:
                    await self._journal.seal(current.batch)
                current.body = await current.encoded()
            # Again and again: the store may meanwhile have asked another worker for more.
            while self._calm_after > (start := trio.current_time()):  # noqa: ASYNC110
                await trio.sleep_until(self._calm_after)
            self.timeout.begin(timer, start)
            try:
                await self._store.put(current.batch.key, current.body)
            except StoreError as error:
                return error
            finally:
                self.timeout.end(timer)
            self._settle(current, current.body.size, trio.current_time() - start)
            current.take_next()
        return None

    async def _go_on_after(self, current: CurrentBatch, error: StoreError) -> None:
        """Wait until the batch in hand may be tried again, or bury it."""
        self._outcomes[error.outcome].inc()
        if isinstance(error, InvalidObjectError):
            self._bury(current.batch, error)
            current.take_next()
        elif not (isinstance(error, TransientStoreError) and await self._try_soon(current, error)):
            self._report(current.batch.key, error)
            if isinstance(error, TransientStoreError) and error.throttled:
                self._hold_back(error.retry_after or 0.0)
            await self._wait(pause(current.round, _random()))
            current.begin_round()

    async def _try_soon(self, current: CurrentBatch, error: TransientStoreError) -> bool:
        """Wait for the next attempt of a round; returns at once and False if that was the last."""
        cost = None
        if current.attempt < MAX_ATTEMPTS:
            cost = self._budget.spend(throttled=error.throttled)
        if cost is None:
            return False
        await self._back_off(current.attempt, error)
        current.attempt += 1
        current.cost = cost
        return True

    async def _wait(self, seconds: float) -> None:
        """Wait between two rounds; an uploaded object elsewhere ends it early.

        Not before FIRST_PAUSE: a batch that fails alone must not be tried again with every
        success of another.
        """
        await trio.sleep(min(seconds, FIRST_PAUSE))
        if seconds > FIRST_PAUSE and self._health.trouble("store") is not None:
            with trio.move_on_after(seconds - FIRST_PAUSE):
                await self._mended.wait()

    async def _back_off(self, attempt: int, error: TransientStoreError) -> None:
        wait = backoff(
            attempt,
            _random(),
            throttled=error.throttled,
            at_least=error.retry_after or 0.0,
        )
        if error.throttled:
            self._hold_back(wait)
        await trio.sleep(wait)

    def _hold_back(self, seconds: float) -> None:
        """Have all workers wait: the store asks the daemon for less, not one of them."""
        self._calm_after = max(self._calm_after, trio.current_time() + seconds)

    def _settle(self, current: CurrentBatch, size: int, seconds: float) -> None:
        self._budget.refund(current.cost)
        self._journal.settle(current.batch)
        self._accounting.settle(current.batch)
        self._release(current.batch.bytes)
        self._stored.inc()
        self._metrics.objects_stored.inc()
        self._metrics.object_bytes.observe(size)
        self._metrics.upload_seconds.observe(seconds)
        if self._health.trouble("store") is not None:
            # The store takes objects again, perhaps: have the others try before their pause ends.
            self._mended.set()
            self._mended = trio.Event()
            self._end_trouble(current.batch)

    def _report(self, key: str, error: StoreError) -> None:
        if self._health.report("store", error.code, str(error), key):
            log.warning("store_unavailable", code=error.code, reason=str(error), key=key)

    def _end_trouble(self, batch: Batch) -> None:
        """Note that ``batch`` has come to its end; log it if no other batch waits for the store.

        A trouble ends with the batches that have it, not with the success of another batch: one
        prefix without rights would be said to be available with every object of the others.
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
