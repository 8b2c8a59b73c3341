"""The journal's file: its mode, its settings and the upgrade of older versions."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import schema
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.schema import (
    MIGRATIONS,
    check_version,
    connect,
    create_copy,
    migrate,
)
from tests.support.journal import append, contents, disk_full, job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FIRST: Final = "CREATE TABLE one (a); INSERT INTO one VALUES (1)"
_SECOND: Final = "ALTER TABLE one ADD COLUMN b; UPDATE one SET b = a + 1"
_BROKEN: Final = "CREATE TABLE three (a); DROP TABLE one; SELECT nonsense"


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Return an empty database in memory."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as one:
        yield one


def version(connection: sqlite3.Connection) -> int:
    """Return the format version of a file."""
    number: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return number


def test_each_migration_runs_once(connection: sqlite3.Connection) -> None:
    """A second start would fail because tables exist, or upgrade rows twice."""
    migrate(connection, [_FIRST])
    migrate(connection, [_FIRST])
    assert version(connection) == 1
    migrate(connection, [_FIRST, _SECOND])
    migrate(connection, [_FIRST, _SECOND])
    assert version(connection) == 2
    assert connection.execute("SELECT a, b FROM one").fetchall() == [(1, 2)]


@pytest.mark.parametrize("create", [connect, create_copy])
def test_a_file_without_space_for_its_tables_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: Callable[[Path], sqlite3.Connection]
) -> None:
    """Each attempt to repair a journal on a full disk would use up one more descriptor."""

    def full(connection: sqlite3.Connection, _scripts: object) -> None:
        used.append(connection)
        raise disk_full()

    used: list[sqlite3.Connection] = []
    monkeypatch.setattr(schema, "migrate", full)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        create(tmp_path / "journal.db")
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        used[0].execute("SELECT 1")


def test_a_failed_migration_leaves_the_previous_version(tmp_path: Path) -> None:
    """A failed upgrade would leave a journal that no version can read."""
    path = tmp_path / "journal.db"
    one = sqlite3.connect(path, isolation_level=None)
    with closing(one), pytest.raises(sqlite3.OperationalError):
        migrate(one, [_FIRST, _SECOND, _BROKEN])
    with closing(sqlite3.connect(path, isolation_level=None)) as again:
        assert version(again) == 2
        tables = again.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        assert tables == [("one",)]
        migrate(again, [_FIRST, _SECOND, "UPDATE one SET a = 7"])
        assert again.execute("SELECT a, b FROM one").fetchall() == [(7, 2)]


def test_a_file_of_a_newer_version_is_not_changed(tmp_path: Path) -> None:
    """A downgrade would write old rows into new tables."""
    path = tmp_path / "journal.db"
    connect(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as newer:
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StartError, match="newer"):
        connect(path)


def test_an_older_version_is_refused_where_no_upgrade_is_allowed(
    connection: sqlite3.Connection,
) -> None:
    """`payloadd journal` would fail with a message about a missing column."""
    migrate(connection, MIGRATIONS[:3])
    assert check_version(connection) == 3
    with pytest.raises(StartError, match=r"version 3, .* start the daemon once to upgrade it"):
        check_version(connection, exactly=True)


def test_an_upgrade_keeps_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that the old version accepted would be lost."""
    path = tmp_path / "journal.db"
    with closing(Database(path)) as old:
        old.commit([append(1, count=3)])
    extra = "ALTER TABLE jobs ADD COLUMN note TEXT; UPDATE jobs SET note = 'old' || seq"
    monkeypatch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, extra))
    with closing(Database(path)) as new:
        assert contents(new.page(0, 10, 1000)) == contents([job(1), job(2), job(3)])
        assert (new.totals.next, new.totals.jobs) == (4, 3)
    with closing(sqlite3.connect(path)) as seen:
        assert version(seen) == len(MIGRATIONS) + 1
        assert seen.execute("SELECT note FROM jobs").fetchall() == [("old1",), ("old2",), ("old3",)]


def test_an_upgrade_counts_the_idempotency_keys(tmp_path: Path) -> None:
    """A journal full of keys would accept as many again before it evicts the oldest."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        migrate(old, MIGRATIONS[:3])
        old.execute("INSERT INTO answers VALUES (x'01', x'00', 1, 1), (x'02', x'00', 1, 1)")
    with closing(Database(path)) as new:
        assert new.totals.keys == 2


def test_the_next_start_retries_a_failed_upgrade(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full during the upgrade would destroy the journal."""
    path = tmp_path / "journal.db"
    with closing(Database(path)) as old:
        old.commit([append(1)])
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*MIGRATIONS, "DROP TABLE jobs; SELECT nonsense"))
        with pytest.raises(sqlite3.OperationalError):
            Database(path)
    with closing(Database(path)) as again:
        assert contents(again.page(0, 10, 1000)) == contents([job(1)])


def test_only_the_owner_can_read_the_files(tmp_path: Path) -> None:
    """Other users of the machine could read payloads."""
    before = os.umask(0)
    try:
        with closing(Database(tmp_path / "journal.db")) as database:
            database.commit([append(1)])
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    names = ["journal.db", "journal.db-wal", "journal.db-shm", "journal.high"]
    assert modes == dict.fromkeys(names, 0o600)


def test_commits_are_synced_and_the_file_can_shrink(tmp_path: Path) -> None:
    """A power cut would lose accepted payloads, and a full disk would stay full."""
    with closing(connect(tmp_path / "journal.db")) as one:
        pragmas = {
            name: one.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "auto_vacuum")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "auto_vacuum": 2}


def test_a_file_that_is_no_database_is_not_overwritten(tmp_path: Path) -> None:
    """A wrong STATE_DIR would destroy a file of another program."""
    path = tmp_path / "journal.db"
    path.write_bytes(b"dear diary " * 100)
    with pytest.raises(sqlite3.DatabaseError):
        connect(path)
    assert path.read_bytes() == b"dear diary " * 100
