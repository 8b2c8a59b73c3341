"""A connection whose socket the fast path polls: what it waits for, and its end."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, TypeVarTuple

import trio

from payloadd.ingress.server.client_connection import do_nothing
from payloadd.ingress.server.connection_errors import log_broken_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.owner import Owner
    from payloadd.ingress.server.client_stream import ClientStream

Ts = TypeVarTuple("Ts")

# What a connection waits for.
INPUT: Final = 0
COMMIT: Final = 1
"""The request is submitted and has no outcome yet, or has to be stored before its answer."""
UPLOAD: Final = 2
"""The request is accepted, and is answered after its upload (``Prefer: wait``)."""
TURN: Final = 3
"""Memory for a body, or a later pass of the event loop."""
ROOM: Final = 4
"""Room in the socket's buffer for the rest of an answer."""


class PolledConnection(ABC):
    """One connection; ``on_leave`` is called when it leaves the fast path."""

    __slots__ = (
        "_awaits", "_bulk", "_events", "_fast_path", "_fd", "_left", "_on_leave", "_stream",
    )  # fmt: skip

    def __init__(
        self, fast_path: Owner, stream: ClientStream, on_leave: Callable[[ClientStream], object]
    ) -> None:
        """Poll the socket for input. Raises OSError if no more sockets can be polled."""
        self._fast_path = fast_path
        self._stream = stream
        self._on_leave = on_leave
        self._fd = stream.socket.fileno()
        self._awaits = INPUT
        self._events = select.EPOLLIN
        """The events for which the socket is polled, 0 for none."""
        self._bulk = False
        """Whether a body is being received that takes more than one read."""
        self._left = False
        fast_path.register(self._fd, self)
        stream.on_end = self._leave

    @abstractmethod
    def on_readable(self) -> None:
        """Handle an event of the socket; must not raise."""

    def await_input(self, *, bulk: bool = False) -> None:
        """Read when the socket has input; ``bulk``: it is part of a large body."""
        self._awaits = INPUT
        self._poll(select.EPOLLIN, bulk=bulk)

    def await_memory(self) -> None:
        """Read nothing until there is memory for a body."""
        self._awaits = TURN
        self._poll(0)

    def _is_gone(self) -> bool:
        """Return whether the client has reset the connection, so that it gets no answer."""
        if self._stream.socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._stream.socket, 0)  # errors are reported in any case
        return bool(poll.poll(0))

    def _run_guarded(self, step: Callable[[*Ts], object], *arguments: *Ts) -> None:
        """Call ``step``; a lost client, or a bug, ends this connection and no other."""
        try:
            step(*arguments)
        except trio.BrokenResourceError:
            self._leave()
        except Exception as error:  # noqa: BLE001 - it is logged
            log_broken_connection(ExceptionGroup("on the fast path", [error]))
            self._leave()

    def _poll(self, events: int, *, bulk: bool = False) -> None:
        """Poll the socket for other events; 0: for none. Raises OSError."""
        if self._left or (events == self._events and bulk is self._bulk):
            return
        if self._events:
            self._events = 0
            self._fast_path.unregister(self._fd, bulk=self._bulk)
        if events:
            self._fast_path.register(self._fd, self, events, bulk=bulk)
        self._events, self._bulk = events, bulk

    def _pass_to_hypercorn(self, data: bytes) -> None:
        """Leave the connection to Hypercorn, which reads ``data`` before the socket."""
        self._stream.state.note_received(data)
        self._stream.pass_to_hypercorn(data)
        self._leave()

    def _leave(self) -> None:
        """Leave the fast path."""
        if not self._left:
            self._left = True
            if self._events:
                self._fast_path.unregister(self._fd, bulk=self._bulk)
            self._stream.on_end = do_nothing
            self._on_leave(self._stream)
