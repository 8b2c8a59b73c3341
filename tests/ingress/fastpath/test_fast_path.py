"""The passes of the fast path: how many connections have a turn in one of them."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.ingress.fastpath import fast_path as module
from payloadd.ingress.fastpath.fast_path import FastPath
from payloadd.ingress.refusal_log import RefusalLog
from tests.ingress.rig import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TURNS = 40


class Work:
    """Turns of 0.6 ms each, on a clock that only they move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done = 0
        self.times: list[float] = []
        monkeypatch.setattr(module, "perf_counter", lambda: self.done * 0.0006)

    def do(self) -> None:
        """Take one turn."""
        self.done += 1
        self.times.append(trio.current_time())


class Client:
    """A connection with input as soon as ``send`` is called; reading it notes the turns so far."""

    def __init__(self, work: Work) -> None:
        self.sender, self.socket = socket.socketpair()
        self.seen: list[int] = []
        self._work = work

    def send(self) -> None:
        """Send a request."""
        self.sender.send(b"x")

    def on_readable(self) -> None:
        """Read it."""
        self.socket.recv(1)
        self.seen.append(self._work.done)


class BusyClient(Client):
    """A connection whose input takes a turn."""

    def on_readable(self) -> None:
        """Read it."""
        super().on_readable()
        self._work.do()


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return turns, which move the clock of the fast path."""
    return Work(monkeypatch)


@pytest.fixture
def client(work: Work) -> Client:
    """Return a connection that counts these turns."""
    return Client(work)


@asynccontextmanager
async def serving(*clients: Client) -> AsyncIterator[tuple[FastPath, Callable[[], None]]]:
    """Yield a fast path that serves ``clients``, and a function that lets it run."""
    async with running() as rig, trio.open_nursery() as nursery:
        assert rig.submitter is not None
        fast_path = FastPath(rig.submitter, rig.health, rig.metrics, RefusalLog(), b"{}")
        for client in clients:
            fast_path.register(client.socket.fileno(), client)
        yield fast_path, lambda: nursery.start_soon(fast_path.run)
        nursery.cancel_scope.cancel()
    for client in clients:
        client.sender.close()
        client.socket.close()


async def until_done(work: Work) -> None:
    """Wait until all turns were taken."""
    with trio.fail_after(1000):
        while work.done < TURNS:  # noqa: ASYNC110 - the clock has to move
            await trio.sleep(0.0001)


async def passes_until_done(work: Work) -> int:
    """Return the passes of the event loop in which other tasks run until all turns were taken."""
    passes = 0
    with trio.fail_after(1000):
        while work.done < TURNS:
            passes += 1
            await trio.lowlevel.checkpoint()
    return passes


async def do_all(work: Work, client: Client, unanswered: int) -> None:
    """Take all turns, which were asked for at once, while some requests have no answer."""
    async with serving(client) as (fast_path, start):
        fast_path.unanswered = unanswered
        for _ in range(TURNS):
            fast_path.call_soon(work.do)
        start()
        await until_done(work)


async def test_a_new_request_passes_the_connections_that_wait_for_their_turn(
    work: Work, client: Client
) -> None:
    """It would wait until each of a thousand connections had its turn."""
    async with serving(client) as (fast_path, start):
        fast_path.call_soon(client.send)
        for _ in range(TURNS):
            fast_path.call_soon(work.do)
        start()
        await until_done(work)
    assert client.seen == [2]  # the turns of one pass


async def test_turns_leave_time_for_other_tasks(work: Work, client: Client) -> None:
    """The turns of a thousand connections would block all other tasks for a second."""
    async with serving(client) as (fast_path, start):
        for _ in range(TURNS):
            fast_path.call_soon(work.do)
        start()
        passes = await passes_until_done(work)
    assert passes >= TURNS / 2 - 2  # a pass has two turns


async def test_reads_leave_time_for_other_tasks(work: Work) -> None:
    """64 requests of 20 ms each in one pass would block all other tasks for a second."""
    clients = [BusyClient(work) for _ in range(TURNS)]
    async with serving(*clients) as (_, start):
        for client in clients:
            client.send()
        start()
        passes = await passes_until_done(work)
    assert passes >= TURNS / 4 - 2  # the clock is read after each fourth read


async def test_a_turn_that_is_asked_for_in_a_turn_is_one_of_a_later_pass(
    work: Work, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of tiny chunks would be parsed to its end without a break."""
    monkeypatch.setattr(module, "perf_counter", float)
    async with serving(client) as (fast_path, start):

        def again() -> None:
            work.do()
            if work.done == 1:
                client.send()
            if work.done < TURNS:
                fast_path.call_soon(again)

        fast_path.call_soon(again)
        start()
        await until_done(work)
    assert client.seen == [1]


async def test_turns_pause_while_a_commit_is_awaited(
    work: Work, client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    """The commit would wait for the interpreter lock in each of its 30 steps."""
    await do_all(work, client, unanswered=1)
    # A pass has two turns.
    assert work.times[-1] - work.times[0] >= (TURNS / 2 - 1) * 0.002 - 1e-6


async def test_turns_do_not_pause_without_need(
    work: Work, client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    """A client that sends its requests in advance would be slow."""
    await do_all(work, client, unanswered=0)
    assert work.times[-1] == work.times[0]


async def test_a_new_request_is_read_in_a_pause(
    work: Work, client: Client, autojump_clock: trio.testing.MockClock
) -> None:
    """It would wait for the end of the pause."""
    async with serving(client) as (fast_path, start):

        def begin() -> None:
            fast_path.unanswered = 1

        fast_path.call_soon(begin)
        for _ in range(TURNS):
            fast_path.call_soon(work.do)
        start()
        with trio.fail_after(1000):
            while not work.done:
                await trio.lowlevel.checkpoint()
        client.send()
        await until_done(work)
    assert client.seen == [2]
    assert work.times[2] == work.times[0]
