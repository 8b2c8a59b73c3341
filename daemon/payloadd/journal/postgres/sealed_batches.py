"""Find the sealed batches of the held lanes that are not in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sealed_pass import SealedPass
from payloadd.model.formats import FORMATS
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

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
        self._pass = SealedPass()
        self._encoders: set[str | None] = set()
        """Former encoders of sealed batches that the log has named."""

    async def next_batch(self) -> Batch | None:
        """Return the next batch of this pass; None at its end."""
        calls, session = self._calls, self._calls.session
        while True:
            async with calls.lock:
                first = await self._pass.next_first(self._read_firsts)
                if first is None:
                    return None
                if self._listener.holds(first) or self._is_ending(first):
                    continue
                found = await calls.read(session.sealed, first)
                if found.damaged:
                    await self._bury_damaged(first, found.damaged)
                self._note_encoder(found)
                if found.batch is not None:
                    self._listener.replayed(found.batch.jobs)
                    return found.batch

    async def _read_firsts(self, after: Mapping[int, int]) -> list[int]:
        return await self._calls.read(self._calls.session.sealed_after, after)

    def _note_encoder(self, found: SealedRow) -> None:
        """Log once that a batch was sealed by another encoder than the present one."""
        if found.batch is None:
            return
        present = FORMATS[found.batch.format_name].encoder
        if found.encoder not in {None, present, *self._encoders}:
            self._encoders.add(found.encoder)
            log.info("encoder_changed", sealed=found.encoder, present=present)
