"""An S3 server in memory that fails on command: it refuses, hangs, closes connections, or is down.

It checks no signatures; the servers of ``tests.support.s3`` do. Only this one can fail at once, in
one way at a time.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote

import h11
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True, slots=True)
class Refusal:
    """Respond to every request with this status and an error document with this code."""

    status: int
    code: str


Behaviour = Refusal | Literal["take", "hang", "reset", "take and reset", "down"]

ACCESS_DENIED: Final = Refusal(403, "AccessDenied")
SLOW_DOWN: Final = Refusal(503, "SlowDown")
INTERNAL_ERROR: Final = Refusal(500, "InternalError")


@dataclass
class FakeS3:
    """One bucket in memory. The next request follows a change of ``behaviour``."""

    behaviour: Behaviour = "take"
    objects: dict[str, bytes] = field(default_factory=dict)
    """Bodies by the path of the URL, percent-decoded."""
    puts: Counter[str] = field(default_factory=Counter)
    """The number of stored PUTs by path."""
    requests: int = 0
    """The number of requests, failed ones included."""
    port: int = 0
    _nursery: trio.Nursery | None = None
    _listener: trio.CancelScope | None = None
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that name this server as payloadd's store."""
        return {
            "STORE_URL": "s3://bucket",
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake-secret",
        }

    def payloads(self) -> list[bytes]:
        """Return every line of every object, sorted."""
        return sorted(line for body in self.objects.values() for line in body.splitlines())

    async def wait_until_asked(self, count: int, within: float = 30.0) -> None:
        """Wait until ``count`` requests have come in since the store was made."""
        with trio.fail_after(within):
            while self.requests < count:
                await self._news.wait()

    def begin(self, behaviour: Behaviour) -> None:
        """Set the behaviour, and close the port if it is ``down``."""
        self.behaviour = behaviour
        if behaviour == "down":
            self.down()

    async def end(self) -> None:
        """Store objects again."""
        self.behaviour = "take"
        if self._listener is None:
            await self.up()

    async def up(self) -> None:
        """Listen, on the same port as before if there was a port before."""
        assert self._nursery is not None
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._listener = await self._nursery.start(self._serve, listeners)

    def down(self) -> None:
        """Close the port and every connection: the kernel refuses new connections."""
        assert self._listener is not None
        self._listener.cancel()
        self._listener = None

    async def _serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[trio.CancelScope],
    ) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        """Respond to requests until the client or the behaviour ends the connection."""
        try:
            await self._answer_all(stream, h11.Connection(h11.SERVER))
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass  # the daemon may close the connection at any time
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer_all(self, stream: trio.SocketStream, http: h11.Connection) -> None:
        while True:
            request = await _next_event(stream, http)
            if not isinstance(request, h11.Request):
                return
            body = b""
            while isinstance(event := await _next_event(stream, http), h11.Data):
                body += event.data
            self._count()
            answer = await self._decide(stream, request, body)
            if answer is None:
                return
            await stream.send_all(_render(http, *answer))
            if http.our_state is not h11.DONE:
                return
            http.start_next_cycle()

    def _count(self) -> None:
        self.requests += 1
        self._news.set()
        self._news = trio.Event()

    async def _decide(
        self, stream: trio.SocketStream, request: h11.Request, body: bytes
    ) -> tuple[int, bytes] | None:
        """Return status and body of the response; None: no response, and the connection ends."""
        behaviour = self.behaviour
        if isinstance(behaviour, Refusal):
            return behaviour.status, _ERROR % behaviour.code.encode()
        if behaviour == "hang":
            await trio.sleep_forever()
        if behaviour in ("take", "take and reset"):
            self._take(request, body)
        if behaviour in ("reset", "take and reset"):
            _reset_on_close(stream)
            return None
        return 204 if request.method == b"DELETE" else 200, b""

    def _take(self, request: h11.Request, body: bytes) -> None:
        path = unquote(request.target.decode())
        if request.method == b"PUT":
            self.objects[path] = body
            self.puts[path] += 1
        elif request.method == b"DELETE":
            self.objects.pop(path, None)


_ERROR: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>%s</Code><Message>The test says so.</Message></Error>"
)


@asynccontextmanager
async def fake_s3(behaviour: Behaviour = "take") -> AsyncIterator[FakeS3]:
    """Run a server on a port that the kernel chooses."""
    async with trio.open_nursery() as nursery:
        store = FakeS3(behaviour, _nursery=nursery)
        await store.up()
        yield store
        nursery.cancel_scope.cancel()


async def _next_event(stream: trio.SocketStream, http: h11.Connection) -> h11.Event | object:
    while (event := http.next_event()) is h11.NEED_DATA:
        if http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await stream.send_all(http.send(go_on) or b"")
        http.receive_data(await stream.receive_some())
    return event


def _render(http: h11.Connection, status: int, body: bytes) -> bytes:
    length = [("Content-Length", str(len(body)))] if status != 204 else []
    head = http.send(h11.Response(status_code=status, headers=length, reason=b""))
    return (
        (head or b"")
        + (http.send(h11.Data(data=body)) or b"")
        + (http.send(h11.EndOfMessage()) or b"")
    )


def _reset_on_close(stream: trio.SocketStream) -> None:
    """Make the kernel send RST instead of FIN (socket(7), SO_LINGER of 0 s)."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
