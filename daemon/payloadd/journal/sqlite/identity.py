"""Identity of a journal: 16 random bytes in ``journal.db`` and in ``journal.high``.

Each of the two files is valid by itself, so without an identity a file of another journal would
not be noticed. Segments need none: the checksum of a row covers its lines, so the lines of
another journal's segment do not match it. Functions raise sqlite3.Error.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import small_tables
from payloadd.journal.sqlite.checksum import of_values

if TYPE_CHECKING:
    import sqlite3

FOREIGN: Final = "journal.db and journal.high belong to two different journals"
_BYTES: Final = 16


def create() -> bytes:
    """Return a new identity."""
    return os.urandom(_BYTES)


def read(connection: sqlite3.Connection) -> bytes | None:
    """Return the identity of the journal, None where it is missing or damaged."""
    found = small_tables.check(connection, small_tables.IDENTITY).rows
    return found[0][0] if len(found) == 1 else None


def write(connection: sqlite3.Connection, identity: bytes) -> None:
    """Replace the identity of the journal, in a transaction of its own."""
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM identity")
        values = (identity, of_values((identity,)))
        connection.execute("INSERT INTO identity (id, crc) VALUES (?, ?)", values)


def is_foreign(connection: sqlite3.Connection, recorded: bytes) -> bool:
    """Return whether ``recorded``, the identity in ``journal.high``, is that of another journal.

    False for a journal without an identity and for a journal that never had a job: these adopt the
    record.
    """
    known = read(connection)
    (following,) = connection.execute("SELECT next FROM totals").fetchone() or (1,)
    return known is not None and known != recorded and following != 1
