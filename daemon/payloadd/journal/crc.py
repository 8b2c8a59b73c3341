"""CRC-32 (RFC 1952, section 8) of short and of long bytes, whichever library is faster."""

from __future__ import annotations

from typing import Final
from zlib import crc32

try:
    # Much faster than zlib for large payloads, where the checksum was a good part of the cost.
    from isal.isal_zlib import crc32 as _crc32_of_many
except ImportError:  # no wheel for this platform: the same numbers, more slowly
    _crc32_of_many = crc32

__all__ = ["crc32", "of_lines"]

_MANY: Final = 5 * 2**10
"""Bytes from which isal's function is called. zlib's releases Python's lock only from this size on,
isal's at any size; to get it back beside a busy main thread costs more than a small checksum."""


def of_lines(lines: bytes, before: int = 0) -> int:
    """Return the CRC-32 of ``lines`` and of bytes before them, whose CRC-32 is ``before``."""
    return crc32(lines, before) if len(lines) < _MANY else _crc32_of_many(lines, before)
