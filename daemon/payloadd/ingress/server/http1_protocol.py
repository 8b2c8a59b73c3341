"""Hypercorn's HTTP/1.1 protocol, with strict input and without upgrades.

- Heads and chunk sizes that two parsers may read differently are refused; see ``strict_input``.
- ``Upgrade: h2c`` is ignored, as RFC 9113, section 3.1, recommends: a proxy that checks requests
  would see only the first one. A client may still speak HTTP/2 from its first byte (prior
  knowledge).
- ``Upgrade: websocket`` is ignored, too.
- Chunks that arrived together are passed on together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from weakref import WeakMethod

import h11
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from payloadd.ingress.http_grammar import PREFACE_HEAD
from payloadd.ingress.server.protocol_parts import parts_of
from payloadd.ingress.server.strict_input import StrictConnection

if TYPE_CHECKING:
    from hypercorn.events import Event
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.protocol.events import Event as StreamEvent


class Http1(H11Protocol):
    """The HTTP/1.1 protocol of one connection, with limits that Hypercorn and h11 lack."""

    def __init__(self, wrapper: ProtocolWrapper) -> None:
        """Replace the protocol of ``wrapper``, of which no byte has been processed."""
        super().__init__(*parts_of(wrapper))
        self.connection = StrictConnection()
        self._body: _JoinedBody | None = None
        self._has_length = False

    @property
    def counts_bytes(self) -> bool:
        """Whether a body with a Content-Length is being received."""
        return self._has_length and self.connection.their_state is h11.SEND_BODY

    async def handle(self, event: Event) -> None:
        """Process input, and pass on the chunks that arrived together."""
        await super().handle(event)
        if self._body is not None:
            await self._body.flush()

    async def _create_stream(self, request: h11.Request) -> None:
        names = {name for name, _ in request.headers}
        self._has_length = b"content-length" in names and b"transfer-encoding" not in names
        await super()._create_stream(_without_websocket(request))
        if isinstance(self.stream, HTTPStream):
            self._body = _JoinedBody(self.stream)
            self.stream.handle = self._body.handle  # type: ignore[method-assign]

    async def _check_protocol(self, event: h11.Request) -> None:
        """Raise H2ProtocolAssumedError for the head of HTTP/2's preface, as the first request."""
        is_preface = event.method == b"PRI" and event.target == b"*"
        if is_preface and event.http_version == b"2.0" and not self.keep_alive_requests:
            data, _ = cast("h11.Connection", self.connection).trailing_data
            raise H2ProtocolAssumedError(PREFACE_HEAD + data)


def _without_websocket(request: h11.Request) -> h11.Request:
    """Return a request without ``Upgrade: websocket``, which Hypercorn would accept."""
    headers = [*request.headers]
    kept = [one for one in headers if one[0] != b"upgrade" or one[1].lower() != b"websocket"]
    if len(kept) == len(headers):
        return request
    return h11.Request(
        method=request.method,
        target=request.target,
        headers=kept,
        http_version=request.http_version,
    )


class _JoinedBody:
    """Pass the chunks of a body that arrived together to ``stream`` as one piece.

    Passing on a piece takes several times as long as parsing a chunk.
    """

    def __init__(self, stream: HTTPStream) -> None:
        # The stream refers to this object: a strong reference would be a cycle per request.
        self._stream_handle = WeakMethod(stream.handle)
        self._pieces: list[bytes] = []

    async def handle(self, event: StreamEvent) -> None:
        """Keep a piece of the body; pass on any other event."""
        if isinstance(event, Body):
            self._pieces.append(event.data)
            return
        if isinstance(event, EndBody):
            await self.flush()
        self._pieces.clear()
        await self._send_event(event)

    async def flush(self) -> None:
        """Pass on the pieces that were kept."""
        if self._pieces:
            data = b"".join(self._pieces)
            self._pieces.clear()
            await self._send_event(Body(stream_id=STREAM_ID, data=data))

    async def _send_event(self, event: StreamEvent) -> None:
        handle = self._stream_handle()
        if handle is not None:
            await handle(event)
