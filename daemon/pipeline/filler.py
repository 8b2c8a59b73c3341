"""Fills batches: first those sealed before a crash, then what comes through the channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from daemon.pipeline.channel import NudgedError

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.pipeline.channel import JobChannel
    from daemon.pipeline.job import Batch, Job
    from daemon.pipeline.journal import Journal
    from daemon.pipeline.layout import Layouts


class Filler:
    """Gives one batch after the other, for a worker that is idle."""

    def __init__(
        self, channel: JobChannel, journal: Journal, layouts: Layouts, settings: Settings
    ) -> None:
        self._channel = channel
        self._journal = journal
        self._layouts = layouts
        self._most_payloads = settings.batch_max_payloads
        self._most_bytes = settings.batch_max_bytes
        self._linger = settings.batch_linger
        self._replaying = True
        self._held: Job | None = None
        """The job that did not fit into the last batch."""

    async def next(self) -> Batch | None:
        """Return the next batch, or None once the channel is closed and empty."""
        first, self._held = self._held, None
        while first is None:
            if self._replaying:
                batch = await self._sealed()
                if batch is not None:
                    self._channel.hold(batch.bytes)
                    return batch
                self._replaying = False
            first = await self._following()
            if first is None and not self._replaying:
                return None
        alone = self._layouts.at(first.seq).alone
        return self._layouts.batch([first] if alone else await self._fill(first))

    async def _sealed(self) -> Batch | None:
        self._channel.paused = True
        try:
            await self._channel.wait_for_hands()
            return await self._journal.sealed()
        finally:
            self._channel.paused = False

    def next_nowait(self) -> Batch | None:
        """Return the next batch if it is a single job that is there already, else None.

        For a worker that has just finished: to be idle first, and served by the dispatcher,
        takes five task switches, half of what a job costs here. Where an object holds several
        jobs that is shared by all of them, and only one task may fill a batch.
        """
        if self._most_payloads > 1 or self._replaying:
            return None
        try:
            return self._layouts.batch([self._channel.receive_nowait()])
        except NudgedError:
            self._replaying = True
            return None
        except (trio.WouldBlock, trio.EndOfChannel):
            return None

    async def _fill(self, first: Job) -> list[Job]:
        """Return ``first`` and those behind it, until the batch is full or has waited enough."""
        jobs = [first]
        payloads, size = first.payloads, len(first.lines)
        with trio.move_on_after(self._linger):
            while payloads < self._most_payloads and size < self._most_bytes:
                job = await self._following()
                if job is None:
                    break
                payloads += job.payloads
                size += len(job.lines)
                fits = payloads <= self._most_payloads and size <= self._most_bytes
                if not fits or not self._may_join(jobs[-1], job):
                    self._held = job
                    break
                jobs.append(job)
        return jobs

    async def _following(self) -> Job | None:
        """Return the next job of the channel; None once it is closed and empty, or nudged."""
        try:
            try:
                # A job that is there is taken without a task switch, which costs more than the
                # rest.
                return self._channel.receive_nowait()
            except trio.WouldBlock:
                return await self._channel.receive()
        except trio.EndOfChannel:
            return None
        except NudgedError:
            # There are sealed batches again; what is being filled goes first.
            self._replaying = True
            return None

    def _may_join(self, last: Job, job: Job) -> bool:
        """Return whether a range of ``seq`` can say that both are members of one batch."""
        return job.seq == last.seq + 1 and self._layouts.at(job.seq) is self._layouts.at(last.seq)
