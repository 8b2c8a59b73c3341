"""Hypercorn's connection, with limits that Hypercorn, h11 and h2 do not set.

- A client that closes its sending side after a request (shutdown(2), SHUT_WR) still gets the
  answer. Hypercorn treats the end of the input as the end of the connection.
- The frames of an HTTP/2 client are processed in small pieces; see ``http2_input``.
- Bodies in many small chunks are also processed in small pieces.

``http1_protocol`` and ``http2_protocol`` have the limits of the two protocols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import h2.connection
import h2.errors
import h2.exceptions
import h2.stream
import h11
import trio
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

from payloadd.ingress.server.connection_state import looks_complete, never
from payloadd.ingress.server.http1_protocol import Http1
from payloadd.ingress.server.http2_input import (
    PREFACE,
    FloodError,
    FrameBudget,
    FrameCutter,
    HeadTooLargeError,
)
from payloadd.ingress.server.http2_protocol import Http2
from payloadd.ingress.server.request_tasks import RequestTasks
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.events import Event
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import AppWrapper, ConnectionState

    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.open_requests import OpenRequests

log = get_logger(__name__)

_BLOCKED_CHECK_SECONDS: Final = 0.5
_MOST_BREAKS: Final = 128
"""Line breaks of HTTP/1.1 that are passed on at a time: two per chunk."""
_LEAST_PIECE: Final = 512
"""Bytes."""
_RECEIVED_WHOLE: Final = (h11.DONE, h11.MUST_CLOSE)
"""States of an HTTP/1.1 client whose request is complete."""


class HypercornConnection(TCPServer):
    """One connection. After the end of the input it answers the complete requests, and ends."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: ConnectionState,
        stream: ClientStream,
        fifo_gate: FifoGate,
        open_requests: OpenRequests,
    ) -> None:
        # The annotation is SSLStream, but Hypercorn accepts any object with the methods it calls.
        super().__init__(app, config, context, state, cast("Any", stream))
        self._client = stream
        self._fifo_gate = fifo_gate
        self._open_requests = open_requests
        self._most_requests = config.h2_max_concurrent_streams

    async def run(self) -> None:
        """Serve the connection until it ends."""
        try:
            await super().run()
        finally:
            self._break_cycles()

    def _break_cycles(self) -> None:
        """Clear all reference cycles, so that the connection is freed at once.

        Hypercorn and h2 contain a dozen cycles, with 120 containers per connection. After the end
        of a thousand connections, tens of MiB would stay in memory until a full garbage
        collection, which stops the event loop for a noticeable time.
        """
        self._client.state.awaits_body = never
        wrapper = vars(self).get("protocol")
        if wrapper is not None:
            protocol = wrapper.protocol
            for part in (protocol.connection, protocol, wrapper):
                vars(part).clear()
        vars(self).clear()

    async def protocol_send(self, event: Event) -> None:
        """Send the bytes of an answer, or end the connection."""
        if isinstance(event, Updated):
            # Instead of a new task for each idle time.
            if event.idle and self.context.terminated.is_set():
                await self._close_idle()
        elif isinstance(event, RawData) and self._client.transport.is_sent:
            await self._send(event.data)
        else:
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> None:
        """Send ``data``; as long as there is room, without the lock that Hypercorn takes."""
        client = self._client
        try:
            if not client.begin_to_send(data):
                with trio.CancelScope(shield=True):
                    async with self.send_lock:
                        await client.send_rest()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())

    async def _idle_timeout(self) -> None:
        """Wait for the drain, and end the connection if it is idle then; see ``protocol_send``."""
        await self.context.terminated.wait()
        http2 = self._http2
        if http2 is None or http2.idle:
            await self._close_idle()

    async def _close_idle(self) -> None:
        with trio.CancelScope(shield=True):
            await self._initiate_server_close()

    async def _read_data(self) -> None:
        """Pass input to the protocol until the client, or this side, ends the connection."""
        self.protocol.task_group = cast("Any", RequestTasks(self._task_group, self._begin_request))
        self.protocol.protocol = Http1(self.protocol)
        self._client.state.awaits_body = self._awaits_body
        try:
            # The first bytes show which protocol the client speaks.
            rest = await self._read_preface()
            http2 = self._http2
            if http2 is not None:
                await self._read_http2(http2, rest)
            else:
                await self._read_http1(rest)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the client has left
        await self.protocol.handle(Closed())
        await self.stream.aclose()

    def _begin_request(self) -> None:
        """Count a request; ``wrap_app`` counts its end."""
        self._client.request_begins()
        self._open_requests.count += 1

    @property
    def _http2(self) -> Http2 | None:
        protocol = self.protocol.protocol
        return protocol if isinstance(protocol, Http2) else None

    async def _receive(self) -> bytes:
        return bytes(await self.stream.receive_some(MAX_RECV))

    async def _pass_on(self, data: bytes) -> None:
        await self.protocol.handle(RawData(data))

    async def _read_preface(self) -> bytes:
        """Read the preface of HTTP/2, if the input starts with it; return the bytes after it.

        In HTTP/1.1, return the first bytes, b"" at the end of the input.
        """
        data = await self._receive()
        while data and len(data) < len(PREFACE) and PREFACE.startswith(data):
            more = await self._receive()
            if not more:
                break
            data += more
        if not data.startswith(PREFACE):
            return data
        self._client.state.switch_to_http2()
        protocol = Http2(self.protocol, self._client, self._open_requests)
        self.protocol.protocol = protocol
        await protocol.initiate()
        await self._pass_on(PREFACE)
        return data[len(PREFACE) :]

    async def _read_http1(self, data: bytes) -> None:
        state = self._client.state
        state.awaits_turn = looks_complete(data)
        while data:
            await self._fifo_gate.wait_turn()
            state.awaits_turn = False
            size = len(data) if self._counts_bytes() else _piece_size(data)
            await self._pass_on(data[:size])
            data = data[size:] or await self._receive()
            # Only the first bytes of a connection may be dropped before their turn: they have
            # cost little.
            state.awaits_turn = True
        state.awaits_turn = False
        if not self._awaits_body():
            await self._client.wait_until_answered()
        # h11 answers 400 if the last request is incomplete.
        await self._pass_on(b"")

    async def _read_http2(self, protocol: Http2, data: bytes) -> None:
        state = self._client.state
        state.awaits_turn = False
        cutter = FrameCutter()
        budget = FrameBudget(trio.current_time())
        while True:
            cutter.add(data)
            try:
                while piece := cutter.next_piece():
                    budget.spend(cutter.pop_charge(), trio.current_time())
                    await self._fifo_gate.wait_turn()
                    await self._pass_on(piece)
                    protocol.check_heads()
                    # h2 does not count the streams of requests that the client has reset.
                    await self._client.wait_until_answered(self._most_requests)
            except FloodError as error:
                await self._refuse_flood(protocol, error)
                return
            data = await self._receive()
            if not data:
                break
        await self._end_requests(protocol)

    async def _refuse_flood(self, protocol: Http2, error: FloodError) -> None:
        log.debug("http2_flood", reason=str(error))
        if isinstance(error, HeadTooLargeError):
            protocol.refuse_head(error.stream_id)
            # GOAWAY covers them, so their client may not repeat them (RFC 9113, section 6.8).
            await self._end_requests(protocol)
        protocol.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        await self._pass_on(b"")

    async def _end_requests(self, protocol: Http2) -> None:
        """Answer the complete requests; nothing more is read."""
        await self._end_unfinished(protocol)
        state = self._client.state
        # If the client left no window for an answer, no frame can open it any more.
        while state.requests and not state.is_blocked(trio.current_time()):
            with trio.move_on_after(_BLOCKED_CHECK_SECONDS):
                await self._client.wait_until_answered()
        await protocol.flush()

    async def _end_unfinished(self, protocol: H2Protocol) -> None:
        """End the requests that can no longer become complete."""
        for stream_id in list(protocol.streams):
            if _awaits_body(protocol.connection, stream_id):
                await protocol._close_stream(stream_id)  # noqa: SLF001 - as on a reset

    def _counts_bytes(self) -> bool:
        """Return whether a body with a Content-Length, and so without chunks, is being received."""
        protocol = self.protocol.protocol
        return isinstance(protocol, Http1) and protocol.counts_bytes

    def _awaits_body(self) -> bool:
        """Return whether every open request waits for its client, and none for the app."""
        protocol = self.protocol.protocol
        if isinstance(protocol, H2Protocol):
            return bool(protocol.streams) and all(
                _awaits_body(protocol.connection, stream_id) for stream_id in protocol.streams
            )
        whole = protocol.connection.their_state in _RECEIVED_WHOLE
        return self._client.state.requests > 0 and not whole


def _piece_size(data: bytes) -> int:
    """Return how many bytes of HTTP/1.1 are passed on at a time, usually all of them.

    h11 parses each chunk of a chunked body in Python, and 64 KiB hold 10,000 chunks of a byte.
    """
    breaks = data.count(b"\r\n")
    return (
        len(data)
        if breaks <= _MOST_BREAKS
        else max(_LEAST_PIECE, _MOST_BREAKS * len(data) // breaks)
    )


def _awaits_body(connection: h2.connection.H2Connection, stream_id: int) -> bool:
    """Return whether the client has not ended its side of a stream."""
    stream = connection.streams.get(stream_id)
    return stream is not None and stream.state_machine.state is h2.stream.StreamState.OPEN
