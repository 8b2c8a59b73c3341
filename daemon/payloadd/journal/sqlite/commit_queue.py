"""Operations that collect while others are being committed.

Requests wait in lanes by what they cost a commit, and each commit takes a bounded portion of
every lane. In one queue a small request would wait for all large ones in front of it: a second for
64 MiB of them. The order of acceptance is given by the commit; between two requests that wait at
the same time it is not promised, within a request it is that of its payloads.

A request with many parts is not one commit but several (see ``staging.py``), each with as much of
it as the lane's portion.

The lane of large requests is passed over in every second commit while smaller ones wait. So a
small request waits for one portion of large ones and not for two, and no large one waits for
longer than twice as long as it would alone.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.operations import Append, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.operations import Operation

_PATIENCE: Final = 0.05
"""Seconds that settled rows wait for a commit to ride along with."""
_MOST_ROWS: Final = 2048
"""Rows of one lane of small requests that are committed together: 4 ms."""
_MOST_LARGE_ROWS: Final = 1024
"""The same of large requests, and of what is written of one in one commit: 8 ms."""
_MOST_WAITING_ROWS: Final = 10_000
"""Rows of large requests that wait before no further one is made ready: each takes 250 bytes."""
_TURN: Final = 0.002
"""Seconds for which answers may hold the event loop."""
_LOOK_AT_CLOCK: Final = 7
"""The clock is looked at behind so many answers, which take 0.1 ms."""

# Together LARGEST_COMMIT, which the reserve is made for.
_TINY_PORTION: Final = 512 * 2**10
_MEDIUM_PORTION: Final = 2560 * 2**10
_LARGE_PORTION: Final = 1024 * 2**10

_TINY: Final = 4 * 2**10
_MEDIUM: Final = 128 * 2**10
_TINY_ROWS: Final = 4
_MEDIUM_ROWS: Final = 64


class _SizeClass:
    """Requests of about one size, the oldest first."""

    def __init__(self, most_bytes: int, most_rows: int) -> None:
        self._most_bytes = most_bytes
        self._most_rows = most_rows
        self.waiting: deque[Append] = deque()
        self.bytes = 0
        self.rows = 0

    def move(self, group: CommitGroup) -> None:
        """Move a portion of the requests into ``group``: at least one, if there is one."""
        if self.bytes <= self._most_bytes and self.rows <= self._most_rows:
            self.move_all(group)
            return
        size = rows = 0
        moved: list[Operation] = []
        for append in self.waiting:
            size += append.size
            rows += _rows(append)
            if moved and (size > self._most_bytes or rows > self._most_rows):
                break
            moved.append(append)
            group.bytes += append.size
            self.bytes -= append.size
            self.rows -= _rows(append)
        for _ in moved:
            self.waiting.popleft()
        group.operations += moved

    def move_all(self, group: CommitGroup) -> None:
        """Move all requests into ``group``."""
        group.operations += self.waiting
        group.bytes += self.bytes
        self.waiting.clear()
        self.bytes = self.rows = 0


def _rows(append: Append) -> int:
    # An empty collection has none, and is answered all the same.
    return len(append.parts) or 1


class CommitGroup:
    """Operations that are committed together, and those who wait for it."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.bytes = 0
        self.done = trio.Event()
        self.successor: CommitGroup | None = None
        """After an error: the group that what has to be written was carried over to."""


