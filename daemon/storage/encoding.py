"""NDJSON to the bytes of one object, plain or compressed.

The same lines always give the same bytes (no time stamps, no file names, one
thread), so a replay after a crash overwrites an object with itself.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import zstandard

if TYPE_CHECKING:
    from daemon.values import Compression

CONTENT_TYPE: Final = "application/x-ndjson"
SUFFIXES: Final[dict[Compression, str]] = {"none": "", "gzip": ".gz", "zstd": ".zst"}

# Level 6 of gzip and 3 of zstd are what both tools take by default: for telemetry the levels
# above them cost several times the CPU for a few per cent of size.
_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Encoded:
    """The bytes of an object, and its ``Content-Encoding`` (None: not compressed)."""

    data: bytes
    content_encoding: Literal["gzip", "zstd"] | None


def encode(lines: bytes, compression: Compression) -> Encoded:
    """Return the object for ``lines``, which are NDJSON."""
    match compression:
        case "none":
            return Encoded(lines, None)
        case "gzip":
            return Encoded(gzip.compress(lines, _GZIP_LEVEL, mtime=0), "gzip")
        case _:
            # A compressor is not safe to share between threads, and cheap to build.
            return Encoded(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(lines), "zstd")
