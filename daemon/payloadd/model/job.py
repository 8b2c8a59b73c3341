"""The values that go through the pipeline: payloads, jobs, batches, and their ids."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PayloadBytes = bytes | Raw
"""A payload: bytes, or a reference to its bytes in the body of its request."""

_RANDOM_BITS = 62
_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)
_MOST_AHEAD: Final = 10_000
"""Milliseconds by which the time in new ids may be ahead of the clock."""

_new_uuid: Final = uuid.UUID.__new__
_set: Final = object.__setattr__
_SAFETY: Final = uuid.SafeUUID.unknown


class Part(NamedTuple):
    """A job before the journal gives it a ``seq``: id, payloads as NDJSON, and their number."""

    id: uuid.UUID
    lines: bytes
    payloads: int


class Job(NamedTuple):
    """The payloads of one POST, or the part of them that fits into one object.

    ``id`` is a UUIDv7. The time of acceptance in it, in milliseconds, is the only time that a job
    has: a key depends on the id alone.
    """

    seq: int
    """The position in the order of acceptance, from 1."""
    id: uuid.UUID
    lines: bytes
    """The payloads as NDJSON: one payload a line, a line feed behind each."""
    payloads: int
    """The number of payloads."""


class Members(NamedTuple):
    """The identity of a batch, which a store may keep beside the object."""

    payloads: int
    """The number of payloads."""
    first: str
    """The id of the first job, a UUID as text."""
    last: str
    """The id of the last job."""
    whole: bool = True
    """Whether no member is missing; see ``Batch.whole``."""


@dataclass(slots=True, eq=False)
class Batch:
    """The jobs of one object, neighbours in the order of acceptance.

    A batch never changes. The class is not frozen: to construct a frozen dataclass takes several
    times as long, and there is one batch for each object.
    """

    jobs: Sequence[Job]
    key: str
    """The object's key below the store's prefix, with the suffix of the format."""
    format_name: str
    """The name of the object's format in :data:`~payloadd.model.formats.FORMATS`."""
    sealed: bool
    """Whether the journal keeps (or has to keep) members and key before the first upload.

    A batch whose layout allows one job only needs no seal: its key depends on that job alone.
    """
    whole: bool = True
    """Whether the jobs are all that were sealed: a journal may have lost damaged ones."""
    bytes: int = field(init=False)
    """Bytes of all payloads, a line feed behind each included."""
    payloads: int = field(init=False)
    """The number of payloads."""

    def __post_init__(self) -> None:
        size = payloads = 0
        for job in self.jobs:
            size += len(job.lines)
            payloads += job.payloads
        self.bytes, self.payloads = size, payloads

    @property
    def id(self) -> uuid.UUID:
        """The id of the first job, which the key contains."""
        return self.jobs[0].id

    @property
    def members(self) -> Members:
        """The number of payloads, and the ids of the first and of the last job."""
        jobs = self.jobs
        first = id_text(jobs[0].id.int)
        last = first if len(jobs) == 1 else id_text(jobs[-1].id.int)
        return Members(self.payloads, first, last, self.whole)


def uuid_of(number: int) -> uuid.UUID:
    """Return the UUID with this number, which must have at most 128 bits; nothing is checked.

    It equals ``uuid.UUID(int=number)``, whose argument checks were measurable.
    """
    made = _new_uuid(uuid.UUID)
    _set(made, "int", number)
    _set(made, "is_safe", _SAFETY)
    return made


@lru_cache(maxsize=1024)
def id_text(number: int) -> str:
    """Return the UUID with this number as text, as ``str()`` of a UUID does.

    The key of an object and its metadata contain the same id; ``str()`` was measurable.
    """
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def accepted_at(job_id: uuid.UUID) -> float:
    """Return the Unix time in seconds at which a job was accepted, to the millisecond.

    It is the time in a UUIDv7 (RFC 9562, section 5.7).
    """
    return (job_id.int >> 80) / 1000


