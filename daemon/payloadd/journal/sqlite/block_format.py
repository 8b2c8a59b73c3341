"""The format of a block: small jobs of one commit, of all streams, in one row of ``blocks``.

A row in ``jobs`` for each job would lie in a page of its own for each stream, because ``seq``
begins with the number of the stream. A block keeps the jobs of a commit together, whatever their
streams are, and needs one statement for all of them.

A block has a head, which lists its jobs, and behind it their lines, one after the other. The head
is little-endian without padding: the number of runs and the number of jobs (two u32); the first and
the last ``seq`` of each run of neighbouring jobs (two i64 each); then for all jobs, in order of
``seq``, the payloads, the bytes of the lines and their CRC-32 (u32 each), and the ids (16 bytes
each). ``crc`` of the row is the CRC-32 of the head, continued from the number of the block. So a
damaged byte of the lines damages one job, and the head tells which one. The lines are the last
column: the head can be read where their pages cannot.
"""

from __future__ import annotations

from array import array
from itertools import chain
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.journal.crc import of_lines
from payloadd.journal.sqlite.checksum import crc32, of_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from payloadd.journal.sqlite.job_rows import Range, Row
    from payloadd.model.job import Job

_COUNTS: Final = Struct("<II")
_RUN_BYTES: Final = 16
_ID_BYTES: Final = 16
_JOB_BYTES: Final = 12 + _ID_BYTES
_MANY: Final = 4 * 2**10
"""Bytes of lines from which ``of_lines`` is faster than ``crc32``."""
_BEYOND: Final = 2**62
_UNSIGNED: Final = 0xFFFFFFFF
WRONG_CHECKSUM: Final = -1
"""A value of ``crc`` that no row matches."""


class NewBlock(NamedTuple):
    """A block that is to be written."""

    number: int
    crc: int
    head: bytearray
    lines: bytearray
    runs: list[Range]
    """The ranges of ``seq`` of the jobs, in order."""


class BlockHead(NamedTuple):
    """The list of the jobs in a block."""

    runs: list[Range]
    """The ranges of ``seq`` of the jobs, in order."""
    payloads: Sequence[int]
    sizes: Sequence[int]
    """The bytes of the lines of each job."""
    checksums: Sequence[int]
    """The CRC-32 of the lines of each job."""
    ids: bytes

    def seqs(self) -> Iterator[int]:
        """Return the ``seq`` of each job, in order."""
        return chain.from_iterable([range(first, last + 1) for first, last in self.runs])


def pack(number: int, jobs: Sequence[Job]) -> NewBlock:
    """Return the block with ``jobs``, which are in order of ``seq``."""
    seqs, ids, lines, payloads = zip(*jobs, strict=True)
    runs = _runs(seqs)
    sizes = list(map(len, lines))
    head = bytearray().join(
        [
            _COUNTS.pack(len(runs), len(jobs)),
            array("q", chain.from_iterable(runs)).tobytes(),
            array("I", payloads).tobytes(),
            array("I", sizes).tobytes(),
            array("I", map(crc32 if max(sizes) < _MANY else of_lines, lines)).tobytes(),
            *[id_.int.to_bytes(_ID_BYTES) for id_ in ids],
        ]
    )
    return NewBlock(number, _checksum(number, head), head, bytearray().join(lines), runs)


def _runs(seqs: Sequence[int]) -> list[Range]:
    """Return the ranges of neighbours in ascending numbers."""
    first = seqs[0]
    if seqs[-1] - first == len(seqs) - 1:
        return [(first, seqs[-1])]
    runs: list[Range] = []
    before = first
    for seq in seqs[1:]:
        if seq != before + 1:
            runs.append((first, before))
            first = seq
        before = seq
    return [*runs, (first, before)]


def _checksum(number: int, head: bytes | bytearray) -> int:
    return crc32(head, number & _UNSIGNED)


def read_head(number: int, crc: object, head: object) -> BlockHead | None:
    """Return the head of a block that was read, None where it does not match its checksum."""
    if not isinstance(head, bytes) or len(head) < _COUNTS.size or crc != _checksum(number, head):
        return None
    runs, jobs = _COUNTS.unpack_from(head)
    if len(head) != _COUNTS.size + runs * _RUN_BYTES + jobs * _JOB_BYTES:
        return None
    columns: list[array[int]] = []
    start = _COUNTS.size
    for kind, count in (("q", 2 * runs), ("I", jobs), ("I", jobs), ("I", jobs)):
        column = array(kind)
        end = start + count * column.itemsize
        column.frombytes(head[start:end])
        columns.append(column)
        start = end
    ends, payloads, sizes, checksums = columns
    ranges = list(zip(ends[::2], ends[1::2], strict=True))
    return BlockHead(ranges, payloads, sizes, checksums, head[start:])


def rows_of(head: BlockHead, lines: object, first: int = 0, last: int = _BEYOND) -> Iterator[Row]:
    """Yield each job of a block from ``first`` to ``last`` as a row of ``jobs``, in order.

    A job whose lines do not match their checksum gets a row that does not match its own.
    """
    text = _bytes_of(lines)
    start = 0
    columns = zip(head.seqs(), head.payloads, head.sizes, head.checksums, strict=True)
    for index, (seq, payloads, size, wanted) in enumerate(columns):
        start += size
        if not first <= seq <= last:
            continue
        found = text[start - size : start]
        id_ = head.ids[_ID_BYTES * index : _ID_BYTES * (index + 1)]
        sound = len(found) == size and of_lines(found) == wanted
        crc = of_job(seq, id_, payloads, found) if sound else WRONG_CHECKSUM
        yield (seq, id_, payloads, found, None, None, None, 0, crc)


def lost_rows(runs: Sequence[Range]) -> Iterator[Row]:
    """Yield a damaged row for each job of a block whose head is damaged."""
    for first, last in runs:
        for seq in range(first, last + 1):
            yield (seq, b"", 0, b"", None, None, None, 0, WRONG_CHECKSUM)


def _bytes_of(lines: Any) -> bytes:  # noqa: ANN401 - a damaged value has any type
    if isinstance(lines, str):
        return lines.encode(errors="surrogateescape")
    return lines if isinstance(lines, bytes) else b""
