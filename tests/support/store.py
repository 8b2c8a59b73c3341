"""An S3 server in memory that can be told to fail and to lie, in every way of ``Behaviour``.

It checks no signatures; the servers of ``tests.support.s3`` do. It does what S3 does otherwise:
ETags, checksums, metadata, HEAD and GET, ``If-None-Match: *``.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import zlib
from collections import Counter, deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

import h11
import trio

from tests.support.store_behaviours import (
    ACCESS_DENIED,
    INTERNAL_ERROR,
    PRECONDITION_FAILED,
    SLOW_DOWN,
    Answer,
    Behaviour,
    Cut,
    Drip,
    Hang,
    Refusal,
    Request,
    State,
    Take,
    choose,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.support.store_behaviours import Reaction

__all__ = [
    "ACCESS_DENIED",
    "INTERNAL_ERROR",
    "SLOW_DOWN",
    "Behaviour",
    "FakeS3",
    "Refusal",
    "fake_s3",
]

_MOST_SEEN: Final = 100_000
_RECEIVE_BUFFER: Final = 65_536
_KEPT_HEADERS: Final = ("content-type", "content-encoding", "x-amz-")
_ERROR: Final = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>{}</Code><Message>{}</Message>{}<RequestId>4442587FB7D0A2F9</RequestId></Error>"
)


class Seen(NamedTuple):
    """One request that was answered, or was to be."""

    time: float
    """By trio's clock."""
    method: str
    path: str
    headers: Mapping[str, str]
    status: int
    """0: no answer."""


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class FakeS3:
    """One bucket in memory. The next request follows a change of ``behaviour``."""

    behaviour: Behaviour = "take"
    objects: dict[str, bytes] = field(default_factory=dict)
    """Bodies by the path of the URL, percent-decoded."""
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    """The headers that were stored with each object."""
    puts: Counter[str] = field(default_factory=Counter)
    """The number of stored PUTs by path."""
    requests: int = 0
    """The number of requests, failed ones included."""
    seen: deque[Seen] = field(default_factory=lambda: deque(maxlen=_MOST_SEEN))
    """The last requests, oldest first."""
    bytes_per_second: float | None = None
    """The speed of the uplink that all clients share; None: no bound."""
    port: int = 0
    _state: State = field(default_factory=State)
    _uplink_free: float = 0.0
    _nursery: trio.Nursery | None = None
    _listener: trio.CancelScope | None = None
    _hole: list[socket.socket] = field(default_factory=list)
    _listening: trio.socket.SocketType = field(init=False)
    _kept: socket.socket | None = None
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that name this server as payloadd's store."""
        return {
            "STORE_URL": "s3://bucket",
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake-secret",
        }

    def payloads(self) -> list[bytes]:
        """Return every line of every object, sorted."""
        return sorted(line for body in self.objects.values() for line in body.splitlines())

    async def wait_until_asked(self, count: int, within: float = 60.0) -> None:
        """Wait until ``count`` requests have come in since the store was made."""
        with trio.fail_after(within):
            while self.requests < count:
                await self._news.wait()

    def begin(self, behaviour: Behaviour) -> None:
        """Set the behaviour, and close the port if it is ``down`` or a ``black hole``."""
        self.behaviour = behaviour
        if behaviour in ("down", "black hole"):
            self.down()

    async def end(self) -> None:
        """Store objects again."""
        self.behaviour = "take"
        if self._listener is None:
            await self.up()

    async def up(self) -> None:
        """Listen, on the same port as before if there was a port before."""
        assert self._nursery is not None
        self.close_hole()
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        if self.bytes_per_second is not None:
            # Otherwise the kernel takes megabytes before the server reads any.
            listeners[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self.port = listeners[0].socket.getsockname()[1]
        self._listener = await self._nursery.start(self._serve, listeners)

    def down(self) -> None:
        """Close the port and every connection: the kernel refuses new connections."""
        assert self._listener is not None
        if self.behaviour == "black hole":
            # A second descriptor of the socket: between the end of the server and the black hole,
            # the port must not become another program's.
            self._kept = socket.socket(fileno=os.dup(self._listening.fileno()))
        self._listener.cancel()
        self._listener = None

    def close_hole(self) -> None:
        """Refuse connections again instead of dropping them."""
        while self._hole:
            self._hole.pop().close()

    async def _serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[trio.CancelScope],
    ) -> None:
        self._listening = listeners[0].socket
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await trio.serve_listeners(self._connection, listeners)
        if self._kept is not None:
            self._hole = _black_hole(self._kept, self.port)
            self._kept = None

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
            event = await _next_event(stream, http)
            if not isinstance(event, h11.Request):
                return
            pieces = []
            while isinstance(data := await _next_event(stream, http), h11.Data):
                pieces.append(bytes(data.data))
                await self._pass_uplink(len(data.data))
            reaction, reply = self.answer(_request_of(event, b"".join(pieces)))
            if not await _send(stream, http, reaction, reply):
                return
            http.start_next_cycle()

    def answer(self, request: Request) -> tuple[Reaction, Reply | None]:
        """Carry out a request, and return the reaction and the whole reply, if there is one."""
        known = request.path in self.objects
        reaction = choose(self.behaviour, request, self._state, known=known)
        reply = self._react(reaction, request)
        if request.method == "HEAD" and reply is not None:
            length = {"content-length": str(len(reply.body))}
            reply = reply._replace(headers=length | dict(reply.headers), body=b"")
        self._count(request, reply)
        return reaction, reply

    async def _pass_uplink(self, size: int) -> None:
        """Wait until the uplink has carried ``size`` more bytes."""
        if self.bytes_per_second is not None:
            now = trio.current_time()
            self._uplink_free = max(now, self._uplink_free) + size / self.bytes_per_second
            await trio.sleep_until(self._uplink_free)

    def _count(self, request: Request, reply: Reply | None) -> None:
        status = 0 if reply is None else reply.status
        self.seen.append(
            Seen(trio.current_time(), request.method, request.path, request.headers, status)
        )
        self.requests += 1
        self._news.set()
        self._news = trio.Event()

    def _react(self, reaction: Reaction, request: Request) -> Reply | None:
        """Store, find or delete; return the whole reply, or None for no reply."""
        match reaction:
            case Take():
                return self._take(reaction, request)
            case Drip():
                return self._react(reaction.answer, request)
            case Cut() if reaction.after:
                return self._take(Take(), request)
        if reaction.keeps and request.method == "PUT":
            self._take(Take(conditional=False), request)
        match reaction:
            case Answer():
                return Reply(reaction.status, reaction.headers, reaction.body)
            case Refusal():
                return _refuse(reaction)
        return None

    def _take(self, take: Take, request: Request) -> Reply:
        """Do as S3 does."""
        path = request.path
        if request.method == "PUT":
            return self._put(take, request)
        if request.method == "DELETE":
            self.objects.pop(path, None)
            self.metadata.pop(path, None)
            return Reply(204, {}, b"")
        if path not in self.objects:
            return _refuse(Refusal(404, "NoSuchKey"))
        body = self.objects[path]
        headers = {"etag": _etag(body), **self.metadata[path]}
        if request.headers.get("x-amz-checksum-mode") != "ENABLED":
            headers = {name: text for name, text in headers.items() if "x-amz-checksum" not in name}
        return Reply(200, headers, body)

    def _put(self, take: Take, request: Request) -> Reply:
        path, headers, body = request.path, request.headers, request.body
        if take.conditional and headers.get("if-none-match") == "*" and path in self.objects:
            return _refuse(PRECONDITION_FAILED)
        if not _is_undamaged(headers, body):
            return _refuse(Refusal(400, "BadDigest"))
        self.objects[path] = body
        self.metadata[path] = {
            name: text for name, text in headers.items() if name.startswith(_KEPT_HEADERS)
        }
        self.puts[path] += 1
        echoed = {name: text for name, text in headers.items() if "x-amz-checksum-" in name}
        etag = _etag(body) if take.etag is None else take.etag
        return Reply(200, {"etag": etag, **(echoed if take.echo else {})}, b"")


