"""h11's input, without what llhttp and RFC 9112 do not allow.

h11 is lenient: it joins folded lines, accepts line ends without CR, invisible characters in values,
equal lengths that are there twice, white space behind a chunk size, and a Host of any form. A proxy
in front may read such a request differently. The fast path refuses it, so this way in has to.
"""

from __future__ import annotations

import re
from typing import Final

import h11
from h11._receivebuffer import ReceiveBuffer

from payloadd.ingress.http_grammar import (
    MAX_HEAD_BYTES,
    PREFACE_HEAD,
    is_chunk_line,
    is_host,
    is_length,
    parse_request_line,
)

_LINE_END: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
_INVISIBLE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOO_LARGE: Final = 431
"""Request Header Fields Too Large (RFC 6585, section 5)."""


class StrictConnection(h11.Connection):
    """The state of an HTTP/1.1 connection, with strict input.

    What follows a request with ``Connection: close`` is dropped, as RFC 9112, section 9.6, demands;
    h11 would make an error of it, and the request would be refused although it is accepted.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._receive_buffer = StrictBuffer()

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """Return the next event (see h11)."""
        if self.their_state is h11.MUST_CLOSE:
            self._receive_buffer = StrictBuffer()
        return super().next_event()


class StrictBuffer(ReceiveBuffer):
    """The received bytes of one connection, from which h11 takes heads, chunk sizes and trailers.

    The methods raise ``h11.LocalProtocolError``, as h11's readers do; h11 makes the client's error
    of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._in_chunks = False
        """Whether a chunked body is being read: the next lines are its trailers."""

    def maybe_extract_next_line(self) -> bytearray | None:
        """Extract the line with a chunk size, if it is complete."""
        self._in_chunks = True
        line = super().maybe_extract_next_line()
        if line is not None and not is_chunk_line(bytes(line[: -len(_LINE_END)])):
            raise h11.LocalProtocolError("illegal chunk header")
        return line

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """Extract the lines of a head, or of trailers, if they are complete."""
        if self._data.startswith(_LINE_END):
            self._in_chunks = False
            self._extract(len(_LINE_END))
            return []
        end = self._data.find(_HEAD_END)
        block = bytes(self._data) if end < 0 else bytes(self._data[: end + len(_HEAD_END)])
        if block.count(b"\n") != block.count(_LINE_END):
            raise h11.LocalProtocolError("line end without CR")
        if len(block) > MAX_HEAD_BYTES:
            raise h11.LocalProtocolError("head too large", error_status_hint=_TOO_LARGE)
        if end < 0:
            return None
        lines = block[: -len(_HEAD_END)].split(_LINE_END)
        _check_fields(lines if self._in_chunks else lines[1:])
        if self._in_chunks:
            self._in_chunks = False
            _check_trailers(lines)
        elif block != PREFACE_HEAD:
            _check_head(lines)
        self._extract(len(block))
        return [bytearray(line) for line in lines]


def _check_fields(lines: list[bytes]) -> None:
    for line in lines:
        if line.startswith((b" ", b"\t")) or _INVISIBLE.search(line):
            raise h11.LocalProtocolError("folded line, or invisible character")


def _check_trailers(lines: list[bytes]) -> None:
    """Refuse trailers that would be about the framing (RFC 9110, section 6.5.1)."""
    if _values(lines, b"content-length") or _values(lines, b"transfer-encoding"):
        raise h11.LocalProtocolError("illegal trailer")


def _check_head(lines: list[bytes]) -> None:
    line = parse_request_line(lines[0])
    if line is None:
        raise h11.LocalProtocolError("illegal request line")
    lengths, codings = _values(lines, b"content-length"), _values(lines, b"transfer-encoding")
    if len(lengths) > 1 or not all(map(is_length, lengths)):
        raise h11.LocalProtocolError("two lengths, or an illegal one")
    if codings and (lengths or line.minor == 0):
        raise h11.LocalProtocolError("Transfer-Encoding beside a length, or in HTTP/1.0")
    hosts = _values(lines, b"host")
    # h11 looks for a missing one in HTTP/1.1 only.
    if (not hosts and line.minor > 0) or not all(map(is_host, hosts)):
        raise h11.LocalProtocolError("no Host, or an illegal one")


def _values(lines: list[bytes], name: bytes) -> list[bytes]:
    """Return the values of the lines of one header."""
    parts = [line.partition(b":") for line in lines]
    return [value.strip(b" \t") for found, _, value in parts if found.lower() == name]
