"""The tables of the journal and how an old file becomes a new one.

* ``jobs``: what is accepted and not stored. ``seq`` is the order of acceptance. The ``lines`` of
  a large job are in a file (see ``segments.py``): which one, from where on, how many bytes. Its
  name is kept though it follows from ``seq``: where a file is missing, the one before it must
  not be taken for it.
* ``batches``: the sealed ones, by the range of ``seq`` of their members. Members are
  neighbours, so sealing a thousand jobs costs one row.
* ``stored``: ranges of ``seq`` whose jobs are in the store, and have rows only until those are
  deleted; see ``deletion.py``. Also the range of the request that is being written with several
  commits, until the last of them; see ``staging.py``.
* ``layouts``: from which ``seq`` on which settings shape objects and keys, so that a job is
  replayed under the key it had, whatever the settings say by then.
* ``answers``: Idempotency-Keys (their hash) and what they were answered with.
* ``dead``: dead letters, by the range of ``seq`` too; see ``dead_letters.py``.
* ``identity``: one row, 16 random bytes that name this journal; see ``identity.py``.
* ``totals``: one row, so that opening a journal of millions does not count them. ``accepted`` is
  how many payloads there ever were; see ``high_water.py``.

Every row has a checksum in ``crc`` (see ``checksum.py``); NULL means unknown, from version 3.
Version 4 also has columns that nothing fills yet: ``jobs.stream`` (0: the default stream) and
``answers.fingerprint`` (of the body that came with the key). ``batches.encoder`` names what
makes the bytes of the object, so that a later version can tell whether it makes the same.
``dead.jobs`` counts the members where that is not ``last - first + 1``. Rows of ``jobs`` and
``dead`` with a ``seq`` of 0 or less are what is damaged; see ``damage.py``.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from payloadd.errors import StartError

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
    # Adding columns rewrites no row: a journal of any size is upgraded in milliseconds.
    """
    ALTER TABLE jobs ADD COLUMN stream INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE jobs ADD COLUMN crc INTEGER;
    ALTER TABLE batches ADD COLUMN encoder TEXT;
    ALTER TABLE batches ADD COLUMN crc INTEGER;
    ALTER TABLE layouts ADD COLUMN crc INTEGER;
    ALTER TABLE answers ADD COLUMN fingerprint BLOB;
    ALTER TABLE answers ADD COLUMN crc INTEGER;
    ALTER TABLE dead ADD COLUMN jobs INTEGER;
    ALTER TABLE dead ADD COLUMN crc INTEGER;
    ALTER TABLE stored ADD COLUMN crc INTEGER;
    ALTER TABLE totals ADD COLUMN crc INTEGER;
    ALTER TABLE totals ADD COLUMN keys INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE totals ADD COLUMN accepted INTEGER NOT NULL DEFAULT 0;
    UPDATE totals SET keys = (SELECT count(*) FROM answers);
    CREATE TABLE identity (id BLOB NOT NULL, crc INTEGER);
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
    connection.text_factory = _text
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
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )
    connection.text_factory = _text
    return connection


def _text(found: bytes) -> str:
    """Decode a text; what is no UTF-8 is damage, which the checksum of its row tells."""
    return found.decode(errors="surrogateescape")


def create_copy(path: Path) -> sqlite3.Connection:
    """Open a new journal at ``path``, to be filled by one transaction and synced by the caller.

    Raises OSError, sqlite3.Error.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    # A crash leaves a file that the next start removes.
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    migrate(connection, MIGRATIONS)
    return connection


def columns_of(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Return the names and kinds of all columns of all tables. Raises sqlite3.Error."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return {
        name: connection.execute("SELECT * FROM pragma_table_info(?)", (name,)).fetchall()
        for (name,) in tables
    }


def wanted_columns() -> dict[str, list[tuple[object, ...]]]:
    """Return what ``columns_of`` returns for a new journal."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, MIGRATIONS)
        return columns_of(connection)


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
