"""Batches that wait for another attempt, so that no worker waits with them.

A batch that failed, or whose prefix is limited, leaves its worker. Some wait in memory, with the
times at which they are due; all others are sealed and forgotten, and the journal has them
(``Journal.sealed``). So a million failing batches need no more memory than a thousand, and cost no
more attempts: however many wait, a few a second are tried, and after a success more.

A journal that keeps nothing cannot have them: with ``DURABILITY=memory`` all wait in memory, where
they count towards MAX_QUEUE and MAX_QUEUE_BYTES, and requests are refused in the end.

Times are of trio's clock.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from heapq import heapify, heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import LaneLostError
from payloadd.model.job import Batch
from payloadd.model.streams import stream_of
from payloadd.pipeline.allowance import UploadAllowance
from payloadd.pipeline.waiting_batch import WaitingBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from payloadd.journal.api import Journal
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.idle import IdleWorkers
    from payloadd.pipeline.limits import UploadLimits
    from payloadd.pipeline.queue import JobChannel

_MOST_BATCHES: Final = 1000
_SHARE: Final = 4
"""Put-back batches take at most one part in so many of MAX_QUEUE and MAX_QUEUE_BYTES: the refill
waits until half of both is free."""
_LONGEST_TURN: Final = 0.2
"""Seconds between two looks at the limit of a prefix."""
_LOOK_AGAIN: Final = 0.5
"""Seconds between two looks whether there is memory for a batch of the journal."""
_NEXT_PASS: Final = 5.0
"""Seconds between two passes over the sealed batches of the journal in which none was stored. Else
a few batches that do not fit into memory would be tried several times a second each."""
_RETRIES: Final = (4.0, 4.0, 4.0)
"""Retries at once, a second, and for each success. Where less than one in four succeeds, they stay
at a few a second."""


class PutBackBatches:
    """The waiting batches, and the rate at which they are tried again."""

    def __init__(
        self,
        channel: JobChannel,
        accounting: Accounting,
        journal: Journal,
        limits: UploadLimits,
        idle: IdleWorkers,
    ) -> None:
        self._channel = channel
        self.accounting = accounting
        self.journal = journal
        self._limits = limits
        self._idle = idle
        self._most_bytes = channel.max_bytes // _SHARE
        self._most_jobs = channel.max_jobs // _SHARE
        self._failed: list[tuple[float, int, WaitingBatch]] = []
        """Batches that failed, as a heap by the time at which each is due."""
        self._limited: dict[str, deque[WaitingBatch]] = {}
        """Batches that wait for the limit of their prefix, the oldest first; none is empty."""
        self._turns: list[tuple[float, int, str]] = []
        """The prefixes of these, as a heap by the time at which each may start an upload."""
        self._number = count()
        # A few for each lane that this process has lost or given back.
        self._forgotten: set[int] = set()
        """Streams whose jobs another process has; their numbers are not used again."""
        self.batches = 0
        """Batches in memory."""
        self._bytes = 0
        self._retries = UploadAllowance(*_RETRIES)
        self._succeeding = True
        """Whether the last retry was stored: then none waits for its own time."""
        self.last_stored = -math.inf
        """The time of the last success."""
        self.in_journal = True
        """Whether the journal may have sealed batches that are not in memory."""
        self._found = False
        """Whether this pass over the sealed batches of the journal has found one."""
        self._next_pass = -math.inf
        """The time at which the next pass may begin while no retry is stored."""
        self._journal_first = False
        self._finishing = False
        self._changed = trio.Event()
        channel.nudged = self._look_into_journal
        channel.forgotten = self.forget

    @property
    def any_failed(self) -> bool:
        """Whether a batch waits that has failed."""
        return bool(self._failed) or self.in_journal

    @property
    def is_empty(self) -> bool:
        """Whether no batch waits, in memory or in the journal."""
        return not (self.batches or self.in_journal)

    def has_room(self, batch: Batch) -> bool:
        """Return whether ``batch`` may wait in memory."""
        if not self.journal.durable:
            return True
        return (
            self.batches < _MOST_BATCHES
            and self._bytes + batch.bytes <= self._most_bytes
            and self._channel.jobs_put_back + len(batch.jobs) <= self._most_jobs
        )

    async def fail(self, waiting: WaitingBatch, due: float) -> None:
        """Keep a batch that has failed until it is ``due``."""
        if self._drop_if_forgotten(waiting):
            return
        waiting.rounds += 1
        waiting.repeat = True
        waiting.failed = min(waiting.failed, trio.current_time())
        self._succeeding = False
        if self.has_room(waiting.batch):
            self._count(waiting, 1)
            heappush(self._failed, (due, next(self._number), waiting))
            self.wake()
        else:
            await self.leave_to_journal(waiting)

    async def limit(self, waiting: WaitingBatch) -> None:
        """Keep a batch until the limit of its prefix allows another upload."""
        if self._drop_if_forgotten(waiting):
            return
        if self.has_room(waiting.batch):
            self._wait_for_limit(waiting)
            self.wake()
        else:
            await self.leave_to_journal(waiting)

    async def leave_to_journal(self, waiting: WaitingBatch) -> None:
        """Forget a batch: the journal has it as a sealed batch."""
        batch = waiting.batch
        if not (waiting.sealed and batch.sealed):
            # The batch of a single job, too: otherwise its jobs would be found only at a start.
            with suppress(LaneLostError):  # forgotten as well: another process has it
                await self.journal.seal(
                    Batch(batch.jobs, batch.key, batch.format_name, sealed=True)
                )
        self.accounting.leave(batch.jobs)
        self._channel.release(batch.bytes)
        self._look_into_journal()

    def forget(self, streams: Collection[int]) -> None:
        """Drop the batches of these streams that wait in memory: another process has them."""
        self._forgotten.update(streams)
        for waiting in self._remove(lambda one: _is_of(one, streams)):
            self._drop(waiting)

    def _drop_if_forgotten(self, waiting: WaitingBatch) -> bool:
        """Drop a batch of a stream that another process has; return whether it is one."""
        if self._forgotten and _is_of(waiting, self._forgotten):
            self._drop(waiting)
            return True
        return False

    def _drop(self, waiting: WaitingBatch) -> None:
        self.accounting.leave(waiting.batch.jobs)
        self._channel.release(waiting.batch.bytes)

    def succeed(self, *, retried: bool, now: float) -> None:
        """Note that an upload was stored; ``retried``: that of a put-back batch."""
        self.last_stored = now
        if retried:
            self._retries.succeed()
            self._succeeding = True
            self.wake()

    def retry_now(self) -> None:
        """Try batches that failed without a wait: the store works again."""
        self._succeeding = True
        self.wake()

    def withdraw(self, is_wanted: Callable[[Batch], bool]) -> list[Batch]:
        """Remove and return the batches in memory that are not wanted."""
        removed = self._remove(lambda one: not is_wanted(one.batch))
        if removed:
            self.wake()
        return [waiting.batch for waiting in removed]

    def _remove(self, is_gone: Callable[[WaitingBatch], bool]) -> list[WaitingBatch]:
        """Remove and return the batches in memory for which ``is_gone`` is true."""
        removed: list[WaitingBatch] = []

        def stays(waiting: WaitingBatch) -> bool:
            gone = is_gone(waiting)
            if gone:
                removed.append(waiting)
            return not gone

        self._failed = [entry for entry in self._failed if stays(entry[2])]
        heapify(self._failed)
        limited = {prefix: deque(filter(stays, some)) for prefix, some in self._limited.items()}
        self._limited = {prefix: some for prefix, some in limited.items() if some}
        self._turns = [turn for turn in self._turns if turn[2] in self._limited]
        heapify(self._turns)
        for waiting in removed:
            self._count(waiting, -1)
        return removed

    def finish(self) -> None:
        """Let ``next_ready`` return None when no batch is worth another wait."""
        self._finishing = True
        self.wake()

    def wake(self) -> None:
        """Let ``next_ready`` look again."""
        self._changed.set()
        if self._finishing:
            self._idle.wake()

    async def next_ready(self) -> WaitingBatch | None:
        """Wait for the next batch that may be tried again, and remove it; None after ``finish``."""
        while True:
            now = trio.current_time()
            self._changed = trio.Event()
            found = self._next_limited(now) or await self._next_retry(now)
            if found is not None:
                return found
            if self._finishing and self._is_finished():
                return None
            if not self._changed.is_set():
                with trio.move_on_at(self._next_time(now)):
                    await (self._idle.changed() if self._finishing else self._changed.wait())

    def _next_limited(self, now: float) -> WaitingBatch | None:
        while self._turns and self._turns[0][0] <= now:
            prefix = heappop(self._turns)[2]
            waiting = self._limited[prefix]
            limit = self._limits.find(waiting[0].batch.key, now)
            found = None
            if limit is None or limit.start(now):
                found = waiting.popleft()
                self._count(found, -1)
            if waiting:
                self._take_turn(prefix, -math.inf if limit is None else limit.next_start, now)
            else:
                del self._limited[prefix]
            if found is not None:
                return found
        return None

    async def _next_retry(self, now: float) -> WaitingBatch | None:
        """Return a batch that failed, or one of the journal: in turns, if there are both."""
        while self._retries.has_token(now):
            self._journal_first = not self._journal_first
            found = await self._read(now) if self._journal_first else self._next_failed(now)
            if found is None:
                found = self._next_failed(now) if self._journal_first else await self._read(now)
            if found is None:
                break
            limit = self._limits.find(found.batch.key, now)
            if limit is None or limit.start(now):
                self._retries.take(now)
                return found
            self._wait_for_limit(found)
        return None

    def _next_failed(self, now: float) -> WaitingBatch | None:
        if not self._failed or not (self._succeeding or self._failed[0][0] <= now):
            return None
        found = heappop(self._failed)[2]
        self._count(found, -1)
        return found

    async def _read(self, now: float) -> WaitingBatch | None:
        """Return the next sealed batch of the journal; None without one, or without memory."""
        if not self.in_journal or not self._has_memory() or now < self._pass_due(now):
            return None
        batch = await self.journal.sealed()
        if batch is None:
            # The end of a pass: without a find there is none left.
            self.in_journal = self._found
            self._found = False
            self._next_pass = now + _NEXT_PASS
            return await self._read(now) if self.in_journal else None
        self._found = True
        self._channel.hold(batch.bytes)
        return WaitingBatch(batch, rounds=1, sealed=True, repeat=True)

    def _pass_due(self, now: float) -> float:
        """Return the time at which the journal may be read again."""
        return now if self._succeeding else self._next_pass

    def _has_memory(self) -> bool:
        """Return whether a batch of the journal may be read: half of the bounds is free."""
        return (
            2 * self.batches < _MOST_BATCHES
            and 2 * self._bytes <= self._most_bytes
            and self._channel.bytes_held < self._channel.max_bytes
        )

    def _next_time(self, now: float) -> float:
        """Return the time at which ``next_ready`` may have another result without a change."""
        times = [math.inf]
        if self._turns:
            times.append(self._turns[0][0])
        if self._failed or self.in_journal:
            due = now if self._succeeding or not self._failed else self._failed[0][0]
            if self.in_journal:
                read = self._pass_due(now) if self._has_memory() else now + _LOOK_AGAIN
                due = min(due, read) if self._failed else read
            times.append(max(due, self._retries.next_token(now)))
        return min(times)

    def _is_finished(self) -> bool:
        """Return whether the drain need not wait for the batches that are left.

        In an outage it waits, until DRAIN_TIMEOUT. Batches that the store does not take while it
        takes others stay in the journal, and so do those that only an operator can help.
        """
        if self._limited or self._idle.busy:
            return False
        if not self.journal.durable:
            return not self._failed
        if self._succeeding and self.any_failed:
            return False
        return all(
            waiting.needs_operator or waiting.failed < self.last_stored
            for _, _, waiting in self._failed
        )

    def _wait_for_limit(self, waiting: WaitingBatch) -> None:
        key = waiting.batch.key
        prefix = self._limits.prefix_of(key)
        self._count(waiting, 1)
        if prefix not in self._limited:
            self._limited[prefix] = deque()
            now = trio.current_time()
            limit = self._limits.find(key, now)
            self._take_turn(prefix, -math.inf if limit is None else limit.next_start, now)
        self._limited[prefix].append(waiting)

    def _take_turn(self, prefix: str, next_start: float, now: float) -> None:
        # The next start may become earlier: when the store works again after a long wait.
        heappush(self._turns, (min(next_start, now + _LONGEST_TURN), next(self._number), prefix))

    def waits_for_limit(self, key: str) -> bool:
        """Return whether older batches with the prefix of ``key`` wait for its limit."""
        return self._limits.prefix_of(key) in self._limited

    def _count(self, waiting: WaitingBatch, by: int) -> None:
        self.batches += by
        self._bytes += by * waiting.batch.bytes
        self._channel.put_back(by * len(waiting.batch.jobs))

    def _look_into_journal(self) -> None:
        """Note that there are more sealed batches: of put-back batches or revived dead letters."""
        self.in_journal = self._found = True
        self.wake()


def _is_of(waiting: WaitingBatch, streams: Collection[int]) -> bool:
    return stream_of(waiting.batch.jobs[0].seq) in streams
