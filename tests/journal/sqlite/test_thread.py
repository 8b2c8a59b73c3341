"""The journal's thread: one call at a time, in order, to its end, and with a deadline."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.journal.sqlite.disk import DiskState
from payloadd.journal.sqlite.thread import JournalThread
from payloadd.observe.health import Health
from tests.support.journal import TEST_TIMEOUT, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Gate:
    """A call that waits until the test opens the gate."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> int:
        """Wait for the gate; return the thread's id."""
        self.inside.set()
        assert self.opened.wait(TEST_TIMEOUT)
        return threading.get_ident()

    async def reached(self) -> None:
        """Return once a call waits for the gate."""
        assert await trio.to_thread.run_sync(self.inside.wait, TEST_TIMEOUT)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Return a gate that is open at the end of the test."""
    one = Gate()
    yield one
    one.opened.set()


@pytest.fixture
def thread() -> Iterator[JournalThread]:
    """Return a thread that ends with the test."""
    one = JournalThread(DiskState(Health()))
    yield one
    one.end()


async def test_calls_run_in_one_thread_in_the_order_of_requests(
    thread: JournalThread, gate: Gate
) -> None:
    """Otherwise two commits at a time on one connection damage the journal."""
    order: list[int] = []
    threads: set[int] = set()

    async def request(number: int) -> None:
        threads.add(await (thread.write if number % 2 else thread.read)(note, number))

    def note(number: int) -> int:
        order.append(number)
        return threading.get_ident()

    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.write, gate.pass_through)
            await gate.reached()
            for number in range(50):
                nursery.start_soon(request, number)
                await wait_all_tasks_blocked()
            gate.opened.set()
    assert order == list(range(50))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}


async def test_a_read_that_is_cancelled_in_time_does_not_begin(
    thread: JournalThread, gate: Gate
) -> None:
    """Otherwise a daemon that has to end reads a backlog in vain."""
    done: list[str] = []
    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.write, gate.pass_through)
            await gate.reached()
            with trio.CancelScope() as before:
                before.cancel()
                await thread.read(done.append, "cancelled before")
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as readers:
                    readers.start_soon(thread.read, done.append, "cancelled behind the gate")
                    await wait_all_tasks_blocked()
                    scope.cancel()
            nursery.start_soon(thread.read, done.append, "wanted")
            gate.opened.set()
    assert done == ["wanted"]


async def test_a_read_can_be_cancelled_and_a_write_cannot(
    thread: JournalThread, gate: Gate
) -> None:
    """Otherwise requests of a cancelled write are neither answered nor refused."""
    with trio.fail_after(TEST_TIMEOUT):
        with trio.move_on_after(0.02) as reading:
            await thread.read(gate.pass_through)
        assert reading.cancelled_caught
        gate.opened.set()
        second, written = Gate(), []

        async def write() -> None:
            written.append(await thread.write(second.pass_through))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await second.reached()
            nursery.cancel_scope.cancel()
            second.opened.set()
        assert len(written) == 1


async def test_the_last_writes_share_one_deadline(thread: JournalThread, gate: Gate) -> None:
    """Otherwise two writes double the time for which a hanging disk delays the exit."""
    refused: list[sqlite3.Error] = []
    done: list[str] = []

    async def write(function: Callable[[], object]) -> None:
        with pytest.raises(sqlite3.OperationalError, match="did not answer") as caught:
            await thread.write(function)
        refused.append(caught.value)

    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, gate.pass_through)
            await gate.reached()
            nursery.start_soon(write, lambda: done.append("too late"))
            await wait_all_tasks_blocked()
            thread.finish_within(0.02)
        await write(lambda: done.append("later still"))
        assert len(refused) == 3
        gate.opened.set()
    assert done == []


async def test_tasks_are_woken_in_the_order_of_their_calls(thread: JournalThread) -> None:
    """Otherwise a page and the commit of its job both offer the job."""
    woken: list[int] = []

    requested: list[int] = []

    async def request(number: int) -> None:
        requested.append(number)
        await (thread.write if number % 2 else thread.read)(int)
        woken.append(number)

    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(request, number)
    assert woken == requested


async def test_a_task_runs_in_the_pass_after_its_call(thread: JournalThread) -> None:
    """With busy passes of milliseconds each request would wait for one more of them."""
    for _ in range(20):
        gate, done = Gate(), trio.Event()

        async def write(gate: Gate, done: trio.Event) -> None:
            await thread.write(gate.pass_through)
            done.set()

        with trio.fail_after(TEST_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, gate, done)
                await gate.reached()
                gate.opened.set()
                while thread._marks.ended < thread._marks.begun:
                    time.sleep(0.001)  # noqa: ASYNC251 - the event loop must not run
                # In the first pass the task may run after this one.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                assert done.is_set()


async def test_calls_that_are_cancelled_at_any_moment_hold_no_other_call(
    thread: JournalThread, nursery: trio.Nursery
) -> None:
    """The journal would stop for ever, or a result reach another task."""
    ended = 0

    async def call(first: int) -> None:
        nonlocal ended
        for number in range(first, first + 200):
            with trio.move_on_after(number % 30 / 60_000):
                assert await (thread.write if number % 3 else thread.read)(abs, -number) == number
        ended += 1

    for task in range(6):
        nursery.start_soon(call, 1000 * task)
    await until(lambda: ended == 6)
    assert await thread.read(abs, -1) == 1
    assert len(thread._descriptors) <= 7


async def test_a_read_that_ends_while_it_is_cancelled_leaves_its_descriptor_clean(
    thread: JournalThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call would end before its function has run."""
    inside = threading.Event()
    write = os.eventfd_write

    def write_late(descriptor: int, value: int) -> None:
        inside.set()
        time.sleep(0.02)
        write(descriptor, value)

    monkeypatch.setattr(os, "eventfd_write", write_late)
    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as readers:
            readers.start_soon(thread.read, abs, -1)
            await wait_all_tasks_blocked()
            assert inside.wait(TEST_TIMEOUT)
            readers.cancel_scope.cancel()
        assert await thread.read(abs, -2) == 2


