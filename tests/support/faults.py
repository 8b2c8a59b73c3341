"""An HTTP/1.1 server with scripted faults, which a real S3 server shows only rarely.

A script is a function from the head of a request to the behaviour for it. The server runs in the
test's event loop and keeps every request in ``requests``, in the order of arrival.

    async with fault_server(in_turn(Answer(503), Answer(200))) as server:
        ... server.url ... server.requests
"""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

_CHUNK: Final = 65536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s


@dataclass
class Request:
    """A request; ``body`` is the part of its body that was read."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """Read the request, answer, and keep or close the connection."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False


STORED: Final = Answer(200, headers={"etag": '"0"'})
"""The least that confirms a PUT."""


@dataclass(frozen=True)
class Raw:
    """Read the request, send these bytes unchanged, and close the connection."""

    data: bytes


@dataclass(frozen=True)
class Reset:
    """Read at least ``after`` bytes of the body, then reset the connection (RST)."""

    after: int = 0


@dataclass(frozen=True)
class Hang:
    """Read at least ``after`` bytes of the body, then wait until the client closes."""

    after: int = 0


@dataclass(frozen=True)
class Slow:
    """Read the body in steps of ``step`` bytes with ``pause`` seconds between, then answer."""

    step: int
    pause: float
    answer: Answer = STORED


Behaviour = Answer | Raw | Reset | Hang | Slow


def in_turn(*behaviours: Behaviour) -> Callable[[Request], Behaviour]:
    """Return a script that uses each behaviour once, in order, and then repeats the last one."""
    left = list(behaviours)

    def script(_request: Request) -> Behaviour:
        return left.pop(0) if len(left) > 1 else left[0]

    return script


@dataclass
class FaultServer:
    """A running server: its port, its script (which may be changed at any time), its requests."""

    port: int
    script: Callable[[Request], Behaviour]
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def fault_server(script: Callable[[Request], Behaviour]) -> AsyncIterator[FaultServer]:
    """Run a server that follows ``script``; its connections are closed after the body."""
    async with trio.open_nursery() as nursery:
        server = FaultServer(0, script)
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, partial(_connection, server), 0, host="127.0.0.1")
        )
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def _connection(server: FaultServer, stream: trio.SocketStream) -> None:
    server.connections += 1
    try:
        async with stream:
            reader = _Reader(stream)
            while (request := await reader.head()) is not None:
                server.requests.append(request)
                if not await _behave(server.script(request), request, reader):
                    return
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return  # many tests make the client close early


async def _behave(behaviour: Behaviour, request: Request, reader: _Reader) -> bool:
    """Behave as scripted; returns whether the connection stays open."""
    match behaviour:
        case Answer() as answer:
            await reader.body(request)
            return await _send(reader.stream, answer)
        case Raw(data):
            await reader.body(request)
            await reader.stream.send_all(data)
        case Reset(after):
            await reader.body(request, upto=after)
            reader.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        case Hang(after):
            await reader.body(request, upto=after)
            await trio.sleep_forever()
        case Slow(step, pause, answer):
            await reader.body(request, step=step, pause=pause)
            return await _send(reader.stream, answer)
    return False


async def _send(stream: trio.SocketStream, answer: Answer) -> bool:
    headers = {"content-length": str(len(answer.body)), **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {text}" for name, text in headers.items())]
    head = "\r\n".join([*lines, "", ""]).encode("latin-1")
    await stream.send_all(head + answer.body)
    return not answer.close


class _Reader:
    """Reads heads, and bodies with a Content-Length, of requests."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def head(self) -> Request | None:
        """Return the next request without its body; None when the client has closed."""
        while b"\r\n\r\n" not in self._buffer:
            chunk = await self.stream.receive_some(_CHUNK)
            if not chunk:
                return None
            self._buffer += chunk
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _version = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        return Request(method, target, {name.lower(): text.strip() for name, text in pairs})

    async def body(
        self, request: Request, upto: int | None = None, step: int = _CHUNK, pause: float = 0
    ) -> None:
        """Read the body, or at least ``upto`` bytes of it, into ``request.body``."""
        length = int(request.headers.get("content-length", "0"))
        wanted = length if upto is None else min(upto, length)
        while len(request.body) < wanted:
            chunk = self._buffer or await self.stream.receive_some(step)
            if not chunk:
                raise trio.BrokenResourceError("the client went in the middle of its body")
            taken = chunk[: length - len(request.body)]
            request.body += taken
            self._buffer = chunk[len(taken) :]
            await trio.sleep(pause)
