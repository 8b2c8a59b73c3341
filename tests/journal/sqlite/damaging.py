"""Damage a journal as a failing disk does, and return the findings."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite.offline import Inspection

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Finding
    from payloadd.journal.sqlite.database import Database

PAGE: Final = 4096
_TABLE_LEAF: Final = 13


def change(path: Path, *statements: str) -> None:
    """Run SQL statements on a journal, to change rows as a flipped bit does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def cut(path: Path) -> None:
    """Truncate a file to half of its size."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte ^ 16]))


def zero(path: Path) -> None:
    """Overwrite a page in the middle of a file with zeros."""
    zero_pages(path, [path.stat().st_size // 2 // PAGE + 1])


def zero_pages(path: Path, pages: Sequence[int]) -> None:
    """Overwrite pages of a database file, counted from 1, with zeros."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(bytes(PAGE))


def lose_table(path: Path, table: str) -> None:
    """Overwrite the first page of a table with zeros: no row of the table can be read then.

    SQLite's log is checkpointed before.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    zero_pages(path, [page])


def leaves(path: Path, ids: Iterable[uuid.UUID]) -> list[int]:
    """Return the numbers of the pages of a database file that contain rows of these jobs.

    SQLite's log must be checkpointed before.
    See https://www.sqlite.org/fileformat.html, section 1.6.
    """
    wanted = [one.bytes for one in ids]
    content = path.read_bytes()
    pages = (content[start : start + PAGE] for start in range(0, len(content), PAGE))
    return [
        number
        for number, page in enumerate(pages, 1)
        if page[0] == _TABLE_LEAF and any(one in page for one in wanted)
    ]


def lose_pages(database: Database, path: Path, ids: Iterable[uuid.UUID]) -> int:
    """Overwrite the pages of these jobs with zeros, in an open journal; return their number."""
    database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    pages = leaves(path, ids)
    zero_pages(path, pages)
    # Otherwise SQLite would read the pages from its cache.
    database._connection.execute("PRAGMA shrink_memory")
    return len(pages)


def new_findings(database: Database) -> list[Finding]:
    """Return the findings since the last call."""
    return database.findings.pop_all()


def verified(path: Path) -> list[Finding]:
    """Return the findings of `payloadd journal verify`."""
    with Inspection.open(path.parent) as inspection:
        return inspection.verify()


def repair_without_pause(database: Database) -> None:
    """Let the database repair its file as often as it is damaged."""
    database._file_repair.min_interval = 0.0
