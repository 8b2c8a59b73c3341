"""What `payloadd check` says of a journal is what a start would find."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.api import Seal
from payloadd.journal.sqlite import file_check
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.lock import lock
from payloadd.journal.sqlite.preflight import try_journal
from payloadd.journal.sqlite.schema import FILE, MIGRATIONS
from payloadd.journal.sqlite.segments import FOLDER
from tests.support.journal import append, batch, job

if TYPE_CHECKING:
    from pathlib import Path

_READ_AT_START: Final = ["batches", "layouts", "dead", "totals"]


def make_journal(folder: Path) -> Path:
    """Leave a journal with two payloads, in one sealed batch, in ``folder``; returns its file."""
    os.close(lock(folder))
    with closing(Database(folder / FILE)) as database:
        database.commit([append(1, count=2), Seal(batch(job(1), job(2)))])
    return folder / FILE


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder; the lock's text is nobody's business."""
    return {
        path.name: b"" if path.name == "journal.lock" else path.read_bytes()
        for path in folder.iterdir()
    }


def change(path: Path, script: str) -> None:
    """Run SQL on a journal."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)


def overwrite_table(path: Path, table: str) -> None:
    """Put other bytes where a small table's only page is."""
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_a_journal_can_be_tried_without_a_trace(tmp_path: Path) -> None:
    """`check` as root would leave a journal that the service's user cannot open."""
    folder = tmp_path / "state" / "payloadd"
    assert try_journal(folder).endswith("journal.db, new")
    assert not contents(tmp_path)
    make_journal(folder)
    before = contents(folder)
    assert "2 payloads wait" in try_journal(folder)
    assert contents(folder) == before


def test_a_journal_without_its_lock_gets_none(tmp_path: Path) -> None:
    """`check` as root would leave a lock that the service's user cannot take."""
    make_journal(tmp_path)
    (tmp_path / "journal.lock").unlink()
    assert "2 payloads wait" in try_journal(tmp_path)
    assert set(contents(tmp_path)) == {FILE, "journal.high"}


def test_a_journal_in_use_is_left_alone(tmp_path: Path) -> None:
    """`check` would say that the settings of a daemon that runs are wrong."""
    file = lock(tmp_path)
    try:
        assert f"in use by process {os.getpid()}" in try_journal(tmp_path)
    finally:
        os.close(file)


def test_a_start_after_a_check_finds_the_journal_free(tmp_path: Path) -> None:
    """`check && systemctl start` would fail now and then."""
    make_journal(tmp_path)
    try_journal(tmp_path)
    os.close(lock(tmp_path))


@pytest.mark.parametrize("content", ["no database, and longer than the header of one" * 9, ""])
def test_a_journal_that_would_not_work_is_found_out(tmp_path: Path, content: str) -> None:
    """`check` would say ok, and `serve` would not start."""
    if content:
        (tmp_path / "journal.db").write_text(content)
    else:
        tmp_path = tmp_path / "file"
        tmp_path.write_text("")
    with pytest.raises(StartError, match="cannot keep a journal in STATE_DIR"):
        try_journal(tmp_path)


@pytest.mark.parametrize("table", [*_READ_AT_START, "jobs"])
def test_a_damaged_table_is_found_out(tmp_path: Path, table: str) -> None:
    """`check` would say ok, and `serve` would not start, or not get far."""
    path = make_journal(tmp_path)
    overwrite_table(path, table)
    before = contents(tmp_path)
    with pytest.raises(StartError, match="cannot keep a journal in STATE_DIR"):
        try_journal(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "script", [*(f"DROP TABLE {name}" for name in _READ_AT_START), "DELETE FROM totals"]
)
def test_a_table_that_is_gone_is_found_out(tmp_path: Path, script: str) -> None:
    """`check` would say ok, and `serve` would not start."""
    change(make_journal(tmp_path), script)
    with pytest.raises(StartError, match=r"totals|not described as it should be"):
        try_journal(tmp_path)


def test_a_large_journal_is_not_read_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` would read a backlog of gigabytes; what a start reads it reads all the same."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    path = make_journal(tmp_path)
    overwrite_table(path, "jobs")
    assert "2 payloads wait" in try_journal(tmp_path)
    overwrite_table(path, "batches")
    with pytest.raises(StartError, match="malformed"):
        try_journal(tmp_path)


def test_a_start_that_was_killed_early_is_no_damage(tmp_path: Path) -> None:
    """`check` would refuse a file without tables, which a start fills."""
    (tmp_path / FILE).touch()
    assert "brings up to date" in try_journal(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b""


def test_a_journal_of_a_newer_version_is_found_out(tmp_path: Path) -> None:
    """`check` before a downgrade would say ok, and `serve` would not start."""
    change(make_journal(tmp_path), f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StartError, match="newer"):
        try_journal(tmp_path)


@pytest.mark.usefixtures("all_large")
def test_a_segment_that_is_gone_or_cut_is_found_out(tmp_path: Path) -> None:
    """`check` would say ok, and `serve` would be unable to read what it has to send."""
    make_journal(tmp_path)
    (segment,) = (tmp_path / FOLDER).iterdir()
    assert "2 payloads wait" in try_journal(tmp_path)
    segment.write_bytes(b"1\n2")
    with pytest.raises(StartError, match=r"segment 1 has 3 bytes, journal.db wants 4"):
        try_journal(tmp_path)
    segment.unlink()
    with pytest.raises(StartError, match=r"0001.ndjson: No such file"):
        try_journal(tmp_path)
    (tmp_path / FILE).unlink()
    segment.with_name(f"{9:020}.ndjson").write_bytes(b"of another journal")
    with pytest.raises(StartError, match="belongs to another journal"):
        try_journal(tmp_path)
