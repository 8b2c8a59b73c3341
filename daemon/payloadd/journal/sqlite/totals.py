"""What waits in the journal, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.journal.sqlite.checksum import of_totals
from payloadd.journal.sqlite.schema import KEY_BYTES, ROW_BYTES

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.transaction import CommitChanges

_COUNT: Final = """
    SELECT count(*), total(payloads), total(coalesce(size, length(lines)))
    FROM jobs WHERE seq BETWEEN ? AND ?
"""
_EVERY: Final = (1, 2**62)
_WRITE: Final = (
    "UPDATE totals SET next = ?, jobs = ?, payloads = ?, bytes = ?, keys = ?, accepted = ?, crc = ?"
)


@dataclass(frozen=True, slots=True)
class Totals:
    """The next ``seq``, what waits in the journal: jobs, payloads, bytes; and what else is kept."""

    next: int
    jobs: int
    payloads: int
    bytes: int
    keys: int = 0
    """Idempotency-Keys that are known."""
    accepted: int = 0
    """Payloads that were ever accepted."""
    dead_bytes: int = 0
    """What dead letters take; not counted in the others."""
    dead_payloads: int = 0
    """How many payloads dead letters hold; not counted in the others."""
    evicted: int = 0
    """Idempotency-Keys that were forgotten before their time, in this run."""

    @property
    def all_bytes(self) -> int:
        """What waits, what is dead and what keys take: the size that is bounded."""
        return self.bytes + self.dead_bytes + self.keys * KEY_BYTES

    def after(self, changes: CommitChanges) -> Totals:
        """Return what they are when ``changes`` are committed."""
        return Totals(
            changes.next,
            self.jobs + changes.jobs,
            self.payloads + changes.payloads,
            self.bytes + changes.bytes + changes.jobs * ROW_BYTES,
            self.keys + changes.keys,
            self.accepted + changes.accepted,
            self.dead_bytes + changes.dead_bytes,
            self.dead_payloads + changes.dead_payloads,
            self.evicted + changes.evicted,
        )

    def write(self, connection: sqlite3.Connection) -> None:
        """Write them into the journal. Raises sqlite3.Error."""
        row = (self.next, self.jobs, self.payloads, self.bytes, self.keys, self.accepted)
        connection.execute(_WRITE, (*row, of_totals(row)))


class Count(NamedTuple):
    """What is in a range of ``jobs``."""

    jobs: int
    payloads: int
    bytes: int
    """With ROW_BYTES."""


def count(
    connection: sqlite3.Connection, apart: Iterable[tuple[Any, Any]], within: Range = _EVERY
) -> Count:
    """Count the jobs that wait: all but those in the ranges ``apart``, which do not overlap.

    Takes 40 ms for a million jobs that are in memory. Raises sqlite3.Error.
    """
    jobs, payloads, size = _count(connection, within)
    for range_ in apart:
        # A damaged row may hold anything.
        if isinstance(range_[0], int) and isinstance(range_[1], int) and range_[0] > 0:
            less = _count(connection, range_)
            jobs, payloads, size = jobs - less[0], payloads - less[1], size - less[2]
    return Count(jobs, payloads, size + jobs * ROW_BYTES)


def _count(connection: sqlite3.Connection, range_: Range) -> tuple[int, int, int]:
    # What a damaged column makes of a sum, text or a fraction, is counted as well as it can be.
    jobs, payloads, size = connection.execute(_COUNT, range_).fetchone()
    return jobs, int(payloads), int(size)
