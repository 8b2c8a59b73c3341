"""The batch that a worker has: its object, and its attempts so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import trio

from payloadd.model.formats import FORMATS
from payloadd.model.streams import DEFAULT, last_seq, stream_of
from payloadd.pipeline.waiting_batch import WaitingBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Batch
    from payloadd.pipeline.idle import Inbox
    from payloadd.pipeline.retry import Timer

_LAST_OF_DEFAULT: Final = last_seq(DEFAULT)


class CurrentBatch:
    """The batch of one worker, its object, and its attempts so far; a context manager.

    A worker without a batch registers itself as idle, or gets a batch that is ready from
    ``following``.
    """

    __slots__ = (
        "_batches",
        "_following",
        "_found",
        "_found_in_default",
        "_inbox",
        "_process_limiter",
        "_register",
        "_waiting",
        "attempt",
        "batch",
        "body",
        "cost",
        "present",
        "repeat",
        "rounds",
        "sealed",
        "started",
        "timer",
    )

    batch: Batch
    """Exists only while ``present`` is true, as all that follow."""
    body: EncodedObject | None
    """The object; None until it is encoded."""
    sealed: bool
    """Whether the journal has sealed the batch in this run."""
    repeat: bool
    """Whether the store may have the object already."""
    rounds: int
    """The rounds of attempts that failed before."""
    attempt: int
    """The attempt within the round, from 1."""
    started: float
    """The start of the last attempt, by trio's clock."""
    timer: Timer
    """The timer of the attempt."""
    cost: int | None
    """Tokens of the budget that the last retry of this round cost; None: no retry."""

    def __init__(
        self,
        register: Callable[[Inbox], None],
        following: Callable[[], Batch | None],
        found: Mapping[int, int],
        process_limiter: trio.CapacityLimiter,
    ) -> None:
        """Begin without a batch.

        ``register`` is called with the inbox when the worker is idle; ``following`` returns a batch
        that is ready, or None. An earlier run may have stored the jobs of a stream up to the
        ``seq`` that ``found`` has for it. ``process_limiter`` bounds the batches that wait for the
        process of their format at the same time.
        """
        self._process_limiter = process_limiter
        self._found = found
        self._found_in_default = found.get(DEFAULT, 0)
        self._register = register
        self._inbox, self._batches = trio.open_memory_channel[WaitingBatch](0)
        self._following = following
        self._waiting: WaitingBatch | None = None
        self.present = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.close()
        self._batches.close()

    async def receive(self) -> bool:
        """Register as idle and wait for a batch; return False if the inbox was closed instead."""
        self._register(self._inbox)
        try:
            waiting = await self._batches.receive()
        except trio.EndOfChannel:
            return False
        self._begin(waiting.batch)
        if waiting.rounds or waiting.repeat or waiting.sealed:
            self._waiting = waiting
            self.rounds, self.sealed = waiting.rounds, waiting.sealed
            self.repeat |= waiting.repeat
        return True

    def key(self) -> str:
        """Return the key of the object."""
        return self.batch.key

    def put_back(self) -> WaitingBatch:
        """Return the batch as one that waits for another attempt."""
        waiting = self._waiting or WaitingBatch(self.batch)
        waiting.sealed, waiting.repeat = self.sealed, self.repeat
        return waiting

    def replace(self) -> None:
        """Begin with the batch that is ready, or have none."""
        batch = self._following()
        if batch is not None:
            self._begin(batch)
        else:
            # Else an idle worker keeps its last batch in memory, which no bound counts.
            del self.batch, self.body
            self._waiting = None
            self.present = False

    async def encoded(self) -> EncodedObject:
        """Return the object of the batch; compress a large one in a thread. Raises StoreError."""
        batch = self.batch
        its_format = FORMATS[batch.format_name]
        if batch.bytes <= its_format.most_in_loop:
            return its_format.encode(batch.jobs)
        limiter = self._process_limiter if its_format.has_process else None
        return await trio.to_thread.run_sync(
            its_format.encode, batch.jobs, abandon_on_cancel=True, limiter=limiter
        )

    def _begin(self, batch: Batch) -> None:
        self.present = True
        self.batch = batch
        self.rounds, self.attempt = 0, 1
        self.cost = self.body = self._waiting = None
        self.sealed = False
        seq = batch.jobs[0].seq
        if seq <= _LAST_OF_DEFAULT:
            self.repeat = seq <= self._found_in_default
        else:
            self.repeat = seq <= self._found.get(stream_of(seq), 0)
        its_format = FORMATS[batch.format_name]
        if not batch.sealed and batch.bytes <= its_format.most_in_loop:
            self.body = its_format.encode(batch.jobs)
