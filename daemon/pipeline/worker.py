"""Uploads batches: the one place that decides a batch's fate.

A batch ends in one of two ways, stored or dead. Whatever else happens (a network that is
down, rights that are missing, a bucket that is not there yet) the worker says what it waits
for and tries again, for as long as the daemon lives.
"""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import InvalidObjectError, Outcome, StoreError, TransientStoreError
from daemon.logs import get_logger
from daemon.pipeline.job import Batch
from daemon.pipeline.retry import FIRST_PAUSE, MAX_ATTEMPTS, RetryBudget, backoff, pause
from daemon.storage.encoding import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.health import Health
    from daemon.metrics import Metrics
    from daemon.pipeline.journal import Journal
    from daemon.pipeline.ledger import Ledger
    from daemon.storage.encoding import Encoded
    from daemon.storage.store import Store

log = get_logger(__name__)

# Jitter keeps workers apart; nobody has to be kept from guessing it.
_random = random.Random().random  # noqa: S311

Inbox = trio.MemorySendChannel[Batch]

_COMPRESS_IN_THREAD: Final = 64 * 1024
"""Bytes above which compressing would hold up the event loop for longer than a thread costs."""


class Worker:
    """What all workers share; ``run`` is one worker."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        ledger: Ledger,
        health: Health,
        metrics: Metrics,
        upload_timeout: float,
        release: Callable[[int], None],
    ) -> None:
        self._store = store
        self._journal = journal
        self._ledger = ledger
        self._health = health
        self._metrics = metrics
        self._upload_timeout = upload_timeout
        self._release = release
        self._budget = RetryBudget()
        self._calm_after = 0.0
        self._mended = trio.Event()
        self._outcomes = {
            outcome: metrics.uploads.labels(outcome=outcome.value) for outcome in Outcome
        }

    async def run(
        self, idle: trio.MemorySendChannel[Inbox], next_nowait: Callable[[], Batch | None]
    ) -> None:
        """Register as idle, take a batch, upload it, until the inbox is closed.

        ``next_nowait`` gives a batch that is there already, or None.
        """
        inbox, batches = trio.open_memory_channel[Batch](0)
        with inbox, batches:
            idle.send_nowait(inbox)
            async for first in batches:
                batch: Batch | None = first
                with self._metrics.workers_busy.track_inprogress():
                    while batch is not None:
                        await self._upload(batch)
                        self._release(batch.bytes)
                        batch = next_nowait()
                idle.send_nowait(inbox)

    async def _upload(self, batch: Batch) -> None:
        """Bring a batch to its end."""
        if batch.sealed:
            await self._journal.seal(batch)
        body = await _encode(batch)
        for round_ in itertools.count(1):
            try:
                await self._put(batch.key, body)
            except InvalidObjectError as error:
                self._bury(batch, error)
                return
            except StoreError as error:
                self._report(batch.key, error)
                await self._wait(pause(round_, _random()))
            else:
                self._settle(batch, body)
                return

    async def _wait(self, seconds: float) -> None:
        """Wait between two rounds; an uploaded object elsewhere ends it early.

        Not before FIRST_PAUSE: a batch that fails alone must not be tried again with every
        success of another.
        """
        await trio.sleep(min(seconds, FIRST_PAUSE))
        if seconds > FIRST_PAUSE and "store" in self._health.troubles:
            with trio.move_on_after(seconds - FIRST_PAUSE):
                await self._mended.wait()

    async def _put(self, key: str, body: Encoded) -> None:
        """Make one round of attempts; raises the StoreError of the last one."""
        cost = None
        for attempt in itertools.count(1):
            if self._calm_after > trio.current_time():
                await trio.sleep_until(self._calm_after)
            try:
                await self._attempt(key, body)
            except TransientStoreError as error:
                if attempt == MAX_ATTEMPTS:
                    raise
                cost = self._budget.spend(throttled=error.throttled)
                if cost is None:
                    raise
                await self._back_off(attempt, error)
            else:
                self._budget.refund(cost)
                return

    async def _attempt(self, key: str, body: Encoded) -> None:
        """Make one attempt within UPLOAD_TIMEOUT, and count how it ended."""
        start = trio.current_time()
        try:
            with trio.fail_after(self._upload_timeout):
                await self._store.put(key, body)
        except trio.TooSlowError:
            self._outcomes[Outcome.TRANSIENT].inc()
            reason = f"no answer within UPLOAD_TIMEOUT ({self._upload_timeout:g} s)"
            raise TransientStoreError("UploadTimeout", reason) from None
        except StoreError as error:
            self._outcomes[error.outcome].inc()
            raise
        self._outcomes[Outcome.STORED].inc()
        self._metrics.upload_seconds.observe(trio.current_time() - start)

    async def _back_off(self, attempt: int, error: TransientStoreError) -> None:
        wait = backoff(
            attempt,
            _random(),
            throttled=error.throttled,
            at_least=error.retry_after or 0.0,
        )
        if error.throttled:
            # The store asks the daemon for less, not this worker: all of them hold back.
            self._calm_after = max(self._calm_after, trio.current_time() + wait)
        await trio.sleep(wait)

    def _settle(self, batch: Batch, body: Encoded) -> None:
        self._journal.settle(batch)
        self._ledger.settle(batch)
        self._metrics.objects_stored.inc()
        self._metrics.object_bytes.observe(body.size)
        trouble = self._health.clear("store")
        if trouble is not None:
            self._mended.set()
            self._mended = trio.Event()
            log.info("store_available", waited=round(time.time() - trouble.since, 1))

    def _report(self, key: str, error: StoreError) -> None:
        if self._health.report("store", error.code, str(error)):
            log.warning("store_unavailable", code=error.code, reason=str(error), key=key)

    def _bury(self, batch: Batch, error: InvalidObjectError) -> None:
        self._journal.bury(batch, error.code, str(error))
        self._ledger.bury(batch)
        log.error(
            "payloads_dead",
            id=str(batch.id),
            code=error.code,
            reason=str(error),
            key=batch.key,
            payloads=batch.payloads,
        )


async def _encode(batch: Batch) -> Encoded:
    lines = batch.pieces
    if batch.compression == "none" or batch.bytes <= _COMPRESS_IN_THREAD:
        return encode(lines, batch.compression)
    return await trio.to_thread.run_sync(encode, lines, batch.compression, abandon_on_cancel=True)
