"""The memory of one body behind Hypercorn: known length, and pieces of unknown length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from payloadd.ingress.request_memory import MAX_WAIT, RequestMemory
from payloadd.ingress.server.connection_state import ConnectionState, TickClock
from payloadd.ingress.server.hypercorn_app import ReceivedBody
from payloadd.observe.request_metrics import RequestMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable

MIB: Final = 2**20
_DISCONNECT: Final = {"type": "http.disconnect"}


def pieces(*sizes: int) -> list[dict[str, Any]]:
    """Return the messages of a body that comes in pieces of these sizes."""
    messages = [{"type": "http.request", "body": bytes(n), "more_body": True} for n in sizes]
    messages[-1]["more_body"] = False
    return messages


class Request:
    """A body that is received from a list of messages."""

    def __init__(
        self, memory: RequestMemory, messages: Iterable[dict[str, Any]], length: int = 0
    ) -> None:
        self.memory = memory
        self.used_at_reads: list[int] = []
        """Bytes of memory in use at each read from the connection."""
        self._messages = iter(messages)
        self.state = ConnectionState(30, 60, TickClock())
        self.metrics = RequestMetrics()
        self.body = ReceivedBody(memory, self._receive, length, self.state, self.metrics)

    async def _receive(self) -> dict[str, Any]:
        self.used_at_reads.append(self.memory.used)
        return next(self._messages)

    async def read_all(self) -> int:
        """Read all messages up to the last one of the body; return the bytes."""
        size = 0
        while True:
            message = await self.body.receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return size


async def test_pieces_of_unknown_length_acquire_their_memory_one_by_one() -> None:
    """A chunked body would take memory that no bound counts."""
    memory = RequestMemory(16 * MIB, MIB)
    request = Request(memory, pieces(100, 200, 0, 50))
    assert await request.read_all() == 350
    assert request.used_at_reads == [0, 100, 300, 300]
    assert memory.used == 350
    request.body.release()
    assert memory.used == 0
    request.body.release()
    assert memory.used == 0


async def test_a_known_length_is_acquired_before_the_first_read() -> None:
    """Partial bodies would wait for each other's memory for ever."""
    memory = RequestMemory(16 * MIB, MIB)
    request = Request(memory, pieces(600, 400), 1000)
    await request.read_all()
    assert request.used_at_reads == [1000, 1000]
    assert memory.used == 1000
    longer = Request(memory, pieces(600, 400, 50), 1000)
    await longer.read_all()
    assert memory.used == 1000 + 1050


async def test_nothing_is_read_while_no_memory_is_free(autojump_clock: MockClock) -> None:
    """The memory would grow with the number of chunked bodies."""
    memory = RequestMemory(MIB, MIB)
    request = Request(memory, pieces(MIB // 2, MIB // 2, 1))
    await request.body.receive()
    assert memory.try_acquire(MIB // 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.body.receive)
        await wait_all_tasks_blocked()
        assert len(request.used_at_reads) == 2
        assert request.state.waits_for_memory == 1
        await trio.sleep(3)
        memory.release(MIB // 2)
    assert request.state.waits_for_memory == 0
    assert memory.used == MIB
    assert autojump_clock.autojump_threshold == 0


async def test_a_body_that_gets_no_memory_is_dropped_and_refused(
    autojump_clock: MockClock,
) -> None:
    """The rest of a refused body would be kept, or the request would never be answered."""
    memory = RequestMemory(MIB, MIB)
    assert memory.try_acquire(MIB)
    request = Request(memory, [*pieces(10, 10, 10), _DISCONNECT])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        with request.body.reading:
            start = trio.current_time()
            message = await request.body.receive()
            assert trio.current_time() - start >= MAX_WAIT
            assert message == _DISCONNECT
            await trio.lowlevel.checkpoint()
            pytest.fail("the reading was not cancelled")
        nursery.cancel_scope.cancel()
    assert request.body.refused
    request.body.release()
    assert memory.used == MIB
    assert autojump_clock.autojump_threshold == 0


async def test_a_refused_body_acquires_nothing_more() -> None:
    """A refused request would take memory from the requests it was refused for."""
    memory = RequestMemory(MIB, MIB)
    request = Request(memory, [*pieces(10, 10, 10), _DISCONNECT])
    await request.body.receive()
    request.body.end_slow()
    assert await request.body.receive() == _DISCONNECT
    assert memory.used == 10
    request.body.release()
    assert memory.used == 0


async def test_only_an_incomplete_body_can_be_refused_for_others(
    autojump_clock: MockClock,
) -> None:
    """A complete request would be refused because its client sent it slowly."""
    memory = RequestMemory(MIB, MIB)
    slow, complete = Request(memory, pieces(MIB // 4, 1)), Request(memory, pieces(1, MIB // 4))
    await slow.body.receive()
    await complete.read_all()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.run)
        await trio.sleep(2)
        nursery.start_soon(memory.acquire, MIB - 2)
        await trio.sleep(2)
        assert (slow.body.refused, complete.body.refused) == (True, False)
        nursery.cancel_scope.cancel()
    assert autojump_clock.autojump_threshold == 0
