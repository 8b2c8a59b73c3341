"""The jobs that become one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.config import settings as config
from payloadd.journal.memory import MemoryJournal
from payloadd.model.layout import Layout, Layouts
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from tests.support.journal import batch, job

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.model.job import Batch

BATCHED = Layout("b/{id}", "", "none", alone=False)
ALONE = Layout("a/{id}", "", "gzip", alone=True)


class JournalWithSealedBatches(MemoryJournal):
    """A journal that has batches from before a crash."""

    def __init__(self, channel: JobChannel, *batches: Batch) -> None:
        metrics = Metrics()
        accounting = Accounting(metrics)
        feeder = QueueFeeder(channel, accounting, newest=0)
        super().__init__(PipelineListener(channel, feeder, accounting, metrics))
        self._batches = list(batches)

    async def sealed(self) -> Batch | None:
        """Return the next of these batches, or None."""
        return self._batches.pop(0) if self._batches else None


def make_batcher(
    channel: JobChannel,
    *layouts: tuple[int, Layout],
    sealed: tuple[Batch, ...] = (),
    most: int = 3,
) -> Batcher:
    """Return a batcher for batches of at most ``most`` payloads."""
    settings = config.load({"BATCH_MAX_PAYLOADS": str(most), "BATCH_LINGER": "2s"})
    return Batcher(channel, JournalWithSealedBatches(channel, *sealed), Layouts(layouts), settings)


async def all_batches(batcher: Batcher) -> list[list[int]]:
    """Return the ``seq`` of the members of every batch."""
    found = []
    while (one := await batcher.next_batch()) is not None:
        found.append([job.seq for job in one.jobs])
    return found


def closed_channel(*seqs: int) -> JobChannel:
    """Return a closed channel with these jobs in it."""
    channel = JobChannel(100, 10**6)
    channel.send_nowait([job(seq) for seq in seqs])
    channel.close()
    return channel


@pytest.mark.parametrize(
    ("seqs", "batches"),
    [
        pytest.param([1, 2, 3, 4], [[1, 2, 3], [4]], id="full"),
        pytest.param([1, 3, 4], [[1], [3, 4]], id="gap"),
        pytest.param([], [], id="empty"),
    ],
)
async def test_a_batch_is_full_or_ends_at_a_gap(seqs: list[int], batches: list[list[int]]) -> None:
    """The journal would delete jobs that belong to another object."""
    assert await all_batches(make_batcher(closed_channel(*seqs), (0, BATCHED))) == batches


async def test_a_change_of_settings_starts_another_batch() -> None:
    """A replay after a crash would put payloads under a second key."""
    batcher = make_batcher(closed_channel(1, 2, 3, 4, 5, 6), (0, BATCHED), (3, ALONE), (5, BATCHED))
    batches = [one for _ in range(4) if (one := await batcher.next_batch()) is not None]
    assert [[job.seq for job in one.jobs] for one in batches] == [[1, 2], [3], [4], [5, 6]]
    assert [one.sealed for one in batches] == [True, False, False, True]
    assert batches[1].key == f"a/{batches[1].id}.gz"
    assert batches[3].key == f"b/{batches[3].id}"


async def test_sealed_batches_come_first_and_unchanged() -> None:
    """A replay with other members or another key would store payloads twice."""
    before = (batch(job(7), job(8)), batch(job(11)))
    batcher = make_batcher(closed_channel(9, 10), (0, BATCHED), sealed=before)
    assert [await batcher.next_batch(), await batcher.next_batch()] == list(before)
    assert await all_batches(batcher) == [[9, 10]]


async def test_a_batch_waits_no_longer_than_the_linger(autojump_clock: MockClock) -> None:
    """A payload would wait for payloads that never come."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(10, 1000)
    batcher = make_batcher(channel, (0, BATCHED))
    channel.send_nowait([job(1)])
    start = trio.current_time()
    one = await batcher.next_batch()
    assert one is not None
    assert trio.current_time() - start == pytest.approx(2.0)
    channel.send_nowait([job(2), job(3), job(4)])
    assert await batcher.next_batch() is not None
    assert trio.current_time() - start == pytest.approx(2.0)  # full: no reason to wait


async def test_a_single_job_that_is_ready_is_a_batch_without_waiting() -> None:
    """Each object would cost task switches, or jobs would be stored twice or not at all."""
    before = batch(job(1))
    batcher = make_batcher(
        closed_channel(2, 3, 4), (0, BATCHED), (3, ALONE), sealed=(before,), most=1
    )
    assert batcher.next_batch_nowait() is None  # sealed batches come first, and have to be read
    assert await batcher.next_batch() == before
    first = await batcher.next_batch()
    batches = [first, batcher.next_batch_nowait(), batcher.next_batch_nowait()]
    assert [(one.jobs[0].seq, one.sealed) for one in batches if one is not None] == [
        (2, True),  # accepted under a layout with batches
        (3, False),
        (4, False),
    ]
    assert batcher.next_batch_nowait() is None
    assert await batcher.next_batch() is None


async def test_batches_of_several_jobs_are_not_formed_without_waiting() -> None:
    """Two tasks that form batches would leave gaps in each other's batches."""
    batcher = make_batcher(closed_channel(1, 2, 3, 4), (0, BATCHED))
    assert await batcher.next_batch() is not None
    assert batcher.next_batch_nowait() is None
    assert await all_batches(batcher) == [[4]]
