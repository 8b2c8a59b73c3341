"""The identity of a journal: 16 random bytes in ``journal.db`` and in ``journal.high``.

Each of the two files checks out by itself where it is one of another journal. Segments have none:
the checksum of a row covers its lines, so those of another journal do not match it. Functions raise
sqlite3.Error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import small_tables
from payloadd.journal.sqlite.checksum import of_values

if TYPE_CHECKING:
    import sqlite3

    from payloadd.journal.sqlite.high_water_record import Mark

FOREIGN: Final = "journal.db and journal.high belong to two different journals"
_BYTES: Final = 16


def create() -> bytes:
    """Return a new identity."""
    return os.urandom(_BYTES)


def read(connection: sqlite3.Connection) -> bytes | None:
    """Return the identity of the journal, None where it is not known."""
    found = small_tables.check(connection, small_tables.IDENTITY).rows
    return found[0][0] if len(found) == 1 else None


def write(connection: sqlite3.Connection, identity: bytes) -> None:
    """Give the journal an identity instead of what it has."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM identity")
        values = (identity, of_values((identity,)))
        connection.execute("INSERT INTO identity (id, crc) VALUES (?, ?)", values)


def is_foreign(connection: sqlite3.Connection, mark: Mark) -> bool:
    """Return whether ``mark`` is the record of another journal than the one of ``connection``.

    A journal without an identity, or without a job so far, is not: the record is taken over.
    """
    known = read(connection)
    (following,) = connection.execute("SELECT next FROM totals").fetchone() or (1,)
    return known is not None and known != mark.journal and following != 1
