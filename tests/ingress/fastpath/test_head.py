"""Which requests are plain: pure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.fastpath.head import MAX_HEAD_BYTES, may_become_plain, parse
from payloadd.ingress.submission import PostHeaders

FIRST = b"POST /v1/payloads HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
LENGTH = b"Content-Length: 3\r\n"
PLAIN = FIRST + HOST + LENGTH + b"\r\n"
MAX = 1000


def test_a_plain_request() -> None:
    """The body would be cut in the wrong place, or its headers be lost."""
    head = (
        FIRST
        + b"HOST: x\r\nconnection: Keep-Alive\r\nCONTENT-TYPE:\tapplication/json \r\n"
        + b"Content-Encoding: gzip\r\nIdempotency-Key: k\r\nX: \xff\r\nContent-Length: 3\r\n\r\n"
    )
    request = parse(head + b"abc", MAX)
    assert request is not None
    assert (request.start, request.end) == (len(head), len(head) + 3)
    assert request.headers == PostHeaders("application/json", "gzip", "k")


def test_headers_that_are_not_there() -> None:
    """An empty header is not the same as none: one is a 400, the other is not."""
    request = parse(PLAIN.replace(b"\r\n\r\n", b"\r\nIdempotency-Key:\r\n\r\n"), MAX)
    assert request is not None
    assert request.headers == PostHeaders(None, None, "")


@pytest.mark.parametrize(
    "head",
    [
        b"", PLAIN[:-1], PLAIN[:-4],
        PLAIN.replace(b"POST", b"PUT"), PLAIN.replace(b"POST", b"post"),
        PLAIN.replace(b"1.1", b"1.0"), PLAIN.replace(b"/v1", b"http://x/v1"),
        PLAIN.replace(b"payloads", b"payloads?x"), b"\r\n" + PLAIN,
        FIRST + LENGTH + b"\r\n", FIRST + HOST + b"\r\n",
        FIRST + HOST * 2 + LENGTH + b"\r\n", FIRST + HOST + LENGTH * 2 + b"\r\n",
        FIRST + HOST + HOST.lower() + LENGTH + b"\r\n",
        PLAIN.replace(b": 3", b": 1001"), PLAIN.replace(b": 3", b": -3"),
        PLAIN.replace(b": 3", b": +3"), PLAIN.replace(b": 3", b": 3, 3"),
        PLAIN.replace(b": 3", b": 0x3"), PLAIN.replace(b": 3", b": \xb2"),
        PLAIN.replace(b": 3", b": "), PLAIN.replace(b": 3", b": " + b"0" * 5000 + b"3"),
        PLAIN.replace(b"Host: x", b"Host: x\r\n y"), PLAIN.replace(b"Host: x", b"Host:\r\n\tx"),
        PLAIN.replace(b"x\r\n", b"x\n"), PLAIN.replace(b"x", b"x\r"), PLAIN.replace(b"x", b"\0"),
        PLAIN.replace(b"Host:", b"Host :"), PLAIN.replace(b"Host: x", b"Host: x\r\ny"),
        *(
            FIRST + HOST + LENGTH + line + b"\r\n\r\n"
            for line in (
                b"Transfer-Encoding: chunked", b"transfer-encoding: identity", b"Expect: x",
                b"Upgrade: h2c", b"TE: trailers", b"Trailer: X", b"HTTP2-Settings: x",
                b"Connection: close", b"Connection: keep-alive, upgrade",
                b"X: " + b"y" * MAX_HEAD_BYTES,
            )
        ),
    ],
)  # fmt: skip
def test_what_is_not_plain(head: bytes) -> None:
    """The lane would answer what only Hypercorn knows how to."""
    assert parse(head, MAX) is None


@pytest.mark.parametrize("length", [0, MAX])
def test_the_bounds_of_a_body(length: int) -> None:
    """The largest body that is allowed would take the slow way, or be refused."""
    request = parse(PLAIN.replace(b": 3", b": %d" % length), MAX)
    assert request is not None
    assert request.end - request.start == length


def test_every_beginning_of_a_plain_head_may_become_one() -> None:
    """A connection whose first segment is short would be Hypercorn's for good."""
    assert [may_become_plain(PLAIN[:size]) for size in range(len(PLAIN))] == [True] * len(PLAIN)
    assert not may_become_plain(PLAIN)


@pytest.mark.parametrize(
    "data",
    [b"G", b"\r\n", b"PRI * HTTP/2.0\r\n", FIRST + b"Host: x\nA", FIRST + b"x" * MAX_HEAD_BYTES],
)
def test_what_cannot_become_plain(data: bytes) -> None:
    """The lane would wait for bytes that never come, and hold what comes without a bound."""
    assert not may_become_plain(data)


@given(st.binary(max_size=60), st.integers(0, len(PLAIN)), st.integers(0, 5))
def test_any_bytes_in_any_place(junk: bytes, place: int, gone: int) -> None:
    """A head that nobody thought of would end the connection with a bug's 500."""
    data = PLAIN[:place] + junk + PLAIN[place + gone :]
    may_become_plain(data)
    request = parse(data, MAX)
    assert request is None or request.start <= request.end <= request.start + MAX


def test_a_head_that_was_read_before() -> None:
    """A client would get what another one's head says, or what a larger MAX_LENGTH allowed."""
    for _ in range(2):
        for length in (1, 2, MAX):
            head = PLAIN.replace(b": 3", b": %d" % length)
            request = parse(head + b"x", MAX)
            assert request is not None
            assert (request.start, request.end) == (len(head), len(head) + length)
            assert parse(head, length - 1) is None


def test_a_long_head() -> None:
    """A client with many cookies would be served by Hypercorn alone."""
    for size in (500, 900, 5000):
        head = PLAIN.replace(b"Host", b"Cookie: %s\r\nHost" % (b"c" * size))
        for _ in range(2):
            request = parse(head, MAX)
            assert request is not None
            assert request.start == len(head)
