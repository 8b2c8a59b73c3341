"""A listener for tests of a journal: it records and checks the reports of the journal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from payloadd.model.streams import first_seq, stream_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from payloadd.journal.api import Journal
    from payloadd.model.job import Job


@dataclass
class _Progress:
    """How far a pipeline has come in a stream."""

    last: int
    """The last job that was offered."""
    newest: int
    """The newest job that is known."""


class RecordingListener:
    """A pipeline that records the reports of a journal and checks their order."""

    def __init__(self, max_jobs: int, max_bytes: int) -> None:
        self.received: list[Job] = []
        """All jobs of this run that the journal has offered, and those read with ``page``."""
        self.replayed_jobs: list[Job] = []
        self.reports: list[str] = []
        """The names of the reports, without repetitions that follow each other."""
        self.payloads: dict[str, int] = {}
        """The sum of each report about a number of payloads."""
        self.oldest: list[float | None] = []
        """The times at which the oldest job was accepted, without repetitions."""
        self.queued = 0
        self.queue_bytes = max_bytes
        self._max_jobs = max_jobs
        self._streams: dict[int, _Progress] = {}

    def _count(self, name: str, payloads: int) -> None:
        if payloads:  # a journal may report that nothing has changed
            self._note(name)
            self.payloads[name] = self.payloads.get(name, 0) + payloads

    def _note(self, name: str) -> None:
        if self.reports[-1:] != [name]:
            self.reports.append(name)

    oldest_by_stream: Mapping[int, tuple[int, int]] | None = None

    def opened(self, newest: Mapping[int, int], payloads: int) -> None:
        """Begin behind the newest job of earlier runs."""
        self._note("opened")
        self.payloads["opened"] = payloads
        for stream, seq in newest.items():
            assert stream_of(seq) == stream
            self._streams[stream] = _Progress(seq, seq)

    def taken_over(self, newest: Mapping[int, int], payloads: int) -> None:
        """Begin with the jobs of another lane."""
        self._count("taken_over", payloads)
        for stream, seq in newest.items():
            self._streams[stream] = _Progress(first_seq(stream), seq)

    def taken_away(self, streams: Collection[int], payloads: int) -> None:
        """Forget the jobs of streams."""
        self._count("taken_away", payloads)
        self.received = [one for one in self.received if stream_of(one.seq) not in streams]
        for stream in streams:
            self._streams.pop(stream, None)

    def accepted_in(self, stream: int, payloads: int) -> None:
        """Ignore the stream: ``accepted`` has the payloads, too."""

    def closed(self, payloads: int) -> None:
        """Record the payloads that stay."""
        self._note("closed")
        self.payloads["closed"] = payloads

    def _progress(self, stream: int) -> _Progress:
        start = first_seq(stream)
        return self._streams.setdefault(stream, _Progress(start, start))

    def committed(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, unless there are older ones to be read with ``page`` or the queue is full."""
        self._note("committed")
        assert len({stream_of(one.seq) for one in jobs}) <= 1, "jobs are of one stream"
        jobs = [one for one in jobs if one.seq > self._progress(stream_of(one.seq)).last]
        if not jobs:
            return
        progress = self._progress(stream_of(jobs[0].seq))
        read_first = progress.last < progress.newest
        progress.newest = jobs[-1].seq
        if not read_first and self.has_room(len(jobs), 0):
            self._receive(jobs)

    def left_for_page(self, newest: int) -> None:
        """Record that there are jobs to be read with ``page``."""
        progress = self._progress(stream_of(newest))
        progress.newest = max(progress.newest, newest)

    async def read_pages(self, journal: Journal) -> None:
        """Read the jobs that were not queued, a few at a time, one stream after the other."""
        for progress in list(self._streams.values()):
            while progress.last < progress.newest:
                page = await journal.page(progress.last, 7, 10**6)
                if not page:
                    break
                self._receive(page)

    def _receive(self, jobs: Sequence[Job]) -> None:
        progress = self._progress(stream_of(jobs[0].seq))
        numbers = [progress.last, *[one.seq for one in jobs]]
        assert numbers == sorted(set(numbers)), "each job is offered once and in order"
        progress.last = numbers[-1]
        progress.newest = max(progress.newest, progress.last)
        self.received += jobs
        self.queued += len(jobs)

    def holds(self, seq: int) -> bool:
        """Return whether a job was offered or replayed in this run."""
        return any(one.seq == seq for one in self.jobs_in_memory())

    def replayed(self, jobs: Sequence[Job]) -> None:
        """Record the members of a sealed batch."""
        self.replayed_jobs += jobs

    def accepted(self, payloads: int) -> None:
        """Record accepted payloads."""
        self._count("accepted", payloads)

    def taken(self, payloads: int) -> None:
        """Record payloads that are queued, as accepted; ``acknowledged`` tells them apart."""
        self._count("accepted", payloads)

    def acknowledged(self, seq: int, payloads: int) -> None:
        """Record payloads of ``taken`` that are acknowledged."""
        assert stream_of(seq) in self._streams
        self._count("acknowledged", payloads)

    def revived(self, payloads: int) -> None:
        """Record revived payloads."""
        self._count("revived", payloads)

    def damaged(self, payloads: int) -> None:
        """Record damaged payloads."""
        self._count("damaged", payloads)

    def discarded(self, payloads: int) -> None:
        """Record discarded payloads."""
        self._count("discarded", payloads)

    def oldest_accepted(
        self, since: float | None, by_stream: Mapping[int, tuple[int, int]] | None = None
    ) -> None:
        """Record the time, unless it is the last one again."""
        self.oldest_by_stream = by_stream
        if self.oldest[-1:] != [since]:
            self.oldest.append(since)

    def jobs_in_memory(self) -> list[Job]:
        """Return all jobs: more than the journal needs do no harm."""
        return [*self.received, *self.replayed_jobs]

    def seconds_for(self, payloads: int) -> int:
        """Return a second for each payload."""
        return max(1, payloads)

    @property
    def open_payloads(self) -> int:
        """Return the queued payloads."""
        return self.queued

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether so many more jobs fit; bytes are bounded for one request only."""
        return self.queued + jobs <= self._max_jobs and size <= self.queue_bytes