@asynccontextmanager
async def fake_s3(
    behaviour: Behaviour = "take", *, bytes_per_second: float | None = None
) -> AsyncIterator[FakeS3]:
    """Run a server on a port that the kernel chooses."""
    async with trio.open_nursery() as nursery:
        store = FakeS3(behaviour, bytes_per_second=bytes_per_second, _nursery=nursery)
        await store.up()
        yield store
        store.close_hole()
        nursery.cancel_scope.cancel()


async def _next_event(stream: trio.SocketStream, http: h11.Connection) -> h11.Event | object:
    while (event := http.next_event()) is h11.NEED_DATA:
        if http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await stream.send_all(http.send(go_on) or b"")
        http.receive_data(await stream.receive_some())
    return event


def _request_of(head: h11.Request, body: bytes) -> Request:
    headers = {name.decode("ascii"): text.decode("latin-1") for name, text in head.headers}
    path = unquote(head.target.decode().partition("?")[0])
    return Request(head.method.decode("ascii"), path, headers, body)


async def _send(
    stream: trio.SocketStream, http: h11.Connection, reaction: Reaction, reply: Reply | None
) -> bool:
    """Send a reply as the reaction wants it; returns whether the connection stays open."""
    if isinstance(reaction, Hang):
        await trio.sleep_forever()
    data = b"" if reply is None else render(reply, http)
    if isinstance(reaction, Cut):
        await stream.send_all(data[: reaction.after])
        _reset_on_close(stream)
        return False
    if isinstance(reaction, Drip):
        for start in range(0, len(data), reaction.step):
            await trio.sleep(reaction.pause)
            await stream.send_all(data[start : start + reaction.step])
    else:
        await stream.send_all(data)
    return http.our_state is h11.DONE


