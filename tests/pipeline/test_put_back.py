"""Batches that failed: they hold no worker, are tried at a bounded rate, and end with the drain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from payloadd.errors import InvalidObjectError, OperatorStoreError, TransientStoreError
from payloadd.model.job import Batch, Job, uuid_of
from tests.pipeline.rig import FaultyStore, Pipeline, forbidden, internal_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.testing import MockClock

    from payloadd.errors import StoreError
    from payloadd.journal.memory import MemoryJournal
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

ALONE = {"BATCH_MAX_PAYLOADS": "1"}


class Picky(FaultyStore):
    """A store that refuses the payloads for which ``refuses`` is true."""

    def __init__(
        self, refuses: Callable[[bytes], bool], error: Callable[[], StoreError] = forbidden
    ) -> None:
        super().__init__(seconds=0.01)
        self.refuses = refuses
        self.error = error
        self.refused: list[float] = []
        """The times of all refusals."""
        self.repeats: list[bool] = []
        """Whether each upload was said to be a repetition."""

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, or refuse it."""
        self.repeats.append(repeat)
        if self.refuses(b"".join(body.pieces)):
            await trio.sleep(self.seconds)
            self.refused.append(trio.current_time())
            raise self.error()
        await super().put(key, body, members, repeat=repeat)


def is_bad(lines: bytes) -> bool:
    """Return whether the payload begins with 9."""
    return lines.startswith(b"9")


def bad(count: int) -> list[bytes]:
    """Return payloads that the store refuses."""
    return [b"9%06d" % number for number in range(count)]


def good(count: int) -> list[bytes]:
    """Return payloads that the store accepts."""
    return [b"1%06d" % number for number in range(count)]


