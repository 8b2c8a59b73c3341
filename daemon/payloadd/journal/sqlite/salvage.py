"""Makes a sound file of a damaged one.

A page of SQLite's file that is damaged cannot be written around: the next row may belong into
it, a free page may be in use, an index may miss a row. So all that can be read is copied into a
new file, row by row as it is, and the new file takes the place of the old one, which is kept under
another name until the last dead letter of its damage is dropped (see ``damaged_files.py``).

* The new file is synced before it is renamed, and the log of the old one folded in before that:
  a crash leaves the old file or the new one, never a file with the log of another.
* What is missing is known from the counts of the old file; it becomes dead letters.
* What a running daemon knows is written into the new file before it is renamed.
* Where nothing of ``jobs``, ``batches`` or ``stored`` can be read, or where it is not known which
  rows are stored already, see ``inventory.refuse_unknown``, there is no telling what is in the
  store and what is not: nothing is changed, and StartError says what to do. A running daemon
  knows what is in ``stored`` and how many ``jobs`` there are.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from payloadd.files import sync_folder
from payloadd.journal.sqlite import damaged_files, inventory, small_tables
from payloadd.journal.sqlite.damage import Finding, corrupt, refusal
from payloadd.journal.sqlite.job_rows import merge
from payloadd.journal.sqlite.schema import FILE, create_copy, look_into
from payloadd.journal.sqlite.table_scan import Scan, is_trouble
from payloadd.journal.sqlite.transaction import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from payloadd.journal.sqlite.job_rows import Range

_NEW_FILE: Final = f"{FILE}.rebuilt"
_FAR: Final = 2**62
_JOB_COLUMNS: Final = "seq, id, payloads, lines, segment, start, size, stream, crc"
_HEAD_COLUMNS: Final = "seq, id, payloads, segment, start, size, stream"
_NEEDED: Final = frozenset({"jobs", "batches", "stored"})
_UNKNOWN_TO_MEMORY: Final = frozenset({"batches"})
_NEVER: Final = -1
"""A checksum that nothing has."""


Complete: TypeAlias = "Callable[[sqlite3.Connection, list[Range]], object]"
"""Writes into the copy what is known from elsewhere; gets the ranges where rows may be missing."""


def salvage(
    path: Path, complete: Complete | None = None, *, tolerant: bool = False
) -> tuple[list[Finding], list[Range]]:
    """Copy all that can be read of the journal at ``path`` into a new file, and use that.

    Returns what to tell, and the ranges of ``jobs`` in which rows may be missing. ``tolerant``:
    pages that the disk does not give back are damaged. No connection may be open. Raises
    StartError, OSError, sqlite3.Error; the old file is there then.
    """
    new = path.with_name(_NEW_FILE)
    new.unlink(missing_ok=True)
    try:
        with closing(look_into(path)) as old, closing(create_copy(new)) as copy:
            copy.execute("BEGIN")
            needed = _NEEDED if complete is None else _UNKNOWN_TO_MEMORY
            found, gaps = _copy_all(old, copy, needed, tolerant=tolerant)
            copy.execute("COMMIT")
            if complete is not None:
                complete(copy, gaps)
        _sync(new)
        found += _replace(path, new)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    return found, gaps


def _copy_all(
    old: sqlite3.Connection, copy: sqlite3.Connection, needed: frozenset[str], *, tolerant: bool
) -> tuple[list[Finding], list[Range]]:
    found: list[Finding] = []
    for table in (
        *(small_tables.BATCHES, small_tables.STORED, small_tables.LAYOUTS),
        *(small_tables.DEAD, small_tables.IDENTITY, small_tables.TOTALS),
    ):
        scan, ignored = _copy_table(old, copy, table, tolerant=tolerant)
        if table.name in needed:
            _refuse_nothing(scan, table.name)
        if ignored:
            reason = f"{ignored} rows are no rows of it and were removed"
            found.append(Finding(table.name, reason))
        elif scan.failed:
            reason = "some of its pages cannot be read"
            found.append(Finding(table.name, reason, *_ends(scan.gaps)))
    found += _copy_answers(old, copy, tolerant=tolerant)
    scan = Scan(old, "jobs", _JOB_COLUMNS, tolerant=tolerant)
    # In three parts: where a gap ends matters for where in it to look.
    following = _following(copy)
    for first, last in ((-_FAR, 0), (1, following - 1), (following, _FAR)):
        _fill(copy, "jobs", _JOB_COLUMNS, map(_tolerable, scan.rows(first, last)))
    _fill(copy, "jobs", _JOB_COLUMNS, _partial_rows(old, scan.partial))
    if "jobs" in needed:
        _refuse_nothing(scan, "jobs")
    gaps = merge([(first, last) for first, last in scan.gaps if first > 0 and last < _FAR])
    if "stored" in needed:
        # A running daemon knows the totals and what is in ``stored``.
        _refuse_unknown(copy, found)
    if scan.failed:
        found.append(Finding("jobs", "some of its pages cannot be read", *_ends(gaps)))
    return found, gaps


def _refuse_unknown(copy: sqlite3.Connection, found: list[Finding]) -> None:
    """Raise StartError where jobs that are in the store already could be stored again."""
    tables = (small_tables.BATCHES, small_tables.DEAD, small_tables.STORED, small_tables.TOTALS)
    checked = {table.name: small_tables.check(copy, table) for table in tables}
    lost = {one.table for one in found} | {name for name, one in checked.items() if one.lost}
    totals = None
    if "totals" not in lost and len(checked["totals"].rows) == 1:
        totals = Totals(*checked["totals"].rows[0])
    stored = [(first, last) for last, first in checked["stored"].rows]
    apart = [*small_tables.ranges(checked["dead"].rows), *stored]
    inventory.refuse_unknown(copy, totals, lost, apart)


def _following(copy: sqlite3.Connection) -> int:
    """Return the ``seq`` of the next job, as far as it is known."""
    following = 1
    for query in (
        "SELECT next FROM totals",
        "SELECT max(last) + 1 FROM batches",
        "SELECT max(last) + 1 FROM dead",
    ):
        for (number,) in copy.execute(query):
            if isinstance(number, int) and following < number < _FAR:
                following = number
    return following


def _copy_table(
    old: sqlite3.Connection, copy: sqlite3.Connection, table: small_tables.Table, *, tolerant: bool
) -> tuple[Scan, int]:
    """Copy the rows of a small table as they are; returns how many are no rows of it."""
    key = "rowid" if table in {small_tables.TOTALS, small_tables.IDENTITY} else table.columns[0]
    names = ", ".join((*table.columns, *table.kept, "crc"))
    columns = names if key != "rowid" else f"rowid, {names}"
    scan = Scan(old, table.name, columns, tolerant=tolerant)
    copy.execute(f"DELETE FROM {table.name}")  # noqa: S608 - names of ours
    ignored = _fill(copy, table.name, columns, scan.rows(-_FAR, _FAR))
    return scan, ignored


def _copy_answers(
    old: sqlite3.Connection, copy: sqlite3.Connection, *, tolerant: bool
) -> list[Finding]:
    """Copy the Idempotency-Keys, from both ends: their table has no integer key."""
    names = ", ".join((*small_tables.ANSWERS.columns, "crc"))
    failed = False
    for order in ("ASC", "DESC"):
        query = f"SELECT {names} FROM answers ORDER BY key {order}"  # noqa: S608 - names of ours
        try:
            _fill(copy, "answers", names, old.execute(query))
        except sqlite3.DatabaseError as error:
            if is_trouble(error, tolerant=tolerant):
                raise
            failed = True
        if not failed:
            return []
    return [Finding("answers", "some of its pages cannot be read: Idempotency-Keys are forgotten")]


def _fill(
    copy: sqlite3.Connection, table: str, columns: str, rows: Iterator[tuple[Any, ...]]
) -> int:
    """Insert rows; returns how many the table does not take: they are no rows of it."""
    ignored = 0
    marks = ", ".join("?" * (columns.count(",") + 1))
    statement = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - names of ours
    for row in rows:
        ignored += 1 - copy.execute(statement, row).rowcount
    return ignored


def _tolerable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row of ``jobs`` without the NULLs that a column does not take."""
    if None not in row[1:4] and row[7] is not None:
        return row
    seq, id_, payloads, lines, *place, stream, _ = row
    blank = (b"" if id_ is None else id_, payloads or 0, b"" if lines is None else lines)
    return (seq, *blank, *place, stream or 0, _NEVER)


