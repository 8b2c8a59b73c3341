"""Offer committed jobs to the pipeline, in the order of acceptance of each stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.journal.api import JournalListener
    from payloadd.journal.sqlite.commit_queue import TimeSlice
    from payloadd.journal.sqlite.operations import Append, Operation
    from payloadd.model.job import Job


class Offering:
    """Offers the jobs of commits; those behind a staged request of their stream wait for it."""

    def __init__(self, listener: JournalListener, portion: int) -> None:
        """Offer at most ``portion`` jobs in one call; other tasks run between two calls."""
        self._listener = listener
        self._portion = portion
        self.staged: Append | None = None
        """The request that is being staged: some of its parts are written."""
        self._newest_behind = 0
        """The last job of its stream that was committed meanwhile; it is offered later."""

    async def offer_others(
        self,
        operations: Sequence[Operation],
        others: Mapping[int, Sequence[Job]],
        time_slice: TimeSlice,
    ) -> None:
        """Offer jobs of several streams, by stream; ``operations`` are those of their commit."""
        for stream, jobs in others.items():
            self._listener.accepted_in(stream, sum([job.payloads for job in jobs]))
            if time_slice.over:
                await time_slice.pause()
            await self.offer(operations, stream, jobs, time_slice)

    async def offer(
        self,
        operations: Sequence[Operation],
        stream: int,
        jobs: Sequence[Job],
        time_slice: TimeSlice,
    ) -> None:
        """Offer jobs of one stream; ``operations`` are those of their commit."""
        if self.staged is None or self.staged.stream != stream:
            await self._offer_in_portions(jobs, time_slice)
        elif any(one is self.staged for one in operations):
            own = len(self.staged.jobs)
            await self._offer_in_portions(jobs[:own], time_slice)
            self.end_staging()
            await self._offer_in_portions(jobs[own:], time_slice)
        elif jobs:
            self._newest_behind = jobs[-1].seq

    async def _offer_in_portions(self, jobs: Sequence[Job], time_slice: TimeSlice) -> None:
        portion = self._portion
        for start in range(0, len(jobs), portion):
            if start:
                await time_slice.pause()
            self._listener.committed(jobs[start : start + portion])

    def end_staging(self) -> None:
        """Let the pipeline read the jobs that were committed behind the staged request."""
        self.staged = None
        newest, self._newest_behind = self._newest_behind, 0
        self._listener.left_for_page(newest)
