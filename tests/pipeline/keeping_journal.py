"""A durable journal in memory, for the pipeline around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from payloadd.journal.memory import MemoryJournal
from payloadd.model.job import Job
from payloadd.model.streams import last_seq, stream_of
from tests.support.journal import id_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from payloadd.journal.api import JournalListener
    from payloadd.model.job import Batch


class KeepingJournal(MemoryJournal):
    """Keep jobs and sealed batches until they are settled, as the journal in SQLite does."""

    durable = True

    def __init__(self, listener: JournalListener) -> None:
        super().__init__(listener)
        self.jobs: dict[int, Job] = {}
        self.kept: dict[int, Batch] = {}
        """Sealed batches by their first ``seq``."""
        self.pages = 0
        self._passed = 0
        self._newest: dict[int, int] = {}

    def commit(self, stream: int, *lines: bytes, ids: Sequence[uuid.UUID] | None = None) -> None:
        """Accept a job for each of ``lines``, as one request of a stream."""
        first = self._newest.get(stream, stream << 48) + 1
        found = [
            Job(seq, ids[seq - first] if ids else id_of(seq), text, text.count(b"\n"))
            for seq, text in enumerate(lines, first)
        ]
        self._newest[stream] = found[-1].seq
        self.jobs.update((job.seq, job) for job in found)
        count = sum(job.payloads for job in found)
        self._listener.accepted(count)
        if stream:
            self._listener.accepted_in(stream, count)
        self._listener.committed(found)

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs of the stream of ``after``."""
        await trio.lowlevel.checkpoint()
        self.pages += 1
        end = last_seq(stream_of(after))
        page: list[Job] = []
        size = 0
        for seq in sorted(seq for seq in self.jobs if after < seq <= end)[:most_jobs]:
            size += len(self.jobs[seq].lines)
            if page and size > most_bytes:
                break
            page.append(self.jobs[seq])
        return page

    async def seal(self, batch: Batch) -> None:
        """Keep members and key."""
        await trio.lowlevel.checkpoint()
        self.kept[batch.jobs[0].seq] = batch

    async def sealed(self) -> Batch | None:
        """Return the next sealed batch that is not in memory."""
        await trio.lowlevel.checkpoint()
        for first in sorted(self.kept):
            if first > self._passed and not self._listener.holds(first):
                self._passed = first
                self._listener.replayed(self.kept[first].jobs)
                return self.kept[first]
        self._passed = 0
        return None

    def settle(self, batch: Batch) -> None:
        """Remove a stored batch: every job of its range."""
        self.kept.pop(batch.jobs[0].seq, None)
        for seq in range(batch.jobs[0].seq, batch.jobs[-1].seq + 1):
            del self.jobs[seq]
