"""Which jobs become one object."""

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


class Replaying(MemoryJournal):
    """A journal that has batches from before a crash."""

    def __init__(self, channel: JobChannel, *batches: Batch) -> None:
        metrics = Metrics()
        accounting = Accounting(metrics)
        feeder = QueueFeeder(channel, accounting, newest=0)
        super().__init__(PipelineListener(channel, feeder, accounting, metrics))
        self._batches = list(batches)

    async def sealed(self) -> Batch | None:
        """Return the next of them."""
        return self._batches.pop(0) if self._batches else None


def batcher(
    channel: JobChannel,
    *layouts: tuple[int, Layout],
    sealed: tuple[Batch, ...] = (),
    most: int = 3,
) -> Batcher:
    """Return a filler for batches of at most ``most``."""
    settings = config.load({"BATCH_MAX_PAYLOADS": str(most), "BATCH_LINGER": "2s"})
    return Batcher(channel, Replaying(channel, *sealed), Layouts(layouts), settings)


async def all_of(filler_: Batcher) -> list[list[int]]:
    """Return the ``seq`` of the members of every batch."""
    found = []
    while (one := await filler_.next()) is not None:
        found.append([job.seq for job in one.jobs])
    return found


def closed_channel(*seqs: int) -> JobChannel:
    """Return a channel with these jobs in it, closed."""
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
    """A range in the journal would name jobs that belong to another object, and delete them."""
    assert await all_of(batcher(closed_channel(*seqs), (0, BATCHED))) == batches


async def test_a_change_of_settings_starts_another_batch() -> None:
    """A replay after a crash would put payloads under a second key."""
    found = batcher(closed_channel(1, 2, 3, 4, 5, 6), (0, BATCHED), (3, ALONE), (5, BATCHED))
    batches = [one for _ in range(4) if (one := await found.next()) is not None]
    assert [[job.seq for job in one.jobs] for one in batches] == [[1, 2], [3], [4], [5, 6]]
    assert [one.sealed for one in batches] == [True, False, False, True]
    assert batches[1].key == f"a/{batches[1].id}.gz"
    assert batches[3].key == f"b/{batches[3].id}"


async def test_what_was_sealed_goes_first_and_as_it_was() -> None:
    """A replay with other members or another key stores payloads twice."""
    before = (batch(job(7), job(8)), batch(job(11)))
    found = batcher(closed_channel(9, 10), (0, BATCHED), sealed=before)
    assert [await found.next(), await found.next()] == list(before)
    assert await all_of(found) == [[9, 10]]


async def test_a_batch_waits_no_longer_than_the_linger(autojump_clock: MockClock) -> None:
    """A payload would wait for others that never come."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(10, 1000)
    found = batcher(channel, (0, BATCHED))
    channel.send_nowait([job(1)])
    start = trio.current_time()
    one = await found.next()
    assert one is not None
    assert trio.current_time() - start == pytest.approx(2.0)
    channel.send_nowait([job(2), job(3), job(4)])
    assert await found.next() is not None
    assert trio.current_time() - start == pytest.approx(2.0)  # full: no reason to wait


async def test_single_jobs_can_be_had_at_once() -> None:
    """Each object would cost five task switches more, or jobs be stored twice or not at all."""
    before = batch(job(1))
    found = batcher(closed_channel(2, 3, 4), (0, BATCHED), (3, ALONE), sealed=(before,), most=1)
    assert found.next_nowait() is None  # what was sealed goes first, and that has to be read
    assert await found.next() == before
    first = await found.next()
    taken = [first, found.next_nowait(), found.next_nowait()]
    assert [(one.jobs[0].seq, one.sealed) for one in taken if one is not None] == [
        (2, True),  # as it was accepted: its layout is that of batches
        (3, False),
        (4, False),
    ]
    assert found.next_nowait() is None
    assert await found.next() is None


async def test_batches_are_not_filled_twice_at_once() -> None:
    """Two tasks that fill would leave gaps in each other's batches."""
    found = batcher(closed_channel(1, 2, 3, 4), (0, BATCHED))
    assert await found.next() is not None
    assert found.next_nowait() is None
    assert await all_of(found) == [[4]]
