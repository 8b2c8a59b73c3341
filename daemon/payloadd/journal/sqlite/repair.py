"""Repair the database file while the daemon uses it.

The new file gets all readable rows of the old file and all state in memory: the totals, the ranges
that are stored, the rows of jobs in memory, the identity. Rows that were deleted before are
deleted again, because misplaced pages can bring them back. Then missing jobs are counted and
become dead letters, and so do payloads that are missing by the count in memory. All of this is in
the new file before it replaces the old one: after a crash or an error the old file is unchanged.
"""

from __future__ import annotations

import sqlite3
import time
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.errors import StartError
from payloadd.journal.sqlite import (
    dead_letters,
    identity,
    inventory,
    job_rows,
    restoration,
    segments,
    stream_rows,
)
from payloadd.journal.sqlite.damage import is_corrupt
from payloadd.journal.sqlite.disk_probe import has_room, is_full
from payloadd.journal.sqlite.file_check import make_sound
from payloadd.journal.sqlite.read_errors import ReadErrors, read_error
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.table_scan import is_unreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Finding
    from payloadd.journal.sqlite.inventory import Inventory
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.transaction import Totals
    from payloadd.model.job import Job

_MIN_INTERVAL: Final = 60.0
"""Seconds between two repairs: each one reads the whole file."""


class MemoryState(NamedTuple):
    """The state of a journal in memory, as of the last commit."""

    totals: Totals
    stored: Sequence[Range]
    """Ranges whose jobs are stored and whose rows are not deleted yet."""
    jobs: Sequence[Job]
    """Jobs in memory that are not settled."""
    gone: Sequence[Range]
    """Ranges whose rows were deleted; a misplaced page can bring them back."""
    held: int
    """Payloads in the journal, waiting or in dead letters; 0 where the number is not known."""
    identity: bytes
    """The identity of the journal."""
    streams: Mapping[int, str]
    """The names of the streams by number."""


def free_statements(error: BaseException) -> None:
    """Free the statements that an error and those before it hold, to close their connection.

    The error of a page has a suspended generator in its frames, which has not read all rows. SQLite
    keeps a closed connection with such a statement open, with its lock on the log, so that the log
    could not be written into the file.
    """
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        one = one.__context__


class FileRepair:
    """Repairs of one database file, limited in frequency."""

    def __init__(self, path: Path, read_errors: ReadErrors) -> None:
        self._path = path
        self._read_errors = read_errors
        self._full = ReadErrors()
        """Errors of a full disk that has room."""
        self.min_interval = _MIN_INTERVAL
        """Seconds between the starts of two repairs at least."""
        self._last = float("-inf")
        self._tolerant = False
        """Whether pages that the disk cannot read count as damaged in the next repair."""

    def is_due(self, error: sqlite3.Error) -> bool:
        """Return whether to repair the file now because of ``error``."""
        if time.monotonic() - self._last < self.min_interval:
            return False
        if is_unreadable(read_error(self._path, error)):
            self._tolerant = self._read_errors.note(FILE)
            return self._tolerant
        if is_full(error):
            # Counted like a read error: the space may have been freed just now.
            return has_room(self._path.parent) and self._full.note(FILE)
        return is_corrupt(error)

    def run(self, state: MemoryState) -> tuple[list[Finding], Inventory]:
        """Repair the file; no connection to it may be open.

        Returns the findings of the copy, and the inventory of the new file with its own findings.
        Raises StartError, OSError, sqlite3.Error; then the old file is unchanged.
        """
        self._last = time.monotonic()
        tolerant, self._tolerant = self._tolerant, False
        inventories: list[Inventory] = []

        def complete(copy: sqlite3.Connection, gaps: list[Range]) -> None:
            inventories.append(self.complete(copy, gaps, state))

        try:
            found, _ = make_sound(self._path, complete, tolerant=tolerant)
        except (OSError, sqlite3.Error, StartError) as failure:
            # The disk cannot read another page of the file, maybe only for a moment: the next
            # repair may treat it as damaged.
            self._tolerant = isinstance(failure, sqlite3.Error) and is_unreadable(failure)
            raise
        return found, inventories[0]

    def complete(
        self, copy: sqlite3.Connection, gaps: Sequence[Range], state: MemoryState
    ) -> Inventory:
        """Write the state in memory into a copy of the file; return the inventory of the copy."""
        with copy:
            copy.execute("BEGIN")
            job_rows.delete(copy, state.gone)
            restoration.restore_totals(copy, state.totals)
            restoration.restore_stored(copy, state.stored)
            restoration.restore_rows(copy, state.jobs)
            stream_rows.write(copy, state.streams.items())
        names = segments.names(self._path.parent / segments.FOLDER)
        left = restoration.without(gaps, state.jobs)
        taken = inventory.read_and_repair(copy, names, left, counting=True)
        if taken.identity is None:
            identity.write(copy, state.identity)
        dead = sum(one.payloads for one in dead_letters.ranges(copy))
        missing = state.held - taken.totals.payloads - dead
        if missing <= 0:
            return taken
        uncounted = inventory.bury_uncounted(copy, taken.totals, missing)
        return replace(
            taken,
            findings=[*taken.findings, *uncounted.findings],
            lost_payloads=taken.lost_payloads + uncounted.lost_payloads,
        )
