"""One HTTP/1.1 connection, which carries one request and its response after the other."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import trio

from payloadd.storage.http1.progress import watched_progress
from payloadd.storage.http1.response import ResponseParser
from payloadd.storage.http1.socket import TcpStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from payloadd.storage.http1.poller import InputPoller
    from payloadd.storage.http1.request import WireRequest
    from payloadd.storage.http1.socket import BytesLike

_BYTES_PER_WRITE: Final = 262_144
"""Bytes of one write: TLS holds a second copy of them in memory, and they have to be sent within
the write timeout."""
_WRITES_PER_TURN: Final = 4
"""Writes after which other tasks run, if the kernel accepts each one at once: copying 1 MiB takes a
small part of a millisecond, and to let other tasks run after each write was measurable."""


class Origin(NamedTuple):
    """A server (RFC 6454): host as it is resolved, port, and whether TLS is used."""

    host: str
    port: int
    secure: bool


class StaleConnectionError(httpx.RemoteProtocolError):
    """The server closed a connection after an earlier response and before any byte of this one."""


class Connection:
    """An open connection to ``origin``, used by one request at a time."""

    def __init__(self, origin: Origin, wire: TcpStream, stream: trio.abc.Stream) -> None:
        """``stream`` is ``wire``, or TLS on ``wire``."""
        self.origin = origin
        self._wire = wire
        self._stream = stream
        self._secured = stream if isinstance(stream, trio.SSLStream) else None
        self._send = wire.send_pieces if stream is wire else self._send_joined
        self._used = False
        self.idle_since = 0.0
        """The time (``time.monotonic()``) of the last response; set by the transport."""

    def is_reusable(self) -> bool:
        """Return whether the server has neither closed it nor sent bytes without a request."""
        if self._secured is not None and _has_unread_input(self._secured):
            return False
        return not self._wire.has_input()

    async def exchange(self, request: WireRequest) -> ResponseParser:
        """Send a request, read the whole response, and return it.

        Raises httpx.TransportError. The connection must not be used after an error, nor after a
        cancellation.
        """
        response = ResponseParser(request.method)
        if (progress := watched_progress.get()) is not None:
            progress.begin(self._wire)
        if request.write_timeout is None and request.read_timeout is None:
            await self._read(response, await self._write(request))
        else:
            await self._exchange_in_time(request, response)
        self._used = True
        return response

    async def _exchange_in_time(self, request: WireRequest, response: ResponseParser) -> None:
        """Send a request and read its response within the timeouts of the request."""
        written = False
        # One cancel scope for both: moving its deadline is cheaper than a second scope.
        with trio.CancelScope() as timer:
            broken = await self._write(request, timer)
            written = True
            timer.deadline = _deadline(request.read_timeout)
            await self._read(response, broken)
        if timer.cancelled_caught and written:
            raise httpx.ReadTimeout(f"no response within {request.read_timeout:g} s")
        if timer.cancelled_caught:
            raise httpx.WriteTimeout(f"the server accepted nothing for {request.write_timeout:g} s")

    async def _write(
        self, request: WireRequest, timer: trio.CancelScope | None = None
    ) -> trio.BrokenResourceError | None:
        """Send everything, and return the error that broke the connection, or None.

        The error is not raised: a server may refuse a request, send its response, and close the
        connection before it has read the whole request. That response is read afterwards.
        """
        try:
            writes = _split_writes([request.head, *request.body])
            for index, pieces in enumerate(writes):
                if index and not index % _WRITES_PER_TURN:
                    # A kernel that accepts every write at once would keep other tasks waiting.
                    await trio.lowlevel.checkpoint()
                if timer is not None:
                    timer.deadline = _deadline(request.write_timeout)
                await self._send(pieces)
        except trio.BrokenResourceError as error:
            return error
        return None

    async def _send_joined(self, pieces: Sequence[BytesLike]) -> None:
        """Send through TLS, which accepts one buffer at a time."""
        await self._stream.send_all(b"".join(pieces))

    async def _read(
        self, response: ResponseParser, broken: trio.BrokenResourceError | None
    ) -> None:
        """Read until ``response`` is complete; ``broken`` is the error of the write, if any."""
        while not response.complete:
            try:
                data = bytes(await self._stream.receive_some())
            except trio.BrokenResourceError as error:
                self._raise_if_stale(response, error)
                if broken is not None:
                    raise httpx.WriteError(error_text(broken)) from broken
                raise httpx.ReadError(error_text(error)) from error
            if not data:
                self._raise_if_stale(response, broken)
                if broken is not None and not response.begun:
                    raise httpx.WriteError(error_text(broken)) from broken
            response.feed(data)

    def _raise_if_stale(self, response: ResponseParser, error: Exception | None) -> None:
        if self._used and not response.begun:
            raise StaleConnectionError("closed before any byte of the response") from error

    def close(self) -> None:
        """Close at once, without TLS's closing alerts; no request may be in progress."""
        self._wire.close()


