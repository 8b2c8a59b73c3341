"""Hypercorn's connection, with what its protocols leave to chance.

- A client that closes its sending side after a request (shutdown(2), SHUT_WR) still gets the
  answer. Hypercorn takes the end of the input for the end of the connection.
- ``Upgrade: h2c`` is ignored, as RFC 9113, section 3.1, has it: a proxy that looks at requests
  would see the first one only. HTTP/2 on a connection's first bytes (prior knowledge) stays.
- PRIORITY is ignored.
- What an HTTP/2 client sends is processed in small pieces; see ``http2_input``.
- So are bodies in many small chunks, and chunks that came together are passed on together.
- Requests beyond the first one of a connection may be refused; see ``open_requests``.
- h2 remembers 65,536 closed streams of each connection, 6 MiB. Here it is a few hundred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakMethod

import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.stream
import h11
import trio
from h2.utilities import SizeLimitDict
from hypercorn.events import Closed, RawData
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer

from payloadd.ingress.server.activity import no
from payloadd.ingress.server.complete_request import may_be_whole
from payloadd.ingress.server.http2_input import (
    LARGEST_HEADER_LIST,
    PREFACE,
    FloodError,
    FrameBudget,
    FrameCutter,
)
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from hypercorn.config import Config
    from hypercorn.events import Event
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.protocol.events import Event as StreamEvent
    from hypercorn.trio.worker_context import WorkerContext
    from hypercorn.typing import AppWrapper, ConnectionState

    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.open_requests import OpenRequests

log = get_logger(__name__)

_LOOK_AGAIN: Final = 0.5
_MOST_BREAKS: Final = 128
"""Line breaks of HTTP/1.1 that are handed over at a time: two a chunk."""
_LEAST_PIECE: Final = 512
_CLOSED_STREAMS: Final = 512
"""Closed streams of one connection of which frames may still come: h2 answers those of a stream
that it does not know any more by closing the connection."""
_PREFACE_HEAD: Final = b"PRI * HTTP/2.0\r\n\r\n"
_RECEIVED_WHOLE: Final = (h11.DONE, h11.MUST_CLOSE)
"""States of an HTTP/1.1 client whose request has come to its end."""


class HypercornConnection(TCPServer):
    """One connection. It ends with its input, once what had come whole is answered."""

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
        # Hypercorn says SSLStream, and takes what has the methods that it calls.
        super().__init__(app, config, context, state, cast("Any", stream))
        self._client = stream
        self._fifo_gate = fifo_gate
        self._open_requests = open_requests
        self._most_requests = config.h2_max_concurrent_streams

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            await super().run()
        finally:
            self._break_cycles()

    def _break_cycles(self) -> None:
        """Let all that belongs to the connection be freed now, and not by a garbage collection.

        Hypercorn and h2 refer to themselves in a dozen ways, with 120 containers a connection.
        A thousand connections that ended together were 40 MiB until a full collection, which
        stopped the event loop for 0.3 s.
        """
        self._client.activity.awaits_body = no
        wrapper = vars(self).get("protocol")
        if wrapper is not None:
            protocol = wrapper.protocol
            for part in (protocol.connection, protocol, wrapper):
                vars(part).clear()
        vars(self).clear()

    async def _read_data(self) -> None:
        """Hand over what comes until the client, or this side, ends the connection."""
        self.protocol.protocol = _Http1(self.protocol)
        self._client.activity.awaits_body = self._awaits_body
        try:
            # Its first bytes show which protocol a connection speaks.
            rest = await self._read_preface()
            http2 = self._http2
            if http2 is not None:
                await self._read_http2(http2, rest)
            else:
                await self._read_http1(rest)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the client is gone
        await self.protocol.handle(Closed())
        await self.stream.aclose()

    @property
    def _http2(self) -> H2Protocol | None:
        protocol = self.protocol.protocol
        return protocol if isinstance(protocol, H2Protocol) else None

    async def _receive(self) -> bytes:
        return bytes(await self.stream.receive_some(MAX_RECV))

    async def _hand_over(self, data: bytes) -> None:
        await self.protocol.handle(RawData(data))

    async def _read_preface(self) -> bytes:
        """Hand over HTTP/2's preface, if there is one; returns what came behind it.

        What it returns in HTTP/1.1 is b"" at the end of the input, or what is to be handed over.
        """
        seen = 0
        while True:
            data = await self._receive()
            part = PREFACE[seen : seen + len(data)]
            if not data or not data.startswith(part):
                return data
            # h11 knows the preface, and passes on what it has in hand.
            await self._hand_over(part)
            seen += len(part)
            if seen == len(PREFACE):
                self._client.clock.becomes_http2()
                return data[len(part) :]

    async def _read_http1(self, data: bytes) -> None:
        activity = self._client.activity
        activity.in_hand = may_be_whole(data)
        while data:
            await self._fifo_gate.next()
            activity.in_hand = False
            size = len(data) if self._counts_bytes() else _piece_size(data)
            await self._hand_over(data[:size])
            data = data[size:] or await self._receive()
            # The first bytes have cost little yet, and may be given up before their turn.
            activity.in_hand = True
        activity.in_hand = False
        if not self._awaits_body():
            await self._client.wait_until_answered()
        # Of a request that is not whole h11 says that it is wrong.
        await self._hand_over(b"")

    async def _read_http2(self, protocol: H2Protocol, data: bytes) -> None:
        self._bound_http2(protocol)
        activity = self._client.activity
        activity.in_hand = False
        cutter = FrameCutter()
        budget = FrameBudget(trio.current_time())
        while True:
            cutter.add(data)
            try:
                while piece := cutter.next():
                    budget.spend(cutter.take_charge(), trio.current_time())
                    await self._fifo_gate.next()
                    await self._hand_over(piece)
                    # Requests that are reset at once are not among the streams that are counted.
                    await self._client.wait_until_answered(self._most_requests)
            except FloodError as error:
                await self._refuse_flood(protocol, error)
                return
            data = await self._receive()
            if not data:
                break
        await self._end_unfinished(protocol)
        # An answer for which the client left no window waits for a frame that cannot come.
        while self._client.clock.requests and not activity.is_blocked(trio.current_time()):
            with trio.move_on_after(_LOOK_AGAIN):
                await self._client.wait_until_answered()

    def _bound_http2(self, protocol: H2Protocol) -> None:
        """Replace what Hypercorn and h2 do without bounds; before the first frame is processed."""
        connection = protocol.connection
        # Hypercorn tells the client, and does not bound what is decoded.
        connection.decoder.max_header_list_size = LARGEST_HEADER_LIST
        connection._closed_streams = SizeLimitDict(size_limit=_CLOSED_STREAMS)  # noqa: SLF001
        protocol._priority_updated = _ignore_priority  # type: ignore[assignment,method-assign]  # noqa: SLF001
        protocol.streams = _Streams()
        create = protocol._create_stream  # noqa: SLF001

        async def create_or_refuse(request: h2.events.RequestReceived) -> None:
            if self._open_requests.refuses(len(protocol.streams)):
                refused = h2.errors.ErrorCodes.REFUSED_STREAM
                connection.reset_stream(request.stream_id, refused)
            else:
                await create(request)

        protocol._create_stream = create_or_refuse  # type: ignore[method-assign]  # noqa: SLF001

    async def _refuse_flood(self, protocol: H2Protocol, error: FloodError) -> None:
        log.debug("http2_flood", reason=str(error))
        protocol.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        await self._hand_over(b"")

    async def _end_unfinished(self, protocol: H2Protocol) -> None:
        """End the requests of which the rest can no longer come."""
        for stream_id in list(protocol.streams):
            if _awaits_body(protocol.connection, stream_id):
                await protocol._close_stream(stream_id)  # noqa: SLF001 - as on a reset

    def _counts_bytes(self) -> bool:
        """Return whether a body is being received that has a Content-Length, and so no chunks."""
        protocol = self.protocol.protocol
        return isinstance(protocol, _Http1) and protocol.counts_bytes

    def _awaits_body(self) -> bool:
        """Whether more of a request is awaited, and no answer of ours."""
        protocol = self.protocol.protocol
        if isinstance(protocol, H2Protocol):
            return bool(protocol.streams) and all(
                _awaits_body(protocol.connection, stream_id) for stream_id in protocol.streams
            )
        whole = protocol.connection.their_state in _RECEIVED_WHOLE
        return self._client.clock.requests > 0 and not whole


def _piece_size(data: bytes) -> int:
    """Return how many bytes of HTTP/1.1 may be handed over at a time, all of them as a rule.

    h11 takes 15 µs for each chunk of a chunked body, and 64 KiB hold 10,000 chunks of a byte.
    """
    breaks = data.count(b"\r\n")
    return (
        len(data)
        if breaks <= _MOST_BREAKS
        else max(_LEAST_PIECE, _MOST_BREAKS * len(data) // breaks)
    )


async def _ignore_priority(_event: h2.events.PriorityUpdated) -> None:
    """Do nothing: RFC 9113, section 5.3.2, deprecates the priorities of HTTP/2's first version.

    Hypercorn keeps a tree of up to 1,000 streams that the client makes up, and one frame of 14
    bytes has all of them move.
    """


def _awaits_body(connection: h2.connection.H2Connection, stream_id: int) -> bool:
    """Return whether the client's end of a stream is open."""
    stream = connection.streams.get(stream_id)
    return stream is not None and stream.state_machine.state is h2.stream.StreamState.OPEN


