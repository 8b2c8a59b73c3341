"""Tables of the journal, their versions, and the connections to the file.

* ``jobs``: jobs that are accepted and not stored yet. ``seq`` is the number of the job's stream and
  the order of acceptance in it (see ``payloadd.model.streams``). The
  ``lines`` of a large job are in a segment (see ``segments.py``); ``segment``, ``start`` and
  ``size`` give the name of the segment, the offset and the length. The name is stored although it
  follows from ``seq``: where a segment is missing, the segment before it must not be read instead.
* ``blocks``: small jobs that were accepted a short time ago, those of a commit in one row; see
  ``block_format.py`` and ``blocks.py``. A job is in ``jobs`` or in a block, never in both.
* ``batches``: sealed batches, by the range of ``seq`` of their members. Members are neighbours,
  so sealing a thousand jobs writes one row.
* ``stored``: ranges of ``seq`` whose jobs are stored, until their rows are deleted; see
  ``deletion.py``. Also the range of a request that is written with several commits, until the
  last of these commits; see ``staging.py``.
* ``layouts``: the settings that shape objects and keys, each with the first ``seq`` it holds for.
  So a job is replayed under its old key after a change of the settings.
* ``answers``: hashes of Idempotency-Keys and the responses to their requests.
* ``dead``: dead letters, by the range of ``seq`` of their jobs; see ``dead_letters.py``.
* ``identity``: one row, 16 random bytes that identify this journal; see ``identity.py``.
* ``streams``: names of streams by number, without the default one; see ``stream_rows.py``.
* ``segments``: from which job of each stream on a segment can have jobs; see ``segment_rows.py``.
* ``totals``: one row of counters, so that opening a journal of millions of rows does not count
  them. ``accepted`` counts all payloads that were ever accepted; see ``high_water.py``.

The first and the last row of ``batches`` and of ``stored`` are always there: ranges without jobs,
below and above all others. SQLite does not notice a page in the place of another one. Without these
rows, an empty page in the place of the table's would look like a table without rows.

Every row has a checksum in ``crc`` (see ``checksum.py``). NULL means that the row was written by
version 3 or older, which had no checksums. ``jobs.stream`` is not used and 0: ``seq`` has the
stream. ``answers.fingerprint`` shows whether a key comes with other payloads; NULL in rows of
version 3. ``batches.encoder`` names the encoder of the object, so that a later version can check
whether it would produce the same bytes. ``dead.jobs`` is the number of jobs where that is not
``last - first + 1``. Rows of ``jobs`` and ``dead`` with ``seq`` <= 0 are damaged rows; see
``damage.py``.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from payloadd.errors import StartError
from payloadd.files import is_at

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE: Final = "journal.db"
"""Name of the journal in STATE_DIR; SQLite adds ``-wal`` and ``-shm`` beside it."""

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
    # Adding columns rewrites no row, so the time of the upgrade does not depend on the size.
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
    CREATE TABLE streams (number INTEGER PRIMARY KEY, name TEXT NOT NULL, crc INTEGER);
    CREATE TABLE segments (name INTEGER PRIMARY KEY, firsts BLOB NOT NULL, crc INTEGER);
    CREATE TABLE blocks (
        number INTEGER PRIMARY KEY, crc INTEGER NOT NULL, head BLOB NOT NULL, lines BLOB NOT NULL
    );
    """,
    # OR IGNORE: builds between the releases have written these rows into files of version 4.
    """
    INSERT OR IGNORE INTO batches (first, last, key, compression, crc) VALUES
        (0, -1, '', 'none', 3561555155),
        (2305843009213693952, 2305843009213693951, '', 'none', 2770251440);
    INSERT OR IGNORE INTO stored (last, first, crc) VALUES
        (0, 1, 2908379078), (2305843009213693952, 2305843009213693953, 1281460883);
    """,
)
"""Script n upgrades ``user_version`` n to n + 1. A released script never changes."""

ABOVE_ALL: Final = 2**61
"""The key of the last row of ``batches`` and of ``stored``, above every ``seq``; that of the first
row is 0."""
STORED_RANGES: Final = "SELECT first, last FROM stored WHERE first <= last ORDER BY last"
"""The ranges of stored jobs, without the first and the last row of the table."""

ROW_BYTES: Final = 64
"""Approximate bytes of a job's row without its payloads: bounds the size of many tiny payloads."""

KEY_BYTES: Final = 100
"""Approximate bytes of an Idempotency-Key in the file, row and index, where keys are added and
deleted all the time."""

_BUSY_SECONDS: Final = 10.0
"""How long a statement waits for another process (``payloadd journal`` writes for milliseconds)."""


