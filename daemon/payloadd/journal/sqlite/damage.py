"""Damage: what is known of it, and where it is kept.

What does not match its checksum, cannot be read or refers to nothing becomes a dead letter with
the code DAMAGED. The rows that belong to one keep what is left of them, but their ``seq`` is
negated, here and in the row of ``dead``: so they lie in no range that is sent, settled or
revived, whatever else happens to the journal. A dead letter may have no rows (nothing of the
jobs can be read) or a range that nothing is known of. Functions raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.errors import StartError
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.schema import FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

CODE: Final = "DAMAGED"
SQLITE_CORRUPT: Final = 11
_SQLITE_NOTADB: Final = 26
_MOST: Final = 2**31
"""More payloads or bytes than any job has."""
_IDS_NAMED: Final = 5
_ID_BYTES: Final = 16

INSERT_DEAD: Final = """
    INSERT INTO dead (first, last, key, compression, id, at, code, reason, payloads, bytes, jobs,
        crc)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of damage, as the log and ``payloadd journal verify`` name it."""

    table: str
    """The table that is damaged; ``segments`` and ``file`` for what is no table."""
    reason: str
    first: int | None = None
    """The range of ``seq`` that is concerned, as far as it is known."""
    last: int | None = None
    jobs: int = 0
    payloads: int = 0
    """Payloads that cannot be stored because of it, as far as that is known."""
    id: str | None = None
    """The id of the dead letter."""


class Findings:
    """What was found since the last look; ``tell`` is called, in any thread, for something new."""

    def __init__(self) -> None:
        self._new: list[Finding] = []
        self.tell: Callable[[], object] = lambda: None

    def add(self, *found: Finding) -> None:
        """Take note of damage."""
        if found:
            self._new += found
            self.tell()

    def take(self) -> list[Finding]:
        """Return what was not taken yet."""
        taken, self._new = self._new, []
        return taken


class DamagedRow(NamedTuple):
    """A row of ``jobs`` that is not what was written."""

    seq: int
    id: Any
    payloads: Any
    bytes: int
    reason: str


def is_corrupt(error: sqlite3.Error) -> bool:
    """Return whether SQLite says that its file is damaged."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in {SQLITE_CORRUPT, _SQLITE_NOTADB}


def corrupt(reason: str) -> sqlite3.DatabaseError:
    """Return the error that SQLite would raise had it noticed."""
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = SQLITE_CORRUPT
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


def refusal(reason: object) -> StartError:
    """Return what a start is refused with where a journal cannot be read."""
    return StartError(
        f"{FILE} is damaged where nothing else says what was there: {reason}."
        " `payloadd journal verify` lists what is damaged. Nothing was removed: keep a copy of"
        " STATE_DIR, restore it from a snapshot or move it away to start with an empty journal;"
        " then have sent again what is not in the store"
    )


def bury_rows(connection: sqlite3.Connection, damaged: Sequence[DamagedRow]) -> list[Finding]:
    """Make dead letters of damaged rows, one for neighbours with the same reason.

    In the transaction of the caller.
    """
    ordered = sorted(damaged, key=lambda row: row.seq)
    runs = groupby(enumerate(ordered), lambda pair: (pair[1].seq - pair[0], pair[1].reason))
    found = []
    for (_, reason), run in runs:
        rows = [row for _, row in run]
        found.append(_bury_run(connection, rows, reason))
    return found


def _bury_run(connection: sqlite3.Connection, rows: Sequence[DamagedRow], reason: str) -> Finding:
    first, last = rows[0].seq, rows[-1].seq
    payloads = sum(_plausible(row.payloads) for row in rows)
    ids = [id_ for row in rows if (id_ := text_of_id(row.id)) is not None]
    finding = Finding("jobs", reason, first, last, len(rows), payloads)
    finding = bury_range(connection, finding, ids, sum(row.bytes for row in rows))
    if first > 0:
        connection.execute(
            "UPDATE OR REPLACE jobs SET seq = -seq WHERE seq BETWEEN ? AND ?", (first, last)
        )
    return finding


def bury_range(
    connection: sqlite3.Connection, finding: Finding, ids: Sequence[str] = (), size: int = 0
) -> Finding:
    """Make one dead letter of a range of jobs; returns the finding with its id."""
    first, last = _free_range(connection, finding)
    reason = f"{finding.reason} ({describe(finding.first, finding.last)}{_named(ids)})"
    id_ = _free_id(connection, ids)
    values = (
        *(first, last, "", "none", id_, int(time.time()), CODE, reason),
        *(finding.payloads, size, finding.jobs),
    )
    connection.execute(INSERT_DEAD, (*values, of_values(values)))
    return Finding(
        *(finding.table, finding.reason, finding.first, finding.last),
        *(finding.jobs, finding.payloads, id_),
    )


def _free_range(connection: sqlite3.Connection, finding: Finding) -> tuple[int, int]:
    """Return the range under which a dead letter is kept: negated, and free."""
    if finding.first is not None and finding.last is not None:
        first, last = sorted((-abs(finding.first), -abs(finding.last)))
        taken = "SELECT 1 FROM dead WHERE first = ?"
        if connection.execute(taken, (first,)).fetchone() is None:
            return first, last
    lowest = "SELECT min(coalesce((SELECT min(first) FROM dead), 0), ?)"
    (free,) = connection.execute(lowest, (-(2**61),)).fetchone()
    return free - 1, free - 1


def _free_id(connection: sqlite3.Connection, ids: Sequence[str]) -> str:
    taken = "SELECT 1 FROM dead WHERE id = ?"
    if ids and connection.execute(taken, ids[:1]).fetchone() is None:
        return ids[0]
    return str(uuid.uuid4())


def text_of_id(id_: object) -> str | None:
    """Return the id of a job as text, None if it is none."""
    if isinstance(id_, bytes) and len(id_) == _ID_BYTES:
        return str(uuid.UUID(bytes=id_))
    return None


def describe(first: int | None, last: int | None) -> str:
    """Return a range of ``seq`` in words."""
    if first is None or last is None:
        return "unknown numbers"
    return f"number {first}" if first == last else f"numbers {first} to {last}"


def _named(ids: Sequence[str]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - _IDS_NAMED} more" if len(ids) > _IDS_NAMED else ""
    return f", id {', '.join(ids[:_IDS_NAMED])}{more}"


def _plausible(payloads: object) -> int:
    return payloads if isinstance(payloads, int) and 0 <= payloads < _MOST else 0


def total(findings: Iterable[Finding]) -> int:
    """Return how many payloads cannot be stored because of these."""
    return sum(one.payloads for one in findings)
