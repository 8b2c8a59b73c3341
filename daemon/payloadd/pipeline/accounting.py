"""What was taken in and what became of it: the numbers behind every promise.

``found + accepted == stored + dead + open``, always. The ``drained`` line, the metrics and
``Retry-After`` are read off here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

from payloadd.model.job import accepted_at

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.model.job import Batch, Job
    from payloadd.observe.metrics import Metrics

_WINDOW: Final = 10.0
"""Seconds over which the drain rate is measured: long enough to even out slow uploads."""
_LONGEST_RETRY_AFTER: Final = 60


class DrainRate:
    """Payloads a second that left the pipeline, over the last ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()
        """Pairs: a second of the clock, and how many left in it."""

    def count(self, payloads: int) -> None:
        """Count payloads that left just now."""
        second = math.floor(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += payloads
        else:
            self._seconds.append([second, payloads])
            self._forget(second)

    def rate(self) -> float:
        """Return payloads a second; 0.0 when none left within the window."""
        now = self._clock()
        self._forget(math.floor(now))
        if not self._seconds:
            return 0.0
        span = max(1.0, now - self._seconds[0][0])
        return sum(count for _, count in self._seconds) / span

    def seconds_for(self, payloads: int) -> int:
        """Return whole seconds in which ``payloads`` leave at this rate, 1 to 60.

        With nothing leaving there is no telling: the longest.
        """
        rate = self.rate()
        if rate == 0.0:
            return _LONGEST_RETRY_AFTER
        return min(_LONGEST_RETRY_AFTER, max(1, math.ceil(payloads / rate)))

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - _WINDOW:
            self._seconds.popleft()


class Accounting:
    """Counts payloads from the door to the store."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Bounded by the channel and by what the workers have in hand.
        self._shown: dict[int, Job] = {}
        self.kept_since: float | None = None
        """When the oldest job in the journal was accepted, in Unix time, as of a second ago."""
        self.rate = DrainRate()
        self.accepted = 0
        self.stored = 0
        self.dead = 0
        self.found = 0
        """Payloads that were in the journal at the start, or came back from the dead letters."""
        self.journaled = 0
        """Payloads that the journal held when it was closed."""
        self.unkept = 0
        """Payloads that the store refused for good and that nobody keeps."""
        metrics.oldest_payload_seconds.set_function(self.oldest_age)

    @property
    def open(self) -> int:
        """Payloads that are neither stored nor dead."""
        return self.found + self.accepted - self.stored - self.dead

    @property
    def lost(self) -> int:
        """Payloads that were acknowledged and are nowhere, once all is closed."""
        return max(0, self.open - self.journaled) + self.unkept

    def oldest_age(self) -> float:
        """Return the age in seconds of the oldest open payload, 0.0 without one.

        The oldest is the one that was shown to the workers first, or one that was not shown: a
        batch from before a crash, or a backlog that cannot be read.
        """
        since = [accepted_at(job.id) for job in islice(self._shown.values(), 1)]
        if self.kept_since is not None and self.open:
            since.append(self.kept_since)
        return max(0.0, time.time() - min(since)) if since else 0.0

    def accept(self, payloads: int) -> None:
        """Count payloads that were taken in for good."""
        self.accepted += payloads
        self._metrics.accepted.inc(payloads)

    def revive(self, payloads: int) -> None:
        """Count dead letters that are tried again."""
        self.found += payloads

    def enter(self, jobs: Sequence[Job]) -> None:
        """Note that jobs are on their way to a worker."""
        self._shown.update([(job.seq, job) for job in jobs])

    def jobs(self) -> list[Job]:
        """Return the jobs that are on their way to a worker or with one."""
        return list(self._shown.values())

    def settle(self, batch: Batch) -> None:
        """Count payloads that the store confirmed."""
        self._leave(batch)
        self.stored += batch.payloads
        self._metrics.stored.inc(batch.payloads)

    def bury(self, batch: Batch) -> None:
        """Count payloads that the store refused for good."""
        self._leave(batch)
        self.dead += batch.payloads
        self._metrics.dead.inc(batch.payloads)

    def _leave(self, batch: Batch) -> None:
        for job in batch.jobs:
            self._shown.pop(job.seq, None)
        self.rate.count(batch.payloads)
