"""Inspect and check a journal from another process than the daemon's.

SQLite lets a second process read and write beside the daemon. An ``Inspection`` reads, and writes
little: it marks dead letters, which the daemon sees within a second, or removes them. A check
before a start (``try_journal``) leaves no trace.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Self

from payloadd.errors import PayloaddError, StartError, StateDirError
from payloadd.journal.sqlite import (
    block_rows,
    dead_letters,
    file_check,
    high_water_record,
    identity,
    stream_rows,
)
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.file_check import check_schema, find_problem
from payloadd.journal.sqlite.lock import lock, owner, try_lock
from payloadd.journal.sqlite.salvage import remove_damaged_files
from payloadd.journal.sqlite.schema import (
    FILE,
    MIGRATIONS,
    STORED_RANGES,
    check_version,
    open_existing,
    refuse_link,
)
from payloadd.journal.sqlite.segments import Segments, space
from payloadd.journal.sqlite.transaction import count
from payloadd.journal.sqlite.verify import check_jobs, check_small_tables, format_finding, verify
from payloadd.model.job import accepted_at
from payloadd.model.streams import DEFAULT, first_seq, last_seq, stream_of
from payloadd.observe.status import JournalStatus, StreamStatus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from payloadd.journal.inspection import DeadLetter
    from payloadd.journal.sqlite.block_rows import BlockCount
    from payloadd.journal.sqlite.damage import Finding
    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.observe.status import DeadLetterGroup


_OLDEST: Final = """
    SELECT id FROM jobs
    WHERE seq BETWEEN ? AND ?
    AND seq > coalesce((SELECT last FROM dead WHERE first <= seq ORDER BY first DESC LIMIT 1), 0)
    AND NOT EXISTS (SELECT 1 FROM stored WHERE seq BETWEEN first AND last)
    ORDER BY seq LIMIT 1
"""
_READ_AT_START: Final = (
    "SELECT first, last, key, compression FROM batches",
    "SELECT first, template, host, compression, alone FROM layouts",
    "SELECT first, last, payloads, bytes FROM dead",
    "SELECT first, last FROM stored",
    "SELECT number, name FROM streams",
    "SELECT number, crc, head FROM blocks",
)
_BYTES_IN_SEGMENTS: Final = """
    SELECT segment, max(start + size) FROM jobs WHERE segment IS NOT NULL GROUP BY segment
