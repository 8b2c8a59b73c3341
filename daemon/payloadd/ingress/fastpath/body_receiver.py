"""Receive the body of one request: read it, wait for memory, and stop at the request's deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from payloadd.ingress.fastpath.answers import CONTINUE
from payloadd.ingress.fastpath.framing import ChunkedBody, SizedBody
from payloadd.ingress.fastpath.incoming_body import BodyOwner, IncomingBody
from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    from payloadd.ingress.fastpath.head import FastPathRequest
    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.server.client_stream import ClientStream


class Receiving(BodyOwner, Protocol):
    """The connection for which a body is received; after ``await_turn`` it calls ``resume``."""

    def await_input(self, *, bulk: bool) -> None:
        """Call ``read`` when the socket has input; ``bulk``: of a large body."""
        ...

    def await_memory(self) -> None:
        """Read nothing; the body calls ``await_turn`` once it has memory."""
        ...

    def keep_rest(self, rest: bytes) -> None:
        """Keep the bytes behind the complete body."""
        ...

    def on_body(self, data: bytearray, charge: int) -> None:
        """Submit the body, whose memory, ``charge`` bytes, the connection has to release."""
        ...


class BodyReceiver:
    """Receives one body, which ends with ``on_body`` or ``on_body_refused`` of its connection."""

    __slots__ = (
        "_body", "_connection", "_expects", "_fast_path", "_head_bytes", "_rest", "_stream",
        "_timed",
    )  # fmt: skip

    def __init__(
        self,
        request: FastPathRequest,
        head_bytes: int,
        fast_path: Owner,
        stream: ClientStream,
        connection: Receiving,
    ) -> None:
        """Prepare to receive the body of ``request``, of which ``head_bytes`` have arrived."""
        special, submitter = request.special, fast_path.submitter
        framing = (
            ChunkedBody(submitter.max_length)
            if special is not None and special.chunked
            else SizedBody(request.end - request.start)
        )
        self._body = IncomingBody(framing, submitter.memory, connection)
        self._fast_path = fast_path
        self._stream = stream
        self._connection = connection
        self._head_bytes = head_bytes
        """Bytes of the request that were received before the body."""
        self._expects = special is not None and special.expects
        """Whether the client waits for a 100 before it sends the body."""
        self._rest = b""
        """Received bytes of an incomplete body that have to be parsed."""
        self._timed = False
        """Whether the deadline of the request is watched."""

    def read(self) -> None:
        """Read the socket once."""
        body = self._body
        data = self._stream.receive_now(body.read_bytes)
        if data:
            self.receive(data)
        elif data is not None:
            # The client closed within the body: the received part is dropped.
            self._connection.on_body_refused(body.framing.ended_early())

    def receive(self, data: bytes) -> None:
        """Add received bytes to the body, and go on; at first there may be none."""
        if not data:
            self._advance()
            return
        body = self._body
        before = body.received
        try:
            used = body.framing.feed(data)
        except Problem as problem:
            self._connection.on_body_refused(problem)
            return
        finally:
            self._fast_path.requests.body_bytes += body.received - before
        if used < len(data):
            if body.framing.complete:
                self._connection.keep_rest(data[used:])
            else:
                self._rest = data[used:]
        self._advance()

    def resume(self) -> None:
        """Continue after a wait for memory, or for a turn."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self.receive(rest)
        else:
            self._advance()

    def release(self) -> None:
        """Drop the body and release its memory."""
        self._stop_timeout()
        self._rest = b""
        self._body.release()

    def _advance(self) -> None:
        """Pass on a complete body; else wait for memory, for a turn, or for more input."""
        body = self._body
        acquired = body.acquire()
        if acquired and body.framing.complete:
            self._stop_timeout()
            self._connection.on_body(body.finish(), body.charge)
            return
        if not self._timed:
            self._timed = True
            due = self._stream.state.due
            self._stream.start_body_timeout(due, self._on_timeout, self._count_received)
        if not acquired:
            self._connection.await_memory()
        elif self._rest:
            self._connection.await_turn()
        else:
            self._invite()
            self._connection.await_input(bulk=body.framing.bulk)

    def _invite(self) -> None:
        """Send the 100 for which the client may wait."""
        if self._expects:
            self._expects = False
            if not self._stream.transport.send_now(CONTINUE):
                raise trio.BrokenResourceError("the client reads no answers")

    def _stop_timeout(self) -> None:
        if self._timed:
            self._timed = False
            self._stream.stop_body_timeout()

    def _on_timeout(self) -> None:
        self._connection.on_body_refused(self._fast_path.submitter.timeout_problem())

    def _count_received(self) -> int:
        """Return the received bytes of the request."""
        return self._head_bytes + self._body.progress()
