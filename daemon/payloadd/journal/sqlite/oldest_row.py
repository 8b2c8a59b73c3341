"""The age of the backlog: when the oldest job that is not stored was accepted.

The journal's thread is asked for it once a second, so the answer must not cost more with a larger
backlog: dead letters and stored rows are skipped by their ranges, and each call continues where
the last one ended.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import job_rows
from payloadd.journal.sqlite.damage import corrupt

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from payloadd.journal.sqlite.job_rows import Range

_ID_BYTES: Final = 16

_NEXT: Final = "SELECT seq, id FROM jobs WHERE seq > ? ORDER BY seq LIMIT 1"
_DEAD: Final = "SELECT last FROM dead WHERE first <= ? ORDER BY first DESC LIMIT 1"


class OldestRow:
    """Finds the oldest job of one journal. Methods raise sqlite3.Error."""

    most_ranges = 1000
    """Ranges that one call skips at most: other work waits for the thread."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._after = 0
        """All jobs up to this ``seq`` are stored or dead."""
        self.unfinished = False
        """Whether the last call skipped so many ranges that it has to be called again."""

    def reconsider(self, firsts: Sequence[int]) -> None:
        """Include the jobs from each of ``firsts`` on again: revived dead letters."""
        if firsts:
            self._after = min(self._after, min(firsts) - 1)

    def accepted_at(self, stored: Sequence[Range]) -> float | None:
        """Return when the oldest job was accepted, in Unix time.

        None where there is no job, and where ``unfinished`` is True then. ``stored``: the ranges
        whose rows wait for deletion.
        """
        ranges = job_rows.merge(stored)
        lasts = [last for _, last in ranges]
        after = self._after
        self.unfinished = False
        for _ in range(self.most_ranges):
            found = self._connection.execute(_NEXT, (after,)).fetchone()
            if found is None:
                return None
            seq, id_ = found
            if seq <= after:
                raise corrupt(f"the rows of jobs are out of order after number {after}")
            index = bisect_left(lasts, seq)
            if index < len(ranges) and ranges[index][0] <= seq:
                after = self._after = lasts[index]
            elif (last := self._end_of_dead_letter(seq)) >= seq:
                after = self._after = last
            elif isinstance(id_, bytes) and len(id_) == _ID_BYTES:
                return int.from_bytes(id_[:6]) / 1000
            else:
                # A damaged row that no page has read so far: the next job is nearly as old.
                after = seq
        self.unfinished = True
        return None

    def _end_of_dead_letter(self, seq: int) -> int:
        """Return the last ``seq`` of the dead letter that begins at ``seq`` or before it, or 0."""
        found = self._connection.execute(_DEAD, (seq,)).fetchone()
        return int(found[0]) if found else 0
