"""The watermarks of the lanes of a shared journal that this process holds.

Each lane has one watermark of each stream, ``_watermarks/{stream}/{journal}-lane{number}.json``,
which its owner writes. Which payloads a process has accepted does not matter: a lane that is taken
over, and given back, has the same watermarks as before.

* A watermark is in the row of its lane before the store has it. A process gets a lane with what the
  row says, and accepts no payload with an earlier time (``SharedLanes``). So what a former owner
  that was stopped writes late is true: it only says less than the store had.
* Of its own lane a process writes watermarks as it does with a journal in STATE_DIR. With another
  lane it begins again; requests are refused until that is open.
* A lane of a former owner of which all is stored is closed and then given back: no payload is
  accepted there. The same for lanes that were given back open.
* "Closed" is not true for ever where a lane is used again. Therefore the row says "closing" before
  the store is asked, and "closed" once the store has confirmed it. A lane whose owner was lost in
  between is never used for requests again: whatever of it arrives in the store stays true.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from payloadd.model.job import AscendingIds
from payloadd.pipeline.in_flight import InFlight
from payloadd.pipeline.watermark_file import Promise
from payloadd.pipeline.watermarks import LAST_SECONDS, StreamWatermarks, cancel_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from payloadd.config.settings import Settings
    from payloadd.journal.api import HeldLane, Marked, SharedLanes
    from payloadd.observe.status import DeadLetterGroup
    from payloadd.pipeline.accounting import Accounting
    from payloadd.storage.api import Store

_LOOK: Final = 1.0
"""Seconds between two looks for lanes that have to be closed."""
_RETRY: Final = 30.0
"""Seconds until the next look after the store did not confirm that a lane is closed."""


class SharedWatermarks:
    """The watermarks of one process with a shared journal: those of all lanes that it holds."""

    def __init__(
        self,
        settings: Settings,
        accounting: Accounting,
        dead_letters: Callable[[int | None], Sequence[DeadLetterGroup]],
        store: Store,
        lanes: SharedLanes[Any],
        pulse: Callable[[], Awaitable[None]],
    ) -> None:
        """``dead_letters`` reads those of a lane, in a thread; ``pulse`` is that of the journal."""
        self.in_flight = InFlight(AscendingIds())
        """Counts the requests, and gives them their ids."""
        self._settings = settings
        self._accounting = accounting
        self._dead_letters = dead_letters
        self._store = store
        self._lanes = lanes
        self._pulse = pulse
        self._own: LaneWatermarks | None = None
        """Those of the own lane, while it is held."""

    @asynccontextmanager
    async def written(self, stop: trio.Event) -> AsyncIterator[None]:
        """Write watermarks while the body runs; see ``Watermarks.written``."""
        opened = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_own, opened)
            async with trio.open_nursery() as beginning:
                beginning.start_soon(cancel_after, stop, beginning.cancel_scope)
                await opened.wait()
                beginning.cancel_scope.cancel()
            nursery.start_soon(self._close_repeatedly)
            yield
            nursery.cancel_scope.cancel()
        with trio.move_on_after(LAST_SECONDS):
            await self._close_others()
            if self._own is not None:
                await self._pulse()  # the last dead letters may wait for a commit
                await self._own.finish()

    async def _write_own(self, opened: trio.Event) -> None:
        """Write the watermarks of the own lane, and of each lane that comes in its place."""
        while True:
            lane = self._lanes.own
            if lane is None:
                await self._lanes.wait_for_change()
                continue
            self._own = self._watermarks(lane)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._own.run, opened)
                while self._lanes.own is lane:
                    await self._lanes.wait_for_change()
                self._own = None
                nursery.cancel_scope.cancel()

    def _watermarks(self, lane: HeldLane) -> LaneWatermarks:
        dead_letters = partial(self._dead_letters, lane.number)
        parts = (self._settings, self._accounting, dead_letters, self._store, self.in_flight)
        return LaneWatermarks(*parts, self._lanes, lane)

    async def _close_repeatedly(self) -> None:
        closed = True
        while True:
            await trio.sleep(_LOOK if closed else _RETRY)
            closed = await self._close_others()

    async def _close_others(self) -> bool:
        """Close the lanes of former owners of which all is stored; return False if one is not."""
        closed = True
        for lane in self._lanes.unclosed():
            closed &= await self._watermarks(lane).close(lane.promise.until)
        return closed


class LaneWatermarks(StreamWatermarks):
    """The watermarks of one lane."""

    def __init__(
        self,
        settings: Settings,
        accounting: Accounting,
        dead_letters: Callable[[], Sequence[DeadLetterGroup]],
        store: Store,
        in_flight: InFlight,
        lanes: SharedLanes[Any],
        lane: HeldLane,
    ) -> None:
        """Go on from the promise of ``lane``."""
        process = f"{lanes.name}-lane{lane.number}"
        promise = Promise(process, lane.promise.until, closed=lane.promise.marked != "open")
        names = lanes.names(lane)
        super().__init__(settings, promise, accounting, dead_letters, store, names, in_flight)
        self._lanes = lanes
        self._lane = lane
        self._opened = False

    async def run(self, opened: trio.Event) -> None:
        """Open the lane for requests, and write its watermarks until cancelled."""
        self.in_flight.ids.raise_floor(self._lane.promise.floor)
        await self._begin()
        self._lanes.open(self._lane)
        self._opened = True
        opened.set()
        await self._run()

    async def finish(self) -> None:
        """Close the lane, if it was opened and everything that was accepted is stored or dead."""
        stored = not self._accounting.open and self.in_flight.empty
        if self._opened and stored and self._lane.is_empty:
            await self.close(dict.fromkeys(self._names.values(), self.in_flight.ids.mark()))

    async def close(self, until: dict[str, int]) -> bool:
        """Write that no payload is accepted in the lane any more. All of it is stored or dead.

        Returns False if the store did not confirm it.
        """
        self._until = dict(until)
        last: Marked = "retired" if self._lane.promise.marked == "closing" else "closed"
        if not await self._lanes.promise(self._lane, until, "closing"):
            return True  # another process has the lane
        if await self._upload(dict.fromkeys(until, True)) != until.keys():
            return False
        return await self._lanes.promise(self._lane, until, last)

    def _has_jobs(self) -> bool:
        return self._lane.jobs > 0

    def _newest_found(self, stream: int) -> int:
        # A stream without jobs may have a dead letter, which is tried again later.
        return max(super()._newest_found(stream), self._lane.found.get(stream, 0))

    async def _promise(self, *, closed: bool) -> None:
        marked: Marked = "opening" if closed else "open"
        if not await self._lanes.promise(self._lane, self._until, marked):
            await trio.sleep_forever()  # the lane is lost, which cancels this
