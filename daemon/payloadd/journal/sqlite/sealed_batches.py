"""Find the sealed batches in the table ``batches`` that are not in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sealed_pass import SealedPass

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

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
        self._pass = SealedPass()

    async def next_batch(self, ending: Callable[[], Container[int]]) -> Batch | None:
        """Return the next batch of this pass; None at its end.

        ``ending`` returns the first ``seq`` of each batch that is neither in memory nor gone: its
        end waits for a commit.
        """
        while (first := await self._pass.next_first(self._read_firsts)) is not None:
            # A batch that is not here now cannot come back while it is read: only this method
            # brings batches back. If it has ended meanwhile its row is gone.
            if self._listener.holds(first) or first in ending():
                continue
            batch = await self._thread.read(self._database.sealed, first)
            self._database.handed.pop("sealed", None)
            if batch is not None:
                self._listener.replayed(batch.jobs)
                return batch
        return None

    async def _read_firsts(self, after: Mapping[int, int]) -> list[int]:
        return await self._thread.read(self._database.sealed_after, after)
