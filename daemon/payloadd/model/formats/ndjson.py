"""NDJSON to the bytes of one object, plain or compressed.

The same lines always give the same bytes (no time stamps, no file names, one
thread), so a replay after a crash overwrites an object with itself.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import zstandard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.parsers import Compression

CONTENT_TYPE: Final = "application/x-ndjson"
SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": ".gz", "zstd": ".zst"}

# Level 6 of gzip and 3 of zstd are what both tools take by default: for telemetry the levels
# above them cost several times the CPU for a few per cent of size.
_GZIP_LEVEL: Final = 6
_GZIP_FORMAT: Final = 31  # zlib.h, deflateInit2: the largest window, and a gzip head without a time
_ZSTD_LEVEL: Final = 3


_FORMAT: Final = "ndjson-1"
ENCODERS: Final[dict[Compression, str]] = {
    "none": _FORMAT,
    "gzip": f"{_FORMAT} zlib-{zlib.ZLIB_RUNTIME_VERSION}",
    "zstd": f"{_FORMAT} zstd-{'.'.join(map(str, zstandard.ZSTD_VERSION))}",
}
"""What makes the bytes of an object: the same lines give the same bytes only by the same one."""


@dataclass(slots=True)
class Encoded:
    """The bytes of an object, and its ``Content-Encoding`` (None: not compressed).

    They lie in pieces, one behind the other: to join those of a large batch would take its
    size in memory once more. Not frozen, which would cost as much again as all the rest.
    """

    pieces: Sequence[bytes]
    content_encoding: Literal["gzip", "zstd"] | None
    size: int = field(init=False)
    """Bytes of all pieces."""

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.pieces))


def encode(lines: Sequence[bytes], compression: Compression) -> Encoded:
    """Return the object for ``lines``: NDJSON, in pieces that end anywhere."""
    match compression:
        case "none":
            return Encoded(lines, None)
        case "gzip":
            gzip = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
            return Encoded([*map(gzip.compress, lines), gzip.flush()], "gzip")
        case _:
            # A compressor is not safe to share between threads, and cheap to build.
            size = sum(map(len, lines))
            zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj(size)
            return Encoded([*map(zstd.compress, lines), zstd.flush()], "zstd")
