"""The memory channel of one stream, and how far the stream has come."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from payloadd.model.streams import first_seq

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.model.job import Job
    from payloadd.pipeline.forming import FormingBatch


class StreamQueue:
    """The jobs of one stream that wait in memory; :class:`JobChannel` bounds and counts them."""

    __slots__ = (
        "_changed",
        "_missing_bytes",
        "_missing_payloads",
        "_nudged",
        "_receive",
        "_send",
        "active",
        "closed",
        "forming",
        "gathering",
        "has_turn",
        "is_behind",
        "jobs",
        "newest",
        "number",
        "parked",
        "ready",
        "sent",
    )

    def __init__(self, number: int, max_groups: int) -> None:
        """Create the empty queue of the stream ``number`` for so many groups of jobs."""
        self.number = number
        self.newest = first_seq(number)
        """The ``seq`` of the newest committed job."""
        self.sent = first_seq(number)
        """Jobs up to this ``seq`` were put into the queue, or ``page`` had none of them."""
        self.is_behind = False
        """Whether jobs of the stream wait in the journal alone."""
        self.jobs = 0
        """Jobs in the queue."""
        self.ready: deque[Job] = deque()
        """Jobs that came out of the trio channel and that were not received, the oldest first."""
        self.forming: FormingBatch | None = None
        """The batch that the next jobs belong to, as far as they fit; None without one."""
        self.active = False
        """Whether the queue has had a job."""
        self.has_turn = False
        """Whether the queue is in the list of queues that take turns."""
        self.parked = False
        """Whether the stream has to wait until its last batch is admitted."""
        self.closed = False
        # Jobs come in groups, as they were committed: to send, receive and wake a task for each
        # job was measurable.
        self._send, self._receive = trio.open_memory_channel["Sequence[Job]"](max_groups)
        self._nudged = False
        """Whether ``nudge`` was called, and no task has seen it yet."""
        self._changed: trio.Event | None = None
        self.gathering: trio.Event | None = None
        """What ends ``gather``; None while it does not run."""
        self._missing_payloads = self._missing_bytes = 0
        """The payloads and bytes that must still come to end ``gather``."""

    def put(self, jobs: Sequence[Job], size: int) -> None:
        """Add jobs of ``size`` bytes together."""
        self._send.send_nowait(jobs)
        self.jobs += len(jobs)
        if self._changed is not None:
            self._wake()
        if self.gathering is not None:
            self._missing_payloads -= sum([job.payloads for job in jobs])
            self._missing_bytes -= size
            if min(self._missing_payloads, self._missing_bytes) <= 0:
                self.end_gathering()

    def nudge(self) -> None:
        """Let ``wait_for_change`` and ``gather`` return."""
        self._nudged = True
        self.end_gathering()
        self._wake()

    async def wait_for_change(self) -> None:
        """Return once a job is ready, or after ``nudge``.

        Raises trio.EndOfChannel once the queue is closed and empty.
        """
        if self.ready or self._nudged:
            self._nudged = False
            return
        try:
            self.ready.extend(self._receive.receive_nowait())
        except trio.WouldBlock:
            # Not in ``receive``: jobs on the way to a task could be neither moved nor withdrawn.
            self._changed = trio.Event()
            await self._changed.wait()
            self._nudged = False

    async def wait_for_job(self) -> None:
        """Return once a job is ready.

        Raises trio.EndOfChannel once the queue is closed and empty.
        """
        while not self.ready:
            await self.wait_for_change()

    def unpack(self) -> None:
        """Make all jobs of the queue ready."""
        while len(self.ready) < self.jobs:
            self.ready.extend(self._receive.receive_nowait())

    def clear(self) -> list[Job]:
        """Remove and return all jobs."""
        self.unpack()
        jobs = list(self.ready)
        self.ready.clear()
        self.jobs = 0
        return jobs

    async def gather(self, payloads: int, size: int, seconds: float) -> None:
        """Wait for ``seconds``, or until ``payloads`` payloads or ``size`` bytes have come.

        Returns early when the channel is half full, closed or nudged. Use it when latency does not
        matter: without it the consumer is woken for each group, once in every commit.
        """
        if self.closed:
            return
        self._missing_payloads, self._missing_bytes = payloads, size
        self.gathering = trio.Event()
        with trio.move_on_after(seconds):
            await self.gathering.wait()
        self.end_gathering()

    def end_gathering(self) -> None:
        """Let ``gather`` return."""
        if self.gathering is not None:
            self.gathering.set()
            self.gathering = None

    def close(self) -> None:
        """Let the consumer end behind the last job."""
        self.closed = True
        self._send.close()
        self.nudge()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
