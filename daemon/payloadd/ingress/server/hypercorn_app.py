"""What is taken of Hypercorn: the protocol machine of one connection, and its way to an app."""

from __future__ import annotations

import logging
import sys
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config

from payloadd.ingress.problem import Problem
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.server.http2_input import LARGEST_HEADER_LIST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import AppWrapper
    from quart_trio import QuartTrio

    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.ingress.server.activity import ConnectionActivity
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.open_requests import OpenRequests


def asgi(
    app: QuartTrio,
    send_timeout: float,
    fifo_gate: FifoGate,
    open_requests: OpenRequests,
    memory: RequestMemory | None = None,
) -> AppWrapper:
    """Return ``app`` as Hypercorn calls it; ``scope["state"]["until_due"]`` bounds its body.

    A client that does not take a part of its answer within ``send_timeout`` seconds loses its
    connection: the stream sees to that, but not where Hypercorn waits for HTTP/2's window. A
    request begins, and is answered, in its turn, and counts as open until then. Its body takes from
    ``memory``.
    """

    async def call(scope: Any, receive: Any, send: Any, _spawn: Any, _soon: Any) -> None:  # noqa: ANN401 - ASGI's own types are a union of dicts that nobody tells apart
        stream: ClientStream = scope["state"].pop("stream")
        if scope["type"] != "http":
            stream.refuse_connection(Problem("NOT_FOUND", "there are no websockets here"))
            return
        stream.request_begins()
        open_requests.count += 1
        scope["state"]["until_due"] = partial(stream.until, stream.clock.due)
        body = None
        if memory is not None:
            body = ReceivedBody(memory, receive, _content_length(scope), stream.activity)
            scope["state"]["body"] = body
            receive = body.receive

        count = Http2Count(stream).count

        async def send_in_time(message: Any) -> None:  # noqa: ANN401 - as above
            if message["type"] == "http.response.start":
                await fifo_gate.next()
                count(message["status"])
            with stream.activity.sending(), trio.move_on_after(send_timeout) as patience:
                await send(message)
            if patience.cancelled_caught:
                await stream.aclose()

        try:
            await fifo_gate.next()
            await app(scope, receive, send_in_time)
        except* Exception as group:  # noqa: BLE001 - it is logged, and Hypercorn says 500
            log_broken_connection(group)
            count(500)
        finally:
            if body is not None:
                body.release()
            open_requests.count -= 1
            stream.request_ends()

    return cast("AppWrapper", call)


class Http2Count:
    """Counts the answer of one request over HTTP/2.

    Those of HTTP/1.1 the stream counts as they go out: where a body is no HTTP, Hypercorn answers
    before the app does, and the app's answer is not sent.
    """

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream
        self._counted = False

    def count(self, status: int) -> None:
        """Count an answer with ``status``, unless there was one."""
        if self._stream.http2 and not self._counted:
            self._counted = True
            self._stream.count(status)


def _content_length(scope: Any) -> int:  # noqa: ANN401 - as above
    """Return what a request says of its body's length, 0 where it does not."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


class ReceivedBody:
    """The body of one request on its way to the app, with its memory.

    What its Content-Length says is taken before the first byte, what comes beyond it (a chunked
    body says nothing) piece by piece. Where there is none left nothing more is read; and where
    there is none for long, ``refused`` is set and whatever runs in ``reading`` is cancelled.
    """

    def __init__(
        self,
        memory: RequestMemory,
        receive: Callable[[], Awaitable[Any]],
        length: int,
        activity: ConnectionActivity,
    ) -> None:
        self._memory = memory
        self._activity = activity
        self._receive = receive
        self._length = length
        self._charge = 0
        self._watched = False
        self._begun = False
        self.reading = trio.CancelScope()
        self.refused = False
        self.since = trio.current_time()
        self.received = 0

    async def receive(self) -> Any:  # noqa: ANN401 - ASGI's own types
        """Return the next message of the request; see ASGI."""
        if not self._begun:
            self._begun = True
            await self._take(self._length)
        message = await self._receive()
        self.received += len(message.get("body", b""))
        await self._take(self.received)
        # What comes of a request that was refused is dropped: Hypercorn waits for it to be taken
        # before it can end the request.
        while self.refused and message["type"] != "http.disconnect":
            message = await self._receive()
        if not message.get("more_body") and self._watched:
            self._watched = False
            self._memory.unwatch(self)
        return message

    def end_slow(self) -> None:
        """Refuse the request: see Receiver."""
        self.refused = True
        self.reading.cancel()
        self._memory.unwatch(self)

    def release(self) -> None:
        """Give the memory back."""
        self._memory.unwatch(self)
        charge, self._charge = self._charge, 0
        self._memory.release(charge)

    async def _take(self, size: int) -> None:
        """Take what is missing to ``size`` bytes in all."""
        missing = size - self._charge
        if missing <= 0 or self.refused:
            return
        self._activity.waits_for_memory += 1
        try:
            acquired = await self._memory.acquire(missing)
        finally:
            self._activity.waits_for_memory -= 1
        if not acquired:
            self.end_slow()
            return
        self._charge = size
        if not self._watched:
            self._watched = True
            # The wait for memory is not the client's slowness.
            self.since = trio.current_time()
            self._memory.watch(self)


def make_config() -> Config:
    """Return what Hypercorn needs to know; what it does not bound, ClientStream does."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_timeout = inf  # ClientStream keeps the time
    config.keep_alive_max_requests = sys.maxsize
    config.h11_max_incomplete_size = 16 * 2**10
    # Bodies are held in memory until they are complete, and a connection is one slot.
    config.h2_max_concurrent_streams = 16
    config.h2_max_header_list_size = LARGEST_HEADER_LIST
    # Messages of a request that wait for its app: what is read runs ahead of MAX_REQUEST_BYTES.
    config.max_app_queue_size = 1
    return config
