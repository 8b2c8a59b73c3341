"""Every job goes through the channel once, in order, and within the bound of memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from payloadd.journal.memory import MemoryJournal
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from tests.support.journal import job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.model.job import Job

_BYTES = 40


class PagedJournal(MemoryJournal):
    """A journal whose only function is ``page``."""

    def __init__(self, listener: PipelineListener) -> None:
        super().__init__(listener)
        self.jobs: list[Job] = []

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs, as the SQLite journal does."""
        await trio.lowlevel.checkpoint()
        page: list[Job] = []
        size = 0
        for one in [each for each in self.jobs if each.seq > after][:most_jobs]:
            size += len(one.lines)
            if page and size > most_bytes:
                break
            page.append(one)
        return page


class Rig:
    """A feeder with a tiny channel."""

    def __init__(self, old: Sequence[Job] = (), max_jobs: int = 4) -> None:
        self.channel = JobChannel(max_jobs, _BYTES)
        metrics = Metrics()
        self.accounting = Accounting(metrics)
        self.feeder = QueueFeeder(self.channel, self.accounting)
        if old:
            self.feeder.leave(old[-1].seq)
        listener = PipelineListener(self.channel, self.feeder, self.accounting, metrics)
        self.journal = PagedJournal(listener)
        self.journal.jobs += old
        self.most = 0

    def commit(self, *jobs: Job) -> None:
        """Commit jobs and offer them."""
        self.journal.jobs += jobs
        self.feeder.offer(jobs)

    async def receive_into(self, received: list[int]) -> None:
        """Receive jobs until the channel is closed, and add their ``seq`` to ``received``."""
        while True:
            self.most = max(self.most, self.channel.bytes)
            try:
                await self.channel.wait_for_job()
            except trio.EndOfChannel:
                return
            one = self.channel.receive_nowait()
            received.append(one.seq)
            self.most = max(self.most, self.channel.bytes + self.channel.bytes_held)
            self.channel.release(len(one.lines))


sizes = st.lists(st.integers(2, 15), max_size=25)


@given(old=sizes, new=sizes, max_jobs=st.integers(1, 6), every=st.integers(1, 4))
def test_every_job_comes_out_once_and_in_order(
    old: list[int], new: list[int], max_jobs: int, every: int
) -> None:
    """Jobs would be lost or stored twice whenever the backlog is larger than the channel."""

    async def main() -> None:
        jobs = [job(seq, b"x" * size) for seq, size in enumerate([*old, *new], start=1)]
        rig = Rig(jobs[: len(old)], max_jobs)
        received: list[int] = []

        async with trio.open_nursery() as nursery:
            await nursery.start(rig.feeder.refill, rig.journal)
            nursery.start_soon(rig.receive_into, received)
            for index in range(len(old), len(jobs), every):
                rig.commit(*jobs[index : min(index + every, len(jobs))])
                if index % 3 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            rig.feeder.finish()
        assert received == [one.seq for one in jobs]
        assert rig.most <= _BYTES

    trio.run(main)


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=20), slices=st.integers(1, 3))
def test_a_commit_that_is_offered_in_several_calls_comes_out_once_and_in_order(
    sizes: list[int], slices: int
) -> None:
    """A page that is read between two calls would bring some jobs twice."""

    async def main() -> None:
        rig = Rig(max_jobs=6)
        received: list[int] = []

        async with trio.open_nursery() as nursery:
            await nursery.start(rig.feeder.refill, rig.journal)
            nursery.start_soon(rig.receive_into, received)
            following = 1
            for size in sizes:
                jobs = [job(seq) for seq in range(following, following + size)]
                following += size
                rig.journal.jobs += jobs
                for start in range(0, size, slices):
                    rig.feeder.offer(jobs[start : start + slices])
                    await trio.lowlevel.checkpoint()
            rig.feeder.finish()
        assert received == list(range(1, following))

    trio.run(main)


async def test_a_job_larger_than_the_channel_goes_through_alone() -> None:
    """After MAX_QUEUE_BYTES was lowered the daemon would hang at the first large job."""
    rig = Rig([job(1, b"x"), job(2, b"y" * 3 * _BYTES), job(3, b"z")])
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.feeder.refill, rig.journal)
        rig.feeder.finish()
        received: list[int] = []
        await rig.receive_into(received)
        assert received == [1, 2, 3]


async def test_jobs_that_are_offered_after_the_end_stay_in_the_journal() -> None:
    """A commit during the last moments of a drain would crash the daemon."""
    rig = Rig()
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.feeder.refill, rig.journal)
        rig.feeder.finish()
    rig.commit(job(1))
    assert rig.channel.jobs == 0


async def test_jobs_that_are_left_are_read_back_before_later_ones() -> None:
    """Small requests beside a large one would be uploaded at the next start, or out of order."""
    rig = Rig(max_jobs=9)
    received: list[int] = []

    async with trio.open_nursery() as nursery:
        await nursery.start(rig.feeder.refill, rig.journal)
        nursery.start_soon(rig.receive_into, received)
        rig.commit(job(1, b"1"))
        rig.journal.jobs += [job(2, b"2"), job(3, b"3")]
        rig.feeder.leave(3)
        rig.commit(job(4, b"4"))
        rig.feeder.leave(3)
        await trio.testing.wait_all_tasks_blocked()
        rig.feeder.finish()
    assert received == [1, 2, 3, 4]
