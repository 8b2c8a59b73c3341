"""What has to be in the journal's file, in plain Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from daemon.pipeline.answers import KEEP
from daemon.pipeline.job import Batch, Job, Part
from daemon.pipeline.operations import Append, Bury, Expire, Receipt, Revive, Seal, Settle
from daemon.pipeline.schema import ROW_BYTES

if TYPE_CHECKING:
    from daemon.pipeline.operations import Operation


@dataclass(frozen=True)
class Answer:
    """What the model knows of an Idempotency-Key."""

    receipt: Receipt
    expires: float


@dataclass
class Model:
    """What has to be in the file, in plain Python."""

    next: int
    jobs: dict[int, Job]
    sealed: dict[int, Batch]
    answers: dict[bytes, Answer]
    dead: dict[int, Batch]
    wanted: set[int]
    """The dead letters that an operator wants tried again."""

    @property
    def dead_bytes(self) -> int:
        """What the dead letters take."""
        return sum(one.bytes + len(one.jobs) * ROW_BYTES for one in self.dead.values())

    def take_in(self, parts: list[Part]) -> list[Job]:
        """Give the parts their numbers and keep them."""
        jobs = [Job(self.next + index, *part) for index, part in enumerate(parts)]
        self.next += len(jobs)
        self.jobs |= {job.seq: job for job in jobs}
        return jobs

    def carry_out(self, operation: Operation, now: float) -> list[Job]:
        """Do what the file does; returns the jobs that are new."""
        match operation:
            case Append(receipt, parts, key):
                if key is not None:
                    known = self.answers.get(key)
                    if known is not None and known.expires > now:
                        return []
                    if parts:
                        self.answers[key] = Answer(receipt, now + KEEP)
                return self.take_in(list(parts))
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

    def forget(self, batch: Batch) -> None:
        """Drop a batch."""
        for job in batch.jobs:
            del self.jobs[job.seq]
        if batch.sealed:
            del self.sealed[batch.jobs[0].seq]
