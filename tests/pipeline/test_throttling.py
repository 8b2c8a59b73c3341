"""Uploads follow the rate of a store that throttles; exact, as no time passes by itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.errors import TransientStoreError
from tests.pipeline.rig import FaultyStore, Pipeline

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

pytestmark = pytest.mark.no_cover

RATE: Final = 200.0
SECONDS: Final = 10.0
FULL: Final = 64 / 0.02
"""Uploads a second of 64 workers that need 20 ms each."""


class ThrottlingStore(FaultyStore):
    """A store with a token bucket for each folder of ``throttled``, or for all keys."""

    def __init__(
        self,
        burst: float,
        *,
        seconds: float = 0.02,
        retry_after: float | None = None,
        throttled: frozenset[str] | None = None,
        rate: float = RATE,
    ) -> None:
        super().__init__(seconds=seconds)
        self.rate: float | None = rate
        """Tokens a second; None: nothing is throttled any more."""
        self._burst = burst
        self._retry_after = retry_after
        self._throttled = throttled
        self._buckets: dict[str, tuple[float, float]] = {}
        self.outcomes: Counter[tuple[bool, bool]] = Counter()
        """The number of uploads by whether their folder is throttled and whether it is stored."""
        self.stored_at: list[float] = []

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep an object for a token, or refuse it."""
        folder = key.partition("/")[0]
        throttled = self._throttled is None or folder in self._throttled
        name = "" if self._throttled is None else folder
        if throttled and self.rate is not None and not self._take_token(name):
            await trio.sleep(self.seconds)
            self.outcomes[throttled, False] += 1
            raise TransientStoreError(
                "SlowDown", "Slow down", throttled=True, retry_after=self._retry_after
            )
        await super().put(key, body, members, repeat=repeat)
        self.outcomes[throttled, True] += 1
        self.stored_at.append(trio.current_time())

    def _take_token(self, name: str) -> bool:
        now = trio.current_time()
        left, at = self._buckets.get(name, (self._burst, now))
        assert self.rate is not None
        left = min(self._burst, left + (now - at) * self.rate)
        found = left >= 1
        self._buckets[name] = (left - found, now)
        return found


@pytest.mark.parametrize(
    ("burst", "retry_after", "seconds"),
    [
        pytest.param(20, None, 0.02, id="burst-20-0.02"),
        pytest.param(200, None, 0.002, id="burst-200-0.002"),
        pytest.param(20, 1.0, 0.02, id="retry-after-0.02"),
        pytest.param(20, None, 0.002, id="burst-20-0.002", marks=pytest.mark.large),
        pytest.param(200, None, 0.02, id="burst-200-0.02", marks=pytest.mark.large),
        pytest.param(20, 1.0, 0.002, id="retry-after-0.002", marks=pytest.mark.large),
    ],
)
async def test_a_throttled_store_is_used_fully_and_refuses_little(
    autojump_clock: MockClock, burst: float, retry_after: float | None, seconds: float
) -> None:
    """A tenth of the rate would be used, or most requests be refused, for ever."""
    assert autojump_clock.autojump_threshold == 0
    store = ThrottlingStore(burst, retry_after=retry_after, seconds=seconds)
    pipeline = Pipeline(store, workers=64, BATCH_MAX_PAYLOADS="1")
    async with pipeline.open():
        await pipeline.intake.accept([b"%d" % number for number in range(9000)])
        await trio.sleep(SECONDS)
        stored, refused = store.outcomes[True, True], store.outcomes[True, False]
        assert stored >= 0.9 * RATE * SECONDS
        assert refused < 0.1 * (stored + refused)
        assert 0.5 * RATE < pipeline.value("upload_rate_limit") < 3 * RATE
        assert not pipeline.health.troubles
        # The throttling ends: full speed within ten seconds, and no limit.
        store.rate = None
        end = trio.current_time()
        late = end + 10
        with trio.fail_after(12):
            while pipeline.accounting.open:  # noqa: ASYNC110 - no event reports the change
                await trio.sleep(0.1)
        at_full_speed = sum(late - 5 <= at <= late for at in store.stored_at)
        assert at_full_speed > 5000 or trio.current_time() < late
        await trio.sleep(70)
        assert pipeline.value("upload_rate_limit") == float("inf")
    assert set(store.attempts.values()) == {1}


async def test_half_of_the_shards_are_throttled_and_the_others_have_full_speed(
    autojump_clock: MockClock,
) -> None:
    """One shard that S3 throttles would slow down all others to its rate."""
    assert autojump_clock.autojump_threshold == 0
    half = frozenset(f"{number:02x}" for number in range(0, 256, 2))
    store = ThrottlingStore(1, throttled=half, rate=1.0)
    pipeline = Pipeline(store, 64, BATCH_MAX_PAYLOADS="1", KEY_TEMPLATE="{shard}/{id}")
    async with pipeline.open():
        start = trio.current_time()
        await pipeline.intake.accept([b"%d" % number for number in range(4000)])
        while store.outcomes[False, True] < 1950:  # noqa: ASYNC110 - no event reports it
            await trio.sleep(0.01)
        assert trio.current_time() - start < 2 * 4000 / FULL
        await trio.sleep_until(start + 20)
        assert store.outcomes[True, True] > 0.6 * 128 * 20
        assert store.outcomes[True, False] < store.outcomes[True, True]
        store.rate = None
    assert len(store.objects) == 4000


async def test_a_store_that_refuses_all_is_a_trouble_and_is_hardly_asked(
    autojump_clock: MockClock,
) -> None:
    """A store in need would get full load, and an operator would not see why nothing is stored."""
    assert autojump_clock.autojump_threshold == 0
    store = ThrottlingStore(0, rate=0.0)
    pipeline = Pipeline(store, workers=64, BATCH_MAX_PAYLOADS="1")
    async with pipeline.open():
        await pipeline.intake.accept([b"%d" % number for number in range(1000)])
        await trio.sleep(60)
        assert pipeline.health.troubles["store"].code == "SlowDown"
        before = store.outcomes[True, False]
        await trio.sleep(60)
        assert 6 <= store.outcomes[True, False] - before <= 24
        store.rate = None
        with trio.fail_after(30):
            while pipeline.accounting.open:  # noqa: ASYNC110 - no event reports the change
                await trio.sleep(0.1)
    assert len(store.objects) == 1000


async def test_a_store_that_asks_for_a_long_wait_is_reported_at_once(
    autojump_clock: MockClock,
) -> None:
    """`/readyz` would be silent for a quarter of an hour, with three waits of five minutes."""
    assert autojump_clock.autojump_threshold == 0
    store = ThrottlingStore(0.0, retry_after=300.0, rate=0.001)
    pipeline = Pipeline(store, workers=4)
    async with pipeline.open():
        await pipeline.intake.accept([b"1"])
        await trio.sleep(2)
        for _ in range(250):
            assert pipeline.health.trouble("store") is not None
            await trio.sleep(1)
        store.rate = None
        await trio.sleep(60)
        assert pipeline.accounting.stored == 1
        await trio.sleep(10)
        assert pipeline.health.trouble("store") is None