def render(reply: Reply, http: h11.Connection | None = None, method: str = "PUT") -> bytes:
    """Return the bytes of a reply; without ``http``, of one to a request with ``method``."""
    if http is None:
        http = h11.Connection(h11.SERVER)
        http.receive_data(f"{method} / HTTP/1.1\r\nHost: s3\r\n\r\n".encode())
        while http.next_event() is not h11.PAUSED and http.their_state is not h11.DONE:
            pass
    headers = {"date": formatdate(usegmt=True), "x-amz-request-id": "4442587FB7D0A2F9"}
    headers |= reply.headers
    if reply.status != 204:
        headers.setdefault("content-length", str(len(reply.body)))
    response = h11.Response(status_code=reply.status, headers=list(headers.items()), reason=b"")
    head = http.send(response) or b""
    body = (http.send(h11.Data(data=reply.body)) or b"") if reply.body else b""
    return head + body + (http.send(h11.EndOfMessage()) or b"")


def _refuse(refusal: Refusal) -> Reply:
    document = _ERROR.format(refusal.code, refusal.message, refusal.extra)
    headers = {"content-type": "application/xml", **refusal.headers}
    return Reply(refusal.status, headers, document.encode())


def _etag(body: bytes) -> str:
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def _is_undamaged(headers: Mapping[str, str], body: bytes) -> bool:
    """Return whether the body has the hashes that the request says."""
    md5 = hashlib.md5(body, usedforsecurity=False).digest()
    hashes = {
        "content-md5": md5,
        "x-amz-checksum-crc32": zlib.crc32(body).to_bytes(4),
        "x-amz-checksum-sha256": hashlib.sha256(body).digest(),
    }
    return all(
        headers[name] == base64.b64encode(raw).decode()
        for name, raw in hashes.items()
        if name in headers
    )


def _black_hole(listening: socket.socket, port: int) -> list[socket.socket]:
    """Return sockets while which exist the kernel drops every new connection to the port."""
    listening.listen(0)
    sockets = [listening]
    for _ in range(4):  # fills the queue of connections that wait to be accepted
        filler = socket.socket()
        filler.settimeout(0)
        filler.connect_ex(("127.0.0.1", port))
        sockets.append(filler)
    return sockets


def _reset_on_close(stream: trio.SocketStream) -> None:
    """Make the kernel send RST instead of FIN (socket(7), SO_LINGER of 0 s)."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
