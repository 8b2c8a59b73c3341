"""Make room in memory: drop the members of batches that are formed; the journal has them.

Hundreds of streams may each have a batch that waits for more jobs. Without room for these jobs all
batches would end small; a batch that may be larger than MAX_QUEUE_BYTES would never become full. So
when there is no room and these batches have a considerable part of the memory, the largest ones are
*spilled*: only the range of their members is kept, and jobs that come for them are counted and
dropped as well. The members are read back when the batch has ended and a worker is idle.

A journal that keeps nothing (``DURABILITY=memory``) has no members to read back: there the largest
batches end instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from payloadd.model.job import Job
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.queue import JobChannel
    from payloadd.pipeline.stream_queue import StreamQueue

SHARE: Final = 4
"""Batches that are formed may keep one part in so many of the bound on bytes when memory is short:
workers, or batches that were put back, have the rest, and give it back by themselves."""
_MOST_JOBS: Final = 4
"""Batches that are formed have at most so many times the jobs of MAX_QUEUE, or of a full batch."""
_RECEIVE_PAUSE: Final = 0.005
"""Seconds: it takes a while for a thousand streams, and there may be no room in every commit."""


class FormingMemory:
    """The memory of the batches that are formed."""

    def __init__(
        self, channel: JobChannel, accounting: Accounting, max_payloads: int, *, durable: bool
    ) -> None:
        """``durable``: whether the members of a batch can be read back from the journal."""
        self._channel = channel
        self._accounting = accounting
        self._durable = durable
        self._receive_next = -math.inf
        """The time at which ready jobs may be received for all streams again, by trio's clock."""
        self._most_jobs = _MOST_JOBS * max(channel.max_jobs, max_payloads)

    @property
    def is_large(self) -> bool:
        """Whether batches that are formed have a considerable part of the memory."""
        channel = self._channel
        return (
            SHARE * channel.forming_bytes > channel.max_bytes
            or channel.forming_jobs > self._most_jobs
        )

    def receive_fitting(self, queue: StreamQueue) -> None:
        """Move the ready jobs of a stream into its batch, as far as they fit."""
        forming = queue.forming
        if forming is None:
            return
        count = forming.count_fitting(queue.ready)
        if not count:
            return
        jobs = self._channel.receive_ready(queue, count)
        if not forming.spilled:
            forming.jobs += jobs
            if self._channel.forming_jobs > self._most_jobs:
                self._shrink()
        else:
            self._forget(jobs)

    def make_room(self) -> None:
        """Spill large batches, if batches that are formed have much memory."""
        if 2 * self._channel.jobs > self._channel.max_jobs:
            self._receive_all()
        if self.is_large:
            self._shrink()

    def _receive_all(self) -> None:
        """Move ready jobs of all streams into their batches: their tasks do so a bit later."""
        now = trio.current_time()
        if now < self._receive_next:
            return
        self._receive_next = now + _RECEIVE_PAUSE
        for queue in self._channel.streams.values():
            if queue.jobs and queue.forming is not None:
                queue.unpack()
                self.receive_fitting(queue)

    def make_room_for(self, size: int) -> None:
        """Make so much room that ``size`` bytes fit once the workers have nothing."""
        if not self.will_have_room_for(size):
            for queue in self._by_size():
                self._spill(queue)
                if self.will_have_room_for(size):
                    return

    def will_have_room_for(self, size: int) -> bool:
        """Return whether ``size`` bytes fit once the workers have nothing.

        Batches that were put back keep what they have.
        """
        channel = self._channel
        limit = room_for(channel, size) - size - channel.max_bytes // SHARE
        return channel.bytes + channel.forming_bytes <= limit

    def _shrink(self) -> None:
        """Halve the memory of the batches that are formed, or end them."""
        most_jobs, most_bytes = self._channel.forming_jobs // 2, self._channel.forming_bytes // 2
        for queue in self._by_size():
            if not self._durable:
                if self._end(queue):
                    return
                continue
            self._spill(queue)
            if (
                self._channel.forming_jobs <= most_jobs
                and self._channel.forming_bytes <= most_bytes
            ):
                return

    def _by_size(self) -> list[StreamQueue]:
        """Return the queues whose batch has members in memory, the largest first."""
        found = [
            (queue.forming.bytes, queue.number, queue)
            for queue in self._channel.streams.values()
            if queue.forming is not None and queue.forming.jobs
        ]
        return [queue for _, _, queue in sorted(found, reverse=True)]

    def _spill(self, queue: StreamQueue) -> None:
        if queue.forming is not None:
            self._forget(queue.forming.spill())

    def _end(self, queue: StreamQueue) -> bool:
        """End the batch of a queue; return False if it has ended already."""
        if queue.forming is None or queue.forming.ended:
            return False
        queue.forming.ended = True
        queue.nudge()
        return True

    def _forget(self, jobs: list[Job]) -> None:
        """Drop received jobs: they are in the journal alone."""
        size = sum([len(job.lines) for job in jobs])
        self._accounting.leave(jobs)
        self._channel.end_forming(len(jobs), size)
        self._channel.release(size)


def room_for(channel: JobChannel, size: int) -> int:
    """Return the most bytes in memory with a batch of ``size`` bytes that is read back.

    A batch that is larger than the bound is alone in memory, but for batches that were put back.
    """
    return max(channel.max_bytes, size + channel.max_bytes // SHARE)
