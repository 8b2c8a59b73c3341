"""The bounded memory channel between the door and the dispatcher.

A trio memory channel counts items; a queue of payloads has to be bounded in bytes too.
The sender never waits: a task that waits for room would be a queue without a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.pipeline.job import Job


class JobChannel:
    """Both ends of the channel, and what is in it."""

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        self.bytes = 0
        self.taken = 0
        """Jobs that were received so far: a sign of life of who receives."""
        # The memory bound of the daemon: max_jobs jobs that together hold max_bytes.
        self._send, self._receive = trio.open_memory_channel["Job"](max_jobs)
        self._half_empty = trio.Event()
        self._some_taken = trio.Event()

    @property
    def jobs(self) -> int:
        """Jobs in the channel."""
        return self._send.statistics().current_buffer_used

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether so many jobs of so many bytes in all fit now."""
        return self.jobs + jobs <= self.max_jobs and self.bytes + size <= self.max_bytes

    def send_nowait(self, jobs: Sequence[Job]) -> None:
        """Put all jobs in, in order.

        Raises trio.WouldBlock, and puts none in, if they do not fit; trio.ClosedResourceError
        if the channel is closed.
        """
        size = sum(len(job.lines) for job in jobs)
        # A job that was accepted under a larger MAX_QUEUE_BYTES goes through an empty channel.
        if not self.has_room(len(jobs), size) and not (len(jobs) == 1 and self.jobs == 0):
            raise trio.WouldBlock
        for job in jobs:
            self._send.send_nowait(job)
        self.bytes += size

    async def receive(self) -> Job:
        """Take the oldest job; raises trio.EndOfChannel once closed and empty."""
        return self._taken(await self._receive.receive())

    def receive_nowait(self) -> Job:
        """Take the oldest job; raises trio.WouldBlock if there is none now, or EndOfChannel."""
        return self._taken(self._receive.receive_nowait())

    async def wait_half_empty(self) -> None:
        """Return once half of the channel, in jobs and in bytes, is free."""
        while not self._is_half_empty:
            self._half_empty = trio.Event()
            await self._half_empty.wait()

    async def wait_for_room(self, jobs: int, size: int) -> None:
        """Return once so much fits, or the channel is empty."""
        while self.jobs and not self.has_room(jobs, size):
            self._some_taken = trio.Event()
            await self._some_taken.wait()

    def close(self) -> None:
        """Close the sending end: what is in the channel can still be received."""
        self._send.close()

    @property
    def _is_half_empty(self) -> bool:
        return 2 * self.jobs <= self.max_jobs and 2 * self.bytes <= self.max_bytes

    def _taken(self, job: Job) -> Job:
        self.bytes -= len(job.lines)
        self.taken += 1
        self._some_taken.set()
        if self._is_half_empty:
            self._half_empty.set()
        return job
