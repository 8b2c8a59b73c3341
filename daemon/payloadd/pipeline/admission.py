"""Decide which uploads may start now, from the outcomes of those before.

While no upload fails nothing is decided and nothing counted: ``quiet`` is true. From the first
failure on

* a prefix that the store throttles has a limit on its uploads a second (``limits.py``);
* batches that failed are tried again at a bounded rate (``put_back.py``);
* new batches are tried without a limit while some uploads succeed. Once a thousand have failed
  without a success, they start at a few a second, so that an outage does not put the whole backlog
  back, batch by batch;
* uploads that did not progress within UPLOAD_TIMEOUT halve the number of uploads at a time: a slow
  line is shared by fewer then.

Times are of trio's clock.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import OperatorStoreError, TransientStoreError
from payloadd.observe.status import UploadFigures
from payloadd.pipeline.allowance import UploadAllowance
from payloadd.pipeline.idle import IdleWorkers
from payloadd.pipeline.limits import UploadLimits
from payloadd.pipeline.put_back import PutBackBatches
from payloadd.pipeline.retry import pause
from payloadd.pipeline.trouble import StoreTrouble
from payloadd.pipeline.waiting_batch import WaitingBatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from payloadd.errors import StoreError
    from payloadd.journal.api import Journal
    from payloadd.model.job import Batch
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.queue import JobChannel

_FAILING: Final = (1000.0, 4.0, 50.0)
"""New batches that may fail at once, a second, and for each success."""
_AHEAD: Final = (1000.0, 1.0, 10.0)
"""Limited batches that may be left to the journal, to reach those behind them that are not
limited: at once, a second, and for each upload without a limit. Where all are limited, the rest
stays in the channel."""
_TICK: Final = 0.5
"""Seconds."""
_LEAST_CONCURRENCY: Final = 4
"""Uploads at a time that time-outs leave: one that hangs must not keep all others."""

# Jitter keeps batches apart; it does not have to be unpredictable.
_random = random.Random().random  # noqa: S311


class UploadAdmission:
    """The state of all uploads of one process."""

    def __init__(
        self,
        channel: JobChannel,
        accounting: Accounting,
        journal: Journal,
        health: Health,
        metrics: Metrics,
        workers: int,
    ) -> None:
        self._channel = channel
        self._durable = journal.durable
        self._objects_stored = metrics.objects_stored
        self.limits = UploadLimits()
        self.idle = IdleWorkers(workers)
        self.put_back = PutBackBatches(channel, accounting, journal, self.limits, self.idle)
        self.trouble = StoreTrouble(health)
        self._failing = UploadAllowance(*_FAILING)
        self._ahead = UploadAllowance(*_AHEAD)
        self._halved = -math.inf
        """The time at which the number of uploads at a time was halved last."""
        self._changed = trio.Event()
        self.quiet = False
        """Whether nothing fails and nothing waits: successes need not be noted."""
        self.probe: Callable[[], Awaitable[None]] | None = None
        """A task that tries the store while nothing is uploaded (``StoreProbe``); None without."""
        self.direct = True
        """Whether a worker may start the next new batch without asking ``admit``."""
        health.upload_figures = self._figures

    def _figures(self) -> UploadFigures:
        lowest = self.limits.lowest_rate(trio.current_time())
        return UploadFigures(self.idle.concurrency, lowest)

    async def admit(self, batch: Batch) -> bool | None:
        """Return whether a new batch may be uploaded now; if not, it is kept for later.

        Waits while new batches fail. Returns None where the limit of the prefix is the reason for
        which the batch can neither be uploaded nor kept: batches with another prefix may go first.
        """
        while (wait_until := self._failing.next_token(trio.current_time())) > trio.current_time():
            await self._wait(wait_until)
        now = trio.current_time()
        limit = self.limits.find(batch.key, now)
        if limit is None:
            self._failing.take(now)
            self._ahead.succeed()
            return True
        if not self.put_back.waits_for_limit(batch.key) and limit.start(now):
            return True
        if self.put_back.has_room(batch):
            await self.put_back.limit(WaitingBatch(batch))
            return False
        if self._durable and self._ahead.take(now):
            await self.put_back.leave_to_journal(WaitingBatch(batch))
            return False
        return None

    async def wait_for_limit(self) -> None:
        """Return when ``admit`` may have another result for a batch with a limit."""
        await self._wait(trio.current_time() + _TICK)

    async def _wait(self, until: float) -> None:
        self._channel.paused += 1
        try:
            with trio.move_on_at(until):
                await self._changed.wait()
        finally:
            self._channel.paused -= 1

    def store(self, key: str, started: float, *, retried: bool) -> None:
        """Note that an upload was stored, which had ``started``.

        ``retried``: that of a batch that had failed.
        """
        now = trio.current_time()
        self.limits.store(key, now, started)
        if not self._failing.has_token(now):
            self.put_back.retry_now()
        self._failing.succeed()
        self.put_back.succeed(retried=retried, now=now)
        if self.idle.concurrency < self.idle.count:
            self.idle.concurrency += 1
            self.idle.wake()
        self.update()

    async def throttle(
        self, waiting: WaitingBatch, error: TransientStoreError, *, started: float
    ) -> None:
        """Put back a batch whose upload, which had ``started``, was throttled."""
        self.quiet = False
        now = trio.current_time()
        key = waiting.batch.key
        refuses_all = self.limits.refuse(
            key,
            now,
            started=started,
            retry_after=error.retry_after or 0.0,
            stored=self._objects_stored.value,
        )
        if refuses_all:
            self.trouble.report(now, error.code, str(error), key)
        self.update()
        await self.put_back.limit(waiting)

    async def fail(self, waiting: WaitingBatch, error: StoreError) -> None:
        """Put back a batch that failed."""
        self.quiet = False
        now = trio.current_time()
        self.trouble.report(now, error.code, str(error), waiting.batch.key)
        self._failing.spend(now)
        self.update()
        wait = pause(waiting.rounds + 1, _random())
        if isinstance(error, TransientStoreError) and error.retry_after is not None:
            wait = max(wait, error.retry_after)
        waiting.needs_operator = isinstance(error, OperatorStoreError)
        await self.put_back.fail(waiting, now + wait)

    def give_up(self, key: str, error: StoreError) -> None:
        """Note that the upload of ``key`` failed and is not tried again."""
        self.quiet = False
        self.trouble.report(trio.current_time(), error.code, str(error), key)

    def time_out(self, started: float) -> None:
        """Note that an upload, which had ``started``, did not progress: halve the concurrency.

        Uploads that had started before the last time shared the line with more others.
        """
        idle = self.idle
        if started >= self._halved:
            self._halved = trio.current_time()
            least = min(_LEAST_CONCURRENCY, idle.count)
            idle.concurrency = max(least, min(idle.concurrency, idle.busy) // 2)

    def stall(self, key: str, seconds: float) -> None:
        """Report an upload that has not progressed for ``seconds`` and goes on."""
        self.quiet = False
        reason = (
            f"no byte has moved for {seconds:.0f} s: the store accepts none and answers nothing"
        )
        self.trouble.report(trio.current_time(), "NoAnswer", f"NoAnswer: {reason}", key)

    async def run(self) -> None:
        """End what is over, twice a second, without end."""
        while True:
            now = trio.current_time()
            self.limits.sample(now, self._objects_stored.value)
            if not self.quiet:
                self._tick(now)
            await trio.sleep(_TICK)

    def _tick(self, now: float) -> None:
        self.limits.drop_over(now)
        if self.trouble.present and not self._any_fails and self._works:
            self.trouble.end_if_quiet(now)
        self.quiet = (
            self.put_back.is_empty
            and not self.trouble.present
            and not self.limits.by_prefix
            and self.idle.concurrency == self.idle.count
            and self._failing.is_full(now)
        )
        self.update()

    @property
    def _any_fails(self) -> bool:
        return self.put_back.any_failed or self.limits.any_refuses_all

    @property
    def may_give_up(self) -> bool:
        """Whether batches that fail may be given up: else they are kept until they are stored.

        Where they may, the store is probed.
        """
        return self.probe is not None

    @property
    def _works(self) -> bool:
        """Whether an upload was stored since the last failure, or none is in progress.

        A batch that is tried again is in no queue for that time, which may be UPLOAD_TIMEOUT. Where
        batches may be given up, that none is in progress says nothing.
        """
        if self.put_back.last_stored > self.trouble.last_failed:
            return True
        return not (self.may_give_up or self.idle.busy)

    def finish(self) -> None:
        """Report the end of a trouble at the end of a drain that has stored all batches."""
        if self.trouble.present and not self._any_fails:
            self.trouble.end(trio.current_time())

    def update(self) -> None:
        """Find out whether workers may start new batches directly, and let ``admit`` look again."""
        self._channel.limited = self.idle.concurrency < self.idle.count
        self.direct = not (
            self.idle.claimed
            or self._channel.limited
            or self.limits.by_prefix
            or not self._failing.has_token(trio.current_time())
        )
        self._changed.set()
        self._changed = trio.Event()
