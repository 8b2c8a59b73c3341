"""AWS's schedule and quota, the rounds around them, and the timeout of uploads."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from payloadd.pipeline.retry import RetryBudget, SharedTimeout, Timer, backoff, pause
from payloadd.storage.api import Progress

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.mark.parametrize(("attempt", "most"), [(1, 0.05), (2, 0.1), (3, 0.2)])
def test_backoff_doubles_from_awss_base(attempt: int, most: float) -> None:
    """S3 would throttle an account whose retries are faster than those of AWS's own clients."""
    assert backoff(attempt, 1.0) == pytest.approx(most)
    assert backoff(attempt, 0.5) == pytest.approx(most / 2)
    assert backoff(attempt, 0.0) == 0.0


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_no_wait_is_longer_than_its_bound(times: int, fraction: float) -> None:
    """A batch that has waited for a week would stay unsent long after the store works again."""
    assert 0 <= backoff(times, fraction) <= 20
    assert 0.5 <= pause(times, fraction) <= 15


def test_the_budget_becomes_empty_and_fills_again() -> None:
    """64 workers would triple the load on a store that is already failing."""
    budget = RetryBudget()
    spent = 0
    while budget.spend() == 14:
        spent += 1
    assert spent == 500 // 14
    assert budget.spend() is None
    budget.refund(14)
    assert budget.spend() == 14
    for _ in range(1000):
        budget.refund(None)
    assert budget.tokens == 500


class Moving(Progress):
    """The progress of an upload whose bytes move until a moment."""

    def __init__(self, until: float = -math.inf) -> None:
        super().__init__()
        self._until = until

    def has_moved(self) -> bool:
        """Return whether bytes have moved in the last second."""
        return trio.current_time() <= self._until


def make_timer(until: float = -math.inf) -> Timer:
    """Return a timer of uploads whose bytes move until a moment."""
    return Timer(Moving(until), lambda: "key")


@pytest.fixture
def stalled() -> list[tuple[str, float]]:
    """Return the keys and seconds that are reported."""
    return []


@pytest.fixture
def limit(nursery: trio.Nursery, stalled: list[tuple[str, float]]) -> SharedTimeout:
    """Return a timeout of 10 s that runs."""
    timeout = SharedTimeout(10.0, lambda key, seconds: stalled.append((key, seconds)))
    nursery.start_soon(timeout.run)
    return timeout


async def attempt(limit: SharedTimeout, seconds: float, until: float = -math.inf) -> float | None:
    """Sleep for ``seconds``; return the time at which the timeout cancelled it, or None.

    Bytes move ``until`` a moment.
    """
    timer = make_timer(until)
    with timer.scope:
        limit.begin(timer, trio.current_time())
        try:
            await trio.sleep(seconds)
        finally:
            limit.end(timer)
    assert timer.expired == timer.scope.cancelled_caught
    return trio.current_time() if timer.expired else None


async def test_each_operation_has_the_whole_timeout(
    limit: SharedTimeout, autojump_clock: MockClock
) -> None:
    """An upload that hangs would block its worker for ever, or a healthy one be cancelled."""
    assert autojump_clock.autojump_threshold == 0
    start = trio.current_time()
    ended: dict[float, float | None] = {}

    async def begin(delay: float, seconds: float) -> None:
        await trio.sleep(delay)
        ended[delay] = await attempt(limit, seconds)

    async with trio.open_nursery() as nursery:
        for delay, seconds in [(0, 99), (3, 9.9), (4, 99), (4.5, 1), (25, 99), (26, 9)]:
            nursery.start_soon(begin, delay, seconds)
    assert {delay: end and end - start for delay, end in ended.items()} == pytest.approx(
        {0: 10.0, 3: None, 4: 14.0, 4.5: None, 25: 35.0, 26: None}
    )


async def test_a_timer_that_has_not_expired_is_used_again(
    limit: SharedTimeout, autojump_clock: MockClock
) -> None:
    """The first upload would shorten the time of the second, or an idle worker be cancelled."""
    assert autojump_clock.autojump_threshold == 0
    timer = make_timer()
    with timer.scope:
        for _ in range(3):
            limit.begin(timer, trio.current_time())
            await trio.sleep(9)
            limit.end(timer)
        await trio.sleep(1000)
    assert not timer.expired
    assert not timer.scope.cancel_called


async def test_an_operation_with_a_slow_clean_up_does_not_affect_others(
    limit: SharedTimeout, autojump_clock: MockClock
) -> None:
    """The daemon would use all CPU during the clean-up, or other uploads would never expire."""
    assert autojump_clock.autojump_threshold == 0

    async def clean_up_slowly() -> None:
        timer = make_timer()
        with timer.scope:
            limit.begin(timer, trio.current_time())
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(50)
                limit.end(timer)

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clean_up_slowly)
        await trio.sleep(5)
        assert await attempt(limit, 99) == pytest.approx(start + 15)
    assert trio.current_time() == pytest.approx(start + 60)


async def test_an_upload_that_progresses_is_not_cancelled(
    limit: SharedTimeout, autojump_clock: MockClock
) -> None:
    """Over a slow line every large object would be cancelled, again and again, for ever."""
    assert autojump_clock.autojump_threshold == 0
    start = trio.current_time()
    assert await attempt(limit, 100, until=start + 100) is None
    ended = await attempt(limit, 100, until=start + 130)
    assert ended is not None
    assert start + 139 <= ended <= start + 143


async def test_an_upload_that_hangs_is_reported_before_it_is_cancelled(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    """An operator would wait a minute, and longer, for the reason why nothing is stored."""
    assert autojump_clock.autojump_threshold == 0
    stalled: list[tuple[str, float]] = []
    patient = SharedTimeout(60.0, lambda key, seconds: stalled.append((key, seconds)))
    nursery.start_soon(patient.run)
    start = trio.current_time()
    assert await attempt(patient, 100) == pytest.approx(start + 60)
    key, first = stalled[0]
    assert key == "key"
    assert 10 < first <= 13
    assert len(stalled) < 30
