"""A plain model of the content of the journal's file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from payloadd.journal.key_clock import KEEP
from payloadd.journal.sqlite.operations import Append, Bury, Expire, Revive, Seal, Settle, Stage
from payloadd.journal.sqlite.schema import ROW_BYTES
from payloadd.model.job import Batch, Job
from payloadd.model.streams import first_seq

if TYPE_CHECKING:
    from payloadd.journal.api import Receipt
    from payloadd.journal.sqlite.operations import Operation


@dataclass(frozen=True)
class Answer:
    """The expected answer to an Idempotency-Key."""

    receipt: Receipt
    expires: float
    lines: bytes
    """The payloads of the request."""


def lines_of(append: Append) -> bytes:
    """Return the payloads of a request as NDJSON."""
    return b"".join(part.lines for part in append.parts)


@dataclass
class Model:
    """The expected content of the file."""

    next: int
    following: dict[int, int]
    """The next number of each stream."""
    jobs: dict[int, Job]
    sealed: dict[int, Batch]
    answers: dict[bytes, Answer]
    dead: dict[int, Batch]
    wanted: set[int]
    """The dead letters that are marked to be tried again."""

    @property
    def dead_bytes(self) -> int:
        """The bytes of all dead letters."""
        return sum(one.bytes + len(one.jobs) * ROW_BYTES for one in self.dead.values())

    def restart(self) -> None:
        """Let the streams go on with the number of all jobs so far."""
        self.following = {stream: first_seq(stream) + self.next for stream in self.following}

    def number(self, append: Append) -> int:
        """Give numbers to the parts of a request; returns the first one."""
        first = self.following[append.stream]
        self.following[append.stream] += len(append.parts)
        self.next += len(append.parts)
        return first

    def take_in(self, append: Append) -> list[Job]:
        """Keep the parts of a request."""
        first = append.first if append.staged else self.number(append)
        parts = append.parts
        jobs = [Job(first + index, *part) for index, part in enumerate(parts)]
        self.jobs |= {job.seq: job for job in jobs}
        return jobs

    def carry_out(self, operation: Operation, now: float) -> list[Job]:
        """Apply an operation as the file does; returns the new jobs."""
        match operation:
            case Append():
                return self.accept(operation, now)
            case Stage(append, start=0) if append.earlier is None:
                self.number(append)
            case Seal(batch):
                self.sealed[batch.jobs[0].seq] = batch
            case Settle(batch):
                self.forget(batch)
            case Bury(batch):
                self.forget(batch)
                self.dead[batch.jobs[0].seq] = batch
            case Revive():
                revived = [
                    replace(self.dead.pop(first), sealed=True) for first in sorted(self.wanted)
                ]
                self.wanted.clear()
                self.sealed |= {one.jobs[0].seq: one for one in revived}
                jobs = [job for one in revived for job in one.jobs]
                self.jobs |= {job.seq: job for job in jobs}
                return jobs
            case Expire():
                self.answers = {key: one for key, one in self.answers.items() if one.expires > now}
        return []

    def accept(self, append: Append, now: float) -> list[Job]:
        """Keep the jobs of a request, unless its key is known."""
        if append.key is not None:
            known = self.answers.get(append.key)
            if known is not None and known.expires > now:
                return []
            if append.parts:
                self.answers[append.key] = Answer(append.receipt, now + KEEP, lines_of(append))
        return self.take_in(append)

    def forget(self, batch: Batch) -> None:
        """Drop a batch."""
        for job in batch.jobs:
            del self.jobs[job.seq]
        if batch.sealed:
            del self.sealed[batch.jobs[0].seq]
