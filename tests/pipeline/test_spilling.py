"""Batches that are spilled: their objects are full, their members stored once, memory bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.model.streams import first_seq
from tests.pipeline.keeping_journal import KeepingJournal, StreamsPipeline
from tests.pipeline.rig import FaultyStore, Pipeline

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.model.job import Job

SMALL = {"MAX_LENGTH": "1KiB", "BATCH_MAX_PAYLOADS": "100000", "KEY_TEMPLATE": "{id}"}
_LINE = b"x" * 99 + b"\n"


def make(**environ: str) -> tuple[Pipeline, KeepingJournal]:
    """Return a pipeline with a journal that keeps jobs, and this journal."""
    pipeline = StreamsPipeline(FaultyStore(), 4, **SMALL, **environ)
    return pipeline, pipeline.kept


def sizes(pipeline: Pipeline) -> list[int]:
    """Return the sizes of the objects."""
    return [len(body) for body in pipeline.store.objects.values()]


async def test_many_streams_that_share_little_memory_make_large_objects(
    autojump_clock: MockClock,
) -> None:
    """A thousand streams would make a thousand times as many objects, and pay for each."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, journal = make(MAX_QUEUE_BYTES="50kB", BATCH_MAX_BYTES="10kB", BATCH_LINGER="5m")
    most = 0
    async with pipeline.open():
        for _ in range(100):  # 500 kB in all, ten times the memory
            for stream in range(50):
                journal.commit(stream, _LINE)
                most = max(most, pipeline.channel.bytes + pipeline.channel.bytes_held)
            await trio.sleep(0.1)
    assert most <= 50_000
    assert sizes(pipeline) == [10_000] * 50
    assert pipeline.accounting.open == 0


async def test_a_batch_may_be_larger_than_the_memory(autojump_clock: MockClock) -> None:
    """All would wait for the linger while the memory is full, and be idle."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, journal = make(MAX_QUEUE_BYTES="50kB", BATCH_MAX_BYTES="100kB", BATCH_LINGER="5m")
    start = trio.current_time()
    async with pipeline.open():
        for _ in range(100):
            journal.commit(0, *[_LINE] * 50)
            await trio.sleep(0.01)
        await trio.sleep(5)
        assert sizes(pipeline) == [100_000] * 5
        assert trio.current_time() - start < 60
    assert pipeline.accounting.open == 0


async def test_a_backlog_fills_a_batch_larger_than_the_memory(autojump_clock: MockClock) -> None:
    """After a start with a backlog every object would have the size of half of the memory."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, journal = make(MAX_QUEUE_BYTES="50kB", BATCH_MAX_BYTES="100kB", BATCH_LINGER="1s")
    journal.commit(0, *[_LINE] * 5000, offered=False)
    async with pipeline.open():
        await trio.sleep(60)
        assert sizes(pipeline) == [100_000] * 5


async def test_the_linger_does_not_cut_a_batch_small_while_its_stream_has_a_backlog(
    autojump_clock: MockClock,
) -> None:
    """A backlog that is read slowly would become many small objects."""
    assert autojump_clock.autojump_threshold == 0

    class SlowJournal(KeepingJournal):
        async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
            await trio.sleep(3)
            return await super().page(after, most_jobs, most_bytes)

    class SlowPipeline(StreamsPipeline):
        journal_type = SlowJournal

    pipeline = SlowPipeline(
        FaultyStore(), 4, **SMALL, MAX_QUEUE="20", BATCH_MAX_BYTES="10kB", BATCH_LINGER="1s"
    )
    pipeline.kept.commit(0, *[_LINE] * 200, offered=False)
    async with pipeline.open():
        await trio.sleep(120)
        assert sizes(pipeline) == [10_000] * 2


async def test_members_that_cannot_be_read_back_split_a_spilled_batch(
    autojump_clock: MockClock,
) -> None:
    """The journal would delete the dead letter of a damaged row with the rows around it."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, journal = make(MAX_QUEUE_BYTES="5kB", BATCH_MAX_BYTES="10kB", BATCH_LINGER="5m")
    async with pipeline.open():
        for _ in range(6):
            journal.commit(0, *[_LINE] * 10)
            await trio.sleep(1)
        del journal.jobs[20], journal.jobs[21]
        journal.commit(0, *[_LINE] * 40)
        await trio.sleep(10)
        assert sorted(sizes(pipeline)) == [1900, 7900]
    assert pipeline.channel.bytes_held == 0
    assert not journal.jobs


async def test_without_a_durable_journal_batches_end_when_memory_is_short(
    autojump_clock: MockClock,
) -> None:
    """Requests would be refused for the whole linger, while all workers are idle."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(
        FaultyStore(),
        4,
        **SMALL,
        MAX_QUEUE_BYTES="50kB",
        BATCH_MAX_BYTES="100kB",
        BATCH_LINGER="5m",
    )
    async with pipeline.open():
        for _ in range(200):
            await pipeline.intake.accept([_LINE[:-1]] * 10)
            await trio.sleep(0.01)
        assert sizes(pipeline)
    assert min(sizes(pipeline)[:-1]) >= 12_500
    assert pipeline.accounting.open == 0


@pytest.mark.parametrize("most", ["1", "3"])
async def test_a_drain_leaves_what_it_cannot_read_back_to_the_journal(
    autojump_clock: MockClock, most: str
) -> None:
    """The counts of the drained line would not add up."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, journal = make(MAX_QUEUE_BYTES="5kB", BATCH_LINGER="5m", MAX_QUEUE=most + "0")
    pipeline.store.seconds = 100.0
    with trio.move_on_after(30):
        async with pipeline.open():
            for _ in range(20):
                for stream in range(3):
                    journal.commit(stream, *[_LINE] * 5)
                await trio.sleep(0.1)
    assert pipeline.accounting.stored + len(journal.jobs) == 300


async def test_the_figures_count_jobs_of_batches_that_are_formed(autojump_clock: MockClock) -> None:
    """`queue_bytes` would be 0 while the memory is full of batches that wait."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, journal = make(MAX_QUEUE_BYTES="50kB", BATCH_LINGER="5m")
    pipeline.health.queue_figures = pipeline.channel.figures
    async with pipeline.open():
        journal.commit(1, *[_LINE] * 10)
        await trio.sleep(1)
        assert pipeline.channel.streams[1].forming is not None
        assert first_seq(1) < pipeline.channel.streams[1].forming.first
        assert (pipeline.value("queue_jobs"), pipeline.value("queue_bytes")) == (10, 1000)
    assert (pipeline.value("queue_jobs"), pipeline.value("queue_bytes")) == (0, 0)
