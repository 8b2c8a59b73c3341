"""Find the sealed batches that are not in memory, a few at a time.

The batches that are in memory have a row in the table as well, until they are settled or buried.
There may be millions of others, so they are no list in memory: the table is read from the front to
the end, again and again. Streams take turns.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from payloadd.model.formats import FORMATS
from payloadd.model.streams import stream_of
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from payloadd.journal.api import JournalListener
    from payloadd.journal.postgres.calls import DatabaseCalls
    from payloadd.journal.postgres.lane import UnreadableRow
    from payloadd.journal.postgres.reading import SealedRow
    from payloadd.model.job import Batch

log = get_logger(__name__)


class SealedBatchReader:
    """A pass over the sealed batches of the held lanes after the other."""

    def __init__(
        self,
        calls: DatabaseCalls,
        listener: JournalListener,
        is_ending: Callable[[int], bool],
        bury_damaged: Callable[[int, Sequence[UnreadableRow]], Awaitable[None]],
    ) -> None:
        """``is_ending`` returns whether the end of a batch, by its first ``seq``, is not written.

        ``bury_damaged`` makes dead letters of rows of the lane of a ``seq``.
        """
        self._calls = calls
        self._listener = listener
        self._is_ending = is_ending
        self._bury_damaged = bury_damaged
        self._after: dict[int, int] = {}
        """By stream: batches whose first ``seq`` is not above this were read in this pass."""
        # Bounded by the rows of one read, and that by the number of streams.
        self._firsts: deque[int] = deque()
        self._encoders: set[str | None] = set()
        """Former encoders of sealed batches that the log has named."""

    async def next_batch(self) -> Batch | None:
        """Return the next batch of this pass; None at its end."""
        calls, session = self._calls, self._calls.session
        while True:
            async with calls.lock:
                if not self._firsts:
                    firsts = await calls.read(session.sealed_after, self._after)
                    if not firsts:
                        self._after.clear()
                        return None
                    self._firsts.extend(firsts)
                first = self._firsts.popleft()
                self._after[stream_of(first)] = first
                if self._listener.holds(first) or self._is_ending(first):
                    continue
                found = await calls.read(session.sealed, first)
                if found.damaged:
                    await self._bury_damaged(first, found.damaged)
                self._note_encoder(found)
                if found.batch is not None:
                    self._listener.replayed(found.batch.jobs)
                    return found.batch

    def _note_encoder(self, found: SealedRow) -> None:
        """Log once that a batch was sealed by another encoder than the present one."""
        if found.batch is None:
            return
        present = FORMATS[found.batch.format_name].encoder
        if found.encoder not in {None, present, *self._encoders}:
            self._encoders.add(found.encoder)
            log.info("encoder_changed", sealed=found.encoder, present=present)
