"""Form batches from the jobs in the channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from payloadd.config.settings import Settings
    from payloadd.model.job import Batch, Job
    from payloadd.model.layout import Layouts
    from payloadd.pipeline.admission import UploadAdmission
    from payloadd.pipeline.queue import JobChannel

_LONGEST_GATHERING: Final = 0.005
"""Seconds for which jobs gather in the channel before they are moved into the batch."""


class Batcher:
    """Form one batch after the other, each for an idle worker."""

    def __init__(
        self, channel: JobChannel, layouts: Layouts, settings: Settings, admission: UploadAdmission
    ) -> None:
        self._channel = channel
        self._layouts = layouts
        self._max_payloads = settings.batch_max_payloads
        self._max_bytes = settings.batch_max_bytes
        self._linger = settings.batch_linger
        self._lingering = trio.CancelScope()
        self._admission = admission

    def end_linger(self) -> None:
        """Close each batch from now on, and the current one, once no job is ready for it."""
        self._linger = 0.0
        self._lingering.cancel()

    async def next_batch(self) -> Batch | None:
        """Return the next batch, or None once the channel is closed and empty.

        Only one task may call this at a time.
        """
        if await self._wait_for_job():
            return self._layouts.batch(await self._members())
        return None

    def next_batch_nowait(self) -> Batch | None:
        """Return the next batch if it is a single job that is ready, else None.

        For a worker that has just finished: to register as idle and to get a batch from the
        dispatcher takes several task switches, a large part of the cost of a job. Where an object
        holds several jobs, they share this cost, and only one task may form batches: then the
        result is always None. It is None, too, while uploads fail and batches have to be admitted.
        """
        if self._max_payloads > 1 or not self._admission.direct:
            return None
        try:
            return self._layouts.batch([self._channel.receive_nowait()])
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    async def _wait_for_job(self) -> bool:
        """Return whether a job is ready; False if the channel is closed and empty."""
        try:
            await self._channel.wait_for_job()
        except trio.EndOfChannel:
            return False
        return True

    async def _members(self) -> list[Job]:
        """Return the job that is ready, and the following jobs for the same object.

        A job that does not fit stays in the channel.
        """
        channel = self._channel
        jobs = channel.receive_ready(1)
        first = jobs[0]
        if self._layouts.layout_of(first.seq).alone:
            return jobs
        end = self._layouts.next_change(first.seq)
        capacity = _BatchCapacity(first, end, self._max_payloads, self._max_bytes)
        with trio.move_on_after(self._linger) as self._lingering:
            while capacity.wants_more:
                if not channel.jobs:
                    seconds = min(_LONGEST_GATHERING, self._linger / 10)
                    await channel.gather(capacity.payloads, capacity.bytes, seconds)
                if not await self._wait_for_job():
                    break
                jobs += channel.receive_ready(capacity.count_fitting(channel.ready))
        return jobs


class _BatchCapacity:
    """The free space of a batch, and which job may be its next member."""

    def __init__(self, first: Job, end: int, max_payloads: int, max_bytes: int) -> None:
        """Begin with the member ``first``, however large; jobs from ``end`` on do not fit."""
        self.payloads = max_payloads - first.payloads
        """The number of payloads that still fit."""
        self.bytes = max_bytes - len(first.lines)
        """The number of bytes that still fit."""
        self._next = first.seq + 1
        self._end = end
        self._ended = False

    @property
    def wants_more(self) -> bool:
        """Whether another job may fit."""
        return not self._ended and self.payloads > 0 and self.bytes > 0

    def count_fitting(self, ready: Iterable[Job]) -> int:
        """Return how many of the jobs fit, one after the other, and count them as members.

        The journal names the members by a range of ``seq``, so a gap ends the batch.
        """
        before = self._next
        for job in ready:
            payloads, size = self.payloads - job.payloads, self.bytes - len(job.lines)
            if payloads < 0 or size < 0 or job.seq != self._next or job.seq == self._end:
                self._ended = True
                break
            self.payloads, self.bytes = payloads, size
            self._next += 1
        return self._next - before
