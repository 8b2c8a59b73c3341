"""A client's connection as Hypercorn's ``TCPServer`` sees it, with the limits that it lacks.

``TCPServer`` sends without a deadline and sets no time limit for a request's head. It answers
input that it cannot parse with an empty body, and it closes so early that a client which is still
sending loses the answer. Under Quart-Trio its idle timer does not restart after an answer, and a
client that leaves between two pipelined requests leaves a task behind. ``ClientStream`` is the
stream that ``TCPServer`` reads and writes, and corrects all of this. Its only knowledge of
HTTP/1.1 is where an answer starts.

The app reports when the head of a request is complete and when its answer is sent. Between these
two events the app keeps the time; before and after them ``ConnectionState`` does.

``aclose`` cancels all that Hypercorn does for the connection. The server then awaits ``finish``,
which closes the socket: a client needs time to read its last answer.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.http_grammar import MAX_HEAD_BYTES
from payloadd.ingress.problem import problem_for_status
from payloadd.ingress.server.client_connection import ClientConnection
from payloadd.ingress.server.connection_state import looks_complete
from payloadd.ingress.server.http2_input import PREFACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypercorn.trio.worker_context import WorkerContext

    from payloadd.ingress.problem import Problem
    from payloadd.ingress.server.connection_state import TickClock
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.socket_stream import NonBlockingStream

_READ_BYTES: Final = 32_768


class ClientStream(ClientConnection):
    """One accepted connection. All that Hypercorn does for it runs in ``scope``."""

    __slots__ = ("_fifo_gate", "_received", "_scope", "context", "passed_to_hypercorn")

    def __init__(
        self,
        transport: NonBlockingStream,
        request_timeout: float,
        keepalive_timeout: float,
        fifo_gate: FifoGate,
        clock: TickClock | None = None,
    ) -> None:
        """Wrap ``transport``; both timeouts are in seconds."""
        super().__init__(transport, request_timeout, keepalive_timeout, clock)
        self._fifo_gate = fifo_gate
        self._scope: trio.CancelScope | None = None
        self._received = b""
        """Bytes that the fast path has read and Hypercorn has not."""
        self.passed_to_hypercorn = False
        """Whether Hypercorn has to serve the connection from now on."""
        self.context: WorkerContext | None = None
        """Hypercorn's context of the connection, once Hypercorn serves it."""

    @property
    def scope(self) -> trio.CancelScope:
        """The scope of Hypercorn's tasks; it is cancelled when the connection ends."""
        if self._scope is None:
            self._scope = trio.CancelScope()
            if self.closed:
                self._scope.cancel()
        return self._scope

    def pass_to_hypercorn(self, data: bytes) -> None:
        """Let Hypercorn serve the connection; ``data`` are bytes that it has to read first."""
        self._received = data
        self.head = data[:MAX_HEAD_BYTES] if self.cors is not None else b""
        self.passed_to_hypercorn = True
        self._on_deadline = None
        self.state.count_received = None
        self.state.awaits_turn = looks_complete(data)
        self.state.begins_http2 = data.startswith(PREFACE[:4])

    # --- called by Hypercorn ----------------------------------------------------------------------

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for data and return it, b"" at the end of the input.

        Raises ``trio.BrokenResourceError`` if the client has reset the connection.
        """
        if self._received:
            await self._fifo_gate.wait_turn()
            data, self._received = self._received, b""
            return data
        data = await self.transport.receive_some(min(max_bytes or _READ_BYTES, _READ_BYTES))
        if data:
            begun = self.state.head_since is not None
            self.state.note_received(data)
            if self.cors is not None and self.state.head_since is not None:
                self.head = ((self.head if begun else b"") + data)[:MAX_HEAD_BYTES]
        return data

    async def send_all(self, data: bytes) -> None:
        """Send ``data``.

        Raises ``trio.BrokenResourceError`` if the client does not read it within REQUEST_TIMEOUT,
        and ``trio.ClosedResourceError`` after ``aclose``.
        """
        if not self.begin_to_send(data):
            await self.send_rest()

    def begin_to_send(self, data: bytes) -> bool:
        """Send as much of ``data`` as there is room for; return whether that was all.

        Call it only while nothing waits for room. Raises the errors of ``send_all``.
        """
        if self.closed:
            raise trio.ClosedResourceError("this side has closed the connection")
        try:
            return self.transport.send_now(self._prepare_answer(data))
        except trio.BrokenResourceError:
            self._end()
            raise

    async def send_rest(self) -> None:
        """Send what ``begin_to_send`` had no room for. Raises the errors of ``send_all``."""
        try:
            await self._flush()
        except trio.BrokenResourceError:
            self._end()
            raise

    async def send_eof(self) -> None:
        """Do nothing: Hypercorn always closes right afterwards, and ``finish`` sends the end."""

    async def aclose(self) -> None:
        """End Hypercorn's part of the connection.

        Hypercorn ends a connection by itself after an answer to a request of which it has not
        read the body. Bytes that arrived after the answer are then the rest of that body and no
        new request, and the client still has to read the answer.
        """
        if self.state.answering and not self.closed:
            self.state.head_since = None
            self._lingers = True
        self._end()

    # --- called by what serves Hypercorn ----------------------------------------------------------

    async def wait_until_answered(self, most: int = 0) -> None:
        """Wait until ``most`` requests or fewer have no answer."""
        while self.state.requests > most:
            if self._answered is None:
                self._answered = trio.Event()
            await self._answered.wait()

    @contextmanager
    def until(self, due: float, scope: trio.CancelScope) -> Iterator[trio.CancelScope]:
        """Run the ``with`` block in ``scope``; cancel it shortly after ``due`` (trio's clock).

        trio's own deadlines do not follow ``postpone``: after a stall of the event loop they
        would expire before the bytes in the socket are read.
        """
        limits = self._limits = {} if self._limits is None else self._limits
        limits[scope] = due
        try:
            with scope:
                yield scope
        finally:
            del limits[scope]

    def refuse_connection(self, problem: Problem) -> None:
        """End Hypercorn's part; ``finish`` answers with ``problem``, but not in HTTP/2."""
        self.state.head_since = None
        self._final_problem = None if self.state.http2 else problem
        self._end()

    # ----------------------------------------------------------------------------------------------

    def _end(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        super()._end()

    def _prepare_answer(self, data: bytes) -> bytes:
        """Return the bytes to send for ``data``; count the answer that starts with it, if any."""
        if self.state.http2 or not data.startswith(b"HTTP/1.1 "):
            return data
        status = int(data[9:12])
        if status < 200:  # noqa: PLR2004 - an interim answer; the final one follows
            return data
        self.state.answering = True
        head = data.lower()
        self._lingers = b"\r\nconnection: close\r\n" in head
        empty_error = status >= 400 and b"\r\ncontent-length: 0\r\n" in head  # noqa: PLR2004
        if empty_error:
            return self._own_answer(problem_for_status(status))
        self._count(status)
        return data
