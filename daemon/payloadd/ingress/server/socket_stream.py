"""A connected socket, read and written with few system calls and few task switches.

``trio.SocketStream`` tries a call before it waits, and yields after each call that did not wait.
A server reads when no data is there yet and writes when there is room, and its next read yields
anyway. So this class waits before it reads and does not yield after a write.
"""

from __future__ import annotations

import os
import socket
from fcntl import ioctl
from struct import unpack
from termios import FIONREAD
from typing import TYPE_CHECKING, ClassVar, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE_SECONDS: Final = 2.0
"""Seconds that the end of a connection may take, unless its client goes on sending."""
MOST_DISCARDED: Final = 64 * 2**20
"""Bytes that are read and discarded at the end of a connection, at most."""
_DISCARDED_PER_READ: Final = 65_536


class NonBlockingStream:
    """The bytes of one socket.

    The methods raise ``trio.BrokenResourceError`` after the peer has closed or reset the
    connection. The socket may be closed at any time; a task that uses it afterwards gets a
    ``trio.ClosedResourceError``.
    """

    __slots__ = ("_unsent", "accepted", "awaited", "socket")

    buffers: ClassVar = False
    """Whether ``pending`` may become true."""

    def __init__(self, connected: socket.socket) -> None:
        """Use a connected socket, which must not block."""
        self.socket = connected
        self._unsent = b""
        self.awaited = False
        """Whether a task has waited for the socket: trio then has to know when it is closed."""
        self.accepted = False
        """Whether the connection was accepted just now: its first bytes are probably there."""

    async def receive_some(self, max_bytes: int) -> bytes:
        """Wait for data and return up to ``max_bytes`` of it; b"" at the end of the input."""
        while True:
            await self._wait_readable()
            data = self.receive_now(max_bytes)
            if data is not None:
                return data

    async def _wait_readable(self) -> None:
        """Wait until the socket may have data.

        Raises ``trio.ClosedResourceError`` if this side has closed the socket: trio raises it
        only for a task that was already waiting.
        """
        if self.socket.fileno() < 0:
            raise trio.ClosedResourceError("this side has closed the connection")
        self.awaited = True
        await trio.lowlevel.wait_readable(self.socket)

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Return received data, b"" at the end of the input, None if there is none yet.

        This is no checkpoint.
        """
        try:
            return os.read(self.socket.fileno(), max_bytes)
        except BlockingIOError:
            return None  # the kernel discarded a packet after it had announced it
        except OSError as error:
            raise trio.BrokenResourceError from error

    @property
    def pending(self) -> bool:
        """Whether to read without waiting until the kernel announces input."""
        return self.accepted

    def send_now(self, data: bytes) -> bool:
        """Send as much of ``data`` as there is room for; return whether that was all.

        ``flush`` sends the rest; call it before you send more. This is no checkpoint.
        """
        try:
            sent = os.write(self.socket.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise trio.BrokenResourceError from error
        self._unsent = data[sent:]
        return not self._unsent

    def send_more(self) -> bool:
        """Send more of what ``send_now`` had no room for; return whether that was the rest."""
        return NonBlockingStream.send_now(self, self._unsent)

    def drop_unsent(self) -> None:
        """Forget what ``send_now`` had no room for."""
        self._unsent = b""

    async def flush(self) -> None:
        """Send the bytes that ``send_now`` had no room for, without a time limit.

        After a cancellation, a later call continues where this call stopped.
        """
        while self._unsent:
            if self.socket.fileno() < 0:
                raise trio.ClosedResourceError("this side has closed the connection")
            self.awaited = True
            await trio.lowlevel.wait_writable(self.socket)
            NonBlockingStream.send_now(self, self._unsent)

    async def send_all(self, data: bytes) -> None:
        """Send ``data``, without a time limit."""
        if not self.send_now(data):
            await self.flush()

    def send_close(self) -> None:
        """Announce the end of the connection without waiting; without TLS, do nothing."""

    @property
    def is_sent(self) -> bool:
        """Whether all bytes of ``send_now`` are sent."""
        return not self._unsent

    @property
    def unread(self) -> int:
        """The number of bytes that the kernel has received and that are not read yet."""
        (unread,) = unpack("i", ioctl(self.socket.fileno(), FIONREAD, b"\0\0\0\0"))
        return int(unread)

    def send_eof(self) -> None:
        """Close the sending side of the connection, after all bytes are sent."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            raise trio.BrokenResourceError from None

    def shut_down(self) -> bool:
        """Close the sending side if all bytes are sent; return whether it is closed."""
        if self._unsent:
            return False
        self.send_eof()
        return True

    def close(self) -> None:
        """Close the socket; a task that waits for it gets a ``trio.ClosedResourceError``."""
        if self.awaited and self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
        self.socket.close()

    def discard_now(self) -> int | None:
        """Read and discard some input; return its length, 0 at the end, None if there is none."""
        data = NonBlockingStream.receive_now(self, _DISCARDED_PER_READ)
        return None if data is None else len(data)

    async def close_gracefully(
        self, last: bytes, *, linger: bool, waits: Callable[[], bool] = lambda: False
    ) -> None:
        """Send ``last``, let the client read it, and close the socket.

        A socket that is closed with unread input resets the connection, and the client loses the
        last answer (RFC 9112, section 9.6). So this side closes its sending side first, and reads
        and discards the input that still arrives, up to 64 MiB: for 2 s, and longer while ``waits``
        returns True and the client sends. ``linger``: do the same for an answer that was sent
        before.
        """
        try:
            with trio.move_on_after(CLOSE_SECONDS) as time_limit:
                await self.flush()
                if last:
                    await self.send_all(last)
                if last or linger:
                    await self._discard_input(waits, time_limit)
                else:
                    self.send_close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, or the connection was evicted
        self.close()

    async def _discard_input(self, waits: Callable[[], bool], time_limit: trio.CancelScope) -> None:
        self.send_close()
        await self.flush()
        self.send_eof()
        left = MOST_DISCARDED
        while left > 0 and (data := await self.receive_some(_DISCARDED_PER_READ)):
            left -= len(data)
            if waits():
                time_limit.deadline = trio.current_time() + CLOSE_SECONDS
