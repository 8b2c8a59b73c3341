"""Parse the head of a plain request: pure.

A plain request is a POST or PUT to ``/v1/payloads`` or ``/v1/payload``, or to a known stream below
one of them, in HTTP/1.1, with a Content-Length within bounds, no header twice, and no header about
transfer codings, upgrades or expectations. llhttp checks the grammar.
Heads that llhttp and h11 might read differently (folded lines, line ends without CR) are not plain.
"""

from __future__ import annotations

import re
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import httptools

from payloadd.ingress.auth import token_digest
from payloadd.ingress.preferences import seconds_to_wait
from payloadd.ingress.routes import BEGINNINGS
from payloadd.ingress.submission import PostHeaders

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.envelope import HeaderPatterns
    from payloadd.ingress.routes import Route, Routes

MAX_HEAD_BYTES: Final = 16 * 2**10
_HEAD_END: Final = b"\r\n\r\n"
_MAX_DIGITS: Final = 12
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

_NOT_PLAIN: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings"}
)


class FastPathRequest(NamedTuple):
    """A plain request: its headers, and the offsets at which its body starts and ends."""

    headers: PostHeaders
    start: int
    end: int
    token: bytes | None = None
    """The digest of the token in the header Authorization (see ``token_digest``)."""


class _NotCached(Exception):  # noqa: N818 - no error: the way past the cache
    """A head that the cache must not keep; ``request`` is the request, None if it is not plain."""

    def __init__(self, request: FastPathRequest | None) -> None:
        super().__init__()
        self.request = request


class _HeaderCollector:
    """Receives the header lines from llhttp by a method of ``dict``, without Python code."""

    __slots__ = ("on_header",)

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self.on_header = headers.__setitem__


class HeadParser:
    """Parses heads, and remembers the requests of heads that clients repeat.

    ``routes`` has the known paths; ``max_length`` is the largest Content-Length in bytes;
    ``patterns`` are the headers that are kept for the envelope, and ``seconds_of`` returns the
    seconds that a request waits, by its header Prefer.
    """

    def __init__(
        self,
        routes: Routes,
        max_length: int,
        patterns: HeaderPatterns | None = None,
        seconds_of: Callable[[str | None], int | None] = seconds_to_wait,
    ) -> None:
        self._seconds_of = seconds_of
        self._routes = routes.first_lines
        self._longest_line = max(map(len, self._routes))
        self._max_length = max_length
        self._patterns = patterns
        # Each parser has caches of its own: with other settings a head means another stream.
        self._read_cached = lru_cache(maxsize=_MOST_HEADS)(self._read)
        self._with_secrets: dict[bytes, FastPathRequest] = {}
        """Requests with secrets, by the digest of their head; the oldest is first."""

    def may_become_plain(self, data: bytes) -> bool:
        """Return whether ``data`` is an incomplete head that may still become plain."""
        return (
            _HEAD_END not in data
            and len(data) <= MAX_HEAD_BYTES
            and self._may_be_known(data)
            # A client that ends its lines in a bare LF never sends the end of a head that is
            # awaited here.
            and data.count(b"\n") == data.count(b"\r\n")
        )

    def _may_be_known(self, data: bytes) -> bool:
        """Return whether the first line is known, or may become so.

        The table is not searched for lines with the same beginning: it may have thousands of lines,
        and a client may send single bytes.
        """
        end = data.find(b"\n") + 1
        if end:
            return data[:end] in self._routes
        return len(data) < self._longest_line and any(
            data.startswith(one[: len(data)]) for one in BEGINNINGS
        )

    def parse(self, data: bytes) -> FastPathRequest | None:
        """Return the request at the beginning of ``data``, None if it is not plain."""
        head = data[: data.find(_HEAD_END) + len(_HEAD_END)]
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
        if len(head) > _CACHED_HEAD_BYTES:
            return self.parse(head)
        key = sha256(head).digest()
        request = self._with_secrets.get(key)
        if request is None:
            request = self.parse(head)
            if request is not None:
                if len(self._with_secrets) >= _MOST_HEADS:
                    del self._with_secrets[next(iter(self._with_secrets))]
                self._with_secrets[key] = request
        return request

    def _parse_cut(
        self, head: bytes, removed: int, authorization: str | None
    ) -> FastPathRequest | None:
        """Parse a head of which ``_cut_secret`` has cut a secret; return the whole's request."""
        request = self.parse(head)
        if request is None:
            return None
        headers, start, end, other = request
        token = other if authorization is None else token_digest(authorization)
        return FastPathRequest(headers, start + removed, end + removed, token)

    def _read(self, head: bytes) -> FastPathRequest:
        """Parse a plain head without secrets. Raises _NotCached for every other head."""
        lines = head.count(b"\r\n")
        route = self._routes.get(head[: head.find(b"\n") + 1])
        if route is None or len(head) > MAX_HEAD_BYTES or head.count(b"\n") != lines:
            raise _NotCached(None)
        # Other spellings are found in the parsed head, which costs them more.
        if _SECRET_ENDING in head and (cut := _cut_secret(head)) is not None:
            raise _NotCached(self._parse_cut(*cut))
        collected: dict[bytes, bytes] = {}
        try:
            httptools.HttpRequestParser(_HeaderCollector(collected)).feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            raise _NotCached(None) from None
        headers = {name.lower(): value for name, value in collected.items()}
        # The first and the empty line are no headers. If there are fewer headers than other lines,
        # a header is there twice or is folded (RFC 9112, section 5.2).
        is_plain = len(headers) == lines - 2 and _NOT_PLAIN.isdisjoint(headers)
        request = None
        if is_plain:
            request = _plain_request(headers, len(head), self._max_length, route, self._patterns)
            if request is not None:
                wait = self._seconds_of(_text(headers.get(b"prefer")))
                request = request._replace(headers=request.headers._replace(wait=wait))
        if request is None or (not _SECRET.isdisjoint(headers) and any(map(headers.get, _SECRET))):
            raise _NotCached(request)
        return request


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


def _plain_request(
    headers: dict[bytes, bytes],
    start: int,
    max_length: int,
    route: Route,
    patterns: HeaderPatterns | None,
) -> FastPathRequest | None:
    """Return the request with these headers, None if a header makes it not plain."""
    length = headers.get(b"content-length", b"")
    if not (
        b"host" in headers
        and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        and length.isdigit()
        and len(length) <= _MAX_DIGITS
        and int(length) <= max_length
    ):
        return None
    post = PostHeaders(
        _text(headers.get(b"content-type")),
        _text(headers.get(b"content-encoding")),
        _text(headers.get(b"idempotency-key")),
        route.document,
        _text(headers.get(b"origin")),
        _text(headers.get(b"x-forwarded-for")),
        _text(headers.get(b"forwarded")),
        route.stream,
        None,  # see _read
        None if patterns is None else patterns.select(headers),
    )
    token = token_digest(_text(headers.get(b"authorization")))
    return FastPathRequest(post, start, start + int(length), token)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1").strip(" \t")
