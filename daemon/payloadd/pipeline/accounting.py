"""Count payloads from acceptance to the store, and measure how fast they leave.

``found + accepted + unacknowledged == stored + dead + open`` holds at any time. The snapshot of the
process (with it the ``drained`` line and the gauges), the counters and ``Retry-After`` are made
from these counts.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.model.job import accepted_at
from payloadd.model.streams import DEFAULT, MOST_NUMBERS, last_seq, stream_of
from payloadd.observe.status import PayloadFigures
from payloadd.pipeline.upload_watch import UploadWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from payloadd.model.job import Batch, Job
    from payloadd.observe.metrics import Metrics

_RATE_SECONDS: Final = 10.0
"""The time over which the drain rate is measured: long enough to even out slow uploads."""
_LAST_OF_DEFAULT: Final = last_seq(DEFAULT)
_LONGEST_RETRY_AFTER: Final = 60
"""Seconds."""


class DrainRate:
    """The payloads that left the pipeline, stored or dead, per second of the last ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds: deque[list[int]] = deque()
        """Pairs: a second of the clock, and the number of payloads that left in it."""

    def count(self, payloads: int) -> None:
        """Count payloads that leave now."""
        second = math.floor(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += payloads
        else:
            self._seconds.append([second, payloads])
            self._forget(second)

    def per_second(self) -> float:
        """Return the payloads per second; 0.0 if none left in the last ten seconds."""
        now = self._clock()
        self._forget(math.floor(now))
        if not self._seconds:
            return 0.0
        span = max(1.0, now - self._seconds[0][0])
        return sum(count for _, count in self._seconds) / span

    def seconds_for(self, payloads: int) -> int:
        """Return the whole seconds in which ``payloads`` leave at the present rate, 1 to 60.

        The result is 60 while nothing leaves: then the time cannot be estimated.
        """
        rate = self.per_second()
        if rate == 0.0:
            return _LONGEST_RETRY_AFTER
        return min(_LONGEST_RETRY_AFTER, max(1, math.ceil(payloads / rate)))

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - _RATE_SECONDS:
            self._seconds.popleft()


class OldestJobs(NamedTuple):
    """A report of the journal about the jobs that are neither stored nor dead."""

    by_stream: Mapping[int, tuple[int, int]]
    """The lowest ``seq`` of each stream that has such jobs, and its time in milliseconds."""
    number: int
    """The number of the report, from 1; 0 before the first."""


@dataclass(slots=True)
class StreamCounts:
    """The payloads of one stream by outcome, since the start of the process."""

    accepted: int = 0
    stored: int = 0
    dead: int = 0
    stored_bytes: int = 0
    """Bytes of the stored objects."""


class Accounting:
    """The counts of payloads of one process, and the jobs that are in memory."""

    def __init__(self, metrics: Metrics, wall_clock: Callable[[], float] = time.time) -> None:
        """Begin with zeros; ``wall_clock`` returns Unix time in seconds."""
        self._metrics = metrics
        self._wall_clock = wall_clock
        self.uploads = UploadWatch()
        """The requests that want to know the objects of their payloads."""
        # Bounded by the channel and by the batches of the workers.
        self._in_memory: dict[int, Job] = {}
        self.kept_since: float | None = None
        """The time of acceptance of the oldest job in the journal (Unix time), a second old."""
        self.oldest_jobs = OldestJobs({}, 0)
        """The last report of the journal about the oldest jobs."""
        self.newest_found: dict[int, int] = {}
        """The ``seq`` of the newest job that the start found in the journal, by stream."""
        self.by_stream: dict[int, StreamCounts] = {}
        """The counts of the streams other than the default one; see ``streams``."""
        self.stream_names: Mapping[int, str] = {}
        """The names of streams by their numbers, for the log; empty without STREAMS."""
        self.rate = DrainRate()
        self.accepted = 0
        self.stored = 0
        self.dead = 0
        self.found = 0
        """Payloads that were in the journal at the start, or dead letters that are tried again."""
        self.journaled = 0
        """Payloads that were in the journal when it was closed."""
        self.unacknowledged = 0
        """Payloads of ``take`` that were neither acknowledged nor dropped."""
        self.unkept = 0
        """Payloads that the store refused for good and that no journal keeps."""

    @property
    def open(self) -> int:
        """Payloads that are neither stored nor dead."""
        return self.found + self.accepted + self.unacknowledged - self.stored - self.dead

    @property
    def lost(self) -> int:
        """Payloads that were acknowledged and that no store and no journal has.

        Valid once the journal is closed.
        """
        return self.figures().lost_when_closed

    def figures(self) -> PayloadFigures:
        """Return the counts for a snapshot of the process."""
        return PayloadFigures(
            self.accepted,
            self.stored,
            self.dead,
            self.open,
            self.journaled,
            self.unkept,
            self.oldest_age(),
            self.rate.per_second(),
            # Payloads of ``take`` are stored before they are acknowledged: none that is open was.
            min(self.open, self.unacknowledged),
        )

    def oldest_age(self) -> float:
        """Return the age of the oldest open payload in seconds; 0.0 if no payload is open.

        The oldest is the job in memory that went to the workers first, or one that is in the
        journal alone: in a batch from before a crash, or in a backlog that cannot be read.
        """
        since = [accepted_at(job.id) for job in islice(self._in_memory.values(), 1)]
        if self.kept_since is not None and self.open:
            since.append(self.kept_since)
        return max(0.0, self._wall_clock() - min(since)) if since else 0.0

    def accept(self, payloads: int) -> None:
        """Count payloads that are acknowledged: durable, as far as DURABILITY promises it."""
        self.accepted += payloads
        self._metrics.accepted.inc(payloads)

    def accept_in(self, stream: int, payloads: int) -> None:
        """Count acknowledged payloads, which ``accept`` has counted, for their stream."""
        self._counts(stream).accepted += payloads

    def take(self, payloads: int) -> None:
        """Count payloads that are queued and not acknowledged."""
        self.unacknowledged += payloads

    def acknowledge(self, seq: int, payloads: int) -> None:
        """Count payloads of ``take`` as acknowledged; ``seq`` is of their stream."""
        self.unacknowledged -= payloads
        self.accept(payloads)
        if seq > _LAST_OF_DEFAULT:
            self.accept_in(stream_of(seq), payloads)

    def drop(self, jobs: Sequence[Job]) -> None:
        """Note that jobs which were not acknowledged are dropped."""
        self.leave(jobs)
        self.unacknowledged -= sum([job.payloads for job in jobs])

    def streams(self) -> dict[int, StreamCounts]:
        """Return the counts of each stream, by its number.

        Those of the default stream are what the others leave: it costs nothing to count them.
        """
        others = [one for number, one in self.by_stream.items() if number != DEFAULT]
        default = StreamCounts(
            self.accepted - sum([one.accepted for one in others]),
            self.stored - sum([one.stored for one in others]),
            self.dead - sum([one.dead for one in others]),
            self._metrics.stored_bytes.value - sum([one.stored_bytes for one in others]),
        )
        return {**self.by_stream, DEFAULT: default}

    def stream_name(self, seq: int) -> str | None:
        """Return the name of the stream of a job; None without STREAMS."""
        return self.stream_names.get(stream_of(seq) % MOST_NUMBERS)

    def _counts(self, stream: int) -> StreamCounts:
        # The streams of other lanes of a shared journal are counted by their names: MOST_NUMBERS.
        return self.by_stream.setdefault(stream % MOST_NUMBERS, StreamCounts())

    def revive(self, payloads: int) -> None:
        """Count the payloads of dead letters that are tried again."""
        self.found += payloads

    def enter(self, jobs: Sequence[Job]) -> None:
        """Note that jobs are in memory, on their way to a worker."""
        self._in_memory.update([(job.seq, job) for job in jobs])

    def jobs(self) -> list[Job]:
        """Return the jobs that are in memory: on their way to a worker or in its batch."""
        return list(self._in_memory.values())

    def holds(self, seq: int) -> bool:
        """Return whether the job with this ``seq`` is in memory."""
        return seq in self._in_memory

    def leave(self, jobs: Sequence[Job]) -> None:
        """Note that jobs are in the journal alone."""
        for job in jobs:
            self._in_memory.pop(job.seq, None)

    def settle(self, batch: Batch, size: int = 0) -> None:
        """Count the payloads of a batch that the store confirmed as an object of ``size`` bytes."""
        self._remove(batch)
        if self.uploads.jobs:
            self.uploads.store(batch)
        self.stored += batch.payloads
        self._metrics.stored.value += batch.payloads
        self._metrics.stored_bytes.value += size
        if (seq := batch.jobs[0].seq) > _LAST_OF_DEFAULT:
            counts = self._counts(stream_of(seq))
            counts.stored += batch.payloads
            counts.stored_bytes += size

    def bury(self, batch: Batch) -> None:
        """Count the payloads of a batch that the store refused for good."""
        self._remove(batch)
        if self.uploads.jobs:
            self.uploads.bury(batch)
        self.dead += batch.payloads
        self._metrics.dead.inc(batch.payloads)
        if (seq := batch.jobs[0].seq) > _LAST_OF_DEFAULT:
            self._counts(stream_of(seq)).dead += batch.payloads

    def _remove(self, batch: Batch) -> None:
        for job in batch.jobs:
            self._in_memory.pop(job.seq, None)
        self.rate.count(batch.payloads)
