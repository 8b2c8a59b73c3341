"""Opens a journal whose file is sound, or makes it so.

SQLite notices a damaged page when it comes to it, and some damage not at all. A file of up to
64 MiB is checked as a whole at each start, which takes 0.1 s; a larger one is checked where it
is read, by ``payloadd check`` and by ``payloadd journal verify``.
"""

from __future__ import annotations

import os
import sqlite3
from struct import unpack_from
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import schema
from payloadd.journal.sqlite.damage import Finding, corrupt, is_corrupt, refusal
from payloadd.journal.sqlite.read_errors import read_error, retry_reads
from payloadd.journal.sqlite.salvage import salvage
from payloadd.journal.sqlite.table_scan import is_trouble, is_unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.salvage import Complete

MOST_CHECKED: Final = 64 * 2**20
"""Bytes of a journal that is checked page by page: 0.1 s if it is in memory, 1 s if it is not."""
_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = 100
_SMALLEST_PAGE: Final = 512
_MOST_GROWN: Final = 16
"""A file of which less than a 16th is left is not what its header says, or beyond help."""


def open_sound(path: Path) -> tuple[sqlite3.Connection, list[Finding], list[Range]]:
    """Open the journal at ``path``; returns what was wrong, and where jobs may be missing.

    Raises OSError, sqlite3.Error, or StartError where it cannot be made sound.
    """
    try:
        return retry_reads(lambda: _open_sound(path))
    except sqlite3.Error as error:
        if not is_unreadable(error):
            raise
        problem = str(error)
    found, gaps = make_sound(path, tolerant=True)
    return _connect(path), [Finding("file", problem), *found], gaps


def _open_sound(path: Path) -> tuple[sqlite3.Connection, list[Finding], list[Range]]:
    found = fill_up(path)
    connection = _connect(path)
    try:
        problem = None
        if found or path.stat().st_size <= MOST_CHECKED:
            problem = find_problem(connection)
            _raise_if_unreadable(path, problem)
    except BaseException:
        connection.close()
        raise
    if problem is None:
        return connection, found, []
    connection.close()
    more, gaps = make_sound(path)
    return _connect(path), [*found, Finding("file", problem), *more], gaps


def _raise_if_unreadable(path: Path, problem: str | None) -> None:
    """Raise a read error where the disk does not give a page back, which may pass."""
    if problem is not None and is_unreadable(error := read_error(path, corrupt(problem))):
        raise error


def make_sound(
    path: Path, complete: Complete | None = None, *, tolerant: bool = False
) -> tuple[list[Finding], list[Range]]:
    """Replace a damaged file, of which no connection is open; see ``salvage``."""
    try:
        return salvage(path, complete, tolerant=tolerant)
    except sqlite3.Error as error:
        if is_corrupt(error):
            raise refusal(error) from None
        raise


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = schema.connect(path)
        try:
            check_schema(connection)
            # A flipped bit in the header makes a file that cannot be written.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        if is_corrupt(error) and _is_ours(path):
            raise refusal(error) from None
        raise
    except UnicodeDecodeError as error:
        # SQLite's message has the damaged text in it.
        raise refusal(f"the description of the tables, {error}") from None
    return connection


def _is_ours(path: Path) -> bool:
    """Return whether a file begins nearly as a database does, or with a page of zeros."""
    with path.open("rb") as file:
        found = file.read(len(_MAGIC))
    same = sum(one == other for one, other in zip(found, _MAGIC, strict=False))
    return same >= len(_MAGIC) - 1 or not any(found)


def check_schema(connection: sqlite3.Connection) -> None:
    """Raise StartError where the tables are not those of this version. Raises sqlite3.Error."""
    wanted, there = schema.wanted_columns(), schema.columns_of(connection)
    for table, columns in wanted.items():
        if there.get(table) != columns:
            raise refusal(f"the table {table} is not described as it should be")
    roots = connection.execute(
        "SELECT count(*), count(DISTINCT rootpage) FROM sqlite_schema WHERE rootpage"
    ).fetchone()
    if roots[0] != roots[1]:
        raise refusal("two tables begin on the same page")


def find_problem(connection: sqlite3.Connection) -> str | None:
    """Return the first thing that SQLite finds wrong with a file, None if there is none."""
    return next(iter(find_problems(connection, 1)), None)


def find_problems(
    connection: sqlite3.Connection, most: int, *, tolerant: bool = False
) -> list[str]:
    """Return what SQLite finds wrong with the pages of a file and with its indexes.

    ``tolerant``: a page that the disk does not give back is one of them.
    """
    try:
        found = connection.execute(f"PRAGMA integrity_check({most})").fetchall()
    except sqlite3.DatabaseError as error:
        if is_trouble(error, tolerant=tolerant):
            raise
        return [str(error)]
    except UnicodeDecodeError as error:
        return [str(error)]
    lines = [line for (text,) in found for line in str(text).splitlines() if line != "ok"]
    told = [line for line in lines if not line.startswith("***")]
    return told[:most] or lines[:1]


def fill_up(path: Path) -> list[Finding]:
    """Make a file that was cut short as long as it was: what is missing reads as damaged pages.

    SQLite reads nothing at all of a file that is shorter than its header says.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return []  # the rest of the file may be in there
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        header = os.pread(file, _HEADER, 0)
        size = os.fstat(file).st_size
        wanted = _size_in_header(header)
        if not size < wanted <= size * _MOST_GROWN:
            return []
        os.ftruncate(file, wanted)
    finally:
        os.close(file)
    return [Finding("file", f"{size} bytes were left of {wanted}")]


def _size_in_header(header: bytes) -> int:
    """Return the size in bytes that the header of a file gives, 0 if it gives none.

    See https://www.sqlite.org/fileformat.html, section 1.3.
    """
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        return 0
    (page,) = unpack_from(">H", header, 16)
    page = 65536 if page == 1 else page
    changed, pages = unpack_from(">II", header, 24)
    (valid_for,) = unpack_from(">I", header, 92)
    plausible = page >= _SMALLEST_PAGE and page & (page - 1) == 0
    return int(page * pages) if plausible and changed == valid_for else 0
