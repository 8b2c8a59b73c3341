"""An httpx transport on trio streams: one kept-alive connection for each request under way.

httpx's own goes through httpcore's pool, which looks at all connections for each request
(1.5 to 3.4 ms of CPU for a PUT) and, under trio, loses slots when a request is cancelled.
Here a request takes an idle connection from a stack or opens one, sends head and body in one
write, and reads one bounded answer: what an object store needs, and no more. There is no
HTTP/2, no streaming and no proxy; a configured proxy brings httpx's own transport back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import httpx
import trio

from daemon.storage.answer import Answer

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

_READ_BYTES: Final = 65_536


class _StaleError(Exception):
    """The server closed a kept-alive connection before it answered anything."""


class Connection:
    """One connection, used by one request at a time."""

    def __init__(self, stream: trio.abc.Stream, now: float) -> None:
        self._stream = stream
        self.idle_since = now
        self.used = False

    async def exchange(self, data: bytes, limit: int, write: float, read: float) -> Answer:
        """Send a request and return its answer, of whose body ``limit`` bytes are kept.

        ``write`` and ``read`` bound each wait in seconds. Raises httpx.TransportError.
        """
        answer = Answer(limit)
        try:
            with trio.fail_after(write):
                await self._stream.send_all(data)
        except trio.TooSlowError as error:
            raise httpx.WriteTimeout(f"nothing was taken for {write:g} s") from error
        except trio.BrokenResourceError as error:
            self._raise_stale(error)
            raise httpx.WriteError(_reason(error)) from error
        while not answer.complete:
            await self._receive(answer, read)
        return answer

    async def _receive(self, answer: Answer, read: float) -> None:
        try:
            with trio.fail_after(read):
                data = await self._stream.receive_some(_READ_BYTES)
        except trio.TooSlowError as error:
            raise httpx.ReadTimeout(f"no answer for {read:g} s") from error
        except trio.BrokenResourceError as error:
            if not answer.begun:
                self._raise_stale(error)
            raise httpx.ReadError(_reason(error)) from error
        if not data and not answer.begun:
            self._raise_stale(None)
        answer.feed(bytes(data))

    def _raise_stale(self, error: Exception | None) -> None:
        if self.used:
            raise _StaleError from error

    async def aclose(self) -> None:
        """Close at once, without the good-byes of TLS."""
        await trio.aclose_forcefully(self._stream)


class TrioTransport(httpx.AsyncBaseTransport):
    """Speaks HTTP/1.1 to origin servers.

    ``longest_body``: bytes of an answer that are kept. ``keepalive``: seconds for which an idle
    connection is used again.
    """

    def __init__(self, *, longest_body: int, keepalive: float) -> None:
        self._longest_body = longest_body
        self._keepalive = keepalive
        # As many as there were ever requests under way at once, so bounded by MAX_WORKERS. The
        # one that was used last is taken first: the others grow old and are closed.
        self._idle: dict[tuple[bytes, str, int], list[Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request; a connection that had gone stale is replaced once."""
        data = _head(request) + await request.aread()
        try:
            answer = await self._exchange(request, data, fresh=False)
        except _StaleError:
            answer = await self._exchange(request, data, fresh=True)
        return httpx.Response(answer.status, headers=answer.headers, content=bytes(answer.body))

    async def _exchange(self, request: httpx.Request, data: bytes, *, fresh: bool) -> Answer:
        timeout = request.extensions.get("timeout", {})
        connection = None if fresh else await self._reusable(request.url)
        if connection is None:
            connection = await self._connect(request.url, _seconds(timeout, "connect"))
        try:
            answer = await connection.exchange(
                data, self._longest_body, _seconds(timeout, "write"), _seconds(timeout, "read")
            )
        except BaseException:
            # Also when cancelled: what the server makes of half a request must not be the
            # answer to the next one.
            await connection.aclose()
            raise
        if answer.keep_alive:
            connection.used, connection.idle_since = True, trio.current_time()
            self._idle.setdefault(_origin(request.url), []).append(connection)
        else:
            await connection.aclose()
        return answer

    async def _reusable(self, url: httpx.URL) -> Connection | None:
        """Return the idle connection that was used last; close those that are too old."""
        idle = self._idle.get(_origin(url), [])
        if not idle:
            return None
        oldest_good = trio.current_time() - self._keepalive
        if idle[-1].idle_since >= oldest_good:
            return idle.pop()
        self._idle[_origin(url)] = []
        for connection in idle:
            await connection.aclose()
        return None

    async def _connect(self, url: httpx.URL, within: float) -> Connection:
        host, port = url.host, url.port or (443 if url.scheme == "https" else 80)
        try:
            with trio.fail_after(within):
                stream: trio.abc.Stream = await trio.open_tcp_stream(host, port)
                if url.scheme == "https":
                    stream = await self._secure(stream, host)
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout(f"no connection within {within:g} s") from error
        except (OSError, trio.BrokenResourceError) as error:
            raise httpx.ConnectError(_reason(error)) from error
        return Connection(stream, trio.current_time())

    async def _secure(self, stream: trio.abc.Stream, host: str) -> trio.abc.Stream:
        """Return ``stream`` under TLS, with the server's name asked for and verified."""
        if self._tls is None:
            self._tls = httpx.create_ssl_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        secured = trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)
        try:
            await secured.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    async def aclose(self) -> None:
        """Close all idle connections; no request may be under way."""
        for connections in self._idle.values():
            for connection in connections:
                await connection.aclose()
        self._idle.clear()


def _head(request: httpx.Request) -> bytes:
    target = request.extensions.get("target", request.url.raw_path)
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), target)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join([*lines, b"", b""])


def _origin(url: httpx.URL) -> tuple[bytes, str, int]:
    return url.raw_scheme, url.host, url.port or 0


def _seconds(timeout: dict[str, float | None], name: str) -> float:
    value = timeout.get(name)
    return float("inf") if value is None else value


def _reason(error: BaseException) -> str:
    """Return the first cause that says something: trio's own errors often do not."""
    return next((str(cause) for cause in _causes(error) if str(cause)), type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
