"""Walk over the sealed batches of a journal, a few at a time.

The batches that are in memory have a row in the table as well, until they are settled or buried.
There may be millions of others: batches that were put back, of this run and of earlier ones. So
they are no list in memory; the table is read from the front to the end, again and again. Streams
take turns: a stream with many such batches does not delay those of another.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from payloadd.model.streams import stream_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence


class SealedPass:
    """The position of a pass over the sealed batches, named by their first ``seq``."""

    def __init__(self) -> None:
        self._after: dict[int, int] = {}
        """By stream: batches whose first ``seq`` is not above this were read in this pass."""
        # Bounded by the rows of one read, and that by the number of streams.
        self._firsts: deque[int] = deque()

    async def next_first(
        self, read: Callable[[Mapping[int, int]], Awaitable[Sequence[int]]]
    ) -> int | None:
        """Return the first ``seq`` of the next batch; None at the end of a pass.

        ``read`` returns the next of them, a few of each stream, behind those of its argument.
        """
        if not self._firsts:
            firsts = await read(self._after)
            if not firsts:
                self._after.clear()
                return None
            self._firsts.extend(firsts)
        first = self._firsts.popleft()
        self._after[stream_of(first)] = first
        return first
