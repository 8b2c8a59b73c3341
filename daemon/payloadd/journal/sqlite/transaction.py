"""What the operations of one commit do to ``jobs``, gathered to be written with few statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.checksum import crc32, job_head, of_job
from payloadd.journal.sqlite.schema import ROW_BYTES
from payloadd.model.job import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.journal.sqlite.dead_letters import DeadRange
    from payloadd.journal.sqlite.job_rows import NewRow, PlacedRow, Range
    from payloadd.model.job import Batch, Part


class CommitChanges:
    """The new rows, the ranges of settled ones, and what the totals change by."""

    def __init__(self, following: int) -> None:
        self.next = following
        """The ``seq`` of the next job."""
        self.rows: list[NewRow] = []
        self.placed: list[PlacedRow] = []
        self.large: list[Job] = []
        """Those whose lines may go into a segment: they have no row before they have a place."""
        self.large_bytes = 0
        self.staged: list[Job] = []
        """Those of the request that is being staged; they have no row yet either."""
        self.settled: list[Range] = []
        self.unsealed: list[int] = []
        """The first ``seq`` of each sealed batch that is settled."""
        self.revived: list[int] = []
        """The first ``seq`` of each dead letter that comes back."""
        self.jobs = 0
        self.payloads = 0
        self.bytes = 0
        """Without ROW_BYTES."""
        self.dead_bytes = 0
        """With ROW_BYTES."""
        self.dead_payloads = 0
        self.accepted = 0
        """Payloads that are taken in."""
        self.keys = 0
        """Idempotency-Keys, more or less than before."""
        self.evicted = 0
        """Keys that are forgotten before their time."""

    def take_in(self, parts: Sequence[Part]) -> list[Job]:
        """Give each part its number; returns them as jobs."""
        taken = []
        for id_, lines, payloads in parts:
            job = Job(self.next, id_, lines, payloads)
            self.next += 1
            self.payloads += payloads
            self.accepted += payloads
            self.bytes += len(lines)
            if len(lines) < segments.LARGE:
                bare = id_.bytes
                # As of_job does, without the call: it is made for every small job.
                crc = crc32(lines, crc32(job_head(0, job.seq, payloads, bare)))
                self.rows.append((job.seq, bytearray(bare), payloads, bytearray(lines), crc))
            else:
                self.large.append(job)
                self.large_bytes += len(lines)
            taken.append(job)
        self.jobs += len(taken)
        return taken

    def stage(self, parts: Sequence[Part], first: int) -> list[Job]:
        """Return parts as jobs, numbered from ``first`` on, that are written but not counted."""
        jobs = [Job(seq, *part) for seq, part in enumerate(parts, first)]
        self.staged += jobs
        return jobs

    def take_in_staged(self, jobs: Sequence[Job]) -> None:
        """Count the jobs of a request of which all has been staged."""
        payloads = sum([job.payloads for job in jobs])
        self.jobs += len(jobs)
        self.payloads += payloads
        self.accepted += payloads
        self.bytes += sum([len(job.lines) for job in jobs])

    def settle(self, batch: Batch) -> None:
        """Take a stored batch away."""
        first = batch.jobs[0].seq
        self.settled.append((first, batch.jobs[-1].seq))
        if batch.sealed:
            self.unsealed.append(first)
        self._count_away(batch)

    def bury(self, batch: Batch) -> None:
        """Take a batch out of circulation; it stays where it is."""
        self._count_away(batch)
        self.dead_bytes += batch.bytes + len(batch.jobs) * ROW_BYTES
        self.dead_payloads += batch.payloads

    def revive(self, letter: DeadRange) -> None:
        """Bring a dead letter back."""
        self.revived.append(letter.first)
        self.jobs += letter.jobs
        self.payloads += letter.payloads
        self.bytes += letter.bytes
        self.dead_bytes -= letter.journal_bytes
        self.dead_payloads -= letter.payloads

    def _count_away(self, batch: Batch) -> None:
        self.jobs -= len(batch.jobs)
        self.payloads -= batch.payloads
        self.bytes -= batch.bytes

    def place(self, jobs: Sequence[Job], segment: int, start: int) -> None:
        """Make rows of jobs whose lines are in ``segment`` from ``start`` on."""
        for job in jobs:
            size = len(job.lines)
            id_ = job.id.bytes
            crc = of_job(job.seq, id_, job.payloads, job.lines)
            self.placed.append((job.seq, bytearray(id_), job.payloads, segment, start, size, crc))
            start += size

    def place_in_rows(self, jobs: Sequence[Job]) -> None:
        """Make rows of jobs that hold their lines."""
        for job in jobs:
            id_ = job.id.bytes
            crc = of_job(job.seq, id_, job.payloads, job.lines)
            self.rows.append((job.seq, bytearray(id_), job.payloads, job.lines, crc))
