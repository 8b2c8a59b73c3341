"""A TCP connection that calls the kernel first, and waits only if the kernel is not ready.

trio's own ``SocketStream`` lets other tasks run in every call, also where the kernel accepts or has
the bytes at once, and reads before a response can be there. That is fair in general, and was
measurable in the CPU time of a small PUT. Here other tasks run while a request waits for its
response.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Final

import trio

from payloadd.files import IOV_MAX, skip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.storage.http1.poller import InputPoller

BytesLike = bytes | bytearray | memoryview

_READ_BYTES: Final = 65_536


class TcpStream(trio.abc.Stream):
    """A connected socket, used by one task at a time."""

    def __init__(self, stream: trio.SocketStream, poller: InputPoller) -> None:
        """Take the socket out of ``stream``, which must not be used afterwards.

        Raises OSError if the system can poll no more sockets.
        """
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.settimeout(0)
        self.sent = 0
        """Bytes that the kernel has accepted so far."""
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poller = poller
        try:
            self._input = poller.watch(self._socket)
        except OSError:
            self._socket.close()
            raise
        self._may_have_more = False
        """Whether the last read has returned all that it may: there may be more input."""

    async def send_all(self, data: BytesLike) -> None:
        """Send everything, without a checkpoint if the kernel accepts all of it at once.

        Raises trio.BrokenResourceError.
        """
        await self.send_pieces([data])

    async def send_pieces(self, pieces: Sequence[BytesLike]) -> None:
        """Send all pieces, one behind the other, without joining them (sendmsg(2)).

        No checkpoint if the kernel accepts all of them at once. Raises trio.BrokenResourceError.
        """
        sent = self._send(pieces)
        left = sum(map(len, pieces)) - sent
        while left:
            pieces = skip(pieces, sent)
            await trio.lowlevel.wait_writable(self._socket)
            sent = self._send(pieces)
            left -= sent

    def _send(self, pieces: Sequence[BytesLike]) -> int:
        """Return the number of bytes that the kernel accepts now."""
        try:
            sent = self._socket.sendmsg(pieces[:IOV_MAX])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self.sent += sent
        return sent

    def fileno(self) -> int:
        """Return the file descriptor; -1 of a closed socket."""
        return self._socket.fileno()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel accepts bytes."""
        await trio.lowlevel.wait_writable(self._socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes and return them; b"" at the end. Raises trio.BrokenResourceError.

        It waits before it reads, because a response has never arrived yet when it is called, unless
        the last read may have left input. Raises trio.ClosedResourceError on a closed socket, too.
        """
        most = max_bytes or _READ_BYTES
        while True:
            if not self._may_have_more:
                await self._input.wait()
            try:
                data = self._socket.recv(most)
            except BlockingIOError:  # all that was reported has been read already
                self._may_have_more = False
                await trio.lowlevel.checkpoint()
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            else:
                self._may_have_more = len(data) == most
                return data

    def has_input(self) -> bool:
        """Return whether a read would return at once: bytes, the end, or an error."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Close at once; a second call does nothing."""
        if self._socket.fileno() >= 0:
            self._poller.unwatch(self._socket)
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Close at once; a second call does nothing."""
        self.close()
        await trio.lowlevel.checkpoint()
