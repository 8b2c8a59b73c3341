"""Heads of plain requests."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.auth import token_digest
from payloadd.ingress.fastpath import head
from payloadd.ingress.fastpath.head import (
    MAX_HEAD_BYTES,
    FastPathRequest,
    HeadParser,
    Http2Error,
    Special,
)
from payloadd.ingress.fastpath.targets import PATHS, Targets
from payloadd.ingress.problem import Problem
from payloadd.ingress.routes import Routes
from payloadd.ingress.submission import PostHeaders

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FIRST = b"POST /v1/payloads HTTP/1.1\r\n"
HOST = b"Host: x\r\n"
LENGTH = b"Content-Length: 3\r\n"
PLAIN = FIRST + HOST + LENGTH + b"\r\n"
MAX = 1000
STREAMS = {"default": 0, "clicks": 1, "errors": 2}


def parser_of(streams: Mapping[str, int] | None = None, most: int = MAX) -> HeadParser:
    """Return a parser of heads with empty caches."""
    routes = Routes(streams)
    return HeadParser(routes, Targets(routes, b"{}"), most)


@pytest.fixture
def parser() -> HeadParser:
    """Return a parser of heads with empty caches."""
    return parser_of(STREAMS)


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


def test_a_head_of_another_stream_is_another_head(parser: HeadParser) -> None:
    """The cache would put the payloads of one stream among those of another."""
    token = b"Authorization: Bearer x\r\nHost"
    for plain in (PLAIN, PLAIN.replace(b"Host", token)):
        for read in (parser.parse, parser.parse_with_secret):
            for name in (*STREAMS, *STREAMS):
                request = read(plain.replace(b"payloads", f"payloads/{name}".encode()))
                assert request is not None
                assert request.headers.stream.number == STREAMS[name]


def test_parsers_with_other_streams_share_no_cache() -> None:
    """A daemon with other streams in the same process would get their numbers."""
    data = PLAIN.replace(b"payloads", b"payloads/clicks")
    numbers = []
    for streams in ({"clicks": 7}, {"clicks": 8}):
        request = parser_of(streams).parse(data)
        assert request is not None
        numbers.append(request.headers.stream.number)
    assert numbers == [7, 8]
    request = parser_of().parse(data)
    assert request is not None
    assert request.headers.stream.number < 0


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


def test_a_cached_head_depends_on_its_bytes_and_max_length(parser: HeadParser) -> None:
    """Otherwise a client would get the head of another one, or the limit of another MAX_LENGTH."""
    for _ in range(2):
        for length in (1, 2):
            head = PLAIN.replace(b": 3", b": %d" % length)
            request = parser.parse(head + b"x")
            assert request is not None
            assert (request.start, request.end) == (len(head), len(head) + length)
            smaller = parser_of(most=length - 1).parse(head)
            assert smaller is not None
            assert smaller.special == Special()


@pytest.mark.parametrize(
    "line",
    [
        b"Authorization: Bearer hunter2", b"PROXY-AUTHORIZATION:Basic hunter2",
        b"aUTHORIZATION:\t hunter2 ", b"AuThOrIzAtIoN: hunter2", b"Proxy-Authorization: hunter2",
        b"authorization: hunter2\xff", b"authorization: hunter2\tx", b"authorizatioN: hunter2",
        b"Authorization: hunter2\r\nProxy-authorization: hunter2",
        b"Authorization: " + b"hunter2" * 300,
    ],
)  # fmt: skip
def test_a_head_with_a_secret_is_plain_and_its_secret_is_not_cached(
    line: bytes, parser: HeadParser
) -> None:
    """Otherwise tokens would stay in memory after their requests, or make requests slow."""
    keys = cached_heads(parser)
    secret = PLAIN.replace(b"Host", line + b"\r\nIdempotency-Key: k\r\nHost")
    for _ in range(2):
        request = parser.parse(secret + b"abc")
        assert request is not None
        assert (request.start, request.end) == (len(secret), len(secret) + 3)
        assert request.headers == PostHeaders(None, None, "k")
        assert parser.parse_with_secret(secret + b"abc") == request
    assert b"hunter2" not in b"".join(keys())


def test_the_cache_is_seen(parser: HeadParser) -> None:
    """Otherwise the tests of secrets would prove nothing."""
    keys = cached_heads(parser)
    parser.parse(PLAIN)
    assert keys() == [PLAIN]


def test_requests_with_secrets_are_remembered_within_a_bound(
    monkeypatch: pytest.MonkeyPatch, parser: HeadParser
) -> None:
    """Clients with ever new tokens would fill the memory; others would be parsed again."""
    monkeypatch.setattr(head, "_MOST_HEADS", 3)
    data = PLAIN
    for token in range(9):
        data = PLAIN.replace(b"Host", b"Authorization: Bearer %d\r\nHost" % token)
        assert parser.parse_with_secret(data) is parser.parse_with_secret(data)
    assert len(parser._with_secrets) == 3
    assert all(len(digest) == 32 for digest in parser._with_secrets)


def test_heads_that_differ_in_a_token_are_parsed_once(parser: HeadParser) -> None:
    """Otherwise each request with a token would cost a parse."""
    for token in range(9):
        assert parser.parse(PLAIN.replace(b"Host", b"Authorization: Bearer %d\r\nHost" % token))
    assert parser._read_cached.cache_info().currsize == 1
    assert parser.parse(PLAIN) is parser.parse(PLAIN)


@pytest.mark.parametrize(
    ("lines", "token"),
    [
        (b"Authorization: bearer a\r\nauthorization: bearer b\r\n", b""),
        (b"Authorization:\r\nauthorization: bearer b\r\n", b""),
        (b"Authorization: bearer a\r\nauthorization:\r\n", b""),
        (b"Authorization:\r\nAuthorization:\r\n", b""),
        (
            b"Proxy-Authorization: a\r\nAuthorization: bearer a\r\nproxy-authorization: b\r\n",
            token_digest("bearer a"),
        ),
    ],
)
def test_two_lines_of_authorization_are_no_token(
    lines: bytes, token: bytes, parser: HeadParser
) -> None:
    """Otherwise the two ways in could check different tokens."""
    keys = cached_heads(parser)
    for read in (parser.parse, parser.parse_with_secret):
        request = read(PLAIN.replace(b"Host", lines + b"Host"))
        assert request is not None
        assert request.token == token
    assert not any(b"bearer" in key for key in keys())


@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 5))
def test_secrets_are_cut_without_a_change_of_the_rest(inserted: bytes, at: int, cut: int) -> None:
    """Otherwise a head would be read in another way than without a cache."""
    lines = b"Authorization: Bearer x\r\nX-uthorization: y\r\nProxy-Authorization:z\r\nHost"
    data = PLAIN.replace(b"Host", lines)
    data = data[:at] + inserted + data[at + cut :]
    parser = parser_of()
    try:
        request = parser.parse(data)
    except (Problem, Http2Error) as error:
        with pytest.raises(type(error)):
            parser.parse_with_secret(data)
    else:
        assert parser.parse_with_secret(data) == request
        if request is not None:
            assert request.start == data.index(b"\r\n\r\n") + 4


def test_the_value_of_authorization_is_read_in_every_spelling(parser: HeadParser) -> None:
    """Clients with a token would be refused because of their spelling."""
    for name in (b"Authorization", b"AUTHORIZATION", b"authorization", b"aUTHORIZATION"):
        for line in (
            b"%s: bearer a ",
            b"Proxy-Authorization: x\r\n%s:\tbearer a",
            b"%s: bearer a\r\nX: y",
        ):
            data = PLAIN.replace(b"Host", line % name + b"\r\nHost")
            for read in (parser.parse, parser.parse_with_secret, parser.parse):
                request = read(data)
                assert request is not None
                assert request.token == token_digest("bearer a") != b""
                assert (request.start, request.end) == (len(data), len(data) + 3)
    none = PLAIN.replace(b"Host", b"Proxy-Authorization: x\r\nHost")
    for read in (parser.parse, parser.parse_with_secret):
        for data, value in (
            (none, None),
            (PLAIN, None),
            (PLAIN[:-2] + b"Authorization:\r\n\r\n", None),
        ):
            request = read(data)
            assert request is not None
            assert request.token == value


@pytest.mark.parametrize(
    "data",
    [
        PLAIN.replace(b"POST ", b"GET").replace(b"Host", b"Authorization: Bearer hunter2\r\nHost"),
        PLAIN.replace(b"Host", b"Authorization: Bearer hunter2\r\nTE : x\r\nHost"),
        PLAIN.replace(b"Host", b"Authorization: Bearer hunter2\r\n\0: x\r\nHost"),
    ],
)
def test_a_head_that_is_refused_is_not_cached(data: bytes, parser: HeadParser) -> None:
    """Otherwise tokens of refused requests would stay in memory."""
    keys = cached_heads(parser)
    with pytest.raises(Problem):
        parser.parse(data)
    assert keys() == []


def cached_heads(parser: HeadParser) -> Callable[[], list[bytes]]:
    """Return a function that returns the heads that the cache of a parser holds."""
    gc.collect()

    def keys() -> list[bytes]:
        # The cache refers to its keys: lists of the arguments, or their tuples.
        found = [each for each in gc.get_referents(parser._read_cached) if isinstance(each, dict)]
        parts = [part for each in found for key in each for part in _parts(key)]
        return [part for part in parts if isinstance(part, bytes)]

    return keys


def _parts(key: object) -> list[object]:
    """Return the arguments of a cached call: a single one may be the key itself."""
    return [*key] if isinstance(key, (tuple, list)) else [key]


def test_a_long_head_is_plain(parser: HeadParser) -> None:
    """Otherwise a client with many cookies would be served by Hypercorn alone."""
    for size in (500, 900, 5000):
        head = PLAIN.replace(b"Host", b"Cookie: %s\r\nHost" % (b"c" * size))
        for _ in range(2):
            request = parser.parse(head)
            assert request is not None
            assert request.start == len(head)
