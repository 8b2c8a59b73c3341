"""Collect requests and seals while others are committed, and form the groups that share a commit.

Small and large requests wait apart, and each commit has a bounded portion of both, so that a small
request does not wait for all large ones in front of it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.group_commit import GroupCommitQueue

if TYPE_CHECKING:
    from payloadd.journal.postgres.operations import (
        PendingRequest,
        PendingSeal,
        RefusedBatch,
        StoredBatch,
    )

_SMALL: Final = 64 * 2**10
_SMALL_PARTS: Final = 64
_PORTION: Final = 2 * 2**20
"""Bytes of the requests of each kind in one commit, unless a single request has more."""
_MOST_PARTS: Final = 4096


class CommittedTogether:
    """What is committed together."""

    def __init__(self) -> None:
        self.appends: list[PendingRequest] = []
        self.seals: list[PendingSeal] = []
        self.ends: list[StoredBatch | RefusedBatch] = []
        self.bytes = 0
        """Bytes of the requests, as they count towards JOURNAL_MAX_BYTES."""
        self.flush = False
        """Whether everything that is stored has to be durable, too."""
        self.ended = trio.Event()
        """Set when an attempt to commit has ended, successful or not."""


class _Waiting:
    """Requests of one kind, oldest first."""

    def __init__(self) -> None:
        self.requests: deque[PendingRequest] = deque()
        self.bytes = self.parts = 0

    def add(self, append: PendingRequest) -> None:
        self.requests.append(append)
        self.bytes += append.size
        self.parts += len(append.parts)

    def move_portion(self, group: CommittedTogether) -> None:
        """Move requests into ``group``: at least one, if one waits."""
        requests = self.requests
        if self.bytes <= _PORTION and self.parts <= _MOST_PARTS:
            group.appends += requests
            group.bytes += self.bytes
            requests.clear()
            self.bytes = self.parts = 0
            return
        size = parts = 0
        while requests:
            append = requests[0]
            size += append.size
            parts += len(append.parts)
            if size != append.size and (size > _PORTION or parts > _MOST_PARTS):
                break
            group.appends.append(requests.popleft())
            group.bytes += append.size
            self.bytes -= append.size
            self.parts -= len(append.parts)


class PendingOperations(GroupCommitQueue):
    """Everything that waits for a commit."""

    def __init__(self) -> None:
        super().__init__()
        self._small, self._large = _Waiting(), _Waiting()
        self.next_group = CommittedTogether()
        """The seals and the ended batches of the next commit."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        group = self.next_group
        return not (self.requests_wait or group.seals or group.ends or group.flush)

    @property
    def requests_wait(self) -> bool:
        """Whether there are requests that are not committed yet."""
        return bool(self._small.requests or self._large.requests)

    @property
    def _large_parts(self) -> int:
        return self._large.parts

    def append(self, append: PendingRequest) -> None:
        """Add a request."""
        is_small = append.size <= _SMALL and len(append.parts) <= _SMALL_PARTS
        (self._small if is_small else self._large).add(append)
        if not self._is_urgent:
            self.commit_soon()

    def seal(self, seal: PendingSeal) -> CommittedTogether:
        """Add a seal, for which a worker waits; return its group."""
        self.next_group.seals.append(seal)
        self.commit_soon()
        return self.next_group

    def end(self, operation: StoredBatch | RefusedBatch) -> None:
        """Add a batch that is stored or dead."""
        self.next_group.ends.append(operation)
        if not self._filled.is_set():
            self._filled.set()

    def take_group(self) -> CommittedTogether:
        """Remove and return the group of the next commit."""
        group, self.next_group = self.next_group, CommittedTogether()
        self._small.move_portion(group)
        self._large.move_portion(group)
        self._begin_group(several=len(group.appends) > 1)
        return group

    def take_requests(self) -> list[PendingRequest]:
        """Remove and return all waiting requests, to refuse them."""
        found: list[PendingRequest] = []
        for waiting in (self._small, self._large):
            found += waiting.requests
            waiting.requests.clear()
            waiting.bytes = waiting.parts = 0
        self._wake_waiting()
        return found

    def renew_event(self) -> None:
        """Tell the tasks that wait for the next group that an attempt to commit has ended."""
        self.next_group.ended.set()
        self.next_group.ended = trio.Event()
