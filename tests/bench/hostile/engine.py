"""The sockets of hostile clients: one thread, one epoll, one connection a client."""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from tests.bench.hostile.clients import Client

_READ_BYTES: Final = 65_536
_WRITE_BYTES: Final = 262_144
_TICK: Final = 0.05
# SO_LINGER with 0 s: the kernel sends RST, and keeps no port in TIME_WAIT.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    client: Client
    rest: memoryview
    opened: bool = False
    """Whether the connection is made, which is when the socket becomes writable."""
    watches_writes: bool = True


class Engine:
    """Keep ``connections`` connections to a port; a new one replaces each that ends."""

    def __init__(
        self, port: int, connections: int, make: Callable[[], Client], tally: Counter[str]
    ) -> None:
        self._port = port
        self._make = make
        self._tally = tally
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._wanted = connections

    def run(self, seconds: float) -> None:
        """Attack for ``seconds`` seconds, then close all connections."""
        try:
            self._run(time.monotonic() + seconds)
        finally:
            for connection in list(self._connections.values()):
                self._close(connection)
            self._epoll.close()

    def _run(self, end: float) -> None:
        tick = time.monotonic()
        while (now := time.monotonic()) < end:
            # A few at a time: opening thousands would delay the open connections.
            for _ in range(min(64, self._wanted - len(self._connections))):
                self._open()
            if now >= tick:
                tick = now + _TICK
                self._tick()
            for fd, events in self._epoll.poll(_TICK):
                self._serve(self._connections[fd], events)

    def _open(self) -> None:
        sock = socket.socket()
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(("127.0.0.1", self._port))
        self._connections[sock.fileno()] = _Connection(sock, self._make(), memoryview(b""))
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT)
        self._tally["connections"] += 1

    def _tick(self) -> None:
        for connection in list(self._connections.values()):
            connection.client.tick()
            if connection.client.leaves:
                self._close(connection)
            elif connection.opened:
                self._watch(connection)

    def _serve(self, connection: _Connection, events: int) -> None:
        connection.opened = True
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                data = connection.socket.recv(_READ_BYTES)
                if not data:
                    raise ConnectionResetError
                connection.client.received(data)
            self._send(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._tally["closed by the daemon"] += 1
            self._close(connection)
            return
        if connection.client.leaves:
            self._close(connection)
        else:
            self._watch(connection)

    def _send(self, connection: _Connection) -> None:
        if not connection.rest:
            connection.rest = memoryview(connection.client.next_bytes())
        if connection.rest:
            sent = connection.socket.send(connection.rest[:_WRITE_BYTES])
            connection.rest = connection.rest[sent:]
            if not connection.rest:
                connection.rest = memoryview(connection.client.next_bytes())

    def _watch(self, connection: _Connection) -> None:
        """Wait for a writable socket only if there are bytes to send."""
        if not connection.rest:
            connection.rest = memoryview(connection.client.next_bytes())
        if connection.watches_writes != bool(connection.rest):
            connection.watches_writes = bool(connection.rest)
            events = select.EPOLLIN | (select.EPOLLOUT if connection.watches_writes else 0)
            self._epoll.modify(connection.socket.fileno(), events)

    def _close(self, connection: _Connection) -> None:
        fd = connection.socket.fileno()
        self._epoll.unregister(fd)
        del self._connections[fd]
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.socket.close()
