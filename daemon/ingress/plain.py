"""The lane for plain requests, in front of Hypercorn.

Hypercorn and Quart spend 1.6 ms on a request, most of it on what a plain POST does not
need. A connection starts here: while its requests are plain (``POST /v1/payloads HTTP/1.1``,
one Content-Length within bounds, nothing about transfer codings, upgrades or expectations,
no second request behind the first) they are read with llhttp and answered by the same door
in one write. At the first that is anything else, be it wrong, the bytes that were read go
back in front of the stream and Hypercorn has the connection for good. So there is nothing
here to get wrong about HTTP: when in doubt, it is handed over.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

import httptools
import trio

from daemon.ingress.door import PostHeaders, accepted
from daemon.ingress.problem import Problem

if TYPE_CHECKING:
    from daemon.ingress.door import Door
    from daemon.ingress.stream import ClientStream
    from daemon.metrics import Metrics

_READ_BYTES: Final = 65_536
_LONGEST_HEAD: Final = 16 * 2**10
_TARGET: Final = b"/v1/payloads"

# What a plain request may have, once each; and the names that make it another kind of request.
_KNOWN: Final = frozenset(
    {b"host", b"connection", b"content-length", b"content-type", b"content-encoding",
     b"idempotency-key"}
)  # fmt: skip
_FOREIGN: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings"}
)


class _Head:
    """Collects what llhttp finds in a head."""

    __slots__ = ("headers", "plain", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.plain = True

    def on_url(self, url: bytes) -> None:
        """Take the target as it was sent."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header line."""
        name = name.lower()
        if name in _KNOWN:
            self.plain = self.plain and name not in self.headers
            self.headers[name] = value
        elif name in _FOREIGN:
            self.plain = False


class _NotPlainError(Exception):
    """The body is shorter than the head says, or there is something behind it."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data


class PlainRequest:
    """A plain request's head: its headers, and where its body starts and ends."""

    __slots__ = ("end", "headers", "start")

    def __init__(self, headers: PostHeaders, start: int, end: int) -> None:
        self.headers = headers
        self.start = start
        self.end = end


def parse_head(data: bytes, start: int, max_length: int) -> PlainRequest | None:
    """Return the request whose head is ``data[:start]``, None if it is not plain."""
    head = data[:start]
    # A line that is folded, or ends in a bare LF: llhttp and h11 might not agree on those.
    if head.count(b"\n") != head.count(b"\r\n") or b"\n " in head or b"\n\t" in head:
        return None
    found = _Head()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    headers = found.headers
    length = headers.get(b"content-length", b"")
    if not (
        found.plain
        and found.target == _TARGET
        and parser.get_method() == b"POST"
        and parser.get_http_version() == "1.1"
        and b"host" in headers
        and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        and length.isdigit()
        and len(length) <= len(str(max_length))
        and int(length) <= max_length
    ):
        return None
    post = PostHeaders(
        _text(headers, b"content-type"),
        _text(headers, b"content-encoding"),
        _text(headers, b"idempotency-key"),
    )
    return PlainRequest(post, start, start + int(length))


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


class PlainLane:
    """Answers plain requests."""

    def __init__(self, door: Door, metrics: Metrics) -> None:
        self._door = door
        self._count = metrics.count_request
        self._second = 0
        self._date = b""

    async def run(self, stream: ClientStream) -> bool:
        """Serve a connection; returns whether Hypercorn has to go on with it."""
        while True:
            data, request = await self._read_head(stream)
            if request is None:
                stream.hand_over(data)
                return bool(data)
            due = stream.request_begins()
            try:
                body = await self._read_body(stream, data, request, due)
            except _NotPlainError as error:
                stream.hand_over(error.data, due - stream.request_timeout)
                return True
            try:
                await self._answer(stream, request, body)
            finally:
                stream.request_ends()

    async def _read_head(self, stream: ClientStream) -> tuple[bytes, PlainRequest | None]:
        """Return what was read and the request in it; None for one that is not plain."""
        data = await stream.receive_some(_READ_BYTES)
        while (start := data.find(b"\r\n\r\n")) < 0:
            more = b"" if len(data) > _LONGEST_HEAD else await stream.receive_some(_READ_BYTES)
            if not more:
                return data, None
            data += more
        start += 4
        if start > _LONGEST_HEAD:
            return data, None
        return data, parse_head(data, start, self._door.max_length)

    async def _read_body(
        self, stream: ClientStream, data: bytes, request: PlainRequest, due: float
    ) -> bytes | None:
        """Return the body, None if it is not there by ``due``; raises _NotPlainError."""
        if len(data) == request.end:
            return data[request.start :]
        pieces, size = [data], len(data)
        with trio.move_on_at(due):
            while size < request.end and (piece := await stream.receive_some(_READ_BYTES)):
                pieces.append(piece)
                size += len(piece)
            data = b"".join(pieces)
            if size != request.end:
                raise _NotPlainError(data)
            return data[request.start :]
        return None

    async def _answer(
        self, stream: ClientStream, request: PlainRequest, body: bytes | None
    ) -> None:
        door = self._door
        try:
            if body is None:
                raise door.too_slow()
            door.check(request.headers)
            receipt = await door.take(request.headers, body)
        except Problem as problem:
            closes = door.closing or body is None
            self._count(problem.status)
            await stream.send_answer(problem.raw(close=closes), closes=closes)
        else:
            self._count(202)
            await stream.send_answer(self._accepted(accepted(receipt)), closes=door.closing)

    def _accepted(self, body: bytes) -> bytes:
        now = int(time.time())
        if now != self._second:
            # Written once a second: it costs as much as the rest of the answer.
            self._second, self._date = now, formatdate(now, usegmt=True).encode("ascii")
        return (
            b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\ndate: %s\r\n%s\r\n%s"
            % (len(body), self._date, b"connection: close\r\n" if self._door.closing else b"", body)
        )
