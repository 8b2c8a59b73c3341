"""Accept and serve the connections of one address, by the fast path or by Hypercorn.

Hypercorn's own ``serve`` is not used: it does not limit connections, one accept error ends it, and
it drops the requests that are in progress when its grace period is over. Only its ``TCPServer`` is
used: one object per connection, which implements HTTP/1.1 and HTTP/2. ASGI's lifespan protocol is
omitted: the apps own nothing that has to be opened or closed.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState as HypercornState

from payloadd.ingress.server.accept import Acceptor
from payloadd.ingress.server.client_connection import Ending
from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.server.deadlines import DeadlineWheel
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.handshake import Handshake, HandshakeQueue
from payloadd.ingress.server.hypercorn_app import make_hypercorn_config, wrap_app
from payloadd.ingress.server.hypercorn_connection import HypercornConnection
from payloadd.ingress.server.lingering import Lingering
from payloadd.ingress.server.listen import (
    bound_addresses,
    close_listener,
    open_listeners,
    public_addresses,
)
from payloadd.ingress.server.options import ServerOptions
from payloadd.ingress.server.poller import Poller
from payloadd.ingress.server.proxy_headers import ProxyHeaders
from payloadd.ingress.server.slots import Slots
from payloadd.ingress.server.socket_stream import NonBlockingStream
from payloadd.ingress.server.tls import TlsStream
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    import socket

    from quart_trio import QuartTrio

    from payloadd.config.settings import Settings

__all__ = ["ServerOptions", "bound_addresses", "open_listeners", "public_addresses", "serve"]

log = get_logger(__name__)

_TRUST_CHECK_SECONDS: Final = 0.25
_ACCEPTED_PER_PASS: Final = 64
"""Connections that are accepted before other tasks run, at most."""


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
            helpers.start_soon(server.wheel.run)
            helpers.start_soon(server.end_untrusted)
            helpers.start_soon(server.fifo_gate.run)
            helpers.start_soon(server.handshakes.run)
            helpers.start_soon(server.watcher.run)
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
        fast_path = options.fast_path
        self.watcher = Poller() if fast_path is None else fast_path
        self.wheel = DeadlineWheel(min(settings.request_timeout, settings.keepalive_timeout))
        self.fifo_gate = (
            FifoGate()
            if fast_path is None
            else FifoGate(fast_path.submitter.switch_interval.shorten, fast_path.awaits_commit)
        )
        self.handshakes = HandshakeQueue()
        self._open_requests = options.open_requests
        per_request = (self._open_requests, options.metrics, options.memory)
        self._app = wrap_app(app, self.fifo_gate, *per_request)
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
        self._slots.on_evict = self.wheel.remove
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

    async def drain(self) -> None:
        """Close every connection as soon as it has no request in progress."""
        self._draining = self.wheel.draining = True
        for stream in list(self._slots):
            stream.drain()
            if stream.state.http2:
                await _terminate(stream)

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
        self.wheel.clear()

    async def end_untrusted(self) -> None:
        """End connections that were accepted before an authority of clients was removed.

        Requests in progress are answered. The server does not ask the client for its certificate
        again: TLS 1.3 allows that only with clients that announce it, and HTTP/2 forbids it.
        """
        certificates = self._certificates
        while certificates is not None:
            await trio.sleep(_TRUST_CHECK_SECONDS)
            trust, self._trust = self._trust, certificates.trust
            if trust != self._trust:
                for stream in list(self._slots):
                    if stream.trust < self._trust:
                        stream.end_after_requests()
                        if stream.state.http2:
                            await _terminate(stream)

    async def _enter(
        self, connected: socket.socket, client: str | None, connections: trio.Nursery
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
                stream = self._admit(connected, None)
                connections.start_soon(self._identify, stream, client, connections)
            else:
                self._start(self._admit(connected, client), connections)
            admitted = True
        finally:
            if not admitted:
                connected.close()

    def _admit(self, connected: socket.socket, client: str | None) -> ClientStream:
        """Give a slot to a connection."""
        settings = self._settings
        tls = self._certificates
        # ``trust`` is read before the context: a reload runs in a thread.
        trust = 0 if tls is None else tls.trust
        socket_stream = (
            NonBlockingStream(connected) if tls is None else TlsStream(connected, tls.context)
        )
        stream = ClientStream(
            socket_stream,
            settings.request_timeout,
            settings.keepalive_timeout,
            self.fifo_gate,
            self.wheel.clock,
        )
        stream.trust = trust
        stream.count = self._count
        stream.refusals = self._refusals
        stream.cors = self._cors
        self._slots.add(stream, client)
        self.wheel.add(stream)
        return stream

    def _start(self, stream: ClientStream, connections: trio.Nursery) -> None:
        """Start to serve a connection, without a task until Hypercorn has to serve it."""
        if self._certificates is None:
            self._begin(stream, connections)
        else:
            done = partial(self._after_handshake, connections)
            try:
                Handshake(self.watcher, stream, self.handshakes, done).start()
            except OSError as error:
                log.warning("connection_not_watched", reason=str(error))
                self._finish(connections, stream)
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

    def _after_handshake(
        self,
        connections: trio.Nursery,
        stream: ClientStream,
        complete: bool,  # noqa: FBT001 - see Handshake
    ) -> None:
        """Serve a connection after its TLS handshake."""
        if not complete:
            self._finish(connections, stream)
            return
        transport = cast("TlsStream", stream.transport)
        stream.certificate_name = transport.certificate_name
        if transport.protocol == "h2":
            stream.state.http2 = True
            stream.pass_to_hypercorn(b"")
            connections.start_soon(self._connection, stream)
        else:
            self._begin(stream, connections)

    def _begin(self, stream: ClientStream, connections: trio.Nursery) -> None:
        if self._fast_path is not None:
            transport = stream.transport
            transport.accepted = True
            try:
                self._fast_path.enter(stream, partial(self._finish, connections))
            except OSError as error:
                log.warning("connection_not_watched", reason=str(error))
            else:
                return
            finally:
                transport.accepted = False
        stream.pass_to_hypercorn(b"")
        connections.start_soon(self._connection, stream)

    def _finish(self, connections: trio.Nursery, stream: ClientStream) -> None:
        """Close a connection that has left the fast path, or have Hypercorn serve it."""
        # After the end of the drain no task may start; ``close_remaining`` closes the connection.
        if self._drain_ended or stream.evicted:
            return
        if not stream.passed_to_hypercorn:
            ending = stream.finish_now()
            if ending is Ending.CLOSED:
                self._remove(stream)
                return
            if ending is Ending.LINGERS:
                Lingering(self.watcher, stream, self._remove).start()
                return
        connections.start_soon(self._connection, stream)

    def _remove(self, stream: ClientStream) -> None:
        """Free the slot of a connection that is closed."""
        self.wheel.remove(stream)
        self._slots.remove(stream)
        if self._draining and not self._slots:
            self._empty.set()

    async def _connection(self, stream: ClientStream) -> None:
        """Serve a connection in a task until it ends, and close it."""
        try:
            await self._serve_requests(stream)
            await stream.finish()
        finally:
            stream.transport.close()
            self._remove(stream)

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
        context = _context_of(stream)
        return HypercornConnection(
            self._app, self._config, context, state, stream, self.fifo_gate, self._open_requests
        )


async def _terminate(stream: ClientStream) -> None:
    """Have Hypercorn send GOAWAY to an HTTP/2 client.

    For HTTP/1.1 it would close the connection at once, even while a request arrives.
    """
    await _context_of(stream).terminated.set()


def _context_of(stream: ClientStream) -> WorkerContext:
    """Return Hypercorn's context of a connection."""
    if stream.context is None:
        stream.context = WorkerContext(None)
    return stream.context
