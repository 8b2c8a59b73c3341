"""Find the sealed batches that are not in memory, a few at a time.

A sealed batch is a row of the table ``batches``. The batches that are in memory have such a row as
well, until they are settled or buried. There may be millions of others: batches that were put back,
of this run and of earlier ones. So they are no list in memory; the table is read from the front to
the end, again and again. Streams take turns: a stream with many such batches does not delay those
of another.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from payloadd.model.streams import stream_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from payloadd.journal.api import JournalListener
    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.thread import JournalThread
    from payloadd.model.job import Batch


class SealedBatches:
    """A pass over the sealed batches of one journal after the other."""

    def __init__(
        self, database: Database, thread: JournalThread, listener: JournalListener
    ) -> None:
        self._database = database
        self._thread = thread
        self._listener = listener
        self._after: dict[int, int] = {}
        """By stream: batches whose first ``seq`` is not above this were read in this pass."""
        # Bounded by the rows of one read, and that by the number of streams.
        self._firsts: deque[int] = deque()

    async def next_batch(self, ending: Callable[[], Container[int]]) -> Batch | None:
        """Return the next batch of this pass; None at its end.

        ``ending`` returns the first ``seq`` of each batch that is neither in memory nor gone: its
        end waits for a commit.
        """
        while True:
            if not self._firsts:
                firsts = await self._thread.read(self._database.sealed_after, self._after)
                if not firsts:
                    self._after.clear()
                    return None
                self._firsts.extend(firsts)
            first = self._firsts.popleft()
            self._after[stream_of(first)] = first
            # A batch that is not here now cannot come back while it is read: only this method
            # brings batches back. If it has ended meanwhile its row is gone.
            if self._listener.holds(first) or first in ending():
                continue
            batch = await self._thread.read(self._database.sealed, first)
            self._database.handed.pop("sealed", None)
            if batch is not None:
                self._listener.replayed(batch.jobs)
                return batch
