"""Dispatcher and workers against a store that can be told to fail; the clock jumps."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import structlog.testing
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from payloadd.config import settings as config
from payloadd.errors import InvalidObjectError, OperatorStoreError, StoreError, TransientStoreError
from payloadd.journal.memory import MemoryJournal
from payloadd.model.job import Job
from payloadd.model.layout import Layout, Layouts
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.dispatcher import dispatch
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from payloadd.pipeline.worker import Worker

if TYPE_CHECKING:
    from payloadd.model.formats.ndjson import Encoded

Fault = Callable[[int], StoreError | None]


@dataclass
class FaultyStore:
    """A store in memory; ``fault(n)`` says what the n-th attempt at a key (1, 2, ...) raises."""

    fault: Fault = lambda _: None
    seconds: float = 0.0
    objects: dict[str, bytes] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    busy: int = 0
    busiest: int = 0

    async def put(self, key: str, body: Encoded) -> None:
        """Take the object, slowly, or fail."""
        self.attempts[key] += 1
        self.times.append(trio.current_time())
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.busy -= 1
        error = self.fault(self.attempts[key])
        if error is not None:
            raise error
        self.objects[key] = b"".join(body.pieces)

    async def delete(self, key: str) -> None:
        """Take the object away."""
        del self.objects[key]

    async def identify(self) -> str:
        """Anybody may write."""
        return "anybody"

    async def aclose(self) -> None:
        """Nothing to give back."""


class Pipeline:
    """The heart of the daemon around one store."""

    def __init__(self, store: FaultyStore, workers: int = 4, **environ: str) -> None:
        settings = config.load({"KEY_TEMPLATE": "{id}", **environ})
        self.store = store
        self.workers = workers
        self.metrics = Metrics()
        self.accounting = Accounting(self.metrics)
        self.health = Health()
        self.channel = JobChannel(settings.max_queue, settings.max_queue_bytes)
        self.feeder = QueueFeeder(self.channel, self.accounting, newest=0)
        listener = PipelineListener(self.channel, self.feeder, self.accounting, self.metrics)
        self.journal = MemoryJournal(listener)
        self.intake = Intake(self.journal, self.health, settings)
        self.worker = Worker(
            store,
            self.journal,
            self.accounting,
            self.health,
            self.metrics,
            settings.upload_timeout,
            self.channel.release,
        )
        layout = Layout("{id}", "", settings.compression, alone=settings.batch_max_payloads == 1)
        self.batcher = Batcher(self.channel, self.journal, Layouts([(0, layout)]), settings)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run dispatcher and workers; behind the body the door is closed and all is drained."""
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatch, self.batcher, self.worker, self.workers)
            await nursery.start(self.feeder.refill, self.journal)
            yield
            self.feeder.finish()

    async def drain(self, *requests: list[bytes]) -> None:
        """Take requests, close the door, and wait until the last is dealt with."""
        async with self.open():
            for payloads in requests:
                await self.intake.accept(payloads)

    def value(self, name: str, **labels: str) -> float:
        """Return a metric."""
        return self.metrics.registry.get_sample_value(f"payloadd_{name}", labels) or 0.0


def first(attempts: int, error: Callable[[], StoreError]) -> Fault:
    """Fail the first ``attempts`` attempts at each key."""
    return lambda n: error() if n <= attempts else None


def forbidden() -> StoreError:
    """S3 without the right to write."""
    return OperatorStoreError("AccessDenied", "Access Denied")


def blip() -> StoreError:
    """S3 on a bad second."""
    return TransientStoreError("InternalError", "We encountered an internal error.")


def slow_down() -> StoreError:
    """S3 under load."""
    return TransientStoreError("SlowDown", "Please reduce your request rate.", throttled=True)


async def test_every_payload_becomes_one_object_and_the_drain_ends() -> None:
    """The daemon's one job."""
    pipeline = Pipeline(FaultyStore())
    await pipeline.drain(*[[b"%d" % n] for n in range(100)])
    assert sorted(pipeline.store.objects.values()) == sorted(b"%d\n" % n for n in range(100))
    assert (pipeline.accounting.stored, pipeline.accounting.open) == (100, 0)
    assert pipeline.value("uploads_total", outcome="stored") == 100
    assert pipeline.value("objects_stored_total") == 100
    assert pipeline.value("workers_busy") == 0


