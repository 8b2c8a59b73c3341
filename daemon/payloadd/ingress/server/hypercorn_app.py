"""Connect Hypercorn to an app: its configuration, and the ASGI callable that it calls."""

from __future__ import annotations

import logging
import sys
from functools import partial
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config

from payloadd.ingress.http_grammar import MAX_HEAD_BYTES
from payloadd.ingress.problem import Problem
from payloadd.ingress.routes import route_label
from payloadd.ingress.server.connection_errors import log_broken_connection
from payloadd.ingress.server.http2_input import LARGEST_HEADER_LIST
from payloadd.observe.request_metrics import PAYLOAD, PAYLOADS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.typing import AppWrapper
    from quart_trio import QuartTrio

    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.connection_state import ConnectionState
    from payloadd.ingress.server.fifo_gate import FifoGate
    from payloadd.ingress.server.open_requests import OpenRequests
    from payloadd.ingress.server.request_tasks import RequestMessages
    from payloadd.observe.request_metrics import RequestMetrics


def wrap_app(
    app: QuartTrio,
    fifo_gate: FifoGate,
    open_requests: OpenRequests,
    metrics: RequestMetrics,
    memory: RequestMemory | None = None,
) -> AppWrapper:
    """Return ``app`` as Hypercorn calls it; ``scope["state"]["until_due"]`` limits its body's time.

    A request waits at ``fifo_gate`` before it is answered, and is counted in ``open_requests``
    until then. Its body takes its memory from ``memory``, and ``metrics`` counts the bytes of the
    body.
    """

    async def call(scope: Any, receive: Any, send: Any, _spawn: Any, _soon: Any) -> None:  # noqa: ANN401 - ASGI's types are a union of dicts without a common tag
        stream: ClientStream = scope["state"].pop("stream")
        if scope["type"] != "http":
            stream.refuse_connection(Problem("NOT_FOUND", "there are no websockets here"))
            return
        route = route_label(scope["path"])
        began = perf_counter() if route in {PAYLOADS, PAYLOAD} else None
        if not stream.state.http2:
            stream.counted_as = route, began
        scope["state"]["certificate_name"] = stream.certificate_name
        scope["state"]["stated_address"] = stream.stated_address
        scope["state"]["until_due"] = partial(stream.until, stream.state.due)
        messages: RequestMessages = scope["state"].pop("messages")
        body = None
        if memory is not None:
            body = ReceivedBody(memory, receive, _content_length(scope), stream.state, metrics)
            body.messages = messages
            scope["state"]["body"] = body
            receive = body.receive

        count = _Http2AnswerCounter(stream, route, began).count

        async def send_in_time(message: Any) -> None:  # noqa: ANN401 - as above
            if message["type"] == "http.response.start":
                messages.drop_rest()
                await fifo_gate.wait_to_answer()
                count(message["status"])
            await send(message)

        try:
            await app(scope, receive, send_in_time)
        except* Exception as group:  # noqa: BLE001 - it is logged, and Hypercorn answers 500
            log_broken_connection(group)
            count(500)
        finally:
            if body is not None:
                body.release()
            open_requests.count -= 1
            stream.request_ends()

    return cast("AppWrapper", call)


class _Http2AnswerCounter:
    """Count the answer to one request over HTTP/2.

    ``ClientStream`` counts the answers of HTTP/1.1 as they are sent: if a body is invalid HTTP,
    Hypercorn answers before the app does, and the app's answer is not sent.
    """

    def __init__(self, stream: ClientStream, route: str, began: float | None) -> None:
        self._stream = stream
        self._route = route
        self._began = began
        self._counted = False

    def count(self, status: int) -> None:
        """Count an answer with ``status``, unless the request has been counted."""
        if self._stream.state.http2 and not self._counted:
            self._counted = True
            self._stream.count(status, self._route, self._began)


def _content_length(scope: Any) -> int:  # noqa: ANN401 - as above
    """Return the Content-Length of a request, 0 without that header."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


class ReceivedBody:
    """The body of one request on its way to the app, and the memory that it uses.

    The memory for the Content-Length is acquired before the first byte is read. Memory for bytes
    beyond it (a chunked body announces no length) is acquired piece by piece. While no memory is
    free, nothing more is read. If none becomes free for long, ``refused`` is set and the scope
    ``reading`` is cancelled.
    """

    def __init__(
        self,
        memory: RequestMemory,
        receive: Callable[[], Awaitable[Any]],
        length: int,
        state: ConnectionState,
        metrics: RequestMetrics,
    ) -> None:
        """Read the body from the ASGI callable ``receive``; ``length`` is its Content-Length.

        ``metrics`` counts its bytes.
        """
        self._memory = memory
        self._state = state
        self._metrics = metrics
        self._receive = receive
        self.messages: RequestMessages | None = None
        """The messages behind ``receive``."""
        self._length = length
        self._charge = 0
        """Bytes of memory that the body has acquired."""
        self._watched = False
        self._begun = False
        self.reading = trio.CancelScope()
        self.refused = False
        self.since = trio.current_time()
        self.received = 0

    def receive_whole(self) -> bytes | None:
        """Return a body that has arrived in one message, if there is memory for it; else None.

        This does not wait, so it needs no time limit.
        """
        body = None if self._begun or self.messages is None else self.messages.whole
        if self.messages is None or body is None:
            return None
        size = max(len(body), self._length)
        if not self._memory.try_acquire(size):
            return None
        self._begun = True
        self._charge = size
        self._metrics.body_bytes += len(body)
        self.messages.drop_whole()
        return body

    async def receive(self) -> Any:  # noqa: ANN401 - ASGI's own types
        """Return the next message of the request (see ASGI)."""
        if not self._begun:
            self._begun = True
            await self._acquire(self._length)
        message = await self._receive()
        size = len(message.get("body", b""))
        self._metrics.body_bytes += size
        self.received += size
        await self._acquire(self.received)
        # The rest of a refused request is dropped: Hypercorn cannot end the request before the
        # app has received it.
        while self.refused and message["type"] != "http.disconnect":
            message = await self._receive()
        if not message.get("more_body") and self._watched:
            self._watched = False
            self._memory.unwatch(self)
        return message

    def end_slow(self) -> None:
        """Refuse the request (see ``Receiver``)."""
        self.refused = True
        self.reading.cancel()
        self._memory.unwatch(self)

    def release(self) -> None:
        """Release the memory."""
        self._memory.unwatch(self)
        charge, self._charge = self._charge, 0
        self._memory.release(charge)

    async def _acquire(self, size: int) -> None:
        """Acquire memory until the body has ``size`` bytes of it."""
        missing = size - self._charge
        if missing <= 0 or self.refused:
            return
        self._state.waits_for_memory += 1
        try:
            acquired = await self._memory.acquire(missing)
        finally:
            self._state.waits_for_memory -= 1
        if not acquired:
            self.end_slow()
            return
        self._charge = size
        if not self._watched:
            self._watched = True
            # The wait for memory does not make the client slow.
            self.since = trio.current_time()
            self._memory.watch(self)


def make_hypercorn_config() -> Config:
    """Return Hypercorn's configuration; ``ClientStream`` sets the limits that it lacks."""
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_timeout = inf  # ClientStream keeps the time
    config.keep_alive_max_requests = sys.maxsize
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    # Bodies are held in memory until they are complete, and a connection is one slot.
    config.h2_max_concurrent_streams = 16
    config.h2_max_header_list_size = LARGEST_HEADER_LIST
    # Messages of a request that wait for its app. Hypercorn reads them before MAX_REQUEST_BYTES
    # is checked.
    config.max_app_queue_size = 1
    return config
