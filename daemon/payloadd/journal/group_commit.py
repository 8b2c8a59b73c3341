"""When the next commit of a journal is due, and how many parts of large requests may wait for it.

A task waits with ``wait_until_due`` and commits what has been collected. Requests make a commit due
at once; other operations wait for a request that shares their commit, for a short time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from time import perf_counter
from typing import Final

import trio

_MOST_WAITING_PARTS: Final = 10_000
"""The parts of large requests that may wait before another large request is prepared.

Each waiting part takes memory that no setting bounds.
"""
_LINGER: Final = 0.05
"""Seconds that operations wait for requests to share their commit, if no task waits for them."""


class GroupCommitQueue(ABC):
    """What a queue of operations that share commits needs in every journal.

    A subclass collects the operations, calls ``commit_soon`` for urgent ones and sets ``_filled``
    for the others.
    """

    long_turn = 0.001
    """Seconds from which a turn of the event loop is long: one of them is enough for the clients of
    the last commit, and a second one would delay those that wait already."""

    def __init__(self) -> None:
        self._filled, self._urgent = trio.Event(), trio.Event()
        self._is_urgent = False
        self._several = False
        """Whether the last commit contained several operations."""
        self._few_parts: trio.Event | None = None
        """Set once few parts of large requests wait; None while no task waits for that."""

    @property
    @abstractmethod
    def requests_wait(self) -> bool:
        """Whether there are requests that are not committed yet."""

    @property
    @abstractmethod
    def _large_parts(self) -> int:
        """The parts of large requests that wait."""

    def commit_soon(self) -> None:
        """Make the next group due at once, even if it is empty."""
        self._is_urgent = True
        self._filled.set()
        self._urgent.set()

    async def wait_until_due(self) -> None:
        """Return once a group has to be committed."""
        took_long = False
        if self._filled.is_set():
            start = perf_counter()
            await trio.lowlevel.checkpoint()
            took_long = perf_counter() - start > self.long_turn
        else:
            await self._filled.wait()
        if not self._urgent.is_set():
            with trio.move_on_after(_LINGER):
                await self._urgent.wait()
        if self._several and not took_long:
            # The clients of the last commit are about to send their next requests. One turn of the
            # event loop lets them share this commit.
            await trio.lowlevel.checkpoint()

    def _begin_group(self, *, several: bool) -> None:
        """Wait for the next group, after one with ``several`` operations or fewer was taken."""
        self._several = several
        self._filled, self._urgent, self._is_urgent = trio.Event(), trio.Event(), False
        if self.requests_wait:
            self.commit_soon()
        self._wake_waiting()

    async def wait_for_room(self) -> None:
        """Return once few parts of large requests wait."""
        while self._large_parts > _MOST_WAITING_PARTS:
            if self._few_parts is None:
                self._few_parts = trio.Event()
            await self._few_parts.wait()

    def _wake_waiting(self) -> None:
        """End ``wait_for_room`` if few parts are left; call this when requests were taken."""
        if self._few_parts is not None and self._large_parts <= _MOST_WAITING_PARTS:
            self._few_parts.set()
            self._few_parts = None
