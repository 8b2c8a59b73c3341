"""The tables of the journal and how an old file becomes a new one.

* ``jobs``: what is accepted and not stored. ``seq`` is the order of acceptance. The ``lines`` of
  a large job are in a file (see ``segments.py``): which one, from where on, how many bytes. Its
  name is kept though it follows from ``seq``: where a file is missing, the one before it must
  not be taken for it.
* ``batches``: the sealed ones, by the range of ``seq`` of their members. Members are
  neighbours, so sealing a thousand jobs costs one row.
* ``stored``: ranges of ``seq`` whose jobs are in the store, and have rows only until those are
  deleted; see ``clearance.py``.
* ``layouts``: from which ``seq`` on which settings shape objects and keys, so that a job is
  replayed under the key it had, whatever the settings say by then.
* ``answers``: Idempotency-Keys (their hash) and what they were answered with.
* ``dead``: dead letters, by the range of ``seq`` too; see ``dead_letters.py``.
* ``totals``: one row, so that opening a journal of millions does not count them. ``accepted`` is
  how many payloads there ever were; see ``high_water.py``.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from daemon.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE: Final = "journal.db"
"""The journal's name in STATE_DIR; SQLite adds ``-wal`` and ``-shm`` beside it."""

MIGRATIONS: Final = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY, id BLOB NOT NULL, payloads INTEGER NOT NULL, lines BLOB NOT NULL
    );
    CREATE TABLE batches (
        first INTEGER PRIMARY KEY, last INTEGER NOT NULL, key TEXT NOT NULL,
        compression TEXT NOT NULL
    );
    CREATE TABLE layouts (
        first INTEGER PRIMARY KEY, template TEXT NOT NULL, host TEXT NOT NULL,
        compression TEXT NOT NULL, alone INTEGER NOT NULL
    );
    CREATE TABLE answers (
        key BLOB PRIMARY KEY, id BLOB NOT NULL, payloads INTEGER NOT NULL, expires INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX answers_expires ON answers (expires);
    CREATE TABLE dead (
        first INTEGER PRIMARY KEY, last INTEGER NOT NULL, key TEXT NOT NULL,
        compression TEXT NOT NULL, id TEXT NOT NULL UNIQUE, at INTEGER NOT NULL,
        code TEXT NOT NULL, reason TEXT NOT NULL, payloads INTEGER NOT NULL,
        bytes INTEGER NOT NULL, retry INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX dead_retry ON dead (first) WHERE retry;
    CREATE TABLE totals (
        next INTEGER NOT NULL, jobs INTEGER NOT NULL, payloads INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    );
    INSERT INTO totals VALUES (1, 0, 0, 0);
    """,
    """
    ALTER TABLE jobs ADD COLUMN segment INTEGER;
    ALTER TABLE jobs ADD COLUMN start INTEGER;
    ALTER TABLE jobs ADD COLUMN size INTEGER;
    CREATE INDEX jobs_segment ON jobs (segment, size) WHERE segment IS NOT NULL;
    """,
    """
    CREATE TABLE stored (last INTEGER PRIMARY KEY, first INTEGER NOT NULL);
    """,
    """
    ALTER TABLE totals ADD COLUMN keys INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN accepted INTEGER NOT NULL DEFAULT 0;
    UPDATE totals SET keys = (SELECT count(*) FROM answers);
    """,
)
"""Script number n leads from ``user_version`` n to n + 1; one that was released never changes."""

ROW_BYTES: Final = 64
"""What a job's row takes beside its payloads, about: many tiny payloads are bounded too."""

KEY_BYTES: Final = 100
"""What an Idempotency-Key takes in the file, row and index, where keys come and go: 83 measured,
and room for what a row may grow by."""

_BUSY_SECONDS: Final = 10.0
"""How long a statement waits for ``payloadd journal``, which writes for milliseconds."""


def connect(path: Path) -> sqlite3.Connection:
    """Open or create the journal at ``path``, with its tables as of this version.

    Raises OSError, sqlite3.Error, or StartError for a file that a newer payloadd has written.
    """
    # The payloads are nobody else's business; the log files get the same mode from SQLite.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    # One thread at a time uses it, but not always the same one.
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    try:
        # Before the first table, or it needs a full VACUUM to take effect.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit returns after the log is synced (https://sqlite.org/pragma.html).
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        # Debian's SQLite writes zeros over all that is deleted: as much again as was stored.
        connection.execute("PRAGMA secure_delete = OFF")
        migrate(connection, MIGRATIONS)
    except BaseException:
        connection.close()
        raise
    return connection


def look_into(path: Path) -> sqlite3.Connection:
    """Open the journal at ``path`` beside a daemon that may have it open, as it is.

    Raises sqlite3.Error (there is none, or it cannot be read).
    """
    # `rw` and not `rwc`: looking must not create what is not there.
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )


def waiting_payloads(path: Path) -> int | None:
    """Return how many payloads wait in the journal at ``path``, None if there is no journal.

    Raises sqlite3.Error, or StartError for a file that a newer payloadd has written.
    """
    if not path.exists():
        return None
    with closing(look_into(path)) as connection:
        _check_version(connection)
        (payloads,) = connection.execute("SELECT payloads FROM totals").fetchone()
        return int(payloads)


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Bring the tables up to date, each step whole or not at all."""
    version = _check_version(connection, len(migrations))
    for number, script in enumerate(migrations[version:], version + 1):
        connection.executescript(f"BEGIN EXCLUSIVE; {script}; PRAGMA user_version={number}; COMMIT")


def _check_version(connection: sqlite3.Connection, newest: int = len(MIGRATIONS)) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > newest:
        raise StartError(
            f"the journal has version {version}, this payloadd knows versions up to {newest}:"
            " it was written by a newer one"
        )
    return int(version)
