"""Run all calls on the journal's file in one thread, and bound the wait if the disk hangs.

The thread is not one of ``trio.to_thread``: every commit makes a round trip, and one through a
queue of its own costs less CPU time. A ``SimpleQueue`` passes calls to the thread. The end of a
call makes an eventfd(2) readable that its task waits for, so the task runs in the next pass of the
event loop. ``run_sync_soon`` would wake it for the pass after that: each request would wait longer.

Calls run one at a time, in the order in which they were requested, and a call begins only after the
task of the previous call runs again. Otherwise a page that contains a new job could reach the
pipeline before the commit of the job does, and the job would be offered twice.

A running call cannot be interrupted. A write runs to its end even if its task is cancelled:
otherwise its operations would be neither committed nor refused. Only at the end of the daemon is
there a deadline, because a disk that hangs must not prevent the exit. For the same reason the
interpreter does not wait for this thread (``daemon=True``).

The thread marks the begin and the end of each call; see ``stall.py``.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, TypeVarTuple

import outcome
import trio

from payloadd.journal.sqlite.stall import CallMarks, StallDetector

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.sqlite.disk import DiskState

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_EVENTFD: Final = os.EFD_NONBLOCK | os.EFD_CLOEXEC
_WITHOUT_DESCRIPTOR: Final = 0.01
"""Seconds between two looks at a call whose end cannot be waited for."""
_DEADLINE_PARTS: Final = 10
"""Parts of the time for the last writes: a process that is stopped meanwhile loses one part."""


class JournalThread:
    """Run functions in one thread, one at a time, until ``end``."""

    def __init__(
        self,
        disk: DiskState,
        retry_interval: float = 0.5,
        stall_timeout: float = 5.0,
        check_interval: float = 1.0,
    ) -> None:
        """Start no thread yet; all times are seconds.

        ``retry_interval`` is the time between two attempts to read, ``stall_timeout`` the time
        without an answer after which ``watch`` reports a failed write, ``check_interval`` the time
        between two checks for that.
        """
        self._disk = disk
        self._retry_interval = retry_interval
        self._stall_timeout = stall_timeout
        self._check_interval = check_interval
        self._calls: _Calls | None = None
        """The queue to the thread; None while there is no thread."""
        self._waiting: deque[_Call[Any]] = deque()
        self._busy = False
        self._ending = False
        self._finishing = False
        self._timed_out = False
        """Whether the time for the last writes has passed."""
        self._writing: set[_Call[Any]] = set()
        """The writes that have not ended."""
        self._descriptors: list[int] = []
        """Eventfds that no call uses; as many were opened as calls have waited at the same time."""
        self._marks = CallMarks()

    async def write(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a write to its end, even if the task is cancelled. Raises sqlite3.Error."""
        if self._timed_out:
            raise _no_answer()
        call = self._request(function, *arguments, to_its_end=True)
        self._writing.add(call)
        try:
            return await self._result_of(call)
        finally:
            self._writing.remove(call)

    async def read(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a read, and repeat it while it raises sqlite3.Error."""
        # A trouble with one kind of read ends with a read of that kind.
        kind = getattr(function, "__name__", "")
        while True:
            try:
                # Before the request: a read that is cancelled already must not begin.
                await trio.lowlevel.checkpoint_if_cancelled()
                result = await self._result_of(self._request(function, *arguments))
            except sqlite3.Error as error:
                self._disk.read_failed(kind, error)
                await trio.sleep(self._retry_interval)
            else:
                self._disk.read_succeeded(kind)
                return result

    async def watch(self) -> None:
        """Report a failed write when the disk does not answer while a write waits for it."""
        detector = StallDetector(self._marks)
        while True:
            due = trio.current_time() + self._check_interval
            await trio.sleep_until(due)
            stalled = detector.check(self._check_interval, trio.current_time() - due)
            if stalled > self._stall_timeout and self._writing:
                reason = f"no answer for {self._stall_timeout:g} s"
                self._disk.write_failed(sqlite3.OperationalError(reason))

    def finish_within(self, seconds: float) -> None:
        """Let all running and future writes fail after ``seconds``; only the first call counts."""
        if not self._finishing:
            self._finishing = True
            # A system task, because no task waits for it: it ends with trio's run.
            trio.lowlevel.spawn_system_task(self._time_out, seconds)

    async def _time_out(self, seconds: float) -> None:
        for _ in range(_DEADLINE_PARTS):
            await trio.sleep(seconds / _DEADLINE_PARTS)
        self._timed_out = True
        for call in list(self._writing):
            call.fail()

    def end(self) -> None:
        """Let the thread end after the requested calls. Does not wait for it."""
        self._ending = True
        self._end_if_idle()

    def _request(
        self, function: Callable[[*Ts], T], *arguments: *Ts, to_its_end: bool = False
    ) -> _Call[T]:
        """Request a call; the task must wait for it at once."""
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(
                target=_work, args=(self._calls, self._marks), name="payloadd-journal", daemon=True
            ).start()
        call = _Call(
            lambda: function(*arguments),
            self._start_next,
            self._descriptors.pop() if self._descriptors else _open_descriptor(),
            to_its_end=to_its_end,
        )
        self._waiting.append(call)
        if not self._busy:
            self._start_next()
        return call

    async def _result_of(self, call: _Call[T]) -> T:
        try:
            return await call.wait()
        finally:
            if call.descriptor is not None:
                self._descriptors.append(call.descriptor)
            if self._ending:
                self._end_if_idle()

    def _start_next(self) -> None:
        """Pass the next call that is still wanted to the thread."""
        self._busy = False
        while self._waiting and not self._busy:
            call = self._waiting.popleft()
            if self._calls is not None and call.wanted:
                self._busy = True
                self._calls.put(call)
        if self._ending:
            self._end_if_idle()

    def _end_if_idle(self) -> None:
        # Also while a call hangs: no task would be there to end the thread when that call ends.
        if self._calls is not None and not any(call.wanted for call in self._waiting):
            self._calls.put(None)
            self._calls = None
        if self._calls is None:
            while self._descriptors:
                os.close(self._descriptors.pop())


class _Call(Generic[T]):
    """One function to run, and the task that waits for its result.

    ``descriptor`` is an eventfd that nothing else uses until ``wait`` has returned; None if the
    system has no more.
    """

    def __init__(
        self,
        function: Callable[[], T],
        start_next: Callable[[], None],
        descriptor: int | None,
        *,
        to_its_end: bool,
    ) -> None:
        self._function = function
        self._start_next = start_next
        self.descriptor = descriptor
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope(shield=to_its_end)
        self._outcome: outcome.Outcome[T] | None = None
        self._lock = threading.Lock()
        """Held by the journal's thread while it notes the outcome and makes the descriptor
        readable, and by the event loop while it notes that no task waits: one of them is first."""
        self.wanted = True
        """Whether a task waits for the result."""

    async def wait(self) -> T:
        """Return the function's result, or raise its exception, or sqlite3.Error after ``fail``."""
        try:
            with self._scope:
                await self._wait_for_end()
        finally:
            # If the call has not begun, it will not be run; if it runs, its result is dropped.
            with self._lock:
                self.wanted = False
                ended = self._outcome is not None
            if ended:
                if self.descriptor is not None:
                    os.eventfd_read(self.descriptor)
                self._start_next()
        if self._outcome is None:
            raise _no_answer()
        return self._outcome.unwrap()

    async def _wait_for_end(self) -> None:
        if self.descriptor is not None:
            with suppress(OSError):  # no memory to wait for it
                await trio.lowlevel.wait_readable(self.descriptor)
        while self._outcome is None:  # noqa: ASYNC110 - without a descriptor the call runs, too
            await trio.sleep(_WITHOUT_DESCRIPTOR)

    def fail(self) -> None:
        """Raise sqlite3.Error in the waiting task, and drop the result of the call."""
        self._scope.cancel()

    def run(self) -> None:
        """Run the function, in the journal's thread, and wake the waiting task."""
        found = outcome.capture(self._function)
        with self._lock:
            wanted = self.wanted
            if wanted:
                self._outcome = found
                # Within the lock: afterwards another call may use the descriptor.
                if self.descriptor is not None:
                    os.eventfd_write(self.descriptor, 1)
        if not wanted:
            # After the end of trio's run there is no next call.
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._start_next)


def _open_descriptor() -> int | None:
    try:
        return os.eventfd(0, _EVENTFD)
    except OSError:
        return None


def _no_answer() -> sqlite3.Error:
    return sqlite3.OperationalError("the disk did not answer before the daemon had to end")


def _work(calls: _Calls, marks: CallMarks) -> None:
    marks.use_clock_of_this_thread()
    while (call := calls.get()) is not None:
        marks.begun += 1
        call.run()
        marks.ended += 1
        # Otherwise the arguments, a group of requests, stay in memory until the next call.
        del call


_Calls = SimpleQueue[_Call[Any] | None]
