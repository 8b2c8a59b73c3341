"""What a worker has in hand: a batch, its object, and how it has gone so far.

A hand that is empty has itself filled: by the dispatcher, which finds the sending end of its
channel among the idle ones, or at once where a batch is there that may be taken without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import trio

from payloadd.model.formats import FORMATS
from payloadd.model.job import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.model.formats.api import EncodedObject

_COMPRESS_IN_THREAD: Final = 64 * 1024
"""Bytes above which compressing would hold up the event loop for longer than a thread costs."""


Inbox = trio.MemorySendChannel[Batch]


class CurrentBatch:
    """One batch after the other, or nothing; for a ``with`` block."""

    __slots__ = (
        "_batches",
        "_following",
        "_idle",
        "_inbox",
        "attempt",
        "batch",
        "body",
        "cost",
        "full",
        "round",
    )

    batch: Batch
    """Only while it is ``full``, as all that follows."""
    body: EncodedObject | None
    """The object; None for as long as it has to be waited for."""
    round: int
    """The round of attempts, from 1."""
    attempt: int
    """The attempt within the round, from 1."""
    cost: int | None
    """What the last retry of this round took from the budget."""

    def __init__(
        self, idle: trio.MemorySendChannel[Inbox], following: Callable[[], Batch | None]
    ) -> None:
        """Begin with nothing.

        ``idle`` is where the dispatcher looks for hands to fill, ``following`` gives a batch
        that is there already, or None.
        """
        self._idle = idle
        self._inbox, self._batches = trio.open_memory_channel[Batch](0)
        self._following = following
        self.full = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.close()
        self._batches.close()

    async def fill(self) -> bool:
        """Wait for a batch; returns False once the dispatcher says that none will come."""
        self._idle.send_nowait(self._inbox)
        try:
            self._take(await self._batches.receive())
        except trio.EndOfChannel:
            return False
        return True

    def _take(self, batch: Batch) -> None:
        self.full = True
        self.batch = batch
        self.round = self.attempt = 1
        self.cost = None
        self.body = None
        if not batch.sealed and not _takes_long(batch):
            self.body = FORMATS[batch.format_name].encode(batch.jobs)

    def take_next(self) -> None:
        """Hold the batch that is there already, or nothing."""
        batch = self._following()
        if batch is not None:
            self._take(batch)
        else:
            # Or who is idle holds on to it: 64 workers to half a GiB of large payloads.
            del self.batch, self.body
            self.full = False

    async def encoded(self) -> EncodedObject:
        """Return the object of the batch."""
        batch = self.batch
        encode = FORMATS[batch.format_name].encode
        if not _takes_long(batch):
            return encode(batch.jobs)
        return await trio.to_thread.run_sync(encode, batch.jobs, abandon_on_cancel=True)

    def begin_round(self) -> None:
        """Note that attempts are counted from the beginning again."""
        self.round += 1
        self.attempt = 1
        self.cost = None


def _takes_long(batch: Batch) -> bool:
    return batch.bytes > _COMPRESS_IN_THREAD and FORMATS[batch.format_name].cpu_bound