async def test_workers_upload_side_by_side_and_no_more_than_there_are(
    autojump_clock: MockClock,
) -> None:
    """One slow upload would hold up all, or a burst would open a connection a payload."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1.0), workers=4)
    start = trio.current_time()
    await pipeline.drain([b"1"] * 20)
    assert pipeline.store.busiest == 4
    assert trio.current_time() - start == pytest.approx(5.0)


async def test_who_is_idle_holds_on_to_nothing(autojump_clock: MockClock) -> None:
    """Sixty-four workers with a large batch each would be half a GiB that no bound counts."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1.0), workers=4)
    async with pipeline.open():
        for _ in range(8):
            await pipeline.intake.accept([b'"held"'])
        await trio.sleep(10)
        assert pipeline.accounting.stored == 8
        alive = [one for one in gc.get_objects() if isinstance(one, Job)]
        assert not [one for one in alive if one.lines == b'"held"\n']


@pytest.mark.parametrize("error", [forbidden, blip, slow_down])
async def test_what_can_be_mended_is_tried_until_it_is(
    error: Callable[[], StoreError], autojump_clock: MockClock
) -> None:
    """Acknowledged payloads would be dropped because of somebody's typing error in a policy."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(fault=first(50, error)))
    with structlog.testing.capture_logs() as lines:
        await pipeline.drain([b"1"], [b"2"])
    assert sorted(pipeline.store.objects.values()) == [b"1\n", b"2\n"]
    assert (pipeline.accounting.stored, pipeline.accounting.dead) == (2, 0)
    events = [line["event"] for line in lines]
    assert events[0] == "store_unavailable"
    assert events[-1] == "store_available"
    assert lines[0]["code"] == error().code
    assert not pipeline.health.troubles


async def test_while_it_waits_the_health_names_the_reason(autojump_clock: MockClock) -> None:
    """An operator looks at `/readyz` and learns what to mend."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(fault=lambda _: forbidden()))
    with trio.move_on_after(300):
        await pipeline.drain([b"1"])
    assert pipeline.health.troubles["store"].code == "AccessDenied"
    assert "Access Denied" in pipeline.health.troubles["store"].reason
    assert pipeline.accounting.open == 1


async def test_a_blip_is_ridden_out_in_silence(autojump_clock: MockClock) -> None:
    """A log line for every 500 of S3 hides the one that matters."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(fault=first(2, blip)))
    with structlog.testing.capture_logs() as lines:
        await pipeline.drain([b"1"])
    assert lines == []
    assert pipeline.value("uploads_total", outcome="transient") == 2
    assert pipeline.store.times[-1] - pipeline.store.times[0] <= 0.15


async def test_when_the_store_is_throttling_all_workers_hold_back(
    autojump_clock: MockClock,
) -> None:
    """Sixty-four workers that back off one by one go on at full rate together."""
    assert autojump_clock.autojump_threshold == 0

    def ask_for_five_seconds(attempt: int) -> StoreError | None:
        throttled = TransientStoreError("SlowDown", "", throttled=True, retry_after=5.0)
        return throttled if attempt == 1 and len(pipeline.store.times) == 1 else None

    pipeline = Pipeline(FaultyStore(fault=ask_for_five_seconds), workers=2)
    async with pipeline.open():
        await pipeline.intake.accept([b"1"])
        await wait_all_tasks_blocked()
        await pipeline.intake.accept([b"2"])
    start, *later = pipeline.store.times
    assert all(time - start >= 5.0 for time in later)
    assert len(pipeline.store.objects) == 2


async def test_who_holds_back_hears_of_a_longer_wish(autojump_clock: MockClock) -> None:
    """A store that asks one worker for 2 s and another for 30 gets the others after 2."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=0.1), workers=6)
    waits = [2.0, 30.0]

    def ask_for_more(attempt: int) -> StoreError | None:
        if attempt > 1 or not waits:
            return None
        return TransientStoreError("SlowDown", "", throttled=True, retry_after=waits.pop(0))

    pipeline.store.fault = ask_for_more
    async with pipeline.open():
        await pipeline.intake.accept([b"0"])
        await trio.sleep(0.05)
        await pipeline.intake.accept([b"1"])
        await trio.sleep(0.07)  # the first is refused, the second not yet
        for number in range(2, 6):
            await pipeline.intake.accept([b"%d" % number])
    start, second, *later = pipeline.store.times
    assert second - start < 0.1
    assert all(time - second >= 30.0 for time in later)
    assert len(pipeline.store.objects) == 6


async def test_the_last_attempt_of_a_round_is_asked_for_a_pause_too(
    autojump_clock: MockClock,
) -> None:
    """The store would be asked again a second after it had asked for a minute of peace."""
    assert autojump_clock.autojump_threshold == 0

    def ask_for_a_minute(attempt: int) -> StoreError | None:
        minute = TransientStoreError("SlowDown", "", throttled=True, retry_after=60.0)
        return minute if attempt <= 7 else None

    pipeline = Pipeline(FaultyStore(fault=ask_for_a_minute))
    await pipeline.drain([b"1"])
    assert all(two - one >= 60.0 for one, two in pairwise(pipeline.store.times))
    assert len(pipeline.store.times) == 8