async def test_good_batches_flow_while_as_many_as_there_are_workers_fail(
    autojump_clock: MockClock,
) -> None:
    """64 objects that a proxy refuses would stop all uploads."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(Picky(is_bad), workers=64, **ALONE)
    async with pipeline.open():
        start = trio.current_time()
        await pipeline.intake.accept([*bad(64), *good(1000)])
        while pipeline.accounting.stored < 1000:  # noqa: ASYNC110 - no event reports it
            await trio.sleep(0.01)
        assert trio.current_time() - start < 1
        pipeline.store.refuses = lambda _: False  # type: ignore[attr-defined]
    assert pipeline.accounting.stored == 1064


@pytest.mark.no_cover
async def test_the_rate_of_attempts_does_not_grow_with_the_failing_batches(
    autojump_clock: MockClock,
) -> None:
    """A store that refuses a prefix would get more requests with every payload for it."""
    assert autojump_clock.autojump_threshold == 0
    rates = []
    for count in (50, 500, 2500):
        store = Picky(is_bad)
        pipeline = Pipeline(store, workers=64, **ALONE)
        async with pipeline.open():
            await pipeline.intake.accept([*bad(count // 2), *good(3000), *bad(count // 2)])
            while len(store.refused) < count:  # noqa: ASYNC110 - no event reports it
                await trio.sleep(0.1)
            await trio.sleep(30)
            before = len(store.refused)
            await trio.sleep(100)
            rates.append((len(store.refused) - before) / 100)
            store.refuses = lambda _: False
            end = trio.current_time()
        assert pipeline.accounting.open == 0
        assert trio.current_time() - end < 30
        assert set(store.attempts.values()) == {1}
    assert rates[0] <= rates[1] <= rates[2] <= 8.1


@pytest.mark.no_cover
async def test_an_outage_puts_a_bounded_part_of_the_backlog_back(
    autojump_clock: MockClock,
) -> None:
    """In an outage the whole backlog would be tried, sealed, and read back one by one."""
    assert autojump_clock.autojump_threshold == 0
    store = Picky(lambda _: True)
    pipeline = Pipeline(store, workers=64, MAX_QUEUE="9000", **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(good(8000))
        await trio.sleep(60)
        assert pipeline.channel.jobs_put_back < 1500
        before = len(store.refused)
        await trio.sleep(60)
        assert 60 <= len(store.refused) - before <= 600
        store.refuses = lambda _: False
        end = trio.current_time()
        while pipeline.accounting.open:  # noqa: ASYNC110 - no event reports it
            await trio.sleep(0.1)
        assert trio.current_time() - end < 10


async def test_a_put_back_batch_is_a_repetition(autojump_clock: MockClock) -> None:
    """A store would replace an object, or refuse it, that it has from the first attempt."""
    assert autojump_clock.autojump_threshold == 0
    store = Picky(is_bad)
    pipeline = Pipeline(store, workers=2, **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(bad(1))
        while len(store.refused) < 2:  # noqa: ASYNC110 - no event reports it
            await trio.sleep(0.1)
        store.refuses = lambda _: False
        await trio.sleep(30)
        await pipeline.intake.accept(good(1))
    assert store.repeats[0] is False
    assert all(store.repeats[1:-1])
    assert store.repeats[-1] is False


async def test_a_slow_failure_is_not_repeated_at_once(autojump_clock: MockClock) -> None:
    """A black hole would be reported only after three timeouts."""
    assert autojump_clock.autojump_threshold == 0

    def timed_out() -> StoreError:
        return TransientStoreError("ConnectTimeout", "no connection within 10 s")

    store = Picky(is_bad, timed_out)
    store.seconds = 10.0
    pipeline = Pipeline(store, workers=2, **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(bad(1))
        await trio.sleep(10.1)
        assert pipeline.health.troubles["store"].code == "ConnectTimeout"
        store.refuses = lambda _: False


async def test_the_wait_that_the_store_asks_for_is_kept(autojump_clock: MockClock) -> None:
    """A store that asked for a wait of a minute would get a request after a second."""
    assert autojump_clock.autojump_threshold == 0

    def later() -> StoreError:
        return TransientStoreError("ServiceUnavailable", "later", retry_after=60.0)

    store = Picky(is_bad, later)
    pipeline = Pipeline(store, workers=2, **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(bad(1))
        await trio.sleep(200)
        assert len(store.refused) == 4
        store.refuses = lambda _: False


async def test_a_flood_of_dead_letters_becomes_a_trouble(autojump_clock: MockClock) -> None:
    """A wrong setting would make a dead letter of every batch."""
    assert autojump_clock.autojump_threshold == 0
    store = Picky(is_bad, lambda: InvalidObjectError("InvalidStorageClass", "no such class"))
    pipeline = Pipeline(store, workers=16, **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(bad(300))
        await trio.sleep(100)
        assert pipeline.accounting.dead == 100
        assert "100 objects in a minute" in pipeline.health.troubles["store"].reason
        store.refuses = lambda _: False
    assert (pipeline.accounting.stored, pipeline.accounting.dead) == (200, 100)


async def test_timeouts_halve_the_concurrency_and_successes_restore_it(
    autojump_clock: MockClock,
) -> None:
    """A slow line would be shared by so many uploads that all of them time out, for ever."""
    assert autojump_clock.autojump_threshold == 0
    store = FaultyStore(seconds=1000.0)
    pipeline = Pipeline(store, workers=64, UPLOAD_TIMEOUT="2s", **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(good(200))
        await trio.sleep(30)
        assert pipeline.value("upload_concurrency") == 4
        assert store.busy <= 4
        assert pipeline.channel.figures().paused  # else the watchdog ends the daemon
        reason = pipeline.health.troubles["store"].reason
        assert "UPLOAD_TIMEOUT (2 s)" in reason
        assert "of 8 bytes" in reason
        assert "kB/s" in reason
        store.seconds = 0.01
    assert pipeline.accounting.stored == 200
    assert pipeline.value("upload_concurrency") == 64


async def test_most_short_failures_are_stored_by_the_next_attempts(
    autojump_clock: MockClock,
) -> None:
    """Every tenth error of a store would seal, put back and delay a batch."""
    assert autojump_clock.autojump_threshold == 0
    errors = iter([internal_error()] * 3)
    store = Picky(lambda _: next(errors, None) is not None, internal_error)
    pipeline = Pipeline(store, workers=4, **ALONE)
    await pipeline.drain(good(100))
    assert pipeline.accounting.stored == 100
    assert not pipeline.health.troubles


async def test_an_error_that_an_operator_can_fix_is_no_dead_letter(
    autojump_clock: MockClock,
) -> None:
    """Payloads would need a command for each batch after a policy was corrected."""
    assert autojump_clock.autojump_threshold == 0
    store = Picky(is_bad, lambda: OperatorStoreError("NOT_S3", "a web page"))
    pipeline = Pipeline(store, workers=4, **ALONE)
    async with pipeline.open():
        await pipeline.intake.accept(bad(20))
        await trio.sleep(1000)
        assert (pipeline.accounting.dead, pipeline.accounting.open) == (0, 20)
        store.refuses = lambda _: False


async def test_a_trouble_does_not_end_while_nothing_is_stored(autojump_clock: MockClock) -> None:
    """`/readyz` would be silent about a store that hangs, while an upload is tried again."""
    assert autojump_clock.autojump_threshold == 0
    store = FaultyStore(seconds=1000.0)
    pipeline = Pipeline(store, UPLOAD_TIMEOUT="30s")
    with structlog.testing.capture_logs() as lines:
        async with pipeline.open():
            await pipeline.intake.accept([b"1"])
            await trio.sleep(20)
            for _ in range(300):
                assert pipeline.health.trouble("store") is not None
                await trio.sleep(1)
            assert "store_available" not in [line["event"] for line in lines]
            store.seconds = 0.0
            await trio.sleep(100)
            assert pipeline.health.trouble("store") is None
    assert [line["event"] for line in lines].count("store_available") == 1


async def test_a_batch_of_the_journal_is_not_sealed_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A batch that is replayed would wait for a disk that is full."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(lambda attempt: forbidden() if attempt < 3 else None))
    job = Job(1, uuid_of(1), b"1\n", 1)
    left = [Batch((job,), "key.ndjson", "none", sealed=True)]
    sealed: list[Batch] = []

    async def next_sealed() -> Batch | None:
        await trio.lowlevel.checkpoint()
        return left.pop() if left else None

    async def seal(batch: Batch) -> None:
        await trio.lowlevel.checkpoint()
        sealed.append(batch)

    monkeypatch.setattr(pipeline.journal, "sealed", next_sealed)
    monkeypatch.setattr(pipeline.journal, "seal", seal)
    async with pipeline.open():
        while not pipeline.accounting.stored:  # noqa: ASYNC110 - no event reports it
            await trio.sleep(0.1)
    assert pipeline.store.objects == {"key.ndjson": b"1\n"}
    assert sealed == []


async def test_a_batch_that_does_not_fit_into_memory_is_not_tried_all_the_time(
    autojump_clock: MockClock,
) -> None:
    """An object of many megabytes that the store refuses would be sent several times a second."""
    assert autojump_clock.autojump_threshold == 0
    store = Picky(is_bad)
    pipeline = Pipeline(store, MAX_QUEUE="100", BATCH_MAX_PAYLOADS="50", BATCH_LINGER="10ms")
    kept: dict[str, Batch] = {}
    journal = keeping(pipeline, kept)
    assert journal.durable
    async with pipeline.open():
        for payload in bad(50):
            await pipeline.intake.accept([payload])
        await trio.sleep(10)
        assert kept
        before = len(store.refused)
        await trio.sleep(100)
        assert 10 <= len(store.refused) - before <= 100 * len(kept) / 2
        store.refuses = lambda _: False
        await trio.sleep(10)
        assert pipeline.accounting.stored == 50


def keeping(pipeline: Pipeline, kept: dict[str, Batch]) -> MemoryJournal:
    """Make the journal of a pipeline one that keeps sealed batches, in ``kept`` by key."""
    journal = pipeline.journal
    passed: set[str] = set()

    async def seal(batch: Batch) -> None:
        await trio.lowlevel.checkpoint()
        kept[batch.key] = batch

    async def sealed() -> Batch | None:
        await trio.lowlevel.checkpoint()
        for key, batch in kept.items():
            if key not in passed and not pipeline.accounting.holds(batch.jobs[0].seq):
                passed.add(key)
                pipeline.accounting.enter(batch.jobs)
                return batch
        passed.clear()
        return None

    def settle(batch: Batch) -> None:
        kept.pop(batch.key, None)

    journal.durable = True
    journal.seal = seal  # type: ignore[method-assign]
    journal.sealed = sealed  # type: ignore[method-assign]
    journal.settle = settle  # type: ignore[method-assign]
    return journal
