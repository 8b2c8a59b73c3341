"""Requests whose bodies arrive slowly while others wait for memory (``request_memory``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from payloadd.ingress.request_memory import SMALL_BODY_BYTES, RequestMemory
from payloadd.ingress.server.connection_state import ConnectionState, TickClock
from payloadd.ingress.server.hypercorn_app import ReceivedBody
from payloadd.observe.request_metrics import RequestMetrics

if TYPE_CHECKING:
    from trio.testing import MockClock

MIB = 2**20


@dataclass(eq=False)
class Sender:
    """A request that receives its body."""

    memory: RequestMemory
    size: int
    received: int
    since: float = field(default_factory=trio.current_time)
    ended: bool = False

    def begin(self) -> None:
        """Acquire the memory."""
        assert self.memory.try_acquire(self.size)
        self.memory.watch(self)

    def end_slow(self) -> None:
        """Record the refusal, and release the memory."""
        self.ended = True
        self.memory.unwatch(self)
        self.memory.release(self.size)


async def test_slow_senders_are_refused_for_each_class(autojump_clock: MockClock) -> None:
    """Otherwise a large request at the head of the queue would delay all others."""
    memory = RequestMemory(16 * MIB, 14 * MIB)
    senders = [Sender(memory, size, 1) for size in (*[SMALL_BODY_BYTES] * 15, *[4096] * 256)]
    assert memory.try_acquire(14 * MIB)
    assert memory.try_acquire(SMALL_BODY_BYTES)
    for sender in senders:
        sender.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(1)
        memory.enqueue(2 * MIB, lambda: None, lambda: None)
        began = trio.current_time()
        assert await memory.acquire(1000)
        assert trio.current_time() - began <= 1
        nursery.cancel_scope.cancel()


async def test_the_slowest_senders_are_refused_for_waiting_requests(
    autojump_clock: MockClock,
) -> None:
    """Otherwise clients that send a byte a second would hold the memory for REQUEST_TIMEOUT."""
    memory = RequestMemory(4 * MIB, 4 * MIB)
    slow, fast = Sender(memory, 2 * MIB, 10), Sender(memory, 2 * MIB, MIB)
    slow.begin()
    fast.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(2)
        started = trio.current_time()
        assert await memory.acquire(2 * MIB)
        assert trio.current_time() - started < 1
        nursery.cancel_scope.cancel()
    assert (slow.ended, fast.ended) == (True, False)
    assert autojump_clock.autojump_threshold == 0


async def test_the_wait_for_memory_does_not_count_as_slowness(autojump_clock: MockClock) -> None:
    """Otherwise a body that just got its memory, and has sent nothing yet, would be refused."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"x", "more_body": True}

    body = ReceivedBody(
        memory, receive, MIB, ConnectionState(30, 60, TickClock()), RequestMetrics()
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(body.receive)
        await trio.sleep(3)
        memory.release(MIB)
    assert trio.current_time() - body.since < 1
    body.release()
    assert memory.used == 0
    assert autojump_clock.autojump_threshold == 0


async def test_a_slow_sender_is_refused_only_for_a_request_that_has_waited(
    autojump_clock: MockClock,
) -> None:
    """Otherwise a short peak would end requests that would have been complete in a moment."""
    memory = RequestMemory(4 * MIB, 4 * MIB)
    slow = Sender(memory, 4 * MIB, 10)
    slow.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(2)
        memory.enqueue(MIB, lambda: None, lambda: None)
        await trio.sleep(0.3)
        ended = [slow.ended]
        await trio.sleep(0.5)
        ended.append(slow.ended)
        assert ended == [False, True]
        nursery.cancel_scope.cancel()


async def test_a_sender_that_has_just_begun_is_not_slow(autojump_clock: MockClock) -> None:
    """Otherwise a request would be refused before its client could send a byte."""
    memory = RequestMemory(4 * MIB, 4 * MIB)
    sender = Sender(memory, 4 * MIB, 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        sender.begin()
        memory.enqueue(MIB, lambda: None, lambda: None)
        await trio.sleep(0.9)
        ended = [sender.ended]
        await trio.sleep(0.5)
        ended.append(sender.ended)
        assert ended == [False, True]
        nursery.cancel_scope.cancel()


async def test_the_slowest_sender_is_the_one_with_the_lowest_rate(
    autojump_clock: MockClock,
) -> None:
    """Otherwise a client that sends a byte a second would be safe once it has sent for long."""
    memory = RequestMemory(4 * MIB, 4 * MIB)
    old, new = Sender(memory, 2 * MIB, 100), Sender(memory, 2 * MIB, 60)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        old.begin()
        await trio.sleep(8)
        new.since = trio.current_time()
        new.begin()
        await trio.sleep(2)
        assert await memory.acquire(2 * MIB)
        assert (old.ended, new.ended) == (True, False)
        nursery.cancel_scope.cancel()
