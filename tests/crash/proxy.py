"""A proxy in front of S3 that observes every PUT of a batch and can act on it.

It stands between the daemon and SeaweedFS, and observes two moments of a PUT: its head has arrived
(the batch is sealed and not stored yet), and the server has stored the object (the daemon does not
know). It can also answer 500 after the object is stored.
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

from tests.crash.bucket import is_watermark
from tests.crash.wire import GONE, connect, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.crash.wire import Headers, Wire
    from tests.support.s3 import S3Server


class Moment(Enum):
    """The moments of a PUT that the proxy observes."""

    SEEN = "the proxy has received its head"
    STORED = "the server has stored it, the daemon has no answer yet"


@dataclass
class Trap:
    """Calls ``spring`` when the next PUT reaches ``moment``."""

    moment: Moment
    spring: Callable[[], None]
    sprung: trio.Event
    key: str = ""
    """Bucket and key of that PUT, afterwards."""


class Proxy:
    """Forwards every request to ``server``."""

    def __init__(self, server: S3Server) -> None:
        self._server = server
        self._upstream = urlsplit(server.endpoint).port or 0
        self._port = 0
        self._trap: Trap | None = None
        self.fails_after_storing = False
        """Whether to answer 500 to every PUT that the server has stored."""
        self.failed_after_storing = 0
        self.refuses_batches = False
        """Whether to answer 500 to every PUT but those of watermarks, which stores nothing."""
        self._watermark_stored = trio.Event()
        self._answering = trio.Event()
        self._answering.set()

    @property
    def environ(self) -> dict[str, str]:
        """The variables that make payloadd use the server through this proxy."""
        return {**self._server.environ, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._port}"}

    def arm(self, moment: Moment, spring: Callable[[], None]) -> Trap:
        """Set a trap instead of the former one."""
        self._trap = Trap(moment, spring, trio.Event())
        return self._trap

    def disarm(self) -> None:
        """Remove the trap."""
        self._trap = None

    def hold_answers(self) -> None:
        """Answer no PUT of a batch until ``release_answers``; the server stores it all the same."""
        self._answering = trio.Event()

    def release_answers(self) -> None:
        """Answer all PUTs."""
        self._answering.set()

    async def wait_for_watermark(self, daemon: trio.Process, within: float) -> None:
        """Return once the server has stored another watermark, or after ``within`` seconds.

        It does not wait for a daemon that has ended.
        """
        self._watermark_stored = trio.Event()
        with trio.move_on_after(within):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, daemon.wait, nursery.cancel_scope)
                await self._watermark_stored.wait()
                nursery.cancel_scope.cancel()

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
            while await self._forward_request(wire) and wire.again():
                pass
        except GONE:
            return  # the tests kill the daemon or the server
        finally:
            wire.close()

    async def _forward_request(self, wire: Wire) -> bool:
        """Forward one request and its answer; returns whether the connection may be used again."""
        head = await wire.head()
        if not isinstance(head, h11.Request):
            return False
        key = unquote(head.target.decode()).lstrip("/")
        of_watermark = is_watermark(key)
        is_put = head.method == b"PUT"
        if is_put and not of_watermark:
            self._spring_trap(Moment.SEEN, key)
        # If the daemon was just killed, the proxy may get the whole body or a part.
        sent = await wire.body()
        if is_put and self.refuses_batches and not of_watermark:
            await wire.answer(500, [], _INTERNAL_ERROR)
            return True
        status, headers, body = await self._ask(head, sent)
        if is_put and status == _OK and of_watermark:
            self._watermark_stored.set()
        if is_put and status == _OK and wire.peer_is_there():
            if not of_watermark:
                self._spring_trap(Moment.STORED, key)
            if self.fails_after_storing:
                self.failed_after_storing += 1
                status, headers, body = 500, [], _INTERNAL_ERROR
        if is_put and not of_watermark:
            await self._answering.wait()
        await wire.answer(status, headers, body)
        return True

    def _spring_trap(self, moment: Moment, key: str) -> None:
        trap = self._trap
        if trap is not None and trap.moment is moment:
            self._trap = None
            trap.spring()
            trap.key = key
            trap.sprung.set()

    async def _ask(self, head: h11.Request, body: bytes) -> tuple[int, Headers, bytes]:
        """Return the server's answer, from a connection of its own.

        The headers are those that the client has to see, such as the ETag.
        """
        headers = [(name.decode(), text.decode()) for name, text in head.headers]
        upstream = await connect(self._upstream)
        try:
            await upstream.request(head.method.decode(), head.target.decode(), headers, body)
            answer = await upstream.head()
            if answer is None or isinstance(answer, h11.Request):
                raise trio.BrokenResourceError("the server hung up")
            dropped = _OF_ONE_CONNECTION - ({"content-length"} if head.method == b"HEAD" else set())
            lines = [(name.decode(), text.decode("latin-1")) for name, text in answer.headers]
            kept = [(name, text) for name, text in lines if name not in dropped]
            return answer.status_code, kept, await upstream.body()
        finally:
            upstream.close()


async def _cancel_after(wait: Callable[[], Awaitable[object]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()


@asynccontextmanager
async def s3_proxy(server: S3Server) -> AsyncIterator[Proxy]:
    """Run a proxy in front of ``server``, on a port of the kernel's choice."""
    proxy = Proxy(server)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()


_OK: Final = 200
_OF_ONE_CONNECTION: Final = frozenset({"connection", "content-length", "transfer-encoding"})
_INTERNAL_ERROR: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>InternalError</Code><Message>It is stored.</Message></Error>"
)
