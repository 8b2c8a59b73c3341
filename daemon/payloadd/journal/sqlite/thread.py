"""The one thread that touches the journal's file, and what happens when it hangs.

A thread of its own and not one of ``trio.to_thread``: a round trip is 75 us of CPU there and
55 us here (35 us is what two threads cost that take turns), and every commit makes one. A
queue leads in; what comes out wakes the task that waits for it.

Calls are carried out one at a time, in the order in which they came, and none is begun before
the task of the one before has been woken. Trio runs those that it wakes together in any order:
a page with a new job in it would else be shown before the commit that has brought it, and again
with that.

A thread cannot be called back. What writes is seen to its end also by a task that is
cancelled: the operations would be neither written nor refused. Only when the daemon ends is
there a deadline, because a disk that does not answer must not hold it for ever; for the same
reason the thread is one that the interpreter does not wait for.

The thread says itself when a call begins and ends; see ``stall.py`` for what follows from that.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, TypeVarTuple

import outcome
import trio

from payloadd.journal.sqlite.stall import Marks, Stall

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.sqlite.disk import Disk

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STALLED: Final = 5.0
"""Seconds for which a call has been seen to hang before that is called a trouble of the disk."""
_BETWEEN_LOOKS: Final = 1.0
_PORTIONS: Final = 10
"""Parts of the time for the last writes. A process that is stopped meanwhile loses one of them."""
_AFTER_TROUBLE: Final = 0.5
"""Seconds between two attempts to read."""


class JournalThread:
    """Runs functions in its thread, one at a time, until it is ended."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._calls: _Calls | None = None
        """The way into the thread, None while there is none."""
        self._waiting: deque[_Call[Any]] = deque()
        self._busy = False
        self._ending = False
        self._finishing = False
        self._given_up = False
        self._writing: set[_Call[Any]] = set()
        """The writes that have not ended."""
        self._marks = Marks()

    async def write(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a write to its end, cancelled or not; raises sqlite3.Error."""
        if self._given_up:
            raise _no_answer()
        # Nothing shields the wait but the call itself: a cancel scope was 7 us a commit.
        call = self._call(function, *arguments, to_its_end=True)
        self._writing.add(call)
        try:
            return await call.wait()
        finally:
            self._writing.remove(call)

    async def read(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a read, again and again while the disk gives errors."""
        # A trouble with one kind of read ends with a read of that kind.
        what = getattr(function, "__name__", "")
        while True:
            try:
                # Before it is asked for: what is cancelled already must not be begun.
                await trio.lowlevel.checkpoint_if_cancelled()
                found = await self._call(function, *arguments).wait()
            except sqlite3.Error as error:
                self._disk.read_failed(what, error)
                await trio.sleep(_AFTER_TROUBLE)
            else:
                self._disk.was_read(what)
                return found

    async def watch(self) -> None:
        """Say so when the disk does not answer, while a write waits for it."""
        stall = Stall(self._marks)
        while True:
            due = trio.current_time() + _BETWEEN_LOOKS
            await trio.sleep_until(due)
            stalled = stall.look(_BETWEEN_LOOKS, trio.current_time() - due)
            if stalled > _STALLED and self._writing:
                self._disk.failed(sqlite3.OperationalError(f"no answer for {_STALLED:g} s"))

    def finish_within(self, seconds: float) -> None:
        """Give what is being written, and what is yet to be, so long together; once for all."""
        if not self._finishing:
            self._finishing = True
            # A system task, because no task waits for it: it ends with trio's run.
            trio.lowlevel.spawn_system_task(self._give_up, seconds)

    async def _give_up(self, seconds: float) -> None:
        for _ in range(_PORTIONS):
            await trio.sleep(seconds / _PORTIONS)
        self._given_up = True
        for call in list(self._writing):
            call.fail(_no_answer())

    def end(self) -> None:
        """Let the thread end behind what it was asked for; it is not waited for."""
        self._ending = True
        self._end_if_idle()

    def _call(
        self, function: Callable[[*Ts], T], *arguments: *Ts, to_its_end: bool = False
    ) -> _Call[T]:
        """Ask for a call, to be waited for at once."""
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(
                target=_work, args=(self._calls, self._marks), name="payloadd-journal", daemon=True
            ).start()
        call = _Call(lambda: function(*arguments), self._go_on, to_its_end=to_its_end)
        self._waiting.append(call)
        if not self._busy:
            self._go_on()
        return call

    def _go_on(self) -> None:
        """Give the thread the next call that is still wanted."""
        self._busy = False
        while self._waiting and not self._busy:
            call = self._waiting.popleft()
            if self._calls is not None and call.wanted:
                self._busy = True
                self._calls.put(call)
        if self._ending:
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        # Also behind a call that hangs: there will be nobody to say so when that has ended.
        if self._calls is not None and not any(call.wanted for call in self._waiting):
            self._calls.put(None)
            self._calls = None


class _Call(Generic[T]):
    """One function to be run, and the task that waits for what comes of it."""

    def __init__(
        self, function: Callable[[], T], go_on: Callable[[], None], *, to_its_end: bool
    ) -> None:
        self._function = function
        self._go_on = go_on
        self._to_its_end = to_its_end
        self._token = trio.lowlevel.current_trio_token()
        self._task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self._outcome: outcome.Outcome[T]

    @property
    def wanted(self) -> bool:
        """Whether somebody waits for it."""
        return self._task is not None

    async def wait(self) -> T:
        """Return what the function returned, or raise what it raised."""
        await trio.lowlevel.wait_task_rescheduled(self._abandon)
        return self._outcome.unwrap()

    def _abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        if self._to_its_end:
            return trio.lowlevel.Abort.FAILED
        # It is not run if it has not begun; if it has, nobody is told.
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED

    def fail(self, error: Exception) -> None:
        """Raise ``error`` in the task that waits, whatever comes of the call."""
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, outcome.Error(error))
            self._task = None

    def carry_out(self) -> None:
        """Run the function, in the journal's thread, and have its task woken."""
        self._outcome = outcome.capture(self._function)
        # Behind the end of the run there is nobody who could be told.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._tell)

    def _tell(self) -> None:
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)
            self._task = None
        self._go_on()


def _no_answer() -> sqlite3.Error:
    return sqlite3.OperationalError("the disk did not answer before the daemon had to end")


def _work(calls: _Calls, marks: Marks) -> None:
    marks.enter()
    while (call := calls.get()) is not None:
        marks.begun += 1
        call.carry_out()
        marks.ended += 1
        # Or what the call holds, a group of requests, is held until the next one comes.
        del call


_Calls = SimpleQueue[_Call[Any] | None]
