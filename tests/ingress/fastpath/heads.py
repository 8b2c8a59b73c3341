"""Heads of requests, and their parser, for the tests of ``fastpath/head.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.ingress.fastpath.head import HeadParser
from payloadd.ingress.fastpath.targets import Targets
from payloadd.ingress.routes import Routes

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST = b"POST /v1/payloads HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
LENGTH = b"Content-Length: 3\r\n"
PLAIN = FIRST + HOST + LENGTH + b"\r\n"
MAX = 1000
"""The largest Content-Length of a plain request, unless a test has another one."""
STREAMS = {"default": 0, "clicks": 1, "errors": 2}


def parser_of(streams: Mapping[str, int] | None = None, most: int = MAX) -> HeadParser:
    """Return a parser of heads with empty caches."""
    routes = Routes(streams)
    return HeadParser(routes, Targets(routes, b"{}"), most)
