"""Dead letters: batches that the store refused for good.

Their payloads stay in ``jobs``; a row in ``dead`` excludes them from uploads and has the reason. So
to bury a large batch is a small write, also on a disk that is nearly full. A dead letter that is
tried again becomes the sealed batch that it was, under its own key. Functions raise sqlite3.Error.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.errors import PayloaddError
from payloadd.journal.inspection import DeadLetter
from payloadd.journal.sqlite import damage, job_rows, stream_rows
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.job_rows import IN_RANGE
from payloadd.journal.sqlite.schema import ROW_BYTES
from payloadd.model.formats import FORMATS
from payloadd.model.streams import MOST_NUMBERS, stream_of
from payloadd.observe.status import DeadLetterGroup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.job_rows import Row
    from payloadd.model.job import Batch

_SEAL: Final = """
    INSERT OR REPLACE INTO batches (first, last, key, compression, encoder, crc)
    VALUES (?, ?, ?, ?, ?, ?)
"""
_GROUPS: Final = """
    SELECT last, code, count(*), sum(payloads) FROM dead
    GROUP BY abs(last) >> 48, code ORDER BY abs(last) >> 48, code
"""
_PLACES: Final = "SELECT segment, start FROM jobs WHERE seq BETWEEN ? AND ? ORDER BY seq"
_UNKNOWN_STREAM: Final = "unknown"
_NO_RETRY: Final = (
    "a dead letter with the code DAMAGED cannot be tried again: it does not hold the payloads that"
    " were accepted. `dead show` prints the bytes that can be read, `dead drop` removes it; post"
    " the right payloads again. Nothing was changed"
)
REVIVED_PER_COMMIT: Final = 100
"""Dead letters that are revived in one commit."""


class DeadRange(NamedTuple):
    """The range of a dead letter, and the sizes of its jobs."""

    first: int
    last: int
    payloads: int
    bytes: int
    counted: int | None = None
    """How many jobs it has where that is not ``last - first + 1``: damaged ones are missing."""

    @property
    def jobs(self) -> int:
        """How many jobs it has."""
        return self.last - self.first + 1 if self.counted is None else self.counted

    @property
    def journal_bytes(self) -> int:
        """Bytes that it takes in the journal, about."""
        return self.bytes + self.jobs * ROW_BYTES


def bury(connection: sqlite3.Connection, batch: Batch, code: str, reason: str) -> None:
    """Make a dead letter of a batch: it is not sealed any more, and later starts skip its jobs."""
    first, last = batch.jobs[0].seq, batch.jobs[-1].seq
    connection.execute("DELETE FROM batches WHERE first = ?", (first,))
    jobs = len(batch.jobs)
    values = (
        *(first, last, batch.key, batch.format_name, str(batch.id), int(time.time())),
        *(code, reason, batch.payloads, batch.bytes),
        None if jobs == last - first + 1 else jobs,
    )
    connection.execute(damage.INSERT_DEAD, (*values, of_values(values)))


def revive(connection: sqlite3.Connection) -> list[DeadRange]:
    """Make sealed batches of marked dead letters, REVIVED_PER_COMMIT at most, and return them."""
    wanted = connection.execute(
        "SELECT first, last, key, compression, payloads, bytes, jobs FROM dead"
        " WHERE retry AND first > 0 ORDER BY first LIMIT ?",
        (REVIVED_PER_COMMIT,),
    ).fetchall()
    for first, last, key, compression, *_ in wanted:
        seal(connection, (first, last, key, compression, None))
    connection.executemany("DELETE FROM dead WHERE first = ?", [row[:1] for row in wanted])
    return [DeadRange(row[0], row[1], *row[4:]) for row in wanted]


def seal(connection: sqlite3.Connection, batch: tuple[int, int, str, str, str | None]) -> None:
    """Note a sealed batch: first, last, key, compression, encoder."""
    connection.execute(_SEAL, (*batch, of_values(batch)))


def batch_row(batch: Batch) -> tuple[int, int, str, str, str | None]:
    """Return the row of ``batches`` for a batch, without its checksum."""
    encoder = FORMATS[batch.format_name].encoder
    return (batch.jobs[0].seq, batch.jobs[-1].seq, batch.key, batch.format_name, encoder)


def ranges(connection: sqlite3.Connection) -> list[DeadRange]:
    """Return the ranges of all dead letters in order."""
    found = connection.execute("SELECT first, last, payloads, bytes, jobs FROM dead ORDER BY first")
    return [DeadRange(*row) for row in found]


def letters(connection: sqlite3.Connection) -> list[DeadLetter]:
    """Return all dead letters, the oldest first."""
    names = stream_rows.read(connection)
    found = connection.execute(
        "SELECT id, at, code, reason, key, payloads, bytes, retry, last FROM dead"
        " ORDER BY at, first"
    )
    return [DeadLetter(*[*row[:-1], _stream_name(names, row[-1])]) for row in found]


def _stream_name(names: Mapping[int, str], last: int) -> str | None:
    """Return the name of the stream of a dead letter; None where its jobs are not known."""
    number = stream_of(abs(last))
    return names.get(number, f"stream-{number}") if number < MOST_NUMBERS else None


def groups(connection: sqlite3.Connection) -> list[DeadLetterGroup]:
    """Return the numbers of dead letters by stream and code."""
    names = stream_rows.read(connection)
    return [
        DeadLetterGroup(_stream_name(names, last) or _UNKNOWN_STREAM, *row)
        for last, *row in connection.execute(_GROUPS)
    ]


def lines(connection: sqlite3.Connection, state_dir: Path, id_: str) -> bytes:
    """Return the payloads of the dead letter ``id_`` as NDJSON.

    Of a dead letter of damage, the bytes that can be read. Raises PayloaddError for an unknown id.
    """
    (found,) = _find(connection, [id_])
    while True:
        members = connection.execute(IN_RANGE, found).fetchall()
        places = [row[4:6] for row in members]
        # A running daemon may move the bytes from a segment into the rows meanwhile, and write over
        # the segment.
        try:
            if found[0] <= 0:
                text = _readable_lines(members, state_dir)
            else:
                text = b"".join(job_rows.lines(members, state_dir))
        except sqlite3.OperationalError:
            if connection.execute(_PLACES, found).fetchall() == places:
                raise
        else:
            if connection.execute(_PLACES, found).fetchall() == places:
                return text


def _readable_lines(members: Sequence[Row], state_dir: Path) -> bytes:
    """Return the lines of damaged rows, as far as they can be read."""
    left = []
    for row in reversed(members):
        # A damaged row may hold anything.
        with suppress(sqlite3.Error, TypeError, ValueError):
            left += [_bytes_of(lines) for lines in job_rows.lines([row], state_dir)]
    return b"".join(left)


def _bytes_of(lines: object) -> bytes:
    if isinstance(lines, str):
        return lines.encode(errors="surrogateescape")
    return lines if isinstance(lines, bytes) else b""


def mark(connection: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Mark dead letters to be tried again, all if ``ids`` is empty; returns how many.

    Raises PayloaddError for an unknown id, or for a dead letter of damage.
    """
    if not ids:
        return connection.execute("UPDATE dead SET retry = 1 WHERE first > 0").rowcount
    found = _find(connection, ids)
    if any(first <= 0 for first, _ in found):
        raise PayloaddError(_NO_RETRY)
    connection.executemany("UPDATE dead SET retry = 1 WHERE first = ? AND last = ?", found)
    return len(found)


def drop(connection: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Delete dead letters and their payloads; returns how many.

    Raises PayloaddError for an unknown id.
    """
    found = _find(connection, ids)
    connection.executemany("DELETE FROM jobs WHERE seq BETWEEN ? AND ?", found)
    connection.executemany("DELETE FROM dead WHERE first = ? AND last = ?", found)
    return len(found)


def _find(connection: sqlite3.Connection, ids: Sequence[str]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    unknown: list[str] = []
    for id_ in dict.fromkeys(ids):
        row = connection.execute("SELECT first, last FROM dead WHERE id = ?", (id_,)).fetchone()
        if row is None:
            unknown.append(id_)
        else:
            found.append(row)
    if unknown:
        raise PayloaddError(f"no dead letter {', '.join(unknown)}; nothing was changed")
    return found
