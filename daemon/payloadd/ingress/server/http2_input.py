"""Cut the bytes of an HTTP/2 client into pieces that are quick to process. No I/O.

h2 processes all frames of one call before it returns. 64 KiB of PING frames block the event loop
for a tenth of a second; HEADERS frames, each with a request that the next frame resets, block it
ten times as long. So the frames are counted here before h2 gets them, by their headers alone
(RFC 9113, section 4.1), and passed on a few at a time. Whether the frames are valid is left to h2.

Frames that carry neither a request nor data (PING, SETTINGS, RST_STREAM and so on) are also
charged to a budget of the connection. A client that exceeds the budget loses its connection
(RFC 9113, section 10.5). The budget grows with time and with each request that is not reset, so
a client that uses its connection keeps it. nghttp2, nginx, Envoy and Go's net/http2 have limits of
this kind, too.
"""

from __future__ import annotations

from typing import Final

from payloadd.errors import PayloaddError
from payloadd.ingress.http_grammar import PREFACE_HEAD

PREFACE: Final = PREFACE_HEAD + b"SM\r\n\r\n"
"""The first bytes of a client that speaks HTTP/2 (RFC 9113, section 3.4)."""

LARGEST_HEADER_LIST: Final = 16 * 2**10
"""Bytes of the names and values of one request, plus 32 for each (RFC 7541, section 4.1)."""

_END_STREAM: Final = 1
_FRAME_HEADER: Final = 9
_LONGEST_FRAME: Final = 16_384
"""Bytes: the limit that applies unless the server announces another one. h2 checks the length of
a frame only after it has received all of it, and a frame can claim 16 MiB."""
_DATA: Final = 0
_HEADERS: Final = 1
_RST_STREAM: Final = 3
_SETTINGS: Final = 4
_CONTINUATION: Final = 9

_UNITS: Final = 32
"""Units of work that one piece may cost: about 2 ms."""
_HEADER_BLOCK_UNITS: Final = 8
"""Cost of the start of a request: a task, and header decompression in Python."""
_HEADER_BYTES: Final = 1024
"""Bytes of a header block that cost one unit more."""
_LONGEST_BLOCK: Final = 2 * LARGEST_HEADER_LIST
"""Bytes of a header block in all its frames: more than an allowed header list ever takes."""
_MOST_CONTINUATIONS: Final = 8
"""CONTINUATION frames of one header block (CVE-2024-27316), as many as nghttp2 accepts. The longest
block needs two."""
_LONGEST_SETTINGS: Final = 64 * 6
"""Bytes of one SETTINGS frame. Eight settings are defined, but h2 keeps unknown ones, too."""

_BUDGET: Final = 200.0
"""Frames without a request or data that a new connection may send at once."""
_LARGEST_BUDGET: Final = 1000.0
_BUDGET_PER_SECOND: Final = 100.0
_BUDGET_PER_REQUEST: Final = 20
"""Frames for each request: acknowledgements, window updates, a priority."""
_RESET_CHARGE: Final = _BUDGET_PER_REQUEST + 5
"""Charge of RST_STREAM: the request was begun in vain (CVE-2023-44487). A client may still cancel
all 16 requests of its connection once per second."""


class FloodError(PayloaddError):
    """A client sends frames that cost much work and carry little; its connection has to end."""


class HeadTooLargeError(FloodError):
    """The header block of a request, or the list of headers in it, is too large."""

    def __init__(self, stream_id: int) -> None:
        super().__init__("a header block that is too large")
        self.stream_id = stream_id


class FrameCutter:
    """Cut the bytes after the preface into pieces."""

    def __init__(self) -> None:
        self._data = b""
        self._start = 0
        self._missing = 0
        """Bytes of the last frame that had not arrived when its header was read."""
        self._block = 0
        """Bytes of the header block that is being received."""
        self._continuations = 0
        """CONTINUATION frames of that block."""
        self._charge = 0
        """Charge for the frames returned since ``pop_charge``."""

    def pop_charge(self) -> int:
        """Return the charge for the pieces since the last call; below 0 for requests."""
        charge, self._charge = self._charge, 0
        return charge

    def add(self, data: bytes) -> None:
        """Append received bytes; call this after ``next_piece`` has returned b""."""
        self._data = self._data[self._start :] + data
        self._start = 0

    def next_piece(self) -> bytes:
        """Return the next piece, b"" if more has to be received first.

        Raises FloodError for a frame that is too long, HeadTooLargeError for a header block.
        """
        end = self._find_end()
        piece = self._data[self._start : end]
        self._start = end
        return piece

    def _find_end(self) -> int:
        """Return where the next piece ends."""
        data, position, units = self._data, self._start, 0
        while True:
            if self._missing:
                taken = min(self._missing, len(data) - position)
                self._missing -= taken
                position += taken
            if self._missing or units >= _UNITS or len(data) - position < _FRAME_HEADER:
                return position
            length = int.from_bytes(data[position : position + 3])
            kind = data[position + 3]
            cost = _cost(kind, length)
            if units and units + cost > _UNITS:
                return position
            units += cost
            self._missing = _FRAME_HEADER + length
            stream_id = int.from_bytes(data[position + 5 : position + _FRAME_HEADER])
            self._count_block(kind, length, stream_id)
            self._charge += _charge(kind, data[position + 4], length)

    def _count_block(self, kind: int, length: int, stream_id: int) -> None:
        if kind == _HEADERS:
            self._block = length
            self._continuations = 0
        elif kind == _CONTINUATION:
            self._block += length
            self._continuations += 1
            if self._continuations > _MOST_CONTINUATIONS:
                raise FloodError(f"more than {_MOST_CONTINUATIONS} CONTINUATION frames of a block")
        else:
            return
        if self._block > _LONGEST_BLOCK:
            raise HeadTooLargeError(stream_id)


def _cost(kind: int, length: int) -> int:
    """Return the units of work of a frame of this type and length; raises FloodError."""
    if length > _LONGEST_FRAME:
        raise FloodError(f"a frame of {length} bytes")
    if kind == _DATA:
        # 64 KiB of full frames fit into one piece.
        return 1 + 7 * length // _LONGEST_FRAME
    if kind in (_HEADERS, _CONTINUATION):
        return _HEADER_BLOCK_UNITS + length // _HEADER_BYTES
    if kind == _SETTINGS and length > _LONGEST_SETTINGS:
        raise FloodError(f"a SETTINGS frame of {length} bytes")
    return 1


def _charge(kind: int, flags: int, length: int) -> int:
    """Return the charge to the budget for a frame of this type, flags and length."""
    if kind == _DATA:
        return not (length or flags & _END_STREAM)
    if kind == _HEADERS:
        return -_BUDGET_PER_REQUEST
    if kind == _CONTINUATION:
        return 0
    return _RESET_CHARGE if kind == _RST_STREAM else 1


class FrameBudget:
    """How many frames without a request or data one connection may send."""

    def __init__(self, now: float) -> None:
        """Begin at ``now``, in seconds."""
        self._left = _BUDGET
        self._since = now

    def spend(self, charge: int, now: float) -> None:
        """Subtract ``charge`` at the time ``now``; raises FloodError if too little is left."""
        grown = self._left + (now - self._since) * _BUDGET_PER_SECOND - charge
        self._left = min(_LARGEST_BUDGET, grown)
        self._since = now
        if self._left < 0:
            raise FloodError("too many frames without a request or data")