def connect(path: Path, migrations: Sequence[str] | None = None) -> sqlite3.Connection:
    """Open or create the journal at ``path`` and upgrade its tables to this version.

    ``migrations``: scripts to run in place of ``MIGRATIONS``.

    Raises OSError, sqlite3.Error, or StartError for a file that a newer payloadd has written.
    """
    ours = _create(path)
    try:
        connection = _connect(path, ours)
    finally:
        os.close(ours)
    try:
        migrate(connection, MIGRATIONS if migrations is None else migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(path: Path, ours: int) -> sqlite3.Connection:
    """Open the file with the descriptor ``ours``, and set how SQLite writes it."""
    # The connection is used by one thread at a time, but not always by the same thread.
    connection = sqlite3.connect(
        path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = _decode_text
    try:
        # Must come before the first table, otherwise it needs a full VACUUM to take effect.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        if not is_at(ours, path):
            _raise_replaced(path)
        # FULL: a commit returns after the log is synced (https://sqlite.org/pragma.html).
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        # Debian's SQLite overwrites deleted rows with zeros, which doubles the bytes written.
        connection.execute("PRAGMA secure_delete = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def _create(path: Path) -> int:
    """Create the file unless it exists; return a descriptor that names it (O_PATH, open(2)).

    SQLite follows a symbolic link in the place of the database file, and Python cannot pass it the
    flag SQLITE_OPEN_NOFOLLOW. So the file is opened here first, and compared after SQLite has
    opened it. SQLite itself follows no link in the place of the log and its index.

    The descriptor keeps the number of the file from being used again. To close any other kind of
    descriptor would release the locks that SQLite has on the file.

    Raises OSError, and StartError for a symbolic link.
    """
    refuse_link(path)
    # Only the daemon's user may read payloads. SQLite gives its log files the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    file = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        _raise_replaced(path)
    return file


def refuse_link(path: Path) -> None:
    """Raise StartError where ``path`` is a symbolic link."""
    if path.is_symlink():
        raise StartError(f"{path} is a symbolic link; the journal follows none")


def _raise_replaced(path: Path) -> None:
    raise StartError(f"{path} was replaced while it was opened")


def open_existing(path: Path) -> sqlite3.Connection:
    """Open the journal at ``path`` without creating or upgrading it; a daemon may have it open.

    Raises StartError for a symbolic link, and sqlite3.Error where the file does not exist or cannot
    be opened.
    """
    refuse_link(path)
    # `rw` and not `rwc`: this must not create a file.
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )
    connection.text_factory = _decode_text
    return connection


def _decode_text(text: bytes) -> str:
    """Decode a text column; invalid UTF-8 is damage, which the checksum of the row detects."""
    return text.decode(errors="surrogateescape")


def create_copy(path: Path) -> sqlite3.Connection:
    """Create an empty journal at ``path``, without syncs.

    The caller fills it in one transaction and syncs it. Raises OSError where the file exists, and
    sqlite3.Error.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.text_factory = _decode_text
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # After a crash the next start removes the file, so it needs no journal and no syncs.
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        migrate(connection, MIGRATIONS)
    except BaseException:
        connection.close()
        raise
    return connection


def columns_of(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Return the columns of each table as ``pragma_table_info`` rows. Raises sqlite3.Error."""
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    return {
        name: connection.execute("SELECT * FROM pragma_table_info(?)", (name,)).fetchall()
        for (name,) in tables
    }


def expected_columns() -> dict[str, list[tuple[object, ...]]]:
    """Return the result of ``columns_of`` for a new journal."""
    return _columns_after(MIGRATIONS)


@cache  # each repair of the file asks for them again
def _columns_after(migrations: tuple[str, ...]) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, migrations)
        return columns_of(connection)


def waiting_payloads(path: Path) -> int | None:
    """Return the number of payloads waiting in the journal at ``path``, None without a journal.

    Raises sqlite3.Error, or StartError for a file that a newer payloadd has written.
    """
    if not path.exists():
        return None
    with closing(open_existing(path)) as connection:
        check_version(connection)
        (payloads,) = connection.execute("SELECT payloads FROM totals").fetchone()
        return int(payloads)


def migrate(connection: sqlite3.Connection, migrations: Sequence[str]) -> None:
    """Run the migrations that the file lacks, each in a transaction of its own.

    Raises sqlite3.Error, or StartError for a file that a newer payloadd has written.
    """
    version = check_version(connection, len(migrations))
    for number, script in enumerate(migrations[version:], version + 1):
        connection.executescript(f"BEGIN EXCLUSIVE; {script}; PRAGMA user_version={number}; COMMIT")


def read_version(connection: sqlite3.Connection) -> int:
    """Return the format version of a file, 0 for a file without tables. Raises sqlite3.Error."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def check_version(
    connection: sqlite3.Connection, newest: int = len(MIGRATIONS), *, exactly: bool = False
) -> int:
    """Return the format version of a file that this payloadd can upgrade, or read if ``exactly``.

    Raises sqlite3.Error, and StartError for a version above ``newest``, or for a version below it
    if ``exactly``.
    """
    version = read_version(connection)
    if version > newest:
        raise StartError(
            f"the journal has version {version}, this payloadd knows versions up to {newest}:"
            " a newer payloadd has written it"
        )
    if exactly and version < newest:
        raise StartError(
            f"the journal has version {version}, this payloadd reads version {newest}:"
            " start the daemon once to upgrade it"
        )
    return version
