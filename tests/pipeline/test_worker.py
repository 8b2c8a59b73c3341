"""Workers against a store that fails: retries, delays, troubles, dead letters."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import pytest
import structlog.testing
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    StoreError,
    TransientStoreError,
)
from payloadd.model.formats import FORMATS
from payloadd.model.formats.api import EncodedObject
from payloadd.model.formats.ndjson import PLAIN_KIND
from tests.pipeline.rig import (
    FaultyStore,
    Pipeline,
    first,
    forbidden,
    internal_error,
    slow_down,
)
from tests.support.journal import until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.model.job import Job, Members


@pytest.mark.parametrize("error", [forbidden, internal_error, slow_down])
async def test_an_error_that_an_operator_can_fix_is_retried_until_it_is_fixed(
    error: Callable[[], StoreError], autojump_clock: MockClock
) -> None:
    """Acknowledged payloads would be dropped because of a typing error in a policy."""
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


async def test_a_worker_that_waits_reports_the_reason(autojump_clock: MockClock) -> None:
    """An operator could not see in `/readyz` what to fix."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(fault=lambda _: forbidden()))
    with trio.move_on_after(300):
        await pipeline.drain([b"1"])
    assert pipeline.health.troubles["store"].code == "AccessDenied"
    assert "Access Denied" in pipeline.health.troubles["store"].reason
    assert pipeline.accounting.open == 1


async def test_a_short_failure_is_retried_without_a_log_line(autojump_clock: MockClock) -> None:
    """A log line for every status 500 of S3 would hide the important one."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(fault=first(2, internal_error)))
    with structlog.testing.capture_logs() as lines:
        await pipeline.drain([b"1"])
    assert lines == []
    assert pipeline.value("uploads_total", outcome="transient") == 2
    assert pipeline.store.times[-1] - pipeline.store.times[0] <= 0.15


async def test_a_store_that_throttles_one_worker_delays_all(
    autojump_clock: MockClock,
) -> None:
    """64 workers that back off one by one would continue at full rate together."""
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


async def test_a_longer_wait_that_the_store_asks_for_extends_the_delay(
    autojump_clock: MockClock,
) -> None:
    """A store that asks for 2 s and then for 30 s would get uploads after 2 s."""
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


async def test_the_wait_that_the_store_asks_for_is_kept_between_rounds(
    autojump_clock: MockClock,
) -> None:
    """A store that asked for a wait of a minute would get a request after a second."""
    assert autojump_clock.autojump_threshold == 0

    def ask_for_a_minute(attempt: int) -> StoreError | None:
        minute = TransientStoreError("SlowDown", "", throttled=True, retry_after=60.0)
        return minute if attempt <= 7 else None

    pipeline = Pipeline(FaultyStore(fault=ask_for_a_minute))
    await pipeline.drain([b"1"])
    assert all(two - one >= 60.0 for one, two in pairwise(pipeline.store.times))
    assert len(pipeline.store.times) == 8


async def test_an_attempt_that_hangs_is_cancelled(autojump_clock: MockClock) -> None:
    """A connection that a firewall dropped would block a worker for ever."""
    assert autojump_clock.autojump_threshold == 0
    pipeline = Pipeline(FaultyStore(seconds=1000.0), UPLOAD_TIMEOUT="2s")
    with trio.move_on_after(100):
        await pipeline.drain([b"1"])
    assert pipeline.health.troubles["store"].code == "UploadTimeout"
    assert pipeline.store.busiest == 1


async def test_an_object_that_the_store_refuses_for_good_ends_its_batch_alone() -> None:
    """One invalid payload would block or end the pipeline."""
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


@pytest.mark.parametrize(("compression", "suffix"), [("gzip", ".gz"), ("zstd", ".zst")])
async def test_large_objects_are_compressed_in_a_thread(compression: str, suffix: str) -> None:
    """Readers need the suffix, and a large batch would block all answers."""
    pipeline = Pipeline(FaultyStore(), COMPRESSION=compression)
    big: Any = b'"' + b"x" * 100_000 + b'"'
    await pipeline.drain([b"1", big])
    assert all(key.endswith(suffix) for key in pipeline.store.objects)
    assert sorted(len(body) < 1000 for body in pipeline.store.objects.values()) == [True, True]


class ForbiddenPrefix(FaultyStore):
    """A store that refuses the payload ``0`` with ``error``, if that is set."""

    error: StoreError | None = None

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, or refuse it."""
        if self.error is not None and b"".join(body.pieces) == b"0\n":
            await trio.lowlevel.checkpoint()
            raise self.error
        await super().put(key, body, members, repeat=repeat)


