"""Parse the head of a request of HTTP/1.x: pure.

llhttp, which is strict, checks the grammar of the header lines. This module checks the rest that a
server must check (``ingress/http_grammar.py``), and that no two parsers can read the head
differently: two lengths, a length beside a transfer coding, folded lines, a line end without CR.
Such a head is refused.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import httptools

from payloadd.ingress.auth import token_digest
from payloadd.ingress.http_grammar import (
    MAX_HEAD_BYTES,
    PREFACE_HEAD,
    is_host,
    is_length,
    parse_request_line,
)
from payloadd.ingress.preferences import seconds_to_wait
from payloadd.ingress.problem import head_too_large, not_http
from payloadd.ingress.routes import DEFAULT, Route
from payloadd.ingress.submission import PostHeaders
from payloadd.observe.request_metrics import PAYLOAD, PAYLOADS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from payloadd.ingress.envelope import HeaderPatterns
    from payloadd.ingress.fastpath.targets import Reply, Targets
    from payloadd.ingress.routes import Routes

_HEAD_END: Final = b"\r\n\r\n"
_CACHED_HEAD_BYTES: Final = 1024
_MOST_HEADS: Final = 1024
"""Heads in each of the two caches."""
_SECRET: Final = frozenset({b"authorization", b"proxy-authorization"})
"""Headers whose values must not outlive their request: a head that has one is not cached."""
_SECRET_ENDING: Final = b"uthorization:"
"""The end of their names in the usual spellings: one search for all costs other heads little."""
_SECRET_LINE: Final = re.compile(
    rb"(proxy-)?authorization:([ \t]*[\x21-\x7e][\x20-\x7e]*)\r\n", re.IGNORECASE
)
"""A secret header whose value is visible ASCII: llhttp would accept it."""
_PLAIN_LINE: Final = b"POST / HTTP/1.1\r\n"
"""The first line for llhttp, which does not know all methods."""
_TIMED: Final = frozenset({PAYLOADS, PAYLOAD})
_NO_TOKENS: Final[frozenset[bytes]] = frozenset()


class Special(NamedTuple):
    """The properties of a request that most requests do not have."""

    reply: Reply | None = None
    """The answer, if the body is not read; None: the request is a POST to a stream."""
    closes: bool = False
    """Whether the client expects the connection to end after the answer."""
    keeps: bool = False
    """Whether a client of HTTP/1.0 asks to keep the connection."""
    chunked: bool = False
    """Whether the body comes in chunks."""
    expects: bool = False
    """Whether the client waits for a 100 before it sends the body."""
    without_body: bool = False
    """Whether the answer has no body, as that to a HEAD."""
    timed: bool = True
    """Whether the time of the request is measured: its path takes payloads."""


_PLAIN: Final = Special()


class FastPathRequest(NamedTuple):
    """A request: its headers, and the offsets at which its body starts and ends."""

    headers: PostHeaders
    start: int
    end: int
    """Equal to ``start`` for a chunked body."""
    token: bytes | None = None
    """The digest of the token in the header Authorization (see ``token_digest``)."""
    route: str = PAYLOADS
    """The label of the route in metrics."""
    special: Special | None = None
    """None for a plain request: a kept-alive POST with a length of up to MAX_LENGTH."""

    @property
    def has_body(self) -> bool:
        """Whether the request announces a body."""
        return self.end > self.start or (self.special is not None and self.special.chunked)


class _Start(NamedTuple):
    """The properties of a request that its first line determines."""

    found: Route | Reply
    label: str
    """The label of the route in metrics."""
    old: bool = False
    """Whether it is of HTTP/1.0."""
    without_body: bool = False


class Http2Error(Exception):
    """The head is the beginning of HTTP/2's connection preface (RFC 9113, section 3.4)."""


class _NotCached(Exception):  # noqa: N818 - no error: the way past the cache
    """A head that the cache must not keep."""

    def __init__(self, request: FastPathRequest) -> None:
        super().__init__()
        self.request = request


class _HeaderCollector:
    """Receives the header lines from llhttp by a method of a container, without Python code."""

    __slots__ = ("on_header",)

    def __init__(self, on_header: Callable[[bytes, bytes], object]) -> None:
        self.on_header = on_header


