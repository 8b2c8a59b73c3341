"""A transport of httpx on trio streams: one kept-alive connection for each request in progress.

httpx's own transport uses httpcore's pool, which examines all connections for each request and,
under trio, loses slots when a request is cancelled. Here a request takes the connection that was
used last, or opens one, sends head and body, and reads one bounded response: all that an object
store needs. There is no HTTP/2, no proxy and no streaming. For hosts behind a proxy, httpx's own
transport is used.
"""

from __future__ import annotations

import ssl
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import httpx
import trio

from payloadd.storage.http1.connection import Connection, Origin, StaleConnectionError, connect
from payloadd.storage.http1.poller import InputPoller
from payloadd.storage.http1.progress import watched_progress
from payloadd.storage.http1.proxies import Proxies
from payloadd.storage.http1.request import (
    CountedBody,
    PieceBody,
    PreparedRequest,
    wire_request,
)

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.storage.http1.request import WireRequest
    from payloadd.storage.http1.response import ResponseParser

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})


class TrioTransport(httpx.AsyncBaseTransport):
    """An HTTP/1.1 client for origin servers, made to talk to one server at a time.

    At most ``connections`` requests are in progress; further requests wait (httpx's pool timeout).
    As many connections are kept, for ``keepalive`` seconds. ``tls`` is used for https.
    """

    def __init__(self, connections: int, keepalive: float, tls: ssl.SSLContext) -> None:
        self._keepalive = keepalive
        self._tls = tls
        self._slots = trio.Semaphore(connections)
        # In the order of last use, at most one for each slot: an idle connection to another origin
        # than the requested one is closed, not kept.
        self._idle: deque[Connection] = deque()
        # The URL of the request before: nearly every request has the same one.
        self._url: httpx.URL | None = None
        self._origin = Origin("", 0, secure=False)
        self._poller: InputPoller | None = None
        """That of all connections, from the first one on."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request. The body is read as a whole, and the response up to a bound.

        Raises httpx.TransportError.
        """
        response = await self.exchange(request)
        return httpx.Response(
            response.status, headers=response.headers, stream=PieceBody((response.body,))
        )

    async def exchange(self, request: httpx.Request) -> ResponseParser:
        """Make one request, as ``handle_async_request``, and return the parsed response itself.

        Raises httpx.TransportError.
        """
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_slot(_timeout(request, "pool"))
        try:
            if isinstance(request, PreparedRequest):
                wire = request.wire
            else:
                wire = await wire_request(request)
            if request.url is not self._url:
                self._url, self._origin = request.url, _origin(request.url)
            origin = self._origin
            connection = self._idle_connection(origin)
            repeated = connection is not None
            if connection is not None:
                try:
                    return await self._exchange(connection, wire)
                except StaleConnectionError:
                    # The server may have carried out the request: only idempotent requests are
                    # repeated (RFC 9110, section 9.2.2), and only once.
                    if request.method not in _IDEMPOTENT:
                        raise
            connection = await connect(
                origin, self._tls, _timeout(request, "connect"), self._open_poller()
            )
            response = await self._exchange(connection, wire)
            response.repeated = repeated
            return response
        finally:
            self._slots.release()

    def _open_poller(self) -> InputPoller:
        if self._poller is None:
            try:
                self._poller = InputPoller()
            except OSError as error:
                raise httpx.ConnectError(f"cannot wait for responses: {error}") from error
        return self._poller

    async def _wait_for_slot(self, within: float) -> None:
        try:
            with trio.fail_after(within):
                await self._slots.acquire()
        except trio.TooSlowError as error:
            raise httpx.PoolTimeout(f"no free connection within {within:g} s") from error

    async def _exchange(self, connection: Connection, request: WireRequest) -> ResponseParser:
        """Use ``connection``, and keep or close it afterwards."""
        try:
            response = await connection.exchange(request)
        except BaseException:
            # After a cancellation too: a late response to this request must not be mistaken for
            # the response to the next request.
            connection.close()
            raise
        if response.keep_alive:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def _idle_connection(self, origin: Origin) -> Connection | None:
        """Return the idle connection that was used last, if it is usable for ``origin``.

        Connections that are too old or lead to another origin are closed.
        """
        oldest = time.monotonic() - self._keepalive
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.popleft().close()
        while self._idle:
            connection = self._idle.pop()
            if connection.origin == origin and connection.is_reusable():
                return connection
            connection.close()
        return None

    async def aclose(self) -> None:
        """Close all idle connections; no request may be in progress."""
        while self._idle:
            self._idle.pop().close()
        if self._poller is not None:
            self._poller.close()
            self._poller = None
        await trio.lowlevel.checkpoint()


