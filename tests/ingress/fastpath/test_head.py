"""Heads of requests: what is read from them, and which are refused."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.fastpath.head import FastPathRequest, Http2Error, Special
from payloadd.ingress.fastpath.targets import PATHS
from payloadd.ingress.http_grammar import MAX_HEAD_BYTES
from payloadd.ingress.problem import Problem
from payloadd.ingress.submission import PostHeaders
from tests.ingress.fastpath.heads import FIRST, HOST, LENGTH, MAX, PLAIN, STREAMS, parser_of

if TYPE_CHECKING:
    from payloadd.ingress.fastpath.head import HeadParser


def parse(data: bytes) -> FastPathRequest | None:
    """Return the request of a head, parsed without a cache."""
    return parser_of(STREAMS).parse(data)


def special(data: bytes) -> Special:
    """Return the unusual properties of a request."""
    request = parse(data)
    assert request is not None
    assert request.special is not None
    return request.special


def test_a_plain_request_is_parsed() -> None:
    """Otherwise the body would be cut at the wrong offset, or its headers be lost."""
    head = (
        FIRST
        + b"HOST: x\r\nconnection: Keep-Alive\r\nCONTENT-TYPE:\tapplication/json \r\n"
        + b"Content-Encoding: gzip\r\nIdempotency-Key: k\r\nX: \xff\r\nContent-Length: 3\r\n\r\n"
    )
    request = parse(head + b"abc")
    assert request is not None
    assert (request.start, request.end) == (len(head), len(head) + 3)
    assert request.headers == PostHeaders("application/json", "gzip", "k")
    assert (request.special, request.has_body, request.route) == (None, True, "payloads")


@pytest.mark.parametrize("method", [b"POST", b"PUT"])
@pytest.mark.parametrize("path", [b"payloads", b"payload"])
@pytest.mark.parametrize("stream", ["", "/default", "/clicks", "/errors"])
@pytest.mark.parametrize("slash", [b"", b"/"])
def test_all_spellings_of_the_paths_are_plain(
    method: bytes, path: bytes, stream: str, slash: bytes, parser: HeadParser
) -> None:
    """Otherwise a client would pay ten times the cost for a trailing slash or a PUT."""
    target = path + stream.encode() + slash
    data = PLAIN.replace(b"POST", method).replace(b"payloads", target)
    assert all(parser.parse(data[:size]) is None for size in range(len(data)))
    request = parser.parse(data)
    assert request is not None
    assert request.special is None
    assert request.headers.document is (path == b"payload")
    name = stream[1:] or "default"
    assert request.headers.stream == (name, STREAMS[name])


def test_a_missing_header_differs_from_an_empty_one() -> None:
    """Otherwise an empty Idempotency-Key, which is a 400, would be accepted."""
    request = parse(PLAIN.replace(b"\r\n\r\n", b"\r\nIdempotency-Key:\r\n\r\n"))
    assert request is not None
    assert request.headers == PostHeaders(None, None, "")


@pytest.mark.parametrize("data", [b"", b"G", PLAIN[:-1], PLAIN[:-4], FIRST, b"PRI * HTTP/2.0\r"])
def test_more_of_an_incomplete_head_is_awaited(data: bytes) -> None:
    """Otherwise a request in two segments would be refused."""
    assert parse(data) is None


@pytest.mark.parametrize(
    "head",
    [
        b"\r\n", b" ", b"\x16\x03\x01", FIRST + b"Host: x\nA", FIRST + b"x" * MAX_HEAD_BYTES,
        b"\r\n" + PLAIN, b"\r\n\r\n", PLAIN.replace(b" HTTP", b"  HTTP"),
        PLAIN.replace(b"HTTP/1.1", b"HTTP/2.0"), PLAIN.replace(b"HTTP/1.1", b"http/1.1"),
        PLAIN.replace(b" HTTP/1.1", b""), PLAIN.replace(b"/v1", b"v1"),
        PLAIN.replace(b"POST", b"PO(T"), PLAIN.replace(b"/v1", b"/v1\xff"),
        FIRST + LENGTH + b"\r\n", FIRST + HOST * 2 + LENGTH + b"\r\n",
        FIRST + HOST + HOST.lower() + LENGTH + b"\r\n", FIRST + b"Host: a b\r\n\r\n",
        FIRST + HOST + LENGTH * 2 + b"\r\n", PLAIN.replace(b": 3", b": -3"),
        PLAIN.replace(b": 3", b": +3"), PLAIN.replace(b": 3", b": 3, 3"),
        PLAIN.replace(b": 3", b": 0x3"), PLAIN.replace(b": 3", b": \xb2"),
        PLAIN.replace(b": 3", b": "), PLAIN.replace(b": 3", b": " + b"0" * 5000 + b"3"),
        PLAIN.replace(b": 3", b": 99999999999999999999"), PLAIN.replace(b": 3", b": 3 3"),
        PLAIN.replace(b"Host: x", b"Host: x\r\n y"), PLAIN.replace(b"Host: x", b"Host:\r\n\tx"),
        PLAIN.replace(b"x\r\n", b"x\n"), PLAIN.replace(b"x", b"x\r"), PLAIN.replace(b"x", b"\0"),
        PLAIN.replace(b"Host:", b"Host :"), PLAIN.replace(b"Host: x", b"Host: x\r\ny"),
        *(
            FIRST + HOST + line + b"\r\n\r\n"
            for line in (
                b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"transfer-encoding: identity",
                b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, chunked",
                b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"Transfer-Encoding:",
                b"X: " + b"y" * MAX_HEAD_BYTES,
            )
        ),
        FIRST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)  # fmt: skip
def test_what_two_parsers_may_read_differently_is_refused(head: bytes) -> None:
    """Otherwise a request could be smuggled past a proxy, or wait for bytes that never come."""
    with pytest.raises(Problem) as raised:
        parse(head)
    assert raised.value.code == "MALFORMED"


def test_the_preface_of_http2_is_recognized() -> None:
    """Otherwise clients of HTTP/2 without TLS would be refused."""
    with pytest.raises(Http2Error):
        parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (PLAIN.replace(b"1.1", b"1.0"), Special(closes=True)),
        (PLAIN.replace(b"1.1", b"1.0").replace(HOST, b""), Special(closes=True)),
        (
            PLAIN.replace(b"1.1", b"1.0").replace(b"Host", b"Connection: Keep-Alive\r\nHost"),
            Special(keeps=True),
        ),
        (PLAIN.replace(b"Host", b"Connection: x,\tClose\r\nHost"), Special(closes=True)),
        (
            PLAIN.replace(b"Host", b"Connection: x\r\nConnection: close\r\nHost"),
            Special(closes=True),
        ),
        (PLAIN.replace(b"Content-Length: 3", b"Transfer-Encoding: CHUNKED"), Special(chunked=True)),
        (PLAIN.replace(b"Host", b"Expect: 100-Continue\r\nHost"), Special(expects=True)),
        (
            PLAIN.replace(b"1.1", b"1.0").replace(b"Host", b"Expect: 100-continue\r\nHost"),
            Special(closes=True),
        ),
        (PLAIN.replace(b": 3", b": 1001"), Special()),
    ],
)
def test_unusual_properties_of_a_post_are_known(head: bytes, expected: Special) -> None:
    """Otherwise its connection would be kept or closed against the client's wish."""
    assert special(head) == expected