class _JoinedBody:
    """Hands the chunks of a body that came together to ``stream`` as one piece.

    To pass on a piece takes three times as long as to parse a chunk.
    """

    def __init__(self, stream: HTTPStream) -> None:
        # Weak, because the stream refers to this object: each request would be a cycle.
        self._stream_handle = WeakMethod(stream.handle)
        self._pieces: list[bytes] = []

    async def handle(self, event: StreamEvent) -> None:
        """Keep a piece of the body, or pass on another event."""
        if isinstance(event, Body):
            self._pieces.append(event.data)
            return
        if isinstance(event, EndBody):
            await self.flush()
        self._pieces.clear()
        await self._pass_on(event)

    async def flush(self) -> None:
        """Pass on what has been kept."""
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            await self._pass_on(Body(stream_id=STREAM_ID, data=data))

    async def _pass_on(self, event: StreamEvent) -> None:
        handle = self._stream_handle()
        if handle is not None:
            await handle(event)


class _EndedStream:
    """Drops what comes of a stream that has ended on this side."""

    async def handle(self, event: object) -> None:
        """Do nothing."""


class _Streams(dict[int, Any]):
    """The streams of a connection. Hypercorn raises KeyError for data of one that has ended."""

    def __missing__(self, stream_id: int) -> _EndedStream:
        """Return a stream that drops everything."""
        return _EndedStream()


