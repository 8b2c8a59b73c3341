"""A TCP proxy between a client and a server, which breaks connections on command."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_PIECE: Final = 65536
_RESET: Final = struct.pack("ii", 1, 0)


class TcpProxy:
    """The proxy; its attributes may change while it runs."""

    def __init__(self, target: int) -> None:
        self.target = target
        """The port of the server."""
        self.port = 0
        self.refuses = False
        """Whether new connections are closed at once."""
        self.loses_answers = False
        """Whether what the server sends is dropped."""
        self._flowing = trio.Event()
        self._flowing.set()
        self._connections: set[tuple[trio.SocketStream, trio.SocketStream]] = set()
        self.requests = 0
        """Pieces that clients have sent."""

    def cut(self) -> None:
        """Reset all connections, and refuse new ones until ``restore``."""
        self.refuses = True
        self.reset()

    def reset(self) -> None:
        """Reset all connections."""
        for ends in self._connections:
            for end in ends:
                with suppress(OSError):
                    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.socket.close()

    def freeze(self) -> None:
        """Forward nothing, without a sign to either side, until ``restore``."""
        self._flowing = trio.Event()

    def restore(self) -> None:
        """Work again. What came meanwhile is forwarded late."""
        self.refuses = self.loses_answers = False
        self._flowing.set()

    async def _serve(self, client: trio.SocketStream) -> None:
        await self._flowing.wait()
        if self.refuses:
            await client.aclose()
            return
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await client.aclose()
            return
        ends = client, server
        self._connections.add(ends)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, client, server, False)  # noqa: FBT003
                nursery.start_soon(self._forward, server, client, True)  # noqa: FBT003
        finally:
            self._connections.discard(ends)
            with trio.CancelScope(shield=True):
                for end in ends:
                    await trio.aclose_forcefully(end)

    async def _forward(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        answers: bool,  # noqa: FBT001
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while piece := await source.receive_some(_PIECE):
                await self._flowing.wait()
                if answers and self.loses_answers:
                    continue
                if not answers:
                    self.requests += 1
                await target.send_all(piece)
        for end in (source, target):
            with suppress(OSError):
                end.socket.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def tcp_proxy(target: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy for a port of the loopback while the body runs."""
    proxy = TcpProxy(target)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, host="127.0.0.1")
        (listener,) = await nursery.start(serve, proxy._serve, 0)
        proxy.port = listener.socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()
