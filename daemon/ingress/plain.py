"""The lane for plain requests, in front of Hypercorn.

Hypercorn and Quart spend 1.6 ms on a request, most of it on what a plain POST does not need.
A connection starts here: while its requests are plain (see ``head.py``) and come one at a
time, they go through the same door and are answered in one write. At the first that is
anything else, be it wrong, the bytes that were read go back in front of the stream and
Hypercorn has the connection for good. So there is nothing here to get wrong about HTTP: when
in doubt, it is handed over.

One task serves all connections of the lane. A task for each, woken once for its request and
once for its commit, spent half of its CPU in the scheduler; here a wake-up is shared by all
requests that are there, and the commit answers all who waited for it.
"""

from __future__ import annotations

import select
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

import trio

from daemon.ingress.door import Door
from daemon.ingress.plain_connection import PlainConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.config import Settings
    from daemon.health import Health
    from daemon.ingress.refusals import RefusalLog
    from daemon.ingress.stream import ClientStream
    from daemon.metrics import Metrics
    from daemon.pipeline.intake import Intake

_HEAD: Final = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ndate: %s\r\n"
_AT_ONCE: Final = 64
"""Connections that are served before other tasks have a turn: 1 to 3 ms."""


class PlainLane:
    """Serves the connections that have entered it."""

    def __init__(
        self,
        intake: Intake,
        health: Health,
        metrics: Metrics,
        settings: Settings,
        refusals: RefusalLog,
    ) -> None:
        self.door = Door(intake, health, settings)
        self.health = health
        self.count = metrics.count_request
        self.refusals = refusals
        self._connections: dict[int, PlainConnection] = {}
        # Level-triggered, so that what was not read is there in the next round.
        self._ready = select.epoll()
        self._second = 0
        self._head = b""

    async def run(self) -> None:
        """Serve for ever."""
        try:
            while True:
                # An epoll is readable itself while one of its members is.
                await trio.lowlevel.wait_readable(self._ready.fileno())
                for fd, _ in self._ready.poll(0, _AT_ONCE):
                    self._connections[fd].readable()
        finally:
            trio.lowlevel.notify_closing(self._ready.fileno())
            self._ready.close()

    def enter(self, stream: ClientStream, leave: Callable[[ClientStream], object]) -> None:
        """Serve a new connection until it has to go on elsewhere, or ends: then call ``leave``.

        Raises OSError where the system can watch no more of them.
        """
        PlainConnection(self, stream, leave).read_pending()

    def listen(self, fd: int, connection: PlainConnection) -> None:
        """Have ``connection`` called when there is something to read."""
        self._ready.register(fd, select.EPOLLIN)
        self._connections[fd] = connection

    def ignore(self, fd: int) -> None:
        """Call it no more."""
        self._ready.unregister(fd)
        del self._connections[fd]

    def head(self) -> bytes:
        """Return the head of a 202 up to its length; the date costs as much as the rest of it."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._head = _HEAD % formatdate(second, usegmt=True).encode("ascii")
        return self._head
