"""Another process takes the jobs of streams over, or gives some: a journal that machines share."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio

from payloadd.errors import LaneLostError
from payloadd.model.streams import MOST_NUMBERS, STREAM_BITS, first_seq, stream_of
from payloadd.pipeline.accounting import StreamCounts
from tests.pipeline.keeping_journal import KeepingJournal, StreamsPipeline
from tests.pipeline.rig import FaultyStore, forbidden
from tests.support.journal import until

if TYPE_CHECKING:
    from payloadd.journal.api import JournalListener
    from payloadd.model.job import Batch, Job

_BATCHED = {"BATCH_MAX_PAYLOADS": "4", "BATCH_LINGER": "10ms"}
_ALONE = {"BATCH_MAX_PAYLOADS": "1"}


class LosingJournal(KeepingJournal):
    """A journal of which another process takes streams over."""

    def __init__(self, listener: JournalListener) -> None:
        super().__init__(listener)
        self.lost: set[int] = set()

    def lose(self, stream: int) -> None:
        """Let another process have the jobs of a stream."""
        self.lost.add(stream)
        mine = [job for job in self.jobs.values() if stream_of(job.seq) != stream]
        payloads = sum(job.payloads for job in self.jobs.values()) - sum(
            job.payloads for job in mine
        )
        self.jobs = {job.seq: job for job in mine}
        self.kept = {seq: one for seq, one in self.kept.items() if stream_of(seq) != stream}
        self._listener.taken_away([stream], payloads)

    async def seal(self, batch: Batch) -> None:
        """Keep members and key, unless they are lost."""
        await super().seal(batch)
        if stream_of(batch.jobs[0].seq) in self.lost:
            del self.kept[batch.jobs[0].seq]
            raise LaneLostError

    def settle(self, batch: Batch) -> None:
        """Remove a stored batch; a lost one counts as found again."""
        if stream_of(batch.jobs[0].seq) in self.lost:
            self._listener.revived(batch.payloads)
        else:
            super().settle(batch)

    def take(self, stream: int, *lines: bytes) -> list[Job]:
        """Take jobs of a stream over from another process."""
        before = set(self.jobs)
        self.commit(stream, *lines, offered=False)
        found = [job for seq, job in self.jobs.items() if seq not in before]
        # They were accepted by another process.
        self._listener.revived(-sum(job.payloads for job in found))
        self._listener.taken_over({stream: found[-1].seq}, sum(job.payloads for job in found))
        return found


class LosingPipeline(StreamsPipeline):
    """A pipeline with such a journal."""

    streams: ClassVar = 3
    journal_type = LosingJournal

    @property
    def losing(self) -> LosingJournal:
        """Return the journal."""
        assert isinstance(self.journal, LosingJournal)
        return self.journal


async def test_jobs_that_another_process_has_are_dropped_wherever_they_are() -> None:
    """They would be stored a second time under another key, or fill the memory for ever."""
    for environ in (_BATCHED, _ALONE):
        store = FaultyStore(fault=lambda _: forbidden())
        pipeline = LosingPipeline(store, workers=2, **environ)
        with trio.fail_after(60):
            async with pipeline.open():
                for number in range(30):
                    pipeline.losing.commit(1, b"%d\n" % number)
                await until(lambda: pipeline.channel.jobs_put_back)  # noqa: B023
                pipeline.losing.lose(1)
                store.fault = lambda _: None
                pipeline.losing.commit(2, b"other\n")
                await until(lambda: b"other\n" in store.objects.values())  # noqa: B023
                await until(lambda: not pipeline.accounting.jobs())  # noqa: B023
        assert pipeline.accounting.open == 0
        assert pipeline.channel.bytes_held == pipeline.channel.jobs == 0
        assert pipeline.channel.jobs_put_back == 0
        # At most what workers had at that moment, under the keys that the other process uses, too.
        assert len(store.objects) <= 3


async def test_a_batch_that_cannot_be_sealed_is_not_uploaded() -> None:
    """The new owner of its jobs may have sealed them under another key."""
    store = FaultyStore()
    pipeline = LosingPipeline(store, workers=1, **_BATCHED)
    with trio.fail_after(60):
        async with pipeline.open():
            pipeline.losing.lost.add(1)
            pipeline.losing.commit(1, b"1\n", b"2\n")
            pipeline.losing.commit(0, b"3\n")
            await until(lambda: store.objects)
    assert [*store.objects.values()] == [b"3\n"]


async def test_jobs_of_a_lane_that_is_taken_over_are_stored_and_counted() -> None:
    """The payloads of a dead machine would stay in the journal."""
    store = FaultyStore()
    pipeline = LosingPipeline(store, workers=2, **_BATCHED)
    stream = 5 * MOST_NUMBERS + 1
    layout = pipeline.batcher._layouts.layout_of(first_seq(1) + 1)
    pipeline.batcher._layouts.add([(first_seq(stream) + 1, layout)])
    with trio.fail_after(60):
        async with pipeline.open():
            found = pipeline.losing.take(stream, *[b"%d\n" % one for one in range(10)])
            await until(lambda: pipeline.accounting.stored == 10)
    assert found[0].seq >> STREAM_BITS == stream
    assert sorted(b"".join(store.objects.values()).split()) == [b"%d" % one for one in range(10)]
    assert all(key.startswith("s1/") for key in store.objects)
    assert pipeline.accounting.open == 0
    counts = pipeline.accounting.streams()
    assert (counts[1].stored, counts[0]) == (10, StreamCounts())
    # An earlier owner may have stored them.
    assert pipeline.accounting.newest_found == {stream: found[-1].seq}
