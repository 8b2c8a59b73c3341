"""An httpx transport on trio streams: one kept-alive connection for each request under way.

httpx's own goes through httpcore's pool, which looks at all connections for each request and,
under trio, loses slots when a request is cancelled. Here a request takes the connection that
was used last from a stack, or opens one, writes head and body, and reads one bounded answer:
what an object store needs. There is no HTTP/2, no proxy and no streaming of what is large.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import httpx
import trio

from payloadd.storage.http1.body import PieceBody
from payloadd.storage.http1.connection import (
    Connection,
    Origin,
    StaleConnectionError,
    WireRequest,
    connect,
)
from payloadd.storage.http1.proxies import proxies_from_environment
from payloadd.storage.http1.request import WrittenRequest

if TYPE_CHECKING:
    from payloadd.storage.http1.response import ResponseParser

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})


class TrioTransport(httpx.AsyncBaseTransport):
    """Speaks HTTP/1.1 with origin servers, made for one at a time.

    At most ``connections`` requests are under way, the others wait (httpx's pool timeout);
    as many connections are kept, for ``keepalive`` seconds. ``tls`` is what https needs.
    """

    def __init__(self, connections: int, keepalive: float, tls: ssl.SSLContext) -> None:
        self._keepalive = keepalive
        self._tls = tls
        self._free = trio.Semaphore(connections)
        # In the order of last use. A connection to another origin than the one asked for is
        # not kept but closed, so these are never more than there may be requests.
        self._idle: deque[Connection] = deque()
        # Of the request before, which nearly always went to the same place.
        self._url: httpx.URL | None = None
        self._origin = Origin("", 0, secure=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request; the body is taken as a whole, and of the answer what is bounded.

        Raises httpx.TransportError.
        """
        answer = await self.exchange(request)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=PieceBody((answer.body,))
        )

    async def exchange(self, request: httpx.Request) -> ResponseParser:
        """Do the same for who reads the answer as it is."""
        try:
            self._free.acquire_nowait()
        except trio.WouldBlock:
            await self._take_turn(_timeout(request, "pool"))
        try:
            if isinstance(request, WrittenRequest):
                written = request.wire
            else:
                written = await _written(request)
            if request.url is not self._url:
                self._url, self._origin = request.url, _origin(request.url)
            origin = self._origin
            connection = self._reusable(origin)
            if connection is not None:
                try:
                    return await self._exchange(connection, written)
                except StaleConnectionError:
                    # It may have been carried out all the same, so only what may happen twice
                    # (RFC 9110, section 9.2.2), and only once more.
                    if request.method not in _IDEMPOTENT:
                        raise
            connection = await connect(origin, self._tls, _timeout(request, "connect"))
            return await self._exchange(connection, written)
        finally:
            self._free.release()

    async def _take_turn(self, within: float) -> None:
        try:
            with trio.fail_after(within):
                await self._free.acquire()
        except trio.TooSlowError as error:
            raise httpx.PoolTimeout(f"no free connection within {within:g} s") from error

    async def _exchange(self, connection: Connection, request: WireRequest) -> ResponseParser:
        """Use ``connection``, and keep or close it afterwards."""
        try:
            answer = await connection.exchange(request)
        except BaseException:
            # Also when cancelled: an answer to this request must not be taken for the next one's.
            connection.close()
            raise
        if answer.keep_alive:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _reusable(self, origin: Origin) -> Connection | None:
        """Return the connection that was used last; close those that are too old, or elsewhere."""
        oldest = time.monotonic() - self._keepalive
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.origin == origin and connection.may_be_used_again():
                return connection
            connection.close()
        return None

    async def aclose(self) -> None:
        """Close all idle connections; no request may be under way."""
        while self._idle:
            self._idle.pop().close()
        await trio.lowlevel.checkpoint()


class ProxyTransport(httpx.AsyncBaseTransport):
    """httpx's own client, which knows what the proxy variables mean for each host."""

    def __init__(self, connections: int, keepalive: float) -> None:
        self._client = httpx.AsyncClient(
            # Nothing ever waits in the pool: httpcore leaks slots when a waiter is cancelled.
            limits=httpx.Limits(
                max_connections=connections,
                max_keepalive_connections=connections,
                keepalive_expiry=keepalive,
            ),
            follow_redirects=False,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; raises httpx.ProxyError for a path that httpx would rewrite.

        httpcore lets the ``target`` extension replace what it says to the proxy as well, so
        here the target has to be part of the URL.
        """
        extensions = dict(request.extensions)
        target = extensions.pop("target", request.url.raw_path)
        url = request.url.copy_with(raw_path=target)
        if url.raw_path != target:
            raise httpx.ProxyError("a path with . or .. in it does not go through a proxy")
        return await self._client.send(
            httpx.Request(
                request.method,
                url,
                headers=request.headers,
                stream=request.stream,
                extensions=extensions,
            ),
            stream=True,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def open_transport(connections: int, keepalive: float, *, secure: bool) -> httpx.AsyncBaseTransport:
    """Return our own transport, or httpx's where the environment names a proxy.

    Without ``secure`` no server's certificate is believed: reading those of the authorities
    takes 20 ms and 2 MiB. Raises SettingsError, OSError, ValueError, ImportError or
    httpx.InvalidURL for variables that are wrong.
    """
    if proxies_from_environment():
        return ProxyTransport(connections, keepalive)
    tls = httpx.create_ssl_context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.set_alpn_protocols(["http/1.1"])
    return TrioTransport(connections, keepalive, tls)


async def _written(request: httpx.Request) -> WireRequest:
    """Return a request as it is sent; raises as ``_head`` does."""
    stream = request.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - httpx's own rule
    timeout = request.extensions.get("timeout", {})
    body = stream.pieces if isinstance(stream, PieceBody) else [piece async for piece in stream]
    return WireRequest(
        request.method, _head(request), body, timeout.get("write"), timeout.get("read")
    )


def _head(request: httpx.Request) -> bytes:
    """Return request line and headers; the ``target`` extension goes out as it is.

    Raises httpx.LocalProtocolError for what would read as something else on the other side.
    """
    target: bytes = request.extensions.get("target", request.url.raw_path)
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), target)]
    lines += map(b": ".join, request.headers.raw)
    head = b"\r\n".join([*lines, b"", b""])
    breaks = len(lines) + 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b" " in target:
        raise httpx.LocalProtocolError("a target or a header with a line break in it")
    if b"\r\ntransfer-encoding:" in head.lower():
        raise httpx.LocalProtocolError("a body without a Content-Length")
    return head


def _origin(url: httpx.URL) -> Origin:
    secure = url.scheme == "https"
    return Origin(url.raw_host.decode("ascii"), url.port or (443 if secure else 80), secure)


def _timeout(request: httpx.Request, name: str) -> float:
    """Return one of httpx's timeouts in seconds; for ever where it is None or missing."""
    value: float | None = request.extensions.get("timeout", {}).get(name)
    return float("inf") if value is None else value
