"""Check all tables and segments of a journal; a daemon may be using it.

Rows are read in portions of some thousand, so that the daemon can checkpoint its log in between. A
row that does not match its checksum is read again: the daemon may have moved or deleted it.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.journal.sqlite import (
    block_rows,
    high_water_record,
    identity,
    job_rows,
    small_tables,
    stream_rows,
)
from payloadd.journal.sqlite.block_format import read_head, rows_of
from payloadd.journal.sqlite.damage import CODE, DamagedRow, Finding, describe, is_corrupt
from payloadd.journal.sqlite.file_check import check_schema, find_problems
from payloadd.journal.sqlite.job_rows import IN_RANGE
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.table_scan import TableScan, is_other_error, is_unreadable
from payloadd.journal.sqlite.transaction import Totals, count
from payloadd.model.streams import count_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from payloadd.journal.sqlite.high_water_record import HighWaterRecord
    from payloadd.journal.sqlite.job_rows import Range, Row

_ROWS_PER_READ: Final = 2000
_LARGEST_SEQ: Final = 2**62
_MOST_PROBLEMS: Final = 100
_PAGE: Final = f"{IN_RANGE} LIMIT {_ROWS_PER_READ}"
_REREADS: Final = 2
_HIGHEST_COUNT: Final = f"SELECT max(seq & {count_of(-1)}) + 1 FROM jobs"  # noqa: S608 - a number
# Values of another type are damage too, which check_small_tables reports.
_DEAD_BUT_DAMAGED: Final = f"""
    SELECT first, last, reason, jobs, payloads, id FROM dead
    WHERE code = '{CODE}' AND typeof(last) = 'integer'
"""  # noqa: S608 - a constant of ours
_MEMBERS: Final = """
    SELECT first, last, (SELECT count(*) FROM jobs WHERE seq BETWEEN first AND last) FROM batches
    WHERE typeof(last) = 'integer' AND NOT EXISTS (
        SELECT 1 FROM dead WHERE dead.first <= 0
        AND -dead.first >= batches.first AND -dead.last <= batches.last
    )
"""
"""Without the batches whose missing members are in a dead letter already."""
_DEAD_MEMBERS: Final = """
    SELECT first, last, coalesce(jobs, last - first + 1),
        (SELECT count(*) FROM jobs WHERE seq BETWEEN first AND last)
    FROM dead WHERE first > 0 AND typeof(last) = 'integer' AND typeof(jobs) IN ('integer', 'null')
