"""Make the calls to the server in a thread, one at a time, and end those that get no answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import psycopg
import trio

from payloadd.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from payloadd.journal.postgres.session import Session
    from payloadd.journal.postgres.times import LeaseTimes

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

FAILURES: Final = (psycopg.Error, StartError)
"""What a call may raise: the server refuses it or is gone, or the role may not make a lane."""
_WATCH: Final = 0.5
"""Seconds between two looks whether the server answers."""


class DatabaseCalls:
    """The journal's thread at the database.

    ``lock`` is held for each call, and until its result has reached the pipeline: the jobs of a
    commit are there before a page that has them.
    """

    def __init__(
        self,
        session: Session,
        tuning: LeaseTimes,
        recover: Callable[[Exception], Awaitable[None]],
    ) -> None:
        """``recover`` makes the next call possible after an error. The lock is held then."""
        self.session = session
        self.tuning = tuning
        self.lock = trio.Lock()
        self._recover = recover
        self._limiter = trio.CapacityLimiter(1)
        self._began: float | None = None
        """When the present call began, by trio's clock."""

    async def once(self, function: Callable[[*Ts], T], *arguments: *Ts, abandon: bool = False) -> T:
        """Run a function in the thread. Raises psycopg.Error and StartError.

        ``abandon``: a cancellation does not wait for it, and drops its result.
        """
        self._began = trio.current_time()
        try:
            return await trio.to_thread.run_sync(
                function, *arguments, limiter=self._limiter, abandon_on_cancel=abandon
            )
        finally:
            self._began = None

    async def write(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a write that may be repeated, until it succeeds. The lock is held."""
        while True:
            try:
                return await self.once(function, *arguments)
            except FAILURES as error:
                await self._recover(error)

    async def read(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run a read until it succeeds. The lock is held."""
        while True:
            try:
                return await self.once(function, *arguments, abandon=True)
            except FAILURES as error:
                await self._recover(error)

    async def watch(
        self, *, task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Break the connection when a call gets no answer: it fails then. Reports its scope."""
        with trio.CancelScope(shield=True) as scope:
            task_status.started(scope)
            while True:
                await trio.sleep(_WATCH)
                began = self._began
                if began is not None and trio.current_time() > began + self.tuning.answer_timeout:
                    self.session.shut()
