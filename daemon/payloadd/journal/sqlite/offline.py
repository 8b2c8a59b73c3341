"""Looks into a journal from outside, whether a daemon has it open or not.

SQLite lets a second process read and write beside the daemon. What it writes is little: a
mark on dead letters, which the daemon sees within a second, or their removal.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from payloadd.errors import PayloaddError
from payloadd.journal.sqlite import damaged_files, dead_letters
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.lock import owner
from payloadd.journal.sqlite.schema import FILE, MIGRATIONS, look_into
from payloadd.journal.sqlite.segments import space
from payloadd.journal.sqlite.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Finding
    from payloadd.journal.sqlite.dead_letters import DeadLetter


_OLDEST: Final = """
    SELECT id FROM jobs
    WHERE seq > coalesce((SELECT last FROM dead WHERE first <= seq ORDER BY first DESC LIMIT 1), 0)
    AND NOT EXISTS (SELECT 1 FROM stored WHERE seq BETWEEN first AND last)
    ORDER BY seq LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """What is in a journal: counts, bytes, seconds."""

    process: int | None
    """The daemon that has it open, None if none has."""
    jobs: int
    payloads: int
    bytes: int
    oldest_seconds: float
    sealed_batches: int
    dead_letters: int
    dead_payloads: int
    dead_bytes: int
    damaged: int
    """Dead letters with the code DAMAGED."""
    idempotency_keys: int
    file_bytes: int


class Inspection:
    """One look into the journal of ``folder``; get one from :meth:`open`."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self._folder = folder
        self._connection = connection

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Self]:
        """Open the journal in ``folder``; raises PayloaddError that says what is wrong."""
        path = folder / FILE
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            where = folder.absolute()
            raise PayloaddError(f"no journal in {where}; is STATE_DIR the daemon's?") from None
        except OSError as error:
            raise PayloaddError(f"cannot read the journal {path}: {error.strerror}") from None
        try:
            connection = look_into(path)
            try:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version != len(MIGRATIONS):
                    raise PayloaddError(
                        f"{path} has version {version}, this payloadd reads {len(MIGRATIONS)}"
                    )
                yield cls(folder, connection)
            finally:
                connection.close()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise PayloaddError(f"cannot read the journal {path}: {error}") from None

    def status(self) -> JournalStatus:
        """Return what is in the journal now."""
        one = self._one
        oldest = one(_OLDEST)
        accepted_at = time.time() if oldest is None else (uuid.UUID(bytes=oldest).int >> 80) / 1000
        return JournalStatus(
            process=owner(self._folder),
            jobs=one("SELECT jobs FROM totals"),
            payloads=one("SELECT payloads FROM totals"),
            bytes=one("SELECT bytes FROM totals"),
            oldest_seconds=round(max(0.0, time.time() - accepted_at), 3),
            sealed_batches=one("SELECT count(*) FROM batches"),
            dead_letters=one("SELECT count(*) FROM dead"),
            dead_payloads=one("SELECT coalesce(sum(payloads), 0) FROM dead"),
            dead_bytes=one("SELECT coalesce(sum(bytes), 0) FROM dead"),
            damaged=one(f"SELECT count(*) FROM dead WHERE code = '{CODE}'"),  # noqa: S608 - ours
            idempotency_keys=one("SELECT count(*) FROM answers"),
            file_bytes=(self._folder / FILE).stat().st_size + space(self._folder),
        )

    def dead(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first."""
        return dead_letters.letters(self._connection)

    def verify(self) -> list[Finding]:
        """Read and check everything; returns what is damaged."""
        return verify(self._connection, self._folder)

    def lines(self, id_: str) -> bytes:
        """Return the payloads of a dead letter as NDJSON; raises PayloaddError."""
        return dead_letters.lines(self._connection, self._folder, id_)

    def retry(self, ids: Sequence[str]) -> int:
        """Mark dead letters (all, if ``ids`` is empty) to be tried again; returns how many."""
        with self._transaction():
            return dead_letters.mark(self._connection, ids)

    def drop(self, ids: Sequence[str]) -> int:
        """Remove dead letters; returns how many."""
        with self._transaction():
            dropped = dead_letters.drop(self._connection, ids)
        if not self._one(f"SELECT count(*) FROM dead WHERE code = '{CODE}'"):  # noqa: S608 - ours
            # Kept for as long as something of it may be wanted.
            damaged_files.remove(self._folder)
        return dropped

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Commits, or rolls back if the body fails.
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def _one(self, statement: str) -> Any:  # noqa: ANN401 - one value of any column
        row = self._connection.execute(statement).fetchone()
        return None if row is None else row[0]
