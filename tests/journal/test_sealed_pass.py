"""The walk over sealed batches, a few at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sealed_pass import SealedPass
from payloadd.model.streams import first_seq

if TYPE_CHECKING:
    from collections.abc import Mapping


async def test_each_pass_returns_each_batch_once_and_streams_take_turns() -> None:
    """A batch that was put back would never be tried again, or those of one stream alone."""
    other = first_seq(1)
    batches = {0: [1, 4], 1: [other + 1, other + 2, other + 3]}
    position = SealedPass()

    async def read(after: Mapping[int, int]) -> list[int]:
        left = [
            [first for first in firsts if first > after.get(stream, 0)]
            for stream, firsts in batches.items()
        ]
        return [firsts[0] for firsts in left if firsts]

    for _ in range(2):
        found = [await position.next_first(read) for _ in range(6)]
        assert found == [1, other + 1, 4, other + 2, other + 3, None]
