"""How jobs are kept in a row: neighbours of one stream, their ids and sizes, then their payloads.

A row has up to MOST_BYTES of payloads, or one job. Its ``body`` begins with an entry for each job
(id, number of payloads, bytes of its lines), and the lines follow. The checksum also covers the
stream and the numbers of the jobs.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.journal.crc import of_lines
from payloadd.model.job import Job, uuid_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_BYTES: Final = 2**20
"""Bytes of payloads in a row, unless its one job has more: a page is read row by row."""
ROW_BYTES: Final = 32
"""Bytes that a job takes beside its payloads, about."""

_ENTRY: Final = Struct(">16sII")
_POSITION: Final = Struct(">IQI")
_pack: Final = _ENTRY.pack


class NewRow(NamedTuple):
    """The values of one row that is written."""

    stream: int
    last: int
    """The number of the last job in its stream."""
    jobs: int
    payloads: int
    size: int
    """Bytes of all payloads."""
    crc: int
    body: bytes


class WrongChecksumError(Exception):
    """A row does not match its checksum."""


def new_rows(stream: int, first: int, jobs: Sequence[Job]) -> Iterator[NewRow]:
    """Yield the rows of jobs that are neighbours; ``first`` is the number of the first job."""
    start = size = 0
    for index, job in enumerate(jobs):
        length = len(job.lines)
        if index > start and size + length > MOST_BYTES:
            yield _row(stream, first + start, jobs[start:index], size)
            start, size = index, 0
        size += length
    if jobs:
        yield _row(stream, first + start, jobs[start:] if start else jobs, size)


def _row(stream: int, first: int, jobs: Sequence[Job], size: int) -> NewRow:
    last = first + len(jobs) - 1
    crc, body = encode(stream, last, jobs)
    return NewRow(stream, last, len(jobs), sum([job.payloads for job in jobs]), size, crc, body)


def encode(stream: int, last: int, jobs: Sequence[Job]) -> tuple[int, bytes]:
    """Return the checksum and the body of a row with these jobs."""
    pieces = [_pack(id_.bytes, payloads, len(lines)) for _, id_, lines, payloads in jobs]
    pieces += [job.lines for job in jobs]
    body = b"".join(pieces)
    return checksum(stream, last, len(jobs), body), body


def checksum(stream: int, last: int, jobs: int, body: bytes) -> int:
    """Return the checksum of a row."""
    return of_lines(body, of_lines(_POSITION.pack(stream, last, jobs)))


def decode(stream: int, last: int, jobs: int, crc: int, body: bytes, base: int) -> list[Job]:
    """Return the jobs of a row; ``base`` is added to their numbers and makes their ``seq``.

    Raises WrongChecksumError.
    """
    if checksum(stream, last, jobs, body) != crc:
        raise WrongChecksumError
    found: list[Job] = []
    start = jobs * _ENTRY.size
    seq = base + last - jobs + 1
    for id_, payloads, size in _ENTRY.iter_unpack(memoryview(body)[:start]):
        end = start + size
        if payloads:
            found.append(Job(seq, uuid_of(int.from_bytes(id_)), body[start:end], payloads))
        start = end
        seq += 1
    return found


def missing(seq: int) -> Job:
    """Return what stands in a row for a job that is lost; ``decode`` leaves it out."""
    return Job(seq, uuid_of(0), b"", 0)


def id_in(head: bytes, index: int) -> int:
    """Return the id, as a number, of the job with this index; ``head`` begins as a body does."""
    return int.from_bytes(head[index * _ENTRY.size : index * _ENTRY.size + 16])


ENTRY_BYTES: Final = _ENTRY.size
