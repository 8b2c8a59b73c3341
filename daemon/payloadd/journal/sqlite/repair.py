"""Repairs the database file while a daemon uses it.

The new file gets all that can be read of the old one, and all that memory knows: the totals, the
ranges that are stored, the rows of jobs that are in memory, the identity. Rows that were deleted
before are deleted again: pages in the wrong place bring them back. Then the jobs that are missing
are counted and become dead letters, and so does what is missing by the count of memory. All of it
is in the new file before that takes the place of the old one: a crash or an error on the way leaves
the old file as it is.
"""

from __future__ import annotations

import sqlite3
import time
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
)
from payloadd.journal.sqlite.damage import is_corrupt
from payloadd.journal.sqlite.file_check import make_sound
from payloadd.journal.sqlite.read_errors import read_error
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.table_scan import is_unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Finding
    from payloadd.journal.sqlite.inventory import Inventory
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.read_errors import ReadErrors
    from payloadd.journal.sqlite.transaction import Totals
    from payloadd.model.job import Job

_BETWEEN: Final = 60.0
"""Seconds in which a file is repaired once at most: it is read as a whole."""


class Known(NamedTuple):
    """What memory knows of a journal, as of the last commit."""

    totals: Totals
    stored: Sequence[Range]
    """Ranges whose jobs are stored and whose rows wait to be deleted."""
    jobs: Sequence[Job]
    """Jobs in memory that are not settled."""
    gone: Sequence[Range]
    """Ranges whose rows were deleted: where pages were in the wrong place they come back."""
    held: int
    """Payloads in the journal, waiting or dead letters; 0 where that is not known."""
    identity: bytes
    """The identity of the journal."""


class FileRepair:
    """Repairs one file, now and then."""

    def __init__(self, path: Path, read_errors: ReadErrors) -> None:
        self._path = path
        self._read_errors = read_errors
        self._last = float("-inf")
        self._tolerant = False
        """Whether pages that the disk does not give back are taken for damaged."""

    def is_due(self, error: sqlite3.Error) -> bool:
        """Return whether the file is to be repaired because of ``error``."""
        if time.monotonic() - self._last < _BETWEEN:
            return False
        if is_unreadable(read_error(self._path, error)):
            self._tolerant = self._read_errors.note(FILE)
            return self._tolerant
        return is_corrupt(error)

    def run(self, known: Known) -> tuple[list[Finding], Inventory]:
        """Repair the file, of which no connection may be open; returns what to tell.

        Raises StartError, OSError, sqlite3.Error; the old file is there then.
        """
        self._last = time.monotonic()
        tolerant, self._tolerant = self._tolerant, False
        taken: list[Inventory] = []

        def complete(copy: sqlite3.Connection, gaps: list[Range]) -> None:
            taken.append(self._complete(copy, gaps, known))

        try:
            found, _ = make_sound(self._path, complete, tolerant=tolerant)
        except (OSError, sqlite3.Error, StartError) as failure:
            # A page of another part of the file, perhaps for a moment: see with the next repair.
            self._tolerant = isinstance(failure, sqlite3.Error) and is_unreadable(failure)
            raise
        return found, taken[0]

    def _complete(self, copy: sqlite3.Connection, gaps: Sequence[Range], known: Known) -> Inventory:
        with copy:
            copy.execute("BEGIN")
            job_rows.delete(copy, known.gone)
            restoration.restore_totals(copy, known.totals)
            restoration.restore_stored(copy, known.stored)
            restoration.restore_rows(copy, known.jobs)
        names = segments.names(self._path.parent / segments.FOLDER)
        left = restoration.without(gaps, known.jobs)
        taken = inventory.take(copy, names, left, counting=True)
        if taken.identity is None:
            identity.write(copy, known.identity)
        dead = sum(one.payloads for one in dead_letters.ranges(copy))
        missing = known.held - taken.totals.payloads - dead
        if missing <= 0:
            return taken
        uncounted = inventory.bury_uncounted(copy, taken.totals, missing)
        return replace(
            taken,
            findings=[*taken.findings, *uncounted.findings],
            lost_payloads=taken.lost_payloads + uncounted.lost_payloads,
        )
