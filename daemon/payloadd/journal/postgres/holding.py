"""Hold lanes: show signs of life, take lanes over, replace a lane that is lost, tidy up.

A lane without an owner that has something to store is taken at once, one whose owner shows no sign
of life after the time of a lease, at most one in each round. Its jobs go through the pipeline
beside those of the own lane: batches that were sealed under their keys, all others as a backlog.
Once a lane that was taken is empty it is given back.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from payloadd.journal.postgres.calls import FAILURES
from payloadd.journal.postgres.keys import SHARE
from payloadd.model.streams import MOST_NUMBERS
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from payloadd.journal.api import JournalListener
    from payloadd.journal.postgres.calls import DatabaseCalls
    from payloadd.journal.postgres.lane import Lane
    from payloadd.journal.postgres.leases import SeenLane
    from payloadd.journal.postgres.promises import LanePromises
    from payloadd.journal.shared_lanes import LanePromise
    from payloadd.model.layout import Layouts
    from payloadd.observe.metrics import Metrics

log = get_logger(__name__)

_ROUNDS_PER_KEYS: Final = 60
_ROUNDS_PER_COUNT: Final = 10


class KnownStreams(NamedTuple):
    """The streams as the pipeline knows them; both parts grow with each lane."""

    layouts: Layouts
    names: dict[int, str]
    """The names of streams by their numbers in the pipeline."""
    with_watermarks: Sequence[str] | None
    """The streams of the settings; None if lanes have no watermarks."""


class LaneHolder:
    """The lanes of one process; the pipeline hears of them through its listener."""

    def __init__(
        self,
        calls: DatabaseCalls,
        recover: Callable[[Exception], Awaitable[None]],
        listener: JournalListener,
        metrics: Metrics,
        known: KnownStreams,
        max_bytes: int,
        promises: LanePromises | None,
    ) -> None:
        """``max_bytes`` is JOURNAL_MAX_BYTES; ``promises``: None without watermarks."""
        self._promises = promises
        self._calls = calls
        self._recover = recover
        self._session = calls.session
        self._listener = listener
        self._metrics = metrics
        self._known = known
        self._max_bytes = max_bytes
        # Opening the journal has let the pipeline know the first lane.
        self._introduced = set(self._session.lanes)
        """The slots of the lanes that the pipeline knows."""
        self._watched: dict[int, tuple[SeenLane, float]] = {}
        """The lanes of others, with the time at which each was first seen so."""
        self._looked = 0.0
        self._beaten = trio.current_time()

    async def run(self) -> None:
        """Run the rounds until the task is cancelled."""
        calls, tuning = self._calls, self._calls.tuning
        for number in count():
            await trio.sleep(tuning.maintenance_interval)
            async with calls.lock:
                try:
                    await self._round(number)
                except FAILURES as error:
                    await self._recover(error)

    async def _round(self, number: int) -> None:
        calls, session = self._calls, self._session
        now = trio.current_time()
        if now >= self._beaten + calls.tuning.beat_interval:
            self.lose(await calls.once(session.beat))
            await self.ensure_own()
            self._beaten = now
        await self._look_around()
        # A checkpoint that is repeated after an error may delete the rows of batches that became
        # dead letters: before one of these is revived, and has such a row again.
        await calls.once(session.checkpoint)
        revived = await calls.once(session.revive)
        if revived:
            self._listener.revived(revived)
        await calls.once(session.free_parts)
        for lane in [*session.lanes.values()]:
            if lane is not session.own and lane.is_empty and not self._closes(lane.promise):
                await calls.once(session.release, lane)
                self._introduced.discard(lane.slot)
                self._listener.taken_away(self._streams(lane), 0)
                log.info("lane_released", lane=lane.number)
        oldest = await calls.once(session.oldest)
        by_stream = None
        # Where a change of the lane could not be written, the tables do not show all that is open.
        if self._promises is not None and not session.own.dirty:
            by_stream = await calls.once(session.oldest_by_stream)
        self._listener.oldest_accepted(None if oldest is None else oldest / 1000, by_stream)
        if number % _ROUNDS_PER_COUNT == 0:
            await calls.once(session.count_dead)
        if number % _ROUNDS_PER_KEYS == 0:
            most = self._max_bytes // SHARE
            self._metrics.keys_evicted.value += await calls.once(session.maintain_keys, most)

    async def _look_around(self) -> None:
        """Take a lane that has no owner, or whose owner shows no sign of life."""
        calls, session = self._calls, self._session
        lease = calls.tuning.lease
        seen = await calls.once(session.others)
        now = trio.current_time()
        if now > self._looked + lease / 2:
            # After a pause nothing is known: all owners may have been cut off meanwhile.
            self._watched.clear()
        self._looked = now
        watched = {}
        for lane in seen:
            before = self._watched.get(lane.lane)
            same = before is not None and before[0][:3] == lane[:3]
            # The lane as it is now: a lane without an owner is not empty any more once a dead
            # letter of it is marked, and that changes neither epoch nor beat.
            watched[lane.lane] = (lane, before[1] if before is not None and same else now)
        self._watched = watched
        for lane, since in watched.values():
            waits = not lane.empty or self._closes(lane)
            due = waits if lane.free else now >= since + lease
            if due:
                await self._take(lane)
                break

    def _closes(self, one: LanePromise | SeenLane) -> bool:
        """Return whether this process has to close the watermarks of a lane of a former owner."""
        return self._promises is not None and one.unclosed

    async def _take(self, seen: SeenLane) -> None:
        lane = await self._calls.once(self._session.take, seen)
        if lane is not None:
            log.warning(
                "lane_taken",
                lane=lane.number,
                payloads=lane.payloads,
                reason="given back" if seen.free else "no sign of life of its owner",
            )
            await self._introduce()

    async def _introduce(self) -> None:
        """Let the pipeline know the lanes that it does not know.

        These may be several: an error may have come after a lane was got, and it was kept.
        """
        calls, session = self._calls, self._session
        for lane in [*session.lanes.values()]:
            if lane.slot not in self._introduced:
                self._known.layouts.add(await calls.once(session.layouts_of, lane))
                self._known.names.update(await calls.once(session.stream_names, lane))
                self._introduced.add(lane.slot)
                self._listener.taken_over(lane.newest(), lane.payloads)
                if self._promises is not None and lane is session.own_or_none:
                    self._promises.note_change()

    def lose(self, lanes: Sequence[Lane]) -> None:
        """Let the pipeline forget lanes that other processes have."""
        for lane in lanes:
            log.warning("lane_lost", lane=lane.number, payloads=lane.payloads)
            if lane.slot in self._introduced:
                self._introduced.discard(lane.slot)
                self._listener.taken_away(self._streams(lane), lane.payloads)
        if lanes and self._promises is not None:
            self._promises.note_change()

    def _streams(self, lane: Lane) -> list[int]:
        return [lane.slot * MOST_NUMBERS + number for number in lane.streams]

    async def ensure_own(self) -> None:
        """Get a lane for requests if the present one is lost; let the pipeline know all lanes."""
        if not self._session.has_own:
            lane = await self._calls.once(self._session.get_own)
            log.info("lane_leased", lane=lane.number)
        await self._introduce()
