"""A queue for short bursts of work, so that many connections never block the event loop together.

Trio runs every task that is ready before it polls the sockets again. With a thousand connections
whose requests have arrived, one pass takes a thousand times as long as one request, and every
other client waits for it. A task that is about to do such work waits for its turn here. Each pass
lets a few tasks continue, first in, first out.

Short passes alone are not enough. A commit acquires Python's global interpreter lock some 30
times. Beside an event loop that always has work, the committing thread waits for the lock each
time, and a commit takes many times as long. So while requests of the fast path wait for a commit,
a pause follows the bursts of each pass. During the pause the event loop sleeps and the lock is
free. The bursts still get at least a quarter of the time, and all of it if no request of the fast
path waits.

An answer takes a fraction of such a burst, and a commit wakes many tasks with one: eight of them
may answer in each pass, the first of them without a task switch.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

_PASS_SECONDS: Final = 0.001
"""How long the bursts of one pass may take together, estimated from earlier bursts."""
_BURSTS_PER_PASS: Final = 3
"""Bursts of one pass at most, even if earlier bursts were very short."""
_ANSWERS_PER_PASS: Final = 8
_PAUSE: Final = 0.001
"""Seconds of one sleep; epoll_wait(2) counts in milliseconds."""
_PAUSES: Final = 3
"""Sleeps after the bursts of one pass, at most, while a request waits for a commit."""


class FifoGate:
    """A first-in, first-out gate in front of work that takes a fraction of a millisecond."""

    def __init__(
        self,
        busy: Callable[[], object] = lambda: None,
        commit_is_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        """Call ``busy`` whenever more tasks wait than one pass lets through.

        ``commit_is_awaited`` returns whether requests of the fast path wait for the journal.
        """
        self._busy = busy
        self._commit_is_awaited = commit_is_awaited
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._answers: deque[trio.lowlevel.Task] = deque()
        """Tasks that are about to answer."""
        self._answers_left = _ANSWERS_PER_PASS
        """Answers that may still be sent in this pass."""
        self._not_empty = trio.Event()
        """Set while ``run`` has to do something in the next pass."""
        self._burst = _PASS_SECONDS / _BURSTS_PER_PASS
        """Seconds that one burst takes, with all that it causes: a moving average."""

    async def wait_turn(self) -> None:
        """Wait until the caller may do a burst of work. This is a checkpoint."""
        self._not_empty.set()
        await _wait_in(self._waiting)

    async def wait_to_answer(self) -> None:
        """Wait until the caller may send an answer; this is no checkpoint if it may at once."""
        if self._commit_is_awaited():
            await self.wait_turn()
            return
        self._not_empty.set()
        if self._answers_left:
            self._answers_left -= 1
        else:
            await _wait_in(self._answers)

    async def run(self) -> None:
        """Let a few waiting tasks continue in each pass of the event loop, until cancelled."""
        while True:
            self._let_answer()
            if not self._waiting:
                if not self._answers:
                    self._not_empty = trio.Event()
                    await self._not_empty.wait()
                else:
                    await trio.lowlevel.checkpoint()
                continue
            started = perf_counter()
            burst_limit = max(1, int(_PASS_SECONDS / self._burst))
            count = min(len(self._waiting), _BURSTS_PER_PASS, burst_limit)
            for _ in range(count):
                trio.lowlevel.reschedule(self._waiting.popleft())
            if self._waiting:
                self._busy()
            # The tasks run in the next pass, and this task continues in that pass or in the one
            # after it. The time in between is what the bursts and the other tasks took.
            await trio.lowlevel.checkpoint()
            if count:
                taken = (perf_counter() - started) / count
                self._burst += (taken - self._burst) / 8
                await self._leave_time_for_commits()

    def _let_answer(self) -> None:
        """Let tasks answer in the next pass."""
        count = min(len(self._answers), _ANSWERS_PER_PASS)
        for _ in range(count):
            trio.lowlevel.reschedule(self._answers.popleft())
        self._answers_left = _ANSWERS_PER_PASS - count

    async def _leave_time_for_commits(self) -> None:
        """Sleep for a few milliseconds while requests of the fast path wait for a commit."""
        for _ in range(_PAUSES):
            if not self._commit_is_awaited():
                return
            await trio.sleep(_PAUSE)


async def _wait_in(queue: deque[trio.lowlevel.Task]) -> None:
    """Wait in ``queue`` until the task is taken out of it and rescheduled."""
    task = trio.lowlevel.current_task()
    queue.append(task)

    def abandon(_raise_cancel: object) -> trio.lowlevel.Abort:
        with suppress(ValueError):
            queue.remove(task)
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abandon)
