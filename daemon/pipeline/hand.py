"""What a worker has in hand: a batch, its object, and how it has gone so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from daemon.storage.encoding import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.pipeline.job import Batch
    from daemon.storage.encoding import Encoded

_COMPRESS_IN_THREAD: Final = 64 * 1024
"""Bytes above which compressing would hold up the event loop for longer than a thread costs."""


class Hand:
    """One batch after the other."""

    __slots__ = ("_following", "attempt", "batch", "body", "cost", "round")

    def __init__(self, first: Batch, following: Callable[[], Batch | None]) -> None:
        """Take ``first``; ``following`` gives a batch that is there already, or None."""
        self._following = following
        self._take(first)

    def take_next(self) -> bool:
        """Take the batch that is there; returns False, and changes nothing, if there is none."""
        batch = self._following()
        if batch is None:
            return False
        self._take(batch)
        return True

    def _take(self, batch: Batch) -> None:
        self.batch = batch
        self.round = 1
        """The round of attempts, from 1."""
        self.attempt = 1
        """The attempt within the round, from 1."""
        self.cost: int | None = None
        """What the last retry of this round took from the budget."""
        self.body: Encoded | None = None
        """The object; None for as long as it has to be waited for."""
        if not batch.sealed and not _takes_long(batch):
            self.body = encode(batch.pieces, batch.compression)

    async def encoded(self) -> Encoded:
        """Return the object of the batch."""
        batch = self.batch
        if not _takes_long(batch):
            return encode(batch.pieces, batch.compression)
        return await trio.to_thread.run_sync(
            encode, batch.pieces, batch.compression, abandon_on_cancel=True
        )

    def begin_round(self) -> None:
        """Note that attempts are counted from the beginning again."""
        self.round += 1
        self.attempt = 1
        self.cost = None


def _takes_long(batch: Batch) -> bool:
    return batch.compression != "none" and batch.bytes > _COMPRESS_IN_THREAD