def split(
    payloads: Sequence[PayloadBytes], most_payloads: int, most_bytes: int, more: int = 0
) -> list[list[PayloadBytes]]:
    """Return ``payloads`` in their order, cut into lists that fit into one object each.

    A list has at most ``most_payloads`` payloads and ``most_bytes`` bytes, a line feed behind each
    payload included, and ``more`` bytes around each. A payload larger than that is a list of its
    own.
    """
    # Payloads that fit into one object are not counted one by one: that was measurable.
    if (
        0 < len(payloads) <= most_payloads
        and sum(map(len, payloads), len(payloads) * (1 + more)) <= most_bytes
    ):
        return [list(payloads)]
    left = iter(payloads)
    return [
        list(islice(left, count))
        for count in _counts(map(len, payloads), most_payloads, most_bytes, more)
    ]


def split_lines(
    text: bytes, sizes: Sequence[int], most_payloads: int, most_bytes: int, more: int = 0
) -> list[tuple[bytes, int]]:
    """Return NDJSON cut as :func:`split` cuts: the lines of each object and their number.

    ``sizes`` are the bytes of each payload without its line feed; ``more`` bytes will be around it.
    """
    found: list[tuple[bytes, int]] = []
    start = index = 0
    for count in _counts(sizes, most_payloads, most_bytes, more):
        end = start + sum(sizes[index : index + count]) + count
        found.append((text[start:end], count))
        start, index = end, index + count
    return found


def _counts(sizes: Iterable[int], most_payloads: int, most_bytes: int, more: int) -> list[int]:
    """Return the number of payloads of each object, for payloads of these sizes."""
    counts: list[int] = []
    free = -1
    for size in sizes:
        if free < size + 1 + more or counts[-1] == most_payloads:
            counts.append(0)
            free = most_bytes
        counts[-1] += 1
        free -= size + 1 + more
    return counts


class IdSource:
    """A source of UUIDv7s (RFC 9562, section 5.7): the clock's millisecond and a random part.

    Each id is larger than the id before, unless the clock goes back by more than 10 s. If it goes
    back by less, the last millisecond is used again and the random part is incremented (sections
    6.1 and 6.2, method 2). If it goes back by more, ids follow the clock: otherwise keys would
    have a wrong date until the clock catches up. Only the random part keeps those ids apart.
    """

    def __init__(self) -> None:
        self._last = -1

    def new_ids(self, count: int) -> list[uuid.UUID]:
        """Return ``count`` new ids with consecutive numbers, so the first id names all of them."""
        first = self.reserve(count)
        return [uuid_of(first + index) for index in range(count)]

    def reserve(self, count: int) -> int:
        """Return the number of the first of ``count`` new ids; the others have the next numbers."""
        milliseconds = time.time_ns() // 1_000_000
        ahead = (self._last >> 80) - milliseconds
        first = self._last + 1 if 0 <= ahead <= _MOST_AHEAD else _fresh(milliseconds)
        self._last = first + max(count, 1) - 1
        return first


class AscendingIds(IdSource):
    """A source of UUIDv7s whose time never goes back, whatever the clock does.

    Keys then have a wrong date until a clock that was put back catches up.
    """

    def __init__(self, floor: int = 0) -> None:
        """Begin with ids whose time, in milliseconds, is not before ``floor``."""
        super().__init__()
        self._floor = floor

    def reserve(self, count: int) -> int:
        """Return the number of the first of ``count`` new ids; the others have the next numbers."""
        milliseconds = self.now()
        same = self._last >> 80 == milliseconds
        first = self._last + 1 if same else _fresh(milliseconds)
        self._last = first + max(count, 1) - 1
        return first

    def raise_floor(self, milliseconds: int) -> None:
        """Let the time of no later id be before ``milliseconds``."""
        self._floor = max(self._floor, milliseconds)

    def mark(self) -> int:
        """Return a time, in milliseconds: later ids are not before it, all earlier ids are."""
        self._floor = self.now() + 1
        return self._floor

    def now(self) -> int:
        """Return the least time that the next id may have, in milliseconds."""
        return max(time.time_ns() // 1_000_000, self._last >> 80, self._floor)


def _fresh(milliseconds: int) -> int:
    """Return the number of the first id of a millisecond.

    It has 73 random bits, before and behind the two bits of the variant. The top bit of the lower
    part is 0: an id can be incremented 2^61 times before an increment reaches the variant.
    """
    random = int.from_bytes(os.urandom(10)) & ((1 << 74) - 1)
    upper, lower = random >> _RANDOM_BITS, random & ((1 << (_RANDOM_BITS - 1)) - 1)
    return (milliseconds << 80) | _VERSION_AND_VARIANT | (upper << 64) | lower
