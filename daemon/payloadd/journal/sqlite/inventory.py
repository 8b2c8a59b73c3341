"""Check and repair all tables other than ``jobs``, and find missing jobs by their counts.

Rows show only which jobs are in the file. That a job is missing is known from the counts in
``totals``. Functions raise sqlite3.Error, and write in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from payloadd.journal.sqlite import block_rows, damage, job_rows, small_tables, stream_rows
from payloadd.journal.sqlite.damage import DamagedRow, Finding
from payloadd.journal.sqlite.small_tables import BATCHES, DEAD, IDENTITY, STORED, TOTALS, ranges
from payloadd.journal.sqlite.transaction import Count, Totals, count
from payloadd.model.streams import MOST_NUMBERS, count_of, first_seq, last_seq

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Container, Iterable, Sequence

    from payloadd.journal.sqlite.job_rows import Range

_COLUMNS: Final = "seq, id, payloads, lines, segment, start, size, stream, crc"
_COUNT: Final = "SELECT count(*) FROM jobs WHERE seq BETWEEN ? AND ?"
_NEWEST: Final = "SELECT max(seq) FROM jobs WHERE seq BETWEEN ? AND ?"
_BURIED: Final = "SELECT 1 FROM dead WHERE first <= 0 AND -first >= ? AND -last <= ?"
_DEAD_MEMBERS: Final = """
    SELECT first, last, coalesce(dead.jobs, last - first + 1), dead.payloads,
        count(seq), total(jobs.payloads), total(coalesce(size, length(lines)))
    FROM dead LEFT JOIN jobs ON seq BETWEEN first AND last WHERE first > 0 GROUP BY first
"""
_BEYOND: Final = f"""
    SELECT {_COLUMNS} FROM jobs WHERE seq BETWEEN ? AND ? OR seq = ? ORDER BY seq
"""  # noqa: S608 - names of ours
_ORPHANED: Final = f"""
    SELECT {_COLUMNS} FROM jobs WHERE seq <= 0
    AND NOT EXISTS (SELECT 1 FROM dead WHERE seq BETWEEN first AND last) ORDER BY seq
