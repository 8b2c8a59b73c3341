"""What walks through the pipeline, and the ids it carries."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterable, Sequence

    from payloadd.config.parsers import Compression

Buffer = bytes | Raw
"""A payload: bytes, or where they are in the body of their request, not copied yet."""

_RANDOM_BITS = 62
_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)
_MOST_AHEAD: Final = 10_000
"""Milliseconds by which ids may be ahead of the clock."""


_new_uuid: Final = uuid.UUID.__new__
_set: Final = object.__setattr__
_SAFETY: Final = uuid.SafeUUID.unknown

_PIECE: Final = 65_536
"""Bytes: a write of this many costs little more than the copying of them."""


class Part(NamedTuple):
    """What becomes one job: an id, the payloads as NDJSON, and how many they are."""

    id: uuid.UUID
    lines: bytes
    payloads: int


class Job(NamedTuple):
    """Payloads that are stored together: what one POST brought, or as much as an object holds.

    ``id`` is a UUIDv7; the time of acceptance (in it, in milliseconds) is the only time a
    job has, so that its key follows from the id alone.
    """

    seq: int
    """The order of acceptance, from 1."""
    id: uuid.UUID
    lines: bytes
    """The payloads as NDJSON: one a line, each line ending in a line feed."""
    payloads: int
    """How many they are."""


@dataclass(slots=True, eq=False)
class Batch:
    """The jobs of one object, neighbours in the order of acceptance.

    Nothing in it changes. It is not frozen all the same: there is one for each object, and a
    frozen dataclass takes three times as long to build.
    """

    jobs: Sequence[Job]
    key: str
    """The object's key below the store's prefix, with the compression's suffix."""
    compression: Compression
    sealed: bool
    """Whether members and key are (or have to be) fixed in the journal: replayed as they are.

    A job that goes alone needs no seal: its key follows from itself.
    """
    bytes: int = field(init=False)
    """Bytes of the payloads with their line feeds."""
    payloads: int = field(init=False)
    """How many payloads there are."""

    def __post_init__(self) -> None:
        size = payloads = 0
        for job in self.jobs:
            size += len(job.lines)
            payloads += job.payloads
        self.bytes, self.payloads = size, payloads

    @property
    def id(self) -> uuid.UUID:
        """The id of the first job, which the key is made of."""
        return self.jobs[0].id

    @property
    def pieces(self) -> list[builtins.bytes]:
        """All payloads as NDJSON, in order, in pieces of 64 KiB or so.

        Small jobs are joined: to hash and send each by itself would cost more than the copy.
        What is as large as a piece is not copied.
        """
        jobs = self.jobs
        if self.bytes <= _PIECE:
            return [b"".join([job.lines for job in jobs])]
        many = max(1, _PIECE * len(jobs) // self.bytes)
        return [
            b"".join([job.lines for job in jobs[start : start + many]])
            for start in range(0, len(jobs), many)
        ]


def uuid_of(number: int) -> uuid.UUID:
    """Return the UUID with this number, which must have 128 bits at most.

    The same as ``uuid.UUID(int=number)`` at a fifth of its cost: the checks of its arguments took
    more time than all else that is done with an id.
    """
    made = _new_uuid(uuid.UUID)
    _set(made, "int", number)
    _set(made, "is_safe", _SAFETY)
    return made


def accepted_at(job_id: uuid.UUID) -> float:
    """Return the Unix time in seconds, to the millisecond, at which a job was accepted."""
    return (job_id.int >> 80) / 1000


def split(payloads: Sequence[Buffer], most_payloads: int, most_bytes: int) -> list[list[Buffer]]:
    """Return ``payloads`` cut, in order, into what one object holds.

    A payload larger than ``most_bytes`` goes alone.
    """
    # What fits is not counted one by one: 0.2 µs a payload.
    if 0 < len(payloads) <= most_payloads and sum(map(len, payloads), len(payloads)) <= most_bytes:
        return [list(payloads)]
    left = iter(payloads)
    return [
        list(islice(left, count))
        for count in _counts(map(len, payloads), most_payloads, most_bytes)
    ]


def split_lines(
    text: bytes, sizes: Sequence[int], most_payloads: int, most_bytes: int
) -> list[tuple[bytes, int]]:
    """Return NDJSON cut in the same way: the lines of each object, and how many they are.

    ``sizes`` are the bytes of each payload without its line feed.
    """
    found: list[tuple[bytes, int]] = []
    start = at = 0
    for count in _counts(sizes, most_payloads, most_bytes):
        end = start + sum(sizes[at : at + count]) + count
        found.append((text[start:end], count))
        start, at = end, at + count
    return found


def _counts(sizes: Iterable[int], most_payloads: int, most_bytes: int) -> list[int]:
    """Return how many payloads, of these sizes, go into each object."""
    counts: list[int] = []
    room = -1
    for size in sizes:
        if room < size + 1 or counts[-1] == most_payloads:
            counts.append(0)
            room = most_bytes
        counts[-1] += 1
        room -= size + 1
    return counts


class IdSource:
    """Gives UUIDv7s (RFC 9562, section 5.7): the clock's millisecond and a random part.

    They rise within the process, unless the clock goes back by more than 10 s. Less is not
    followed (section 6.1): the last millisecond that was used is used again, and the random
    part is counted up (section 6.2, method 2). More is, or keys would carry a wrong date until
    the clock has caught up; it is the random part alone that keeps those ids apart.
    ``take(n)`` gives consecutive ones, so the first names them all.
    """

    def __init__(self) -> None:
        self._last = -1

    def take(self, count: int) -> list[uuid.UUID]:
        """Return ``count`` new ids, each one more than the one before."""
        first = self.reserve(count)
        return [uuid_of(first + index) for index in range(count)]

    def reserve(self, count: int) -> int:
        """Return the first of ``count`` new ids as a number; the others follow it."""
        milliseconds = time.time_ns() // 1_000_000
        ahead = (self._last >> 80) - milliseconds
        first = self._last + 1 if 0 <= ahead <= _MOST_AHEAD else _fresh(milliseconds)
        self._last = first + max(count, 1) - 1
        return first


def _fresh(milliseconds: int) -> int:
    """Return the first id of a millisecond.

    74 random bits lie around the variant's two; the top bit of the lower part stays clear,
    which leaves room to count up 2^61 times before the variant would be touched.
    """
    random = int.from_bytes(os.urandom(10)) & ((1 << 74) - 1)
    upper, lower = random >> _RANDOM_BITS, random & ((1 << (_RANDOM_BITS - 1)) - 1)
    return (milliseconds << 80) | _VERSION_AND_VARIANT | (upper << 64) | lower
