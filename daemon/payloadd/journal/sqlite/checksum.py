"""Checksums of the rows in the journal (CRC-32 as in RFC 1952, section 8).

A checksum is computed when a row is written, and checked when the row is read back from the disk;
jobs that stay in memory are not checked. None stands for a row of format version 3 or older, which
has no checksum. CRC-32 finds every error of up to 32 neighbouring bits, and misses one in four
billion of the others.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from payloadd.journal.crc import crc32, of_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["crc32", "job_head", "of_answer", "of_job", "of_lines", "of_totals", "of_values"]

job_head = Struct("<qqq16s").pack
"""Packs stream, seq, payloads and id: the bytes in front of a job's lines."""
_six = Struct("<qqqqqq").pack
_two = Struct("<qq").pack


def of_job(seq: int, id_: bytes, payloads: int, lines: bytes, stream: int = 0) -> int:
    """Return the checksum of a job, whose lines may be in its row or in a segment."""
    return of_lines(lines, crc32(job_head(stream, seq, payloads, id_)))


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
