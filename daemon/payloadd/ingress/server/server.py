"""Listeners and connections, on the trio parts of Hypercorn.

Hypercorn's own ``serve`` is not used: it has no cap on connections, one accept error ends
it, and what is under way when its grace is over is dropped. Its ``TCPServer``, one object
per connection, knows HTTP/1.1 and HTTP/2 and is all that is taken. ASGI's lifespan protocol
is left out: the apps own nothing that would have to be opened or closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from payloadd.ingress.server.accept import Acceptor
from payloadd.ingress.server.client_stream import ClientStream, count_nothing
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.hypercorn_app import asgi, make_config
from payloadd.ingress.server.hypercorn_connection import HypercornConnection
from payloadd.ingress.server.listen import bound_addresses, close_listener, open_listeners
from payloadd.ingress.server.open_requests import OpenRequests
from payloadd.ingress.server.slots import Slots
from payloadd.ingress.server.socket_stream import NonBlockingStream
from payloadd.ingress.server.tls import TlsStream
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from quart_trio import QuartTrio

    from payloadd.config.settings import Settings
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.ingress.server.lane import Lane
    from payloadd.ingress.server.tls import Certificates

__all__ = ["bound_addresses", "open_listeners", "serve"]

log = get_logger(__name__)

_TICK: Final = 0.25
"""Seconds between two looks at the clock: 1,000 connections cost 0.1 % of a core."""
_TICKS_A_TIMEOUT: Final = 10
_LATE: Final = 0.1
"""Seconds by which a tick may be late before the event loop counts as stalled."""
_LONGEST_READING: Final = 5.0
"""Seconds behind a stall, at most, in which all that lies in the sockets is to be read."""
_ACCEPTED_AT_ONCE: Final = 64
_ACCEPT_SECONDS: Final = 0.002
"""How many connections are accepted, and for how long, before other tasks have a turn."""
_DRAIN_MARGIN: Final = 5.0
"""Seconds beyond REQUEST_TIMEOUT for the last answers to be sent and read."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What stands between an address and its app."""

    max_connections: int
    fast_path: Lane | None = None
    """Answers plain requests: they never reach the app."""
    certificates: Certificates | None = None
    """With them all is inside of TLS."""
    memory: RequestMemory | None = None
    """What bodies take from that Hypercorn reads."""
    count: Callable[[int], object] = count_nothing
    """Called with the status of every answer that the lane does not give."""
    refusals: RefusalLog | None = None
    """The log of requests that are refused before they reach the app."""
    max_connections_per_client: int | None = None


