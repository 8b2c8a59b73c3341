"""Replace a damaged database file by a copy of all its readable rows.

A damaged page of SQLite's file cannot be worked around: the next row may belong into it, a free
page may be in use, an index may miss a row. So all readable rows are copied unchanged into a new
file, and the new file replaces the old one. The old file is kept as ``journal.db.damaged-1``,
``-2`` and so on. Each is as large as the journal was, so only the newest few are kept; all are
removed with the last dead letter of damaged rows.

* The new file is synced before it is renamed, and the log of the old file is checkpointed before
  that: a crash leaves the old file or the new one, never a file with the log of another file.
* The counts of the old file show how many jobs are missing; these become dead letters.
* State that a running daemon has in memory is written into the new file before it is renamed.
* Where nothing of ``jobs`` can be read, or where it is not known which rows are stored already (see
  ``inventory.refuse_unknown``), stored and waiting jobs cannot be distinguished. Then nothing is
  changed, and the text of StartError lists the ways out. A running daemon has the ranges of
  ``stored`` and the number of ``jobs`` in memory.
* A table ``jobs`` of which nothing can be read is made anew, without rows, where the totals show
  that all jobs are in blocks: its one page is damaged, and most of the time it has no rows.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from payloadd.files import sync_folder
from payloadd.journal.sqlite import block_rows, inventory, small_tables, stream_rows
from payloadd.journal.sqlite.block_format import WRONG_CHECKSUM
from payloadd.journal.sqlite.damage import Finding, corrupt, start_refusal
from payloadd.journal.sqlite.files_in_use import LOG_ENDS, put_aside
from payloadd.journal.sqlite.job_rows import is_surely_sound, merge
from payloadd.journal.sqlite.schema import FILE, create_copy, open_existing
from payloadd.journal.sqlite.table_scan import TableScan, is_other_error
from payloadd.journal.sqlite.transaction import Totals
from payloadd.model.streams import STREAM_BITS, count_of, stream_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from payloadd.journal.sqlite.job_rows import Range

MOST_DAMAGED_FILES: Final = 3
"""Damaged files that are kept at most."""
_DAMAGED_PREFIX: Final = f"{FILE}.damaged-"
_NEW_FILE: Final = f"{FILE}.rebuilt"
_LARGEST_KEY: Final = 2**62
_JOB_COLUMNS: Final = "seq, id, payloads, lines, segment, start, size, stream, crc"
_HEAD_COLUMNS: Final = "seq, id, payloads, segment, start, size, stream"
_BLOCK_HEAD: Final = "SELECT number, crc, head, x'' FROM blocks WHERE number = ?"

_NUMBERS: Final = (
    "SELECT next FROM totals",
    f"SELECT max(last) + 1 FROM batches WHERE first <= last GROUP BY last >> {STREAM_BITS}",  # noqa: S608 - ours
    f"SELECT max(last) + 1 FROM dead GROUP BY last >> {STREAM_BITS}",  # noqa: S608 - as above
    "SELECT first FROM layouts",
    f"SELECT number << {STREAM_BITS} FROM streams",  # noqa: S608 - as above
)
"""Numbers that are not below those of the jobs in the same table."""

Complete: TypeAlias = "Callable[[sqlite3.Connection, list[Range]], object]"
"""Writes state that memory has into the copy; gets the ranges in which rows may be missing."""


def salvage(
    path: Path, complete: Complete | None = None, *, tolerant: bool = False
) -> tuple[list[Finding], list[Range]]:
    """Copy all readable rows of the journal at ``path`` into a new file, and replace the old one.

    ``complete``: called with the copy before it replaces the old file. ``tolerant``: pages that the
    disk cannot read count as damaged. No connection to the file may be open.

    Returns the findings, and the ranges of ``seq`` in which rows of ``jobs`` may be missing. Raises
    StartError, OSError, sqlite3.Error; then the old file is still in place.
    """
    new = path.with_name(_NEW_FILE)
    new.unlink(missing_ok=True)
    try:
        with closing(open_existing(path)) as old, closing(create_copy(new)) as copy:
            copy.execute("BEGIN")
            at_start = complete is None
            found, gaps = _copy_all(old, copy, at_start=at_start, tolerant=tolerant)
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


def recreate(path: Path, connection: sqlite3.Connection, complete: Complete) -> str | None:
    """Write the journal that ``connection`` has open to ``path``, where its file is not any more.

    ``complete``: called with the copy before it is renamed to ``path``. Returns the new name of the
    file that was there, None if there was none. Raises OSError, sqlite3.Error, StartError.
    """
    new = path.with_name(_NEW_FILE)
    new.unlink(missing_ok=True)
    with closing(create_copy(new)) as copy:
        copy.execute("BEGIN")
        _, gaps = _copy_all(connection, copy, at_start=False, tolerant=False)
        copy.execute("COMMIT")
        complete(copy, gaps)
    _sync(new)
    replaced = put_aside(path)
    # The log of the deleted file: SQLite would apply it to the new one.
    for end in LOG_ENDS:
        path.with_name(path.name + end).unlink(missing_ok=True)
    new.replace(path)
    sync_folder(path.parent)
    return replaced


def remove_unfinished(folder: Path) -> None:
    """Remove the copy of a repair that did not end. Raises OSError."""
    (folder / _NEW_FILE).unlink(missing_ok=True)


def _copy_all(
    old: sqlite3.Connection, copy: sqlite3.Connection, *, at_start: bool, tolerant: bool
) -> tuple[list[Finding], list[Range]]:
    found: list[Finding] = []
    for table in (
        *(small_tables.BATCHES, small_tables.STORED, small_tables.LAYOUTS),
        *(small_tables.DEAD, small_tables.IDENTITY, small_tables.TOTALS),
        *(small_tables.STREAMS, small_tables.SEGMENTS),
    ):
        scan, ignored = _copy_table(old, copy, table, tolerant=tolerant)
        if ignored:
            reason = f"{ignored} rows do not fit into it and were removed"
            found.append(Finding(table.name, reason))
        elif scan.failed:
            reason = "some of its pages cannot be read"
            found.append(Finding(table.name, reason, *_ends(scan.gaps)))
    found += _copy_answers(old, copy, tolerant=tolerant)
    scan = TableScan(old, "jobs", _JOB_COLUMNS, tolerant=tolerant)
    # Several scans: the scan of a gap halves it, so its ends must not lie far beyond the rows.
    known = stream_rows.ranges(_streams(copy), _following(copy))
    for first, last in ((-_LARGEST_KEY, 0), *known):
        _fill_jobs(copy, map(_without_nulls, scan.rows(first, last)))
    _fill(copy, "jobs", _JOB_COLUMNS, _partial_rows(old, scan.partial))
    found += _copy_blocks(old, copy, tolerant=tolerant)
    gaps = merge([(first, last) for first, last in scan.gaps if first > 0 and last < _LARGEST_KEY])
    reason = "some of its pages cannot be read"
    if at_start:
        # A running daemon has the totals and the ranges of ``stored`` in memory.
        none_read = scan.failed and not scan.found
        _refuse_unknown(copy, found, none_read=none_read)
        if none_read:
            gaps, reason = [], "no row can be read, and no job that waits was in it"
    elif any(one.table == "batches" for one in found):
        raise start_refusal("no other part shows which jobs are sealed, and may be stored")
    if scan.failed:
        found.append(Finding("jobs", reason, *_ends(gaps)))
    return found, gaps


def _copy_blocks(
    old: sqlite3.Connection, copy: sqlite3.Connection, *, tolerant: bool
) -> list[Finding]:
    """Copy the jobs of blocks into rows of ``jobs``; jobs whose lines are lost are damaged."""
    scan = TableScan(old, "blocks", block_rows.COLUMNS, tolerant=tolerant)
    following = max(2, _following(copy))
    for first, last in (
        (-_LARGEST_KEY, 0),
        (1, following - 1),
        (following, _LARGEST_KEY),
    ):
        _fill(copy, "blocks", block_rows.COLUMNS, map(_block, scan.rows(first, last)))
    for number in scan.partial:
        row: tuple[Any, ...] = (number, WRONG_CHECKSUM, b"", b"")
        with suppress(sqlite3.DatabaseError):
            row = old.execute(_BLOCK_HEAD, (number,)).fetchone() or row
        _fill(copy, "blocks", block_rows.COLUMNS, iter([_block(row)]))
    found = block_rows.unpack_in_transaction(copy)
    if scan.failed:
        found.append(Finding("blocks", "some of its pages cannot be read"))
    return found


def _block(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row of ``blocks`` with other values for NULLs that the table rejects."""
    number, crc, head, lines = row
    return (
        number,
        WRONG_CHECKSUM if crc is None else crc,
        b"" if head is None else head,
        b"" if lines is None else lines,
    )


