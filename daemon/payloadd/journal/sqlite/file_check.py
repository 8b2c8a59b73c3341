"""Open a journal and check its file; replace a damaged file by a sound copy.

SQLite notices a damaged page when it reads the page, and some damage not at all. So a small file
is checked as a whole at each start. In a larger file each page is checked when it is read, and
all pages by ``payloadd journal verify``.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from struct import unpack_from
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite import schema
from payloadd.journal.sqlite.damage import Finding, corrupt, is_corrupt, start_refusal
from payloadd.journal.sqlite.read_errors import read_error, retry_reads
from payloadd.journal.sqlite.salvage import salvage
from payloadd.journal.sqlite.table_scan import is_other_error, is_unreadable

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.salvage import Complete

MOST_CHECKED: Final = 64 * 2**20
"""Bytes of the largest file that is checked as a whole at a start: takes at most a second."""
_MAGIC: Final = b"SQLite format 3\0"
_HEADER: Final = 100
_SMALLEST_PAGE: Final = 512
_MOST_GROWTH: Final = 16
"""Largest factor by which a cut file is extended: a smaller rest is not worth it, or the header is
wrong."""


def open_sound(path: Path) -> tuple[sqlite3.Connection, list[Finding], list[Range]]:
    """Open the journal at ``path``, and replace its file first where it is damaged.

    Returns the connection, the findings, and the ranges of ``seq`` in which jobs may be missing.
    Raises OSError, sqlite3.Error, and StartError where a damaged file cannot be replaced.
    """
    try:
        return retry_reads(lambda: _open_sound(path), path.parent)
    except sqlite3.Error as error:
        if not is_unreadable(error):
            raise
        problem = str(error)
    found, gaps = make_sound(path, tolerant=True)
    return _connect(path), [Finding("file", problem), *found], gaps


def _open_sound(path: Path) -> tuple[sqlite3.Connection, list[Finding], list[Range]]:
    found = extend_cut_file(path)
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
    """Raise a read error where the disk cannot read a page, which may be temporary."""
    if problem is not None and is_unreadable(error := read_error(path, corrupt(problem))):
        raise error


def make_sound(
    path: Path, complete: Complete | None = None, *, tolerant: bool = False
) -> tuple[list[Finding], list[Range]]:
    """Replace a damaged file by a copy of its readable rows.

    Arguments, results and errors are those of ``salvage``; errors of a damaged file become
    StartError.
    """
    try:
        return salvage(path, complete, tolerant=tolerant)
    except sqlite3.Error as error:
        if is_corrupt(error):
            raise start_refusal(error) from None
        raise


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = schema.connect(path)
        try:
            check_schema(connection)
            # A flipped bit in the header can make SQLite treat the file as read-only.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        if is_corrupt(error) and _is_ours(path):
            raise start_refusal(error) from None
        raise
    except UnicodeDecodeError as error:
        # SQLite puts the damaged text into its error message.
        raise start_refusal(f"the description of the tables, {error}") from None
    return connection


def _is_ours(path: Path) -> bool:
    """Return whether a file begins like a database, up to one wrong byte, or with zeros."""
    with path.open("rb") as file:
        found = file.read(len(_MAGIC))
    same = sum(one == other for one, other in zip(found, _MAGIC, strict=False))
    return same >= len(_MAGIC) - 1 or not any(found)


def check_schema(connection: sqlite3.Connection) -> None:
    """Check that the file has the tables and columns of this version.

    Raises StartError where it has not, and sqlite3.Error.
    """
    expected, found = schema.expected_columns(), schema.columns_of(connection)
    for table, columns in expected.items():
        if found.get(table) != columns:
            raise start_refusal(f"the description of the table {table} is wrong")
    roots = connection.execute(
        "SELECT count(*), count(DISTINCT rootpage) FROM sqlite_schema WHERE rootpage"
    ).fetchone()
    if roots[0] != roots[1]:
        raise start_refusal("two tables begin on the same page")


def find_problem(connection: sqlite3.Connection) -> str | None:
    """Return the first problem that SQLite finds in a file, None if there is none.

    Reads the whole file. Raises sqlite3.Error.
    """
    return next(iter(find_problems(connection, 1)), None)


def find_problems(
    connection: sqlite3.Connection, most: int, *, tolerant: bool = False
) -> list[str]:
    """Return up to ``most`` problems that SQLite finds in the pages and indexes of a file.

    ``tolerant``: a page that the disk cannot read is a problem, not an error. Raises sqlite3.Error.
    See https://www.sqlite.org/pragma.html#pragma_integrity_check.
    """
    try:
        found = connection.execute(f"PRAGMA integrity_check({most})").fetchall()
    except sqlite3.DatabaseError as error:
        if is_other_error(error, tolerant=tolerant):
            raise
        return [str(error)]
    except UnicodeDecodeError as error:
        return [str(error)]
    lines = [line for (text,) in found for line in str(text).splitlines() if line != "ok"]
    # Lines with "***" are headings.
    problems = [line for line in lines if not line.startswith("***")]
    return problems[:most] or lines[:1]


def extend_cut_file(path: Path) -> list[Finding]:
    """Extend a file that was cut short to the size in its header, so that its rest can be read.

    The missing pages become damaged pages. SQLite reads nothing of a file that is shorter than its
    header says. Returns a finding if the file was cut. Raises OSError.
    """
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:
        return []  # the log may contain the missing pages
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    except OSError as error:
        if error.errno == errno.ELOOP:
            return []  # refused when it is opened
        raise
    try:
        header = os.pread(file, _HEADER, 0)
        size = os.fstat(file).st_size
        whole = _size_in_header(header)
        if not size < whole <= size * _MOST_GROWTH:
            return []
        os.ftruncate(file, whole)
    finally:
        os.close(file)
    return [Finding("file", f"{size} bytes were left of {whole}")]


def _size_in_header(header: bytes) -> int:
    """Return the size in bytes that the header of a file contains, 0 where that is not valid.

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
