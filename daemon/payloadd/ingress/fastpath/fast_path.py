"""The fast path: HTTP/1.x in front of Hypercorn, which serves HTTP/2.

Hypercorn and Quart need most of their time per request for features that a POST does not use. The
fast path serves all requests of HTTP/1.x itself, and submits them in the same way as the Quart app.
Hypercorn and the Quart app stay the reference: they serve HTTP/1.x where there is no fast path, and
tests compare the two.

One task serves all connections of the fast path. A task for each connection would be woken once for
its request and once for its commit, and spend much of its CPU time in the scheduler. Here one
wake-up serves all readable sockets, and one commit answers all requests in it.
"""

from __future__ import annotations

import os
import select
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.fastpath.answers import Answers
from payloadd.ingress.fastpath.connection import FastPathConnection
from payloadd.ingress.fastpath.head import HeadParser
from payloadd.ingress.fastpath.targets import Targets
from payloadd.ingress.server.client_connection import do_nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.poller import Readable
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics

_CONNECTIONS_PER_POLL: Final = 64
_BULK_CONNECTIONS_PER_POLL: Final = 8
_BULK_BESIDE_COMMITS: Final = 1
"""Reads of large bodies in one pass of the event loop while requests wait for a commit: a commit
needs several passes, and each such read would delay it."""
_CLOCK_CHECK_MASK: Final = 3
"""The clock is read after each fourth socket read: a call per read was measurable."""
_TIME_SLICE: Final = 0.002
"""Seconds after which other tasks may run; the work for a single request has its own bounds."""
_CALLBACKS_SLICE: Final = 0.001
"""Seconds of the callbacks in one pass of the event loop."""
_PAUSE: Final = 0.002
"""Seconds between two slices of callbacks while requests wait for a commit, unless input arrives.
The commit needs Python's lock often, and would wait for it each time beside a loop that never
sleeps."""


