"""What the watermarks of the held lanes say, for the part of the pipeline that writes them.

Requests go into the own lane once its watermarks are open, and only with times of acceptance that
no watermark of the lane has passed. A process that gets another lane refuses the requests that had
their times before. A promise is written under the epoch of the lane: a former owner cannot change
it, and what it has promised before stays true, because it is durable for all later owners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import RefusedError
from payloadd.journal.shared_lanes import LanePromise
from payloadd.model.streams import MOST_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.journal.api import Receipt
    from payloadd.journal.postgres.attempt import Attempt
    from payloadd.journal.postgres.calls import DatabaseCalls
    from payloadd.journal.postgres.lane import Lane
    from payloadd.journal.shared_lanes import Marked

_AFTER: Final = 1
"""Seconds after which a lane is usually open."""


class LanePromises:
    """The promises of the held lanes; see the protocol ``SharedLanes``."""

    def __init__(self, calls: DatabaseCalls, streams: Sequence[str]) -> None:
        """``streams`` are those of the settings; the session is open."""
        self._calls = calls
        self._session = calls.session
        self.name = calls.session.journal_name
        self._streams = streams
        self._open: Lane | None = None
        self._floor = 0
        """The time in milliseconds before which no payload may be accepted in the own lane."""
        self._changed = trio.Event()

    # For the journal.

    def note_change(self) -> None:
        """Note that the own lane may be another one, or none."""
        self._changed.set()
        self._changed = trio.Event()

    def refusal(self) -> RefusedError | None:
        """Return the error of all requests while the own lane is not open."""
        if self._open is not None and self._open is self.own:
            return None
        return RefusedError(
            "DISK_ERROR", "the store does not know yet that this process accepts payloads", _AFTER
        )

    def refusal_of(self, receipt: Receipt) -> RefusedError | None:
        """Return the error of a request that may not go into the own lane."""
        if (refusal := self.refusal()) is None and receipt.id.int >> 80 < self._floor:
            refusal = RefusedError("DISK_ERROR", "another process has taken the lane", _AFTER)
        return refusal

    def refuse_early(self, attempt: Attempt) -> None:
        """Refuse the requests of a commit that got their times before the own lane was open.

        Nothing of the commit is in the journal.
        """
        for append in attempt.commit.appends:
            refusal = self.refusal_of(append.receipt)
            if refusal is not None and append.done is not None:
                append.done(refusal)
                append.done = None
        attempt.drop_refused()

    # For the pipeline.

    @property
    def own(self) -> Lane | None:
        """The lane that requests go into; None while another one is got."""
        return self._session.own_or_none

    async def wait_for_change(self) -> None:
        """Return once the own lane may be another one."""
        await self._changed.wait()

    def names(self, lane: Lane) -> dict[int, str]:
        """Return the streams whose watermarks a lane has, by the numbers of the pipeline."""
        known = self._session.names
        wanted = {*self._streams, *lane.promise.until} | {
            known[number] for number in lane.streams if number in known
        }
        numbers = {name: number for number, name in known.items()}
        return {lane.slot * MOST_NUMBERS + numbers[name]: name for name in wanted}

    async def promise(self, lane: Lane, until: Mapping[str, int], marked: Marked) -> bool:
        """Make durable what the watermarks of a lane say; return False if the lane is lost."""
        async with self._calls.lock:
            promise = LanePromise(dict(until), marked)
            return await self._calls.write(self._session.promise, lane, promise)

    def open(self, lane: Lane) -> None:
        """Let requests go into the own lane: its watermarks in the store are open."""
        self._floor = lane.promise.floor
        self._open = lane

    def unclosed(self) -> list[Lane]:
        """Return the lanes of former owners of which all is stored, and whose watermarks are open.

        They are given back once these are closed.
        """
        return [
            lane
            for lane in list(self._session.lanes.values())
            if lane is not self.own and lane.is_empty and lane.promise.unclosed
        ]
