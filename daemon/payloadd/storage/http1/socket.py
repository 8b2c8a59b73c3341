"""A TCP connection that is tried before it is waited for.

trio's own ``SocketStream`` lets other tasks run on every call, also where the kernel takes or
has the bytes at once, and asks for an answer before there can be one. That is fair in general
and costs a small PUT 15 % more CPU. Whoever sends a request waits for its answer anyway, and
lets the others run there.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Final

import trio

from payloadd.files import IOV_MAX, skip

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

_READ_BYTES: Final = 65_536


class TcpStream(trio.abc.Stream):
    """A connected socket, used by one task at a time."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Take the socket out of ``stream``, which is of no use afterwards."""
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.settimeout(0)
        self._input = select.poll()
        self._input.register(self._socket, select.POLLIN)

    async def send_all(self, data: Buffer) -> None:
        """Send everything; no checkpoint where the kernel takes all of it at once."""
        await self.send_pieces([data])

    async def send_pieces(self, pieces: Sequence[Buffer]) -> None:
        """Send all pieces one behind the other, as ``send_all`` does, and join none (writev(2))."""
        sent = self._send(pieces)
        left = sum(map(len, pieces)) - sent
        while left:
            pieces = skip(pieces, sent)
            await trio.lowlevel.wait_writable(self._socket)
            sent = self._send(pieces)
            left -= sent

    def _send(self, pieces: Sequence[Buffer]) -> int:
        """Return how many bytes the kernel takes now."""
        try:
            return self._socket.sendmsg(pieces[:IOV_MAX])
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes something."""
        await trio.lowlevel.wait_writable(self._socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what came, b"" for the end; waits first, because nothing ever comes unasked."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(max_bytes or _READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def has_input(self) -> bool:
        """Return whether there is something to read: bytes, the end, or an error."""
        return bool(self._input.poll(0))

    def close(self) -> None:
        """Close at once."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def aclose(self) -> None:
        """Close at once."""
        self.close()
        await trio.lowlevel.checkpoint()
