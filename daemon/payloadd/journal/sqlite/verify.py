"""Reads and checks everything in a journal, beside a daemon that may be running.

Rows are read some thousand at a time, so that the daemon's log can be folded in between. A row
that does not check out is read again: the daemon may have moved it, or deleted it, meanwhile.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.journal.sqlite import high_water, identity, job_rows, small_tables
from payloadd.journal.sqlite.damage import CODE, DamagedRow, Finding, describe, is_corrupt
from payloadd.journal.sqlite.file_check import check_schema, find_problems
from payloadd.journal.sqlite.job_rows import IN_RANGE
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.table_scan import Scan, is_trouble, is_unreadable
from payloadd.journal.sqlite.transaction import Totals, count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.high_water_record import Mark
    from payloadd.journal.sqlite.job_rows import Row

_ROWS_PER_READ: Final = 2000
_FAR: Final = 2**62
_MOST_PROBLEMS: Final = 100
_PAGE: Final = f"{IN_RANGE} LIMIT {_ROWS_PER_READ}"
_AGAIN: Final = 2
_DEAD_BUT_DAMAGED: Final = f"""
    SELECT first, last, reason, jobs, payloads, id FROM dead WHERE code = '{CODE}'
"""  # noqa: S608 - a constant of ours
_MEMBERS: Final = """
    SELECT first, last, (SELECT count(*) FROM jobs WHERE seq BETWEEN first AND last) FROM batches
    WHERE NOT EXISTS (
        SELECT 1 FROM dead WHERE dead.first <= 0
        AND -dead.first >= batches.first AND -dead.last <= batches.last
    )
"""
"""Not those of which a dead letter says what is missing."""
_DEAD_MEMBERS: Final = """
    SELECT first, last, coalesce(jobs, last - first + 1),
        (SELECT count(*) FROM jobs WHERE seq BETWEEN first AND last)
    FROM dead WHERE first > 0
