"""Sealed batches are found in the file, a few at a time, however many there are."""

from __future__ import annotations

import tracemalloc
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import structlog.testing

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.excluded import ExcludedRanges
from payloadd.journal.sqlite.operations import Seal
from payloadd.model.formats.ndjson import PLAIN
from tests.support.journal import append, batch, job, open_rig

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.journal import JournalRig

pytestmark = pytest.mark.usefixtures("anywhere")


async def seal_alone(rig: JournalRig, count: int) -> None:
    """Accept jobs, and seal and forget each as a batch of its own."""
    await rig.accept(1, count=count)
    for _ in range(count):
        one = batch(rig.channel.receive_nowait())
        await rig.journal.seal(one)
        rig.accounting.leave(one)


async def test_more_batches_than_one_read_returns_come_in_order_and_once_a_pass(
    tmp_path: Path,
) -> None:
    """Some batches that were put back would never be tried again."""
    async with open_rig(tmp_path / "j") as rig:
        await seal_alone(rig, 250)
        for _ in range(2):
            seqs = []
            while (one := await rig.journal.sealed()) is not None:
                seqs += [job.seq for job in one.jobs]
                rig.accounting.leave(one)
            assert seqs == [*range(1, 251)]


async def test_a_batch_that_is_in_memory_is_not_returned(tmp_path: Path) -> None:
    """Two workers would upload it, and the totals would be wrong for ever."""
    async with open_rig(tmp_path / "j") as rig:
        await seal_alone(rig, 3)
        first = await rig.journal.sealed()
        assert first is not None
        found = [await rig.journal.sealed() for _ in range(3)]
        assert [one and one.jobs[0].seq for one in found] == [2, 3, None]
        rig.accounting.settle(first)
        rig.journal.settle(first)
        assert await rig.journal.sealed() is None
        await rig.journal.pulse()
        assert rig.database.totals.jobs == 2
        assert await rig.journal.sealed() is None


async def test_another_encoder_of_sealed_batches_is_logged_once(tmp_path: Path) -> None:
    """An operator could not know why an object has other bytes after an upgrade."""
    async with open_rig(tmp_path / "j") as rig:
        await seal_alone(rig, 4)
        for first, encoder in enumerate(("ndjson-0", "ndjson-0", PLAIN.encoder, None), start=1):
            change = "UPDATE batches SET encoder = ? WHERE first = ?"
            rig.database._connection.execute(change, (encoder, first))
        with structlog.testing.capture_logs() as lines:
            found = [await rig.journal.sealed() for _ in range(4)]
        assert all(found)
    assert lines == [
        {
            "event": "encoder_changed",
            "log_level": "info",
            "sealed": "ndjson-0",
            "present": PLAIN.encoder,
        }
    ]


def test_ranges_that_touch_or_overlap_are_one() -> None:
    """Pages would contain jobs that are stored, or cost more with every sealed batch."""
    ranges = ExcludedRanges([(10, 12), (1, 3), (4, 5), (11, 11), (20, 30)])
    assert [*ranges.after(0)] == [(1, 5), (10, 12), (20, 30)]
    assert [*ranges.after(11)] == [(10, 12), (20, 30)]
    assert [*ranges.after(31)] == []


def test_a_start_needs_little_memory_for_each_sealed_batch(path: Path) -> None:
    """A start after an outage of one prefix, with a million batches, would not fit into memory."""
    count = 4000
    with closing(Database(path)) as database:
        for first in range(1, 2 * count, 2000):
            seals = [Seal(batch(job(seq))) for seq in range(first, first + 2000, 2)]
            database.commit([append(first, count=2000)])
            database.commit(seals)
    tracemalloc.start()
    try:
        with closing(Database(path)):
            kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 300 * count
    assert kept < 100 * count
