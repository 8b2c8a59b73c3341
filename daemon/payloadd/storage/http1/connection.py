"""One HTTP/1.1 connection: a request out, its answer in, as often as both sides like."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import trio

from payloadd.storage.http1.response import ResponseParser
from payloadd.storage.http1.socket import TcpStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from payloadd.storage.http1.socket import Buffer

_BYTES_PER_WRITE: Final = 262_144
"""Bytes that are written at a time: what TLS holds in memory once more, and what has to move
within the write timeout. To copy them into the kernel takes less than 0.1 ms."""


class Origin(NamedTuple):
    """Where connections go (RFC 6454): host as looked up, port, and whether over TLS."""

    host: str
    port: int
    secure: bool


class WireRequest(NamedTuple):
    """A request as it is written: ``head`` with the empty line at its end, then the body."""

    method: str
    head: bytes
    body: Sequence[bytes]
    write: float | None
    """Seconds that every 256 KiB may take to be written; None: who asks sees to it."""
    read: float | None
    """Seconds that the whole answer may take; None as above."""


class StaleConnectionError(httpx.RemoteProtocolError):
    """The server closed a connection that had been used before it answered anything."""


class Connection:
    """An open connection to ``origin``, used by one request at a time."""

    def __init__(self, origin: Origin, wire: TcpStream, stream: trio.abc.Stream) -> None:
        """``stream`` is ``wire``, or TLS on it."""
        self.origin = origin
        self._wire = wire
        self._stream = stream
        self._secured = stream if isinstance(stream, trio.SSLStream) else None
        self._send = wire.send_pieces if stream is wire else self._send_joined
        self._used = False
        self.idle_since = 0.0

    def may_be_used_again(self) -> bool:
        """Return whether the server neither closed it nor said anything unasked."""
        if self._secured is not None and _holds_input(self._secured):
            return False
        return not self._wire.has_input()

    async def exchange(self, request: WireRequest) -> ResponseParser:
        """Send a request and return its answer, complete.

        Raises httpx.TransportError; the connection is of no use then, nor after a cancellation.
        """
        answer = ResponseParser(request.method)
        if request.write is None and request.read is None:
            await self._read(answer, await self._write(request))
        else:
            await self._exchange_in_time(request, answer)
        self._used = True
        return answer

    async def _exchange_in_time(self, request: WireRequest, answer: ResponseParser) -> None:
        """Send a request and read its answer within the request's own bounds."""
        written = False
        # One timer for both: a cancel scope costs 10 us, moving its deadline 3.
        with trio.CancelScope() as timer:
            broken = await self._write(request, timer)
            written = True
            timer.deadline = _from_now(request.read)
            await self._read(answer, broken)
        if timer.cancelled_caught and written:
            raise httpx.ReadTimeout(f"no answer within {request.read:g} s")
        if timer.cancelled_caught:
            raise httpx.WriteTimeout(f"nothing was taken for {request.write:g} s")

    async def _write(
        self, request: WireRequest, timer: trio.CancelScope | None = None
    ) -> trio.BrokenResourceError | None:
        """Send everything; returns what broke it off, because there may be an answer yet.

        A server that refuses a request may say so and close without having read all of it.
        """
        try:
            writes = _cut([request.head, *request.body])
            for pieces in writes:
                if pieces is not writes[0]:
                    # A kernel that takes all that comes would keep the others waiting.
                    await trio.lowlevel.checkpoint()
                if timer is not None:
                    timer.deadline = _from_now(request.write)
                await self._send(pieces)
        except trio.BrokenResourceError as error:
            return error
        return None

    async def _send_joined(self, pieces: Sequence[Buffer]) -> None:
        """Send through TLS, which takes one piece at a time."""
        await self._stream.send_all(b"".join(pieces))

    async def _read(self, answer: ResponseParser, broken: trio.BrokenResourceError | None) -> None:
        """Feed ``answer`` until it is complete."""
        while not answer.complete:
            try:
                data = bytes(await self._stream.receive_some())
            except trio.BrokenResourceError as error:
                self._raise_if_stale(answer, error)
                if broken is not None:
                    raise httpx.WriteError(reason(broken)) from broken
                raise httpx.ReadError(reason(error)) from error
            if not data:
                self._raise_if_stale(answer, broken)
                if broken is not None and not answer.begun:
                    raise httpx.WriteError(reason(broken)) from broken
            answer.feed(data)

    def _raise_if_stale(self, answer: ResponseParser, error: Exception | None) -> None:
        if self._used and not answer.begun:
            raise StaleConnectionError("closed before it answered anything") from error

    def close(self) -> None:
        """Close at once, without TLS's good-byes; no request may be under way."""
        self._wire.close()


async def connect(origin: Origin, tls: ssl.SSLContext, within: float) -> Connection:
    """Return a new connection, made in at most ``within`` seconds.

    Raises httpx.ConnectError, httpx.ConnectTimeout; UnicodeError for what can be no host name.
    """
    try:
        with trio.fail_after(within):
            # Tries IPv6 and IPv4 as "Happy Eyeballs" (RFC 8305) does.
            wire = TcpStream(await trio.open_tcp_stream(origin.host, origin.port))
            stream = await _secure(wire, tls, origin.host) if origin.secure else wire
    except trio.TooSlowError as error:
        raise httpx.ConnectTimeout(f"no connection within {within:g} s") from error
    except (OSError, trio.BrokenResourceError) as error:
        raise httpx.ConnectError(reason(error)) from error
    return Connection(origin, wire, stream)


async def _secure(wire: TcpStream, tls: ssl.SSLContext, host: str) -> trio.abc.Stream:
    """Return TLS on ``wire``, the server's name asked for (SNI) and verified."""
    secured = trio.SSLStream(wire, tls, server_hostname=host, https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(wire)
        raise
    return secured


def _holds_input(stream: trio.SSLStream[TcpStream]) -> bool:
    """Return whether TLS has taken more from the socket than what was read from it.

    It decrypts a record at a time: an answer that nobody asked for may lie behind the last one,
    and would be taken for the answer to a request that the server has yet to see.
    """
    # trio shows the decrypted rest, not the encrypted one. Should it ever be called something
    # else, connections are used once: slow, but right.
    encrypted: ssl.MemoryBIO | None = getattr(stream, "_incoming", None)
    return encrypted is None or encrypted.pending > 0 or stream.pending() > 0


def _cut(pieces: Sequence[Buffer]) -> Sequence[Sequence[Buffer]]:
    """Return what is written at a time, without a copy of anything."""
    if sum(map(len, pieces)) <= _BYTES_PER_WRITE:
        return [pieces]
    writes: list[list[Buffer]] = [[]]
    room = _BYTES_PER_WRITE
    for piece in pieces:
        left = memoryview(piece)
        while len(left) > room:
            writes[-1].append(left[:room])
            left, room = left[room:], _BYTES_PER_WRITE
            writes.append([])
        writes[-1].append(left)
        room -= len(left)
    return writes


def _from_now(seconds: float | None) -> float:
    return math.inf if seconds is None else trio.current_time() + seconds


def reason(error: BaseException) -> str:
    """Return what went wrong, from the error and from what led to it: trio's say little."""
    found: list[str] = []
    while True:
        members = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
        found += [text for text in map(str, members) if text and text not in found]
        if error.__cause__ is None:
            return ": ".join(found) or type(error).__name__
        error = error.__cause__
