"""The channel as a window on the journal.

While the channel has room, what is committed goes straight in. When it has none, jobs stay
in the journal and ``refill`` reads them back, in order, as the workers make room; until it
has caught up, everything new stays behind what is old. So the memory that is used does not
depend on how much waits, and neither does the time to start.
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
    """Puts jobs into the channel in the order of acceptance."""

    def __init__(self, channel: JobChannel, accounting: Accounting, newest: int = 0) -> None:
        """Begin with a journal whose newest job is ``newest`` (0: it is new)."""
        self._channel = channel
        self._accounting = accounting
        self._newest = newest
        self._shown = 0
        self._finishing = False
        self._closed = False
        self._stir = trio.Event()

    def resume(self, newest: int) -> None:
        """Begin with a journal whose newest job is ``newest``."""
        self._newest = newest

    def offer(self, jobs: Sequence[Job]) -> None:
        """Show jobs that were just committed, or leave them to ``refill``.

        The jobs of one commit may come in several calls. A page that is read between two of them
        has some of those that are still to come: these are not shown again.
        """
        if jobs and jobs[0].seq <= self._shown:
            jobs = [job for job in jobs if job.seq > self._shown]
        if not jobs or self._closed:
            return
        caught_up = self._shown >= self._newest
        self._newest = jobs[-1].seq
        if caught_up:
            with suppress(trio.WouldBlock):
                self._show(jobs)
                self._accounting.enter(jobs)
                return
        self._stir.set()

    def leave(self, newest: int) -> None:
        """Leave the committed jobs up to ``newest`` to ``refill``."""
        if newest > self._newest:
            self._newest = newest
            self._stir.set()

    def nudge(self) -> None:
        """Let the filler ask for sealed batches again."""
        self._channel.nudge()

    def finish(self) -> None:
        """Say that nothing more will be offered: close the channel behind the last job."""
        self._finishing = True
        self._stir.set()

    async def refill(
        self, journal: Journal, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Bring what the channel had no room for; returns when all is shown and finished."""
        task_status.started()
        while True:
            if self._shown < self._newest:
                await self._bring_a_page(journal)
            elif self._finishing:
                self._closed = True
                self._channel.close()
                return
            else:
                await self._stir.wait()
                self._stir = trio.Event()

    async def _bring_a_page(self, journal: Journal) -> None:
        await self._channel.wait_half_empty()
        newest = self._newest
        # A page fills the free half, and is never larger than that but for one large job.
        most_jobs, most_bytes = max(1, self._channel.max_jobs // 2), self._channel.max_bytes // 2
        jobs = await journal.page(self._shown, most_jobs, most_bytes)
        if jobs:
            # Before the wait: a repair of the file meanwhile has to know that they are in memory.
            self._accounting.enter(jobs)
            await self._channel.wait_for_room(len(jobs), sum([len(job.lines) for job in jobs]))
            self._show(jobs)
        else:
            self._shown = newest

    def _show(self, jobs: Sequence[Job]) -> None:
        self._channel.send_nowait(jobs)
        self._shown = jobs[-1].seq
