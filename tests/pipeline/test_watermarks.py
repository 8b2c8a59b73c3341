"""Watermarks: never ahead of what is stored, whatever the order of commits and reports is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import trio

from payloadd.config.contradictions import contradictions_of
from payloadd.config.settings import load
from payloadd.errors import SettingsError
from payloadd.model.streams import first_seq
from payloadd.observe.metrics import Metrics
from payloadd.observe.status import DeadLetterGroup
from payloadd.pipeline import watermarks as module
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.open_watermarks import NoWatermarks, watermarks_of
from payloadd.pipeline.watermark_file import WatermarkFile
from payloadd.pipeline.watermarks import Watermarks
from tests.pipeline.watermark_rig import NAMES, START, KeptObjects, Rig, ids_follow_trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trio.testing import MockClock

    from payloadd.model.formats.api import EncodedObject


@pytest.fixture
def clock(autojump_clock: MockClock) -> Iterator[MockClock]:
    """Return trio's clock; the time of ids follows it."""
    with ids_follow_trio():
        yield autojump_clock


async def test_a_watermark_rises_once_a_minute_to_what_is_stored(
    tmp_path: Path, clock: MockClock
) -> None:
    """Readers would wait for ever, or read an hour of which a part is missing."""
    rig = Rig(tmp_path)
    async with rig.written():
        assert rig.store.puts == 2
        began = rig.store.until()
        assert -1000 < began < 1000
        await trio.sleep(30)
        # Accepted half a minute after the start and not stored: the watermark stays below.
        accepted = rig.ids.reserve(1) >> 80
        rig.oldest[0] = (7, accepted)
        rig.accounting.accepted = 1
        await trio.sleep(60)
        assert began <= rig.store.until() <= accepted - START
        assert 59_000 < rig.store.until("clicks") < 61_000
        assert rig.store.puts == 4
        rig.oldest.clear()
        await trio.sleep(75)
        assert 119_000 < rig.store.until() < 150_000
        rig.accounting.stored = 1
    assert {one["closed"] for one in rig.store.objects.values()} == {True}
    assert rig.store.until() > 164_000


async def test_a_request_that_is_committed_late_holds_the_watermark(
    tmp_path: Path, clock: MockClock
) -> None:
    """A large request gets its time before those that are stored before it is committed."""
    rig = Rig(tmp_path)
    in_flight = rig.watermarks.in_flight
    async with rig.written():
        await trio.sleep(50)
        with in_flight.preparing():
            late = in_flight.ids.reserve(1) >> 80
            await trio.sleep(200)
            assert rig.store.until() <= late - START
        rig.accounting.accepted = 1
        rig.oldest[0] = (9, late)
        await trio.sleep(200)
        assert rig.store.until() <= late - START
        rig.oldest.clear()
        rig.accounting.stored = 1
        await trio.sleep(100)
        assert rig.store.until() > 400_000


async def test_a_request_that_begins_between_the_marks_holds_the_watermark(
    tmp_path: Path, clock: MockClock
) -> None:
    """It has no outcome when the journal reports that it has no job."""
    rig = Rig(tmp_path, {0: "default"})
    in_flight = rig.watermarks.in_flight
    async with rig.written():
        await trio.sleep(50)
        with ExitStack() as later:
            with in_flight.preparing():
                await trio.sleep(20)  # the first mark is made after ten of them
                later.enter_context(in_flight.preparing())
                late = in_flight.ids.reserve(1) >> 80
                await trio.sleep(5)
            await trio.sleep(20)
            assert 50_000 < rig.store.until() <= late - START


async def test_a_job_between_the_marks_does_not_hide_an_earlier_one(
    tmp_path: Path, clock: MockClock
) -> None:
    """A request that is committed first may have got its time last."""
    rig = Rig(tmp_path, {0: "default"})
    in_flight = rig.watermarks.in_flight
    async with rig.written():
        await trio.sleep(50)
        with in_flight.preparing():
            early = in_flight.ids.reserve(1) >> 80
            await trio.sleep(15)
            rig.oldest[0] = (7, in_flight.ids.reserve(1) >> 80)
            await trio.sleep(5)
        # The early request is committed behind the other one, as number 8.
        rig.accounting.accepted = 2
        await trio.sleep(20)
        assert rig.store.until() <= early - START


@pytest.mark.parametrize("promised", [{"default": START - 500}, {}])
async def test_a_backlog_holds_the_watermark_of_a_start(
    tmp_path: Path, clock: MockClock, promised: dict[str, int]
) -> None:
    """Readers would take hours for complete whose payloads the last run has left."""
    WatermarkFile(tmp_path).write(promised, closed=True)
    rig = Rig(tmp_path, {0: "default"})
    rig.accounting.found = 1
    async with rig.watermarks.written(rig.stop):
        assert rig.store.until() == promised.get("default", 0) - START


async def test_a_drain_that_leaves_a_request_closes_nothing(
    tmp_path: Path, clock: MockClock
) -> None:
    """Its payloads may be stored by the next run, and no reader would wait for them."""
    rig = Rig(tmp_path, {0: "default"})
    in_flight = rig.watermarks.in_flight
    with ExitStack() as request:
        async with rig.watermarks.written(rig.stop):
            request.enter_context(in_flight.preparing())
        assert rig.store.objects["default"]["closed"] is False
    assert WatermarkFile(tmp_path).promise.closed is False