@pytest.mark.parametrize("name", ["eventfd", "wait_readable"])
async def test_calls_end_without_descriptors_and_memory(
    thread: JournalThread, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The daemon would end, or refuse a request that is written."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os if name == "eventfd" else trio.lowlevel, name, fail)
    with trio.fail_after(TEST_TIMEOUT):
        for number in range(3):
            assert await thread.write(abs, -number) == number
            assert await thread.read(abs, -number) == number
    monkeypatch.undo()
    assert await thread.write(abs, -3) == 3


async def test_a_thread_that_ends_leaves_no_descriptor(thread: JournalThread, gate: Gate) -> None:
    """Each journal that was closed would keep some."""

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    await wait_all_tasks_blocked()
    before = count()
    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(thread.read, abs, -number)
        assert count() > before
        with trio.move_on_after(0.02):
            await thread.read(gate.pass_through)
        thread.end()
    assert count() == before


async def test_an_error_is_raised_in_the_task_that_waits(thread: JournalThread) -> None:
    """Otherwise a bug ends the thread, and every request waits for ever."""
    with trio.fail_after(TEST_TIMEOUT):
        with pytest.raises(ZeroDivisionError):
            await thread.write(lambda: 1 // 0)
        assert await thread.write(lambda: 1) == 1


async def test_the_thread_ends(thread: JournalThread) -> None:
    """Otherwise each closed journal leaves a thread."""
    here = await thread.read(threading.current_thread)
    assert here.daemon
    thread.end()
    thread.end()
    await until(lambda: not here.is_alive())


async def test_requested_calls_run_before_the_thread_ends(
    thread: JournalThread, gate: Gate
) -> None:
    """Otherwise the requests of the last commit wait for ever."""
    done: list[int] = []
    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(thread.write, gate.pass_through)
            await gate.reached()
            nursery.start_soon(thread.write, done.append, 1)
            await wait_all_tasks_blocked()
            thread.end()
            gate.opened.set()
    assert done == [1]


def test_a_call_that_ends_after_the_event_loop_is_ignored(gate: Gate) -> None:
    """Otherwise a disk that answers after the daemon's last log line adds a traceback to it."""

    async def leave() -> threading.Thread:
        thread = JournalThread(DiskState(Health()))
        here = await thread.read(threading.current_thread)
        with trio.move_on_after(0.02):
            await thread.read(gate.pass_through)
        thread.end()
        return here

    left = trio.run(leave)
    assert left.is_alive()
    gate.opened.set()
    left.join(TEST_TIMEOUT)
    assert not left.is_alive()
