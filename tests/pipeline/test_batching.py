"""The jobs that become one object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.config import settings as config
from payloadd.journal.memory import MemoryJournal
from payloadd.model.layout import Layout, Layouts
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.admission import UploadAdmission
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from tests.support.journal import job

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.model.job import Batch

BATCHED = Layout("b/{id}", "", "none", alone=False)
ALONE = Layout("a/{id}", "", "gzip", alone=True)


def make_batcher(
    channel: JobChannel, *layouts: tuple[int, Layout], most: int = 3
) -> tuple[Batcher, UploadAdmission]:
    """Return a batcher for batches of at most ``most`` payloads, and what admits them."""
    settings = config.load({"BATCH_MAX_PAYLOADS": str(most), "BATCH_LINGER": "2s"})
    metrics = Metrics()
    accounting = Accounting(metrics)
    feeder = QueueFeeder(channel, accounting)
    journal = MemoryJournal(PipelineListener(channel, feeder, accounting, metrics))
    admission = UploadAdmission(channel, accounting, journal, Health(), metrics, 4)
    return Batcher(channel, Layouts(layouts), settings, admission, feeder), admission


async def all_batches(batcher: Batcher) -> list[list[int]]:
    """Return the ``seq`` of the members of every batch."""
    found = []
    while (one := await next_batch(batcher)) is not None:
        found.append([job.seq for job in one.jobs])
    return found


async def next_batch(batcher: Batcher) -> Batch | None:
    """Return the next batch of the default stream."""
    queue = batcher.channel.queue_of(1)
    if await batcher.form(queue) is None:
        return None
    (found,) = await batcher.finish(queue)
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
    batcher, _ = make_batcher(closed_channel(*seqs), (0, BATCHED))
    assert await all_batches(batcher) == batches


async def test_a_change_of_settings_starts_another_batch() -> None:
    """A replay after a crash would put payloads under a second key."""
    channel = closed_channel(1, 2, 3, 4, 5, 6)
    batcher, _ = make_batcher(channel, (0, BATCHED), (3, ALONE), (5, BATCHED))
    batches = [one for _ in range(4) if (one := await next_batch(batcher)) is not None]
    assert [[job.seq for job in one.jobs] for one in batches] == [[1, 2], [3], [4], [5, 6]]
    assert [one.sealed for one in batches] == [True, False, False, True]
    assert batches[1].key == f"a/{batches[1].id}.gz"
    assert batches[3].key == f"b/{batches[3].id}"


async def test_a_batch_waits_no_longer_than_the_linger(autojump_clock: MockClock) -> None:
    """A payload would wait for payloads that never come."""
    assert autojump_clock.autojump_threshold == 0
    channel = JobChannel(10, 1000)
    batcher, _ = make_batcher(channel, (0, BATCHED))
    channel.send_nowait([job(1)])
    start = trio.current_time()
    one = await next_batch(batcher)
    assert one is not None
    assert trio.current_time() - start == pytest.approx(2.0)
    channel.send_nowait([job(2), job(3), job(4)])
    assert await next_batch(batcher) is not None
    assert trio.current_time() - start == pytest.approx(2.0)  # full: no reason to wait


async def test_a_single_job_that_is_ready_is_a_batch_without_waiting() -> None:
    """Each object would cost task switches, or jobs would be stored twice or not at all."""
    batcher, _ = make_batcher(closed_channel(2, 3, 4), (0, BATCHED), (3, ALONE), most=1)
    first = await batcher.next_single()
    batches = [first, batcher.next_batch_nowait(), batcher.next_batch_nowait()]
    assert [(one.jobs[0].seq, one.sealed) for one in batches if one is not None] == [
        (2, True),  # accepted under a layout with batches
        (3, False),
        (4, False),
    ]
    assert batcher.next_batch_nowait() is None
    assert await batcher.next_single() is None


async def test_a_single_job_waits_for_its_admission_while_uploads_fail() -> None:
    """A throttled prefix would get uploads as fast as workers are free."""
    batcher, admission = make_batcher(closed_channel(1, 2), (0, ALONE), most=1)
    admission.direct = False
    assert batcher.next_batch_nowait() is None
    admission.update()
    assert batcher.next_batch_nowait() is not None


async def test_batches_of_several_jobs_are_not_formed_without_waiting() -> None:
    """Two tasks that form batches would leave gaps in each other's batches."""
    batcher, _ = make_batcher(closed_channel(1, 2, 3, 4), (0, BATCHED))
    assert await next_batch(batcher) is not None
    assert batcher.next_batch_nowait() is None
    assert await all_batches(batcher) == [[4]]
