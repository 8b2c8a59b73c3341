"""The bounded memory channel between the door and the dispatcher.

A trio memory channel counts items; a queue of payloads has to be bounded in bytes too.
The sender never waits: a task that waits for room would be a queue without a bound. What was
received counts against the bytes until it is released: payloads in the workers' hands take as
much memory as those that wait.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.model.job import Job

_MANY: Final = 1000
"""Jobs that a channel has to hold for them to be gathered in it: a small one would refuse what a
batch has room for."""


class NudgedError(Exception):
    """There is something to do that does not come through the channel."""


class JobChannel:
    """Both ends of the channel, and what is in it."""

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        # Counted here: to ask the trio channel for its statistics cost 12 µs a job.
        self.jobs = 0
        self.bytes = 0
        self.bytes_held = 0
        self.taken = 0
        """Jobs that were received so far: a sign of life of who receives."""
        self.paused = False
        """Whether who receives waits for something else than a job: free hands, the disk."""
        self.ready: deque[Job] = deque()
        """Jobs that have come through and that nobody has taken yet, the oldest first."""
        self._nudged = False
        self._closed = False
        # The memory bound of the daemon: max_jobs jobs that together hold max_bytes; and a nudge.
        # They come in groups, as they were committed: to send, receive and wake once for each
        # job was 3 us a job.
        self._send, self._receive = trio.open_memory_channel["Sequence[Job] | None"](max_jobs + 1)
        self._half_empty: trio.Event | None = None
        self._gathered: trio.Event | None = None
        self._room_payloads = self._room_bytes = 0
        self._some_taken: trio.Event | None = None

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether so many jobs of so many bytes in all fit now."""
        in_memory = self.bytes + self.bytes_held
        return self.jobs + jobs <= self.max_jobs and in_memory + size <= self.max_bytes

    def send_nowait(self, jobs: Sequence[Job]) -> None:
        """Put all jobs in, in order.

        Raises trio.WouldBlock, and puts none in, if they do not fit; trio.ClosedResourceError
        if the channel is closed.
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
            self._room_payloads -= sum([job.payloads for job in jobs])
            self._room_bytes -= size
            if min(self._room_payloads, self._room_bytes) <= 0 or not self._is_half_empty:
                self._end_gathering()

    def nudge(self) -> None:
        """Wake who receives, for something that does not come through the channel."""
        if not self._nudged:
            self._nudged = True
            self._end_gathering()
            with suppress(trio.ClosedResourceError):
                self._send.send_nowait(None)

    async def wait(self) -> None:
        """Return once a job is ready.

        Raises NudgedError, or trio.EndOfChannel once the channel is closed and empty.
        """
        if not self.ready:
            try:
                group = self._receive.receive_nowait()
            except trio.WouldBlock:
                group = await self._receive.receive()
            self._open(group)

    async def gather(self, payloads: int, size: int, seconds: float) -> None:
        """Let jobs come in for so long, or until there are so many payloads or bytes more.

        Half of the bounds is enough in any case, and nothing is waited for where all is closed.
        For who has time: to be woken for each group is a turn of the scheduler with each commit.
        """
        if self._closed or self.max_jobs < _MANY:
            return
        self._room_payloads, self._room_bytes = payloads, size
        self._gathered = trio.Event()
        with trio.move_on_after(seconds):
            await self._gathered.wait()
        self._end_gathering()

    def take(self, count: int) -> list[Job]:
        """Take the oldest ``count`` jobs that are ready."""
        jobs = [self.ready.popleft() for _ in range(count)]
        self._count_out(count, sum([len(job.lines) for job in jobs]))
        return jobs

    def receive_nowait(self) -> Job:
        """Take the oldest job; raises as ``wait`` does, or trio.WouldBlock if none is there."""
        if not self.ready:
            self._open(self._receive.receive_nowait())
        job = self.ready.popleft()
        self._count_out(1, len(job.lines))
        return job

    def hold(self, size: int) -> None:
        """Count bytes that are in somebody's hands and did not come through the channel."""
        self.bytes_held += size

    def release(self, size: int) -> None:
        """Count bytes in hand as gone."""
        self.bytes_held -= size
        self._stir()

    async def wait_until_held_is_small(self) -> None:
        """Return once less than the bound is in hand."""
        while self.bytes_held >= self.max_bytes:
            await self._wait_for_a_change()

    async def wait_half_empty(self) -> None:
        """Return once half of the bounds, in jobs and in bytes, is free."""
        while not self._is_half_empty:
            if self._half_empty is None:
                self._half_empty = trio.Event()
            await self._half_empty.wait()

    async def wait_for_room(self, jobs: int, size: int) -> None:
        """Return once so much fits, or nothing is there."""
        while not self._is_empty and not self.has_room(jobs, size):
            await self._wait_for_a_change()

    def close(self) -> None:
        """Close the sending end: what is in the channel can still be received."""
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

    def _open(self, group: Sequence[Job] | None) -> None:
        if group is None:
            self._nudged = False
            raise NudgedError
        self.ready.extend(group)

    def _count_out(self, jobs: int, size: int) -> None:
        self.jobs -= jobs
        self.bytes -= size
        self.bytes_held += size
        self.taken += jobs
        self._stir()

    def _end_gathering(self) -> None:
        if self._gathered is not None:
            self._gathered.set()
            self._gathered = None

    async def _wait_for_a_change(self) -> None:
        # Two may wait, dispatcher and refill, for the same event.
        if self._some_taken is None:
            self._some_taken = trio.Event()
        await self._some_taken.wait()

    def _stir(self) -> None:
        """Wake who waits; to look for them is all that this costs where nobody does."""
        if self._some_taken is not None:
            self._some_taken.set()
            self._some_taken = None
        if self._half_empty is not None and self._is_half_empty:
            self._half_empty.set()
            self._half_empty = None
