"""The rules of HTTP/1.x that neither llhttp nor h11 checks. No I/O.

Both ways in go by it. Sources: RFC 9112, sections 2.3, 3 and 7.1.1; RFC 3986, section 3.2.2.
"""

from __future__ import annotations

import re
from typing import Final

MAX_HEAD_BYTES: Final = 16 * 2**10
"""Bytes of the head of a request, the empty line included."""
PREFACE_HEAD: Final = b"PRI * HTTP/2.0\r\n\r\n"
"""The part of HTTP/2's connection preface that looks like a head (RFC 9113, section 3.4)."""
TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""RFC 9110, section 5.6.2."""
_REQUEST_LINE: Final = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/1\.([0-9])" % TOKEN)
_SCHEME: Final = rb"[A-Za-z][A-Za-z0-9+.-]*:"
_TARGET: Final = re.compile(rb"/|\*\Z|" + _SCHEME)
_ORIGIN: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
"""Scheme and authority of an absolute-form target."""
_HOST: Final = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[[vV][0-9A-Fa-f]+\.[!$&'()*+,;=:0-9A-Za-z._~-]+\]"
    rb"|(?:[!$&'()*+,;=0-9A-Za-z._~-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)
_LENGTH: Final = re.compile(rb"[0-9]{1,19}")
"""A Content-Length that fits into 64 bits."""
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
_CHUNK_LINE: Final = re.compile(
    rb"0*[0-9A-Fa-f]{1,16}(?:;(?!\Z)(?:%b)?(?:=(?:%b)?(?:%b)?)?)*" % (TOKEN, TOKEN, _QUOTED)
)
"""Names and values of extensions may be empty, as in llhttp: they are ignored, and do not change
where the line ends."""


class RequestLine:
    """The first line of a request of HTTP/1.x; ``minor`` is the minor version."""

    __slots__ = ("method", "minor", "target")

    def __init__(self, method: bytes, target: bytes, minor: int) -> None:
        self.method = method
        self.target = target
        self.minor = minor


def parse_request_line(line: bytes) -> RequestLine | None:
    """Return the parts of a first line without its line end; None if it is not valid.

    A higher minor version is read as HTTP/1.1 (RFC 9110, section 2.5).
    """
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        return None
    method, target, minor = found.groups()
    if method.upper() != b"CONNECT" and _TARGET.match(target) is None:
        return None
    return RequestLine(method, target, int(minor))


def path_of_target(target: bytes) -> bytes:
    """Return the path of a request target, without its query, scheme and authority."""
    path = target.partition(b"?")[0]
    origin = _ORIGIN.match(path)
    return path if origin is None else path[origin.end() :]


def is_host(value: bytes) -> bool:
    """Return whether ``value`` is valid as the header Host; an empty one is."""
    return _HOST.fullmatch(value) is not None


def is_length(value: bytes) -> bool:
    """Return whether ``value`` is valid as the header Content-Length."""
    return _LENGTH.fullmatch(value) is not None


def is_chunk_line(line: bytes) -> bool:
    """Return whether a line, without its line end, is a valid chunk size with its extensions."""
    return _CHUNK_LINE.fullmatch(line) is not None