"""
_APART: Final = "SELECT first, last FROM dead UNION ALL SELECT first, last FROM stored"


def verify(connection: sqlite3.Connection, state_dir: Path) -> list[Finding]:
    """Return a finding for each piece of damage and each part that the disk cannot read.

    ``state_dir``: the folder of the journal, with its segments and ``journal.high``. Raises
    sqlite3.Error for errors other than damage.
    """
    found: list[Finding] = []
    # Before the tables: a running daemon writes the record after each commit.
    record = _read_record(state_dir)
    try:
        check_schema(connection)
    except StartError as error:
        return [Finding("file", str(error))]
    except sqlite3.Error as error:
        return [Finding("file", _reason(error))]
    except UnicodeDecodeError as error:
        # SQLite puts the damaged description of a table into its error message.
        return [Finding("file", str(error))]
    found += [
        Finding("file", problem)
        for problem in find_problems(connection, _MOST_PROBLEMS, tolerant=True)
    ]
    for check in (check_small_tables, _check_members, _check_totals):
        try:
            found += check(connection)
        except sqlite3.Error as error:
            found.append(Finding("file", _reason(error)))
    if record is not None:
        found += _lost_commits(connection, record)
    return [*found, *check_jobs(connection, state_dir), *_known_damage(connection)]


def _read_record(state_dir: Path) -> HighWaterRecord | None:
    """Return the last record of ``journal.high``, None where it cannot be read."""
    with suppress(OSError):
        return high_water_record.read(state_dir / FILE)
    return None


def _lost_commits(connection: sqlite3.Connection, record: HighWaterRecord) -> list[Finding]:
    """Return the findings of commits that are lost now or were found lost by an earlier start."""
    found = []
    with suppress(sqlite3.Error):
        if identity.is_foreign(connection, record.journal):
            reason = f"{identity.FOREIGN}: at least so many payloads are missing"
            return [Finding("file", reason, payloads=max(0, record.held) + record.missing)]
    if record.missing or record.foreign:
        reason = "were missing at an earlier start (PAYLOADS_MISSING)"
        found.append(Finding("file", f"payloads {reason}", payloads=record.missing))
    with suppress(sqlite3.Error):
        for following, accepted in connection.execute("SELECT next, accepted FROM totals"):
            if isinstance(following, int) and isinstance(accepted, int) and record.next > following:
                missing = max(0, min(record.accepted - accepted, record.held))
                reason = "commits are lost: journal.db-wal is missing, cut off or damaged"
                jobs = record.next - following
                # With several streams it is not known how the jobs are divided among them.
                alone = len(stream_rows.read(connection)) == 1
                first, last = (following, record.next - 1) if alone else (None, None)
                found.append(Finding("file", reason, first, last, jobs, payloads=missing))
    return found


def check_small_tables(connection: sqlite3.Connection) -> list[Finding]:
    """Return a finding for each damaged row of the tables other than ``jobs``.

    Raises sqlite3.Error.
    """
    found = []
    for table in (
        *(small_tables.BATCHES, small_tables.DEAD, small_tables.STORED),
        *(small_tables.LAYOUTS, small_tables.ANSWERS),
        *(small_tables.STREAMS, small_tables.SEGMENTS),
        *(small_tables.IDENTITY, small_tables.TOTALS),
    ):
        key = table.columns[0]
        for row in small_tables.damaged(connection, table):
            shown = row[0].hex() if isinstance(row[0], bytes) else row[0]
            reason = f"the row with {key} {shown} does not match its checksum"
            found.append(Finding(table.name, reason))
        absent = small_tables.missing_ends(connection, table)
        found += [Finding(table.name, small_tables.missing_end(table, row)) for row in absent]
    return found


def _check_members(connection: sqlite3.Connection) -> list[Finding]:
    """Return the batches and dead letters of which members are missing."""
    connection.execute("BEGIN")
    try:
        in_blocks = sorted((one.first, one.last) for one in block_rows.waiting(connection, ()))
        return _missing_members(connection, in_blocks)
    finally:
        connection.execute("ROLLBACK")


def _missing_members(connection: sqlite3.Connection, in_blocks: Sequence[Range]) -> list[Finding]:
    found = []
    for first, last, present in connection.execute(_MEMBERS).fetchall():
        missing = last - first + 1 - present
        if missing:
            missing -= _overlap(in_blocks, first, last)
        if missing:
            reason = f"{missing} members of this sealed batch are missing"
            found.append(Finding("batches", reason, first, last, missing))
    for first, last, jobs, present in connection.execute(_DEAD_MEMBERS).fetchall():
        if jobs != present:
            reason = f"{jobs - present} members of this dead letter are missing"
            found.append(Finding("dead", reason, first, last, jobs - present))
    return found


def _overlap(ranges: Sequence[Range], first: int, last: int) -> int:
    """Return how many numbers of a range are in ``ranges``, which are in order."""
    count = 0
    for low, high in ranges[max(0, bisect_right(ranges, (first, first)) - 1) :]:
        if low > last:
            break
        count += max(0, min(high, last) - max(low, first) + 1)
    return count


def _check_totals(connection: sqlite3.Connection) -> list[Finding]:
    """Compare the totals with the rows of ``jobs``, in one transaction."""
    connection.execute("BEGIN")
    try:
        row = connection.execute("SELECT next, jobs, payloads, bytes FROM totals").fetchone()
        if row is None:
            return [Finding("totals", "the row is missing")]
        counted = count(connection, connection.execute(_APART).fetchall())
    finally:
        connection.execute("ROLLBACK")
    totals = Totals(*row)
    if (totals.jobs, totals.payloads, totals.bytes) == counted:
        return []
    reason = f"the totals count {totals.jobs} jobs, the table has {counted.jobs}"
    missing = max(0, totals.jobs - counted.jobs)
    return [Finding("totals", reason, None, None, missing)]


def _known_damage(connection: sqlite3.Connection) -> list[Finding]:
    """Return a finding for each dead letter with the code DAMAGED."""
    try:
        rows = connection.execute(_DEAD_BUT_DAMAGED).fetchall()
    except sqlite3.Error:
        return []
    return [
        Finding("dead", f"dead letter: {reason}", -last, -first, jobs or 0, payloads, id_)
        for first, last, reason, jobs, payloads, id_ in rows
    ]


def check_jobs(connection: sqlite3.Connection, state_dir: Path) -> list[Finding]:
    """Return the damaged jobs, one finding for neighbours with the same reason.

    Raises sqlite3.Error.
    """
    # Blocks first: a running daemon moves jobs from blocks into rows.
    found = _check_blocks(connection)
    for damaged in _damaged_rows(connection, state_dir):
        found += _join_neighbours(damaged)
    return found


def _check_blocks(connection: sqlite3.Connection) -> list[Finding]:
    """Return the damage of blocks, of those jobs too that are settled."""
    found: list[Finding] = []
    try:
        numbers = connection.execute("SELECT number FROM blocks ORDER BY number").fetchall()
    except sqlite3.Error as error:
        return [Finding("blocks", _reason(error))]
    for (number,) in numbers:
        try:
            row = connection.execute(block_rows.ONE, (number,)).fetchone()
        except sqlite3.Error as error:
            found.append(Finding("blocks", f"block {number} cannot be read: {_reason(error)}"))
            continue
        if row is None:
            continue  # deleted meanwhile
        head = read_head(*row[:3])
        if head is None:
            found.append(Finding("blocks", f"the list of the jobs in block {number} is damaged"))
        else:
            rows = list(rows_of(head, row[3]))
            found += _join_neighbours(job_rows.read_jobs(rows, Path())[1])
    return found


def _damaged_rows(connection: sqlite3.Connection, state_dir: Path) -> Iterator[list[DamagedRow]]:
    after = 0
    while True:
        try:
            rows = connection.execute(_PAGE, (after + 1, _LARGEST_SEQ)).fetchall()
        except sqlite3.Error as error:
            if not (is_corrupt(error) or is_unreadable(error)):
                raise
            yield _check_readable(connection, state_dir, after + 1)
            return
        if not rows:
            return
        yield _check(connection, state_dir, rows, _REREADS)
        if rows[-1][0] <= after:
            yield [DamagedRow(after, None, 0, 0, "is followed by a row that comes before it")]
            return
        after = rows[-1][0]


def _check_readable(
    connection: sqlite3.Connection, state_dir: Path, first: int
) -> list[DamagedRow]:
    """Check all readable rows from ``first`` on, where a page is damaged."""
    scan = TableScan(
        connection, "jobs", IN_RANGE.removeprefix("SELECT ").partition(" FROM")[0], tolerant=True
    )
    damaged: list[DamagedRow] = []
    streams, following = _numbers(connection)
    for low, high in stream_rows.ranges(streams, following):
        if high >= first:
            for row in scan.rows(max(low, first), high):
                damaged += job_rows.read_jobs([row], state_dir, tolerant=True)[1]
    damaged += [DamagedRow(seq, None, 0, 0, "cannot be read") for seq in scan.partial]
    for low, high in scan.gaps:
        reason = f"rows from number {low} to {high} cannot be read"
        damaged.append(DamagedRow(low, None, 0, 0, reason))
    return damaged


def _numbers(connection: sqlite3.Connection) -> tuple[list[int], int]:
    """Return the numbers of the streams, and a count that no job has reached.

    As far as they can be read.
    """
    streams: list[int] = []
    with suppress(sqlite3.DatabaseError):
        streams = list(stream_rows.read(connection))
    for query in ("SELECT next FROM totals", _HIGHEST_COUNT):
        with suppress(sqlite3.DatabaseError):
            for (number,) in connection.execute(query):
                if isinstance(number, int) and 0 < number <= count_of(-1):
                    return streams, number
    return streams, count_of(-1)


def _check(
    connection: sqlite3.Connection, state_dir: Path, rows: Sequence[Row], tries: int
) -> list[DamagedRow]:
    """Return the damaged rows among ``rows`` that are still damaged when they are read again."""
    _, damaged = job_rows.read_jobs(rows, state_dir, tolerant=True)
    if not damaged or not tries:
        return damaged
    again = [connection.execute(IN_RANGE, (row.seq, row.seq)).fetchone() for row in damaged]
    return _check(connection, state_dir, [row for row in again if row is not None], tries - 1)


def _join_neighbours(damaged: Sequence[DamagedRow]) -> list[Finding]:
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


def format_finding(finding: Finding) -> str:
    """Return a finding as a line of text for an operator."""
    where = "" if finding.first is None else f"  {describe(finding.first, finding.last)}"
    counts = f"  ({finding.payloads} payloads)" if finding.payloads else ""
    return f"{finding.table:<8}{where}  {finding.reason}{counts}"


def _reason(error: sqlite3.Error) -> str:
    """Return the text of an error of a damaged file; raise any other error."""
    if is_other_error(error, tolerant=True):
        raise error
    return str(error)