class HeadParser:
    """Parses heads, and remembers the requests of heads that clients repeat.

    ``routes`` has the usual first lines, ``targets`` all others; ``max_length`` is the largest
    Content-Length in bytes; ``patterns`` are the headers that are kept for the envelope, and
    ``seconds_of`` returns the seconds that a request waits, by its header Prefer.
    """

    def __init__(
        self,
        routes: Routes,
        targets: Targets,
        max_length: int,
        patterns: HeaderPatterns | None = None,
        seconds_of: Callable[[str | None], int | None] = seconds_to_wait,
    ) -> None:
        self._seconds_of = seconds_of
        self._routes = routes.first_lines
        self._targets = targets
        self._max_length = max_length
        self._patterns = patterns
        # Each parser has caches of its own: with other settings a head means another stream.
        self._read_cached = lru_cache(maxsize=_MOST_HEADS)(self._read)
        self._with_secrets: dict[bytes, FastPathRequest] = {}
        """Requests with secrets, by the digest of their head; the oldest is first."""

    def parse(self, data: bytes) -> FastPathRequest | None:
        """Return the request at the beginning of ``data``, None if its head is incomplete.

        Raises Problem MALFORMED, and Http2Error for a client that begins to speak HTTP/2.
        """
        end = data.find(_HEAD_END)
        if end < 0:
            _check_beginning(data)
            return None
        head = data[: end + len(_HEAD_END)]
        # A client repeats the same head with every request, and parsing it again was measurable.
        # Only short heads are cached, which bounds the cache to a few MiB. ``lru_cache`` keeps no
        # call that raises; a search for secrets before each look-up would cost every request.
        try:
            return self._read_cached(head) if len(head) <= _CACHED_HEAD_BYTES else self._read(head)
        except _NotCached as found:
            return found.request

    def parse_with_secret(self, data: bytes) -> FastPathRequest | None:
        """Return the same as ``parse``; faster for heads with ``Authorization``, slower for others.

        Requests are remembered by the SHA-256 of their heads, so no secret is.
        """
        head = data[: data.find(_HEAD_END) + len(_HEAD_END)]
        if len(head) > _CACHED_HEAD_BYTES or not head.endswith(_HEAD_END):
            return self.parse(data)
        key = sha256(head).digest()
        request = self._with_secrets.get(key)
        if request is None:
            request = self.parse(head)
            if request is not None:
                if len(self._with_secrets) >= _MOST_HEADS:
                    del self._with_secrets[next(iter(self._with_secrets))]
                self._with_secrets[key] = request
        return request

    def _parse_cut(self, head: bytes, removed: int, authorization: str | None) -> FastPathRequest:
        """Parse a head of which ``_cut_secret`` has cut a secret; return the whole's request."""
        request = self.parse(head)
        assert request is not None  # noqa: S101 - the end of the head was not cut
        token = request.token
        if authorization is not None:
            # The line without its value is left. A token that is not None is of a second line:
            # together they are no valid header (RFC 9110, section 5.3).
            token = token_digest(authorization) if token is None else b""
        start, end = request.start + removed, request.end + removed
        return request._replace(start=start, end=end, token=token)

    def _read(self, head: bytes) -> FastPathRequest:
        """Parse a head. Raises Problem, _NotCached for a head with secrets, and Http2Error."""
        lines = head.count(b"\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise head_too_large()
        if head.count(b"\n") != lines:
            raise not_http()
        # Other spellings are found in the parsed head, which costs them more.
        if _SECRET_ENDING in head and (cut := _cut_secret(head)) is not None:
            raise _NotCached(self._parse_cut(*cut))
        end = head.find(b"\n") + 1
        route = self._routes.get(head[:end])
        start = self._first_line(head, end) if route is None else _Start(route, _label(route))
        headers = _headers(_PLAIN_LINE + head[end:], lines - 2)
        request = self._request(headers, len(head), start)
        if not _SECRET.isdisjoint(headers) and any(map(headers.get, _SECRET)):
            raise _NotCached(request)
        return request

    def _first_line(self, head: bytes, end: int) -> _Start:
        """Read a first line, which ends at ``end``. Raises Problem MALFORMED and Http2Error."""
        line = parse_request_line(head[: end - len(b"\r\n")])
        if line is None:
            if head == PREFACE_HEAD:
                raise Http2Error
            raise not_http()
        method = line.method.decode("ascii").upper()
        found, label = self._targets.find(method, line.target)
        return _Start(found, label, old=line.minor == 0, without_body=method == "HEAD")

    def _request(self, headers: Mapping[bytes, bytes], size: int, start: _Start) -> FastPathRequest:
        """Return the request with these headers, whose head has ``size`` bytes.

        Raises Problem MALFORMED.
        """
        found, label, old, without_body = start
        host = headers.get(b"host")
        if (host is None and not old) or (host is not None and not is_host(host)):
            raise not_http()
        length = _length(headers, old=old)
        route, reply = (found, None) if isinstance(found, Route) else (None, found)
        post = PostHeaders(
            _text(headers.get(b"content-type")),
            _text(headers.get(b"content-encoding")),
            _text(headers.get(b"idempotency-key")),
            route is not None and route.document,
            _text(headers.get(b"origin")),
            _text(headers.get(b"x-forwarded-for")),
            _text(headers.get(b"forwarded")),
            DEFAULT if route is None else route.stream,
            self._seconds_of(_text(headers.get(b"prefer"))),
            None if self._patterns is None else self._patterns.select(headers),
        )
        token = token_digest(_text(headers.get(b"authorization")))
        options = _tokens(headers, b"connection")
        closes = b"close" in options or (old and b"keep-alive" not in options)
        special = Special(
            reply,
            closes=closes,
            keeps=old and not closes,
            chunked=length is None,
            expects=not old and b"100-continue" in _tokens(headers, b"expect"),
            without_body=without_body,
            timed=label in _TIMED,
        )
        length = length or 0
        plain = special == _PLAIN and length <= self._max_length
        return FastPathRequest(post, size, size + length, token, label, None if plain else special)


def _check_beginning(data: bytes) -> None:
    """Raise Problem MALFORMED for an incomplete head that cannot become a valid one."""
    if len(data) > MAX_HEAD_BYTES:
        raise head_too_large()
    # TLS begins with 0x16. A client that ends its lines in a bare LF never sends the end of a head.
    if (data and data[0] <= ord(" ")) or data.count(b"\n") != data.count(b"\r\n"):
        raise not_http()


def _label(route: Route) -> str:
    return PAYLOAD if route.document else PAYLOADS


def _headers(text: bytes, count: int) -> dict[bytes, bytes]:
    """Return the ``count`` headers of a head, names in lower case, the lines of each joined.

    Raises Problem MALFORMED.
    """
    collected: dict[bytes, bytes] = {}
    _feed(text, collected.__setitem__)
    headers = {name.lower(): value.strip(b" \t") for name, value in collected.items()}
    return headers if len(headers) == count else _joined_headers(text, count)


def _joined_headers(text: bytes, count: int) -> dict[bytes, bytes]:
    """Return the headers of a head in which a header is there twice (RFC 9110, section 5.3)."""
    lines: list[tuple[bytes, bytes]] = []
    _feed(text, lambda name, value: lines.append((name.lower(), value.strip(b" \t"))))
    headers: dict[bytes, bytes] = {}
    for name, value in lines:
        headers[name] = b"%b, %b" % (headers[name], value) if name in headers else value
    # Two of these would be two requests (RFC 9112, sections 3.2 and 6.3); llhttp refuses two
    # lengths and two codings itself.
    hosts = sum(name == b"host" for name, _ in lines)
    if hosts > 1 or len(lines) != count:
        raise not_http()
    return headers


def _feed(text: bytes, on_header: Callable[[bytes, bytes], object]) -> None:
    """Have llhttp parse a head. Raises Problem MALFORMED."""
    try:
        httptools.HttpRequestParser(_HeaderCollector(on_header)).feed_data(text)
    except httptools.HttpParserUpgrade:
        pass  # after the head; no upgrade is offered, and HTTP/1.1 goes on
    except httptools.HttpParserError:
        raise not_http() from None


def _length(headers: Mapping[bytes, bytes], *, old: bool) -> int | None:
    """Return the length of a body in bytes, None for a chunked one (RFC 9112, section 6.3).

    ``old``: the request is of HTTP/1.0. Raises Problem MALFORMED.
    """
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    if coding is not None:
        # The framing of a request with both, or of one of HTTP/1.0, is faulty (section 6.1).
        if length is not None or old or coding.lower() != b"chunked":
            raise not_http()
        return None
    if length is None:
        return 0
    if not is_length(length):
        raise not_http()
    return int(length)


def _tokens(headers: Mapping[bytes, bytes], name: bytes) -> frozenset[bytes]:
    """Return the elements of a header that is a list, in lower case."""
    value = headers.get(name)
    if value is None:
        return _NO_TOKENS
    return frozenset(part.strip(b" \t").lower() for part in value.split(b","))


def _cut_secret(head: bytes) -> tuple[bytes, int, str | None] | None:
    """Cut the first secret value out of a head; return None if it has none.

    Returns the head, in which the line stays without a value, the number of bytes that were
    removed, and the value if the header is Authorization. A value that is not visible ASCII stays:
    llhttp has to see it.
    """
    position = head.find(_SECRET_ENDING)
    while position >= 0:
        line = _SECRET_LINE.match(head, head.rfind(b"\n", 0, position) + 1)
        if line is not None:
            start, end = line.span(2)
            value = None if line[1] else line[2].decode("ascii").strip(" \t")
            return head[:start] + head[end:], end - start, value
        position = head.find(_SECRET_ENDING, position + 1)
    return None


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