"""  # noqa: S608 - as above


@dataclass(frozen=True, slots=True)
class Inventory:
    """Ranges and totals of a journal, and the damage that was found."""

    totals: Totals
    findings: Sequence[Finding]
    lost_payloads: int = 0
    """Payloads that the totals count no more because their jobs are damaged or missing."""
    sealed: Sequence[Range] = ()
    """Ranges of sealed batches."""
    apart: Sequence[Range] = ()
    """Ranges of jobs that are sealed, dead or stored, in order."""
    known: bool = True
    """Whether the totals were read from the file, and not counted again."""
    identity: bytes | None = None
    """The identity of the journal, None where it is missing or damaged."""


def read_and_repair(
    connection: sqlite3.Connection,
    segments: Sequence[int],
    gaps: Sequence[Range],
    *,
    counting: bool,
    refusing: bool = False,
    is_sound: Callable[[], bool] = lambda: True,
) -> Inventory:
    """Read all tables other than ``jobs`` and repair what is damaged, in one transaction.

    ``segments``: names of the segments in STATE_DIR. ``gaps``: ranges of ``seq`` in which rows may
    be missing. ``counting``: count the rows of ``jobs`` and make dead letters of missing jobs.
    ``refusing``: refuse more jobs than the totals count, where no dead letter is lost.
    ``is_sound``: returns whether no page of the file is damaged or misplaced.

    Raises sqlite3.Error, that of a damaged file where rows are lost and the file is not sound, and
    StartError where stored jobs could be stored again.
    """
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        findings: list[Finding] = []
        found: dict[str, list[Any]] = {}
        lost: set[str] = set()
        for table in (BATCHES, DEAD, STORED, IDENTITY):
            checked = small_tables.check(connection, table, width=2)
            findings += small_tables.repair(connection, table, checked)
            found[table.name] = checked.rows
            lost |= set() if checked.complete else {table.name}
        stored = [(first, last) for last, first in ranges(found["stored"])]
        # Most starts have none left: the caller has unpacked them in small transactions.
        damaged_blocks = block_rows.unpack_in_transaction(connection)
        findings += damaged_blocks
        lost |= {"blocks"} if damaged_blocks else set()
        # The next start would not know the jobs of lost dead letters from stored ones.
        counting |= "dead" in lost
        if counting:
            findings += _bury_missing_members(connection, gaps)
        sealed: list[Range] = found["batches"]
        dead = _dead_ranges(connection)
        totals, problem, known = _totals(connection, segments, chain(sealed, dead, stored))
        findings += problem
        apart = sorted(chain(sealed, dead, stored))
        if (lost or not known) and not is_sound():
            # A page in another place may have the lost rows, and the rows to be removed are others.
            tables = ", ".join(lost or {"totals"})
            raise damage.corrupt(f"rows of {tables} are not where they should be")
        refuse_unknown(connection, totals if known else None, lost, [*dead, *stored])
        before = totals
        strays = _bury_strays(connection, totals)
        if any((one.first or 0) > 0 for one in strays):
            # The totals counted these rows, which are dead letters now.
            totals = _without(totals, strays)
            totals.write(connection)
        findings += strays
        for first, last in sealed if counting else ():
            # Before ``compare``, which finds how many jobs are missing but not their numbers.
            absent = bury_absent(connection, first, last, totals)
            totals = absent.totals
            findings += absent.findings
        if counting or not known:
            compared = compare(connection, totals, gaps, known=known)
            # Not where jobs of lost dead letters wait again; and by the totals as they were read:
            # older ones do not count the rows whose numbers are beyond them.
            if known and refusing and "dead" not in lost:
                _refuse_surplus(compared.totals.jobs - before.jobs)
            totals = compared.totals
            findings += compared.findings
        less = max(0, before.payloads - totals.payloads) if known else 0
        rows = found["identity"]
        identity = rows[0][0] if len(rows) == 1 else None
        return Inventory(totals, findings, less, sealed, apart, known, identity)


def bury(
    connection: sqlite3.Connection,
    damaged: Sequence[DamagedRow],
    before: Totals,
    is_sound: Callable[[], bool],
) -> Inventory:
    """Make dead letters of damaged rows, and count the other rows, in the caller's transaction.

    Also makes a dead letter of missing rows. Raises the error of a damaged file where rows are
    missing and ``is_sound`` returns False: then the file must be replaced first.
    """
    findings = damage.bury_rows(connection, damaged)
    jobs, payloads, size = count(connection, _apart(connection))
    missing = before.jobs - jobs - len(damaged)
    if missing > 0:
        if not is_sound():
            raise damage.corrupt(f"{missing} rows of jobs are missing")
        # Each job has at least one payload; the count in a damaged row may be wrong.
        less = max(missing, before.payloads - payloads - damage.total_payloads(findings))
        findings += _bury_missing(connection, (), missing, less)
    totals = replace(before, jobs=jobs, payloads=payloads, bytes=size)
    totals.write(connection)
    return Inventory(totals, findings, before.payloads - payloads)


def compare(
    connection: sqlite3.Connection,
    before: Totals,
    gaps: Sequence[Range],
    *,
    known: bool = True,
    is_sound: Callable[[], bool] = lambda: True,
) -> Inventory:
    """Compare the totals with the rows of ``jobs``; make dead letters of missing jobs.

    ``known``: whether the totals ``before`` were read from the file. If they were not, the number
    of missing jobs is unknown, and each gap becomes a dead letter without counts. ``is_sound``: as
    for ``bury``. Runs in the caller's transaction.
    """
    counted = count(connection, _apart(connection))
    totals = replace(before, jobs=counted.jobs, payloads=counted.payloads, bytes=counted.bytes)
    if known and totals == before:
        return Inventory(before, ())
    missing = before.jobs - counted.jobs
    findings: list[Finding] = []
    if known and missing > 0:
        if not is_sound():
            raise damage.corrupt(f"{missing} rows of jobs are missing")
        payloads = max(0, before.payloads - counted.payloads)
        findings = _bury_missing(connection, gaps, missing, payloads)
    elif not known:
        for gap in gaps:
            finding = Finding("jobs", "in pages that cannot be read", *gap)
            findings.append(damage.bury_range(connection, finding))
    totals.write(connection)
    return Inventory(totals, findings, before.payloads - totals.payloads)


def _bury_missing(
    connection: sqlite3.Connection, gaps: Sequence[Range], jobs: int, payloads: int
) -> list[Finding]:
    """Make dead letters of jobs whose rows are missing, one for each gap.

    The first one counts all jobs and payloads: how they are divided among the gaps is not known.
    """
    if not gaps:
        finding = Finding("jobs", "not in the file any more", jobs=jobs, payloads=payloads)
        return [damage.bury_range(connection, finding)]
    found = []
    for gap in gaps:
        finding = Finding("jobs", "in pages that cannot be read", *gap, jobs, payloads)
        found.append(damage.bury_range(connection, finding))
        jobs = payloads = 0
    return found


def refuse_unknown(
    connection: sqlite3.Connection,
    totals: Totals | None,
    lost: set[str],
    apart: Sequence[Range],
) -> None:
    """Raise StartError where jobs that are in the store already could be stored again.

    ``totals``: None where they are not known. ``lost``: names of the tables of which rows are lost.
    ``apart``: ranges of jobs that are known not to wait.
    """
    if not lost & {"batches", "stored"}:
        return
    counted = None if totals is None or "blocks" in lost else count(connection, apart)
    # Their bytes too: as many jobs may be missing as are stored, and the numbers be the same.
    exact = totals is not None and counted == (totals.jobs, totals.payloads, totals.bytes)
    if "stored" in lost and not exact:
        if totals is not None and counted is not None:
            _refuse_surplus(counted.jobs - totals.jobs)
        raise damage.start_refusal("it is not known which jobs are stored already")
    if "batches" in lost and not (exact and counted == Count(0, 0, 0)):
        raise damage.start_refusal("it is not known which jobs are sealed, and may be stored")


def _refuse_surplus(jobs: int) -> None:
    """Raise StartError where more jobs wait than the totals count."""
    if jobs > 0:
        reason = f"{jobs} jobs are stored already or were never accepted, and it is not known which"
        raise damage.start_refusal(reason)


def surplus(jobs: int) -> list[Finding]:
    """Return the finding that so many more ``jobs`` wait than the totals count; none for 0."""
    reason = f"{jobs} more than the totals count: some may be stored twice"
    return [Finding("jobs", reason)] if jobs > 0 else []


def are_all_there(
    connection: sqlite3.Connection,
    totals: Totals | None,
    lost: Container[str],
    dead: Sequence[Range],
    stored: Sequence[Range],
) -> bool:
    """Return whether it is certain that no job is missing, of those that wait and of dead letters.

    ``totals`` and ``lost``: as for ``refuse_unknown``. ``dead`` and ``stored``: ranges of jobs.
    ``jobs`` has only rows that were unpacked from blocks, none of a dead letter.
    """
    # Lost ranges of stored jobs, or of dead letters, could hide how many jobs are missing.
    if totals is None or "dead" in lost or "stored" in lost:
        return False
    # Members of these have rows. Damaged rows may be missing: their dead letters count them.
    if any(first > 0 for first, _ in dead):
        return False
    # Without a checksum, as version 3 has written them, they may be damaged themselves.
    with_checksum = connection.execute("SELECT 1 FROM totals WHERE crc IS NOT NULL").fetchone()
    counted = count(connection, [*dead, *stored])
    return with_checksum is not None and counted == (totals.jobs, totals.payloads, totals.bytes)


def bury_uncounted(connection: sqlite3.Connection, totals: Totals, payloads: int) -> Inventory:
    """Make a dead letter of payloads that are missing by a count outside of the file.

    The totals do not show the loss where the totals themselves are lost, or where as many jobs of
    lost dead letters wait again. Commits in a transaction of its own.
    """
    reason = "not in the file any more, by the count in journal.high"
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        finding = damage.bury_range(connection, Finding("jobs", reason, payloads=payloads))
    return Inventory(totals, [finding], payloads)


def bury_absent(connection: sqlite3.Connection, first: int, last: int, before: Totals) -> Inventory:
    """Make a dead letter of the members of a sealed batch whose rows are missing.

    Does nothing where a dead letter in the range of the batch exists already. Runs in the caller's
    transaction.
    """
    (present,) = connection.execute(_COUNT, (first, last)).fetchone()
    missing = last - first + 1 - present
    if missing <= 0 or connection.execute(_BURIED, (first, last)).fetchone() is not None:
        return Inventory(before, ())
    reason = "members of a sealed batch that are not in the file any more"
    # Each job has at least one payload.
    finding = Finding("jobs", reason, first, last, missing, missing)
    findings = [damage.bury_range(connection, finding)]
    jobs, payloads = max(0, before.jobs - missing), max(0, before.payloads - missing)
    totals = replace(before, jobs=jobs, payloads=payloads)
    totals.write(connection)
    return Inventory(totals, findings, before.payloads - payloads)


def _bury_missing_members(connection: sqlite3.Connection, gaps: Sequence[Range]) -> list[Finding]:
    """Make new dead letters of the missing jobs of dead letters; these keep their other jobs."""
    findings = []
    for first, last, counted, payloads, *present in connection.execute(_DEAD_MEMBERS).fetchall():
        jobs, payloads_present, size = present
        if jobs >= counted:
            continue
        unreadable = any(low <= last and first <= high for low, high in gaps)
        place = "in pages that cannot be read" if unreadable else "not in the file any more"
        reason = f"members of a dead letter, {place}"
        less = max(counted - jobs, payloads - int(payloads_present))
        finding = Finding("dead", reason, first, last, counted - jobs, less)
        findings.append(damage.bury_range(connection, finding))
        small_tables.change_counts(connection, first, int(payloads_present), int(size), jobs)
    return findings


def _dead_ranges(connection: sqlite3.Connection) -> list[Range]:
    """Return the ranges of ``seq`` of all dead letters."""
    return connection.execute("SELECT first, last FROM dead").fetchall()


def _totals(
    connection: sqlite3.Connection, segments: Sequence[int], known: Iterable[Range]
) -> tuple[Totals, list[Finding], bool]:
    """Return the totals, findings about them, and whether they were read from the file.

    If they were not, ``next`` is the smallest possible number, ``keys`` is counted, and the other
    counts are 0, to be counted by the caller.
    """
    checked = small_tables.check(connection, TOTALS)
    if len(checked.rows) == 1 and not checked.lost:
        totals = Totals(*checked.rows[0])
        if not checked.repaired:
            return totals, [], True
        totals.write(connection)
        return totals, [Finding("totals", "had a flipped bit and was repaired")], True
    newest = [
        number
        for stream in stream_rows.with_jobs(connection)
        for (number,) in connection.execute(_NEWEST, (first_seq(stream), last_seq(stream)))
        if stream < MOST_NUMBERS
    ]
    lasts = [*newest, *(last for _, last in known if last > 0)]
    following = 1 + max([*map(count_of, lasts), *segments, 0])
    connection.execute("DELETE FROM totals")
    (keys,) = connection.execute("SELECT count(*) FROM answers").fetchone()
    connection.execute(
        "INSERT INTO totals (next, jobs, payloads, bytes, keys) VALUES (?, 0, 0, 0, ?)",
        (following, keys),
    )
    reason = "does not match its checksum; it was counted again"
    return Totals(following, 0, 0, 0, keys), [Finding("totals", reason)], False


def _without(totals: Totals, strays: Sequence[Finding]) -> Totals:
    """Return the totals without the rows whose number was not assigned yet."""
    beyond = [one for one in strays if (one.first or 0) > 0]
    return replace(
        totals,
        jobs=max(0, totals.jobs - sum(one.jobs for one in beyond)),
        payloads=max(0, totals.payloads - damage.total_payloads(beyond)),
    )


def _bury_strays(connection: sqlite3.Connection, totals: Totals) -> list[Finding]:
    """Make dead letters of rows with an unassigned number or a lost dead letter."""
    findings: list[Finding] = []
    beyond = [
        row
        for stream in stream_rows.with_jobs(connection)
        for row in connection.execute(_BEYOND, _unassigned(stream, totals.next)).fetchall()
    ]
    reason = "has a number that was not assigned yet"
    findings += damage.bury_rows(connection, [_stray(row, reason) for row in beyond])
    orphaned = connection.execute(_ORPHANED).fetchall()
    reason = "belongs to a dead letter that is lost"
    return findings + damage.bury_rows(connection, [_stray(row, reason) for row in orphaned])


def _unassigned(stream: int, following: int) -> tuple[int, int, int]:
    """Return the range of the numbers of a stream that no job has so far, and a single one."""
    first = first_seq(stream)
    return (first if stream >= MOST_NUMBERS else first + following, last_seq(stream), first)


def _stray(row: Any, reason: str) -> DamagedRow:  # noqa: ANN401 - damaged values have any type
    return DamagedRow(row[0], row[1], row[2], job_rows.size(row), reason)


def _apart(connection: sqlite3.Connection) -> list[Range]:
    """Return the ranges of jobs that do not wait: dead letters and stored jobs."""
    found = connection.execute(
        "SELECT first, last FROM dead UNION ALL SELECT first, last FROM stored"
    )
    return found.fetchall()
