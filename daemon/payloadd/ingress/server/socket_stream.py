"""A connected socket, read and written with few system calls and few task switches.

``trio.SocketStream`` tries a call before it waits, and yields after each call that did not wait.
A server reads when no data is there yet and writes when there is room, and its next read yields
anyway. So this class waits before it reads and does not yield after a write.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final

import trio

if TYPE_CHECKING:
    from payloadd.ingress.server.fifo_gate import FifoGate

_CLOSE_SECONDS: Final = 2.0
"""Seconds that the end of a connection may take."""
_DISCARDED_BYTES: Final = 16 * 2**20
"""Bytes that are read and discarded at the end of a connection, at most."""
_DISCARDED_PER_READ: Final = 65_536


class NonBlockingStream:
    """The bytes of one socket.

    The methods raise ``trio.BrokenResourceError`` after the peer has closed or reset the
    connection. The socket may be closed at any time; a task that uses it afterwards gets a
    ``trio.ClosedResourceError``.
    """

    buffers: ClassVar = False
    """Whether ``pending`` may become true."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Use the socket of ``stream``."""
        self.socket = stream.socket
        self._unsent = b""

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

    async def handshake(self, fifo_gate: FifoGate) -> str | None:  # noqa: ARG002 - see TlsStream
        """Return None: without TLS there is no handshake and no protocol to agree on."""
        return None

    def handshake_bytes(self) -> int:
        """Return how many bytes of the handshake have arrived."""
        return 0

    @property
    def certificate_name(self) -> str | None:
        """The name in the client's certificate; see ``TlsStream``."""
        return None

    @property
    def pending(self) -> bool:
        """Whether data is there that the kernel does not announce: never without TLS."""
        return False

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
            await trio.lowlevel.wait_writable(self.socket)
            NonBlockingStream.send_now(self, self._unsent)

    async def send_all(self, data: bytes) -> None:
        """Send ``data``, without a time limit."""
        if not self.send_now(data):
            await self.flush()

    def send_close(self) -> None:
        """Announce the end of the connection without waiting; without TLS, do nothing."""

    async def send_eof(self) -> None:
        """Close the sending side of the connection."""
        # Not by trio's stream: the traceback of its error keeps the connection until a garbage
        # collection in Python 3.13.
        try:
            self.socket.shutdown(trio.socket.SHUT_WR)
        except OSError:
            raise trio.BrokenResourceError from None

    async def close_gracefully(self, last: bytes, *, linger: bool) -> None:
        """Send ``last``, let the client read it, and close the socket. This takes 2 s at most.

        A socket that is closed with unread input resets the connection, and the client loses the
        last answer (RFC 9112, section 9.6). So this side closes its sending side first, and reads
        and discards the input that still arrives, up to 16 MiB. ``linger``: do the same for an
        answer that was sent before.
        """
        try:
            with trio.move_on_after(_CLOSE_SECONDS):
                await self.flush()
                if last:
                    await self.send_all(last)
                if last or linger:
                    await self._discard_input()
                else:
                    self.send_close()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, or the connection was evicted
        self.socket.close()

    async def _discard_input(self) -> None:
        await self.send_eof()
        left = _DISCARDED_BYTES
        while left > 0 and (data := await self.receive_some(_DISCARDED_PER_READ)):
            left -= len(data)
