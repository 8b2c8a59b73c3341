"""Rows of the table ``blocks``: read, counted, and unpacked into rows of ``jobs``.

To unpack a block is to write a row of ``jobs`` for each of its jobs that is not settled, and to
delete the block, in one transaction. A start and a repair unpack all blocks, so that everything
else finds all jobs in ``jobs``. Ranges in ``stored`` are left out: their jobs never get a row.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.journal.sqlite import damage, job_rows
from payloadd.journal.sqlite.block_format import WRONG_CHECKSUM, read_head, rows_of
from payloadd.journal.sqlite.damage import Finding
from payloadd.journal.sqlite.excluded import ExcludedRanges
from payloadd.journal.sqlite.small_tables import STORED
from payloadd.journal.sqlite.small_tables import check as check_table

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Sequence

    from payloadd.journal.sqlite.block_format import BlockHead, NewBlock
    from payloadd.journal.sqlite.job_rows import Row

COLUMNS: Final = "number, crc, head, lines"
_INSERT: Final = "INSERT INTO blocks VALUES (?, ?, ?, ?)"
_HEADS: Final = "SELECT number, crc, head FROM blocks ORDER BY number"
_ALL: Final = f"SELECT {COLUMNS} FROM blocks ORDER BY number"  # noqa: S608 - names of ours
ONE: Final = f"SELECT {COLUMNS} FROM blocks WHERE number = ?"  # noqa: S608 - as above
_INSERT_DAMAGED: Final = "INSERT OR IGNORE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ID_BYTES: Final = 16
_BYTES_AT_A_TIME: Final = 2 * 2**20
"""Bytes of blocks that are unpacked in one transaction: a disk that is nearly full takes it."""


class BlockCount(NamedTuple):
    """The jobs of one stretch of a block."""

    first: int
    last: int
    payloads: int
    size: int
    """Bytes of the lines."""
    ids: bytes
    """Their ids, 16 bytes each."""

    @property
    def accepted(self) -> int:
        """When the oldest of them was accepted, in Unix ms (RFC 9562, section 5.7)."""
        starts = range(0, len(self.ids), _ID_BYTES)
        return min(int.from_bytes(self.ids[start : start + 6]) for start in starts)


def insert(connection: sqlite3.Connection, block: NewBlock) -> None:
    """Insert a block."""
    connection.execute(_INSERT, block[:4])


def read(connection: sqlite3.Connection, number: int) -> tuple[Any, ...]:
    """Return number, crc, head and lines of a block; raise the error of a damaged file without."""
    row = connection.execute(ONE, (number,)).fetchone()
    if row is None:
        raise damage.corrupt(f"the block {number} is not where it should be")
    return tuple(row)


def heads(connection: sqlite3.Connection) -> Iterator[tuple[int, BlockHead | None]]:
    """Yield the number and the head of each block, None in place of a damaged head."""
    for number, crc, head in connection.execute(_HEADS):
        yield number, read_head(number, crc, head)


def waiting(
    connection: sqlite3.Connection, apart: Iterable[tuple[Any, Any]]
) -> Iterator[BlockCount]:
    """Yield the jobs in blocks that are in none of the ranges ``apart``, in stretches.

    ``apart`` may have values of any type, as damaged rows have.
    """
    sound = [one for one in apart if isinstance(one[0], int) and isinstance(one[1], int)]
    excluded = ExcludedRanges([one for one in sound if one[0] > 0])
    for _, head in heads(connection):
        yield from () if head is None else _waiting_in(head, excluded)


def _waiting_in(head: BlockHead, excluded: ExcludedRanges) -> Iterator[BlockCount]:
    index = 0
    for first, last in head.runs:
        for low, high in excluded.outside(first, last):
            start, end = index + low - first, index + high - first + 1
            payloads, size = sum(head.payloads[start:end]), sum(head.sizes[start:end])
            ids = head.ids[_ID_BYTES * start : _ID_BYTES * end]
            yield BlockCount(low, high, payloads, size, ids)
        index += last - first + 1


def insert_jobs(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Insert unpacked jobs, in the order of ``rows``."""
    # Only in a damaged file a job of a block has a row already: a sound one is better than that.
    sound = [
        (seq, bytearray(id_), payloads, bytearray(lines), crc)
        for seq, id_, payloads, lines, *_, crc in rows
        if crc != WRONG_CHECKSUM
    ]
    job_rows.replace(connection, sound)
    if len(sound) < len(rows):
        damaged = [row for row in rows if row[8] == WRONG_CHECKSUM]
        connection.executemany(_INSERT_DAMAGED, damaged)


def delete(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
    """Delete blocks; returns how many there were."""
    return job_rows.delete_each(connection, "blocks", "number", numbers)


def unpack_all(connection: sqlite3.Connection) -> list[Finding]:
    """Unpack all blocks, each few in a transaction of their own; return the damage.

    Does nothing where rows of ``stored`` are lost: it is not known then which jobs are stored.
    """
    found: list[Finding] = []
    while any(connection.execute("SELECT 1 FROM blocks LIMIT 1")):
        checked = check_table(connection, STORED)
        if not checked.complete:
            break
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            found += _unpack_some(connection, _excluded(checked.rows))
    return found


def unpack_in_transaction(connection: sqlite3.Connection) -> list[Finding]:
    """Unpack all blocks in the transaction of the caller; return the damage."""
    found: list[Finding] = []
    excluded = None
    while any(connection.execute("SELECT 1 FROM blocks LIMIT 1")):
        excluded = excluded or _excluded(check_table(connection, STORED).rows)
        found += _unpack_some(connection, excluded)
    return found


def _excluded(stored: Iterable[tuple[Any, ...]]) -> ExcludedRanges:
    return ExcludedRanges([(first, last) for last, first in stored])


def _unpack_some(connection: sqlite3.Connection, excluded: ExcludedRanges) -> list[Finding]:
    numbers: list[int] = []
    rows: list[Row] = []
    found: list[Finding] = []
    size = 0
    lost: list[tuple[int, Any]] = []
    for number, crc, head, lines in connection.execute(_ALL):
        numbers.append(number)
        known = read_head(number, crc, head)
        if known is None:
            lost.append((number, lines))
        else:
            rows += [row for row in rows_of(known, lines) if not excluded.has(row[0])]
        size += len(lines) if isinstance(lines, bytes) else 0
        if size >= _BYTES_AT_A_TIME:
            break
    rows.sort(key=lambda row: row[0])
    insert_jobs(connection, rows)
    found = [_bury_lost(connection, number, lines) for number, lines in lost]
    if delete(connection, numbers) != len(numbers):
        raise damage.corrupt("blocks are not where they should be")
    return found


def _bury_lost(connection: sqlite3.Connection, number: int, lines: object) -> Finding:
    """Make a dead letter of the bytes of a block whose list of jobs is damaged.

    How many jobs and payloads are missing is known from the totals, and is a dead letter too.
    """
    finding = Finding("blocks", f"the list of the jobs in block {number} is damaged")
    found = damage.bury_range(connection, finding)
    (seq,) = connection.execute("SELECT first FROM dead WHERE id = ?", (found.id,)).fetchone()
    text = lines if isinstance(lines, bytes | str) else b""
    values = (seq, b"", 0, text, None, None, None, 0, WRONG_CHECKSUM)
    connection.execute(_INSERT_DAMAGED, values)
    return found