"""


class Inspection:
    """An open connection to the journal in ``folder``; made by :meth:`open`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self._folder = folder
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Self]:
        """Open the journal in ``folder``.

        Raises PayloaddError where there is no journal of this version or it cannot be read; errors
        of SQLite in the body become PayloaddError too.
        """
        path = folder / FILE
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            where = folder.absolute()
            raise PayloaddError(f"no journal in {where}; is STATE_DIR the daemon's?") from None
        except OSError as error:
            raise PayloaddError(f"cannot read the journal {path}: {error.strerror}") from None
        refuse_link(path)
        try:
            with closing(open_existing(path)) as connection:
                _check_readable_version(connection, path)
                yield cls(folder, connection)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise PayloaddError(f"cannot read the journal {path}: {error}") from None

    def status(self) -> JournalStatus:
        """Return the current counts, bytes and ages. Raises sqlite3.Error, StartError."""
        # A running daemon may move jobs from blocks into rows meanwhile.
        self._connection.execute("BEGIN")
        try:
            return self._status()
        finally:
            self._connection.execute("ROLLBACK")

    def _status(self) -> JournalStatus:
        value = self._value
        streams = self._streams()
        return JournalStatus(
            process=owner(self._folder),
            jobs=value("SELECT jobs FROM totals"),
            payloads=value("SELECT payloads FROM totals"),
            bytes=value("SELECT bytes FROM totals"),
            oldest_seconds=max(one.oldest_seconds for one in streams.values()),
            sealed_batches=value("SELECT count(*) FROM batches WHERE first <= last"),
            dead_letters=value("SELECT count(*) FROM dead"),
            dead_payloads=value("SELECT coalesce(sum(payloads), 0) FROM dead"),
            dead_bytes=value("SELECT coalesce(sum(bytes), 0) FROM dead"),
            damaged=self._damaged(),
            idempotency_keys=value("SELECT count(*) FROM answers"),
            file_bytes=(self._folder / FILE).stat().st_size + space(self._folder),
            streams=streams,
        )

    def _streams(self) -> dict[str, StreamStatus]:
        """Return the figures of the default stream and of each other one that has jobs, by name."""
        names = stream_rows.read(self._connection)
        stored = self._rows(STORED_RANGES)
        # Once for all streams: a block has jobs of many of them.
        in_blocks: dict[int, list[BlockCount]] = {}
        for one in block_rows.waiting(self._connection, stored):
            in_blocks.setdefault(stream_of(one.first), []).append(one)
        with_jobs = {DEFAULT, *stream_rows.with_jobs(self._connection), *in_blocks}
        alone = len(with_jobs) == 1
        return {
            names.get(number, f"stream-{number}"): self._stream(
                number, in_blocks.get(number, []), alone=alone
            )
            for number in sorted(with_jobs)
        }

    def _stream(self, number: int, in_blocks: Sequence[BlockCount], *, alone: bool) -> StreamStatus:
        """Return the figures of a stream; ``in_blocks``: its jobs that are in blocks."""
        range_ = (first_seq(number) + 1, last_seq(number))
        if alone:
            # Counting reads all rows.
            jobs, payloads, size = self._rows("SELECT jobs, payloads, bytes FROM totals")[0]
        else:
            apart = [one for table in ("dead", "stored") for one in self._ranges(table, range_)]
            jobs, payloads, size = count(self._connection, apart, range_, in_blocks)
        oldest = self._rows(_OLDEST, range_)
        times = [one.accepted / 1000 for one in in_blocks]
        times += [accepted_at(uuid.UUID(bytes=id_)) for (id_,) in oldest]
        age = time.time() - min(times) if times else 0.0
        dead = len(self._ranges("dead", range_))
        return StreamStatus(jobs, payloads, size, round(max(0.0, age), 3), dead)

    def _ranges(self, table: str, within: Range) -> list[Range]:
        query = f"SELECT first, last FROM {table} WHERE abs(last) BETWEEN ? AND ?"  # noqa: S608 - ours
        return self._rows(query, within)

    def _rows(self, query: str, values: Sequence[int] = ()) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def dead(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first. Raises sqlite3.Error."""
        return dead_letters.letters(self._connection)

    def dead_groups(self) -> list[DeadLetterGroup]:
        """Return the numbers of dead letters by stream and code. Raises sqlite3.Error."""
        return dead_letters.groups(self._connection)

    def verify(self) -> list[Finding]:
        """Read and check the whole journal; return its damage. Raises sqlite3.Error."""
        return verify(self._connection, self._folder)

    def lines(self, id_: str) -> bytes:
        """Return the payloads of a dead letter as NDJSON. Raises PayloaddError, sqlite3.Error."""
        return dead_letters.lines(self._connection, self._folder, id_)

    def retry(self, ids: Sequence[str]) -> int:
        """Mark dead letters (all, if ``ids`` is empty) for a retry; return their number.

        Raises PayloaddError for an unknown id and for damaged dead letters, and sqlite3.Error.
        """
        with self._transaction():
            return dead_letters.mark(self._connection, ids)

    def drop(self, ids: Sequence[str]) -> int:
        """Delete dead letters with their payloads; return their number.

        Deletes the copies of damaged files with the last damaged dead letter. Raises PayloaddError
        for an unknown id, and sqlite3.Error, OSError.
        """
        with self._transaction():
            dropped = dead_letters.drop(self._connection, ids)
        if not self._damaged():
            remove_damaged_files(self._folder)
        return dropped

    def _damaged(self) -> int:
        return int(self._value(f"SELECT count(*) FROM dead WHERE code = '{CODE}'"))  # noqa: S608 - ours

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Commits, or rolls back if the body fails.
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def _value(self, statement: str) -> Any:  # noqa: ANN401 - one value of any column
        row = self._connection.execute(statement).fetchone()
        return None if row is None else row[0]


def _check_readable_version(connection: sqlite3.Connection, path: Path) -> None:
    try:
        check_version(connection, exactly=True)
    except StartError as error:
        raise PayloaddError(f"cannot read the journal {path}: {error}") from None


def try_journal(folder: Path) -> str:
    """Check whether a start could use a journal in ``folder``; return its state as text.

    Leaves no new file: the service's user could not write a file that another user has made. Raises
    StartError where a start would fail.
    """
    path = folder / FILE
    process = try_lock(folder)
    if process is not None:
        return f"{path}, in use by process {process}"
    made: list[Path] = []
    try:
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="payloadd-check-") as scratch:
            os.close(lock(Path(scratch), shown=folder))
            Database(Path(scratch) / FILE).close()
        found = _try_file(path) if path.exists() else _try_new(folder)
    except StateDirError:
        raise
    except (OSError, sqlite3.Error, StartError, UnicodeDecodeError) as error:
        raise StartError(f"cannot keep a journal in STATE_DIR {folder}: {error}") from None
    finally:
        for one in made:
            with suppress(OSError):
                one.rmdir()
    return f"{path}, {found}"


def _try_new(folder: Path) -> str:
    """Check that there are no segments of another journal."""
    Segments(folder).check(1)
    return "new"


def _try_file(path: Path) -> str:
    """Read those parts of the journal at ``path`` that a start reads, and change nothing.

    Returns its state as text. Raises OSError, sqlite3.Error, StartError.
    """
    refuse_link(path)
    # This error names the cause, where SQLite's is only "unable to open database file".
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
    with closing(open_existing(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
        _check_pages(connection)
        version = check_version(connection)
        if version < len(MIGRATIONS):
            return f"version {version}, which a start upgrades"
        check_schema(connection)
        for query in _READ_AT_START:
            connection.execute(query).fetchall()
        _refuse_damage(check_small_tables(connection))
        totals = connection.execute("SELECT next, jobs, payloads, bytes FROM totals").fetchone()
        if totals is None:
            raise StartError(f"the row of totals is missing in {FILE}")
        # A start continues after the numbers of lost rows.
        record = high_water_record.read(path)
        if record is not None and identity.is_foreign(connection, record.journal):
            raise StartError(identity.FOREIGN)
        following = totals[0] if totals[0] == 1 or record is None else max(totals[0], record.next)
        _check_segments(connection, path.parent, following)
        if path.stat().st_size > file_check.MOST_CHECKED:
            return f"{totals[2]} payloads wait (`payloadd journal verify` checks each of them)"
        _refuse_damage(check_jobs(connection, path.parent))
        return f"{totals[2]} payloads wait"


def _check_pages(connection: sqlite3.Connection) -> None:
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    if pages * size <= file_check.MOST_CHECKED:
        problem = find_problem(connection)
        if problem is not None:
            raise StartError(f"{FILE} is damaged: {problem}")


def _refuse_damage(found: Sequence[Finding]) -> None:
    if found:
        more = f"; {len(found) - 1} more, see `payloadd journal verify`" if len(found) > 1 else ""
        raise StartError(f"damaged: {format_finding(found[0])}{more}")


def _check_segments(connection: sqlite3.Connection, folder: Path, following: int) -> None:
    """Check that each segment that rows refer to exists and is long enough."""
    segments = Segments(folder)
    segments.check(following)
    for name, needed in connection.execute(_BYTES_IN_SEGMENTS).fetchall():
        size = segments.size(name)
        if size < needed:
            raise StartError(f"the segment {name} has {size} bytes, {FILE} refers to {needed}")
