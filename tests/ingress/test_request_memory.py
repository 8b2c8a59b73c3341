"""The memory of request bodies: bounded for all requests together, and never leaked."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from payloadd.ingress.request_memory import MAX_WAIT, SMALL_BODY_BYTES, RequestMemory

MIB = 2**20


def test_the_bound_holds_and_a_part_is_reserved_for_small_bodies() -> None:
    """Otherwise a few clients that announce megabytes would keep out all others."""
    memory = RequestMemory(16 * MIB, MIB)
    taken = 0
    while memory.try_acquire(MIB):
        taken += 1
    assert taken == 14
    small = 0
    while memory.try_acquire(SMALL_BODY_BYTES):
        small += 1
    assert small == MIB // SMALL_BODY_BYTES
    tiny = 0
    while memory.try_acquire(4096):
        tiny += 1
    assert tiny == MIB // 4096
    assert memory.used == 16 * MIB
    memory.release(16 * MIB)
    assert memory.used == 0


def test_the_largest_body_fits_into_the_smallest_bound() -> None:
    """Otherwise a body of MAX_LENGTH would wait for ever."""
    assert RequestMemory(MIB, MIB).try_acquire(MIB)


async def test_requests_get_memory_in_their_order() -> None:
    """Otherwise a request would starve behind later ones."""
    memory = RequestMemory(8 * MIB, 7 * MIB)
    assert memory.try_acquire(7 * MIB)
    order: list[str] = []

    async def wait(name: str, size: int) -> None:
        assert await memory.acquire(size)
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "large", 7 * MIB)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait, "less large", MIB)
        await wait_all_tasks_blocked()
        assert memory.try_acquire(SMALL_BODY_BYTES)  # it passes: the reserved part is for it
        memory.release(SMALL_BODY_BYTES)
        memory.release(7 * MIB)
        await wait_all_tasks_blocked()
        assert order == ["large"]
        memory.release(7 * MIB)
    assert order == ["large", "less large"]
    assert memory.used == MIB


async def test_memory_released_within_a_grant_is_granted_once() -> None:
    """Otherwise requests that are refused as soon as they have memory would leak it."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    granted: list[int] = []

    def wait(number: int) -> None:
        def answer() -> None:
            granted.append(number)
            memory.release(SMALL_BODY_BYTES)

        memory.enqueue(SMALL_BODY_BYTES, answer, lambda: None)

    for number in range(2000):  # more than the recursion limit of the interpreter
        wait(number)
    memory.release(MIB)
    assert granted == [*range(2000)]
    assert memory.used == 0


async def test_a_small_request_passes_a_waiting_large_one() -> None:
    """Otherwise a small request would be refused although the reserved part has memory for it."""
    memory = RequestMemory(8 * MIB, MIB)
    assert memory.try_acquire(7 * MIB)
    while memory.try_acquire(SMALL_BODY_BYTES):
        pass
    granted: list[str] = []
    memory.enqueue(MIB, lambda: granted.append("large"), lambda: None)
    memory.enqueue(SMALL_BODY_BYTES, lambda: granted.append("small"), lambda: None)
    memory.release(SMALL_BODY_BYTES)
    assert granted == ["small"]
    memory.release(2 * MIB)
    assert granted == ["small", "large"]


async def test_no_request_waits_behind_one_of_a_larger_class() -> None:
    """Otherwise clients that announce 64 KiB and send nothing would delay all others by seconds."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    assert memory.try_acquire(14 * MIB)
    assert memory.try_acquire(SMALL_BODY_BYTES)
    for _ in range(MIB // SMALL_BODY_BYTES - 1):
        assert memory.try_acquire(SMALL_BODY_BYTES)
    order: list[str] = []
    for name, size in (
        ("large", MIB),
        ("small", SMALL_BODY_BYTES),
        ("small too", SMALL_BODY_BYTES),
    ):
        memory.enqueue(size, partial(order.append, name), pytest.fail)
    assert memory.try_acquire(1000)
    memory.release(1000)
    memory.release(SMALL_BODY_BYTES)
    assert order == ["small"]
    memory.release(14 * MIB)
    assert order == ["small", "large", "small too"]


async def test_requests_that_end_in_their_grant_get_memory_once() -> None:
    """Otherwise a malformed request that waited would leak memory, until all later ones get 503."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    granted = [0] * 500

    def refuse_at_once(number: int) -> None:
        granted[number] += 1
        memory.release(SMALL_BODY_BYTES)

    for number in range(len(granted)):
        memory.enqueue(SMALL_BODY_BYTES, partial(refuse_at_once, number), pytest.fail)
    memory.release(MIB)
    assert granted == [1] * len(granted)
    assert memory.used == 0


async def test_a_request_that_waits_too_long_is_refused(autojump_clock: MockClock) -> None:
    """Otherwise a client would wait for its answer until its own timeout."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        started = trio.current_time()
        assert not await memory.acquire(MIB)
        assert MAX_WAIT <= trio.current_time() - started <= MAX_WAIT + 1
        nursery.cancel_scope.cancel()
    assert memory.used == MIB
    assert autojump_clock.autojump_threshold == 0


async def test_a_cancelled_request_leaks_no_memory(autojump_clock: MockClock) -> None:
    """Otherwise clients that leave while they wait would use up the memory."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    with trio.move_on_after(1):
        await memory.acquire(MIB)
    memory.release(MIB)
    assert memory.used == 0
    assert autojump_clock.autojump_threshold == 0


