"""What is taken of Hypercorn: the protocol machine of one connection, and its way to an app."""

from __future__ import annotations

import logging
import sys
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config

from daemon.ingress.blame import report
from daemon.ingress.http2_input import LARGEST_HEADER_LIST
from daemon.ingress.problem import Problem

if TYPE_CHECKING:
    from hypercorn.typing import AppWrapper
    from quart_trio import QuartTrio

    from daemon.ingress.stream import ClientStream


def asgi(app: QuartTrio, send_timeout: float) -> AppWrapper:
    """Return ``app`` as Hypercorn calls it; ``scope["state"]["until_due"]`` bounds its body.

    A client that does not take a part of its answer within ``send_timeout`` seconds loses its
    connection: the stream sees to that, but not where Hypercorn waits for HTTP/2's window.
    """

    async def call(scope: Any, receive: Any, send: Any, _spawn: Any, _soon: Any) -> None:  # noqa: ANN401 - ASGI's own types are a union of dicts that nobody tells apart
        stream: ClientStream = scope["state"].pop("stream")
        if scope["type"] != "http":
            stream.turn_away(Problem("NOT_FOUND", "there are no websockets here"))
            return
        stream.request_begins()
        scope["state"]["until_due"] = partial(stream.until, stream.clock.due)

        async def send_in_time(message: Any) -> None:  # noqa: ANN401 - as above
            with stream.standing.sending(), trio.move_on_after(send_timeout) as patience:
                await send(message)
            if patience.cancelled_caught:
                await stream.aclose()

        try:
            await app(scope, receive, send_in_time)
        except* Exception as group:  # noqa: BLE001 - it is logged, and Hypercorn says 500
            report(group)
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
    config.h2_max_header_list_size = LARGEST_HEADER_LIST
    return config