def _refuse_unknown(copy: sqlite3.Connection, found: list[Finding], *, none_read: bool) -> None:
    """Raise StartError where jobs that are in the store already could be stored again.

    ``none_read``: no row of ``jobs`` can be read. Raises StartError where it may have had any.
    """
    tables = (small_tables.BATCHES, small_tables.DEAD, small_tables.STORED, small_tables.TOTALS)
    checked = {table.name: small_tables.check(copy, table) for table in tables}
    lost = {one.table for one in found}
    lost |= {name for name, one in checked.items() if not one.complete}
    totals = None
    if "totals" not in lost and len(checked["totals"].rows) == 1:
        totals = Totals(*checked["totals"].rows[0])
    stored = [(first, last) for last, first in checked["stored"].rows]
    dead = small_tables.ranges(checked["dead"].rows)
    if none_read and not inventory.are_all_there(copy, totals, lost, dead, stored):
        raise start_refusal("no row of the table jobs can be read")
    inventory.refuse_unknown(copy, totals, lost, [*dead, *stored])


def _following(copy: sqlite3.Connection) -> int:
    """Return a count that no job has reached (see ``Totals``), as far as it is known."""
    following = 1
    for query in _NUMBERS:
        for (number,) in copy.execute(query):
            if isinstance(number, int) and 0 < number < _LARGEST_KEY:
                following = max(following, count_of(number))
    return following


