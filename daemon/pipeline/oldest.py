"""Finds the oldest job that is not stored, whether a worker has seen it or not.

Asked once a second in the journal's thread, so the answer must not cost what the backlog costs: it
skips dead letters and stored rows by their ranges, and goes on where the last look has ended.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

from daemon.pipeline import rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from daemon.pipeline.rows import Range

_STEPS: Final = 1000
"""Ranges that one look skips: 5 ms."""

_NEXT: Final = "SELECT seq, id FROM jobs WHERE seq > ? ORDER BY seq LIMIT 1"
_DEAD: Final = "SELECT last FROM dead WHERE first <= ? ORDER BY first DESC LIMIT 1"


class Oldest:
    """Looks for the oldest job of one journal. Methods raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._after = 0
        """Jobs up to this ``seq`` are stored or dead."""
        self._dead = 0

    def look(self, stored: Sequence[Range], dead: int) -> float | None:
        """Return when the oldest job was accepted, in Unix time; None without one.

        ``stored`` are the ranges whose rows are still to be deleted, ``dead`` is how much lies in
        dead letters: where that is less than before, some may have come back.
        """
        if dead < self._dead:
            self._after = 0
        self._dead = dead
        ranges = rows.merge(stored)
        lasts = [last for _, last in ranges]
        for _ in range(_STEPS):
            found = self._connection.execute(_NEXT, (self._after,)).fetchone()
            if found is None:
                return None
            seq, id_ = found
            index = bisect_left(lasts, seq)
            if index < len(ranges) and ranges[index][0] <= seq:
                self._after = lasts[index]
            elif (last := self._dead_until(seq)) >= seq:
                self._after = last
            else:
                return int.from_bytes(id_[:6]) / 1000
        return None

    def _dead_until(self, seq: int) -> int:
        found = self._connection.execute(_DEAD, (seq,)).fetchone()
        return int(found[0]) if found else 0
