"""Checksums of the rows in the journal (CRC-32 as in RFC 1952, section 8).

A checksum is computed when a row is written, and checked when the row is read back from the disk;
jobs that stay in memory are not checked. None stands for a row of format version 3 or older, which
has no checksum. CRC-32 finds every error of up to 32 neighbouring bits, and misses one in four
billion of the others.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

try:
    # Much faster than zlib for large payloads, where the checksum was a good part of the cost.
    from isal.isal_zlib import crc32 as _crc32_of_many
except ImportError:  # no wheel for this platform: the same numbers, more slowly
    _crc32_of_many = crc32

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["crc32", "job_head", "of_answer", "of_job", "of_lines", "of_totals", "of_values"]

_MANY: Final = 5 * 2**10
"""Bytes from which isal's function is called. zlib's releases Python's lock only from this size on,
isal's at any size; to get it back beside a busy main thread costs more than a small checksum."""
job_head = Struct("<qqq16s").pack
"""Packs stream, seq, payloads and id: the bytes in front of a job's lines."""
_six = Struct("<qqqqqq").pack
_two = Struct("<qq").pack


def of_job(seq: int, id_: bytes, payloads: int, lines: bytes, stream: int = 0) -> int:
    """Return the checksum of a job, whose lines may be in its row or in a segment."""
    return of_lines(lines, crc32(job_head(stream, seq, payloads, id_)))


def of_lines(lines: bytes, before: int = 0) -> int:
    """Return the checksum of ``lines`` and of bytes before them whose checksum is ``before``."""
    return crc32(lines, before) if len(lines) < _MANY else _crc32_of_many(lines, before)


def of_totals(row: Sequence[int]) -> int:
    """Return the checksum of the six numbers in ``totals``.

    A function of its own, because every commit writes that row and ``of_values`` is slower.
    """
    return crc32(_six(*row))


def of_answer(row: Sequence[Any]) -> int:
    """Return the checksum of an Idempotency-Key: key, id, payloads, expiry, fingerprint."""
    key, id_, payloads, expires, fingerprint = row
    return crc32(fingerprint or b"", crc32(_two(payloads, expires) + key + id_))


def of_values(values: Iterable[object]) -> int:
    """Return the checksum of a row of any other table: numbers, text, bytes, None."""
    return crc32(ascii(tuple(values)).encode())
