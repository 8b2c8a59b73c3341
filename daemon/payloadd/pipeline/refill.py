"""Fill the memory channel: with new jobs while it has space, else from the journal.

While the channel has space, committed jobs go straight into it. When it has none, jobs stay in the
journal and ``refill`` reads them back, in order, as workers free space; until it has caught up, new
jobs stay behind the older ones. So neither the memory nor the time to start depends on the size of
the backlog.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.journal.api import Journal
    from payloadd.model.job import Job
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.queue import JobChannel


class QueueFeeder:
    """Put jobs into the channel, each once and in the order of acceptance.

    The journal reports committed jobs to it, by way of ``PipelineListener``.
    """

    def __init__(self, channel: JobChannel, accounting: Accounting, newest: int = 0) -> None:
        """Begin with a journal whose newest job has the ``seq`` ``newest`` (0: no job)."""
        self._channel = channel
        self._accounting = accounting
        self._newest = newest
        """The ``seq`` of the newest committed job."""
        self._sent = 0
        """Jobs up to this ``seq`` were put into the channel, or ``page`` had none of them."""
        self._finishing = False
        self._closed = False
        self._changed = trio.Event()

    def resume(self, newest: int) -> None:
        """Begin with a journal whose newest job has the ``seq`` ``newest``."""
        self._newest = newest

    def offer(self, jobs: Sequence[Job]) -> None:
        """Put jobs that were just committed into the channel, or leave them to ``refill``.

        The jobs of one commit may come in several calls. A page that was read between two of these
        calls holds some of the jobs that are still to come; these are not put in again.
        """
        if jobs and jobs[0].seq <= self._sent:
            jobs = [job for job in jobs if job.seq > self._sent]
        if not jobs or self._closed:
            return
        caught_up = self._sent >= self._newest
        self._newest = jobs[-1].seq
        if caught_up:
            with suppress(trio.WouldBlock):
                self._put(jobs)
                self._accounting.enter(jobs)
                return
        self._changed.set()

    def leave(self, newest: int) -> None:
        """Leave the committed jobs up to the ``seq`` ``newest`` to ``refill``."""
        if newest > self._newest:
            self._newest = newest
            self._changed.set()

    def nudge(self) -> None:
        """Make the batcher ask the journal for sealed batches again."""
        self._channel.nudge()

    def finish(self) -> None:
        """Close the channel behind the last job: no more jobs will be offered."""
        self._finishing = True
        self._changed.set()

    async def refill(
        self, journal: Journal, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Put the jobs that did not fit into the channel; return once ``finish`` is complete."""
        task_status.started()
        while True:
            if self._sent < self._newest:
                await self._put_page(journal)
            elif self._finishing:
                self._closed = True
                self._channel.close()
                return
            else:
                await self._changed.wait()
                self._changed = trio.Event()

    async def _put_page(self, journal: Journal) -> None:
        await self._channel.wait_half_empty()
        newest = self._newest
        # A page fills the free half. It is larger only if its one job is.
        most_jobs, most_bytes = max(1, self._channel.max_jobs // 2), self._channel.max_bytes // 2
        jobs = await journal.page(self._sent, most_jobs, most_bytes)
        if jobs:
            # Before the wait: a repair of the file meanwhile has to know that they are in memory.
            self._accounting.enter(jobs)
            await self._channel.wait_for_room(len(jobs), sum([len(job.lines) for job in jobs]))
            self._put(jobs)
        else:
            self._sent = newest

    def _put(self, jobs: Sequence[Job]) -> None:
        self._channel.send_nowait(jobs)
        self._sent = jobs[-1].seq
