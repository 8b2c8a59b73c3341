"""One timeout for many: each is cancelled in its own time, and nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.pipeline.shared_timeout import SharedTimeout, Timer

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.fixture
def limit(nursery: trio.Nursery) -> SharedTimeout:
    """Return one of 10 s that runs."""
    one = SharedTimeout(10.0)
    nursery.start_soon(one.run)
    return one


async def attempt(limit: SharedTimeout, seconds: float) -> float | None:
    """Do something that takes so long; return when it was cut off, None if it was not."""
    timer = Timer()
    with timer.scope:
        limit.begin(timer, trio.current_time())
        try:
            await trio.sleep(seconds)
        finally:
            limit.end(timer)
    assert timer.ran_out == timer.scope.cancelled_caught
    return trio.current_time() if timer.ran_out else None


async def test_each_has_its_own_time(limit: SharedTimeout, autojump_clock: MockClock) -> None:
    """An upload that hangs would hold its worker for ever, or a healthy one be cut off."""
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


async def test_a_timer_is_used_again(limit: SharedTimeout, autojump_clock: MockClock) -> None:
    """The time of the first upload would count for the second, or a worker be cancelled idle."""
    assert autojump_clock.autojump_threshold == 0
    timer = Timer()
    with timer.scope:
        for _ in range(3):
            limit.begin(timer, trio.current_time())
            await trio.sleep(9)
            limit.end(timer)
        await trio.sleep(1000)
    assert not timer.ran_out
    assert not timer.scope.cancel_called


async def test_one_that_does_not_end_at_once(
    limit: SharedTimeout, autojump_clock: MockClock
) -> None:
    """An upload that cleans up would have the daemon spin meanwhile, or others go on for ever."""
    assert autojump_clock.autojump_threshold == 0

    async def clean_up_slowly() -> None:
        timer = Timer()
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
