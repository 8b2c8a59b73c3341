"""Check the deadlines of all connections: a share of them at each tick, a few hundred at a time.

Rejected alternatives: a timer for each connection costs a heap operation for each request. A check
of all connections at each tick takes milliseconds with ten thousand of them, in which no request is
served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.server.connection_state import TickClock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from payloadd.ingress.server.client_connection import ClientConnection

_TICK: Final = 0.25
"""Seconds between two ticks."""
_TICKS_PER_TIMEOUT: Final = 10
_MOST_SHARES: Final = 4
"""Ticks after which each connection is checked again, at most."""
_CHECKED_AT_ONCE: Final = 256
"""Connections that are checked before other tasks run: about 0.1 ms."""
_LATE: Final = 0.1
"""Seconds by which a tick may be late before the event loop counts as stalled."""
_LONGEST_RECOVERY: Final = 5.0
"""Seconds after a stall, at most, in which the sockets are read and no deadline is checked."""


class DeadlineWheel:
    """The open connections in shares of equal size. Each tick checks one share.

    So a deadline is noticed up to ``_MOST_SHARES`` ticks late, a second, and less if a timeout is
    shorter than ten seconds.
    """

    def __init__(self, shortest_timeout: float) -> None:
        """Check deadlines late by a tenth of ``shortest_timeout`` seconds at most."""
        late = shortest_timeout / _TICKS_PER_TIMEOUT
        self._tick = min(_TICK, late)
        count = max(1, min(_MOST_SHARES, int(late / self._tick)))
        self._shares: list[dict[ClientConnection, None]] = [{} for _ in range(count)]
        self._turn = 0
        self._added = 0
        self._occupied = trio.Event()
        self.clock = TickClock()
        self.draining = False
        """Whether each tick checks all connections: in a drain, a second is long."""

    def __iter__(self) -> Iterator[ClientConnection]:
        for share in self._shares:
            yield from share

    def add(self, stream: ClientConnection) -> None:
        """Check the deadlines of a connection until ``remove`` is called."""
        self._added += 1
        stream.share = self._added % len(self._shares)
        self._shares[stream.share][stream] = None
        if not self._occupied.is_set():
            self.clock.next_tick = trio.current_time() + self._tick
            self._occupied.set()

    def remove(self, stream: ClientConnection) -> None:
        """Check no further deadline of a connection."""
        self._shares[stream.share].pop(stream, None)

    def clear(self) -> None:
        """Remove all connections."""
        for share in self._shares:
            share.clear()

    async def run(self) -> None:
        """End connections whose deadline has passed, until cancelled.

        If the event loop was blocked, or the process was stopped, the clients did not cause the
        delay: every deadline is moved by it, and the sockets are read before any deadline is
        checked.
        """
        not_before = 0.0
        while True:
            # Sleep until a connection exists.
            await self._occupied.wait()
            began = trio.current_time()
            self.clock.next_tick = began + self._tick
            await trio.sleep(self._tick)
            if not any(self._shares):
                self._occupied = trio.Event()
            now = trio.current_time()
            late = now - began - self._tick
            if late > _LATE:
                not_before = now + min(late, _LONGEST_RECOVERY)
                for stream in self:
                    stream.postpone(late)
            if now >= not_before:
                await self._check(now)

    async def _check(self, now: float) -> None:
        """Check the share whose turn it is, and in a drain all of them."""
        self._turn = (self._turn + 1) % len(self._shares)
        shares = self._shares if self.draining else [self._shares[self._turn]]
        for share in shares:
            # A copy, because a connection that ends during its check is removed.
            for number, stream in enumerate(list(share), start=1):
                if stream in share:
                    stream.check_deadlines(now)
                if not number % _CHECKED_AT_ONCE:
                    await trio.lowlevel.checkpoint()
