"""Distinguish a disk that hangs from a daemon that is late."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.stall import CallMarks, StallDetector
from tests.support.clients import Posts
from tests.support.daemon import running_daemon
from tests.support.journal import open_rig, until

if TYPE_CHECKING:
    from pathlib import Path


class SetMarks(CallMarks):
    """Marks of a thread whose CPU clock the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu = 0.0

    def cpu_seconds(self) -> float:
        """Return the time that the test has set."""
        return self.cpu


class Clocks:
    """The CPU clocks of the two threads, which the test sets."""

    def __init__(self) -> None:
        self.loop = 0.0
        self.marks = SetMarks()
        self.detector = StallDetector(self.marks, lambda: self.loop)

    def check(self, late: float = 0.0, thread: float = 0.0, loop: float = 0.0) -> float:
        """Check a second later; the threads have used so many CPU seconds meanwhile."""
        self.marks.cpu += thread
        self.loop += loop
        return self.detector.check(1.0, late)


@pytest.fixture
def clocks() -> Clocks:
    """Return clocks at 0."""
    return Clocks()


def test_the_seconds_of_one_call_are_counted(clocks: Clocks) -> None:
    """Otherwise clients wait for a response for as long as the disk hangs."""
    assert clocks.check() == 0.0
    clocks.marks.begun = 1
    assert [clocks.check() for _ in range(4)] == [0.0, 1.0, 2.0, 3.0]
    clocks.marks.ended = 1
    assert clocks.check() == 0.0


def test_the_time_of_several_calls_is_not_added(clocks: Clocks) -> None:
    """Otherwise six commits of a slow disk count as a hanging one."""
    for number in range(1, 9):
        clocks.marks.begun = number
        clocks.marks.ended = number - 1
        assert clocks.check() == 0.0


def test_late_checks_do_not_count(clocks: Clocks) -> None:
    """Otherwise a process that was stopped for 20 s reports that the disk hangs."""
    clocks.marks.begun = 1
    clocks.check()
    assert clocks.check(late=20.0) == 0.0
    assert clocks.check(late=0.4) == 1.0


def test_a_starved_thread_does_not_count(clocks: Clocks) -> None:
    """Otherwise an event loop that is busy for seconds reports that the disk hangs."""
    clocks.marks.begun = 1
    clocks.check()
    assert clocks.check(thread=0.002, loop=0.9) == 0.0
    # The loop is busy and the thread uses no time at all: it waits for the disk.
    assert clocks.check(thread=0.0, loop=0.9) == 1.0
    # A slow disk: the thread runs now and then, and the event loop leaves it the lock.
    assert clocks.check(thread=0.002, loop=0.1) == 2.0


async def test_a_blocked_event_loop_is_no_disk_trouble(tmp_path: Path) -> None:
    """Otherwise one slow request makes 256 others fail with `DISK_ERROR`."""
    tuning = Tuning(stall_timeout=0.2, stall_check_interval=0.04)
    with structlog.testing.capture_logs() as lines:
        async with open_rig(tmp_path / "j", tuning=tuning) as rig, trio.open_nursery() as nursery:
            # The disk of a busy machine may take longer than stall_timeout.
            rig.database._connection.execute("PRAGMA synchronous = OFF")
            for number in range(1, 30):
                nursery.start_soon(rig.accept, number)
            for _ in range(3):
                await trio.sleep(0.05)
                time.sleep(0.5)  # noqa: ASYNC251 - the loop blocks: this is what is tested
            await trio.sleep(0.1)
    assert lines == []


async def test_a_hanging_commit_beside_a_busy_event_loop_is_a_trouble(tmp_path: Path) -> None:
    """Otherwise requests wait for a hanging disk for as long as the event loop is busy."""
    tuning = Tuning(stall_timeout=0.2, stall_check_interval=0.05)
    async with open_rig(tmp_path / "j", tuning=tuning) as rig, trio.open_nursery() as nursery:
        rig.database.hold()
        nursery.start_soon(rig.accept, 1)
        await rig.database.held()
        while "journal" not in rig.health.troubles:
            end = time.perf_counter() + 0.005
            while time.perf_counter() < end:
                pass
            await trio.lowlevel.checkpoint()
        rig.database.release_gate()
        await until(lambda: not rig.health.troubles)


async def test_a_stopped_daemon_reports_no_disk_trouble(tmp_path: Path) -> None:
    """Otherwise clients of a suspended machine get `DISK_ERROR` although its disk works."""
    async with running_daemon(tmp_path) as daemon:
        posts = Posts(daemon.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, [[b"%d" % number] for number in range(400)], 8)
            await posts.wait_until_acknowledged(10)
            daemon.signal(signal.SIGSTOP)
            await trio.sleep(7)
            daemon.signal(signal.SIGCONT)
        assert set(posts.answers) == {"202"}
        assert not daemon.events("journal_unavailable")
