"""The deadlines of many connections: a share at each tick, a few hundred at a time."""

from __future__ import annotations

import socket
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.server import deadlines
from payloadd.ingress.server.client_connection import ClientConnection
from payloadd.ingress.server.deadlines import DeadlineWheel
from payloadd.ingress.server.socket_stream import NonBlockingStream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio.testing import MockClock


class Checked(ClientConnection):
    """A connection that notes when its deadlines are checked, and by how much they are moved."""

    def __init__(self, connected: socket.socket, wheel: DeadlineWheel) -> None:
        super().__init__(NonBlockingStream(connected), 30.0, 60.0, wheel.clock)
        self.checks: list[float] = []
        self.moved = 0.0
        self.leaves: DeadlineWheel | None = None
        self.ends: Checked | None = None
        self._wheel = wheel
        wheel.add(self)

    def check_deadlines(self, now: float) -> None:
        """Note the time."""
        self.checks.append(now)
        if self.leaves is not None:
            self.leaves.remove(self)
        if self.ends is not None:
            self._wheel.remove(self.ends)

    def postpone(self, seconds: float) -> None:
        """Note by how much the deadlines are moved."""
        self.moved += seconds


@pytest.fixture
def connected() -> Iterator[socket.socket]:
    """Return a connected socket, which all connections of a test share."""
    one, other = socket.socketpair()
    with one, other:
        yield one


@pytest.fixture
def wheel(nursery: trio.Nursery) -> DeadlineWheel:
    """Return a wheel that runs, with a tick of 20 ms."""
    one = DeadlineWheel(0.2)
    nursery.start_soon(one.run)
    return one


async def jump(clock: MockClock, seconds: float, times: int = 1) -> None:
    """Let time pass in steps of ``seconds``, and all tasks run after each."""
    for _ in range(times):
        clock.jump(seconds)
        await wait_all_tasks_blocked()


@pytest.mark.parametrize(("timeout", "most"), [(30.0, 1.0), (5.0, 0.5), (0.2, 0.02)])
async def test_each_connection_is_checked_within_a_second(
    timeout: float,  # noqa: ASYNC109 - a setting
    most: float,
    connected: socket.socket,
    autojump_clock: MockClock,
    nursery: trio.Nursery,
) -> None:
    """A connection whose time is over would keep its slot."""
    wheel = DeadlineWheel(timeout)
    nursery.start_soon(wheel.run)
    del autojump_clock
    found = [Checked(connected, wheel) for _ in range(10)]
    began = trio.current_time()
    await trio.sleep(10 * most + 0.001)
    for one in found:
        times = [began, *one.checks]
        longest = max(later - former for former, later in pairwise(times))
        assert longest <= most + 0.001
        assert len(one.checks) >= 9


async def test_a_tick_checks_a_share_of_the_connections_and_a_drain_all(
    connected: socket.socket, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Ten thousand connections would be checked four times a second, or late in a drain."""
    wheel = DeadlineWheel(30.0)
    nursery.start_soon(wheel.run)
    del autojump_clock
    found = [Checked(connected, wheel) for _ in range(8)]
    await trio.sleep(0.26)
    assert sum(len(one.checks) for one in found) == 2
    wheel.draining = True
    await trio.sleep(0.25)
    assert sum(len(one.checks) for one in found) == 10


async def test_other_tasks_run_between_checks(
    connected: socket.socket, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A check of ten thousand connections would stop all requests for milliseconds."""
    wheel = DeadlineWheel(0.2)
    found = [Checked(connected, wheel) for _ in range(6 * deadlines._CHECKED_AT_ONCE)]
    nursery.start_soon(wheel.run)
    await wait_all_tasks_blocked()
    mock_clock.jump(0.02)
    seen = set()
    for _ in range(20):
        await trio.lowlevel.checkpoint()
        seen.add(sum(len(one.checks) for one in found))
    assert len(seen & set(range(1, len(found)))) >= 2


async def test_a_connection_that_ends_during_the_check_is_not_checked_again(
    connected: socket.socket, autojump_clock: MockClock, wheel: DeadlineWheel
) -> None:
    """A closed connection would be closed again, or stay in memory."""
    del autojump_clock
    one = Checked(connected, wheel)
    one.leaves = wheel
    await trio.sleep(0.2)
    assert len(one.checks) == 1
    assert not list(wheel)


async def test_a_connection_that_another_check_ends_is_not_checked(
    connected: socket.socket, autojump_clock: MockClock, wheel: DeadlineWheel
) -> None:
    """A connection that was closed to make room would be closed again."""
    del autojump_clock
    first, second = Checked(connected, wheel), Checked(connected, wheel)
    assert first.share == second.share
    first.ends = second
    await trio.sleep(0.2)
    assert len(first.checks) > 1
    assert not second.checks


async def test_after_a_long_stall_deadlines_are_checked_again_within_seconds(
    connected: socket.socket, mock_clock: MockClock, wheel: DeadlineWheel
) -> None:
    """After an hour of suspension no connection would be closed for an hour."""
    one = Checked(connected, wheel)
    await wait_all_tasks_blocked()
    await jump(mock_clock, 3600.02)
    assert one.moved == pytest.approx(3600)
    await jump(mock_clock, 0.02, 260)
    assert one.checks


async def test_a_stall_moves_all_deadlines_and_checks_none(
    connected: socket.socket, mock_clock: MockClock, wheel: DeadlineWheel
) -> None:
    """Clients would lose their requests because the process was stopped."""
    one = Checked(connected, wheel)
    await wait_all_tasks_blocked()
    await jump(mock_clock, 1.02)
    assert one.moved == pytest.approx(1)
    await jump(mock_clock, 0.02, 45)
    assert not one.checks
    await jump(mock_clock, 0.02, 10)
    assert one.checks


async def test_the_clock_is_right_after_a_time_without_connections(
    connected: socket.socket, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """The first connection after a quiet night would be closed as idle."""
    wheel = DeadlineWheel(30.0)
    nursery.start_soon(wheel.run)
    one = Checked(connected, wheel)
    wheel.remove(one)
    await trio.sleep(3600)
    del autojump_clock
    other = Checked(connected, wheel)
    other.request_begins()
    other.request_ends()
    assert other.state.deadline >= trio.current_time() + 60
