"""``DURABILITY=memory``: the journal's place without a journal.

A request is answered once its jobs are in the channel, and a full channel refuses. A crash
loses what is queued, and what the store refuses for good is lost with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from payloadd.errors import RefusedError, TooLargeError
from payloadd.model.job import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.journal.api import JournalAccounts, JournalListener, QueueRoom
    from payloadd.journal.operations import Done, Receipt
    from payloadd.model.job import Batch, Part

_MOST_ANSWERS: Final = 100_000
"""Idempotency-Keys that are known at once; the oldest is forgotten for a new one."""


class MemoryJournal:
    """Keeps nothing; see the protocol ``Journal``."""

    def __init__(
        self, channel: QueueRoom, feeder: JournalListener, accounting: JournalAccounts
    ) -> None:
        self._channel = channel
        self._feeder = feeder
        self._accounting = accounting
        self._next = 1
        self._answers: OrderedDict[bytes, Receipt] = OrderedDict()

    def append(
        self, receipt: Receipt, parts: Sequence[Part], key: bytes | None, done: Done
    ) -> None:
        """Put a request into the channel, or refuse it; TooLargeError where it can never fit."""
        if key is not None and key in self._answers:
            done(self._answers[key])
            return
        self._check_room(parts)
        jobs = [Job(seq, *part) for seq, part in enumerate(parts, self._next)]
        self._next += len(jobs)
        self._accounting.accept(receipt.payloads)
        self._feeder.offer(jobs)
        if key is not None and receipt.payloads:
            self._answers[key] = receipt
            if len(self._answers) > _MOST_ANSWERS:
                self._answers.popitem(last=False)
        done(receipt)

    def _check_room(self, parts: Sequence[Part]) -> None:
        size = sum(len(part.lines) for part in parts)
        most = self._channel.max_bytes
        if size > most:
            raise TooLargeError(f"the request has {size} bytes, more than MAX_QUEUE_BYTES ({most})")
        if not self._channel.has_room(len(parts), size):
            raise self._queue_full()

    async def wait_for_room(self) -> None:
        """Return: no request waits."""

    def refusal(self) -> RefusedError | None:
        """Return why a small request would be refused now, or None."""
        return None if self._channel.has_room(1, 1) else self._queue_full()

    def _queue_full(self) -> RefusedError:
        # Half a queue's time: the client finds real room, and the workers never run dry.
        wait = self._accounting.rate.seconds_for(self._accounting.open // 2)
        return RefusedError("QUEUE_FULL", "the queue is full; nothing was taken", wait)

    async def seal(self, batch: Batch) -> None:
        """There is nothing that could be replayed."""

    def settle(self, batch: Batch) -> None:
        """There is nothing to forget."""

    def bury(self, batch: Batch, code: str, reason: str) -> None:  # noqa: ARG002 - the protocol's
        """Count it as lost: there is nowhere to keep it."""
        self._accounting.unkept += batch.payloads

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:  # noqa: ARG002 - the protocol's
        """Return nothing: all that was taken in is in the channel."""
        return []

    async def pulse(self) -> None:
        """Return: a request waits for nothing."""

    async def sealed(self) -> Batch | None:
        """Return None: nothing outlived the last process."""
        return None
