"""Look at the progress of an upload from outside, while it waits.

The kernel accepts megabytes at once and sends them when the line allows, so only the bytes that the
server has acknowledged are progress. The kernel is asked for them when the progress is looked at:
nothing is noted while they move.
"""

from __future__ import annotations

import fcntl
import struct
import termios
from contextvars import ContextVar
from typing import Protocol


class Sending(Protocol):
    """A connection, or the body of a request, that counts the bytes that were sent."""

    sent: int
    """Bytes that the kernel has accepted so far."""

    def fileno(self) -> int:
        """Return the file descriptor of the socket; -1 if it is closed or not known."""


class Progress:
    """The progress of the requests of one task, one after the other."""

    __slots__ = ("_before", "_seen", "_stream")

    def __init__(self) -> None:
        self._stream: Sending | None = None
        self._before = 0
        """Bytes that the stream had sent before this request."""
        self._seen = 0

    def begin(self, stream: Sending) -> None:
        """Note that a request is about to be sent over ``stream``."""
        self._stream = stream
        self._before = stream.sent
        self._seen = 0

    def sent(self) -> int:
        """Return the bytes of the request that the server has acknowledged, its head included."""
        stream = self._stream
        if stream is None:
            return 0
        return max(0, stream.sent - self._before - unacknowledged(stream))

    def has_moved(self) -> bool:
        """Return whether bytes were acknowledged since the last call."""
        before, self._seen = self._seen, self.sent()
        return self._seen > before


watched_progress: ContextVar[Progress | None] = ContextVar("watched_progress", default=None)
"""The progress of the requests of this task; None if it is not watched."""


def unacknowledged(stream: Sending) -> int:
    """Return the bytes that the kernel has and the peer has not acknowledged (tcp(7), SIOCOUTQ).

    0 for a closed socket, and for one that has no such number.
    """
    try:
        return int(struct.unpack("i", fcntl.ioctl(stream.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except (OSError, ValueError):
        return 0
