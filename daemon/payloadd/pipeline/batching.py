"""Form batches from the jobs in the channel."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import trio

from payloadd.pipeline.forming import FormingBatch
from payloadd.pipeline.queue import LEAST_FOR_GATHERING
from payloadd.pipeline.spilling import FormingMemory, room_for

if TYPE_CHECKING:
    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal
    from payloadd.model.job import Batch, Job
    from payloadd.model.layout import Layouts
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.admission import UploadAdmission
    from payloadd.pipeline.given_up import GivenUpJobs
    from payloadd.pipeline.queue import JobChannel
    from payloadd.pipeline.refill import QueueFeeder
    from payloadd.pipeline.stream_queue import StreamQueue

_GATHERING: Final = 0.005
"""Seconds for which jobs gather in the channel before they are moved into the batch; so many times
longer as there are streams, as each of them wakes a task."""
_LONGEST_GATHERING: Final = 0.25
"""Seconds."""
_MOST_READ: Final = 8000
"""Jobs that are read back in one call; other tasks run between two calls."""
_SHARE_OF_LINGER: Final = 10
"""Jobs gather for one part in so many of the linger at most."""


class Batcher:
    """Form the batches of all streams."""

    def __init__(
        self,
        channel: JobChannel,
        layouts: Layouts,
        settings: Settings,
        admission: UploadAdmission,
        feeder: QueueFeeder,
    ) -> None:
        self.channel = channel
        self._layouts = layouts
        self._max_payloads = settings.batch_max_payloads
        self._max_bytes = settings.batch_max_bytes
        self._linger = settings.batch_linger
        # One for each stream whose batch lingers.
        self._lingering: set[trio.CancelScope] = set()
        self._admission = admission
        self._feeder = feeder
        journal = admission.put_back.journal
        accounting = admission.put_back.accounting
        self._journal: Journal = journal
        self._accounting: Accounting = accounting
        self.given_up: GivenUpJobs | None = None
        """The jobs whose requests were given up; None where that does not happen."""
        self.alone = settings.batch_max_payloads == 1
        """Whether every payload is an object of its own: no batch is formed and none spilled."""
        self._memory = FormingMemory(
            channel, accounting, self._max_payloads, durable=journal.durable
        )
        if not self.alone:
            feeder.form_batches(self._memory)

    def end_linger(self) -> None:
        """Close each batch from now on, and the current ones, once no job is ready for it."""
        self._linger = 0.0
        for lingering in self._lingering:
            lingering.cancel()

    async def next_single(self) -> Batch | None:
        """Return the next job as a batch; None once the channel is closed and empty.

        The streams that have jobs take turns.
        """
        while (batch := self.next_batch_nowait(direct=True)) is None:
            try:
                await self.channel.wait_for_job()
            except trio.EndOfChannel:
                return None
        return batch

    def next_batch_nowait(self, *, direct: bool = False) -> Batch | None:
        """Return the next batch if it is a single job that is ready, else None.

        For a worker that has just finished: to register as idle and to get a batch from the
        dispatcher takes several task switches, a large part of the cost of a job. Where an object
        holds several jobs, they share this cost, and only one task may form the batches of a
        stream: then the result is always None. It is None, too, while uploads fail and batches have
        to be admitted, unless the caller has them admitted (``direct``).
        """
        if self._max_payloads > 1 or not (direct or self._admission.direct):
            return None
        try:
            return self._layouts.batch([self.channel.receive_nowait()])
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    async def form(self, queue: StreamQueue) -> FormingBatch | None:
        """Form the next batch of a stream; None once the stream is closed and empty.

        Returns when the batch is full, or after BATCH_LINGER, but not before the jobs of the stream
        that are in the journal alone are in the batch or do not fit. Until ``finish`` further jobs
        may be added. Only one task may call this for a stream.
        """
        try:
            await queue.wait_for_job()
        except trio.EndOfChannel:
            return None
        forming = FormingBatch(queue.ready[0], self._layouts, self._max_payloads, self._max_bytes)
        queue.forming = forming
        self.add_ready(queue)
        with trio.move_on_after(self._linger) as lingering:
            self._lingering.add(lingering)
            while forming.wants_more and await self._add_more(queue, forming):
                pass
        self._lingering.discard(lingering)
        while forming.wants_more and queue.is_behind and await self._add_more(queue, forming):
            pass
        return forming

    async def _add_more(self, queue: StreamQueue, forming: FormingBatch) -> bool:
        """Wait for more jobs, and add those that fit; return False if none can come."""
        if not queue.jobs and self.channel.max_jobs >= LEAST_FOR_GATHERING:
            most = min(_LONGEST_GATHERING, self._linger / _SHARE_OF_LINGER)
            seconds = min(most, _GATHERING * len(self.channel.streams))
            await queue.gather(forming.payloads_left, forming.bytes_left, seconds)
            if not forming.wants_more:
                return True
        try:
            await queue.wait_for_change()
        except trio.EndOfChannel:
            return False
        self.add_ready(queue)
        return True

    def add_ready(self, queue: StreamQueue) -> None:
        """Add jobs that are in the channel to the batch of a stream, as far as they fit."""
        queue.unpack()
        self._memory.receive_fitting(queue)

    async def finish(self, queue: StreamQueue) -> list[Batch]:
        """Return the batch of a stream, which ends.

        There are several, or none, if the members of the batch had to be read back and damaged ones
        are among them.
        """
        forming, queue.forming = queue.forming, None
        if forming is None:
            return []
        if not forming.spilled:
            self.channel.end_forming(forming.members, forming.bytes)
            jobs = forming.jobs
            if self.given_up is not None:
                jobs = self.given_up.left_of(jobs)
            return [self._layouts.batch(jobs)] if jobs else []
        jobs = await self._read_back(forming)
        return [self._layouts.batch(run) for run in _neighbours(jobs)]

    async def _read_back(self, forming: FormingBatch) -> list[Job]:
        """Read the members of a spilled batch, once there is memory for them."""
        channel = self.channel
        # Counted first: the memory that becomes free is for these members.
        channel.hold(forming.bytes)
        channel.paused += 1
        try:
            await self._wait_for_memory(forming.bytes)
            jobs = await self._read(forming)
        finally:
            channel.paused -= 1
        channel.release(forming.bytes - sum([len(job.lines) for job in jobs]))
        return jobs

    async def _wait_for_memory(self, size: int) -> None:
        """Return once ``size`` bytes, which are held already, fit into memory."""
        channel = self.channel
        while channel.bytes + channel.bytes_held > room_for(channel, size):
            self._memory.make_room_for(size)
            if not self._memory.will_have_room_for(size):
                self._feeder.withdraw_all()
                if channel.closed and not self._memory.will_have_room_for(size):
                    return  # the last jobs, which no task receives meanwhile
            if channel.bytes + channel.bytes_held > room_for(channel, size):
                await channel.wait_for_space()

    async def _read(self, forming: FormingBatch) -> list[Job]:
        found: list[Job] = []
        after = forming.first - 1
        while after < forming.last:
            async with self.channel.paging:
                left = min(_MOST_READ, forming.members - len(found))
                page = await self._journal.page(after, max(1, left), max(1, forming.bytes))
                members = [job for job in page if job.seq <= forming.last]
                # Before the next wait: a repair of the file has to know that they are in memory.
                self._accounting.enter(members)
            found += members
            if not members:
                break
            after = members[-1].seq
        return found


def _neighbours(jobs: list[Job]) -> list[list[Job]]:
    """Return jobs cut at the gaps in their ``seq``."""
    if not jobs:
        return []
    runs = [[jobs[0]]]
    for before, job in pairwise(jobs):
        if job.seq == before.seq + 1:
            runs[-1].append(job)
        else:
            runs.append([job])
    return runs
