"""A request in the three forms it has: for httpx, with a prepared head, and as it is sent."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httpx

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence


_COUNTED_BYTES: Final = 65_536


class WireRequest(NamedTuple):
    """A request as it is sent."""

    method: str
    head: bytes
    """Request line, header lines, and the empty line that ends them."""
    body: Sequence[bytes]
    write_timeout: float | None
    """Seconds that sending each 256 KiB may take; None: the caller has a timeout of its own."""
    read_timeout: float | None
    """Seconds that the whole response may take; None as above."""


class PieceBody(httpx.AsyncByteStream):
    """The body of a request or a response whose pieces are all in memory.

    httpx's own streams are async generators. A broken or cancelled write leaves such a generator to
    the garbage collector, about which trio warns. Our transport reads ``pieces`` and does not
    iterate: two iterations for each small PUT were measurable.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._left: Iterator[bytes] = iter(())

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._left = iter(self.pieces)
        return self

    async def __anext__(self) -> bytes:
        for piece in self._left:
            return piece
        raise StopAsyncIteration


class CountedBody(PieceBody):
    """A body for transports of httpx that counts its bytes, for :mod:`.progress`.

    The socket of such a transport is not known, so a byte counts once the kernel has accepted it:
    when the transport asks for the piece behind it.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__(pieces)
        self.sent = 0
        self._passed = 0
        """Bytes of the piece that the transport is sending."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._left = _small(self.pieces)
        self._passed = 0
        return self

    async def __anext__(self) -> bytes:
        self.sent += self._passed
        self._passed = 0
        piece = await super().__anext__()
        self._passed = len(piece)
        return piece

    def fileno(self) -> int:
        """Return -1: the socket is not known."""
        return -1


def _small(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the bytes of all pieces in pieces of at most 64 KiB, so that progress is seen."""
    for piece in pieces:
        if len(piece) <= _COUNTED_BYTES:
            yield piece
            continue
        for start in range(0, len(piece), _COUNTED_BYTES):
            yield piece[start : start + _COUNTED_BYTES]


class PreparedRequest(httpx.Request):
    """An ``httpx.Request`` that is made from the bytes of its head.

    To let httpx parse the headers and to join them again was measurable in a small PUT. Our
    transport sends ``wire``; any other transport of httpx reads ``headers``, which parses the head.
    """

    def __init__(
        self,
        method: str,
        url: httpx.URL,
        target: bytes,
        head: bytes,
        body: PieceBody,
        timeout: Mapping[str, float | None],
    ) -> None:
        """Make a request for ``target`` to the server of ``url``.

        ``head`` is the request line with the target, all header lines, Host and Content-Length
        included, and the empty line. Nothing is checked: the caller makes sure that no header has a
        line break in it.
        """
        self.method = method
        self.url = url
        self.wire = WireRequest(method, head, body.pieces, timeout["write"], timeout["read"])
        self.stream = body
        self._target = target
        self._timeout = timeout

    @cached_property
    def extensions(self) -> dict[str, Any]:  # type: ignore[override]  # httpx sets it
        """The target as it is sent, and the timeouts, for transports of httpx.

        httpx would remove `.` and `..` from a path, and S3 keys may contain them.
        """
        return {"target": self._target, "timeout": self._timeout}

    @cached_property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # httpx sets it
        """The headers as an object of httpx."""
        lines = self.wire.head.split(b"\r\n")[1:-2]
        parts = [line.partition(b": ") for line in lines]
        return httpx.Headers([(name, text) for name, _, text in parts])


async def wire_request(request: httpx.Request) -> WireRequest:
    """Return a request of httpx as it is sent.

    Raises httpx.LocalProtocolError for a head that the server would read as another request.
    """
    stream = request.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - httpx's own rule
    timeout = request.extensions.get("timeout", {})
    body = stream.pieces if isinstance(stream, PieceBody) else [piece async for piece in stream]
    return WireRequest(
        request.method, _head(request), body, timeout.get("write"), timeout.get("read")
    )


def _head(request: httpx.Request) -> bytes:
    """Return request line and headers; the extension ``target`` is sent as it is.

    Raises httpx.LocalProtocolError, as :func:`wire_request` does.
    """
    target: bytes = request.extensions.get("target", request.url.raw_path)
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), target)]
    lines += map(b": ".join, request.headers.raw)
    head = b"\r\n".join([*lines, b"", b""])
    breaks = len(lines) + 1
    if head.count(b"\n") != breaks or head.count(b"\r") != breaks or b" " in target:
        raise httpx.LocalProtocolError("a line break in a header, or a space in the target")
    if b"\r\ntransfer-encoding:" in head.lower():
        raise httpx.LocalProtocolError("a body without Content-Length")
    return head
