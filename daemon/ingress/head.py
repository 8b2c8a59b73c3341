"""The head of a plain request: pure.

Plain is ``POST /v1/payloads HTTP/1.1`` with one Content-Length within bounds and nothing
about transfer codings, upgrades or expectations, written in a way that cannot be read in
two. llhttp checks the grammar; what it and h11 might not agree on is not plain.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import httptools

from daemon.ingress.door import PostHeaders

LONGEST_HEAD: Final = 16 * 2**10
_FIRST_LINE: Final = b"POST /v1/payloads HTTP/1.1\r\n"
_END: Final = b"\r\n\r\n"
_MOST_DIGITS: Final = 12

# What a plain request may have once, and the names that make it another kind of request.
_KNOWN: Final = frozenset(
    {
        b"host",
        b"connection",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"idempotency-key",
    }
)
_FOREIGN: Final = frozenset(
    {b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings"}
)


class PlainRequest(NamedTuple):
    """A plain request: its headers, and where in the bytes its body starts and ends."""

    headers: PostHeaders
    start: int
    end: int


def may_become_plain(data: bytes) -> bool:
    """Return whether ``data`` is the beginning of a head that may be a plain request's."""
    return (
        _END not in data
        and len(data) <= LONGEST_HEAD
        and data.startswith(_FIRST_LINE[: len(data)])
        # A client that ends its lines in a bare LF would wait for ever for the head's end.
        and (data.find(b"\n") < 0 or _has_plain_lines(data))
    )


def parse(data: bytes, max_length: int) -> PlainRequest | None:
    """Return the request that ``data`` begins with, None if it is not plain."""
    start = data.find(_END) + len(_END)
    head = data[:start]
    if not (head.startswith(_FIRST_LINE) and start <= LONGEST_HEAD and _has_plain_lines(head)):
        return None
    found = _Found()
    try:
        httptools.HttpRequestParser(found).feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return found.request(start, max_length) if found.plain else None


class _Found:
    """Collects what llhttp finds in a head."""

    __slots__ = ("headers", "plain")

    def __init__(self) -> None:
        self.headers: dict[bytes, str] = {}
        self.plain = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header line."""
        name = name.lower()
        if name in _KNOWN:
            self.plain = self.plain and name not in self.headers
            self.headers[name] = value.decode("latin-1").strip(" \t")
        elif name in _FOREIGN:
            self.plain = False

    def request(self, start: int, max_length: int) -> PlainRequest | None:
        """Return the request whose head ends at ``start``, None if it is not plain."""
        headers = self.headers
        length = headers.get(b"content-length", "")
        if not (
            b"host" in headers
            and headers.get(b"connection", "keep-alive").lower() == "keep-alive"
            and length.isdecimal()
            and len(length) <= _MOST_DIGITS
            and int(length) <= max_length
        ):
            return None
        post = PostHeaders(
            headers.get(b"content-type"),
            headers.get(b"content-encoding"),
            headers.get(b"idempotency-key"),
        )
        return PlainRequest(post, start, start + int(length))


def _has_plain_lines(head: bytes) -> bool:
    """Return whether each line ends in CR LF and none is folded (RFC 9112, section 5.2)."""
    return head.count(b"\n") == head.count(b"\r\n") and b"\n " not in head and b"\n\t" not in head
