"""Collect the changes of one commit, to write them with few statements; add them to the totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.journal.sqlite import block_rows, segments
from payloadd.journal.sqlite.checksum import crc32, job_head, of_job, of_lines, of_totals
from payloadd.journal.sqlite.schema import KEY_BYTES, ROW_BYTES
from payloadd.model.job import Job
from payloadd.model.streams import stream_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container, Iterable, Mapping, Sequence

    from payloadd.journal.sqlite.dead_letters import DeadRange
    from payloadd.journal.sqlite.job_rows import NewRow, PlacedRow, Range
    from payloadd.model.job import Batch, Part

_COUNT: Final = """
    SELECT count(*), total(payloads), total(coalesce(size, length(lines)))
    FROM jobs WHERE seq BETWEEN ? AND ?
"""
_EVERY: Final = (1, 2**62)
_WRITE: Final = (
    "UPDATE totals SET next = ?, jobs = ?, payloads = ?, bytes = ?, keys = ?, accepted = ?, crc = ?"
)


class CommitChanges:
    """The changes of one commit: new rows, ranges of settled rows, differences of the totals."""

    def __init__(
        self, count: int, following: Mapping[int, int], in_rows: Container[int] = ()
    ) -> None:
        """Begin without changes.

        ``count`` is ``next`` of the totals, ``following`` the ``seq`` of the next job of each
        stream. The small jobs of the streams ``in_rows`` are written as rows, not as a block.
        """
        self._in_rows = in_rows
        self.next = count
        """``next`` of the totals after this commit."""
        self.following = {**following}
        """The ``seq`` of the next job of each stream, by the number of the stream."""
        self.requests = False
        """Whether the commit answers requests."""
        self.small: list[Job] = []
        """Jobs that are written as a block."""
        self.alone: list[Job] = []
        """Jobs that are written as rows."""
        self.rows: list[NewRow] = []
        """Rows that contain their payloads."""
        self.placed: list[PlacedRow] = []
        """Rows of jobs whose payloads are in a segment."""
        self.large: list[Job] = []
        """Jobs whose payloads may go into a segment; ``Staging.place`` decides it."""
        self.large_bytes = 0
        self.staged: list[Job] = []
        """Jobs of the request that is being staged. They have no row yet either."""
        self.settled: list[Range] = []
        self.unsealed: list[int] = []
        """The first ``seq`` of each sealed batch that is settled."""
        self.revived: list[int] = []
        """The first ``seq`` of each dead letter that is revived."""
        self.jobs = 0
        self.payloads = 0
        self.bytes = 0
        """Without ROW_BYTES."""
        self.dead_bytes = 0
        """With ROW_BYTES."""
        self.dead_payloads = 0
        self.accepted = 0
        """Payloads that are accepted."""
        self.keys = 0
        """The difference in the number of Idempotency-Keys."""
        self.evicted = 0
        """Idempotency-Keys that are deleted before they expire."""

    def accept(self, parts: Sequence[Part], stream: int) -> list[Job]:
        """Add the parts of a request with the next numbers of its stream; return them as jobs."""
        taken = []
        small = self.alone if stream in self._in_rows else self.small
        seq = self.following[stream]
        for id_, lines, payloads in parts:
            size = len(lines)
            job = Job(seq, id_, lines, payloads)
            self.payloads += payloads
            self.accepted += payloads
            self.bytes += size
            if size < segments.LARGE:
                small.append(job)
            else:
                self.large.append(job)
                self.large_bytes += size
            taken.append(job)
            seq += 1
        self.following[stream] = seq
        count = len(taken)
        self.next += count
        self.jobs += count
        return taken

    def reserve(self, count: int, stream: int) -> int:
        """Use up the next ``count`` numbers of a stream; return the first of them."""
        first = self.following[stream]
        self.following[stream] = first + count
        self.next += count
        return first

    def stage(self, parts: Sequence[Part], first: int) -> list[Job]:
        """Add parts, numbered from ``first`` on, that are written but not counted yet."""
        jobs = [Job(seq, *part) for seq, part in enumerate(parts, first)]
        self.staged += jobs
        return jobs

    def accept_staged(self, jobs: Sequence[Job]) -> None:
        """Count the jobs of a request all of whose parts are staged."""
        payloads = sum([job.payloads for job in jobs])
        self.jobs += len(jobs)
        self.payloads += payloads
        self.accepted += payloads
        self.bytes += sum([len(job.lines) for job in jobs])

    def settle(self, batch: Batch) -> None:
        """Remove a stored batch."""
        first = batch.jobs[0].seq
        self.settled.append((first, batch.jobs[-1].seq))
        if batch.sealed:
            self.unsealed.append(first)
        self._subtract(batch)

    def bury(self, batch: Batch) -> None:
        """Count a batch as dead; its rows stay where they are."""
        self._subtract(batch)
        self.dead_bytes += batch.bytes + len(batch.jobs) * ROW_BYTES
        self.dead_payloads += batch.payloads

    def revive(self, letter: DeadRange) -> None:
        """Count a dead letter as jobs again."""
        self.revived.append(letter.first)
        self.jobs += letter.jobs
        self.payloads += letter.payloads
        self.bytes += letter.bytes
        self.dead_bytes -= letter.journal_bytes
        self.dead_payloads -= letter.payloads

    def _subtract(self, batch: Batch) -> None:
        self.jobs -= len(batch.jobs)
        self.payloads -= batch.payloads
        self.bytes -= batch.bytes

    def place(self, jobs: Sequence[Job], segment: int, start: int) -> None:
        """Make rows of jobs whose payloads are in ``segment`` from the offset ``start`` on."""
        for job in jobs:
            size = len(job.lines)
            id_ = job.id.bytes
            crc = of_job(job.seq, id_, job.payloads, job.lines)
            self.placed.append((job.seq, bytearray(id_), job.payloads, segment, start, size, crc))
            start += size

    def place_in_file(self, jobs: Sequence[Job]) -> None:
        """Write large jobs as small ones are written."""
        for job in jobs:
            (self.alone if stream_of(job.seq) in self._in_rows else self.small).append(job)

    def place_in_rows(self, jobs: Sequence[Job]) -> None:
        """Make rows of jobs that contain their payloads."""
        for seq, id_, lines, payloads in jobs:
            bare = id_.bytes
            # As of_job does, without the call.
            crc = of_lines(lines, crc32(job_head(0, seq, payloads, bare)))
            self.rows.append((seq, bytearray(bare), payloads, bytearray(lines), crc))


@dataclass(frozen=True, slots=True)
class Totals:
    """The numbers of the journal, and the jobs that are neither stored nor dead.

    ``next`` is one more than all numbers that were given to jobs of any stream: with the default
    stream alone the ``seq`` of the next job. No job has a ``seq`` whose count (``count_of``) is as
    high, so each start goes on with this count in every stream.

    ``bytes`` includes ROW_BYTES for each job.
    """

    next: int
    jobs: int
    payloads: int
    bytes: int
    keys: int = 0
    """Idempotency-Keys that are known."""
    accepted: int = 0
    """Payloads that were ever accepted."""
    dead_bytes: int = 0
    """Bytes of dead letters; not counted in the others."""
    dead_payloads: int = 0
    """Payloads in dead letters; not counted in the others."""
    evicted: int = 0
    """Idempotency-Keys that were deleted before they expired, in this run."""

    @property
    def all_bytes(self) -> int:
        """Bytes of jobs, dead letters and keys: the size that JOURNAL_MAX_BYTES bounds."""
        return self.bytes + self.dead_bytes + self.keys * KEY_BYTES

    def after(self, changes: CommitChanges) -> Totals:
        """Return the totals once ``changes`` are committed."""
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
        """Write the totals into the journal. Raises sqlite3.Error."""
        row = (self.next, self.jobs, self.payloads, self.bytes, self.keys, self.accepted)
        connection.execute(_WRITE, (*row, of_totals(row)))


class Count(NamedTuple):
    """The contents of a range of jobs."""

    jobs: int
    payloads: int
    bytes: int
    """With ROW_BYTES."""


def count(
    connection: sqlite3.Connection,
    apart: Iterable[tuple[Any, Any]],
    within: Range = _EVERY,
    in_blocks: Iterable[block_rows.BlockCount] | None = None,
) -> Count:
    """Count the jobs in ``within``, without the ranges ``apart``, which do not overlap.

    ``within`` is a stream, or all of them. Reads all rows of the range, and the heads of all blocks
    where ``in_blocks``, the jobs of the range in blocks, is None. Raises sqlite3.Error.
    """
    apart = list(apart)
    jobs, payloads, size = _count(connection, within)
    for range_ in apart:
        # A damaged row may contain any value.
        if isinstance(range_[0], int) and isinstance(range_[1], int) and range_[0] > 0:
            less = _count(connection, range_)
            jobs, payloads, size = jobs - less[0], payloads - less[1], size - less[2]
    for one in block_rows.waiting(connection, apart) if in_blocks is None else in_blocks:
        if within[0] <= one.first <= within[1]:
            jobs += one.last - one.first + 1
            payloads += one.payloads
            size += one.size
    return Count(jobs, payloads, size + jobs * ROW_BYTES)


def _count(connection: sqlite3.Connection, range_: Range) -> tuple[int, int, int]:
    # A damaged column may make the sum a text or a fraction: it is counted as well as it can be.
    jobs, payloads, size = connection.execute(_COUNT, range_).fetchone()
    return jobs, int(payloads), int(size)
