"""The head of a plain request: pure.

Plain is ``POST /v1/payloads HTTP/1.1`` with a Content-Length within bounds, no header twice,
and nothing about transfer codings, upgrades or expectations. llhttp checks the grammar; what
it and h11 might not agree on (folded lines, line ends without CR) is not plain.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

import httptools

from payloadd.ingress.submission import PostHeaders

LONGEST_HEAD: Final = 16 * 2**10
_FIRST_LINE: Final = b"POST /v1/payloads HTTP/1.1\r\n"
_END: Final = b"\r\n\r\n"
_MOST_DIGITS: Final = 12
_SHORT: Final = 1024

_FOREIGN: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings"}
)


class FastPathRequest(NamedTuple):
    """A plain request: its headers, and where in the bytes its body starts and ends."""

    headers: PostHeaders
    start: int
    end: int


class _Found:
    """What llhttp calls for each header line: a dictionary's own method, without Python."""

    __slots__ = ("on_header",)

    def __init__(self, headers: dict[bytes, bytes]) -> None:
        self.on_header = headers.__setitem__


def may_become_plain(data: bytes) -> bool:
    """Return whether ``data`` is the beginning of a head that may be a plain request's."""
    return (
        _END not in data
        and len(data) <= LONGEST_HEAD
        and data.startswith(_FIRST_LINE[: len(data)])
        # A client that ends its lines in a bare LF would wait for ever for the head's end.
        and data.count(b"\n") == data.count(b"\r\n")
    )


def parse(data: bytes, max_length: int) -> FastPathRequest | None:
    """Return the request that ``data`` begins with, None if it is not plain."""
    head = data[: data.find(_END) + len(_END)]
    # A client says the same again with every request, and by the profile this was a tenth of
    # one in a batch. Short ones alone are remembered: all of them take 2.3 MiB at most.
    return _remembered(head, max_length) if len(head) <= _SHORT else _read(head, max_length)


def _read(head: bytes, max_length: int) -> FastPathRequest | None:
    lines = head.count(b"\r\n")
    if not head.startswith(_FIRST_LINE) or len(head) > LONGEST_HEAD or head.count(b"\n") != lines:
        return None
    found: dict[bytes, bytes] = {}
    try:
        httptools.HttpRequestParser(_Found(found)).feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    headers = {name.lower(): value for name, value in found.items()}
    # The first line and the empty one are no headers. Where there are fewer headers than
    # lines, one came twice or is folded (RFC 9112, section 5.2).
    if len(headers) != lines - 2 or not _FOREIGN.isdisjoint(headers):
        return None
    return _plain(headers, len(head), max_length)


_remembered = lru_cache(maxsize=1024)(_read)


def _plain(headers: dict[bytes, bytes], start: int, max_length: int) -> FastPathRequest | None:
    """Return the request with these headers, None if one of them is not as it should be."""
    length = headers.get(b"content-length", b"")
    if not (
        b"host" in headers
        and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        and length.isdigit()
        and len(length) <= _MOST_DIGITS
        and int(length) <= max_length
    ):
        return None
    post = PostHeaders(
        _text(headers.get(b"content-type")),
        _text(headers.get(b"content-encoding")),
        _text(headers.get(b"idempotency-key")),
    )
    return FastPathRequest(post, start, start + int(length))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1").strip(" \t")
