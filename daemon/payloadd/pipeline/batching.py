"""Fills batches: first those sealed before a crash, then what comes through the channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from payloadd.pipeline.queue import NudgedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal
    from payloadd.model.job import Batch, Job
    from payloadd.model.layout import Layouts
    from payloadd.pipeline.queue import JobChannel

_LOOK_EVERY: Final = 0.005
"""Seconds between two looks at what has come for the batch that is being filled."""


class Batcher:
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

    async def next(self) -> Batch | None:
        """Return the next batch, or None once the channel is closed and empty."""
        while True:
            if self._replaying:
                batch = await self._sealed()
                if batch is not None:
                    self._channel.hold(batch.bytes)
                    return batch
                self._replaying = False
            if await self._wait():
                return self._layouts.batch(await self._members())
            if not self._replaying:
                return None

    async def _sealed(self) -> Batch | None:
        self._channel.paused = True
        try:
            await self._channel.wait_until_held_is_small()
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

    async def _wait(self) -> bool:
        """Return whether a job is ready; not so once all is closed and empty, or nudged."""
        try:
            await self._channel.wait()
        except trio.EndOfChannel:
            return False
        except NudgedError:
            # There are sealed batches again; what is being filled goes first.
            self._replaying = True
            return False
        return True

    async def _members(self) -> list[Job]:
        """Return the job that is ready, and those behind it that go into the same object.

        What does not fit stays where it is.
        """
        channel = self._channel
        jobs = channel.take(1)
        first = jobs[0]
        if self._layouts.layout_of(first.seq).alone:
            return jobs
        end = self._layouts.end(first.seq)
        filling = _BatchCapacity(first, end, self._most_payloads, self._most_bytes)
        with trio.move_on_after(self._linger):
            while filling.wants_more:
                if not channel.jobs:
                    seconds = min(_LOOK_EVERY, self._linger / 10)
                    await channel.gather(filling.payloads, filling.bytes, seconds)
                if not await self._wait():
                    break
                jobs += channel.take(filling.count_fitting(channel.ready))
        return jobs


class _BatchCapacity:
    """How much room a batch has, and which job may be its next member."""

    def __init__(self, first: Job, end: int, most_payloads: int, most_bytes: int) -> None:
        """Begin with ``first``, which goes in in any case; jobs from ``end`` on do not."""
        self.payloads = most_payloads - first.payloads
        """Payloads that there is room for."""
        self.bytes = most_bytes - len(first.lines)
        """The same in bytes."""
        self._next = first.seq + 1
        self._end = end
        self._ended = False

    @property
    def wants_more(self) -> bool:
        """Whether another job may go in."""
        return not self._ended and self.payloads > 0 and self.bytes > 0

    def count_fitting(self, ready: Iterable[Job]) -> int:
        """Return how many of these jobs go in, one behind the other.

        A range of ``seq`` has to say who the members are, so a gap ends the batch.
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
