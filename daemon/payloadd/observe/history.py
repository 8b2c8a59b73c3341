"""Keep the figures of the last 15 minutes for the status page.

One sample is taken each second. The last two minutes are kept second by second, what is older in
steps of ten seconds, so the memory is bounded. Counters are kept as totals: rates follow from two
samples, whatever lies between them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.observe.status import Status

_STEP: Final = 1.0
_SECONDS: Final = 120
"""Samples that are kept second by second."""
_COARSE_STEP: Final = 10
_COARSE: Final = 900 // _COARSE_STEP


class Timings(NamedTuple):
    """The number of operations so far, and the seconds that they took together."""

    commits: int = 0
    commit_seconds: float = 0.0
    uploads: int = 0
    upload_seconds: float = 0.0
    object_bytes: int = 0


class Sample(NamedTuple):
    """The figures of one moment; those of payloads and ``Timings`` count from the start on."""

    at: float
    """Unix time in seconds; it rises with each sample, whatever the clock does."""
    accepted: int
    stored: int
    dead: int
    queue_jobs: int
    queue_bytes: int
    journal_bytes: int
    oldest_seconds: float
    busy_workers: int
    commits: int
    commit_seconds: float
    uploads: int
    upload_seconds: float
    object_bytes: int


class History:
    """The samples of one process."""

    def __init__(
        self,
        snapshot: Callable[[], Status],
        timings: Callable[[], Timings],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Begin without samples; both functions return the figures of the moment."""
        self._snapshot = snapshot
        self._timings = timings
        self._clock = clock
        self.started = wall_clock()
        """The start of the process, in Unix time."""
        self._offset = self.started - clock()
        self._recent: deque[Sample] = deque(maxlen=_SECONDS)
        self._older: deque[Sample] = deque(maxlen=_COARSE)
        self._count = 0

    def now(self) -> float:
        """Return the Unix time as it would be if no clock had been set since the start."""
        return self._clock() + self._offset

    async def run(self) -> None:
        """Take a sample each second, without end."""
        while True:
            self.take()
            await trio.sleep(_STEP)

    def take(self) -> None:
        """Take a sample now."""
        status, timings = self._snapshot(), self._timings()
        sample = Sample(
            round(self.now(), 3),
            status.payloads.accepted,
            status.payloads.stored,
            status.payloads.dead,
            status.queue.jobs + status.queue.put_back,
            status.queue.bytes,
            status.journal.bytes,
            round(status.payloads.oldest_seconds, 1),
            status.busy_workers,
            timings.commits,
            round(timings.commit_seconds, 4),
            timings.uploads,
            round(timings.upload_seconds, 4),
            timings.object_bytes,
        )
        if len(self._recent) == _SECONDS and self._count % _COARSE_STEP == 0:
            self._older.append(self._recent[0])
        self._recent.append(sample)
        self._count += 1

    def since(self, at: float) -> list[Sample]:
        """Return the samples after a moment, the oldest first."""
        recent = [sample for sample in self._recent if sample.at > at]
        if len(recent) < len(self._recent):
            return recent
        return [sample for sample in self._older if sample.at > at] + recent
