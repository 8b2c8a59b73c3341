"""What is taken of Hypercorn: the protocol machine of one connection, and its way to an app."""

from __future__ import annotations

import logging
import sys
from math import inf
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer

from daemon.ingress.blame import report
from daemon.ingress.problem import Problem

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper
    from quart_trio import QuartTrio

    from daemon.ingress.stream import ClientStream


class HypercornConnection(TCPServer):
    """Hypercorn's connection, which would outlive its client by the whole idle time."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.stream.aclose()


def asgi(app: QuartTrio, send_timeout: float) -> AppWrapper:
    """Return ``app`` as Hypercorn calls it; ``scope["state"]["due"]`` is the request's deadline.

    A client that does not take a part of its answer within ``send_timeout`` seconds loses its
    connection: the stream sees to that, but not where Hypercorn waits for HTTP/2's window.
    """

    async def call(scope: Any, receive: Any, send: Any, _spawn: Any, _soon: Any) -> None:  # noqa: ANN401 - ASGI's own types are a union of dicts that nobody tells apart
        stream: ClientStream = scope["state"].pop("stream")
        if scope["type"] != "http":
            stream.turn_away(Problem("NOT_FOUND", "there are no websockets here"))
            return
        stream.request_begins()
        scope["state"]["due"] = stream.clock.due

        answered = False

        async def send_in_time(message: Any) -> None:  # noqa: ANN401 - as above
            nonlocal answered
            if stream.http2 and message["type"] == "http.response.start":
                # The stream counts those of HTTP/1.1: Hypercorn may have answered already.
                answered = True
                stream.count(message["status"])
            with trio.move_on_after(send_timeout) as patience:
                await send(message)
            if patience.cancelled_caught:
                await stream.aclose()

        try:
            await app(scope, receive, send_in_time)
        except* Exception as group:  # noqa: BLE001 - it is logged, and Hypercorn says 500
            report(group)
            if stream.http2 and not answered:
                stream.count(500)
        finally:
            stream.request_ends()

    return cast("AppWrapper", call)


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
    return config