"""
_APART: Final = "SELECT first, last FROM dead UNION ALL SELECT first, last FROM stored"


def verify(connection: sqlite3.Connection, state_dir: Path) -> list[Finding]:
    """Return all that is damaged, or that the disk does not give back. Raises sqlite3.Error."""
    found: list[Finding] = []
    # Before the tables: a daemon that runs writes it behind each commit.
    mark = _read_mark(state_dir)
    try:
        check_schema(connection)
    except StartError as error:
        return [Finding("file", str(error))]
    except sqlite3.Error as error:
        return [Finding("file", _reason(error))]
    except UnicodeDecodeError as error:
        # SQLite's message has the damaged description of a table in it.
        return [Finding("file", str(error))]
    found += [
        Finding("file", problem)
        for problem in find_problems(connection, _MOST_PROBLEMS, tolerant=True)
    ]
    for check in (check_small_tables, _members, _totals):
        try:
            found += check(connection)
        except sqlite3.Error as error:
            found.append(Finding("file", _reason(error)))
    if mark is not None:
        found += _lost_commits(connection, mark)
    return [*found, *check_jobs(connection, state_dir), *_known(connection)]


def _read_mark(state_dir: Path) -> Mark | None:
    """Return how far the journal had come, None where that is not known."""
    with suppress(OSError):
        return high_water.read(state_dir / FILE)
    return None


def _lost_commits(connection: sqlite3.Connection, mark: Mark) -> list[Finding]:
    """Return what is missing because commits are gone from the file, now or at an earlier start."""
    found = []
    with suppress(sqlite3.Error):
        if identity.is_foreign(connection, mark):
            reason = f"{identity.FOREIGN}: payloads are missing, at least so many"
            return [Finding("file", reason, payloads=max(0, mark.held) + mark.missing)]
    if mark.missing or mark.foreign:
        reason = "were missing at an earlier start (PAYLOADS_MISSING)"
        found.append(Finding("file", f"payloads {reason}", payloads=mark.missing))
    with suppress(sqlite3.Error):
        for following, accepted in connection.execute("SELECT next, accepted FROM totals"):
            if isinstance(following, int) and isinstance(accepted, int) and mark.next > following:
                missing = max(0, min(mark.accepted - accepted, mark.held))
                reason = "commits are gone: journal.db-wal is missing, cut off or damaged"
                first, last = following, mark.next - 1
                found.append(
                    Finding("file", reason, first, last, last - first + 1, payloads=missing)
                )
    return found


def check_small_tables(connection: sqlite3.Connection) -> list[Finding]:
    """Return what does not match its checksum in the tables beside ``jobs``."""
    found = []
    for table in (
        *(small_tables.BATCHES, small_tables.DEAD, small_tables.STORED),
        *(small_tables.LAYOUTS, small_tables.ANSWERS),
        *(small_tables.IDENTITY, small_tables.TOTALS),
    ):
        key = table.columns[0]
        for row in small_tables.damaged(connection, table):
            shown = row[0].hex() if isinstance(row[0], bytes) else row[0]
            reason = f"the row with {key} {shown} does not match its checksum"
            found.append(Finding(table.name, reason))
    return found


def _members(connection: sqlite3.Connection) -> list[Finding]:
    """Return the batches and dead letters that refer to jobs which are not there."""
    found = []
    for first, last, there in connection.execute(_MEMBERS).fetchall():
        missing = last - first + 1 - there
        if missing:
            reason = f"{missing} members of this sealed batch are missing"
            found.append(Finding("batches", reason, first, last, missing))
    for first, last, jobs, there in connection.execute(_DEAD_MEMBERS).fetchall():
        if jobs != there:
            reason = f"{jobs - there} members of this dead letter are missing"
            found.append(Finding("dead", reason, first, last, jobs - there))
    return found


def _totals(connection: sqlite3.Connection) -> list[Finding]:
    """Compare the totals with what is there, at one moment."""
    connection.execute("BEGIN")
    try:
        row = connection.execute("SELECT next, jobs, payloads, bytes FROM totals").fetchone()
        if row is None:
            return [Finding("totals", "the row is missing")]
        counted = count(connection, connection.execute(_APART).fetchall())
    finally:
        connection.execute("ROLLBACK")
    totals = Totals(*row)
    told = (totals.jobs, totals.payloads, totals.bytes)
    if told == counted:
        return []
    reason = f"{counted.jobs} jobs are there, the totals say {totals.jobs}"
    missing = max(0, totals.jobs - counted.jobs)
    return [Finding("totals", reason, None, None, missing)]


def _known(connection: sqlite3.Connection) -> list[Finding]:
    """Return the damage that is known, as dead letters."""
    try:
        rows = connection.execute(_DEAD_BUT_DAMAGED).fetchall()
    except sqlite3.Error:
        return []
    return [
        Finding("dead", f"dead letter: {reason}", -last, -first, jobs or 0, payloads, id_)
        for first, last, reason, jobs, payloads, id_ in rows
    ]


def check_jobs(connection: sqlite3.Connection, state_dir: Path) -> list[Finding]:
    """Return the jobs that are not what was written, neighbours together."""
    found: list[Finding] = []
    for damaged in _damaged_pages(connection, state_dir):
        found += _together(damaged)
    return found


def _damaged_pages(connection: sqlite3.Connection, state_dir: Path) -> Iterator[list[DamagedRow]]:
    after = 0
    while True:
        try:
            rows = connection.execute(_PAGE, (after + 1, _FAR)).fetchall()
        except sqlite3.Error as error:
            if not (is_corrupt(error) or is_unreadable(error)):
                raise
            yield _beyond(connection, state_dir, after + 1)
            return
        if not rows:
            return
        yield _check(connection, state_dir, rows, _AGAIN)
        if rows[-1][0] <= after:
            yield [DamagedRow(after, None, 0, 0, "is followed by a row that comes before it")]
            return
        after = rows[-1][0]


def _beyond(connection: sqlite3.Connection, state_dir: Path, first: int) -> list[DamagedRow]:
    """Check all that can be read from ``first`` on, behind which a page is damaged."""
    scan = Scan(
        connection, "jobs", IN_RANGE.removeprefix("SELECT ").partition(" FROM")[0], tolerant=True
    )
    last = _newest(connection)
    damaged: list[DamagedRow] = []
    for row in scan.rows(first, last):
        damaged += job_rows.read_jobs([row], state_dir, tolerant=True)[1]
    damaged += [DamagedRow(seq, None, 0, 0, "cannot be read") for seq in scan.partial]
    for low, high in scan.gaps:
        reason = f"rows from number {low} to {high} cannot be read"
        damaged.append(DamagedRow(low, None, 0, 0, reason))
    return damaged


def _newest(connection: sqlite3.Connection) -> int:
    """Return the number of the newest job, one that no job has where that cannot be read."""
    for query in ("SELECT next - 1 FROM totals", "SELECT max(seq) FROM jobs"):
        with suppress(sqlite3.DatabaseError):
            for (number,) in connection.execute(query):
                if isinstance(number, int):
                    return number
    return _FAR


def _check(
    connection: sqlite3.Connection, state_dir: Path, rows: Sequence[Row], tries: int
) -> list[DamagedRow]:
    """Return the damaged rows among these that still are there as they were read."""
    _, damaged = job_rows.read_jobs(rows, state_dir, tolerant=True)
    if not damaged or not tries:
        return damaged
    again = [connection.execute(IN_RANGE, (row.seq, row.seq)).fetchone() for row in damaged]
    return _check(connection, state_dir, [row for row in again if row is not None], tries - 1)


def _together(damaged: Sequence[DamagedRow]) -> list[Finding]:
    found: list[Finding] = []
    for row in damaged:
        payloads = row.payloads if isinstance(row.payloads, int) else 0
        before = found[-1] if found else None
        if before and before.reason == row.reason and before.last == row.seq - 1:
            jobs, payloads = before.jobs + 1, before.payloads + payloads
            found[-1] = Finding("jobs", row.reason, before.first, row.seq, jobs, payloads)
        else:
            found.append(Finding("jobs", row.reason, row.seq, row.seq, 1, payloads))
    return found


def sentence(finding: Finding) -> str:
    """Return a finding as a line for people."""
    where = "" if finding.first is None else f"  {describe(finding.first, finding.last)}"
    counts = f"  ({finding.payloads} payloads)" if finding.payloads else ""
    return f"{finding.table:<8}{where}  {finding.reason}{counts}"


def _reason(error: sqlite3.Error) -> str:
    if is_trouble(error, tolerant=True):
        raise error
    return str(error)
