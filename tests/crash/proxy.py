"""An S3 proxy of the tests: it sees every PUT come and go, and can be told to act on it.

It stands between the daemon and SeaweedFS. What it observes are the borders of the promise:
a PUT's head has arrived (so the batch is sealed, and not stored yet); the server has stored
the object (and the daemon does not know). It can also lie: 500, after the object is stored.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import h11
import trio

from tests.crash.wire import GONE, connect, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.crash.wire import Wire
    from tests.support.s3 import S3Server


class Moment(Enum):
    """What can be seen of a PUT from outside."""

    SEEN = "its head has arrived"
    STORED = "the server has stored it, the answer is held back"


@dataclass
class Trap:
    """Waits for the next PUT's ``moment``, and calls ``spring`` at once when it comes."""

    moment: Moment
    spring: Callable[[], None]
    sprung: trio.Event
    key: str = ""
    """Bucket and key of the PUT that came, once it is sprung."""


class Proxy:
    """Passes everything on to ``server``, from a port of its own."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._upstream = urlsplit(server.endpoint).port or 0
        self._port = 0
        self._trap: Trap | None = None
        self.lies = False
        """Answer 500 to every PUT that was stored."""
        self.lied = 0

    @property
    def environ(self) -> dict[str, str]:
        """The variables that point payloadd at the server, through here."""
        return {**self._server.environ, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._port}"}

    def arm(self, moment: Moment, spring: Callable[[], None]) -> Trap:
        """Set a trap; the one before it is taken away."""
        self._trap = Trap(moment, spring, trio.Event())
        return self._trap

    def disarm(self) -> None:
        """Take the trap away."""
        self._trap = None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen until cancelled."""
        async with trio.open_nursery() as nursery:
            listeners: list[trio.SocketListener] = await nursery.start(
                partial(trio.serve_tcp, self._connection, 0, host="127.0.0.1")
            )
            self._port = listeners[0].socket.getsockname()[1]
            task_status.started()

    async def _connection(self, stream: trio.SocketStream) -> None:
        wire = serve(stream)
        try:
            while await self._pass_one_on(wire) and wire.again():
                pass
        except GONE:
            return  # the daemon was killed, or the server: what this is about
        finally:
            wire.close()

    async def _pass_one_on(self, wire: Wire) -> bool:
        """Pass one request on and its answer back; returns whether the connection may go on."""
        head = await wire.head()
        if not isinstance(head, h11.Request):
            return False
        key = unquote(head.target.decode()).lstrip("/")
        is_put = head.method == b"PUT"
        if is_put:
            self._see(Moment.SEEN, key)
        # If the daemon has just been killed, the network may have had all of it, or not.
        status, body = await self._ask(head, await wire.body())
        if is_put and status == _OK and wire.peer_is_there():
            self._see(Moment.STORED, key)
            if self.lies:
                self.lied += 1
                status, body = 500, _INTERNAL_ERROR
        await wire.answer(status, body)
        return True

    def _see(self, moment: Moment, key: str) -> None:
        trap = self._trap
        if trap is not None and trap.moment is moment:
            self._trap = None
            trap.spring()
            trap.key = key
            trap.sprung.set()

    async def _ask(self, head: h11.Request, body: bytes) -> tuple[int, bytes]:
        """Return the server's answer; its connection is not used again."""
        headers = [(name.decode(), text.decode()) for name, text in head.headers]
        upstream = await connect(self._upstream)
        try:
            await upstream.request(head.method.decode(), head.target.decode(), headers, body)
            answer = await upstream.head()
            if answer is None or isinstance(answer, h11.Request):
                raise trio.BrokenResourceError("the server hung up")
            return answer.status_code, await upstream.body()
        finally:
            upstream.close()


@asynccontextmanager
async def s3_proxy(server: S3Server) -> AsyncIterator[Proxy]:
    """Run one on a kernel port in front of ``server``."""
    proxy = Proxy(server)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()


_OK: Final = 200
_INTERNAL_ERROR: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>InternalError</Code><Message>It is stored.</Message></Error>"
)
