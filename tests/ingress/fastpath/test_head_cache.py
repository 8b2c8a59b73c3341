"""The caches of heads: they mix up no requests, and keep no secrets."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.auth import token_digest
from payloadd.ingress.fastpath import head
from payloadd.ingress.fastpath.head import HeadParser, Http2Error, Special
from payloadd.ingress.problem import Problem
from payloadd.ingress.submission import PostHeaders
from tests.ingress.fastpath.heads import PLAIN, STREAMS, parser_of

if TYPE_CHECKING:
    from collections.abc import Callable


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
