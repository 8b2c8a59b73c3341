"""Operations that collect while others are being committed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from daemon.pipeline.operations import Append

if TYPE_CHECKING:
    from daemon.errors import RefusedError
    from daemon.pipeline.operations import Operation

_PATIENCE: Final = 0.05
"""Seconds that settled rows wait for a commit to ride along with."""


class Group:
    """Operations that are committed together, and those who wait for it."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.bytes = 0
        self.done = trio.Event()
        self.successor: Group | None = None
        """After an error: the group that what has to be written was carried over to."""

    def answer(self, refusal: RefusedError | None = None) -> None:
        """Tell all who wait what became of it."""
        for operation in self.operations:
            if isinstance(operation, Append) and operation.done is not None:
                operation.done(refusal or operation.earlier or operation.receipt)
        self.done.set()


class Groups:
    """The groups that are to be committed, the next one first; new requests go into the last."""

    def __init__(self) -> None:
        self._groups = deque([Group()])
        self._stir = trio.Event()
        self._urgent = trio.Event()
        self._in_company = False

    def __len__(self) -> int:
        """Return how many there are: one at least."""
        return len(self._groups)

    @property
    def next(self) -> Group:
        """The one that is committed next."""
        return self._groups[0]

    def append(self, operation: Append, size: int, most: int) -> None:
        """Add a request of ``size`` bytes; a group has ``most`` bytes or one request."""
        group = self._groups[-1]
        if group.bytes and group.bytes + size > most:
            group = Group()
            self._groups.append(group)
        group.operations.append(operation)
        group.bytes += size
        self.hurry()

    def add(self, operation: Operation) -> Group:
        """Add what nobody waits for; returns its group."""
        self.next.operations.append(operation)
        self._stir.set()
        return self.next

    def hurry(self) -> None:
        """Have the next one committed at once, whatever is in it."""
        self._stir.set()
        self._urgent.set()

    async def wait(self) -> None:
        """Return once a group is due."""
        await self._stir.wait()
        if not self._urgent.is_set():
            with trio.move_on_after(_PATIENCE):
                await self._urgent.wait()
        if self._in_company:
            # Requests are about to come that can go along: 31 us each with this turn, 47 without.
            await trio.lowlevel.checkpoint()

    def take(self) -> Group:
        """Take the next one out."""
        group = self._groups.popleft()
        self._in_company = len(group.operations) > 1
        self._stir, self._urgent = trio.Event(), trio.Event()
        if self._groups:
            self.hurry()
        else:
            self._groups.append(Group())
        return group
