"""Short bursts of work in turns, so that many connections never hold the event loop together.

Trio runs every task that can run before it looks at the sockets again. With a thousand
connections whose requests are all there, one such pass takes a thousand times what one of them
costs, and every other client waits for it. A task that is about to do such work asks here first:
each pass lets a few of them go on, in the order in which they came.

Short passes alone are not enough. A commit takes Python's lock some 30 times, and beside an event
loop that always has work it waits for the lock as often: 1 ms became 90 ms. So while requests of
the fast path wait for a commit, the bursts of a pass are followed by a pause in which the event
loop sleeps and the lock is free. The bursts then have a quarter of the time at least, and all of
it where no such request waits.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS: Final = 0.001
"""How long the bursts of one pass may take together, by the time that earlier ones took."""
_MOST: Final = 3
"""Bursts of one pass, however short they were so far."""
_PAUSE: Final = 0.001
"""Seconds of one sleep; epoll_wait(2) counts in milliseconds."""
_PAUSES: Final = 3
"""Sleeps behind the bursts of one pass, at most, while a request waits for a commit."""


class FifoGate:
    """A first-in, first-out gate in front of work that takes a part of a millisecond."""

    def __init__(
        self,
        busy: Callable[[], object] = lambda: None,
        commit_is_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        """Call ``busy`` where more tasks wait than one pass lets go on.

        ``commit_is_awaited`` returns whether requests of the fast path wait for the journal.
        """
        self._busy = busy
        self._commit_is_awaited = commit_is_awaited
        self._waiting: deque[trio.lowlevel.Task] = deque()
        self._news = trio.Event()
        self._burst = _SECONDS / _MOST
        """Seconds that one burst takes, with all that it sets off: a moving average."""

    async def next(self) -> None:
        """Return when the caller may work for a moment. This is a checkpoint."""
        task = trio.lowlevel.current_task()
        self._waiting.append(task)
        self._news.set()

        def abandon(_raise_cancel: object) -> trio.lowlevel.Abort:
            with suppress(ValueError):
                self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abandon)

    async def run(self) -> None:
        """Let waiting tasks go on, a few in each pass of the event loop, for ever."""
        while True:
            await self._news.wait()
            started = perf_counter()
            count = min(len(self._waiting), _MOST, max(1, int(_SECONDS / self._burst)))
            for _ in range(count):
                trio.lowlevel.reschedule(self._waiting.popleft())
            if self._waiting:
                self._busy()
            else:
                self._news = trio.Event()
            # Those tasks run in the next pass, and this one goes on in the pass behind it or in
            # the same: what lies between is what their bursts took, with what else there was.
            await trio.lowlevel.checkpoint()
            if count:
                taken = (perf_counter() - started) / count
                self._burst += (taken - self._burst) / 8
                await self._leave_time_for_commits()

    async def _leave_time_for_commits(self) -> None:
        """Sleep for some milliseconds, while requests of the fast path wait for a commit."""
        for _ in range(_PAUSES):
            if not self._commit_is_awaited():
                return
            await trio.sleep(_PAUSE)
