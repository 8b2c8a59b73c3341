"""How often a task lets other tasks run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class _Turns(trio.abc.Instrument):
    """Counts how often a task has let other tasks run."""

    def __init__(self, task: trio.lowlevel.Task) -> None:
        self.count = 0
        self._task = task

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Count the end of a step."""
        self.count += task is self._task


async def turns_of(function: Callable[[], Awaitable[object]]) -> int:
    """Return how often the async ``function`` lets other tasks run."""
    turns = _Turns(trio.lowlevel.current_task())
    trio.lowlevel.add_instrument(turns)
    await function()
    trio.lowlevel.remove_instrument(turns)
    return turns.count
