"""Watermarks of a start: written before a payload is accepted, behind those of the last run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.pipeline.watermark_file import WatermarkFile
from tests.pipeline.watermark_rig import NAMES, START, Rig, ids_follow_trio

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trio.testing import MockClock


@pytest.fixture
def clock(autojump_clock: MockClock) -> Iterator[MockClock]:
    """Return trio's clock; the time of ids follows it."""
    with ids_follow_trio():
        yield autojump_clock


@pytest.mark.parametrize("closed", [True, False])
async def test_a_start_waits_for_the_store_only_if_a_reader_would_not_wait_for_it(
    tmp_path: Path, clock: MockClock, *, closed: bool
) -> None:
    """Payloads would be accepted while the store says that this process accepts none."""
    WatermarkFile(tmp_path).write({"default": START - 500}, closed=closed)
    rig = Rig(tmp_path, {0: "default"})
    rig.store.fault = True
    serving = trio.Event()

    async def serve() -> None:
        async with rig.watermarks.written(rig.stop):
            serving.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await trio.sleep(10)
        assert serving.is_set() is not closed
        rig.store.fault = False
        await trio.sleep(10)
        assert serving.is_set()
        if closed:
            assert rig.store.objects["default"]["closed"] is False
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_crash_while_a_start_waits_for_the_store_changes_nothing(
    tmp_path: Path, clock: MockClock, *, closed: bool
) -> None:
    """The next start would accept payloads while the store says that none are accepted."""
    if closed:
        until = dict.fromkeys(NAMES.values(), START - 500)
        WatermarkFile(tmp_path).write(until, closed=True)
    crashed = Rig(tmp_path)
    crashed.store.fault = True
    with trio.move_on_after(10):
        async with crashed.watermarks.written(crashed.stop):
            raise AssertionError
    rig = Rig(tmp_path)
    async with rig.watermarks.written(rig.stop):
        assert {one["closed"] for one in rig.store.objects.values()} == {False}
        assert len(rig.store.objects) == len(NAMES)
        assert WatermarkFile(tmp_path).promise.closed is False


async def test_a_stream_that_was_gone_is_written_again(tmp_path: Path, clock: MockClock) -> None:
    """Its watermark says that it is closed: no reader would wait for its payloads."""
    WatermarkFile(tmp_path).write({"default": START, "clicks": START}, closed=False)
    rig = Rig(tmp_path, {0: "default"})
    rig.oldest[0] = (7, START)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.report)
        nursery.start_soon(_serve, rig)
        await trio.sleep(100)
        assert rig.store.objects["clicks"]["closed"] is True
        nursery.cancel_scope.cancel()
    rig = Rig(tmp_path)
    async with rig.watermarks.written(rig.stop):
        assert rig.store.objects["clicks"]["closed"] is False


async def _serve(rig: Rig) -> None:
    async with rig.watermarks.written(rig.stop):
        await trio.sleep_forever()


async def test_a_stop_ends_the_wait_for_the_store(tmp_path: Path, clock: MockClock) -> None:
    """A daemon that starts while the store is down could not be stopped."""
    rig = Rig(tmp_path)
    rig.store.fault = True
    rig.stop.set()
    with trio.fail_after(60):
        async with rig.watermarks.written(rig.stop):
            pass


async def test_ids_begin_behind_the_highest_watermark(tmp_path: Path, clock: MockClock) -> None:
    """A clock that was put back would accept payloads into hours that are complete."""
    WatermarkFile(tmp_path).write({"default": START + 10**9, "clicks": 5}, closed=True)
    rig = Rig(tmp_path)
    assert rig.ids.reserve(1) >> 80 == START + 10**9
    async with rig.watermarks.written(rig.stop):
        assert rig.store.until() >= 10**9
    assert WatermarkFile(tmp_path).promise.floor > START + 10**9
