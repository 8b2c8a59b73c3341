"""Random heads: h11, behind the strict buffer, must read and refuse the same as the fast path."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

import h11
import pytest

from payloadd.ingress.auth import token_digest
from payloadd.ingress.envelope import HeaderPatterns
from payloadd.ingress.fastpath.head import HeadParser, Http2Error, Special
from payloadd.ingress.fastpath.targets import Targets
from payloadd.ingress.preferences import seconds_to_wait
from payloadd.ingress.problem import Problem
from payloadd.ingress.routes import DEFAULT, Routes
from payloadd.ingress.server.strict_input import StrictConnection
from payloadd.ingress.submission import PostHeaders
from tests.support.fuzz import known_cases, mutate

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import FastPathRequest
    from tests.support.fuzz import Fuzz

MAX_LENGTH: Final = 1000
_ODD: Final = (
    *(b"\r", b"\n", b"\r\n", b"\0", b"\t", b" ", b":", b",", b";", b'"', b"\x0b", b"\x0c"),
    *(b"\x1f", b"\x7f", b"\x85", b"\xa0", b"\xff", b"\r\n ", b"\r\n\r\n", b"0", b"+", b"_", b"\\"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"chunked", b"close"),
    *(b"HTTP/1.1", b"HTTP/1.0", b"POST", b"Host: y\r\n", b"content-length:", b"(", b"@", b"{"),
)
STREAMS: Final = Routes({"default": 0, "clicks": 1})
_PATHS: Final = (b"/v1/payloads", b"/v1/payload")
# The first value of each is valid, and chosen in most cases.
_METHODS: Final = (b"POST", b"PUT", b"PATCH", b"post", b"GET", b"PRI", b"POST ", b"")
_TARGETS: Final = (
    *(b"/v1/payloads", b"/v1/payloads/", b"/v1/payload", b"/v1/payload/", b"/v1/payloads//"),
    *(b"/v1/payloads/clicks", b"/v1/payload/clicks/", b"/v1/payloads/default"),
    *(b"/v1/payloads?", b"/v1/payload%73", b"/v1/payload?x", b"/v1/payload/s"),
    *(b"/v1/payloads/click%73", b"/v1/payloads%2fclicks", b"/v1/payloads/clicks//"),
    *(b"*", b"http://x/v1/payloads", b"/"),
)
_VERSIONS: Final = (b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"")
_ENDS: Final = (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n\t", b"\r\n ")
_COLONS: Final = (b": ", b":", b":\t", b":  ", b" : ", b" :", b";")
_LENGTHS: Final = (
    *(b"0", b"3", b"22", b"22 ", b"022", b"1000", b"1001", b"+3", b"-3", b"0x3", b"3, 3", b"3,3"),
    *(b"", b"3\t", b"999999999999", b"9" * 13, b"9" * 30, b"\xb2", b"1_0", b"3 3", b"1e1", b"3.0"),
)
_FIELDS: Final[tuple[tuple[bytes, tuple[bytes, ...]], ...]] = (
    (b"Host", (b"x", b"", b"x:80", b"[::1]", b"x y", b"\xff")),
    (b"Content-Length", _LENGTHS),
    (b"Content-Type", (b"application/json", b"", b'application/json; charset="utf-8"', b"\xe9")),
    (b"Content-Encoding", (b"gzip", b"identity", b"", b"zstd, gzip")),
    (b"Idempotency-Key", (b"k", b"", b"a b", b"k" * 255, b"\xff")),
    (
        b"Connection",
        (b"keep-alive", b"Keep-Alive", b"close", b"upgrade", b"keep-alive, close", b""),
    ),
    (b"Transfer-Encoding", (b"chunked", b"identity", b"gzip, chunked", b"")),
    (b"Expect", (b"100-continue", b"")),
    (b"Upgrade", (b"h2c", b"websocket")),
    (b"TE", (b"trailers",)),
    (b"Trailer", (b"X",)),
    (b"X-Other", (b"", b"a", b"a,b", b"a\x01b", b"\xff", b"y" * 400)),
    (b"Authorization", (b"Bearer x", b"", b"Basic \xff")),
    (b"Proxy-Authorization", (b"Basic eA==", b"", b"\xff")),
    (b"Origin", (b"https://x.example", b"null", b"")),
    (b"X-Forwarded-For", (b"1.2.3.4", b"1.2.3.4, [::1]:9", b"")),
    (b"Forwarded", (b"for=1.2.3.4", b'for="[::1]"', b"")),
    (b"Prefer", (b"wait=5", b"respond-async, wait=0", b'wait="\\', b"\xff")),
    (b"X_y!#$%&'*+-.^`|~1", (b"z",)),
)
_KEPT: Final = HeaderPatterns(["*"])
_ALWAYS: Final = (0, 1)
"""Fields without which a head is not plain: Host and Content-Length."""


def make_head(chance: random.Random) -> bytes:
    """Return a request whose parts are mostly valid."""
    odd = chance.choice((0.0, 0.02, 0.2))

    def pick(values: tuple[bytes, ...]) -> bytes:
        return chance.choice(values) if chance.random() < odd else values[0]

    fields = [*_ALWAYS] if chance.random() < 0.97 else []
    fields += chance.choices(range(len(_FIELDS)), k=chance.choice((0, 0, 1, 2, 4)))
    chance.shuffle(fields)
    target = chance.choice(_TARGETS[:7]) if chance.random() < 0.8 else chance.choice(_TARGETS)
    lines = [b" ".join((pick(_METHODS), target, pick(_VERSIONS)))]
    for index in fields:
        name, values = _FIELDS[index]
        value = chance.choice(values if chance.random() < 0.2 else values[:3])
        written = chance.choice((name, name.lower(), name.upper()))
        lines.append(written + pick(_COLONS) + value)
    head = b"".join(line + pick(_ENDS) for line in (*lines, b""))
    return head + chance.choice((b"", b"abc", b'{"payloads":[]}', b"GET / HTTP/1.1\r\n\r\n"))


class Read(NamedTuple):
    """A request as a parser has read it."""

    headers: PostHeaders
    length: int | None
    """Bytes of the body; None: it is chunked."""
    token: bytes | None
    closes: bool
    expects: bool


Outcome = Read | Literal["refused", "incomplete", "HTTP/2"]


def by_fast_path(parse: Callable[[bytes], FastPathRequest | None], data: bytes) -> Outcome:
    """Return what the fast path reads."""
    try:
        request = parse(data)
    except Problem:
        return "refused"
    except Http2Error:
        return "HTTP/2"
    if request is None:
        return "incomplete"
    assert request.start == data.index(b"\r\n\r\n") + 4
    special = request.special or Special()
    length = None if special.chunked else request.end - request.start
    return Read(request.headers, length, request.token, special.closes, special.expects)


def by_h11(data: bytes) -> Outcome:
    """Return what h11 reads from the strict buffer of our server."""
    connection = StrictConnection()
    connection.receive_data(data)
    try:
        request = connection.next_event()
    except h11.RemoteProtocolError:
        return "refused"
    if request is h11.NEED_DATA:
        return "incomplete"
    assert isinstance(request, h11.Request), request
    if request.method == b"PRI" and request.http_version == b"2.0":
        return "HTTP/2"
    headers = _joined(request)
    post = _post_headers(request, headers)
    options = {one.strip() for one in headers.get(b"connection", b"").lower().split(b",")}
    old = request.http_version == b"1.0"
    closes = b"close" in options or (old and b"keep-alive" not in options)
    chunked = b"transfer-encoding" in headers
    length = None if chunked else int(headers.get(b"content-length", b"0"))
    expects = connection.they_are_waiting_for_100_continue
    return Read(post, length, token_digest(_text(headers.get(b"authorization"))), closes, expects)


def _joined(request: h11.Request) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in request.headers:
        headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
    return headers


def _post_headers(request: h11.Request, headers: dict[bytes, bytes]) -> PostHeaders:
    """Return the headers; those of a path without payloads have no stream."""
    path, stream = read_target(request.target.partition(b"?")[0])
    posts = path in _PATHS and stream is not None and request.method.upper() in (b"POST", b"PUT")
    return PostHeaders(
        _text(headers.get(b"content-type")),
        _text(headers.get(b"content-encoding")),
        _text(headers.get(b"idempotency-key")),
        posts and path == b"/v1/payload",
        _text(headers.get(b"origin")),
        _text(headers.get(b"x-forwarded-for")),
        _text(headers.get(b"forwarded")),
        STREAMS.stream(stream) if posts and stream is not None else DEFAULT,
        seconds_to_wait(_text(headers.get(b"prefer"))),
        _KEPT.select(headers),
    )


def read_target(target: bytes) -> tuple[bytes, str | None]:
    """Return the path without the stream, and the name of the stream; None: there is none."""
    scheme, _, rest = target.partition(b"://")
    if b"/" not in scheme and rest:
        target = b"/" + rest.partition(b"/")[2]
    if target.startswith(b"//") or b"%2f" in target.lower():
        return target, None
    parts = unquote_to_bytes(target).removesuffix(b"/").split(b"/")
    path, names = b"/".join(parts[:3]), parts[3:]
    if not names:
        return path, "default"
    return path, names[0].decode(errors="replace") if len(names) == 1 and names[0] else None


def make_case(chance: random.Random) -> bytes:
    """Return a head with few faults, or a part of one."""
    data = mutate(make_head(chance), chance, _ODD)
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data) + 1)] or b"P"
    return data


def test_random_heads_are_neither_all_valid_nor_all_wrong() -> None:
    """The next test would test nothing."""
    outcomes = [by_h11(make_case(chance)) for chance in known_cases(300)]
    found = Counter(one if isinstance(one, str) else "read" for one in outcomes)
    assert min(found[one] for one in ("read", "refused", "incomplete")) >= 10, found


@pytest.mark.no_cover
def test_h11_reads_each_head_in_the_same_way(fuzz: Fuzz) -> None:
    """Otherwise two parsers would disagree about the end of a request, or its meaning."""
    parser = HeadParser(STREAMS, Targets(STREAMS, b"{}"), MAX_LENGTH, _KEPT)
    for chance in fuzz.cases():
        data = make_case(chance)
        expected = by_h11(data)
        assert by_fast_path(parser.parse, data) == expected, data
        assert by_fast_path(parser.parse_with_secret, data) == expected, data


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