async def connect(
    origin: Origin, tls: ssl.SSLContext, within: float, poller: InputPoller
) -> Connection:
    """Return a new connection, opened within ``within`` seconds.

    Raises httpx.ConnectError, httpx.ConnectTimeout, and UnicodeError for an invalid host name.
    """
    try:
        with trio.fail_after(within):
            # Tries IPv6 and IPv4 as "Happy Eyeballs" (RFC 8305) does.
            wire = TcpStream(await trio.open_tcp_stream(origin.host, origin.port), poller)
            stream = await _secure(wire, tls, origin.host) if origin.secure else wire
    except trio.TooSlowError as error:
        reason = f"no connection to {origin.host}:{origin.port} within {within:g} s"
        raise httpx.ConnectTimeout(reason) from error
    except (OSError, trio.BrokenResourceError) as error:
        # The errors of DNS do not name the host.
        reason = f"{origin.host}:{origin.port}: {_connect_text(error)}"
        raise httpx.ConnectError(reason) from error
    return Connection(origin, wire, stream)


def _connect_text(error: OSError | trio.BrokenResourceError) -> str:
    """Return why no connection came about, once for each reason.

    trio tries each address of a host, and repeats the address in every error.
    """
    attempts = error.__cause__
    if not isinstance(attempts, BaseExceptionGroup):
        return error_text(error)
    numbers = [one.errno for one in attempts.exceptions if isinstance(one, OSError)]
    return "; ".join(dict.fromkeys(os.strerror(one) for one in numbers if one)) or error_text(error)


async def _secure(wire: TcpStream, tls: ssl.SSLContext, host: str) -> trio.abc.Stream:
    """Return TLS on ``wire``; the server's name is sent (SNI) and its certificate verified."""
    secured = trio.SSLStream(wire, tls, server_hostname=host, https_compatible=True)
    try:
        await secured.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(wire)
        raise
    return secured


def _has_unread_input(stream: trio.SSLStream[TcpStream]) -> bool:
    """Return whether TLS holds bytes of the socket that have not been read from it.

    TLS decrypts one record at a time. A second response, without a request, may follow the response
    that was read, and would be mistaken for the response to the next request.
    """
    # trio shows the decrypted bytes that are left, not the encrypted ones. Should a later trio
    # rename the attribute, every connection is used once: slow, but correct.
    encrypted: ssl.MemoryBIO | None = getattr(stream, "_incoming", None)
    return encrypted is None or encrypted.pending > 0 or stream.pending() > 0


def _split_writes(pieces: Sequence[BytesLike]) -> Sequence[Sequence[BytesLike]]:
    """Return the pieces of each write, at most 256 KiB of them; no byte is copied."""
    if sum(map(len, pieces)) <= _BYTES_PER_WRITE:
        return [pieces]
    writes: list[list[BytesLike]] = [[]]
    free = _BYTES_PER_WRITE
    for piece in pieces:
        left = memoryview(piece)
        while len(left) > free:
            writes[-1].append(left[:free])
            left, free = left[free:], _BYTES_PER_WRITE
            writes.append([])
        writes[-1].append(left)
        free -= len(left)
    return writes


def _deadline(seconds: float | None) -> float:
    return math.inf if seconds is None else trio.current_time() + seconds


def error_text(error: BaseException) -> str:
    """Return the texts of an error and of its causes: trio's own errors often have none."""
    found: list[str] = []
    while True:
        members = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
        found += [text for text in map(str, members) if text and text not in found]
        if error.__cause__ is None:
            return ": ".join(found) or type(error).__name__
        error = error.__cause__
