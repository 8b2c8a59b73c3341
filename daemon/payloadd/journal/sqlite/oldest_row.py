"""Finds the oldest job that is not stored, whether a worker has seen it or not.

Asked once a second in the journal's thread, so the answer must not cost what the backlog costs: it
skips dead letters and stored rows by their ranges, and goes on where the last look has ended.
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

_STEPS: Final = 1000
"""Ranges that one look skips: 5 ms."""

_ID_BYTES: Final = 16

_NEXT: Final = "SELECT seq, id FROM jobs WHERE seq > ? ORDER BY seq LIMIT 1"
_DEAD: Final = "SELECT last FROM dead WHERE first <= ? ORDER BY first DESC LIMIT 1"


class OldestRow:
    """Looks for the oldest job of one journal. Methods raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._after = 0
        """Jobs up to this ``seq`` are stored or dead."""
        self.unfinished = False
        """Whether the last look has ended before it came to a job: the next one goes on there."""

    def look_from(self, firsts: Sequence[int]) -> None:
        """Look again at the jobs from these on: dead letters that are tried again."""
        if firsts:
            self._after = min(self._after, min(firsts) - 1)

    def look(self, stored: Sequence[Range]) -> float | None:
        """Return when the oldest job was accepted, in Unix time; None if there is none or not yet.

        ``stored`` are the ranges whose rows are still to be deleted.
        """
        ranges = job_rows.merge(stored)
        lasts = [last for _, last in ranges]
        at = self._after
        self.unfinished = False
        for _ in range(_STEPS):
            found = self._connection.execute(_NEXT, (at,)).fetchone()
            if found is None:
                return None
            seq, id_ = found
            if seq <= at:
                raise corrupt(f"the rows of jobs are out of order behind number {at}")
            index = bisect_left(lasts, seq)
            if index < len(ranges) and ranges[index][0] <= seq:
                at = self._after = lasts[index]
            elif (last := self._dead_until(seq)) >= seq:
                at = self._after = last
            elif isinstance(id_, bytes) and len(id_) == _ID_BYTES:
                return int.from_bytes(id_[:6]) / 1000
            else:
                # Damaged, which a worker has not seen yet: the one behind it is nearly as old.
                at = seq
        self.unfinished = True
        return None

    def _dead_until(self, seq: int) -> int:
        found = self._connection.execute(_DEAD, (seq,)).fetchone()
        return int(found[0]) if found else 0