@pytest.mark.parametrize(
    "head",
    [
        PLAIN.replace(b"1.1", b"1.2"), PLAIN.replace(b"/v1", b"http://x/v1"),
        PLAIN.replace(b"payloads", b"payloads?x"), PLAIN.replace(b"payload", b"%70ayload"),
        PLAIN.replace(b"POST", b"post"), PLAIN.replace(b"Host", b"Upgrade: h2c\r\nHost"),
        PLAIN.replace(b"Host", b"Connection: upgrade\r\nUpgrade: websocket\r\nHost"),
        PLAIN.replace(b"Host", b"X: 1\r\nX: 2\r\nHost"), PLAIN.replace(b"Host: x", b"Host:"),
        FIRST + HOST + b"\r\n", PLAIN.replace(b": 3", b": 003"),
        PLAIN.replace(b"Host", b"Connection: keep-alive, te\r\nTE: trailers\r\nHost"),
        PLAIN.replace(b"Host", b"Expect: x\r\nTrailer: X\r\nHost"),
    ],
)  # fmt: skip
def test_other_spellings_of_a_post_are_plain(head: bytes) -> None:
    """Otherwise they would be refused, or cost more."""
    request = parse(head)
    assert request is not None
    assert request.special is None
    assert request.headers.stream == ("default", 0)


def test_lines_of_one_header_are_joined() -> None:
    """Otherwise the last line alone would count, and the other way in would read another value."""
    lines = b"Content-Type: a \r\nX-Forwarded-For: 1\r\ncontent-type:\tb\r\nx-forwarded-for: 2\r\n"
    request = parse(FIRST + HOST + lines + b"\r\n")
    assert request is not None
    assert (request.headers.content_type, request.headers.x_forwarded_for) == ("a, b", "1, 2")


@pytest.mark.parametrize("path", PATHS)
def test_the_answers_of_all_paths_are_known(path: str) -> None:
    """Otherwise a documented path would be a 404."""
    for method in (b"GET", b"HEAD", b"OPTIONS", b"BREW"):
        target = path.replace("{stream}", "clicks").encode()
        reply = special(b"%b %b HTTP/1.1\r\nHost: x\r\n\r\n" % (method, target)).reply
        assert reply is not None
        if callable(reply):
            assert reply().code == "METHOD_NOT_ALLOWED"
        else:
            assert reply.status in {200, 204}


@pytest.mark.parametrize("length", [0, MAX])
def test_the_smallest_and_the_largest_body_are_plain(length: int) -> None:
    """Otherwise the largest allowed body would go to Hypercorn, or be refused."""
    request = parse(PLAIN.replace(b": 3", b": %d" % length))
    assert request is not None
    assert request.end - request.start == length


@given(st.binary(max_size=60), st.integers(0, len(PLAIN)), st.integers(0, 5))
def test_any_bytes_can_be_parsed(inserted: bytes, position: int, removed: int) -> None:
    """Otherwise an unforeseen head would end the connection with a 500."""
    data = PLAIN[:position] + inserted + PLAIN[position + removed :]
    with suppress(Problem, Http2Error):
        request = parse(data)
        assert request is None or request.start <= request.end


def test_a_long_head_is_plain(parser: HeadParser) -> None:
    """Otherwise a client with many cookies would be served by Hypercorn alone."""
    for size in (500, 900, 5000):
        head = PLAIN.replace(b"Host", b"Cookie: %s\r\nHost" % (b"c" * size))
        for _ in range(2):
            request = parser.parse(head)
            assert request is not None
            assert request.start == len(head)
