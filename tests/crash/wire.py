"""HTTP/1.1 on one connection, for clients, servers and proxies whose peer may die."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import h11
import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

GONE: Final = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    h11.RemoteProtocolError,
)
"""The exceptions that are raised when the peer has closed or reset the connection."""

Headers = list[tuple[str, str]]


class Wire:
    """One connection. Its methods raise one of ``GONE`` when the peer closes it."""

    def __init__(self, stream: trio.SocketStream, http: h11.Connection) -> None:
        self._stream = stream
        self._http = http

    async def head(self) -> h11.Request | h11.Response | None:
        """Return the head of the next message; None if the peer has closed the connection."""
        event = await self._next()
        while isinstance(event, h11.InformationalResponse):
            event = await self._next()
        return event if isinstance(event, h11.Request | h11.Response) else None

    async def body(self) -> bytes:
        """Return the whole body of the message after its head."""
        parts = []
        while isinstance(event := await self._next(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def request(self, method: str, target: str, headers: Headers, body: bytes) -> None:
        """Send a request in one piece."""
        await self._send([h11.Request(method=method, target=target, headers=headers)], body)

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send an answer in one piece; ``headers`` have no length, unless the request is a HEAD."""
        if not any(name.lower() == "content-length" for name, _ in headers):
            headers = [*headers, ("Content-Length", str(len(body)))]
        await self._send([h11.Response(status_code=status, headers=headers, reason=b"-")], body)

    def again(self) -> bool:
        """Prepare for the next message; returns False if the connection cannot be used again."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def peer_is_there(self) -> bool:
        """Return whether the peer has not closed the connection, as far as the kernel knows."""
        descriptor = self._stream.socket.fileno()
        with socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as twin:
            try:
                return twin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
            except BlockingIOError:
                return True
            except OSError:
                return False

    def close(self) -> None:
        """Close the connection without waiting for the peer."""
        self._stream.socket.close()

    async def _send(self, events: Sequence[h11.Event], body: bytes) -> None:
        pieces = [*events, h11.Data(data=body), h11.EndOfMessage()]
        await self._stream.send_all(b"".join(self._http.send(piece) or b"" for piece in pieces))

    async def _next(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await self._stream.send_all(self._http.send(go_on) or b"")
            self._http.receive_data(await self._stream.receive_some())
        return event


async def connect(port: int) -> Wire:
    """Connect to a port of 127.0.0.1; raises OSError."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return Wire(stream, h11.Connection(h11.CLIENT))


def serve(stream: trio.SocketStream) -> Wire:
    """Return the server's end of a connection."""
    return Wire(stream, h11.Connection(h11.SERVER))
