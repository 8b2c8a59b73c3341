"""Check and repair the tables other than ``jobs``, which a start reads whole.

Each row is compared with its checksum. A row that does not match is first searched for a single
flipped bit, which the checksum identifies. A row that still does not match is removed and
reported, with these consequences:

* ``batches``: the start is refused where any job waits: objects of the lost batches may be in the
  store, and other batches of their members would have other keys. See ``inventory.py``.
* ``stored``: the start is refused where rows are left that may be stored, or may belong to a
  request that a crash cut off (``staging.py``).
* ``dead``: the store refuses the object again, and it becomes a dead letter again.
* ``layouts``: the previous layout is used for the jobs, or the current settings are.
* ``streams``: a stream whose jobs are there gets a name made of its number; see ``stream_rows.py``.
* ``segments``: the search for jobs of a segment reads more rows.
* ``identity``: the identity in ``journal.high`` is adopted.
* ``totals``: counted again.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.journal.sqlite.checksum import of_answer, of_totals, of_values
from payloadd.journal.sqlite.damage import Finding, corrupt
from payloadd.journal.sqlite.schema import ABOVE_ALL
from payloadd.model.formats import FORMATS
from payloadd.model.keys import KeyTemplate
from payloadd.model.streams import MOST_NUMBERS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from payloadd.journal.sqlite.table_scan import RowValues

_BITS: Final = 63
_ID_BYTES: Final = 16
_LONGEST_TEXT: Final = 4096
"""Bytes of the longest text that is searched for a flipped bit: each bit is one attempt."""


class Table(NamedTuple):
    """A table whose rows have a checksum over ``columns``; the first column is the key."""

    name: str
    columns: tuple[str, ...]
    is_shaped: Callable[[RowValues], bool]
    kept: tuple[str, ...] = ()
    """Columns that the checksum does not cover."""
    checksum: Callable[[RowValues], int] = of_values
    """Computes ``crc`` of a row for which ``is_shaped`` holds."""
    ends: tuple[RowValues, ...] = ()
    """The first and the last row of a table of which no row may be missing unnoticed."""


class Checked(NamedTuple):
    """The rows of a table, by the result of their check."""

    rows: list[RowValues]
    """Rows that match their checksum, repaired rows included, ordered by key."""
    repaired: list[tuple[RowValues, RowValues]]
    """Rows with one flipped bit: the row as it is, and as it was written."""
    lost: list[RowValues]
    """Rows that do not match their checksum and cannot be repaired."""
    missing_ends: list[RowValues]
    """Rows of ``Table.ends`` that are not there: other rows may be missing, too."""

    @property
    def complete(self) -> bool:
        """Whether no row is known to be lost."""
        return not (self.lost or self.missing_ends)


def _is_range(first: object, last: object) -> bool:
    """Return whether these are the ends of a range; that of ``Table.ends`` is empty."""
    return isinstance(first, int) and isinstance(last, int) and first <= last + 1


def _is_batch(row: RowValues) -> bool:
    first, last, key, compression, encoder = row
    return (
        _is_range(first, last)
        and isinstance(key, str)
        and compression in FORMATS
        and isinstance(encoder, str | None)
    )


def _is_dead(row: RowValues) -> bool:
    first, last, *texts, payloads, size, jobs = row
    key, compression, id_, at, code, reason = texts
    return (
        _is_range(first, last)
        and all(isinstance(text, str) for text in (key, compression, id_, code, reason))
        and compression in FORMATS
        and all(isinstance(number, int) for number in (at, payloads, size))
        and isinstance(jobs, int | None)
    )


def _is_layout(row: RowValues) -> bool:
    first, template, host, compression, alone = row
    if not (isinstance(first, int) and isinstance(template, str) and isinstance(host, str)):
        return False
    try:
        KeyTemplate.parse(template, host=host)
    except ValueError:
        return False
    return compression in FORMATS and isinstance(alone, int)


def _is_stream(row: RowValues) -> bool:
    number, name = row
    return isinstance(number, int) and 0 < number < MOST_NUMBERS and isinstance(name, str)


def _is_segment(row: RowValues) -> bool:
    name, firsts = row
    return isinstance(name, int) and isinstance(firsts, bytes)


def _is_answer(row: RowValues) -> bool:
    key, id_, payloads, expires, fingerprint = row
    return (
        isinstance(key, bytes)
        and isinstance(id_, bytes)
        and isinstance(payloads, int)
        and isinstance(expires, int)
        and isinstance(fingerprint, bytes | None)
    )


BATCHES: Final = Table(
    "batches",
    ("first", "last", "key", "compression", "encoder"),
    _is_batch,
    ends=((0, -1, "", "none", None), (ABOVE_ALL, ABOVE_ALL - 1, "", "none", None)),
)
DEAD: Final = Table(
    "dead",
    (
        *("first", "last", "key", "compression", "id", "at"),
        *("code", "reason", "payloads", "bytes", "jobs"),
    ),
    _is_dead,
    kept=("retry",),
)
STORED: Final = Table(
    "stored",
    ("last", "first"),
    lambda row: _is_range(row[1], row[0]),
    ends=((0, 1), (ABOVE_ALL, ABOVE_ALL + 1)),
)
LAYOUTS: Final = Table("layouts", ("first", "template", "host", "compression", "alone"), _is_layout)
STREAMS: Final = Table("streams", ("number", "name"), _is_stream)
SEGMENTS: Final = Table("segments", ("name", "firsts"), _is_segment)
ANSWERS: Final = Table(
    "answers", ("key", "id", "payloads", "expires", "fingerprint"), _is_answer, checksum=of_answer
)
IDENTITY: Final = Table(
    "identity", ("id",), lambda row: isinstance(row[0], bytes) and len(row[0]) == _ID_BYTES
)
TOTALS: Final = Table(
    "totals",
    ("next", "jobs", "payloads", "bytes", "keys", "accepted"),
    lambda row: all(isinstance(number, int) and 0 <= number < 2**62 for number in row),
    checksum=of_totals,
)


def check(connection: sqlite3.Connection, table: Table, width: int | None = None) -> Checked:
    """Read a table and compare each row with its checksum; changes nothing.

    ``width``: the columns of each row to return in ``rows``, by default all. Raises the error of a
    damaged file where a page in the place of another one hides rows of a table with ``ends``.
    """
    checked = Checked([], [], [], [*table.ends])
    columns = ", ".join((*table.columns, "crc"))
    query = f"SELECT {columns} FROM {table.name}"  # noqa: S608 - names of ours
    previous = None
    # One row after the other, and no more of it than is needed: there may be millions.
    for *values, crc in connection.execute(query):
        row = tuple(values)
        if table.ends and previous is not None and row[0] <= previous:
            raise corrupt(f"the rows of {table.name} are out of order after {previous}")
        previous = row[0]
        if not is_intact(table, row, crc):
            before = without_flipped_bit(table, row, crc)
            if before is None:
                checked.lost.append(row)
                continue
            checked.repaired.append((row, before))
            row = before
        if row in checked.missing_ends:
            checked.missing_ends.remove(row)
        else:
            checked.rows.append(row[:width])
    if len(checked.lost) == len(checked.missing_ends) == 1:
        ((lost,), (end,)) = checked.lost, checked.missing_ends
        # No page of another table has such a row alone, in this shape.
        if lost[0] == end[0] and table.is_shaped(lost):
            checked.repaired.append((lost, end))
            checked.lost.clear()
            checked.missing_ends.clear()
    checked.rows.sort(key=lambda row: row[0])
    return checked


def missing_ends(connection: sqlite3.Connection, table: Table) -> list[RowValues]:
    """Return those rows of ``Table.ends`` that are not there."""
    key = table.columns[0]
    query = f"SELECT 1 FROM {table.name} WHERE {key} = ?"  # noqa: S608 - names of ours
    return [row for row in table.ends if connection.execute(query, row[:1]).fetchone() is None]


def damaged(connection: sqlite3.Connection, table: Table) -> list[RowValues]:
    """Return the rows of a table that do not match their checksum."""
    columns = ", ".join((*table.columns, "crc"))
    query = f"SELECT {columns} FROM {table.name}"  # noqa: S608 - names of ours
    rows = connection.execute(query)
    return [tuple(values) for *values, crc in rows if not is_intact(table, tuple(values), crc)]


def is_intact(table: Table, row: RowValues, crc: object) -> bool:
    """Return whether a row has plausible values and matches its checksum, if it has one."""
    return table.is_shaped(row) and (crc is None or crc == table.checksum(row))


def repair(connection: sqlite3.Connection, table: Table, checked: Checked) -> list[Finding]:
    """Write repaired rows as they were and remove lost rows; return a finding for each.

    Runs in the transaction of the caller, if there is one.
    """
    key = table.columns[0]
    findings = []
    for row, before in checked.repaired:
        if row[0] == before[0]:
            _rewrite(connection, table, before)
        else:
            _remove(connection, table, row[0])
            _insert(connection, table, before)
        reason = f"a row (now {key} {before[0]!r}) was altered and was repaired"
        findings.append(Finding(table.name, reason))
    for row in checked.lost:
        _remove(connection, table, row[0])
        reason = f"a row ({key} {row[0]!r}) does not match its checksum and was removed"
        findings.append(Finding(table.name, reason))
    for row in checked.missing_ends:
        _insert(connection, table, row)
        findings.append(Finding(table.name, missing_end(table, row)))
    return findings


def missing_end(table: Table, row: RowValues) -> str:
    """Return why a missing row of ``Table.ends`` is damage, as text for an operator."""
    which = "first" if row == table.ends[0] else "last"
    return f"the {which} row is missing, which is always there: others may be missing, too"


def change_counts(
    connection: sqlite3.Connection, first: int, payloads: int, size: int, jobs: int
) -> None:
    """Set the counts of the dead letter that begins at ``first``; remove it if ``jobs`` is 0."""
    if not jobs:
        _remove(connection, DEAD, first)
        return
    columns = ", ".join(DEAD.columns)
    query = f"SELECT {columns} FROM dead WHERE first = ?"  # noqa: S608 - as above
    row = connection.execute(query, (first,)).fetchone()
    _rewrite(connection, DEAD, (*row[:-3], payloads, size, jobs))


def _rewrite(connection: sqlite3.Connection, table: Table, row: RowValues) -> None:
    columns = ", ".join(f"{name} = ?" for name in (*table.columns[1:], "crc"))
    statement = f"UPDATE {table.name} SET {columns} WHERE {table.columns[0]} IS ?"  # noqa: S608 - as above
    connection.execute(statement, (*row[1:], table.checksum(row), row[0]))


def _insert(connection: sqlite3.Connection, table: Table, row: RowValues) -> None:
    columns = (*table.columns, "crc")
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    statement = f"INSERT OR REPLACE INTO {table.name} ({names}) VALUES ({marks})"  # noqa: S608 - as above
    connection.execute(statement, (*row, table.checksum(row)))


def _remove(connection: sqlite3.Connection, table: Table, key: object) -> None:
    connection.execute(
        f"DELETE FROM {table.name} WHERE {table.columns[0]} IS ?",  # noqa: S608 - as above
        (key,),
    )


def without_flipped_bit(table: Table, row: RowValues, crc: object) -> RowValues | None:
    """Return the row that differs from ``row`` in one bit and matches ``crc``, None if none does.

    Returns ``row`` itself where ``crc`` has the flipped bit.
    """
    if not isinstance(crc, int):
        return None
    for index, value in enumerate(row):
        for guess in _flipped(value):
            before = (*row[:index], guess, *row[index + 1 :])
            if table.is_shaped(before) and table.checksum(before) == crc:
                return before
    # The flipped bit may be in the checksum.
    wrong = table.checksum(row) ^ crc if table.is_shaped(row) else 0
    return row if wrong and wrong & (wrong - 1) == 0 else None


def _flipped(value: object) -> Iterator[object]:
    """Yield the variants of a value with one bit flipped."""
    match value:
        case int():
            # ``-bit`` flips the sign bit of a number that SQLite stores in fewer than 8 bytes.
            bits = (1 << bit for bit in range(_BITS))
            yield from chain.from_iterable((value ^ bit, value ^ -bit) for bit in bits)
        case bytes():
            yield from _flipped_bytes(value)
        case str():
            for flipped in _flipped_bytes(value.encode(errors="surrogateescape")):
                with suppress(UnicodeDecodeError):
                    yield flipped.decode()


def _flipped_bytes(value: bytes) -> Iterator[bytes]:
    if len(value) > _LONGEST_TEXT:
        return
    for index, byte in enumerate(value):
        for bit in range(8):
            yield value[:index] + bytes([byte ^ (1 << bit)]) + value[index + 1 :]


def ranges(rows: Sequence[RowValues]) -> list[tuple[int, int]]:
    """Return the range of ``seq`` that is in the first two columns of each row."""
    return [(row[0], row[1]) for row in rows]
