"""New connections, taken from a listening socket as many at a time as there are.

``trio.SocketListener.accept`` yields to other tasks after each connection. When thousands wait
in the backlog, the last one would wait for thousands of passes of the event loop.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

import trio

from payloadd.ingress.server.log_limit import LogLimit
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from types import TracebackType

log = get_logger(__name__)

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_EXHAUSTED_PAUSE: Final = 0.1
_SHORT_WAIT: Final = struct.pack("ll", 0, 1000)
"""A millisecond as struct timeval (socket(7), SO_RCVTIMEO)."""
# Errors of the connection that waited, not of the listener (accept(2), "Error handling").
_OF_THE_CLIENT: Final = {
    errno.ECONNABORTED,
    errno.EINTR,
    errno.EPERM,
    errno.EPROTO,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENONET,
}


class Acceptor:
    """Takes connections from ``listener`` without waiting for them."""

    def __init__(self, listener: trio.SocketListener) -> None:
        # The standard library's socket object for the listener's own descriptor: trio's has no
        # accept that does not wait.
        self._socket = socket.socket(fileno=listener.socket.fileno())
        self._socket.settimeout(0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SHORT_WAIT)
        self._exhausted = False
        self._limit = LogLimit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.detach()

    def begin(self) -> None:
        """Prepare for some calls of ``next``.

        Processes that share the socket share its O_NONBLOCK flag, and systemd clears it whenever it
        starts one of them (systemd.exec(5), "NonBlocking="): a call of accept(2) would wait for a
        client while nothing else runs. Where the flag is cleared behind this, SO_RCVTIMEO ends it.
        """
        os.set_blocking(self._socket.fileno(), False)

    def next(self) -> tuple[trio.SocketStream, str | None] | None:
        """Return a connection and its client's IP address, None if there is none to be had.

        The address is None for a Unix socket. Raises OSError if the listener is broken.
        """
        try:
            accepted, address = self._socket.accept()
        except BlockingIOError:
            return None  # the client has left, or another process was faster
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._exhausted = True
                if self._limit.allows():
                    suppressed = self._limit.suppressed()
                    log.warning("accept_failed", reason=error.strerror, suppressed=suppressed)
            elif error.errno not in _OF_THE_CLIENT:
                raise
            return None
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
        return stream, address[0] if isinstance(address, tuple) else None

    async def recover(self) -> None:
        """Wait a moment if the system had no descriptor or memory for a connection."""
        if self._exhausted:
            self._exhausted = False
            await trio.sleep(_EXHAUSTED_PAUSE)