def _partial_rows(old: sqlite3.Connection, seqs: list[int]) -> Iterator[tuple[Any, ...]]:
    """Yield rows whose lines cannot be read, with a checksum that says so."""
    query = f"SELECT {_HEAD_COLUMNS} FROM jobs WHERE seq = ?"  # noqa: S608 - names of ours
    for seq in seqs:
        row: tuple[Any, ...] = (seq, b"", 0, None, None, None, 0)
        with suppress(sqlite3.DatabaseError):
            row = old.execute(query, (seq,)).fetchone() or row
        seq_, id_, payloads, *place, stream = row
        yield _tolerable((seq_, id_, payloads, b"", *place, stream, _NEVER))


def _refuse_nothing(scan: Scan, table: str) -> None:
    """Raise StartError where nothing of a table can be read."""
    if scan.failed and not scan.found:
        raise refusal(f"nothing of the table {table} can be read")


def _ends(gaps: list[Range]) -> tuple[int | None, int | None]:
    """Return where the first gap begins and the last one ends, if that is known."""
    if not gaps:
        return None, None
    first, last = min(gap[0] for gap in gaps), max(gap[1] for gap in gaps)
    return first, last


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _replace(path: Path, new: Path) -> list[Finding]:
    """Put the new file into the place of the old one, whose log is folded in before.

    Returns what to tell.
    """
    with closing(look_into(path)) as old:
        busy, _, _ = old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    log = path.with_name(f"{path.name}-wal")
    if busy or (log.exists() and log.stat().st_size):
        raise corrupt("the log of the damaged file cannot be folded in")
    for end in ("-wal", "-shm"):
        path.with_name(f"{path.name}{end}").unlink(missing_ok=True)
    found = damaged_files.keep(path)
    new.replace(path)
    sync_folder(path.parent)
    return found
