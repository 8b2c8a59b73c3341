"""Accept and serve the connections of one address, by the fast path or by Hypercorn.

Hypercorn's own ``serve`` is not used: it does not limit connections, one accept error ends it, and
it drops the requests that are in progress when its grace period is over. Only its ``TCPServer`` is
used: one object per connection, which implements HTTP/1.1 and HTTP/2. ASGI's lifespan protocol is
omitted: the apps own nothing that has to be opened or closed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState as HypercornState

from payloadd.ingress.server.accept import Acceptor
from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.hypercorn_app import make_hypercorn_config, wrap_app
from payloadd.ingress.server.hypercorn_connection import HypercornConnection
from payloadd.ingress.server.listen import (
    bound_addresses,
    close_listener,
    open_listeners,
    public_addresses,
)
from payloadd.ingress.server.open_requests import OpenRequests
from payloadd.ingress.server.slots import Slots
from payloadd.ingress.server.socket_stream import NonBlockingStream
from payloadd.ingress.server.start import ProxyHeaders, complete_handshake
from payloadd.ingress.server.tls import TlsStream
from payloadd.observe.logs import get_logger
from payloadd.observe.request_metrics import CountAnswer, RequestMetrics, count_nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from quart_trio import QuartTrio

    from payloadd.config.settings import Settings
    from payloadd.ingress.cors import Cors
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.ingress.server.tls import Certificates
    from payloadd.ingress.submission import Submitter

__all__ = ["bound_addresses", "open_listeners", "public_addresses", "serve"]

log = get_logger(__name__)

_TICK: Final = 0.25
"""Seconds between two checks of all deadlines."""
_TICKS_PER_TIMEOUT: Final = 10
_LATE: Final = 0.1
"""Seconds by which a tick may be late before the event loop counts as stalled."""
_LONGEST_RECOVERY: Final = 5.0
"""Seconds after a stall, at most, in which the sockets are read and no deadline is checked."""
_ACCEPTED_PER_PASS: Final = 64
"""Connections that are accepted before other tasks run, at most."""


class FastPathService(Protocol):
    """The fast path as the server calls it."""

    submitter: Submitter

    def awaits_commit(self) -> bool:
        """Return whether requests wait for the journal."""
        ...

    async def run(self) -> None:
        """Serve until cancelled."""
        ...

    def enter(self, stream: ClientStream, leave: Callable[[ClientStream], object]) -> None:
        """Serve a new connection; call ``leave`` when Hypercorn has to serve it, or when it ends.

        Raises OSError if the system can watch no further connection.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options of one address."""

    max_connections: int
    fast_path: FastPathService | None = None
    """Answers plain requests before they reach the app."""
    certificates: Certificates | None = None
    """With certificates, all connections use TLS."""
    memory: RequestMemory | None = None
    """The memory for the bodies that Hypercorn reads."""
    count: CountAnswer = count_nothing
    """Called for each answer that the fast path does not send."""
    refusals: RefusalLog | None = None
    """The log of requests that are refused before they reach the app."""
    max_connections_per_client: int | None = None
    proxies: Container[str] = ()
    """Addresses of trusted proxies, to which ``max_connections_per_client`` does not apply."""
    proxy_headers: bool = False
    """Whether each connection of ``proxies`` begins with a PROXY header, which states its
    client."""
    cors: Cors | None = None
    """The headers for browsers of answers that come neither from the app nor the fast path."""
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    """Gets the number of connections, and counts the bytes of bodies that Hypercorn reads."""
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    """The requests that Hypercorn has in progress."""
    accept_seconds: float = 0.002
    """Seconds in which connections are accepted before other tasks run."""
    drain_margin: float = 5.0
    """Seconds, in addition to REQUEST_TIMEOUT, in which clients can read the last answers."""


async def serve(
    app: QuartTrio,
    listeners: list[trio.SocketListener],
    settings: Settings,
    stop: trio.Event,
    options: ServerOptions,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until ``stop`` is set and every request in progress is answered.

    After ``stop`` the listeners are closed. Idle connections are closed at once, the others after
    their answer. Connections that are open after REQUEST_TIMEOUT and ``drain_margin`` are closed
    without an answer. Raises ExceptionGroup with an OSError if a listener is broken.
    """
    server = _Server(app, settings, options)
    try:
        async with trio.open_nursery() as helpers:
            helpers.start_soon(server.enforce_deadlines)
            helpers.start_soon(server.fifo_gate.run)
            if options.fast_path is not None:
                helpers.start_soon(options.fast_path.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(server.accept, listener, connections)
                    task_status.started()
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                for listener in listeners:
                    close_listener(listener)
                await server.drain()
                limit = settings.request_timeout + options.drain_margin
                connections.cancel_scope.deadline = trio.current_time() + limit
                await server.wait_empty()
            server.close_remaining()
            helpers.cancel_scope.cancel()
    finally:
        for listener in listeners:
            close_listener(listener)
    if connections.cancel_scope.cancelled_caught:
        log.warning("connections_cut_off", after_seconds=limit)


class _Server:
    """The state that all connections of one address share."""

    def __init__(self, app: QuartTrio, settings: Settings, options: ServerOptions) -> None:
        self._draining = False
        self._drain_ended = False
        self._empty = trio.Event()
        self._occupied = trio.Event()
        fast_path = options.fast_path
        self.fifo_gate = (
            FifoGate()
            if fast_path is None
            else FifoGate(fast_path.submitter.switch_interval.shorten, fast_path.awaits_commit)
        )
        self._open_requests = options.open_requests
        per_request = (self._open_requests, options.metrics, options.memory)
        self._app = wrap_app(app, settings.request_timeout, self.fifo_gate, *per_request)
        self._config = make_hypercorn_config()
        self._settings = settings
        self._fast_path = options.fast_path
        self._certificates = options.certificates
        self._count = options.count
        self._refusals = options.refusals
        self._cors = options.cors
        self._proxy_headers = ProxyHeaders(options.proxies if options.proxy_headers else ())
        not_counted = () if options.proxy_headers else options.proxies
        self._slots = Slots(
            options.max_connections, options.max_connections_per_client, not_counted
        )
        options.metrics.connections = self._slots.__len__
        self._trust = 0
        self._accept_seconds = options.accept_seconds

    async def accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        """Accept connections until cancelled; ``Slots`` evicts others for them.

        Several listeners share the slots. A listener without clients uses none.
        """
        with Acceptor(listener) as acceptor:
            while True:
                await trio.lowlevel.wait_readable(listener.socket)
                end = perf_counter() + self._accept_seconds
                acceptor.set_nonblocking()
                for _ in range(_ACCEPTED_PER_PASS):
                    found = acceptor.accept_now(strict=self._slots.half_full)
                    if found is None:
                        break
                    await self._enter(*found, connections)
                    if perf_counter() > end:
                        break
                await acceptor.pause_if_exhausted()

    async def enforce_deadlines(self) -> None:
        """End connections whose deadline has passed, up to a quarter of a second later.

        If the event loop was blocked, or the process was stopped, the clients did not cause the
        delay: every deadline is moved by it, and the sockets are read before any deadline is
        checked.
        """
        shortest = min(self._settings.request_timeout, self._settings.keepalive_timeout)
        tick = min(_TICK, shortest / _TICKS_PER_TIMEOUT)
        not_before = 0.0
        while True:
            # Sleep until a connection exists.
            await self._occupied.wait()
            began = trio.current_time()
            await trio.sleep(tick)
            if not self._slots:
                self._occupied = trio.Event()
            now = trio.current_time()
            late = now - began - tick
            if late > _LATE:
                not_before = now + min(late, _LONGEST_RECOVERY)
                for stream in self._slots:
                    stream.postpone(late)
            if now >= not_before:
                # A copy, because a connection that ends during its check is removed.
                for stream in list(self._slots):
                    stream.check_deadlines(now)
            if self._certificates is not None and self._certificates.trust != self._trust:
                await self._end_untrusted(self._certificates.trust)

    async def drain(self) -> None:
        """Close every connection as soon as it has no request in progress."""
        self._draining = True
        for stream, context in list(self._slots.items()):
            stream.drain()
            if stream.state.http2:
                # Hypercorn then sends GOAWAY. For HTTP/1.1 it would close the connection at once,
                # even while a request arrives.
                await context.terminated.set()

    async def wait_empty(self) -> None:
        """Wait until all connections are closed, after ``drain``."""
        try:
            if self._slots:
                await self._empty.wait()
        finally:
            self._drain_ended = True

    def close_remaining(self) -> None:
        """Close the remaining connections, all of the fast path: tasks close the others."""
        for stream in self._slots:
            stream.close_now()
        self._slots.clear()

    async def _end_untrusted(self, trust: int) -> None:
        """End connections that were accepted before an authority of clients was removed.

        Requests in progress are answered. The server does not ask the client for its certificate
        again: TLS 1.3 allows that only with clients that announce it, and HTTP/2 forbids it.
        """
        self._trust = trust
        for stream, context in list(self._slots.items()):
            if stream.trust < trust:
                stream.end_after_requests()
                if stream.state.http2:
                    await context.terminated.set()

    async def _enter(
        self, transport: trio.SocketStream, client: str | None, connections: trio.Nursery
    ) -> None:
        """Wait for a free slot, then start to serve a connection."""
        admitted = False
        try:
            has_header = self._proxy_headers.are_sent_by(client)
            if not has_header and self._slots.refuses(client):
                return
            while not self._slots.has_room():
                await self._slots.wait_for_room()
            if has_header:
                stream = self._admit(transport, None)
                connections.start_soon(self._identify, stream, client, connections)
            else:
                self._start(self._admit(transport, client), connections)
            admitted = True
        finally:
            if not admitted:
                transport.socket.close()

    def _admit(self, transport: trio.SocketStream, client: str | None) -> ClientStream:
        """Give a slot to a connection."""
        settings = self._settings
        tls = self._certificates
        # ``trust`` is read before the context: a reload runs in a thread.
        trust = 0 if tls is None else tls.trust
        socket_stream = (
            NonBlockingStream(transport) if tls is None else TlsStream(transport, tls.context)
        )
        stream = ClientStream(
            socket_stream, settings.request_timeout, settings.keepalive_timeout, self.fifo_gate
        )
        stream.trust = trust
        stream.count = self._count
        stream.refusals = self._refusals
        stream.cors = self._cors
        self._slots.add(stream, WorkerContext(None), client)
        self._occupied.set()
        return stream

    def _start(self, stream: ClientStream, connections: trio.Nursery) -> None:
        """Start to serve a connection: on the fast path without a task, else in its own task."""
        if self._certificates is None:
            self._begin(stream, connections)
        else:
            connections.start_soon(self._secure, stream, connections)
        if self._draining:  # the connection was accepted just before the drain
            stream.drain()

    async def _identify(
        self, stream: ClientStream, proxy: str | None, connections: trio.Nursery
    ) -> None:
        """Read the PROXY header of a connection, then start to serve its client."""
        if self._draining:
            stream.drain()
        header = await self._proxy_headers.read(stream, proxy)
        if header is not None:
            stream.stated_address = header.address
            client = None if header.address == "unix" else header.address
            if not self._slots.refuses(client):
                self._slots.count(stream, client)
                self._start(stream, connections)
                return
        await self._connection(stream)

    async def _secure(self, stream: ClientStream, connections: trio.Nursery) -> None:
        """Complete the TLS handshake, then serve HTTP/1.1 as on a connection without TLS."""
        if await complete_handshake(stream, self.fifo_gate):
            self._begin(stream, connections)
        else:
            await self._connection(stream)

    def _begin(self, stream: ClientStream, connections: trio.Nursery) -> None:
        if self._fast_path is not None:
            try:
                self._fast_path.enter(stream, partial(self._leave_fast_path, connections))
            except OSError as error:
                log.warning("connection_not_watched", reason=str(error))
            else:
                return
        stream.pass_to_hypercorn(b"")
        connections.start_soon(self._connection, stream)

    def _leave_fast_path(self, connections: trio.Nursery, stream: ClientStream) -> None:
        # After the end of the drain no task may start; ``close_remaining`` closes the connection.
        if not (self._drain_ended or stream.evicted):
            connections.start_soon(self._connection, stream)

    async def _connection(self, stream: ClientStream) -> None:
        """Serve a connection in a task until it ends, and close it."""
        try:
            await self._serve_requests(stream)
            await stream.finish()
        finally:
            stream.socket.close()
            self._slots.remove(stream)
            if self._draining and not self._slots:
                self._empty.set()

    async def _serve_requests(self, stream: ClientStream) -> None:
        """Serve the requests of a connection; an error ends only this connection."""
        try:
            with stream.scope:
                if await stream.flush() and stream.passed_to_hypercorn:
                    await self.fifo_gate.wait_turn()
                    if stream in self._slots:  # else it was evicted in the meantime
                        await self._hypercorn(stream).run()
        except* Exception as group:  # noqa: BLE001 - it is logged
            log_broken_connection(group)

    def _hypercorn(self, stream: ClientStream) -> HypercornConnection:
        state = HypercornState(cast("Any", {"stream": stream}))
        context = self._slots.context(stream)
        return HypercornConnection(
            self._app, self._config, context, state, stream, self.fifo_gate, self._open_requests
        )
