"""Watermarks of the lanes of a shared journal: over takeovers, and with owners that wake late."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from payloadd.config.settings import load
from payloadd.errors import PayloaddError
from payloadd.journal.api import LanePromise
from payloadd.model.streams import MOST_NUMBERS
from payloadd.observe.metrics import Metrics
from payloadd.observe.status import DeadLetterGroup
from payloadd.pipeline.accounting import Accounting, OldestJobs
from payloadd.pipeline.lane_watermarks import SharedWatermarks
from tests.pipeline.watermark_rig import START, KeptObjects, ids_follow_trio

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trio.testing import MockClock

    from payloadd.journal.api import Marked
    from payloadd.model.formats.api import EncodedObject


@pytest.fixture
def clock(autojump_clock: MockClock) -> Iterator[MockClock]:
    """Return trio's clock; the time of ids follows it."""
    with ids_follow_trio():
        yield autojump_clock


@dataclass(eq=False)
class FakeLane:
    """A lane whose promise is that of its row."""

    number: int
    slot: int
    promise: LanePromise = field(default_factory=lambda: LanePromise({}, "open"))
    jobs: int = 0
    lost: bool = False
    dirty: bool = False
    found: dict[int, int] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether it has no jobs, and all is durable."""
        return not (self.jobs or self.dirty)


class Objects(KeptObjects):
    """A store that keeps watermarks by their names, and what the rows said before each PUT."""

    def __init__(self, lanes: list[FakeLane]) -> None:
        super().__init__()
        self.rows: list[tuple[bool, Marked]] = []
        self._lanes = lanes

    async def replace(self, key: str, body: EncodedObject) -> None:
        """Keep the object by the name of the process in it."""
        await super().replace(key, body)
        document = self.objects["default"]
        self.objects[document["process"]] = document
        number = int(document["process"].partition("lane")[2])
        (row,) = [one.promise for one in self._lanes if one.number == number]
        assert row.until["default"] - START == self.until(document["process"])
        self.rows.append((document["closed"], row.marked))


class Fleet:
    """The lanes of one process; a test takes them away, and gives others."""

    name = "0a1b2c3d"

    def __init__(self, own: FakeLane, *others: FakeLane) -> None:
        self.own: FakeLane | None = own
        self.all = [own, *others]
        self.store = Objects(self.all)
        self.accounting = Accounting(Metrics())
        self.opened: list[int] = []
        self.oldest: dict[int, tuple[int, int]] = {}
        self.dead: list[DeadLetterGroup] = []
        self.waiting: list[DeadLetterGroup] = []
        """Dead letters of the own lane that the next commit writes."""
        self.is_up = True
        """Whether the journal is up."""
        self.stop = trio.Event()
        self._changed = trio.Event()
        self.watermarks = SharedWatermarks(
            load({}), self.accounting, self.dead_letters, self.store, self, self.pulse
        )

    def get(self, own: FakeLane | None) -> None:
        """Lose the own lane, and get another one."""
        if self.own is not None:
            self.own.lost = True
        self.own = own
        if own is not None and own not in self.all:
            self.all.append(own)
        self._changed.set()
        self._changed = trio.Event()

    def dead_letters(self, _lane: int | None) -> list[DeadLetterGroup]:
        """Return the dead letters, or fail."""
        if not self.is_up:
            raise PayloaddError("the journal cannot be read")
        return self.dead

    async def pulse(self) -> None:
        """Try to commit."""
        await trio.lowlevel.checkpoint()
        if self.is_up and self.own is not None:
            self.dead += self.waiting
            self.own.dirty = False

    async def wait_for_change(self) -> None:
        """Wait until ``get`` is called."""
        await self._changed.wait()

    def names(self, lane: FakeLane) -> Mapping[int, str]:
        """Return the default stream."""
        return {lane.slot * MOST_NUMBERS: "default"}

    async def promise(self, lane: FakeLane, until: Mapping[str, int], marked: Marked) -> bool:
        """Keep the promise in the row, unless the lane is lost."""
        await trio.lowlevel.checkpoint()
        if not lane.lost:
            lane.promise = LanePromise(dict(until), marked)
        return not lane.lost

    def open(self, lane: FakeLane) -> None:
        """Note that requests go into a lane."""
        assert lane is self.own
        assert self.store.objects[f"{self.name}-lane{lane.number}"]["closed"] is False
        assert lane.promise.marked == "open"
        assert self.watermarks.in_flight.ids.now() >= lane.promise.floor
        self.opened.append(lane.number)

    def unclosed(self) -> list[FakeLane]:
        """Return the lanes that are not the own one, and open."""
        return [one for one in self.all if one is not self.own and one.promise.unclosed]

    @property
    def marked(self) -> str:
        """What the row of the first lane says."""
        return self.all[0].promise.marked

    def watermark(self, lane: int) -> dict[str, Any]:
        """Return the watermark of a lane in the store."""
        return self.store.objects[f"{self.name}-lane{lane}"]

    def until(self, lane: int) -> int:
        """Return the watermark of a lane in milliseconds since the start of the test."""
        return self.store.until(f"{self.name}-lane{lane}")

    async def report(self) -> None:
        """Report the oldest jobs of the own lane once a second."""
        while True:
            await trio.sleep(1)
            number = self.accounting.oldest_jobs.number + 1
            self.accounting.oldest_jobs = OldestJobs(dict(self.oldest), number)


async def test_a_new_lane_is_in_the_store_before_requests_go_into_it(clock: MockClock) -> None:
    """No reader would wait for its payloads."""
    fleet = Fleet(FakeLane(1, 0))
    fleet.store.fault = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.report)

        async def serve() -> None:
            async with fleet.watermarks.written(fleet.stop):
                await trio.sleep(150)
            nursery.cancel_scope.cancel()

        nursery.start_soon(serve)
        await trio.sleep(10)
        assert fleet.opened == []
        assert fleet.marked == "opening"
        fleet.store.fault = False
        await trio.sleep(80)
        assert fleet.opened == [1]
        assert fleet.until(1) > 60_000
        assert fleet.watermark(1)["closed"] is False
    assert fleet.watermark(1)["closed"] is True
    assert fleet.marked == "closed"
    assert fleet.store.rows[0] == (False, "opening")
    assert set(fleet.store.rows[1:-1]) == {(False, "open")}
    assert fleet.store.rows[-1] == (True, "closing")


@pytest.mark.parametrize("marked", ["closed", "opening"])
async def test_a_lane_that_was_closed_is_opened_first_and_goes_on_behind_its_floor(
    clock: MockClock, marked: Marked
) -> None:
    """Payloads would be accepted where a watermark says that all are stored, or none come."""
    lane = FakeLane(4, 0, LanePromise({"default": START + 10**9}, marked))
    fleet = Fleet(lane)
    async with fleet.watermarks.written(fleet.stop):
        assert fleet.opened == [4]
        assert fleet.until(4) >= 10**9
        assert fleet.watermarks.in_flight.ids.reserve(1) >> 80 >= START + 10**9
    lane = FakeLane(4, 0, LanePromise({"default": START + 10**9}, "open"))
    fleet = Fleet(lane)
    fleet.store.objects["0a1b2c3d-lane4"] = {"closed": False}
    async with fleet.watermarks.written(fleet.stop):
        assert (fleet.opened, fleet.store.puts) == ([4], 0)
        assert fleet.watermarks.in_flight.ids.reserve(1) >> 80 >= START + 10**9


async def test_a_lane_with_jobs_of_a_former_owner_is_not_complete(clock: MockClock) -> None:
    """Readers would take hours for complete whose payloads the former owner has left."""
    lane = FakeLane(1, 0, LanePromise({"default": START - 500}, "closed"), jobs=3)
    new = FakeLane(2, 0, jobs=3)
    for one, before in ((lane, -500), (new, -START)):
        fleet = Fleet(one)
        fleet.accounting.found = 3
        fleet.accounting.newest_found = {0: 9}
        fleet.oldest = {0: (7, START + 10**9)}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.report)
            async with fleet.watermarks.written(fleet.stop):
                await trio.sleep(100)
                assert fleet.until(one.number) == before
            nursery.cancel_scope.cancel()
        assert fleet.watermark(one.number)["closed"] is False


async def test_a_dead_letter_of_a_former_owner_tells_nothing_about_later_jobs(
    clock: MockClock,
) -> None:
    """Its clock was ahead: a watermark would pass payloads that are not stored."""
    fleet = Fleet(FakeLane(1, 0, found={0: 9}))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.report)
        async with fleet.watermarks.written(fleet.stop):
            before = fleet.until(1)
            # It is tried again, and other jobs wait behind it.
            fleet.accounting.found = fleet.accounting.accepted = 1
            fleet.oldest = {0: (7, START + 10**9)}
            await trio.sleep(100)
            assert fleet.until(1) == before
        nursery.cancel_scope.cancel()


async def test_another_lane_begins_again_and_the_lost_one_is_left_alone(clock: MockClock) -> None:
    """A process that was stopped would say of the lane what only its new owner knows."""
    first, second = FakeLane(1, 0), FakeLane(2, 1, LanePromise({"default": START + 10**6}, "open"))
    fleet = Fleet(first)
    fleet.store.objects["0a1b2c3d-lane2"] = {"closed": False}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fleet.report)
        async with fleet.watermarks.written(fleet.stop):
            await trio.sleep(59.99)
            promise, puts = first.promise, fleet.store.puts
            first.lost = True  # before the process knows
            await trio.sleep(30)
            assert (first.promise, fleet.store.puts) == (promise, puts)
            fleet.get(None)
            await trio.sleep(5)
            assert fleet.opened == [1]
            fleet.get(second)
            await trio.sleep(5)
            assert fleet.opened == [1, 2]
            assert fleet.watermarks.in_flight.ids.reserve(1) >> 80 >= START + 10**6
            # A report of the lost lane, or of none, says nothing of the second one.
            fleet.oldest = {MOST_NUMBERS: ((MOST_NUMBERS << 48) + 1, START + 10**6 + 5)}
            fleet.accounting.accepted = 1
            await trio.sleep(100)
            assert fleet.until(2) <= 10**6 + 5
            fleet.accounting.stored = 1
            fleet.oldest = {}
        nursery.cancel_scope.cancel()
    assert fleet.watermark(1)["closed"] is False
    assert fleet.watermark(2)["closed"] is True


async def test_lanes_of_former_owners_are_closed(clock: MockClock) -> None:
    """Readers would wait for ever for a machine that is gone."""
    own, left = FakeLane(1, 0), FakeLane(2, 1, LanePromise({"default": START - 5}, "open"))
    unsure = FakeLane(3, 2, LanePromise({"default": START - 7}, "closing"))
    fleet = Fleet(own, left, unsure)
    async with fleet.watermarks.written(fleet.stop):
        fleet.store.fault = True
        await trio.sleep(5)
        # Whether the store will do what it was asked for is not known.
        assert left.promise == LanePromise({"default": START - 5}, "closing")
        fleet.store.fault = False
        await trio.sleep(40)
        for one, before in ((left, -5), (unsure, -7)):
            assert one.promise.marked == "retired"
            assert (fleet.until(one.number), fleet.watermark(one.number)["closed"]) == (
                before,
                True,
            )
        another = FakeLane(4, 3, LanePromise({"default": START - 5}, "open"))
        fleet.all.append(another)
        await trio.sleep(5)
        assert another.promise.marked == "closed"


async def test_a_drain_closes_nothing_while_payloads_are_open(clock: MockClock) -> None:
    """A reader would not wait for payloads that another process stores."""
    fleet = Fleet(FakeLane(1, 0))
    async with fleet.watermarks.written(fleet.stop):
        fleet.accounting.accepted = 1
    assert fleet.marked == "open"
    fleet = Fleet(FakeLane(1, 0))
    async with fleet.watermarks.written(fleet.stop):
        fleet.store.fault = True
    assert fleet.marked == "closing"
    fleet = Fleet(FakeLane(1, 0))
    async with fleet.watermarks.written(fleet.stop):
        fleet.all[0].lost = True
    assert fleet.watermark(1)["closed"] is False


async def test_no_watermark_is_closed_while_dead_letters_cannot_be_read(clock: MockClock) -> None:
    """Nothing would correct their number before the lane is used again."""
    left = FakeLane(2, 1, LanePromise({"default": START - 5}, "open"))
    fleet = Fleet(FakeLane(1, 0), left)
    fleet.dead = [DeadLetterGroup("default", "KeyTooLongError", 1, 3)]
    fleet.is_up = False
    async with fleet.watermarks.written(fleet.stop):
        await trio.sleep(10)
        assert fleet.opened == [1]
        assert fleet.unclosed() == [left]
        fleet.is_up = True
        await trio.sleep(60)
        assert fleet.unclosed() == []
        assert (fleet.watermark(2)["closed"], fleet.watermark(2)["dead"]) == (True, 3)


@pytest.mark.parametrize("is_up", [True, False])
async def test_a_drain_closes_no_lane_before_its_dead_letters_are_written(
    clock: MockClock, *, is_up: bool
) -> None:
    """Readers would hear of no dead letter; after a crash the batch would be uploaded again."""
    fleet = Fleet(FakeLane(1, 0))
    async with fleet.watermarks.written(fleet.stop):
        fleet.waiting = [DeadLetterGroup("default", "KeyTooLongError", 1, 3)]
        fleet.all[0].dirty = True
        fleet.is_up = is_up
    watermark = fleet.watermark(1)
    assert (watermark["closed"], watermark["dead"]) == ((True, 3) if is_up else (False, 0))
    assert fleet.marked == ("closed" if is_up else "open")


async def test_a_stop_ends_the_wait_for_the_store(clock: MockClock) -> None:
    """A daemon that starts while the store is down could not be stopped."""
    fleet = Fleet(FakeLane(1, 0))
    fleet.store.fault = True
    fleet.stop.set()
    with trio.fail_after(60):
        async with fleet.watermarks.written(fleet.stop):
            pass
    assert fleet.opened == []
    # The next start gets the lane again: nothing has asked the store to close it.
    assert fleet.marked == "opening"
