"""The journal's thread: one thing at a time, in order, to its end, and not for ever."""

from __future__ import annotations

import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.journal.sqlite.disk import DiskState
from payloadd.journal.sqlite.thread import JournalThread
from payloadd.observe.health import Health
from tests.support.journal import PATIENCE, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Door:
    """Work that stands before a closed door."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> int:
        """Wait for the door, and say in which thread."""
        self.inside.set()
        assert self.opened.wait(PATIENCE)
        return threading.get_ident()

    async def reached(self) -> None:
        """Return once somebody stands before it."""
        assert await trio.to_thread.run_sync(self.inside.wait, PATIENCE)


@pytest.fixture
def door() -> Iterator[Door]:
    """Return a door that is open in the end, whatever happens."""
    one = Door()
    yield one
    one.opened.set()


@pytest.fixture
def thread() -> Iterator[JournalThread]:
    """Return a thread for the time of the test."""
    one = JournalThread(DiskState(Health()))
    yield one
    one.end()


async def test_all_is_done_in_one_thread_in_the_order_of_asking(
    thread: JournalThread, door: Door
) -> None:
    """Two commits at once on one connection would be one broken journal."""
    order: list[int] = []
    threads: set[int] = set()

    async def ask(number: int) -> None:
        threads.add(await (thread.write if number % 2 else thread.read)(note, number))

    def note(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.write, door.pass_through)
            await door.reached()
            for number in range(50):
                nursery.start_soon(ask, number)
                await wait_all_tasks_blocked()
            door.opened.set()
    assert order == list(range(50))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_what_is_cancelled_in_time_is_never_begun(thread: JournalThread, door: Door) -> None:
    """A daemon that has to end would read a backlog for nobody."""
    done: list[str] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.write, door.pass_through)
            await door.reached()
            with trio.CancelScope() as before:
                before.cancel()
                await thread.read(done.append, "cancelled before")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as readers:
                    readers.start_soon(thread.read, done.append, "cancelled behind the door")
                    await wait_all_tasks_blocked()
                    scope.cancel()
            nursery.start_soon(thread.read, done.append, "wanted")
            door.opened.set()
    assert done == ["wanted"]


async def test_a_read_lets_its_task_go_and_a_write_does_not(
    thread: JournalThread, door: Door
) -> None:
    """A write whose task is gone would be neither answered nor refused."""
    with trio.fail_after(PATIENCE):
        with trio.move_on_after(0.02) as reading:
            await thread.read(door.pass_through)
        assert reading.cancelled_caught
        door.opened.set()
        second, written = Door(), []

        async def write() -> None:
            written.append(await thread.write(second.pass_through))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await second.reached()
            nursery.cancel_scope.cancel()
            second.opened.set()
        assert len(written) == 1


async def test_the_last_writes_share_one_deadline(thread: JournalThread, door: Door) -> None:
    """A disk that hangs would hold the daemon's end, if two things were to be written."""
    refused: list[sqlite3.Error] = []
    done: list[str] = []

    async def write(function: Callable[[], object]) -> None:
        with pytest.raises(sqlite3.OperationalError, match="did not answer") as caught:
            await thread.write(function)
        refused.append(caught.value)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, door.pass_through)
            await door.reached()
            nursery.start_soon(write, lambda: done.append("too late"))
            await wait_all_tasks_blocked()
            thread.finish_within(0.02)
        await write(lambda: done.append("later still"))
        assert len(refused) == 3
        door.opened.set()
    assert done == []


async def test_who_was_first_is_told_first(thread: JournalThread) -> None:
    """A page would show a job before the commit that brought it did, and both send it."""
    told: list[int] = []

    asked: list[int] = []

    async def ask(number: int) -> None:
        asked.append(number)
        await (thread.write if number % 2 else thread.read)(int)
        told.append(number)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
    assert told == asked


async def test_an_error_is_the_tasks_that_asked(thread: JournalThread) -> None:
    """A bug would end the thread in silence, and every request would wait for ever."""
    with trio.fail_after(PATIENCE):
        with pytest.raises(ZeroDivisionError):
            await thread.write(lambda: 1 // 0)
        assert await thread.write(lambda: 1) == 1


async def test_it_ends_when_it_is_told_to(thread: JournalThread) -> None:
    """Each journal of a test run, or of a daemon that opens another, would leave a thread."""
    here = await thread.read(threading.current_thread)
    assert here.daemon
    thread.end()
    thread.end()
    await until(lambda: not here.is_alive())


async def test_what_was_asked_for_is_done_before_the_end(thread: JournalThread, door: Door) -> None:
    """Who waits for the last commit would wait for ever."""
    done: list[int] = []
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.write, door.pass_through)
            await door.reached()
            nursery.start_soon(thread.write, done.append, 1)
            await wait_all_tasks_blocked()
            thread.end()
            door.opened.set()
    assert done == [1]


def test_what_ends_behind_the_run_is_told_to_nobody(door: Door) -> None:
    """A disk that wakes up after the daemon's last line would add a traceback to it."""

    async def leave() -> threading.Thread:
        thread = JournalThread(DiskState(Health()))
        here = await thread.read(threading.current_thread)
        with trio.move_on_after(0.02):
            await thread.read(door.pass_through)
        thread.end()
        return here

    left = trio.run(leave)
    assert left.is_alive()
    door.opened.set()
    left.join(PATIENCE)
    assert not left.is_alive()