@pytest.mark.parametrize("error", [trio.EndOfChannel, ZeroDivisionError])
async def test_a_bug_ends_the_pipeline(error: type[Exception]) -> None:
    """A worker would be gone with its batch in silence, and every drain take its whole time."""
    pipeline = Pipeline(FaultyStore())

    def fail(_attempt: int) -> StoreError | None:
        raise error

    pipeline.store.fault = fail
    with trio.fail_after(10), pytest.raises(ExceptionGroup) as caught:
        await pipeline.drain([b"1"], [b"2"])
    assert caught.group_contains(error)


async def test_an_attempt_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    """A connection that a firewall forgot would hold a worker for ever."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1000.0), UPLOAD_TIMEOUT="2s")
    with trio.move_on_after(100):
        await pipeline.drain([b"1"])
    assert pipeline.health.troubles["store"].code == "UploadTimeout"
    assert pipeline.store.busiest == 1


async def test_what_the_store_refuses_for_good_ends_its_batch_alone() -> None:
    """One poisonous payload would hold up or kill everything behind it."""
    refused = InvalidObjectError("KeyTooLongError", "Your key is too long")
    seen: list[int] = []

    def refuse_the_first(_: int) -> StoreError | None:
        seen.append(1)
        return refused if len(seen) == 1 else None

    pipeline = Pipeline(FaultyStore(fault=refuse_the_first), workers=1)
    with structlog.testing.capture_logs() as lines:
        await pipeline.drain([b"1"], [b"2"], [b"3"])
    assert sorted(pipeline.store.objects.values()) == [b"2\n", b"3\n"]
    assert (pipeline.accounting.stored, pipeline.accounting.dead, pipeline.accounting.open) == (
        2,
        1,
        0,
    )
    assert [(line["event"], line["code"]) for line in lines] == [
        ("payloads_dead", "KeyTooLongError")
    ]


async def test_a_bug_in_a_worker_ends_the_pipeline() -> None:
    """A daemon that answers 202 with a dead pipeline is the worst of all."""

    def bug(_: int) -> StoreError | None:
        raise ZeroDivisionError

    with pytest.raises(BaseExceptionGroup) as caught:
        await Pipeline(FaultyStore(fault=bug)).drain([b"1"])
    assert caught.group_contains(ZeroDivisionError)


async def test_a_deadline_leaves_the_rest_counted(autojump_clock: MockClock) -> None:
    """The drained line would not add up."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1.0), workers=1)
    with trio.move_on_after(3.5):
        await pipeline.drain([b"1"] * 10)
    assert (pipeline.accounting.stored, pipeline.accounting.open) == (3, 7)


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
async def test_large_objects_are_compressed_beside_the_event_loop(
    compression: str, suffix: str
) -> None:
    """A reader goes by the suffix, and a large batch must not hold up the answers."""
    pipeline = Pipeline(FaultyStore(), COMPRESSION=compression)
    big: Any = b'"' + b"x" * 100_000 + b'"'
    await pipeline.drain([b"1", big])
    assert all(key.endswith(suffix) for key in pipeline.store.objects)
    assert sorted(len(body) < 1000 for body in pipeline.store.objects.values()) == [True, True]


async def test_batches_fill_by_count_and_linger(autojump_clock: MockClock) -> None:
    """A batch that never fills would hold its payloads back, one that overfills breaks readers."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(), BATCH_MAX_PAYLOADS="3", BATCH_LINGER="5s")
    async with pipeline.open():
        start = trio.current_time()
        for number in range(4):
            await pipeline.intake.accept([b"%d" % number])
        await wait_all_tasks_blocked()
        assert list(pipeline.store.objects.values()) == [b"0\n1\n2\n"]
        await trio.sleep(6)
        assert list(pipeline.store.objects.values()) == [b"0\n1\n2\n", b"3\n"]
        assert pipeline.store.times[1] - start == pytest.approx(5.0)
        await pipeline.intake.accept([b"4"])
        end = trio.current_time()
    assert trio.current_time() == end  # a drain does not linger
    assert pipeline.accounting.stored == 5


async def test_batches_fill_by_bytes_and_hold_what_does_not_fit() -> None:
    """The job that did not fit would be lost, or the object too large."""
    pipeline = Pipeline(FaultyStore(), BATCH_MAX_PAYLOADS="100", BATCH_MAX_BYTES="10B")
    await pipeline.drain([b"11111"], [b"22222"], [b"333"], [b"4" * 50], [b"5"])
    assert sorted(pipeline.store.objects.values(), key=lambda body: body[0]) == [
        b"11111\n",
        b"22222\n333\n",
        b"4" * 50 + b"\n",
        b"5\n",
    ]