async def test_a_report_that_was_read_before_the_marks_does_not_count(
    tmp_path: Path, clock: MockClock
) -> None:
    """A job that was committed in between would be passed."""
    rig = Rig(tmp_path, {0: "default"})
    async with rig.written():
        await trio.sleep(59.7)
        accepted = rig.ids.reserve(1) >> 80
        rig.oldest[0] = (1, accepted)
        rig.accounting.accepted = 1
        await trio.sleep(30)
        assert rig.store.puts == 2
        assert rig.store.until() <= accepted - START


async def test_a_backlog_of_an_earlier_run_holds_its_stream_alone(
    tmp_path: Path, clock: MockClock
) -> None:
    """The clock of the earlier run may have been ahead: the times of its jobs say nothing."""
    WatermarkFile(tmp_path).write({"default": START - 500, "clicks": START - 500}, closed=False)
    rig = Rig(tmp_path)
    rig.accounting.found = 1
    rig.accounting.newest_found = {0: 0, 3: first_seq(3) + 20}
    rig.oldest[3] = (first_seq(3) + 20, START + 10**9)
    async with rig.written():
        assert rig.store.puts == 0
        await trio.sleep(150)
        assert rig.store.until("clicks") == -500
        assert rig.store.until() > 100_000
    assert rig.store.objects["clicks"]["closed"] is False


async def test_a_promise_is_on_the_disk_before_the_store_has_it(
    tmp_path: Path, clock: MockClock
) -> None:
    """A crash between the two would forget a watermark that readers see."""
    rig = Rig(tmp_path)
    seen: list[tuple[bool, bool]] = []
    replace = rig.store.replace

    async def look(key: str, body: EncodedObject) -> None:
        await replace(key, body)
        promise, stream = WatermarkFile(tmp_path).promise, key.split("/")[1]
        assert promise.until[stream] - START == rig.store.until(stream)
        seen.append((promise.closed, rig.store.objects[stream]["closed"]))

    with patch.object(rig.store, "replace", look):
        async with rig.written():
            await trio.sleep(70)
    # Until the store has the first ones, a start after a crash has to write them, too.
    first, during, last = (True, False), (False, False), (True, True)
    assert seen == [*[first] * 2, *[during] * 2, *[last] * 2]


async def test_a_watermark_says_what_is_dead_and_a_stream_that_is_gone_is_closed(
    tmp_path: Path, clock: MockClock
) -> None:
    """Readers would take an hour for complete that lacks payloads, or wait for a former stream."""
    WatermarkFile(tmp_path).write({"default": START, "former": START}, closed=False)
    rig = Rig(tmp_path, {0: "default"})
    rig.dead = [
        DeadLetterGroup("default", "KeyTooLongError", 1, 5),
        DeadLetterGroup("default", "DAMAGED", 2, 7),
    ]
    async with rig.written():
        await trio.sleep(75)
        assert rig.store.objects["default"]["dead"] == 12
        # Of the last uploads of the drain.
        rig.waiting = [DeadLetterGroup("default", "KeyTooLongError", 1, 3)]
    document = rig.store.objects["default"]
    assert (document["dead"], document["stream"], document["closed"]) == (15, "default", True)
    assert document["format"] == "watermark-1"
    assert document["process"].endswith(WatermarkFile(tmp_path).promise.process)
    assert rig.store.objects["former"]["closed"] is True
    assert set(WatermarkFile(tmp_path).promise.until) == {"default"}


async def test_many_marks_are_thinned_out(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog of days would take memory for each of its minutes."""
    monkeypatch.setattr(module, "_MOST_MARKS", 8)
    rig = Rig(tmp_path, {0: "default"})
    accepted: list[int] = []
    async with rig.written():
        rig.oldest[0] = (1, rig.ids.reserve(1) >> 80)
        rig.accounting.accepted = 1
        for _ in range(40):
            await trio.sleep(60)
            accepted.append(rig.ids.reserve(1) >> 80)
        assert len(rig.watermarks._marks) <= 8
        rig.oldest[0] = (30, accepted[30])
        await trio.sleep(100)
        assert 0 < rig.store.until() <= accepted[30] - START


def test_watermarks_need_a_journal_on_a_disk(tmp_path: Path) -> None:
    """After a crash a watermark would pass payloads that were lost."""
    with pytest.raises(SettingsError, match="WATERMARK: 'on' is not allowed with DURABILITY=memo"):
        load({"WATERMARK": "on", "DURABILITY": "memory"})
    assert contradictions_of({"watermark": "on", "durability": "disk", "journal_url": "x"}) == []
    nothing: Callable[[int | None], list[DeadLetterGroup]] = lambda _lane: []  # noqa: E731
    parts = Accounting(Metrics()), nothing, KeptObjects(), NAMES, trio.lowlevel.checkpoint
    assert isinstance(watermarks_of(load({}), *parts), NoWatermarks)
    settings = load({"WATERMARK": "on", "STATE_DIR": str(tmp_path)})
    assert isinstance(watermarks_of(settings, *parts), Watermarks)