def _streams(copy: sqlite3.Connection) -> set[int]:
    """Return the numbers of the streams that any small table names."""
    return {
        stream_of(number)
        for query in _NUMBERS[1:]
        for (number,) in copy.execute(query)
        if isinstance(number, int) and 0 < number < _LARGEST_KEY
    }


def _copy_table(
    old: sqlite3.Connection, copy: sqlite3.Connection, table: small_tables.Table, *, tolerant: bool
) -> tuple[TableScan, int]:
    """Copy the rows of a small table unchanged; return the scan and the number of rejected rows."""
    key = "rowid" if table in {small_tables.TOTALS, small_tables.IDENTITY} else table.columns[0]
    names = ", ".join((*table.columns, *table.kept, "crc"))
    columns = names if key != "rowid" else f"rowid, {names}"
    scan = TableScan(old, table.name, columns, tolerant=tolerant)
    copy.execute(f"DELETE FROM {table.name}")  # noqa: S608 - names of ours
    ignored = _fill(copy, table.name, columns, scan.rows(-_LARGEST_KEY, _LARGEST_KEY))
    return scan, ignored


def _copy_answers(
    old: sqlite3.Connection, copy: sqlite3.Connection, *, tolerant: bool
) -> list[Finding]:
    """Copy the Idempotency-Keys, from both ends: TableScan needs an integer key."""
    names = ", ".join((*small_tables.ANSWERS.columns, "crc"))
    failed: list[sqlite3.Error] = []
    for order in ("ASC", "DESC"):
        query = f"SELECT {names} FROM answers ORDER BY key {order}"  # noqa: S608 - names of ours
        _fill(copy, "answers", names, _until_damage(old, query, failed, tolerant=tolerant))
        if not failed:
            return []
    return [Finding("answers", "some of its pages cannot be read: Idempotency-Keys are forgotten")]


