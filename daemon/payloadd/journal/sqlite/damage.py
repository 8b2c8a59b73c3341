"""Findings of damage, and the dead letters that keep damaged rows.

A row that does not match its checksum, cannot be read or refers to missing data becomes a dead
letter with the code DAMAGED. Such a dead letter keeps the rest of its rows, but their ``seq`` is
negated, in ``jobs`` and in ``dead``. So they lie in no range that is sent, settled or revived,
now or later. A dead letter may have no rows (nothing of the jobs can be read), or a range of
unknown jobs. Functions raise sqlite3.Error.
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
from payloadd.model.streams import DEFAULT, MOST_NUMBERS, count_of, stream_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

CODE: Final = "DAMAGED"
SQLITE_CORRUPT: Final = 11
_SQLITE_NOTADB: Final = 26
_MOST_PAYLOADS: Final = 2**31
"""More payloads than a job can have."""
_IDS_NAMED: Final = 5
_ID_BYTES: Final = 16

INSERT_DEAD: Final = """
    INSERT INTO dead (first, last, key, compression, id, at, code, reason, payloads, bytes, jobs,
        crc)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One piece of damage, as the log and ``payloadd journal verify`` report it."""

    table: str
    """The damaged table; ``segments`` or ``file`` for damage outside of the tables."""
    reason: str
    first: int | None = None
    """First ``seq`` of the damaged range, None where it is not known."""
    last: int | None = None
    """Last ``seq`` of the damaged range, None where it is not known."""
    jobs: int = 0
    payloads: int = 0
    """Payloads that cannot be stored because of the damage, as far as the number is known."""
    id: str | None = None
    """The id of the dead letter, None where there is none."""


class Findings:
    """Findings of one journal that were not reported yet."""

    def __init__(self) -> None:
        self._new: list[Finding] = []
        self.on_new: Callable[[], object] = lambda: None
        """Called for new findings, in any thread."""

    @property
    def tables(self) -> frozenset[str]:
        """The tables of these findings."""
        return frozenset(one.table for one in self._new)

    def add(self, *found: Finding) -> None:
        """Add findings, and call ``on_new`` if there are any."""
        if found:
            self._new += found
            self.on_new()

    def pop_all(self) -> list[Finding]:
        """Return and forget the findings that were added since the last call."""
        found, self._new = self._new, []
        return found


class DamagedRow(NamedTuple):
    """A row of ``jobs`` that differs from the row that was written; any value may be wrong."""

    seq: int
    id: Any
    payloads: Any
    bytes: int
    reason: str


def is_corrupt(error: sqlite3.Error) -> bool:
    """Return whether SQLite reports that its file is damaged."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    return code & 0xFF in {SQLITE_CORRUPT, _SQLITE_NOTADB}


def corrupt(reason: str) -> sqlite3.DatabaseError:
    """Return the error of a damaged file, for damage that SQLite does not notice."""
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = SQLITE_CORRUPT
    error.sqlite_errorname = "SQLITE_CORRUPT"
    return error


def start_refusal(reason: object) -> StartError:
    """Return the error that refuses a start because the damage cannot be repaired."""
    return StartError(
        f"{FILE} is damaged, and the lost part cannot be restored from the rest: {reason}."
        " `payloadd journal verify` lists the damage. Nothing was removed: keep a copy of"
        " STATE_DIR, restore it from a snapshot or move it away to start with an empty journal;"
        " then send again the payloads that are not in the store"
    )


def bury_rows(connection: sqlite3.Connection, damaged: Sequence[DamagedRow]) -> list[Finding]:
    """Make dead letters of damaged rows, one for neighbours with the same reason.

    Returns a finding for each dead letter. Runs in the transaction of the caller.
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
    payloads = sum(_plausible_payloads(row.payloads) for row in rows)
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
    """Make one dead letter of a range of jobs; return the finding with the id of the dead letter.

    ``ids``: ids of the jobs, as far as they are known. ``size``: bytes of their lines. Runs in the
    transaction of the caller.
    """
    first, last = _free_range(connection, finding)
    reason = f"{finding.reason} ({describe(finding.first, finding.last)}{_list_ids(ids)})"
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
    """Return a negated range for a dead letter that no other dead letter has."""
    if finding.first is not None and finding.last is not None:
        first, last = sorted((-abs(finding.first), -abs(finding.last)))
        in_use = "SELECT 1 FROM dead WHERE first = ?"
        if connection.execute(in_use, (first,)).fetchone() is None:
            return first, last
    lowest = "SELECT min(coalesce((SELECT min(first) FROM dead), 0), ?)"
    (free,) = connection.execute(lowest, (-(2**61),)).fetchone()
    return free - 1, free - 1


def _free_id(connection: sqlite3.Connection, ids: Sequence[str]) -> str:
    in_use = "SELECT 1 FROM dead WHERE id = ?"
    if ids and connection.execute(in_use, ids[:1]).fetchone() is None:
        return ids[0]
    return str(uuid.uuid4())


def text_of_id(id_: object) -> str | None:
    """Return the text of a job's id, None for a value that is no id."""
    if isinstance(id_, bytes) and len(id_) == _ID_BYTES:
        return str(uuid.UUID(bytes=id_))
    return None


def describe(first: int | None, last: int | None) -> str:
    """Return a range of ``seq`` as text for an operator."""
    if first is None or last is None:
        return "unknown numbers"
    stream = stream_of(abs(first))
    if DEFAULT < stream < MOST_NUMBERS and stream_of(abs(last)) == stream:
        return f"{_numbers(count_of(abs(first)), count_of(abs(last)))} of stream {stream}"
    return _numbers(first, last)


def _numbers(first: int, last: int) -> str:
    return f"number {first}" if first == last else f"numbers {first} to {last}"


def _list_ids(ids: Sequence[str]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - _IDS_NAMED} more" if len(ids) > _IDS_NAMED else ""
    return f", id {', '.join(ids[:_IDS_NAMED])}{more}"


def _plausible_payloads(payloads: object) -> int:
    return payloads if isinstance(payloads, int) and 0 <= payloads < _MOST_PAYLOADS else 0


def total_payloads(findings: Iterable[Finding]) -> int:
    """Return the number of payloads that cannot be stored because of these findings."""
    return sum(finding.payloads for finding in findings)