class ProxyTransport(httpx.AsyncBaseTransport):
    """httpx's own transports for hosts behind a proxy, and ours for all other hosts."""

    def __init__(
        self, connections: int, keepalive: float, tls: ssl.SSLContext, proxies: Proxies
    ) -> None:
        self._proxies = proxies
        self._direct = TrioTransport(connections, keepalive, tls)
        self._through = {
            url: httpx.AsyncHTTPTransport(
                verify=tls,
                # As many connections as requests: httpcore loses a slot when a waiting request is
                # cancelled, so no request may wait in its pool.
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=keepalive,
                ),
                proxy=httpx.Proxy(url, ssl_context=tls if url.startswith("https:") else None),
                trust_env=False,
            )
            for url in proxies.urls()
        }

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Make one request, through the proxy of its host if there is one.

        Raises httpx.RequestError, with httpx.ProxyError for a path that httpx would rewrite:
        httpcore uses the extension ``target`` for its request to the proxy too, so here the target
        has to be part of the URL.
        """
        proxy = self._proxies.proxy_of(request.url)
        if proxy is None:
            return await self._direct.handle_async_request(request)
        extensions = dict(request.extensions)
        target = extensions.pop("target", request.url.raw_path)
        url = request.url.copy_with(raw_path=target)
        if url.raw_path != target:
            raise httpx.ProxyError("a path with . or .. in it cannot be sent through a proxy")
        stream = request.stream
        if isinstance(stream, PieceBody) and (progress := watched_progress.get()) is not None:
            stream = CountedBody(stream.pieces)
            progress.begin(stream)
        return await self._through[proxy].handle_async_request(
            httpx.Request(
                request.method,
                url,
                headers=request.headers,
                stream=stream,
                extensions=extensions,
            )
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._direct.aclose()
        for transport in self._through.values():
            await transport.aclose()


class CaBundleError(Exception):
    """The certificates of the authorities to trust cannot be read."""


def open_transport(
    connections: int, keepalive: float, *, secure: bool, ca_bundle: Path | None = None
) -> httpx.AsyncBaseTransport:
    """Return our own transport, or one for proxies if the environment names a proxy.

    ``ca_bundle`` is a file or a folder of authorities in place of the usual ones. Without
    ``secure`` the transport trusts no certificate: loading those of the authorities takes time and
    memory. Raises SettingsError, OSError, ValueError, ImportError or httpx.InvalidURL for invalid
    variables of the environment, CaBundleError for ``ca_bundle``.
    """
    proxies = Proxies.from_environment()
    secure = secure or any(url.startswith("https:") for url in proxies.urls())
    tls = _tls_context(ca_bundle) if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.set_alpn_protocols(["http/1.1"])
    if proxies.urls():
        return ProxyTransport(connections, keepalive, tls, proxies)
    return TrioTransport(connections, keepalive, tls)


def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return a context that trusts ``ca_bundle``, or the authorities that httpx trusts."""
    if ca_bundle is None:
        return httpx.create_ssl_context()
    try:
        if ca_bundle.is_dir():
            return ssl.create_default_context(capath=ca_bundle)
        return ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as error:  # its text does not name the file
        raise CaBundleError(f"cannot read certificates from {str(ca_bundle)!r}: {error}") from error


def _origin(url: httpx.URL) -> Origin:
    secure = url.scheme == "https"
    return Origin(url.raw_host.decode("ascii"), url.port or (443 if secure else 80), secure)


def _timeout(request: httpx.Request, name: str) -> float:
    """Return one of httpx's timeouts in seconds; infinity if it is None or missing."""
    value: float | None = request.extensions.get("timeout", {}).get(name)
    return float("inf") if value is None else value
