"""The one thread at a time that touches the journal's file, and what happens when it hangs.

A thread cannot be called back. What writes is seen to its end also by a task that is
cancelled: the operations would be neither written nor refused. Only when the daemon ends is
there a deadline, because a disk that does not answer must not hold it for ever.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.pipeline.disk import Disk

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_STALLED: Final = 5.0
"""Seconds after which a write that has not ended is called a trouble of the disk."""
_BETWEEN_LOOKS: Final = 1.0
_AFTER_TROUBLE: Final = 0.5
"""Seconds between two attempts to read."""


class JournalThread:
    """Runs functions in threads, one at a time."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._limiter = trio.CapacityLimiter(1)
        self._deadline = float("inf")
        self._writing: trio.CancelScope | None = None
        self._began = float("inf")

    async def write(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a write to its end, cancelled or not; raises sqlite3.Error."""
        with trio.CancelScope(shield=True, deadline=self._deadline) as self._writing:
            self._began = trio.current_time()
            try:
                return await self._run(function, *arguments)
            finally:
                self._began = float("inf")
        raise sqlite3.OperationalError("the disk did not answer before the daemon had to end")

    async def read(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a read, again and again while the disk gives errors."""
        while True:
            try:
                found = await self._run(function, *arguments)
            except sqlite3.Error as error:
                self._disk.read_failed(error)
                await trio.sleep(_AFTER_TROUBLE)
            else:
                self._disk.was_read()
                return found

    async def watch(self) -> None:
        """Say so when a write takes far too long."""
        while True:
            await trio.sleep(_BETWEEN_LOOKS)
            if trio.current_time() - self._began > _STALLED:
                self._disk.failed(sqlite3.OperationalError(f"no answer for {_STALLED:g} s"))

    def finish_within(self, seconds: float) -> None:
        """Give what is being written, and what is yet to be, so long together."""
        self._deadline = trio.current_time() + seconds
        if self._writing is not None:
            self._writing.deadline = self._deadline

    async def _run(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        return await trio.to_thread.run_sync(
            function, *arguments, limiter=self._limiter, abandon_on_cancel=True
        )
