"""The deadline of a connection, and its rank for eviction."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.ingress.server.connection_state import (
    MIN_AGE,
    ConnectionState,
    EvictionRank,
    TickClock,
    looks_complete,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

POST = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("data", "complete"),
    [
        (POST, False),
        (POST + b"\r\n", True),
        (POST + b"Content-Length: 2\r\n\r\n1", False),
        (POST + b"Content-Length: 2\r\n\r\n12", True),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", False),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", True),
    ],
)
def test_a_complete_request_is_recognised(data: bytes, complete: bool) -> None:  # noqa: FBT001
    """A client that waits for its answer would be evicted as a slow one."""
    assert looks_complete(data) is complete


async def test_a_connection_has_a_deadline_except_during_a_request(mock_clock: MockClock) -> None:
    """A slow disk would end connections, or inactive clients would keep them."""
    clock = TickClock()
    state = ConnectionState(30, 60, clock)
    start = trio.current_time()
    assert state.deadline == start + 60
    state.note_received(b"POST")
    assert state.deadline == start + 30
    state.request_begins()
    assert state.deadline == inf
    assert state.due == start + 30
    mock_clock.jump(100)
    assert not state.is_overdue(trio.current_time())
    clock.next_tick = trio.current_time() + 0.25
    state.answering = True
    assert not state.request_ends(last=False)
    assert not state.is_overdue(trio.current_time())
    assert state.deadline == clock.next_tick + 60
    mock_clock.jump(60.25)
    assert state.is_overdue(trio.current_time())


async def test_a_stall_of_the_event_loop_moves_all_deadlines(mock_clock: MockClock) -> None:
    """Clients would lose their requests because the process was stopped."""
    state = ConnectionState(30, 60, TickClock())
    state.note_received(b"POST")
    state.request_begins()
    due = state.due
    mock_clock.jump(100)
    state.postpone(100)
    assert state.due == due + 100


async def test_a_drain_leaves_a_second_for_a_request(mock_clock: MockClock) -> None:
    """A client that sends a request at the time of a restart would lose it."""
    state = ConnectionState(30, 60, TickClock())
    assert not state.drain()
    assert state.deadline == trio.current_time() + 1
    mock_clock.jump(0.5)
    state.note_received(b"POST")
    assert state.deadline == trio.current_time() + 1


async def test_idle_connections_rank_before_slow_ones(mock_clock: MockClock) -> None:
    """A client that sends a request would be evicted, and an inactive one kept."""
    idle, slow, waiting, new = (ConnectionState(30, 60, TickClock()) for _ in range(4))
    slow.note_received(b"POS")
    waiting.request_begins()
    answered = ConnectionState(30, 60, TickClock())
    answered.request_begins()
    answered.request_ends(last=False)
    assert answered.eviction_rank(trio.current_time()) is None
    assert answered.eviction_rank(trio.current_time(), brief=True) is not None
    assert new.eviction_rank(trio.current_time()) is None
    assert new.eviction_rank(trio.current_time(), brief=True) == EvictionRank(1, idle.deadline - 60)
    mock_clock.jump(2 * MIN_AGE)
    now = trio.current_time()
    assert idle.eviction_rank(now) == EvictionRank(1, idle.deadline - 60)
    assert slow.eviction_rank(now) == EvictionRank(2, 3 / (2 * MIN_AGE))
    assert waiting.eviction_rank(now) is None
    idle.waits_for_memory = 1
    assert idle.eviction_rank(now) is None


async def test_a_client_that_does_not_read_ranks_after_a_second(mock_clock: MockClock) -> None:
    """A client that reads a little late would be evicted, or one that never reads be kept."""
    state = ConnectionState(30, 60, TickClock())
    state.request_begins()
    with state.sending():
        assert state.eviction_rank(trio.current_time()) is None
        mock_clock.jump(1)
        assert state.eviction_rank(trio.current_time()) == EvictionRank(2, 0.0)
    assert state.eviction_rank(trio.current_time()) is None
