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

import os
import select
import time
from collections import deque
from email.utils import formatdate
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.fastpath.connection import FastPathConnection

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.owner import Readable
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics

_HEAD: Final = b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\ndate: %s\r\n"
_CONNECTIONS_PER_POLL: Final = 64
"""Connections that are asked for at once."""
_BULK_CONNECTIONS_PER_POLL: Final = 8
_BULK_BESIDE_COMMITS: Final = 1
"""Reads of large bodies in one pass of the event loop while requests wait for a commit. A commit
takes some five passes, and a read 0.2 ms."""
_LOOK_AT_CLOCK: Final = 3
"""The clock is looked at behind each fourth read, of which none takes a millisecond."""
_TURN: Final = 0.002
"""Seconds after which other tasks have a turn; what a request takes more is bounded by itself."""


class FastPath:
    """Serves the connections that have entered it."""

    def __init__(
        self, submitter: Submitter, health: Health, metrics: Metrics, refusals: RefusalLog
    ) -> None:
        self.submitter = submitter
        self.health = health
        self.count = metrics.count_request
        self.refusals = refusals
        self.waiting = 0
        """Requests that were submitted and are not answered yet."""
        self._connections: dict[int, Readable] = {}
        # Level-triggered, so that what was not read is there in the next round.
        self._ready = select.epoll()
        # Bodies that take more than one read wait here: they take their time in any case, and a
        # thousand of them must not go before a request that is one read. It is ready in the other.
        self._bulk = select.epoll()
        self._ready.register(self._bulk.fileno(), select.EPOLLIN)
        self._pending: list[Callable[[], None]] = []
        self._deferred: deque[Callable[[], None]] = deque()
        """Requests with a larger body, all of it received: decoded behind all small ones."""
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Is readable while something is pending: the epoll tells of it."""
        self._ready.register(self._bell, select.EPOLLIN)
        self._closed = False
        """Whether ``run`` has ended: what a commit still answers is of no more use here."""
        self._second = 0
        self._head = b""

    async def run(self) -> None:
        """Serve for ever."""
        try:
            while True:
                if self._deferred:
                    await trio.lowlevel.checkpoint()
                else:
                    # An epoll is readable itself while one of its members is.
                    await trio.lowlevel.wait_readable(self._ready.fileno())
                end = perf_counter() + _TURN
                for index, read in enumerate(self._readable(), start=1):
                    read()
                    if not index & _LOOK_AT_CLOCK and perf_counter() > end:
                        self.submitter.switching.busy()
                        await trio.lowlevel.checkpoint()
                        end = perf_counter() + _TURN
                self._work_on_deferred(end)
        finally:
            self._closed = True
            trio.lowlevel.notify_closing(self._ready.fileno())
            self._ready.close()
            self._bulk.close()
            os.close(self._bell)

    def _work_on_deferred(self, end: float) -> None:
        """Take deferred requests until ``end``, one at least if there is one."""
        while self._deferred:
            self._deferred.popleft()()
            if perf_counter() > end:
                return

    def _readable(self) -> list[Callable[[], None]]:
        """Return what there is to read: first of requests that begin, then some of large bodies."""
        connections = self._connections
        ready = [fd for fd, _ in self._ready.poll(0, _CONNECTIONS_PER_POLL)]
        reads = [connections[fd].readable for fd in ready if fd in connections]
        if len(reads) < len(ready):
            reads += self._pending_now()
            most = _BULK_BESIDE_COMMITS if self.waiting else _BULK_CONNECTIONS_PER_POLL
            reads += [connections[fd].readable for fd, _ in self._bulk.poll(0, most)]
        return reads

    def _pending_now(self) -> list[Callable[[], None]]:
        if not self._pending:
            return []
        os.eventfd_read(self._bell)
        pending, self._pending = self._pending, []
        return pending

    def come_back(self, step: Callable[[], None]) -> None:
        """Call ``step``, which goes on with a connection, in a turn of its own."""
        # The descriptor may be that of another file by now.
        if not self._closed:
            self._pending.append(step)
            os.eventfd_write(self._bell, 1)

    def defer(self, work: Callable[[], None]) -> None:
        """Call ``work``, which takes up to some milliseconds, behind all small requests.

        The connections are served in the order in which they become readable: behind 64 bodies of
        5 ms each, a small request would wait for 0.3 s.
        """
        self._deferred.append(work)

    def enter(self, stream: ClientStream, leave: Callable[[ClientStream], object]) -> None:
        """Serve a new connection until it has to go on elsewhere, or ends: then call ``leave``.

        Raises OSError where the system can watch no more of them.
        """
        FastPathConnection(self, stream, leave).read_pending()

    def listen(self, fd: int, connection: Readable, *, bulk: bool = False) -> None:
        """Have ``connection`` called when there is something to read; ``bulk``: of a large body."""
        (self._bulk if bulk else self._ready).register(fd, select.EPOLLIN)
        self._connections[fd] = connection

    def ignore(self, fd: int, *, bulk: bool) -> None:
        """Call it no more."""
        if not self._closed:
            (self._bulk if bulk else self._ready).unregister(fd)
            del self._connections[fd]

    def awaits_commit(self) -> bool:
        """Return whether requests wait for the journal."""
        return self.waiting > 0

    def head(self) -> bytes:
        """Return the head of a 202 up to its length; the date costs as much as the rest of it."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._head = _HEAD % formatdate(second, usegmt=True).encode("ascii")
        return self._head
