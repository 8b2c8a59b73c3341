"""The memory of request bodies: bounded for all together, and never taken for good."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from payloadd.ingress.request_memory import PATIENCE, SMALL, RequestMemory
from payloadd.ingress.server.connection_state import ConnectionState
from payloadd.ingress.server.hypercorn_app import ReceivedBody

MIB = 2**20


@dataclass(eq=False)
class Sender:
    """A request whose body is on its way."""

    memory: RequestMemory
    size: int
    received: int
    since: float = field(default_factory=trio.current_time)
    ended: bool = False

    def begin(self) -> None:
        """Let it in."""
        assert self.memory.take(self.size)
        self.memory.watch(self)

    def end_slow(self) -> None:
        """Note that it was ended, and give the memory back."""
        self.ended = True
        self.memory.unwatch(self)
        self.memory.release(self.size)


def test_the_bound_holds_and_a_part_of_it_is_for_small_bodies() -> None:
    """A few clients that announce megabytes would shut out all others."""
    memory = RequestMemory(16 * MIB, MIB)
    taken = 0
    while memory.take(MIB):
        taken += 1
    assert taken == 14
    small = 0
    while memory.take(SMALL):
        small += 1
    assert small == MIB // SMALL
    tiny = 0
    while memory.take(4096):
        tiny += 1
    assert tiny == MIB // 4096
    assert memory.used == 16 * MIB
    memory.release(16 * MIB)
    assert memory.used == 0


def test_the_largest_body_fits_however_small_the_bound() -> None:
    """A body of MAX_LENGTH would wait for ever."""
    assert RequestMemory(MIB, MIB).take(MIB)


async def test_requests_get_memory_in_the_order_in_which_they_came() -> None:
    """A request would starve behind ones that come later."""
    memory = RequestMemory(8 * MIB, 7 * MIB)
    assert memory.take(7 * MIB)
    order: list[str] = []

    async def wait(name: str, size: int) -> None:
        assert await memory.acquire(size)
        order.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "large", 7 * MIB)
        await wait_all_tasks_blocked()
        nursery.start_soon(wait, "less large", MIB)
        await wait_all_tasks_blocked()
        assert memory.take(SMALL)  # goes by: the reserve is for it
        memory.release(SMALL)
        memory.release(7 * MIB)
        await wait_all_tasks_blocked()
        assert order == ["large"]
        memory.release(7 * MIB)
    assert order == ["large", "less large"]
    assert memory.used == MIB


async def test_memory_that_is_given_back_within_a_grant_is_granted_once() -> None:
    """Requests that are refused as soon as they have their memory would use it up for good."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)
    granted: list[int] = []

    def wait(number: int) -> None:
        def answer() -> None:
            granted.append(number)
            memory.release(SMALL)

        memory.wait(SMALL, answer, lambda: None)

    for number in range(2000):  # more than the interpreter's stack has room for
        wait(number)
    memory.release(MIB)
    assert granted == [*range(2000)]
    assert memory.used == 0


async def test_a_large_request_in_line_holds_up_no_small_one_behind_it() -> None:
    """A small request would be refused after seconds though the reserve is there for it."""
    memory = RequestMemory(8 * MIB, MIB)
    assert memory.take(7 * MIB)
    while memory.take(SMALL):
        pass
    granted: list[str] = []
    memory.wait(MIB, lambda: granted.append("large"), lambda: None)
    memory.wait(SMALL, lambda: granted.append("small"), lambda: None)
    memory.release(SMALL)
    assert granted == ["small"]
    memory.release(2 * MIB)
    assert granted == ["small", "large"]


async def test_no_request_waits_behind_a_larger_one() -> None:
    """Clients that announce 64 KiB and send nothing would make all others wait for 5 s."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    assert memory.take(14 * MIB)
    assert memory.take(SMALL)
    for _ in range(MIB // SMALL - 1):
        assert memory.take(SMALL)
    order: list[str] = []
    for name, size in (("large", MIB), ("small", SMALL), ("small too", SMALL)):
        memory.wait(size, partial(order.append, name), pytest.fail)
    assert memory.take(1000)
    memory.release(1000)
    memory.release(SMALL)
    assert order == ["small"]
    memory.release(14 * MIB)
    assert order == ["small", "large", "small too"]


async def test_requests_that_end_when_they_get_their_memory_get_it_once() -> None:
    """A malformed request that waited would take memory for ever: 503 for all later ones."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)
    granted = [0] * 500

    def refuse_at_once(number: int) -> None:
        granted[number] += 1
        memory.release(SMALL)

    for number in range(len(granted)):
        memory.wait(SMALL, partial(refuse_at_once, number), pytest.fail)
    memory.release(MIB)
    assert granted == [1] * len(granted)
    assert memory.used == 0


