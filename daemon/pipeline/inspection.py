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
from typing import TYPE_CHECKING, Any, Self

from daemon.errors import PayloaddError
from daemon.pipeline.lock import owner
from daemon.pipeline.schema import FILE, MIGRATIONS, look_into

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Status:
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
    file_bytes: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An object that the store refused for good."""

    id: str
    at: int
    """Unix time in seconds."""
    code: str
    reason: str
    key: str
    payloads: int
    bytes: int
    retry: int
    """1: marked to be tried again."""


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
        except sqlite3.Error as error:
            raise PayloaddError(f"cannot read the journal {path}: {error}") from None

    def status(self) -> Status:
        """Return what is in the journal now."""
        one = self._one
        oldest = one("SELECT id FROM jobs ORDER BY seq LIMIT 1")
        accepted_at = time.time() if oldest is None else (uuid.UUID(bytes=oldest).int >> 80) / 1000
        return Status(
            process=owner(self._folder),
            jobs=one("SELECT jobs FROM totals"),
            payloads=one("SELECT payloads FROM totals"),
            bytes=one("SELECT bytes FROM totals"),
            oldest_seconds=round(max(0.0, time.time() - accepted_at), 3),
            sealed_batches=one("SELECT count(*) FROM batches"),
            dead_letters=one("SELECT count(*) FROM dead"),
            dead_payloads=one("SELECT coalesce(sum(payloads), 0) FROM dead"),
            file_bytes=(self._folder / FILE).stat().st_size,
        )

    def dead(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first."""
        rows = self._connection.execute(
            "SELECT id, at, code, reason, key, payloads, length(lines), retry FROM dead"
            " ORDER BY at, id"
        )
        return [DeadLetter(*row) for row in rows]

    def lines(self, id_: str) -> bytes:
        """Return the payloads of a dead letter as NDJSON; raises PayloaddError."""
        self._check([id_])
        lines: bytes = self._one("SELECT lines FROM dead WHERE id = ?", id_)
        return lines

    def retry(self, ids: Sequence[str]) -> int:
        """Mark dead letters (all, if ``ids`` is empty) to be tried again; returns how many."""
        self._check(ids)
        if not ids:
            return self._connection.execute("UPDATE dead SET retry = 1").rowcount
        return self._for_each("UPDATE dead SET retry = 1 WHERE id = ?", ids)

    def drop(self, ids: Sequence[str]) -> int:
        """Remove dead letters; returns how many."""
        self._check(ids)
        return self._for_each("DELETE FROM dead WHERE id = ?", ids)

    def _check(self, ids: Sequence[str]) -> None:
        known = {letter.id for letter in self.dead()}
        unknown = [id_ for id_ in ids if id_ not in known]
        if unknown:
            raise PayloaddError(f"no dead letter {', '.join(unknown)}; nothing was changed")

    def _for_each(self, statement: str, ids: Sequence[str]) -> int:
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            return self._connection.executemany(statement, [(id_,) for id_ in ids]).rowcount

    def _one(self, statement: str, *arguments: str) -> Any:  # noqa: ANN401 - one value of any column
        row = self._connection.execute(statement, arguments).fetchone()
        return None if row is None else row[0]
