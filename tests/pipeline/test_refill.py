"""The channel as a window: all jobs, once, in order, within the bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from payloadd.journal.memory import MemoryJournal
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel, NudgedError
from payloadd.pipeline.refill import QueueFeeder
from tests.support.journal import job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.model.job import Job

_BYTES = 40


class Pages(MemoryJournal):
    """A journal that only gives pages of what was committed."""

    def __init__(self, listener: PipelineListener) -> None:
        super().__init__(listener)
        self.jobs: list[Job] = []

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs, as the database does."""
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
    """A window over a tiny channel."""

    def __init__(self, old: Sequence[Job] = (), max_jobs: int = 4) -> None:
        self.channel = JobChannel(max_jobs, _BYTES)
        metrics = Metrics()
        self.accounting = Accounting(metrics)
        self.feeder = QueueFeeder(self.channel, self.accounting, newest=old[-1].seq if old else 0)
        listener = PipelineListener(self.channel, self.feeder, self.accounting, metrics)
        self.journal = Pages(listener)
        self.journal.jobs += old
        self.most = 0

    def commit(self, *jobs: Job) -> None:
        """Have jobs committed."""
        self.journal.jobs += jobs
        self.feeder.offer(jobs)

    async def receive_into(self, taken: list[int]) -> None:
        """Take jobs until the channel is closed, and add their ``seq`` to ``taken``."""
        while True:
            self.most = max(self.most, self.channel.bytes)
            try:
                await self.channel.wait()
            except trio.EndOfChannel:
                return
            one = self.channel.receive_nowait()
            taken.append(one.seq)
            self.most = max(self.most, self.channel.bytes + self.channel.bytes_held)
            self.channel.release(len(one.lines))


sizes = st.lists(st.integers(2, 15), max_size=25)


@given(old=sizes, new=sizes, max_jobs=st.integers(1, 6), every=st.integers(1, 4))
def test_every_job_comes_out_once_and_in_order(
    old: list[int], new: list[int], max_jobs: int, every: int
) -> None:
    """A job would be lost or stored twice whenever the daemon falls behind."""

    async def main() -> None:
        jobs = [job(seq, b"x" * size) for seq, size in enumerate([*old, *new], start=1)]
        rig = Rig(jobs[: len(old)], max_jobs)
        taken: list[int] = []

        async with trio.open_nursery() as nursery:
            await nursery.start(rig.feeder.refill, rig.journal)
            nursery.start_soon(rig.receive_into, taken)
            for index in range(len(old), len(jobs), every):
                rig.commit(*jobs[index : min(index + every, len(jobs))])
                if index % 3 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            rig.feeder.finish()
        assert taken == [one.seq for one in jobs]
        assert rig.most <= _BYTES

    trio.run(main)


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=20), slices=st.integers(1, 3))
def test_a_commit_that_is_shown_in_several_turns_comes_out_once_and_in_order(
    sizes: list[int], slices: int
) -> None:
    """A page that is read between two turns would show some jobs twice."""

    async def main() -> None:
        rig = Rig(max_jobs=6)
        taken: list[int] = []

        async with trio.open_nursery() as nursery:
            await nursery.start(rig.feeder.refill, rig.journal)
            nursery.start_soon(rig.receive_into, taken)
            following = 1
            for size in sizes:
                jobs = [job(seq) for seq in range(following, following + size)]
                following += size
                rig.journal.jobs += jobs
                for start in range(0, size, slices):
                    rig.feeder.offer(jobs[start : start + slices])
                    await trio.lowlevel.checkpoint()
            rig.feeder.finish()
        assert taken == list(range(1, following))

    trio.run(main)


async def test_a_job_larger_than_the_channel_goes_through_alone() -> None:
    """After MAX_QUEUE_BYTES was lowered the daemon would stand still at the first large job."""
    rig = Rig([job(1, b"x"), job(2, b"y" * 3 * _BYTES), job(3, b"z")])
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.feeder.refill, rig.journal)
        rig.feeder.finish()
        taken: list[int] = []
        await rig.receive_into(taken)
        assert taken == [1, 2, 3]


async def test_what_comes_after_the_end_stays_in_the_journal() -> None:
    """A commit that ends during the last moments of a drain would crash the daemon."""
    rig = Rig()
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.feeder.refill, rig.journal)
        rig.feeder.finish()
    rig.commit(job(1))
    assert rig.channel.jobs == 0


async def test_a_channel_takes_all_or_nothing() -> None:
    """Half of a request in the channel would be stored while the client is told no."""
    channel = JobChannel(2, 10)
    channel.send_nowait([job(1, b"12345")])
    with pytest.raises(trio.WouldBlock):
        channel.send_nowait([job(2, b"123"), job(3, b"123")])
    assert (channel.jobs, channel.bytes) == (1, 5)
    assert channel.receive_nowait().seq == 1


async def test_what_is_in_hand_counts() -> None:
    """A store that is down would have the workers hold as much again as the channel, each."""
    channel = JobChannel(9, 10)
    channel.send_nowait([job(1, b"12345678")])
    assert channel.receive_nowait().seq == 1
    assert not channel.has_room(1, 3)
    with pytest.raises(trio.WouldBlock):
        channel.send_nowait([job(2, b"123456789012")])
    channel.release(8)
    channel.send_nowait([job(2, b"123456789012")])


async def test_sealed_batches_wait_for_hands() -> None:
    """A start with many sealed batches would bring them all into memory at once."""
    channel = JobChannel(9, 10)
    with trio.fail_after(5):
        await channel.wait_until_held_is_small()
    channel.hold(12)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.wait_until_held_is_small)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        channel.release(12)


async def test_two_may_wait_for_hands_and_room() -> None:
    """The daemon would go on answering 202, and store nothing more, after some restarts."""
    channel = JobChannel(9, 10)
    channel.hold(10)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.wait_until_held_is_small)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(channel.wait_for_room, 1, 5)
            await trio.testing.wait_all_tasks_blocked()
            channel.release(10)


async def test_jobs_that_are_left_are_read_back_before_later_ones() -> None:
    """Small requests beside a large one would be uploaded at the next start, or out of order."""
    rig = Rig(max_jobs=9)
    taken: list[int] = []

    async with trio.open_nursery() as nursery:
        await nursery.start(rig.feeder.refill, rig.journal)
        nursery.start_soon(rig.receive_into, taken)
        rig.commit(job(1, b"1"))
        rig.journal.jobs += [job(2, b"2"), job(3, b"3")]
        rig.feeder.leave(3)
        rig.commit(job(4, b"4"))
        rig.feeder.leave(3)
        await trio.testing.wait_all_tasks_blocked()
        rig.feeder.finish()
    assert taken == [1, 2, 3, 4]


async def test_a_nudge_wakes_and_takes_no_room() -> None:
    """A dead letter that is tried again would wait for the next request; or be a job too many."""
    channel = JobChannel(1, 10)
    channel.nudge()
    channel.nudge()
    channel.send_nowait([job(1, b"1")])
    with pytest.raises(NudgedError):
        await channel.wait()
    await channel.wait()
    assert channel.receive_nowait().seq == 1
    with pytest.raises(trio.WouldBlock):
        channel.receive_nowait()
    channel.close()
    channel.nudge()
    with pytest.raises(trio.EndOfChannel):
        await channel.wait()
