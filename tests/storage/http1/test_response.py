"""Which bytes are a response, which are not, and how many of them are read."""

from __future__ import annotations

import httpx
import pytest

from payloadd.storage.http1.response import MOST_READ, ResponseParser

Parsed = tuple[int, list[tuple[bytes, bytes]], bytes, bool]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH_2 = [(b"Content-Length", b"2")]


def parse(*pieces: bytes, method: str = "PUT") -> Parsed:
    """Return status, headers, body and whether the connection may be kept."""
    parser = ResponseParser(method)
    left = list(pieces)
    while not parser.complete:
        parser.feed(left.pop(0) if left else b"")
    return parser.status, parser.headers, parser.body, parser.keep_alive


WHOLE = {
    "length": (OK, (200, LENGTH_2, b"ab", True)),
    "connection-close": (
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\na",
        (200, [(b"Connection", b"close"), (b"Content-Length", b"1")], b"a", False),
    ),
    "http-1.0": (
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nab",
        (200, LENGTH_2, b"ab", False),
    ),
    "until-the-end": (b"HTTP/1.1 403 No\r\nA: b\r\n\r\nab", (403, [(b"A", b"b")], b"ab", False)),
    "chunked-with-a-trailer": (
        CHUNKED + b"2;x=y\r\nab\r\n1\r\nc\r\n0\r\nTrailer: 1\r\n\r\n",
        (200, [(b"Transfer-Encoding", b"chunked")], b"abc", True),
    ),
    "interim-answers": (
        b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK,
        (200, LENGTH_2, b"ab", True),
    ),
    "204": (b"HTTP/1.1 204 No\r\nA: b\r\n\r\n", (204, [(b"A", b"b")], b"", True)),
    "304": (b"HTTP/1.1 304 No\r\nContent-Length: 2\r\n\r\n", (304, LENGTH_2, b"", True)),
    "no-reason": (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nab", (200, LENGTH_2, b"ab", True)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_response_may_be_split_at_any_byte(name: str) -> None:
    """A response in several segments would be read wrong."""
    data, expected = WHOLE[name]

    assert parse(data) == expected
    for at in range(1, len(data)):
        assert parse(data[:at], data[at:]) == expected
    assert parse(*(bytes([byte]) for byte in data)) == expected


def test_a_response_to_head_has_no_body() -> None:
    """A request would wait for a body that is never sent."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"

    assert parse(interim + OK.removesuffix(b"ab"), method="HEAD") == (200, LENGTH_2, b"", True)
    assert parse(OK, method="HEAD") == (200, LENGTH_2, b"", False)


@pytest.mark.parametrize(
    "surplus", [b"x", b"HTTP/1.1 500 No\r\nA: b\r\nContent-Length: 1\r\n\r\nz"]
)
def test_bytes_behind_a_response_end_the_connection(surplus: bytes) -> None:
    """They would be mistaken for the response to the next request."""
    assert parse(OK + surplus) == (200, LENGTH_2, b"ab", False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
)
def test_bytes_that_are_no_response_are_an_error(data: bytes) -> None:
    """An object would count as stored, or a worker would end, after bytes that are no HTTP."""
    with pytest.raises(httpx.RemoteProtocolError):
        parse(data)


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (b"HTTP/1.1 200 OK\r\nA: ", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 40),
    ],
)
def test_a_head_without_end_is_an_error(start: bytes, again: bytes) -> None:
    """A server could fill the memory, or occupy a worker for ever."""
    pieces = [start, *[again] * (2 * MOST_READ // len(again))]

    with pytest.raises(httpx.RemoteProtocolError, match="no end"):
        parse(*(piece for piece in pieces if piece))


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"HTTP/1.1 403 No\r\n\r\n", b"x" * 1000),
        (b"HTTP/1.1 403 No\r\nContent-Length: 99999999\r\n\r\n", b"x" * 1000),
        (b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 100),
        (b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 100),
    ],
)
def test_a_body_without_end_is_cut(head: bytes, again: bytes) -> None:
    """A server could fill the memory, or the beginning of an error document would be lost."""
    status, headers, body, keep_alive = parse(head, *[again] * (2 * MOST_READ // len(again)))

    assert (status, keep_alive) == (403, False)
    assert len(headers) <= 1
    assert set(body) <= set(b"x")
    assert len(body) <= MOST_READ + len(again)
