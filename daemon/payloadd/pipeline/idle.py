"""The workers without a batch.

Two tasks give batches to workers, one new batches and one batches that were put back. Both take an
idle worker only when they have a batch for it: a batch that gathers jobs for a second must not keep
the only idle worker from a batch that is ready.
"""

from __future__ import annotations

from collections import deque

import trio

from payloadd.pipeline.waiting_batch import WaitingBatch

Inbox = trio.MemorySendChannel[WaitingBatch]
"""The sending end of a worker's own channel."""


class IdleWorkers:
    """The inboxes of workers without a batch, the one that became idle first in front."""

    def __init__(self, count: int) -> None:
        """Begin with ``count`` workers, none of which has registered."""
        self.count = count
        self._resting = 0
        """Workers that have to stay idle."""
        self.claimed = False
        """Whether the next worker is for a batch that was put back: they are few, and would not get
        a worker at all while new batches are always ready."""
        # Bounded by the number of workers.
        self._inboxes: deque[Inbox] = deque()
        self._changed: trio.Event | None = None

    def register(self, inbox: Inbox) -> None:
        """Note that a worker is idle. It waits on its inbox before another task runs."""
        self._inboxes.append(inbox)
        if self._changed is not None:
            self.wake()

    @property
    def busy(self) -> int:
        """Workers that have a batch."""
        return self.count - len(self._inboxes)

    @property
    def concurrency(self) -> int:
        """Workers that may have a batch at the same time."""
        return self.count - self._resting

    @concurrency.setter
    def concurrency(self, workers: int) -> None:
        self._resting = self.count - workers

    async def take_for_new(self) -> Inbox:
        """Return the inbox of a worker for a new batch."""
        # Checked here first: a call for each object was measurable.
        if self.claimed or len(self._inboxes) <= self._resting:
            await self.wait_for_new()
        return self._inboxes.popleft()

    async def wait_for_new(self) -> None:
        """Return once ``take_for_new`` would not wait."""
        while self.claimed or len(self._inboxes) <= self._resting:
            await self.changed()

    async def claim(self) -> Inbox:
        """Return the inbox of a worker for a batch that was put back, before new batches get it."""
        self.claimed = True
        try:
            while len(self._inboxes) <= self._resting:
                await self.changed()
            return self._inboxes.popleft()
        finally:
            self.claimed = False
            self.wake()

    async def dismiss_all(self) -> None:
        """Close the inbox of each worker once it is idle: the workers end."""
        for _ in range(self.count):
            while not self._inboxes:
                await self.changed()
            await self._inboxes.popleft().aclose()

    def wake(self) -> None:
        """Let the tasks that wait look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def changed(self) -> None:
        """Return after the next change: a worker became idle, or ``wake`` was called."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()
