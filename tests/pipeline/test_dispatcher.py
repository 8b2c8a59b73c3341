"""Dispatcher and workers together: order, bounds, and the end of the pipeline."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.model.job import Job
from tests.pipeline.rig import FaultyStore, Pipeline

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.errors import StoreError


async def test_every_payload_becomes_one_object_and_the_drain_ends() -> None:
    """Payloads would be lost or stored twice, or the daemon would not stop."""
    pipeline = Pipeline(FaultyStore())
    await pipeline.drain(*[[b"%d" % n] for n in range(100)])
    assert sorted(pipeline.store.objects.values()) == sorted(b"%d\n" % n for n in range(100))
    assert (pipeline.accounting.stored, pipeline.accounting.open) == (100, 0)
    assert pipeline.value("uploads_total", outcome="stored") == 100
    assert pipeline.value("objects_stored_total") == 100
    assert pipeline.value("workers_busy") == 0


async def test_each_worker_uploads_one_batch_at_a_time(
    autojump_clock: MockClock,
) -> None:
    """One slow upload would delay all, or a burst would open a connection for each payload."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1.0), workers=4)
    start = trio.current_time()
    await pipeline.drain([b"1"] * 20)
    assert pipeline.store.busiest == 4
    assert trio.current_time() - start == pytest.approx(5.0)


async def test_an_idle_worker_keeps_no_batch_in_memory(autojump_clock: MockClock) -> None:
    """The large batches of 64 idle workers would take memory that no bound counts."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1.0), workers=4)
    async with pipeline.open():
        for _ in range(8):
            await pipeline.intake.accept([b'"held"'])
        await trio.sleep(10)
        assert pipeline.accounting.stored == 8
        alive = [one for one in gc.get_objects() if isinstance(one, Job)]
        assert not [one for one in alive if one.lines == b'"held"\n']


@pytest.mark.parametrize("error", [trio.EndOfChannel, ZeroDivisionError])
async def test_an_unexpected_exception_ends_the_pipeline(error: type[Exception]) -> None:
    """The daemon would answer 202 with a dead pipeline, and every drain would hang."""
    pipeline = Pipeline(FaultyStore())

    def fail(_attempt: int) -> StoreError | None:
        raise error

    pipeline.store.fault = fail
    with trio.fail_after(60), pytest.raises(ExceptionGroup) as caught:
        await pipeline.drain([b"1"], [b"2"])
    assert caught.group_contains(error)


async def test_payloads_that_a_deadline_leaves_are_open(autojump_clock: MockClock) -> None:
    """The counts of the drained line would not add up."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1.0), workers=1)
    with trio.move_on_after(3.5):
        await pipeline.drain([b"1"] * 10)
    assert (pipeline.accounting.stored, pipeline.accounting.open) == (3, 7)


async def test_a_batch_ends_when_it_is_full_or_after_the_linger(autojump_clock: MockClock) -> None:
    """Payloads would wait for ever, or an object would be too large for its readers."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(), BATCH_MAX_PAYLOADS="3", BATCH_LINGER="5s")
    async with pipeline.open():
        start = trio.current_time()
        for number in range(4):
            await pipeline.intake.accept([b"%d" % number])
        await wait_all_tasks_blocked()
        assert list(pipeline.store.objects.values()) == [b"0\n1\n2\n"]
        await trio.sleep(6)
        assert list(pipeline.store.objects.values()) == [b"0\n1\n2\n", b"3\n"]
        assert pipeline.store.times[1] - start == pytest.approx(5.0)
        await pipeline.intake.accept([b"4"])
        end = trio.current_time()
    assert trio.current_time() == end  # a drain does not linger
    assert pipeline.accounting.stored == 5


async def test_a_job_that_does_not_fit_is_in_the_next_batch() -> None:
    """The job would be lost, or the object too large."""
    pipeline = Pipeline(FaultyStore(), BATCH_MAX_PAYLOADS="100", BATCH_MAX_BYTES="10B")
    await pipeline.drain([b"11111"], [b"22222"], [b"333"], [b"4" * 50], [b"5"])
    assert sorted(pipeline.store.objects.values(), key=lambda body: body[0]) == [
        b"11111\n",
        b"22222\n333\n",
        b"4" * 50 + b"\n",
        b"5\n",
    ]
