"""The memory of a body while it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.ingress.fastpath.framing import ChunkedBody, SizedBody
from payloadd.ingress.fastpath.incoming_body import IncomingBody
from payloadd.ingress.request_memory import RequestMemory

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.ingress.problem import Problem

MOST = 100_000


class Owner:
    """Records the calls of a body."""

    def __init__(self) -> None:
        self.body: IncomingBody | None = None
        self.granted = 0
        self.problems: list[Problem] = []

    def await_turn(self) -> None:
        """Count a grant."""
        self.granted += 1

    def on_body_refused(self, problem: Problem) -> None:
        """Record a refusal, and drop the body."""
        self.problems.append(problem)
        assert self.body is not None
        self.body.release()


def chunk(size: int) -> bytes:
    """Return a chunk of so many bytes."""
    return b"%x\r\n%b\r\n" % (size, bytes(size))


async def test_a_body_with_a_length_acquires_all_of_its_memory_at_once() -> None:
    """Bodies that have a part each could wait for the rest of each other's memory."""
    memory = RequestMemory(MOST, MOST)
    body = IncomingBody(SizedBody(50_000), memory, Owner())
    assert body.acquire()
    assert (memory.used, body.charge, body.received) == (50_000, 50_000, 0)
    body.framing.feed(bytes(50_000))
    assert body.acquire()
    assert memory.used == 50_000
    assert len(body.finish()) == 50_000
    memory.release(body.charge)
    assert memory.used == 0


async def test_a_chunked_body_acquires_memory_as_it_arrives() -> None:
    """A client that only announces chunks would use memory that others need."""
    memory, owner = RequestMemory(MOST, MOST), Owner()
    body = IncomingBody(ChunkedBody(MOST), memory, owner)
    for number in range(1, 4):
        body.framing.feed(chunk(1000))
        assert body.acquire()
        assert memory.used == number * 1000
    body.release()
    assert memory.used == 0
    body.release()
    assert memory.used == 0


async def test_little_of_a_chunked_body_is_read_while_others_wait() -> None:
    """Each chunked body would hold one read without memory."""
    memory = RequestMemory(MOST, MOST)
    sized = IncomingBody(SizedBody(50_000), memory, Owner())
    chunked = IncomingBody(ChunkedBody(MOST), memory, Owner())
    assert (sized.acquire(), chunked.acquire()) == (True, True)
    assert (sized.read_bytes, chunked.read_bytes) == (50_000, 64 * 2**10)
    memory.enqueue(MOST, pytest.fail, lambda: None)
    # The memory of a body with a length is acquired already.
    assert (sized.read_bytes, chunked.read_bytes) == (50_000, memory.read_ahead)
    assert memory.read_ahead <= 8 * 2**10


async def test_a_body_waits_for_memory_and_goes_on() -> None:
    """The bound would be exceeded, or the request be refused at once."""
    memory, owner = RequestMemory(MOST, MOST), Owner()
    assert memory.try_acquire(MOST)
    body = IncomingBody(ChunkedBody(MOST), memory, owner)
    body.framing.feed(chunk(1000))
    assert not body.acquire()
    assert body.progress() > 10**9  # it does not count as slow
    memory.release(MOST)
    assert (owner.granted, body.charge, memory.used) == (1, 1000, 1000)
    assert body.progress() == 1000
    body.release()
    assert memory.used == 0


async def test_a_body_that_is_dropped_waits_no_longer() -> None:
    """Memory would be granted to a request that no longer exists, and be lost."""
    memory, owner = RequestMemory(MOST, MOST), Owner()
    assert memory.try_acquire(MOST)
    body = IncomingBody(SizedBody(1000), memory, owner)
    assert not body.acquire()
    body.release()
    memory.release(MOST)
    assert (owner.granted, memory.used) == (0, 0)


async def test_a_slow_body_is_refused_for_one_that_waits(autojump_clock: MockClock) -> None:
    """A client that sends nothing would keep the memory from all others."""
    memory, slow, waiting = RequestMemory(MOST, MOST), Owner(), Owner()
    slow.body = IncomingBody(SizedBody(MOST), memory, slow)
    body = IncomingBody(SizedBody(MOST), memory, waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        assert (slow.body.acquire(), body.acquire()) == (True, False)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    (problem,) = slow.problems
    assert problem.code == "BUSY"
    assert "too slowly" in problem.detail
    assert (waiting.granted, waiting.problems) == (1, [])
    assert autojump_clock.autojump_threshold == 0


async def test_a_body_without_memory_is_refused(autojump_clock: MockClock) -> None:
    """A client would wait for ever."""
    memory, owner = RequestMemory(MOST, MOST), Owner()
    assert memory.try_acquire(MOST)
    owner.body = IncomingBody(SizedBody(1), memory, owner)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        assert not owner.body.acquire()
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    (problem,) = owner.problems
    assert problem.code == "BUSY"
    assert problem.headers["Retry-After"] in {"2", "3"}
    assert memory.used == MOST
    assert autojump_clock.autojump_threshold == 0
