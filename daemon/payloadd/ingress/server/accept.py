"""Accept as many connections from a listening socket as are waiting.

``trio.SocketListener.accept`` yields to other tasks after each connection. With thousands of
connections in the backlog, the last one would wait for thousands of passes of the event loop.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Final, Self

import trio

from payloadd.ingress.server.http2_input import PREFACE
from payloadd.ingress.server.log_limit import LogLimit
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from types import TracebackType

log = get_logger(__name__)

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_EXHAUSTED_PAUSE: Final = 0.1
"""Seconds."""
_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_UNSENT_BYTES: Final = 2**14
"""Bytes in the kernel, not sent yet, from which on a socket is not writable; as trio sets it."""
_SHORT_WAIT: Final = struct.pack("ll", 0, 1000)
"""A millisecond as struct timeval (socket(7), SO_RCVTIMEO)."""
# Errors of the connection, not of the listener (accept(2), "Error handling").
_CONNECTION_ERRORS: Final = {
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
_PREFACE_START: Final = PREFACE[:4]
_MOST_ABANDONED: Final = 8
"""Abandoned connections that one call of ``accept_now`` closes at most."""


class Acceptor:
    """Accept connections from ``listener`` without waiting for them."""

    def __init__(self, listener: trio.SocketListener) -> None:
        """Use the socket of ``listener``, which stays open."""
        # The standard library's socket object for the same descriptor: trio's socket has no
        # non-blocking accept.
        self._socket = socket.socket(fileno=listener.socket.fileno())
        self._socket.settimeout(0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SHORT_WAIT)
        if self._socket.family != socket.AF_UNIX:
            # Linux copies these options to each accepted socket (accept(2) does not say so, but
            # the socket of the listener is cloned), which saves two system calls a connection.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT_BYTES)
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

    def set_nonblocking(self) -> None:
        """Set O_NONBLOCK; call this before each series of ``accept_now``.

        Processes that share the socket share this flag, and systemd clears it whenever it starts
        one of them (systemd.exec(5), "NonBlocking="). accept(2) would then block the event loop
        until a client connects. If the flag is cleared after this call, SO_RCVTIMEO ends the wait.
        """
        os.set_blocking(self._socket.fileno(), False)

    def accept_now(self, *, strict: bool = False) -> tuple[socket.socket, str | None] | None:
        """Return a connection and its client's IP address; None if no connection is waiting.

        With ``strict``, connections whose clients have left without a byte, or have left after the
        beginning of HTTP/2, are closed: they need no slot. The address is None for a Unix socket.
        Raises OSError if the listener is broken.
        """
        for _ in range(_MOST_ABANDONED):
            found = self._accept()
            if found is None:
                return None
            accepted, address = found
            accepted.settimeout(0)
            if not strict or not _is_abandoned(accepted):
                return accepted, address[0] if isinstance(address, tuple) else None
            accepted.close()
        return None

    def _accept(self) -> tuple[socket.socket, object] | None:
        try:
            return self._socket.accept()
        except BlockingIOError:
            return None  # the client has left, or another process was faster
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._exhausted = True
                if self._limit.allows():
                    suppressed = self._limit.suppressed()
                    log.warning("accept_failed", reason=error.strerror, suppressed=suppressed)
            elif error.errno not in _CONNECTION_ERRORS:
                raise
            return None

    async def pause_if_exhausted(self) -> None:
        """Sleep for 0.1 s if the system lacked a descriptor or memory for a connection."""
        if self._exhausted:
            self._exhausted = False
            await trio.sleep(_EXHAUSTED_PAUSE)


def has_left(descriptor: int) -> bool:
    """Return whether the client has ended its side; unlike a read, this sees it behind data."""
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))


def _is_abandoned(accepted: socket.socket) -> bool:
    try:
        beginning = accepted.recv(len(_PREFACE_START), socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True  # the client has reset the connection
    if beginning == _PREFACE_START:
        return has_left(accepted.fileno())
    return not beginning
