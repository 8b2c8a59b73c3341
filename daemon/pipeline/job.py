"""What walks through the pipeline, and the ids it carries."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.values import Compression

Buffer = bytes | Raw
"""A payload: bytes, or where they are in the body of their request, not copied yet."""

_RANDOM_BITS = 62
_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)
_MOST_AHEAD: Final = 10_000
"""Milliseconds by which ids may be ahead of the clock."""


class Part(NamedTuple):
    """What becomes one job: an id, the payloads as NDJSON, and how many they are."""

    id: uuid.UUID
    lines: bytes
    payloads: int


@dataclass(frozen=True, slots=True, eq=False)
class Job:
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

    @property
    def accepted_at(self) -> float:
        """Unix time in seconds at which the job was accepted."""
        return (self.id.int >> 80) / 1000


@dataclass(frozen=True, slots=True)
class Batch:
    """The jobs of one object, neighbours in the order of acceptance."""

    jobs: tuple[Job, ...]
    key: str
    """The object's key below the store's prefix, with the compression's suffix."""
    compression: Compression
    sealed: bool
    """Whether members and key are (or have to be) fixed in the journal: replayed as they are.

    A job that goes alone needs no seal: its key follows from itself.
    """

    @property
    def id(self) -> uuid.UUID:
        """The id of the first job, which the key is made of."""
        return self.jobs[0].id

    @property
    def lines(self) -> bytes:
        """All payloads as NDJSON, in order."""
        return b"".join([job.lines for job in self.jobs])

    @property
    def bytes(self) -> int:
        """Bytes of the payloads with their line feeds."""
        return sum([len(job.lines) for job in self.jobs])

    @property
    def payloads(self) -> int:
        """How many payloads there are."""
        return sum([job.payloads for job in self.jobs])


def split(payloads: Sequence[Buffer], most_payloads: int, most_bytes: int) -> list[list[Buffer]]:
    """Return ``payloads`` cut, in order, into what one object holds.

    A payload larger than ``most_bytes`` goes alone.
    """
    # What fits is not counted one by one: 0.2 µs a payload.
    if 0 < len(payloads) <= most_payloads and sum(map(len, payloads), len(payloads)) <= most_bytes:
        return [list(payloads)]
    parts: list[list[Buffer]] = []
    size = most_bytes + 1
    for payload in payloads:
        line = len(payload) + 1
        if size + line > most_bytes or len(parts[-1]) == most_payloads:
            parts.append([])
            size = 0
        parts[-1].append(payload)
        size += line
    return parts


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
        milliseconds = time.time_ns() // 1_000_000
        ahead = (self._last >> 80) - milliseconds
        first = self._last + 1 if 0 <= ahead <= _MOST_AHEAD else _fresh(milliseconds)
        self._last = first + max(count, 1) - 1
        return [uuid.UUID(int=first + index) for index in range(count)]


def _fresh(milliseconds: int) -> int:
    """Return the first id of a millisecond.

    74 random bits lie around the variant's two; the top bit of the lower part stays clear,
    which leaves room to count up 2^61 times before the variant would be touched.
    """
    random = int.from_bytes(os.urandom(10)) & ((1 << 74) - 1)
    upper, lower = random >> _RANDOM_BITS, random & ((1 << (_RANDOM_BITS - 1)) - 1)
    return (milliseconds << 80) | _VERSION_AND_VARIANT | (upper << 64) | lower
