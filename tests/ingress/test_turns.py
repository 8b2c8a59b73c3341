"""Turns: many tasks with work to do, and an event loop that stays free."""

from __future__ import annotations

from time import perf_counter

import trio
from trio.testing import wait_all_tasks_blocked

from daemon.ingress.plain import PlainLane
from daemon.ingress.refusals import RefusalLog
from daemon.ingress.turns import Turns
from tests.ingress.rig import running


async def test_tasks_go_on_in_the_order_in_which_they_came() -> None:
    """A connection would starve behind busier ones."""
    turns = Turns()
    order: list[int] = []

    async def work(number: int) -> None:
        await turns.next()
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(work, number)
            await wait_all_tasks_blocked()
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        assert len(order) == 50
        # Trio runs those of one pass, eight at most, in any order.
        assert all(abs(place - number) < 8 for place, number in enumerate(order))
        nursery.cancel_scope.cancel()


async def test_the_loop_is_not_held_by_a_thousand_bursts() -> None:
    """A small request would wait until a thousand others have been worked on."""
    turns = Turns()
    left = 1000
    longest = 0.0

    async def work() -> None:
        nonlocal left
        await turns.next()
        end = perf_counter() + 0.001
        while perf_counter() < end:
            pass
        left -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        for _ in range(left):
            nursery.start_soon(work)
        await trio.lowlevel.checkpoint()
        passes = 0
        while left:
            before = perf_counter()
            await trio.lowlevel.checkpoint()
            passes += 1
            longest = max(longest, perf_counter() - before)
        nursery.cancel_scope.cancel()
    # Eight bursts at first, two or three once it is known what they take.
    assert passes > 200
    assert longest < 0.25


async def test_a_turn_of_the_fast_path_ends_by_time() -> None:
    """64 requests of 20 ms each, taken in one turn, would hold all other tasks for a second."""
    left = 40

    def work() -> None:
        nonlocal left
        end = perf_counter() + 0.004
        while perf_counter() < end:
            pass
        left -= 1

    async with running() as rig:
        assert rig.door is not None
        lane = PlainLane(rig.door, rig.health, rig.metrics, RefusalLog())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lane.run)
            for _ in range(left):
                lane.come_back(work)
            passes = 0
            while left:
                passes += 1
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert passes > 20


async def test_a_task_that_is_cancelled_takes_no_turn() -> None:
    """The gate would wake a task that is not there, and end the daemon."""
    turns = Turns()
    with trio.move_on_after(0):
        await turns.next()
    done = trio.Event()

    async def work() -> None:
        await turns.next()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        nursery.start_soon(work)
        with trio.fail_after(10):
            await done.wait()
        nursery.cancel_scope.cancel()
