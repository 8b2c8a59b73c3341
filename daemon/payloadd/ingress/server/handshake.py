"""TLS handshakes without tasks: a slow one costs a socket and the state of OpenSSL.

A step of a handshake takes up to a millisecond for a signature. So the steps of all connections
stand in one queue, and few of them run between two passes of the event loop.
"""

from __future__ import annotations

from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

import trio

from payloadd.ingress.server.client_connection import do_nothing
from payloadd.ingress.server.poller import Watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.poller import Watcher
    from payloadd.ingress.server.tls import TlsStream

_PASS_SECONDS: Final = 0.001
"""Seconds after which other tasks run; at least one step is made before."""


class HandshakeQueue:
    """The steps of handshakes that wait for their turn, first in, first out.

    The steps of clients that have got the server's part already have a queue of their own, and
    every second turn: such a step needs no signature, and would wait for as long as the first one
    behind the handshakes of clients that begin many and end none.

    There are no pauses for commits, as ``FifoGate`` makes them: OpenSSL works without Python's
    global interpreter lock.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()
        self._replies: deque[Callable[[], object]] = deque()
        self._not_empty = trio.Event()
        self._next_at_once = 0.0
        self._is_turn_of_replies = False

    def add(self, step: Callable[[], object]) -> None:
        """Call ``step``, which must not raise, when its turn has come.

        A single step is made at once: a turn costs a pass of the event loop.
        """
        self._add(step, self._waiting)

    def add_reply(self, step: Callable[[], object]) -> None:
        """Do the same with a step of a client that has answered the server's part."""
        self._add(step, self._replies)

    def _add(self, step: Callable[[], object], steps: deque[Callable[[], object]]) -> None:
        if not (self._waiting or self._replies) and perf_counter() > self._next_at_once:
            step()
            self._next_at_once = perf_counter() + _PASS_SECONDS
            return
        steps.append(step)
        self._not_empty.set()

    async def run(self) -> None:
        """Make some steps in each pass of the event loop, until cancelled."""
        while True:
            await self._not_empty.wait()
            end = perf_counter() + _PASS_SECONDS
            while steps := self._next():
                steps.popleft()()
                if perf_counter() > end:
                    break
            else:
                self._not_empty = trio.Event()
            await trio.lowlevel.checkpoint()

    def _next(self) -> deque[Callable[[], object]] | None:
        """Return the queue whose turn it is; None if both are empty."""
        self._is_turn_of_replies = not self._is_turn_of_replies
        if self._replies and (self._is_turn_of_replies or not self._waiting):
            return self._replies
        return self._waiting or None


class Handshake(Watched):
    """The handshake of one connection, within REQUEST_TIMEOUT."""

    __slots__ = ("_done", "_ended", "_queue", "_stream", "_transport", "_waits")

    def __init__(
        self,
        watcher: Watcher,
        stream: ClientStream,
        queue: HandshakeQueue,
        done: Callable[[ClientStream, bool], object],
    ) -> None:
        """Prepare the handshake; ``start`` begins it.

        ``done`` is called once, with whether the handshake is complete.
        """
        super().__init__(watcher, stream.socket.fileno())
        self._stream = stream
        self._transport = cast("TlsStream", stream.transport)
        self._queue = queue
        self._done = done
        self._waits = False
        """Whether received bytes wait for their turn."""
        self._ended = False

    def start(self) -> None:
        """Begin to read the socket; OSError if no more sockets can be watched."""
        state = self._stream.state
        self.watch()
        state.handshaking = True
        state.count_received = self._count_received
        state.expect_within(state.request_timeout)
        self._stream.on_end = self._abandon
        self.on_readable()

    def on_readable(self) -> None:
        """Read a part of the handshake."""
        if self._ended:
            return  # in the same pass: the input belongs to what serves the connection now
        if self._waits:
            self.unwatch()  # until the received part is processed
            return
        try:
            received = self._transport.receive_handshake()
        except trio.BrokenResourceError:
            self._end(complete=False)
            return
        if received:
            self._waits = True
            if self._transport.has_replied:
                self._queue.add_reply(self._take_turn)
            else:
                self._queue.add(self._take_turn)

    def _take_turn(self) -> None:
        self._waits = False
        if self._ended:
            return
        try:
            complete = self._transport.continue_handshake()
            if not complete:
                self.watch()
        except (trio.BrokenResourceError, OSError):
            self._end(complete=False)
            return
        if complete:
            self._end(complete=True)

    def _count_received(self) -> int:
        return self._transport.handshake_bytes

    def _abandon(self) -> None:
        """End the handshake because the connection ends."""
        self._end(complete=False)

    def _end(self, *, complete: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self.unwatch()
        state = self._stream.state
        state.handshaking = False
        state.count_received = None
        state.wait_for_request()
        self._stream.on_end = do_nothing
        self._done(self._stream, complete)
