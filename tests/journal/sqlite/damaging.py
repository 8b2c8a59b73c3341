"""Damages a journal as a disk does, and shows what was found."""

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
    """Do to a journal what a flipped bit might do."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def cut(path: Path) -> None:
    """Cut a file in the middle."""
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
    """Write zeros over a page in the middle of a file."""
    zero_pages(path, [path.stat().st_size // 2 // PAGE + 1])


def zero_pages(path: Path, pages: Sequence[int]) -> None:
    """Write zeros over pages of a database file, which are counted from 1."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(bytes(PAGE))


def leaves(path: Path, ids: Iterable[uuid.UUID]) -> list[int]:
    """Return the pages of a database file that have rows of these jobs.

    SQLite's log is to be folded in. See https://www.sqlite.org/fileformat.html, section 1.6.
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
    """Write zeros over the pages of these jobs, under an open journal; returns how many."""
    database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    pages = leaves(path, ids)
    zero_pages(path, pages)
    # Or what is damaged would be read from SQLite's memory.
    database._connection.execute("PRAGMA shrink_memory")
    return len(pages)


def told(database: Database) -> list[Finding]:
    """Return what the database found since the last time."""
    return database.findings.take()


def verified(path: Path) -> list[Finding]:
    """Return what `payloadd journal verify` finds."""
    with Inspection.open(path.parent) as inspection:
        return inspection.verify()