async def test_a_trouble_of_one_batch_is_logged_once_beside_many_that_are_stored(
    autojump_clock: MockClock,
) -> None:
    """The log would have two lines for each object, and `/readyz` would change all the time."""
    assert autojump_clock.autojump_threshold == 0
    store = ForbiddenPrefix()
    store.error = forbidden()
    pipeline = Pipeline(store)
    with structlog.testing.capture_logs() as lines:
        async with pipeline.open():
            await pipeline.intake.accept([b"0"])
            for number in range(1, 50):
                await pipeline.intake.accept([b"%d" % number])
                await trio.sleep(0.5)
                assert pipeline.health.troubles["store"].code == "AccessDenied"
            store.error = None
    assert [line["event"] for line in lines] == ["store_unavailable", "store_available"]
    assert pipeline.accounting.stored == 50
    assert not pipeline.health.troubles


async def test_a_batch_that_becomes_a_dead_letter_ends_its_trouble(
    autojump_clock: MockClock,
) -> None:
    """`/readyz` would name a trouble that no operator can end."""
    assert autojump_clock.autojump_threshold == 0
    store = ForbiddenPrefix()
    store.error = forbidden()
    pipeline = Pipeline(store)
    async with pipeline.open():
        await pipeline.intake.accept([b"0"])
        await until(lambda: pipeline.health.troubles)
        store.error = InvalidObjectError("KeyTooLongError", "too long")
    assert pipeline.accounting.dead == 1
    assert not pipeline.health.troubles


class BrokenFormat:
    """A format whose first ``failures`` calls of ``encode`` fail, and that counts threads."""

    name = "parquet"
    suffix = ".parquet"
    kind = PLAIN_KIND
    encoder = "broken-1"
    most_in_loop = 0
    has_process = True

    def __init__(self, failures: int) -> None:
        self._failures = failures
        self._running = 0
        self.most_running = 0

    def encode(self, jobs: Sequence[Job]) -> EncodedObject:
        """Return the lines of the jobs, and one misfit; or raise the error of an encoder."""
        self._running += 1
        self.most_running = max(self.most_running, self._running)
        time.sleep(0.001)
        self._running -= 1
        if self._failures:
            self._failures -= 1
            raise OperatorStoreError("ENCODER_FAILED", "the test says so")
        return EncodedObject([job.lines for job in jobs], self.kind, {"a": 1})


async def test_a_batch_that_cannot_be_encoded_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of the encoder would end the daemon, or make dead letters of all payloads."""
    broken = BrokenFormat(failures=3)
    monkeypatch.setitem(cast("dict[str, Any]", FORMATS), "parquet", broken)
    pipeline = Pipeline(FaultyStore(), OBJECT_FORMAT="parquet")
    with structlog.testing.capture_logs() as lines:
        async with pipeline.open():
            for number in range(20):
                await pipeline.intake.accept([b"%d" % number])
            await until(lambda: pipeline.health.troubles)
            assert pipeline.health.troubles["store"].code == "ENCODER_FAILED"
    assert len(pipeline.store.objects) == pipeline.accounting.stored == 20
    assert broken.most_running == 1
    assert pipeline.value("parquet_misfits_total", column="a") == 20
    misfits = [line for line in lines if line["event"] == "parquet_misfit"]
    assert [(line["column"], line["values"]) for line in misfits] == [("a", 1)]
