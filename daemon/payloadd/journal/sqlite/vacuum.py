"""Gives the space of the file's free pages back to the file system."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import sqlite3

_WORTH_IT: Final = 1024
"""Free pages; fewer are left for the rows that come next."""
_PAGES_PER_STEP: Final = 256


class Vacuum:
    """Makes the file smaller, step by step. Methods raise sqlite3.Error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def step(self) -> bool:
        """Give some free pages back; returns whether there is more."""
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        if free < _WORTH_IT:
            return False
        # A page a step; `execute` makes one step of what has no columns, a script all of them.
        self._connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
        if free - _PAGES_PER_STEP < _WORTH_IT:
            # The last step for now: the file is cut when the log is folded in.
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return True