@pytest.mark.usefixtures("autojump_clock")
async def test_slow_senders_are_ended_for_each_class() -> None:
    """A large request at the head of the line would keep all others waiting behind it."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    senders = [Sender(memory, size, 1) for size in (*[SMALL] * 15, *[4096] * 256)]
    assert memory.take(14 * MIB)
    assert memory.take(SMALL)
    for sender in senders:
        sender.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(1)
        memory.wait(2 * MIB, lambda: None, lambda: None)
        began = trio.current_time()
        assert await memory.acquire(1000)
        assert trio.current_time() - began <= 1
        nursery.cancel_scope.cancel()


async def test_a_request_that_waits_too_long_is_refused(autojump_clock: MockClock) -> None:
    """A client would wait for its answer until it gives up."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        started = trio.current_time()
        assert not await memory.acquire(MIB)
        assert PATIENCE <= trio.current_time() - started <= PATIENCE + 1
        nursery.cancel_scope.cancel()
    assert memory.used == MIB
    assert autojump_clock.autojump_threshold == 0


async def test_a_request_that_is_gone_leaves_no_memory_behind(autojump_clock: MockClock) -> None:
    """Clients that leave while they wait would use the memory up."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)
    with trio.move_on_after(1):
        await memory.acquire(MIB)
    memory.release(MIB)
    assert memory.used == 0
    assert autojump_clock.autojump_threshold == 0


async def test_memory_that_is_granted_while_the_request_is_cancelled() -> None:
    """Memory of a request that no longer exists would be lost."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.acquire, MIB)
        await wait_all_tasks_blocked()
        memory.release(MIB)
        nursery.cancel_scope.cancel()
    assert memory.used in (0, MIB)
    assert memory.take(MIB) or memory.used == MIB


async def test_the_slowest_senders_are_ended_for_those_that_wait(
    autojump_clock: MockClock,
) -> None:
    """Clients that send a byte a second would hold all the memory for REQUEST_TIMEOUT."""
    memory = RequestMemory(4 * MIB, 4 * MIB)
    slow, quick = Sender(memory, 2 * MIB, 10), Sender(memory, 2 * MIB, MIB)
    slow.begin()
    quick.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(2)
        started = trio.current_time()
        assert await memory.acquire(2 * MIB)
        assert trio.current_time() - started < 1
        nursery.cancel_scope.cancel()
    assert (slow.ended, quick.ended) == (True, False)
    assert autojump_clock.autojump_threshold == 0


async def test_what_is_overdrawn_is_paid_back_first(autojump_clock: MockClock) -> None:
    """Bodies that are small until they are decompressed would pass the bound one after another."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)
    await memory.wait_paid_back()
    memory.overdraw(MIB)
    with trio.move_on_after(1) as patience:
        await memory.wait_paid_back()
    assert patience.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.wait_paid_back)
        await wait_all_tasks_blocked()
        memory.release(MIB)
    assert autojump_clock.autojump_threshold == 0


@pytest.mark.parametrize("size", [0, 1, SMALL])
async def test_small_bodies_cost_no_waiting(size: int) -> None:
    """Every small request would wait behind large ones."""
    memory = RequestMemory(256 * MIB, 16 * MIB)
    assert memory.take(256 * MIB * 7 // 8)
    memory.wait(16 * MIB, lambda: None, lambda: None)
    assert memory.take(size)


async def test_the_wait_for_memory_does_not_make_a_client_slow(autojump_clock: MockClock) -> None:
    """A body that was just let in would be ended for the next one: it has sent nothing yet."""
    memory = RequestMemory(MIB, MIB)
    assert memory.take(MIB)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x", "more_body": True}

    body = ReceivedBody(memory, receive, MIB, ConnectionState(30, 60))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.receive)
        await trio.sleep(3)
        memory.release(MIB)
    assert trio.current_time() - body.since < 1
    body.release()
    assert memory.used == 0
    assert autojump_clock.autojump_threshold == 0
