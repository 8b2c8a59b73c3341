"""The bounded memory channel between acceptance and the dispatcher.

A trio memory channel counts items; a queue of payloads has to be bounded in bytes too. The sender
never waits: a task that waits for space would be a queue without a bound. Received jobs count
against the bytes until they are released, because payloads in the batches of workers take as much
memory as payloads that wait.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from payloadd.observe.status import QueueFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.model.job import Job

_LEAST_FOR_GATHERING: Final = 1000
"""Jobs that the channel must have space for, so that ``gather`` waits: a smaller channel would
become full, and requests be refused, while the batch has space."""


class JobChannel:
    """Both ends of the channel, and the counts of its content."""

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        """Create an empty channel for ``max_jobs`` jobs of ``max_bytes`` bytes together."""
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        # Counted here: the statistics of the trio channel cost too much for each job.
        self.jobs = 0
        self.bytes = 0
        self.bytes_held = 0
        """Bytes of the payloads that were received, or counted by ``hold``, and not released."""
        self.received = 0
        """Jobs that were received so far; the watchdog sees by it that the consumer works."""
        self.paused = False
        """Whether the consumer is blocked on memory or disk, so that it receives nothing."""
        self.limited = False
        """Whether some workers have to stay idle, so that the consumer may wait for the others."""
        self.ready: deque[Job] = deque()
        """Jobs that came out of the trio channel and that were not received, the oldest first."""
        self.jobs_put_back = 0
        """Jobs that were received and wait for another attempt: their bytes are held."""
        self.nudged: Callable[[], None] = _ignore
        """Called when there are more sealed batches in the journal."""
        self._closed = False
        # The memory bound of the daemon: max_jobs jobs that together have max_bytes.
        # Jobs come in groups, as they were committed: to send, receive and wake a task for each
        # job was measurable.
        self._send, self._receive = trio.open_memory_channel["Sequence[Job]"](max_jobs)
        self._half_empty: trio.Event | None = None
        self._gathered: trio.Event | None = None
        self._missing_payloads = self._missing_bytes = 0
        """The payloads and bytes that must still come to end ``gather``."""
        self._space_freed: trio.Event | None = None

    def figures(self) -> QueueFigures:
        """Return the content for a snapshot of the process."""
        paused = self.paused or self.limited
        return QueueFigures(self.jobs, self.bytes, self.received, paused, self.jobs_put_back)

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether ``jobs`` jobs of ``size`` bytes together fit now."""
        in_memory = self.bytes + self.bytes_held
        jobs += self.jobs + self.jobs_put_back
        return jobs <= self.max_jobs and in_memory + size <= self.max_bytes

    def send_nowait(self, jobs: Sequence[Job]) -> None:
        """Put all jobs into the channel, in order.

        Raises trio.WouldBlock if they do not fit, trio.ClosedResourceError if the channel is
        closed; then no job was put into it.
        """
        size = sum([len(job.lines) for job in jobs])
        # A job that was accepted under a larger MAX_QUEUE_BYTES goes through an empty channel.
        if not self.has_room(len(jobs), size) and not (len(jobs) == 1 and self._is_empty):
            raise trio.WouldBlock
        if jobs:
            self._send.send_nowait(jobs)
        self.jobs += len(jobs)
        self.bytes += size
        if self._gathered is not None:
            self._missing_payloads -= sum([job.payloads for job in jobs])
            self._missing_bytes -= size
            if min(self._missing_payloads, self._missing_bytes) <= 0 or not self._is_half_empty:
                self._end_gathering()

    def nudge(self) -> None:
        """Report that there are more sealed batches in the journal."""
        self.nudged()

    async def wait_for_job(self) -> None:
        """Return once a job is ready.

        Raises trio.EndOfChannel once the channel is closed and empty.
        """
        if not self.ready:
            try:
                group = self._receive.receive_nowait()
            except trio.WouldBlock:
                group = await self._receive.receive()
            self._unpack(group)

    async def gather(self, payloads: int, size: int, seconds: float) -> None:
        """Wait for ``seconds``, or until ``payloads`` payloads or ``size`` bytes have come.

        Returns early when the channel is half full or closed. Use it when latency does not
        matter: without it the consumer is woken for each group, once in every commit.
        """
        if self._closed or self.max_jobs < _LEAST_FOR_GATHERING:
            return
        self._missing_payloads, self._missing_bytes = payloads, size
        self._gathered = trio.Event()
        with trio.move_on_after(seconds):
            await self._gathered.wait()
        self._end_gathering()

    def receive_ready(self, count: int) -> list[Job]:
        """Return the oldest ``count`` jobs of ``ready``, which must have as many."""
        jobs = [self.ready.popleft() for _ in range(count)]
        self._count_received(count, sum([len(job.lines) for job in jobs]))
        return jobs

    def receive_nowait(self) -> Job:
        """Return the oldest job.

        Raises trio.WouldBlock if the channel is empty, else as ``wait_for_job``.
        """
        if not self.ready:
            self._unpack(self._receive.receive_nowait())
        job = self.ready.popleft()
        self._count_received(1, len(job.lines))
        return job

    def hold(self, size: int) -> None:
        """Count ``size`` bytes of a batch that did not come through the channel as held."""
        self.bytes_held += size

    def put_back(self, jobs: int) -> None:
        """Count ``jobs`` more received jobs, or fewer, that wait for another attempt."""
        self.jobs_put_back += jobs
        if jobs < 0:
            self._wake_waiting()

    def release(self, size: int) -> None:
        """Count ``size`` held bytes as gone."""
        self.bytes_held -= size
        self._wake_waiting()

    async def wait_half_empty(self) -> None:
        """Return once half of the bounds, in jobs and in bytes, is free."""
        while not self._is_half_empty:
            if self._half_empty is None:
                self._half_empty = trio.Event()
            await self._half_empty.wait()

    async def wait_for_room(self, jobs: int, size: int) -> None:
        """Return once ``jobs`` jobs of ``size`` bytes together fit, or nothing is in memory."""
        while not self._is_empty and not self.has_room(jobs, size):
            await self._wait_for_space()

    def close(self) -> None:
        """Close the sending end: the jobs in the channel can still be received."""
        self._closed = True
        self._send.close()
        self._end_gathering()

    @property
    def _is_empty(self) -> bool:
        return self.jobs == 0 and self.bytes_held == 0

    @property
    def _is_half_empty(self) -> bool:
        in_memory = self.bytes + self.bytes_held
        return 2 * self.jobs <= self.max_jobs and 2 * in_memory <= self.max_bytes

    def _unpack(self, group: Sequence[Job]) -> None:
        self.ready.extend(group)

    def _count_received(self, jobs: int, size: int) -> None:
        self.jobs -= jobs
        self.bytes -= size
        self.bytes_held += size
        self.received += jobs
        self._wake_waiting()

    def _end_gathering(self) -> None:
        if self._gathered is not None:
            self._gathered.set()
            self._gathered = None

    async def _wait_for_space(self) -> None:
        if self._space_freed is None:
            self._space_freed = trio.Event()
        await self._space_freed.wait()

    def _wake_waiting(self) -> None:
        """Wake the tasks that wait for space; cheap if none waits, as this runs for each job."""
        if self._space_freed is not None:
            self._space_freed.set()
            self._space_freed = None
        if self._half_empty is not None and self._is_half_empty:
            self._half_empty.set()
            self._half_empty = None


def _ignore() -> None:
    """Do nothing: no part waits for sealed batches yet."""
