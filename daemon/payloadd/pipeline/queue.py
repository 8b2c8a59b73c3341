"""The bounded memory channels between acceptance and the dispatcher, one for each active stream.

A trio memory channel counts items; a queue of payloads has to be bounded in bytes too, and all
streams share one bound. The sender never waits: a task that waits for space would be a queue
without a bound. Received jobs count against the bytes until they are released, because payloads in
the batches of workers take as much memory as payloads that wait.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from payloadd.model.streams import STREAM_BITS
from payloadd.observe.status import QueueFigures
from payloadd.pipeline.stream_queue import StreamQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from payloadd.model.job import Job

LEAST_FOR_GATHERING: Final = 1000
"""Jobs that the channel must have space for, so that it pays to wait for more of them: a smaller
channel would become full, and requests be refused, while the batch has space."""


class JobChannel:
    """Both ends of the channels of all streams, and the counts of their content."""

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        """Create channels for ``max_jobs`` jobs of ``max_bytes`` bytes, all streams together."""
        self.max_jobs = max_jobs
        self.max_bytes = max_bytes
        # Counted here: the statistics of the trio channels cost too much for each job.
        self.jobs = 0
        self.bytes = 0
        self.bytes_held = 0
        """Bytes of the payloads that were received, or counted by ``hold``, and not released."""
        self.forming_jobs = 0
        """Received jobs in batches that no worker has yet."""
        self.forming_bytes = 0
        """The bytes of these jobs; ``bytes_held`` contains them."""
        self.received = 0
        """Jobs that were received so far; the watchdog sees by it that the consumer works."""
        self.paused = 0
        """Consumers that are blocked on memory, disk or store, so that they receive nothing."""
        self.limited = False
        """Whether some workers have to stay idle, so that the consumer may wait for the others."""
        self.jobs_put_back = 0
        """Jobs that were received and wait for another attempt: their bytes are held."""
        self.nudged: Callable[[], None] = _ignore
        """Called when there are more sealed batches in the journal."""
        self.forgotten: Callable[[Collection[int]], None] = _ignore_streams
        """Called with the numbers of streams whose jobs another process has."""
        self.activated: Callable[[StreamQueue], None] = _ignore_queue
        """Called with the queue of a stream that gets its first job."""
        self.streams: dict[int, StreamQueue] = {}
        """The queues by number of the stream."""
        self.paging = trio.Lock()
        """Held while a page of the journal is read: it knows the jobs of one page at a time."""
        self.closed = False
        self._closed = trio.Event()
        self._turns: deque[StreamQueue] = deque()
        """The queues that have jobs, for a consumer of all streams; the next one in front."""
        self._job_came: trio.Event | None = None
        self._half_empty: trio.Event | None = None
        self._space_freed: trio.Event | None = None

    def figures(self) -> QueueFigures:
        """Return the content for a snapshot of the process."""
        paused = bool(self.paused) or self.limited
        return QueueFigures(
            self.jobs,
            self.bytes,
            self.received,
            paused,
            self.jobs_put_back,
            self.forming_jobs,
            self.forming_bytes,
        )

    def queue_of(self, seq: int) -> StreamQueue:
        """Return the queue of the stream of a job."""
        number = seq >> STREAM_BITS
        queue = self.streams.get(number)
        if queue is None:
            # The memory bound of the daemon: all queues together have max_jobs jobs, which together
            # have max_bytes.
            queue = self.streams[number] = StreamQueue(number, self.max_jobs)
            if self.closed:
                queue.close()
        return queue

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether ``jobs`` jobs of ``size`` bytes together fit now."""
        in_memory = self.bytes + self.bytes_held
        jobs += self.jobs + self.jobs_put_back
        return jobs <= self.max_jobs and in_memory + size <= self.max_bytes

    def send_nowait(self, jobs: Sequence[Job]) -> None:
        """Put all jobs, which are of one stream, into its channel, in order.

        Raises trio.WouldBlock if they do not fit, trio.ClosedResourceError if the channel is
        closed; then no job was put into it.
        """
        size = sum([len(job.lines) for job in jobs])
        # A job that was accepted under a larger MAX_QUEUE_BYTES goes through an empty channel.
        if not self.has_room(len(jobs), size) and not (len(jobs) == 1 and self._is_empty):
            raise trio.WouldBlock
        if self.closed:
            raise trio.ClosedResourceError
        if not jobs:
            return
        queue = self.queue_of(jobs[0].seq)
        self.jobs += len(jobs)
        self.bytes += size
        queue.put(jobs, size)
        if not queue.has_turn and not queue.parked:
            self._give_turn(queue)
        if not queue.active:
            queue.active = True
            self.activated(queue)
        if queue.gathering is not None and not self.is_half_empty:
            queue.end_gathering()

    def nudge(self) -> None:
        """Report that there are more sealed batches in the journal."""
        self.nudged()

    async def wait_for_job(self) -> None:
        """Return once a job of any stream can be received.

        Raises trio.EndOfChannel once the channel is closed and empty.
        """
        while not self._turns:
            if self.closed and not any(queue.parked for queue in self.streams.values()):
                raise trio.EndOfChannel
            self._job_came = trio.Event()
            await self._job_came.wait()

    def receive_nowait(self) -> Job:
        """Return the oldest job of the stream whose turn it is.

        Raises trio.WouldBlock if no job can be received, else as ``wait_for_job``.
        """
        turns = self._turns
        if not turns:
            if self.closed:
                raise trio.EndOfChannel
            raise trio.WouldBlock
        queue = turns[0]
        if not queue.ready:
            queue.unpack()
        job = queue.ready.popleft()
        queue.jobs -= 1
        if not queue.jobs:
            queue.has_turn = False
            turns.popleft()
        elif turns[-1] is not queue:
            turns.rotate(-1)
        self._count_received(1, len(job.lines))
        return job

    def park(self, queue: StreamQueue) -> None:
        """Let ``receive_nowait`` leave a stream out, until ``unpark``."""
        queue.parked = True
        if queue.has_turn:
            queue.has_turn = False
            self._turns.remove(queue)

    def unpark(self, queue: StreamQueue) -> None:
        """Let ``receive_nowait`` return the jobs of a stream again."""
        queue.parked = False
        if queue.jobs:
            self._give_turn(queue)
        self._wake_consumer()

    def receive_ready(self, queue: StreamQueue, count: int) -> list[Job]:
        """Return the oldest ``count`` jobs of ``queue.ready``, which must have as many.

        They are for a batch that is formed; ``end_forming`` is called for it at its end.
        """
        jobs = [queue.ready.popleft() for _ in range(count)]
        size = sum([len(job.lines) for job in jobs])
        queue.jobs -= count
        self.forming_jobs += count
        self.forming_bytes += size
        self._count_received(count, size)
        return jobs

    def end_forming(self, jobs: int, size: int) -> None:
        """Note that so many received jobs of ``size`` bytes are in no batch that is formed."""
        self.forming_jobs -= jobs
        self.forming_bytes -= size

    def withdraw(self, queue: StreamQueue, keep: int) -> list[Job]:
        """Remove and return all jobs of a queue but the first ``keep``."""
        jobs = queue.cut(keep)
        self._count_removed(queue, jobs)
        return jobs

    def _count_removed(self, queue: StreamQueue, jobs: Sequence[Job]) -> None:
        """Count jobs of a queue that were removed and not received."""
        self.jobs -= len(jobs)
        self.bytes -= sum([len(job.lines) for job in jobs])
        if queue.has_turn and not queue.jobs:
            queue.has_turn = False
            self._turns.remove(queue)
        self._wake_waiting()

    def drop_first(self, queue: StreamQueue, is_wanted: Callable[[Job], bool]) -> list[Job]:
        """Remove and return the oldest jobs of a queue, up to the first that is wanted."""
        queue.unpack()
        jobs: list[Job] = []
        while queue.ready and not is_wanted(queue.ready[0]):
            jobs.append(queue.ready.popleft())
        queue.jobs -= len(jobs)
        self._count_removed(queue, jobs)
        return jobs

    def hold(self, size: int) -> None:
        """Count ``size`` bytes of a batch that did not come through the channel as held."""
        self.bytes_held += size

    def put_back(self, jobs: int) -> None:
        """Count ``jobs`` more received jobs, or fewer, that wait for another attempt."""
        self.jobs_put_back += jobs
        if jobs < 0:
            self._wake_waiting()

    def release(self, size: int) -> None:
        """Count ``size`` held bytes as gone."""
        self.bytes_held -= size
        self._wake_waiting()

    async def wait_half_empty(self) -> None:
        """Return once half of the bounds, in jobs and in bytes, is free."""
        while not self.is_half_empty:
            if self._half_empty is None:
                self._half_empty = trio.Event()
            await self._half_empty.wait()

    async def wait_for_room(self, jobs: int, size: int) -> None:
        """Return once ``jobs`` jobs of ``size`` bytes together fit, or nothing is in memory."""
        while not self.fits(jobs, size):
            await self.wait_for_space()

    def fits(self, jobs: int, size: int) -> bool:
        """Return whether ``wait_for_room`` would return at once."""
        return self._is_empty or self.has_room(jobs, size)

    async def wait_for_space(self) -> None:
        """Return after the next change by which there may be more room."""
        if self._space_freed is None:
            self._space_freed = trio.Event()
        await self._space_freed.wait()

    async def wait_closed(self) -> None:
        """Return once ``close`` was called."""
        await self._closed.wait()

    def close(self) -> None:
        """Let the consumers end behind the last job."""
        self.closed = True
        self._closed.set()
        for queue in self.streams.values():
            queue.close()
        self._wake_consumer()
        self._wake_waiting()

    @property
    def _is_empty(self) -> bool:
        return self.jobs == 0 and self.bytes_held == 0

    @property
    def is_half_empty(self) -> bool:
        """Whether half of the bounds, in jobs and in bytes, is free."""
        in_memory = self.bytes + self.bytes_held
        return 2 * self.jobs <= self.max_jobs and 2 * in_memory <= self.max_bytes

    def _give_turn(self, queue: StreamQueue) -> None:
        queue.has_turn = True
        self._turns.append(queue)
        if self._job_came is not None:
            self._wake_consumer()

    def _wake_consumer(self) -> None:
        if self._job_came is not None:
            self._job_came.set()
            self._job_came = None

    def _count_received(self, jobs: int, size: int) -> None:
        self.jobs -= jobs
        self.bytes -= size
        self.bytes_held += size
        self.received += jobs
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        """Wake the tasks that wait for space; cheap if none waits, as this runs for each job."""
        if self._space_freed is not None:
            self._space_freed.set()
            self._space_freed = None
        if self._half_empty is not None and self.is_half_empty:
            self._half_empty.set()
            self._half_empty = None


def _ignore() -> None:
    """Do nothing: no part waits for sealed batches yet."""


def _ignore_queue(_queue: StreamQueue) -> None:
    """Do nothing: no part waits for new streams yet."""


def _ignore_streams(_streams: Collection[int]) -> None:
    """Do nothing: no part holds batches yet."""