async def serve(
    app: QuartTrio,
    listeners: list[trio.SocketListener],
    settings: Settings,
    stop: trio.Event,
    options: ServerOptions,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until ``stop`` is set and every request under way has been answered.

    After ``stop`` the listeners are closed, idle connections are closed at once, and the others
    after their answer; what is left REQUEST_TIMEOUT and 5 s later is cut off.
    """
    server = _Server(app, settings, options)
    try:
        async with trio.open_nursery() as clock:
            clock.start_soon(server.keep_time)
            clock.start_soon(server.fifo_gate.run)
            if options.fast_path is not None:
                clock.start_soon(options.fast_path.run)
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
                limit = settings.request_timeout + _DRAIN_MARGIN
                connections.cancel_scope.deadline = trio.current_time() + limit
                await server.wait_empty()
            server.cut_off()
            clock.cancel_scope.cancel()
    finally:
        for listener in listeners:
            close_listener(listener)
    if connections.cancel_scope.cancelled_caught:
        log.warning("connections_cut_off", after_seconds=limit)


class _Server:
    """What all connections of one address share."""

    def __init__(self, app: QuartTrio, settings: Settings, options: ServerOptions) -> None:
        self._draining = False
        self._over = False
        self._empty = trio.Event()
        self._occupied = trio.Event()
        fast_path = options.fast_path
        self.fifo_gate = (
            FifoGate()
            if fast_path is None
            else FifoGate(fast_path.submitter.switch_interval.shorten, fast_path.awaits_commit)
        )
        self._open_requests = OpenRequests()
        self._app = asgi(
            app, settings.request_timeout, self.fifo_gate, self._open_requests, options.memory
        )
        self._config = make_config()
        self._settings = settings
        self._fast_path = options.fast_path
        self._certificates = options.certificates
        self._count = options.count
        self._refusals = options.refusals
        self._slots = Slots(options.max_connections, options.max_connections_per_client)
        self._trust = 0

    async def accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        """Accept connections for ever; see ``Slots`` for what makes room for them.

        With several listeners, one to which no client connects holds no slot.
        """
        with Acceptor(listener) as acceptor:
            while True:
                await trio.lowlevel.wait_readable(listener.socket)
                end = perf_counter() + _ACCEPT_SECONDS
                acceptor.begin()
                for _ in range(_ACCEPTED_AT_ONCE):
                    found = acceptor.next()
                    if found is None:
                        break
                    await self._enter(*found, connections)
                    if perf_counter() > end:
                        break
                await acceptor.recover()

    async def keep_time(self) -> None:
        """End connections whose client takes too long, a little after their time.

        Where the event loop was held up, or the process stopped, the delay is not the clients':
        all of them get the time back, and what lies in the sockets is read first.
        """
        shortest = min(self._settings.request_timeout, self._settings.keepalive_timeout)
        tick = min(_TICK, shortest / _TICKS_A_TIMEOUT)
        not_before = 0.0
        while True:
            # Nobody is woken for nobody.
            await self._occupied.wait()
            began = trio.current_time()
            await trio.sleep(tick)
            if not self._slots:
                self._occupied = trio.Event()
            now = trio.current_time()
            late = now - began - tick
            if late > _LATE:
                not_before = now + min(late, _LONGEST_READING)
                for stream in self._slots:
                    stream.postpone(late)
            if now >= not_before:
                # One that is closed within a call is taken out of the table.
                for stream in list(self._slots):
                    stream.look_at_the_time(now)
            if self._certificates is not None and self._certificates.trust != self._trust:
                await self._end_untrusted(self._certificates.trust)

    async def drain(self) -> None:
        """Have every connection closed once it has no request under way."""
        self._draining = True
        for stream, context in list(self._slots.items()):
            stream.drain()
            if stream.http2:
                # Hypercorn says GOAWAY. Told so, it would close HTTP/1.1 under a client's hands.
                await context.terminated.set()

    async def wait_empty(self) -> None:
        """Return once all connections are closed, after ``drain``."""
        try:
            if self._slots:
                await self._empty.wait()
        finally:
            self._over = True

    def cut_off(self) -> None:
        """Close what is left, all of it in the lane: what had a task was closed by that."""
        for stream in self._slots:
            stream.cut_off()
        self._slots.clear()

    async def _end_untrusted(self, trust: int) -> None:
        """End connections that were let in by a client authority which has been removed since.

        Requests under way are answered. The client is not asked for its certificate again: TLS
        1.3 allows that only to clients that announce it, and HTTP/2 not at all.
        """
        self._trust = trust
        for stream, context in list(self._slots.items()):
            if stream.trust < trust:
                stream.end_after_requests()
                if stream.http2:
                    await context.terminated.set()

    async def _enter(
        self, transport: trio.SocketStream, client: str | None, connections: trio.Nursery
    ) -> None:
        """Begin to serve a connection once there is a slot for it."""
        admitted = False
        try:
            if self._slots.refuses(client):
                return
            while not self._slots.has_room():
                await self._slots.wait_for_room()
            self._admit(transport, client, connections)
            admitted = True
        finally:
            if not admitted:
                transport.socket.close()

    def _admit(
        self, transport: trio.SocketStream, client: str | None, connections: trio.Nursery
    ) -> None:
        """Begin to serve a connection: in the lane without a task, else in one of its own."""
        settings = self._settings
        tls = self._certificates
        trust = 0 if tls is None else tls.trust  # before the context: a reload is in a thread
        socket_stream = (
            NonBlockingStream(transport) if tls is None else TlsStream(transport, tls.context)
        )
        stream = ClientStream(
            socket_stream, settings.request_timeout, settings.keepalive_timeout, self.fifo_gate
        )
        stream.trust = trust
        stream.count = self._count
        stream.refusals = self._refusals
        self._slots.add(stream, WorkerContext(None), client)
        self._occupied.set()
        if tls is None:
            self._begin(stream, connections)
        else:
            connections.start_soon(self._secure, stream, connections)
        if self._draining:  # it was accepted just before
            stream.drain()

    async def _secure(self, stream: ClientStream, connections: trio.Nursery) -> None:
        """Shake hands; a connection that speaks HTTP/1.1 goes on as one without TLS."""
        if await stream.shake_hands():
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
        stream.hand_over(b"")
        connections.start_soon(self._connection, stream)

    def _leave_fast_path(self, connections: trio.Nursery, stream: ClientStream) -> None:
        # Once the drain's patience is over nothing begins; `cut_off` closes what is left.
        if not (self._over or stream.evicted):
            connections.start_soon(self._connection, stream)

    async def _connection(self, stream: ClientStream) -> None:
        """Serve a connection for which there is more to do than the lane does."""
        try:
            await self._talk(stream)
            await stream.finish()
        finally:
            stream.socket.close()
            self._slots.remove(stream)
            if self._draining and not self._slots:
                self._empty.set()

    async def _talk(self, stream: ClientStream) -> None:
        """Serve the requests of a connection; whatever goes wrong ends only this connection."""
        try:
            with stream.scope:
                if await stream.flush() and stream.handed_over:
                    await self.fifo_gate.next()
                    if stream in self._slots:  # it may have been evicted in the meantime
                        await self._hypercorn(stream).run()
        except* Exception as group:  # noqa: BLE001 - it is logged
            log_broken_connection(group)

    def _hypercorn(self, stream: ClientStream) -> HypercornConnection:
        state = ConnectionState(cast("Any", {"stream": stream}))
        context = self._slots.context(stream)
        return HypercornConnection(
            self._app, self._config, context, state, stream, self.fifo_gate, self._open_requests
        )
