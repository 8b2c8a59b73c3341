"""Streams take turns: none waits for the backlog, or for the failures, of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.errors import TransientStoreError
from tests.pipeline.keeping_journal import KeepingJournal, StreamsPipeline
from tests.pipeline.rig import FaultyStore

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

ONE = {"BATCH_MAX_PAYLOADS": "1"}
MANY = {"BATCH_MAX_PAYLOADS": "100", "BATCH_LINGER": "10ms"}


class OrderedStore(FaultyStore):
    """A store that knows the order of its objects, and throttles keys below ``throttled``."""

    throttled = "\0"

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(seconds=seconds)
        self.keys: list[str] = []

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, or refuse it."""
        if key.startswith(self.throttled):
            await trio.sleep(self.seconds)
            raise TransientStoreError(
                "SlowDown", "Please reduce your request rate.", throttled=True
            )
        self.keys.append(key)
        await super().put(key, body, members, repeat=repeat)


class ForgetfulJournal(KeepingJournal):
    """A journal to which no batch may be left: all have to wait."""

    durable = False


class ForgetfulPipeline(StreamsPipeline):
    """A pipeline with such a journal."""

    journal_type = ForgetfulJournal


def make(seconds: float, workers: int = 2, **environ: str) -> tuple[StreamsPipeline, OrderedStore]:
    """Return a pipeline with three streams and its store."""
    store = OrderedStore(seconds)
    return StreamsPipeline(store, workers, **environ), store


@pytest.mark.parametrize("environ", [ONE, MANY], ids=["alone", "batched"])
@pytest.mark.parametrize("max_queue", ["100", "10000"])
async def test_a_long_backlog_delays_another_stream_by_one_batch(
    autojump_clock: MockClock, environ: dict[str, str], max_queue: str
) -> None:
    """A stream with a million jobs would delay all others until it is stored."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, store = make(1.0, workers=1, MAX_QUEUE=max_queue, **environ)
    journal = pipeline.kept
    async with pipeline.open():
        for _ in range(20):
            journal.commit(1, *[b"1\n"] * 500)
        await trio.sleep(10.5)
        for _ in range(3):
            before = len(store.keys)
            journal.commit(2, b"2\n")
            await trio.sleep(5)
            (index,) = [n for n, key in enumerate(store.keys[before:]) if key.startswith("s2/")]
            assert index <= 2  # the upload in progress, and one batch that had its turn
        store.seconds = 0.0
    assert pipeline.accounting.open == 0


@pytest.mark.parametrize("environ", [ONE, MANY], ids=["alone", "batched"])
async def test_a_throttled_stream_does_not_stop_the_others(
    autojump_clock: MockClock, environ: dict[str, str]
) -> None:
    """A prefix with a limit would hold up all streams once its batches fill their share."""
    assert autojump_clock.autojump_threshold == 0
    store = OrderedStore(0.01)
    pipeline = ForgetfulPipeline(store, 2, MAX_QUEUE="100", **environ)
    journal = pipeline.kept
    pipeline.worker.admission.put_back.has_room = lambda _: False  # type: ignore[method-assign, assignment]
    store.throttled = "s1/"
    async with pipeline.open():
        journal.commit(1, *[b"1\n"] * 5)
        await trio.sleep(5)
        for _ in range(10):
            journal.commit(1, b"1\n")
            journal.commit(2, b"2\n")
            journal.commit(0, b"0\n")
            await trio.sleep(1)
        assert [key.startswith("s2/") for key in store.keys].count(True) == 10
        assert len(store.keys) == 20
        store.throttled = "\0"
    assert pipeline.accounting.open == 0
    assert pipeline.channel.paused == 0


async def test_streams_linger_apart(autojump_clock: MockClock) -> None:
    """The payload of one stream would wait for that of another."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, store = make(0.0, BATCH_MAX_PAYLOADS="100", BATCH_LINGER="5s")
    journal = pipeline.kept
    async with pipeline.open():
        start = trio.current_time()
        for stream in range(3):
            journal.commit(stream, b"1\n")
            await trio.sleep(1)
        journal.commit(1, b"2\n")
        await trio.sleep(6)
        assert [when - start for when in store.times] == pytest.approx([5.0, 6.0, 7.0], abs=0.01)
        assert [key[:3] for key in store.keys][1:] == ["s1/", "s2/"]
        assert list(store.objects.values()) == [b"1\n", b"1\n2\n", b"1\n"]


async def test_jobs_of_a_stream_stay_in_order_behind_its_backlog(autojump_clock: MockClock) -> None:
    """A newer payload would be in an object before an older one."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, store = make(0.1, workers=1, MAX_QUEUE="20", **ONE)
    journal = pipeline.kept
    async with pipeline.open():
        number = 0
        for _ in range(100):
            for stream in (1, 2):
                number += 1
                journal.commit(stream, b"%d\n" % number)
            await trio.sleep(0.01)
        store.seconds = 0.0
    for prefix in ("s1/", "s2/"):
        stored = [int(store.objects[key]) for key in store.keys if key.startswith(prefix)]
        assert stored == sorted(stored)
        assert len(stored) == 100


async def test_a_stream_that_has_filled_the_memory_makes_room(autojump_clock: MockClock) -> None:
    """The first payload of a stream would wait until half of a full memory is uploaded."""
    assert autojump_clock.autojump_threshold == 0
    pipeline, store = make(1.0, workers=1, MAX_QUEUE="100", **ONE)
    journal = pipeline.kept
    async with pipeline.open():
        journal.commit(1, *[b"1\n"] * 100)
        journal.commit(2, b"2\n")
        await trio.sleep(5)
        assert [key[:3] for key in store.keys][:3].count("s2/") == 1
        store.seconds = 0.0
    assert pipeline.accounting.open == 0
