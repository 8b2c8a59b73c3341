"""NDJSON: one payload a line; not compressed, or compressed with gzip or zstd.

The bytes hold no time and no file name, and each object is compressed by one thread, so the same
jobs always give the same bytes.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import zstandard

from payloadd.model.formats.api import EncodedObject, ObjectKind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.model.job import Job

CONTENT_TYPE: Final = "application/x-ndjson"

# The default levels of both tools: for telemetry, higher levels cost several times the CPU time and
# save a few per cent of the size.
_GZIP_LEVEL: Final = 6
_ZSTD_LEVEL: Final = 3
_GZIP_WINDOW: Final = 31
"""The largest window, and a gzip header without a time (zlib.h, ``deflateInit2``)."""

_PIECE_BYTES: Final = 65_536
"""Bytes of a piece: joining small jobs up to this size costs less than to hash and send each."""

_VERSION: Final = "ndjson-1"
PLAIN_KIND: Final = ObjectKind(CONTENT_TYPE, _VERSION)
"""Lines that are not compressed."""
_COMPRESS_IN_LOOP: Final = 64 * 1024
"""Bytes above which compression would block the event loop for longer than a thread costs."""


class _Compressor(Protocol):
    """The methods of zlib's and zstandard's compressors that are used here."""

    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


@dataclass(frozen=True, slots=True, eq=False)
class Ndjson:
    """NDJSON in one encoding; see :class:`~payloadd.model.formats.api.ObjectFormat`."""

    name: str
    suffix: str
    kind: ObjectKind
    encoder: str
    new_compressor: Callable[[int], _Compressor] | None = None
    """Returns a compressor for that many bytes; None: the lines are the object."""
    most_in_loop: int = _COMPRESS_IN_LOOP
    has_process: bool = False

    def encode(self, jobs: Sequence[Job]) -> EncodedObject:
        """Return the object of ``jobs`` (at least one)."""
        pieces = pieces_of(jobs)
        if self.new_compressor is not None:
            # A compressor may not be shared between threads, and is cheap to construct.
            compressor = self.new_compressor(sum(map(len, pieces)))
            pieces = [*map(compressor.compress, pieces), compressor.flush()]
        return EncodedObject(pieces, self.kind)


def pieces_of(jobs: Sequence[Job]) -> list[bytes]:
    """Return the lines of all jobs in pieces of about 64 KiB.

    Small jobs are joined. The lines of a job that has the size of a piece are not copied.
    """
    if len(jobs) == 1:
        return [jobs[0].lines]
    lines = [job.lines for job in jobs]
    size = sum(map(len, lines))
    if size <= _PIECE_BYTES:
        return [b"".join(lines)]
    count = max(1, _PIECE_BYTES * len(lines) // size)
    return [b"".join(lines[start : start + count]) for start in range(0, len(lines), count)]


def _gzip(_size: int) -> _Compressor:
    return zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)


def _zstd(size: int) -> _Compressor:
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compressobj(size)


_ZSTD_LIBRARY: Final = ".".join(map(str, zstandard.ZSTD_VERSION))


def _compressed(coding: str) -> ObjectKind:
    return ObjectKind(CONTENT_TYPE, _VERSION, coding, same_bytes=False)


PLAIN: Final = Ndjson("none", "", PLAIN_KIND, _VERSION, most_in_loop=sys.maxsize)
GZIP: Final = Ndjson(
    "gzip", ".gz", _compressed("gzip"), f"{_VERSION} zlib-{zlib.ZLIB_RUNTIME_VERSION}", _gzip
)
ZSTD: Final = Ndjson("zstd", ".zst", _compressed("zstd"), f"{_VERSION} zstd-{_ZSTD_LIBRARY}", _zstd)