def _until_damage(
    old: sqlite3.Connection, query: str, failed: list[sqlite3.Error], *, tolerant: bool
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a query up to a damaged page, and add the error to ``failed``."""
    try:
        yield from old.execute(query)
    except sqlite3.DatabaseError as error:
        if is_other_error(error, tolerant=tolerant):
            raise
        failed.append(error)


def _fill(
    copy: sqlite3.Connection, table: str, columns: str, rows: Iterator[tuple[Any, ...]]
) -> int:
    """Insert rows; return the number of rows that a constraint of the table rejects."""
    ignored = 0
    marks = ", ".join("?" * (columns.count(",") + 1))
    statement = f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - names of ours
    for row in rows:
        ignored += 1 - copy.execute(statement, row).rowcount
    return ignored


def _fill_jobs(copy: sqlite3.Connection, rows: Iterator[tuple[Any, ...]]) -> None:
    """Insert rows of jobs; of two with the same number a sound one is kept, if there is one.

    A misplaced page of another table looks like rows of jobs.
    """
    marks = ", ".join("?" * (_JOB_COLUMNS.count(",") + 1))
    into = f"INTO jobs ({_JOB_COLUMNS}) VALUES ({marks})"
    for row in rows:
        inserted = copy.execute(f"INSERT OR IGNORE {into}", row).rowcount
        if not inserted and is_surely_sound(row):
            copy.execute(f"INSERT OR REPLACE {into}", row)


def _without_nulls(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row of ``jobs`` with other values for NULLs that the table rejects."""
    if None not in row[1:4] and row[7] is not None:
        return row
    seq, id_, payloads, lines, *place, stream, _ = row
    replaced = (b"" if id_ is None else id_, payloads or 0, b"" if lines is None else lines)
    return (seq, *replaced, *place, stream or 0, WRONG_CHECKSUM)


def _partial_rows(old: sqlite3.Connection, seqs: list[int]) -> Iterator[tuple[Any, ...]]:
    """Yield rows whose lines cannot be read, with a checksum that marks them as damaged."""
    query = f"SELECT {_HEAD_COLUMNS} FROM jobs WHERE seq = ?"  # noqa: S608 - names of ours
    for seq in seqs:
        row: tuple[Any, ...] = (seq, b"", 0, None, None, None, 0)
        with suppress(sqlite3.DatabaseError):
            row = old.execute(query, (seq,)).fetchone() or row
        seq_, id_, payloads, *place, stream = row
        yield _without_nulls((seq_, id_, payloads, b"", *place, stream, WRONG_CHECKSUM))


def _ends(gaps: list[Range]) -> tuple[int | None, int | None]:
    """Return the start of the first gap and the end of the last one, None and None without gaps."""
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
    """Checkpoint the log of the old file, keep that under another name, rename the new file."""
    with closing(open_existing(path)) as old:
        busy, _, _ = old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    log = path.with_name(f"{path.name}-wal")
    if busy or (log.exists() and log.stat().st_size):
        raise corrupt("the log of the damaged file cannot be checkpointed")
    for end in LOG_ENDS:
        path.with_name(path.name + end).unlink(missing_ok=True)
    found = _keep_damaged(path)
    new.replace(path)
    sync_folder(path.parent)
    return found


def _keep_damaged(path: Path) -> list[Finding]:
    """Link the journal at ``path`` to a new name and remove the oldest damaged files."""
    kept = damaged_files(path.parent)
    number = _number(kept[-1]) + 1 if kept else 1
    new = path.with_name(f"{_DAMAGED_PREFIX}{number}")
    os.link(path, new)
    found = [Finding("file", f"the damaged file is kept as {new.name}")]
    for old in [*kept, new][:-MOST_DAMAGED_FILES]:
        old.unlink(missing_ok=True)
        reason = f"{old.name} was removed: {MOST_DAMAGED_FILES} damaged files are kept"
        found.append(Finding("file", reason))
    return found


def damaged_files(folder: Path) -> list[Path]:
    """Return the damaged files that are kept in ``folder``, the oldest first. Raises OSError."""
    found = (path for path in folder.iterdir() if path.name.startswith(_DAMAGED_PREFIX))
    numbered = (path for path in found if path.name.removeprefix(_DAMAGED_PREFIX).isdecimal())
    return sorted(numbered, key=_number)


def remove_damaged_files(folder: Path) -> None:
    """Remove all damaged files that are kept in ``folder``. Raises OSError."""
    for path in damaged_files(folder):
        path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(_DAMAGED_PREFIX))