class _Http1(H11Protocol):
    """Hypercorn's HTTP/1.1 without upgrades to HTTP/2, and with the chunks of a body joined."""

    def __init__(self, wrapper: ProtocolWrapper) -> None:
        super().__init__(
            wrapper.app,
            wrapper.config,
            wrapper.context,
            wrapper.task_group,
            wrapper.state,
            wrapper.ssl,
            wrapper.client,
            wrapper.server,
            wrapper.send,
        )
        self._body: _JoinedBody | None = None
        self._has_length = False

    @property
    def counts_bytes(self) -> bool:
        """Whether a body with a Content-Length is being received."""
        return self._has_length and self.connection.their_state is h11.SEND_BODY

    async def handle(self, event: Event) -> None:
        """Take what came."""
        await super().handle(event)
        if self._body is not None:
            await self._body.flush()

    async def _create_stream(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        self._has_length = b"content-length" in names and b"transfer-encoding" not in names
        await super()._create_stream(request)
        if isinstance(self.stream, HTTPStream):
            self._body = _JoinedBody(self.stream)
            self.stream.handle = self._body.handle  # type: ignore[method-assign]

    async def _check_protocol(self, event: h11.Request) -> None:
        """Raise H2ProtocolAssumedError for the head of HTTP/2's preface, as the first request."""
        is_preface = event.method == b"PRI" and event.target == b"*"
        if is_preface and event.http_version == b"2.0" and not self.keep_alive_requests:
            data, _ = cast("h11.Connection", self.connection).trailing_data
            raise H2ProtocolAssumedError(_PREFACE_HEAD + data)
