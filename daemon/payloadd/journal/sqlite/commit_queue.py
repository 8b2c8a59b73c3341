"""Collect operations while others are being committed, and form the groups that share a commit.

Requests wait in three size classes, by their cost in a commit, and each commit contains a bounded
portion of every class. In a single queue a small request would wait for all large requests before
it. The order of acceptance is the order of the commits: between two requests that wait at the same
time it is not promised, within a request it is the order of its payloads.

A request with many parts takes several commits (see ``staging.py``), each with as many parts as the
portion of its class.

Every second commit contains no large requests while smaller requests wait. So a small request waits
for one portion of large requests and not for two, and a large request waits at most twice as long
as it would alone.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.group_commit import GroupCommitQueue
from payloadd.journal.sqlite.operations import Append, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.sqlite.operations import Operation

MOST_LARGE_ROWS: Final = 1024
"""The most rows of large requests in one commit, and of one request that takes several commits."""
_MOST_ROWS: Final = 2048
"""The most rows of another size class in one commit."""
_TURN: Final = 0.002
"""Seconds for which responses may occupy the event loop without a pause."""
_CLOCK_MASK: Final = 7
"""The clock is read before every eighth response: reading it for each one was measurable."""

# Together LARGEST_COMMIT, the size that the disk reserve is made for.
_TINY_PORTION: Final = 512 * 2**10
_MEDIUM_PORTION: Final = 2560 * 2**10
_LARGE_PORTION: Final = 1024 * 2**10

_TINY: Final = 4 * 2**10
_MEDIUM: Final = 128 * 2**10
_TINY_ROWS: Final = 4
_MEDIUM_ROWS: Final = 64


class CommitGroup:
    """Operations that are committed together, and the event for the tasks that wait for it."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.bytes = 0
        """Bytes of the requests, as they count towards JOURNAL_MAX_BYTES."""
        self.ended = trio.Event()
        """Set when the commit has succeeded or failed."""
        self.successor: CommitGroup | None = None
        """After a failed commit: the group that contains the operations to be tried again."""


class _SizeClass:
    """Waiting requests of similar size, oldest first."""

    def __init__(self, most_bytes: int, most_rows: int) -> None:
        self._most_bytes = most_bytes
        self._most_rows = most_rows
        self.waiting: deque[Append] = deque()
        self.bytes = 0
        self.rows = 0

    def move_portion(self, group: CommitGroup) -> None:
        """Move a portion of the requests into ``group``: at least one request, if one waits."""
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
    # An empty collection has no rows; it counts as one because it gets a response too.
    return len(append.parts) or 1


class CommitQueue(GroupCommitQueue):
    """The requests that wait for a commit, and the other operations of the next commit."""

    def __init__(self, most_large_rows: int = MOST_LARGE_ROWS) -> None:
        super().__init__()
        self.next_group = CommitGroup()
        """The operations of the next commit besides requests."""
        self.postponed: list[Operation] = []
        """Operations that wait until a commit without them has succeeded."""
        self._most_large_rows = most_large_rows
        self._tiny = _SizeClass(_TINY_PORTION, _MOST_ROWS)
        self._medium = _SizeClass(_MEDIUM_PORTION, _MOST_ROWS)
        self._large = _SizeClass(_LARGE_PORTION, most_large_rows)
        self._had_large = False
        """Whether the last commit contained large requests."""

    @property
    def requests_wait(self) -> bool:
        """Whether there are requests that are not committed yet."""
        return bool(self._tiny.waiting or self._medium.waiting or self._large.waiting)

    @property
    def _large_parts(self) -> int:
        return self._large.rows

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
        if not self._is_urgent:
            self.commit_soon()

    def add(self, operation: Operation) -> CommitGroup:
        """Add an operation that is not urgent; return its group."""
        self.next_group.operations.append(operation)
        self._filled.set()
        return self.next_group

    def take_group(self) -> CommitGroup:
        """Remove and return the group of the next commit."""
        group, self.next_group = self.next_group, CommitGroup()
        smaller = bool(self._tiny.waiting or self._medium.waiting)
        self._had_large = bool(self._large.waiting) and not (self._had_large and smaller)
        size = self._move_large(group) if self._had_large else 0
        # A request that is larger than the portion of its class uses the medium portion, too.
        if self._medium.waiting and size <= _LARGE_PORTION:
            self._medium.move_portion(group)
        if self._tiny.waiting:
            self._tiny.move_portion(group)
        self._begin_group(several=len(group.operations) > 1)
        return group

    def _move_large(self, group: CommitGroup) -> int:
        """Move large requests, or the next parts of one, into ``group``; return their bytes."""
        stage, size = self._next_stage(self._large.waiting[0])
        if stage is None:
            self._large.move_portion(group)
            return group.bytes
        group.operations.append(stage)
        return size

    def _next_stage(self, append: Append) -> tuple[Stage | None, int]:
        """Return the operation that writes the next parts of a request, and their bytes.

        None if the remaining parts fit into the commit of the request itself.
        """
        if append.earlier is not None:
            return None, 0
        size = 0
        end = append.staged
        for part in islice(append.parts, append.staged, append.staged + self._most_large_rows):
            if size + len(part.lines) > _LARGE_PORTION and end > append.staged:
                break
            size += len(part.lines)
            end += 1
        if end == len(append.parts):
            return None, 0
        return Stage(append, append.staged, end), size

    def add_postponed(self) -> bool:
        """Add the postponed operations to the next commit; return whether there were any."""
        postponed, self.postponed = self.postponed, []
        for operation in postponed:
            self.add(operation)
        return bool(postponed)

    def take_requests(self) -> CommitGroup:
        """Remove and return all waiting requests, to refuse them; other operations stay."""
        group = CommitGroup()
        for size_class in (self._tiny, self._medium, self._large):
            size_class.move_all(group)
        self._wake_waiting()
        return group


class TimeSlice:
    """Let other tasks run when this task has occupied the event loop for too long."""

    def __init__(self, seconds: float = _TURN) -> None:
        self._seconds = seconds
        self._end = time.perf_counter() + seconds

    @property
    def over(self) -> bool:
        """Whether the task has to pause."""
        return time.perf_counter() > self._end

    async def pause(self) -> None:
        """Let other tasks run. Not cancelled: each request must get its response."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._end = time.perf_counter() + self._seconds


async def answer(
    operations: Sequence[Operation],
    time_slice: TimeSlice,
    refusal: RefusedError | None = None,
    clock_mask: int = _CLOCK_MASK,
) -> None:
    """Call the callbacks of all requests in ``operations`` with their outcome, or ``refusal``.

    ``clock_mask`` + 1, a power of two, is the number of operations between two readings of the
    clock.
    """
    for index, operation in enumerate(operations):
        if isinstance(operation, Append) and operation.done is not None:
            # A callback writes to a socket: those of a full commit would hold up the event loop.
            if index & clock_mask == clock_mask and time_slice.over:
                await time_slice.pause()
            operation.done(refusal or operation.earlier or operation.receipt)
