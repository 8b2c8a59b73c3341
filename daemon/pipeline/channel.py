"""The bounded memory channel between the door and the dispatcher.

A trio memory channel counts items; a queue of payloads has to be bounded in bytes too.
The sender takes a request's jobs all at once or not at all, and never waits: a task that
waits for room would be a queue without a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

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
        # The memory bound of the daemon: max_jobs jobs that together hold max_bytes.
        self._send, self._receive = trio.open_memory_channel["Job"](max_jobs)

    @property
    def jobs(self) -> int:
        """Jobs in the channel."""
        return self._send.statistics().current_buffer_used

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether so many jobs of so many bytes in all fit now."""
        return self.jobs + jobs <= self.max_jobs and self.bytes + size <= self.max_bytes

    def send_nowait(self, jobs: Sequence[Job]) -> None:
        """Put all jobs in, in order; raises trio.WouldBlock and puts none in if they do not fit."""
        size = sum(len(job.lines) for job in jobs)
        if not self.has_room(len(jobs), size):
            raise trio.WouldBlock
        for job in jobs:
            self._send.send_nowait(job)
        self.bytes += size

    async def receive(self) -> Job:
        """Take the oldest job; raises trio.EndOfChannel once closed and empty."""
        job = await self._receive.receive()
        self.bytes -= len(job.lines)
        return job

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Close the sending end: what is in the channel can still be received."""
        self._send.close()
