"""`payloadd check` reports the journal problems that a start would have."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import file_check, segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.lock import lock
from payloadd.journal.sqlite.offline import Inspection, try_journal
from payloadd.journal.sqlite.operations import Append, Bury, Seal
from payloadd.journal.sqlite.schema import FILE, MIGRATIONS
from payloadd.journal.sqlite.segments import FOLDER
from payloadd.model.job import Part
from payloadd.observe.status import DeadLetterGroup
from tests.support.journal import append, batch, id_of, job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.segments import SegmentSpan

_READ_AT_START: Final = ["batches", "layouts", "dead", "totals"]


def make_journal(folder: Path) -> Path:
    """Make a journal with two payloads in one sealed batch; return its file."""
    os.close(lock(folder))
    with closing(Database(folder / FILE)) as database:
        database.commit([append(1, count=2), Seal(batch(job(1), job(2)))])
    return folder / FILE


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files in a folder, without that of the lock file."""
    return {
        path.name: b"" if path.name == "journal.lock" else path.read_bytes()
        for path in folder.iterdir()
    }


def change(path: Path, script: str) -> None:
    """Run SQL on a journal."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)


def overwrite_table(path: Path, table: str) -> None:
    """Overwrite the only page of a small table with 0xff."""
    with closing(sqlite3.connect(path)) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def test_a_check_changes_no_file(tmp_path: Path) -> None:
    """`check` as root would leave a journal that the service's user cannot open."""
    folder = tmp_path / "state" / "payloadd"
    assert try_journal(folder).endswith("journal.db, new")
    assert not contents(tmp_path)
    make_journal(folder)
    before = contents(folder)
    assert "2 payloads wait" in try_journal(folder)
    assert contents(folder) == before


def test_a_check_creates_no_lock_file(tmp_path: Path) -> None:
    """`check` as root would leave a lock file that the service's user cannot open."""
    make_journal(tmp_path)
    (tmp_path / "journal.lock").unlink()
    assert "2 payloads wait" in try_journal(tmp_path)
    assert set(contents(tmp_path)) == {FILE, "journal.high"}


def test_a_journal_in_use_is_not_checked(tmp_path: Path) -> None:
    """`check` would report an error for a running daemon."""
    file = lock(tmp_path)
    try:
        assert f"in use by process {os.getpid()}" in try_journal(tmp_path)
    finally:
        os.close(file)


def test_a_check_releases_the_lock(tmp_path: Path) -> None:
    """`check && systemctl start` would fail at random."""
    make_journal(tmp_path)
    try_journal(tmp_path)
    os.close(lock(tmp_path))


@pytest.mark.parametrize("content", ["no database, but longer than its header" * 9, ""])
def test_a_file_that_is_no_journal_is_reported(tmp_path: Path, content: str) -> None:
    """`check` would print ok, and `serve` would not start."""
    if content:
        (tmp_path / "journal.db").write_text(content)
    else:
        tmp_path = tmp_path / "file"
        tmp_path.write_text("")
    with pytest.raises(StartError, match="cannot keep a journal in STATE_DIR"):
        try_journal(tmp_path)


@pytest.mark.parametrize("table", [*_READ_AT_START, "jobs"])
def test_a_damaged_table_is_reported(tmp_path: Path, table: str) -> None:
    """`check` would print ok, and `serve` would not start or fail soon."""
    path = make_journal(tmp_path)
    overwrite_table(path, table)
    before = contents(tmp_path)
    with pytest.raises(StartError, match="cannot keep a journal in STATE_DIR"):
        try_journal(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "script", [*(f"DROP TABLE {name}" for name in _READ_AT_START), "DELETE FROM totals"]
)
def test_a_missing_table_is_reported(tmp_path: Path, script: str) -> None:
    """`check` would print ok, and `serve` would not start."""
    change(make_journal(tmp_path), script)
    with pytest.raises(StartError, match=r"totals|description of the table \w+ is wrong"):
        try_journal(tmp_path)


def test_the_jobs_of_a_large_journal_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check` would read gigabytes; it still reads the tables that a start reads."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    path = make_journal(tmp_path)
    overwrite_table(path, "jobs")
    assert "2 payloads wait" in try_journal(tmp_path)
    overwrite_table(path, "batches")
    with pytest.raises(StartError, match="malformed"):
        try_journal(tmp_path)


def test_an_empty_file_of_a_killed_start_is_no_damage(tmp_path: Path) -> None:
    """`check` would refuse a file without tables, which a start creates."""
    (tmp_path / FILE).touch()
    assert "which a start upgrades" in try_journal(tmp_path)
    assert (tmp_path / FILE).read_bytes() == b""


def test_a_journal_of_a_newer_version_is_reported(tmp_path: Path) -> None:
    """`check` before a downgrade would print ok, and `serve` would not start."""
    change(make_journal(tmp_path), f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(StartError, match="newer"):
        try_journal(tmp_path)


@pytest.mark.usefixtures("all_large")
def test_a_missing_or_truncated_segment_is_reported(tmp_path: Path) -> None:
    """`check` would print ok, and `serve` could not read the payloads it has to store."""
    make_journal(tmp_path)
    (segment,) = (tmp_path / FOLDER).iterdir()
    assert "2 payloads wait" in try_journal(tmp_path)
    segment.write_bytes(b"1\n2")
    with pytest.raises(StartError, match=r"segment 1 has 3 bytes, journal.db refers to 4"):
        try_journal(tmp_path)
    segment.unlink()
    with pytest.raises(StartError, match=r"0001.ndjson: No such file"):
        try_journal(tmp_path)
    (tmp_path / FILE).unlink()
    segment.with_name(f"{9:020}.ndjson").write_bytes(b"of another journal")
    with pytest.raises(StartError, match="belongs to another journal"):
        try_journal(tmp_path)


def test_dead_letters_are_counted_by_code(tmp_path: Path) -> None:
    """The status page would not say why payloads are dead letters."""
    os.close(lock(tmp_path))
    with closing(Database(tmp_path / FILE)) as database:
        with Inspection.open(tmp_path) as journal:
            assert journal.dead_groups() == []
        letters = [
            Bury(batch(job(1), job(2), sealed=False), "EntityTooLarge", "too large"),
            Bury(batch(job(3), sealed=False), "KeyTooLongError", "too long"),
            Bury(batch(job(4), sealed=False), "EntityTooLarge", "still too large"),
        ]
        database.commit([append(1, count=4), *letters])
        with Inspection.open(tmp_path) as journal:
            assert journal.dead_groups() == [
                DeadLetterGroup("default", "EntityTooLarge", 2, 3),
                DeadLetterGroup("default", "KeyTooLongError", 1, 1),
            ]


def test_a_dead_letter_shows_no_bytes_of_other_payloads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon may move them out of a segment, and write over it, while they are read."""
    text = b"x" * segments.WORTH_A_SYNC
    read = segments.read
    with closing(Database(path)) as database:
        request = Append(Receipt(id_of(1), 1), [Part(id_of(1), text, 1)])
        database.commit([request])
        database.commit([Bury(batch(*request.jobs, sealed=False), "C", "r")])

        def read_late(state_dir: Path, spans: Sequence[SegmentSpan]) -> list[bytes]:
            if not spans:
                return read(state_dir, spans)
            change(
                path, "UPDATE jobs SET segment = NULL, start = NULL, size = NULL, lines = x'7979'"
            )
            return [b"z" * len(text)]

        monkeypatch.setattr(segments, "read", read_late)
        with Inspection.open(path.parent) as inspection:
            (letter,) = inspection.dead()
            assert inspection.lines(letter.id) == b"yy"