async def test_memory_granted_to_a_cancelled_request_is_released() -> None:
    """Otherwise the memory of a request that no longer exists would be lost."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.acquire, MIB)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        memory.release(MIB)  # before the task of the request can run
        assert memory.used == MIB
    assert memory.used == 0


async def test_a_large_request_goes_behind_those_that_wait() -> None:
    """Otherwise a request would starve behind later ones."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    assert memory.try_acquire(10 * MIB)
    memory.enqueue(8 * MIB, lambda: None, lambda: None)
    assert not memory.try_acquire(SMALL_BODY_BYTES + 1)
    assert memory.try_acquire(SMALL_BODY_BYTES)


def test_a_small_body_fits_into_the_smallest_bound() -> None:
    """Otherwise a body of MAX_LENGTH would wait for ever."""
    assert RequestMemory(SMALL_BODY_BYTES, SMALL_BODY_BYTES).try_acquire(SMALL_BODY_BYTES)


async def test_memory_beyond_the_bound_is_released_first(autojump_clock: MockClock) -> None:
    """Otherwise bodies that are small until they are decompressed would exceed the bound."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    await memory.wait_within_bound()
    memory.acquire_beyond_bound(MIB)
    with trio.move_on_after(1) as deadline:
        await memory.wait_within_bound()
    assert deadline.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.wait_within_bound)
        await wait_all_tasks_blocked()
        memory.release(MIB)
    assert autojump_clock.autojump_threshold == 0


@pytest.mark.parametrize("size", [0, 1, SMALL_BODY_BYTES])
async def test_small_bodies_do_not_wait(size: int) -> None:
    """Otherwise each small request would wait behind large ones."""
    memory = RequestMemory(256 * MIB, 16 * MIB)
    assert memory.try_acquire(256 * MIB * 7 // 8)
    memory.enqueue(16 * MIB, lambda: None, lambda: None)
    assert memory.try_acquire(size)


async def test_a_large_request_does_not_pass_a_larger_one() -> None:
    """Otherwise a request would starve behind later ones."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    assert memory.try_acquire(13 * MIB)
    order: list[str] = []
    memory.enqueue(4 * MIB, lambda: order.append("first"), pytest.fail)
    memory.enqueue(MIB, lambda: order.append("second"), pytest.fail)
    memory.release(MIB)
    assert order == []
    memory.release(3 * MIB)
    assert order == ["first", "second"]


async def test_memory_that_a_grant_releases_is_granted_to_those_before_it() -> None:
    """Otherwise a large request would wait until the next release, maybe until its refusal."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    assert memory.try_acquire(14 * MIB)
    while memory.try_acquire(SMALL_BODY_BYTES):
        pass
    order: list[str] = []

    def end_others() -> None:
        order.append("small")
        memory.release(14 * MIB)

    memory.enqueue(8 * MIB, lambda: order.append("large"), pytest.fail)
    memory.enqueue(SMALL_BODY_BYTES, end_others, pytest.fail)
    memory.release(SMALL_BODY_BYTES)
    assert order == ["small", "large"]


async def test_a_wait_that_a_grant_cancels_gets_no_memory() -> None:
    """Otherwise the memory of a request that no longer exists would be lost."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    waiters = [
        memory.enqueue(10, lambda: memory.cancel_wait(waiters[1]), pytest.fail),
        memory.enqueue(20, pytest.fail, pytest.fail),
    ]
    memory.release(MIB)
    assert memory.used == 10


async def test_an_empty_queue_needs_no_time(autojump_clock: MockClock) -> None:
    """Otherwise the daemon would wake up four times a second for nothing."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        memory.enqueue(MIB, lambda: None, lambda: None)
        await trio.sleep(0.1)
        memory.release(MIB)
        await trio.sleep(1)
        autojump_clock.autojump_threshold = float("inf")
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline == float("inf")
        nursery.cancel_scope.cancel()


async def test_little_is_read_ahead_while_requests_wait(autojump_clock: MockClock) -> None:
    """Otherwise each connection that waits would hold a whole read, or small reads would stay."""
    memory = RequestMemory(MIB, MIB)
    most = memory.read_ahead
    assert memory.try_acquire(MIB)
    assert memory.read_ahead == most >= 64 * 2**10 + 1024
    first = memory.enqueue(MIB, lambda: None, pytest.fail)
    memory.enqueue(1000, lambda: None, pytest.fail)
    assert 4 * 2**10 + 1024 <= memory.read_ahead <= 8 * 2**10
    memory.cancel_wait(first)
    assert memory.read_ahead < most
    memory.release(MIB)
    assert memory.read_ahead == most
    assert memory.try_acquire(MIB - memory.used)
    memory.enqueue(1000, pytest.fail, lambda: None)
    assert memory.read_ahead < most
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(MAX_WAIT + 1)
        nursery.cancel_scope.cancel()
    assert memory.read_ahead == most
    assert autojump_clock.autojump_threshold == 0