class CommitQueue:
    """What is to be committed: the requests, and the group that they join at the next commit."""

    def __init__(self) -> None:
        self.next = CommitGroup()
        """What is committed next besides requests."""
        self._tiny = _SizeClass(_TINY_PORTION, _MOST_ROWS)
        self._medium = _SizeClass(_MEDIUM_PORTION, _MOST_ROWS)
        self._large = _SizeClass(_LARGE_PORTION, _MOST_LARGE_ROWS)
        self._had_large = False
        """Whether the last commit had large requests: the next one passes them over."""
        self._room: trio.Event | None = None
        """Set once few rows of large requests wait."""
        self._stir = trio.Event()
        self._urgent = trio.Event()
        self._hurried = False
        self._in_company = False

    @property
    def requests_wait(self) -> bool:
        """Whether there are requests that are not committed yet."""
        return bool(self._tiny.waiting or self._medium.waiting or self._large.waiting)

    def append(self, append: Append) -> None:
        """Add a request."""
        rows = len(append.parts)
        if append.size <= _TINY and rows <= _TINY_ROWS:
            size_class = self._tiny
        elif append.size <= _MEDIUM and rows <= _MEDIUM_ROWS:
            size_class = self._medium
        else:
            size_class = self._large
        size_class.waiting.append(append)
        size_class.bytes += append.size
        size_class.rows += rows or 1
        if not self._hurried:
            self.hurry()

    def add(self, operation: Operation) -> CommitGroup:
        """Add what nobody waits for; returns its group."""
        self.next.operations.append(operation)
        self._stir.set()
        return self.next

    def hurry(self) -> None:
        """Have the next one committed at once, whatever is in it."""
        self._hurried = True
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

    def take(self) -> CommitGroup:
        """Take out what is committed next."""
        group, self.next = self.next, CommitGroup()
        smaller = bool(self._tiny.waiting or self._medium.waiting)
        self._had_large = bool(self._large.waiting) and not (self._had_large and smaller)
        size = self._take_large(group) if self._had_large else 0
        # One that is larger than the portion of its lane has that of the medium ones too.
        if self._medium.waiting and size <= _LARGE_PORTION:
            self._medium.move(group)
        if self._tiny.waiting:
            self._tiny.move(group)
        self._in_company = len(group.operations) > 1
        self._stir, self._urgent, self._hurried = trio.Event(), trio.Event(), False
        if self.requests_wait:
            self.hurry()
        self._tell_room()
        return group

    def _take_large(self, group: CommitGroup) -> int:
        """Move large requests into ``group``, or the next step of one; returns its bytes."""
        stage, size = _next_stage(self._large.waiting[0])
        if stage is None:
            self._large.move(group)
            return group.bytes
        group.operations.append(stage)
        return size

    def take_all(self) -> CommitGroup:
        """Take out all requests that wait, to refuse them; what else waits, stays."""
        group = CommitGroup()
        for size_class in (self._tiny, self._medium, self._large):
            size_class.move_all(group)
        self._tell_room()
        return group

    async def wait_for_room(self) -> None:
        """Return once few rows of large requests wait."""
        while self._large.rows > _MOST_WAITING_ROWS:
            if self._room is None:
                self._room = trio.Event()
            await self._room.wait()

    def _tell_room(self) -> None:
        if self._room is not None and self._large.rows <= _MOST_WAITING_ROWS:
            self._room.set()
            self._room = None


def _next_stage(append: Append) -> tuple[Stage | None, int]:
    """Return what is written next of a request, and its bytes.

    None where the rest goes into the commit of the request itself.
    """
    if append.earlier is not None:
        return None, 0
    size = 0
    end = append.staged
    for part in islice(append.parts, append.staged, append.staged + _MOST_LARGE_ROWS):
        if size + len(part.lines) > _LARGE_PORTION and end > append.staged:
            break
        size += len(part.lines)
        end += 1
    if end == len(append.parts):
        return None, 0
    return Stage(append, append.staged, end), size


class TimeSlice:
    """Lets the other tasks run when this one has held the event loop for long enough."""

    def __init__(self) -> None:
        self._end = time.perf_counter() + _TURN

    @property
    def over(self) -> bool:
        """Whether it is time to pause."""
        return time.perf_counter() > self._end

    async def pause(self) -> None:
        """Let the others run; not cancelled, because each request must get its answer."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._end = time.perf_counter() + _TURN


async def answer(
    operations: Sequence[Operation], time_slice: TimeSlice, refusal: RefusedError | None = None
) -> None:
    """Tell all requests among ``operations`` what became of them."""
    for index, operation in enumerate(operations):
        if isinstance(operation, Append) and operation.done is not None:
            # A callback writes to a socket: 4,000 of them would hold the loop for 60 ms.
            if index & _LOOK_AT_CLOCK == _LOOK_AT_CLOCK and time_slice.over:
                await time_slice.pause()
            operation.done(refusal or operation.earlier or operation.receipt)
