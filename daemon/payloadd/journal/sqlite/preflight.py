"""Finds out whether a journal would work, without a trace of having tried."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.journal.sqlite import file_check, high_water, identity
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.file_check import check_schema, find_problem
from payloadd.journal.sqlite.lock import try_lock
from payloadd.journal.sqlite.schema import FILE, MIGRATIONS, look_into
from payloadd.journal.sqlite.segments import Segments
from payloadd.journal.sqlite.verify import check_jobs, check_small_tables, sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.journal.sqlite.damage import Finding

_READ_AT_START: Final = (
    "SELECT first, last, key, compression FROM batches",
    "SELECT first, template, host, compression, alone FROM layouts",
    "SELECT first, last, payloads, bytes FROM dead",
    "SELECT first, last FROM stored",
)
_NEEDED: Final = """
    SELECT segment, max(start + size) FROM jobs WHERE segment IS NOT NULL GROUP BY segment
"""


def try_journal(folder: Path) -> str:
    """Try whether a journal in ``folder`` would work; returns what is there, for people.

    Leaves nothing behind that was not there before, and no file that the service's user could
    not write. Raises StartError.
    """
    path = folder / FILE
    process = try_lock(folder)
    if process is not None:
        return f"{path}, in use by process {process}"
    made: list[Path] = []
    try:
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="payloadd-check-") as scratch:
            Database(Path(scratch) / FILE).close()
        found = _try_file(path) if path.exists() else _try_none(folder)
    except (OSError, sqlite3.Error, StartError, UnicodeDecodeError) as error:
        raise StartError(f"cannot keep a journal in STATE_DIR {folder}: {error}") from None
    finally:
        for one in made:
            with suppress(OSError):
                one.rmdir()
    return f"{path}, {found}"


def _try_none(folder: Path) -> str:
    Segments(folder).check(1)
    return "new"


def _try_file(path: Path) -> str:
    """Do with the journal at ``path`` what a start does, but change nothing; says what is there.

    Raises OSError, sqlite3.Error, StartError.
    """
    # Names what is wrong, where SQLite is "unable to open database file".
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    with closing(look_into(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        _check_pages(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StartError(f"{FILE} has version {version}: it was written by a newer payloadd")
        if version < len(MIGRATIONS):
            return f"version {version}, which a start brings up to date"
        check_schema(connection)
        for query in _READ_AT_START:
            connection.execute(query).fetchall()
        _refuse(check_small_tables(connection))
        totals = connection.execute("SELECT next, jobs, payloads, bytes FROM totals").fetchone()
        if totals is None:
            raise StartError(f"{FILE} has lost its totals")
        # A start goes on behind the numbers of rows that are gone.
        mark = high_water.read(path)
        if mark is not None and identity.is_foreign(connection, mark):
            raise StartError(identity.FOREIGN)
        following = totals[0] if totals[0] == 1 or mark is None else max(totals[0], mark.next)
        _check_segments(connection, path.parent, following)
        if path.stat().st_size > file_check.MOST_CHECKED:
            return f"{totals[2]} payloads wait (`payloadd journal verify` checks each of them)"
        _refuse(check_jobs(connection, path.parent))
        return f"{totals[2]} payloads wait"


def _check_pages(connection: sqlite3.Connection) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    if pages * size <= file_check.MOST_CHECKED:
        problem = find_problem(connection)
        if problem is not None:
            raise StartError(f"{FILE} is damaged: {problem}")


def _refuse(damaged: Sequence[Finding]) -> None:
    if damaged:
        more = f"; {len(damaged) - 1} more, see `payloadd journal verify`"
        raise StartError(f"damaged: {sentence(damaged[0])}{more if len(damaged) > 1 else ''}")


def _check_segments(connection: sqlite3.Connection, folder: Path, following: int) -> None:
    segments = Segments(folder)
    segments.check(following)
    for name, needed in connection.execute(_NEEDED).fetchall():
        size = segments.size(name)
        if size < needed:
            raise StartError(f"the segment {name} has {size} bytes, {FILE} wants {needed}")
