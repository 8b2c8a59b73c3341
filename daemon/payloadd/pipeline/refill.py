"""Fill the memory channel: with new jobs while it has space, else from the journal.

While the channel has space, committed jobs go straight into it. When it has none, jobs stay in the
journal and ``refill`` reads them back, in order, as workers free space; until a stream has caught
up, its new jobs stay behind the older ones. So neither the memory nor the time to start depends on
the size of the backlog.

Each stream is behind, or has caught up, by itself: the streams that are behind get a page in turns,
and the new jobs of the others go straight into the channel.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from payloadd.journal.api import Journal
    from payloadd.model.job import Job
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.queue import JobChannel
    from payloadd.pipeline.spilling import FormingMemory
    from payloadd.pipeline.stream_queue import StreamQueue

_LONGEST_WAIT: Final = 1.0
"""Seconds for which a page waits until half of the memory is free."""
_LEAST_SHARE: Final = 8
"""Afterwards it is smaller: one part in so many of the memory."""


class QueueFeeder:
    """Put jobs into the channel, each once and in the order of acceptance of its stream.

    The journal reports committed jobs to it, by way of ``PipelineListener``.
    """

    def __init__(self, channel: JobChannel, accounting: Accounting) -> None:
        """Begin without jobs; ``resume`` names those of a journal."""
        self._channel = channel
        self._accounting = accounting
        self._memory: FormingMemory | None = None
        self._ends_batches = False
        """Whether batches end where memory is short, as no journal has their jobs."""
        # Bounded by the number of streams.
        self._behind: deque[StreamQueue] = deque()
        """The queues of the streams that are behind, the one whose turn it is in front."""
        self._waiting = False
        """Whether a page waits for space."""
        self._waited = False
        """Whether it has waited for a second or longer."""
        self._finishing = False
        self._closed = False
        self._changed = trio.Event()

    def form_batches(self, memory: FormingMemory) -> None:
        """Note the batches that are formed, where several jobs become one object."""
        self._memory = memory
        self._ends_batches = not memory.durable

    def resume(self, newest: Mapping[int, int]) -> None:
        """Begin with a journal that has jobs up to a ``seq`` of each stream, by its number."""
        for seq in newest.values():
            self.leave(seq)

    def offer(self, jobs: Sequence[Job]) -> None:
        """Put jobs of one stream, just committed, into the channel, or leave them to ``refill``.

        The jobs of one commit may come in several calls. A page that was read between two of these
        calls holds some of the jobs that are still to come; these are not put in again.
        """
        if not jobs:
            return
        queue = self._channel.queue_of(jobs[0].seq)
        if jobs[0].seq <= queue.sent:
            jobs = [job for job in jobs if job.seq > queue.sent]
        if not jobs or self._closed:
            return
        queue.newest = jobs[-1].seq
        if queue.is_behind:
            return
        if not self._put_new(queue, jobs):
            self._fall_behind(queue)

    def leave(self, newest: int) -> None:
        """Leave the committed jobs of a stream up to the ``seq`` ``newest`` to ``refill``."""
        queue = self._channel.queue_of(newest)
        if newest > queue.newest:
            queue.newest = newest
            self._fall_behind(queue)

    def nudge(self) -> None:
        """Make the batcher ask the journal for sealed batches again."""
        self._channel.nudge()

    def forget(self, streams: Collection[int]) -> None:
        """Drop the jobs of these streams that no worker has; no more of them will come."""
        self._channel.forgotten(streams)
        for number in streams:
            queue = self._channel.streams.get(number)
            if queue is not None:
                if queue.jobs:
                    self._accounting.leave(self._channel.withdraw(queue, 0))
                # ``page`` has none of them either.
                queue.sent = queue.newest

    def finish(self) -> None:
        """Close the channel behind the last job: no more jobs will be offered."""
        self._finishing = True
        self._changed.set()

    def withdraw_all(self) -> None:
        """Leave the jobs that no batch has received to ``refill``: memory is needed."""
        if self._closed:
            return
        for queue in self._channel.streams.values():
            if queue.jobs:
                self._withdraw(queue, 0)

    async def refill(
        self, journal: Journal, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Put the jobs that did not fit into the channel; return once ``finish`` is complete."""
        task_status.started()
        while True:
            if self._behind:
                await self._serve(journal, self._behind[0])
            elif self._finishing:
                self._closed = True
                self._channel.close()
                return
            else:
                await self._changed.wait()
                self._changed = trio.Event()

    async def _serve(self, journal: Journal, queue: StreamQueue) -> None:
        """Put one page of a stream that is behind into the channel."""
        await self._put_page(journal, queue)
        self._behind.popleft()
        if queue.sent < queue.newest:
            self._behind.append(queue)
        else:
            queue.is_behind = False
            if queue.forming is not None:
                queue.nudge()  # it may end: it has waited for jobs of the journal

    async def _put_page(self, journal: Journal, queue: StreamQueue) -> None:
        channel = self._channel
        if not _is_spilled(queue):
            await self._wait_for(self._may_read, channel.wait_half_empty)
        newest, sent = queue.newest, queue.sent
        # A page fills the free half. It is larger only if its one job is. Beside other streams it
        # leaves space for their new jobs.
        share = 2 if len(channel.streams) == 1 else 4
        if not channel.is_half_empty:
            share = _LEAST_SHARE
        most_jobs, most_bytes = max(1, channel.max_jobs // share), channel.max_bytes // share
        async with channel.paging:
            jobs = await journal.page(sent, most_jobs, most_bytes)
            # Before the next wait: a repair of the file has to know that they are in memory.
            self._accounting.enter(jobs)
        if not jobs and queue.sent == sent:
            queue.sent = newest
        while jobs:
            if queue.sent != sent:  # jobs in front of these were withdrawn meanwhile
                self._accounting.leave(jobs)
                return
            if counted := self._count_spilled(queue, jobs):
                self._accounting.leave(jobs[:counted])
                jobs, sent = jobs[counted:], queue.sent
            size = sum([len(job.lines) for job in jobs])
            if channel.fits(len(jobs), size):
                self._put(queue, jobs)
                return
            may_go_on = partial(self._may_go_on, queue, sent, len(jobs), size)
            await self._wait_for(may_go_on, channel.wait_for_space, size)

    def _may_go_on(self, queue: StreamQueue, sent: int, jobs: int, size: int) -> bool:
        """Return whether a page need not wait for memory: any more, or because it is obsolete."""
        return self._channel.fits(jobs, size) or _is_spilled(queue) or queue.sent != sent

    async def _wait_for(
        self, ready: Callable[[], bool], wait: Callable[[], Awaitable[None]], size: int = 0
    ) -> None:
        """Return once ``ready``; call ``wait`` until then, which waits for a change of memory."""
        self._waiting = True
        try:
            while not ready():
                self._make_room(size)
                if ready():
                    return
                with trio.move_on_after(_LONGEST_WAIT):
                    await wait()
                self._waited = True
        finally:
            self._waiting = self._waited = False

    def _may_read(self) -> bool:
        """Return whether there is room for a page: half of the memory is free, or a bit of it.

        New jobs of the streams that have caught up may take whatever becomes free, so that half of
        it never is.
        """
        channel = self._channel
        few = channel.max_jobs // _LEAST_SHARE, channel.max_bytes // _LEAST_SHARE
        return channel.is_half_empty or (self._waited and channel.has_room(*few))

    def _put_new(self, queue: StreamQueue, jobs: Sequence[Job]) -> bool:
        """Put new jobs into the channel; return False if there is no room."""
        if counted := self._count_spilled(queue, jobs):
            jobs = jobs[counted:]
        if self._waiting:
            self._make_room()
        try:
            self._put(queue, jobs)
        except trio.WouldBlock:
            self._make_room()
            self._withdraw_from_largest(queue)
            jobs = jobs[self._count_spilled(queue, jobs) :]
            try:
                self._put(queue, jobs)
            except trio.WouldBlock:
                return False
        self._accounting.enter(jobs)
        if self._ends_batches and not self._channel.is_half_empty:
            self._make_room()
        return True

    def _withdraw_from_largest(self, queue: StreamQueue) -> None:
        """Leave a part of the jobs of the stream that has most of them to ``refill``.

        For ``queue``: else a stream that has filled the memory would delay the jobs of all others
        until half of its own are uploaded.
        """
        channel = self._channel
        largest = max(channel.streams.values(), key=lambda one: one.jobs)
        if largest.jobs > max(1, 2 * queue.jobs) and (
            4 * channel.jobs > channel.max_jobs or 4 * channel.bytes > channel.max_bytes
        ):
            self._withdraw(largest, largest.jobs // 2)

    def _withdraw(self, queue: StreamQueue, keep: int) -> None:
        """Leave all jobs of a queue but the first ``keep`` to ``refill``."""
        jobs = self._channel.withdraw(queue, keep)
        self._accounting.leave(jobs)
        queue.sent = jobs[0].seq - 1
        self._fall_behind(queue)

    def _put(self, queue: StreamQueue, jobs: Sequence[Job]) -> None:
        if jobs:
            self._channel.send_nowait(jobs)
            queue.sent = jobs[-1].seq

    def _count_spilled(self, queue: StreamQueue, jobs: Sequence[Job]) -> int:
        """Count jobs as members of a spilled batch without keeping them; return their number."""
        forming = queue.forming
        if forming is None or not forming.spilled or queue.jobs or not jobs:
            return 0
        counted = forming.count_fitting(jobs)
        if counted:
            queue.sent = jobs[counted - 1].seq
        if not forming.wants_more:
            queue.nudge()
        return counted

    def _make_room(self, size: int = 0) -> None:
        if self._memory is not None:
            self._memory.make_room()
            if size:
                self._memory.make_room_for(size)

    def _fall_behind(self, queue: StreamQueue) -> None:
        if not queue.is_behind:
            queue.is_behind = True
            self._behind.append(queue)
        self._changed.set()


def _is_spilled(queue: StreamQueue) -> bool:
    """Return whether the next jobs of a stream take no memory."""
    forming = queue.forming
    return forming is not None and forming.spilled and forming.wants_more and not queue.jobs