class FastPath:
    """Serves the connections of the fast path.

    ``submitter`` receives the requests, ``metrics`` counts the answers, ``refusals`` logs the
    refused requests, and ``description`` is the answer to ``GET /openapi.json``.
    """

    def __init__(
        self,
        submitter: Submitter,
        health: Health,
        metrics: Metrics,
        refusals: RefusalLog,
        description: bytes,
    ) -> None:
        self.submitter = submitter
        self.health = health
        self.requests = metrics.requests
        self.refusals = refusals
        self.heads = HeadParser(
            submitter.routes,
            Targets(submitter.routes, description),
            submitter.max_length,
            submitter.kept_headers,
            submitter.waits.seconds_to_wait,
        )
        self.answers = Answers(submitter.cors)
        self.unanswered = 0
        """Requests that were submitted and are not answered yet."""
        self._connections: dict[int, Readable] = {}
        # Level-triggered: input that was not read is reported again in the next pass.
        self._epoll = select.epoll()
        # Sockets of bodies that take more than one read. They take long in any case, and a thousand
        # of them must not be read before a request of one read. This epoll is a member of the other
        # one.
        self._bulk_epoll = select.epoll()
        self._epoll.register(self._bulk_epoll.fileno(), select.EPOLLIN)
        self._callbacks: deque[Callable[[], None]] = deque()
        self._deferred: deque[Callable[[], None]] = deque()
        """Complete requests with larger bodies: they are decoded after all small ones."""
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Is readable while there are callbacks, so that the epoll reports them."""
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._closed = False
        """Whether ``run`` has ended: a later commit must not use the closed descriptors."""

    async def run(self) -> None:
        """Serve the connections until cancelled."""
        try:
            while True:
                if self._deferred:
                    await trio.lowlevel.checkpoint()
                elif self._callbacks and self.unanswered:
                    await self._pause()
                else:
                    # An epoll is readable itself while one of its members is.
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                end = perf_counter() + _TIME_SLICE
                for index, read in enumerate(self._readable(), start=1):
                    read()
                    if not index & _CLOCK_CHECK_MASK and perf_counter() > end:
                        self.submitter.switch_interval.shorten()
                        await trio.lowlevel.checkpoint()
                        end = perf_counter() + _TIME_SLICE
                if self._callbacks:
                    end = self._run_callbacks()
                self._run_deferred(end)
        finally:
            self._closed = True
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()
            self._bulk_epoll.close()
            os.close(self._wakeup)

    async def _pause(self) -> None:
        """Sleep for some milliseconds, or until input arrives; callbacks do not end the sleep."""
        self._epoll.modify(self._wakeup, 0)
        with trio.move_on_after(_PAUSE):
            await trio.lowlevel.wait_readable(self._epoll.fileno())
        self._epoll.modify(self._wakeup, select.EPOLLIN)

    def _run_callbacks(self) -> float:
        """Call the callbacks that wait, at least one, for one slice of time; return its end.

        If all of them were called, new requests would wait until each of a thousand connections has
        had its turn.
        """
        os.eventfd_read(self._wakeup)
        end = perf_counter() + _CALLBACKS_SLICE
        # Callbacks that are added meanwhile are for a later pass.
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()
            if perf_counter() > end:
                break
        if self._callbacks:
            os.eventfd_write(self._wakeup, 1)
            self.submitter.switch_interval.shorten()
        return end

    def _run_deferred(self, end: float) -> None:
        """Process deferred requests until ``end``, and at least one if there is one."""
        while self._deferred:
            self._deferred.popleft()()
            if perf_counter() > end:
                return

    def _readable(self) -> list[Callable[[], None]]:
        """Return the reads to do: first of new requests, then of some large bodies."""
        connections = self._connections
        ready = [fd for fd, _ in self._epoll.poll(0, _CONNECTIONS_PER_POLL)]
        reads = [connections[fd].on_readable for fd in ready if fd in connections]
        if len(reads) < len(ready):
            most = _BULK_BESIDE_COMMITS if self.unanswered else _BULK_CONNECTIONS_PER_POLL
            reads += [connections[fd].on_readable for fd, _ in self._bulk_epoll.poll(0, most)]
        return reads

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after the reads of the input that has already arrived.

        A callback that is added by another one is called in a later pass of the event loop.
        """
        # After ``run`` the descriptor may belong to another file.
        if not self._closed:
            self._callbacks.append(callback)
            os.eventfd_write(self._wakeup, 1)

    def defer(self, work: Callable[[], None]) -> None:
        """Call ``work``, which may take some milliseconds, after all small requests.

        Sockets are served in the order in which they become readable: without this queue a small
        request would wait behind up to 64 bodies of some milliseconds each.
        """
        if not self._deferred:
            # The caller may be another task, which accepts connections, while ``run`` waits.
            self.call_soon(do_nothing)
        self._deferred.append(work)

    def enter(self, stream: ClientStream, leave: Callable[[ClientStream], object]) -> None:
        """Serve a new connection; call ``leave`` when it needs Hypercorn, or ends.

        Raises OSError if the system can poll no more sockets.
        """
        FastPathConnection(self, stream, leave).read_pending()

    def register(
        self, fd: int, connection: Readable, events: int = select.EPOLLIN, *, bulk: bool = False
    ) -> None:
        """Call ``connection`` at ``events`` of ``fd``; ``bulk``: its input is part of a large body.

        Raises OSError if the system can poll no more sockets.
        """
        (self._bulk_epoll if bulk else self._epoll).register(fd, events)
        self._connections[fd] = connection

    def unregister(self, fd: int, *, bulk: bool) -> None:
        """Stop polling ``fd``."""
        if not self._closed:
            (self._bulk_epoll if bulk else self._epoll).unregister(fd)
            del self._connections[fd]

    def awaits_commit(self) -> bool:
        """Return whether requests wait for the journal."""
        return self.unanswered > 0
