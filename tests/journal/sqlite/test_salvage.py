"""A damaged page loses only the rows on it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import file_check
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Bury, Settle
from payloadd.journal.sqlite.salvage import damaged_files
from payloadd.journal.sqlite.schema import FILE
from tests.journal.sqlite.damaging import (
    PAGE,
    change,
    leaves,
    lose_table,
    new_findings,
    repair_without_pause,
    verified,
    zero_pages,
)
from tests.journal.sqlite.in_blocks import accepted, killed, seqs
from tests.support.journal import append, batch, contents, id_of, job, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_damaged_page_loses_only_its_rows(tmp_path: Path) -> None:
    """One damaged page would keep the whole backlog from being stored."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        for number in range(1, 2001, 100):
            database.commit([append(number, count=100)])
    zero_pages(path, leaves(path, [id_of(1000)]))
    assert verified(path)
    with closing(Database(path)) as database:
        jobs = database.page(0, 9999, 10**7)
        missing = {*range(1, 2001)} - {one.seq for one in jobs}
        assert 0 < len(missing) < 200
        assert contents(jobs) == contents(job(seq) for seq in range(1, 2001) if seq not in missing)
        (finding,) = [one for one in new_findings(database) if one.payloads]
        assert (finding.jobs, finding.first, finding.last) == (
            *(len(missing), min(missing), max(missing)),
        )
        database.commit([append(2001)])
        assert [one.seq for one in database.page(2000, 99, 9999)] == [2001]
    assert [kept.name for kept in damaged_files(tmp_path)] == ["journal.db.damaged-1"]
    assert {one.table for one in verified(path)} == {"dead"}
    with Inspection.open(tmp_path) as inspection:
        inspection.drop([letter.id for letter in inspection.dead()])
    assert damaged_files(tmp_path) == []


def test_a_running_daemon_repairs_a_damaged_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request would be refused until an operator restarts the daemon."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=2000)])
    zero_pages(path, leaves(path, [id_of(1990)]))
    with closing(Database(path)) as database:
        database.commit([append(2001, count=5)])
        jobs = database.page(0, 9999, 10**7)
        assert [one.seq for one in jobs[-5:]] == [*range(2001, 2006)]
        database.commit([Settle(batch(one)) for one in jobs])
        assert database.totals.jobs == 0
        assert database.damaged_payloads == 2005 - len(jobs) > 0
        assert sum(one.payloads for one in new_findings(database)) == database.damaged_payloads


def test_a_file_that_cannot_be_repaired_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk without space for a copy, requests would be refused for a page they do not use."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        for number in range(1, 2001, 100):
            database.commit([append(number, count=100)])
    zero_pages(path, leaves(path, [id_of(1000)]))

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with closing(Database(path)) as database:
        with monkeypatch.context() as patch:
            patch.setattr("payloadd.journal.sqlite.repair.make_sound", full)
            with pytest.raises(sqlite3.DatabaseError, match="malformed"):
                database.page(0, 9999, 10**7)
            assert "disk is full" in new_findings(database)[0].reason
            database.commit([append(2001, count=2)])
            assert [one.seq for one in database.page(1999, 99, 9999)] == [2000, 2001, 2002]
            with pytest.raises(sqlite3.DatabaseError, match="malformed"):
                database.page(0, 9999, 10**7)
            # Not tried and reported again at each read.
            assert new_findings(database) == []
        repair_without_pause(database)
        assert len(database.page(0, 9999, 10**7)) > 1800
        assert database.damaged_payloads > 0


@pytest.mark.usefixtures("nine_jobs")
@pytest.mark.parametrize("table", ["jobs", "batches"])
def test_a_damaged_root_page_refuses_the_start(path: Path, table: str) -> None:
    """The daemon would continue without the table, or end with a traceback."""
    lose_table(path, table)
    with pytest.raises(StartError, match="payloadd journal verify"):
        Database(path)
    assert damaged_files(path.parent) == []
    assert verified(path)


@pytest.mark.parametrize("checked", [True, False])
def test_a_lost_table_jobs_without_rows_is_made_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, checked: bool
) -> None:
    """A start would be refused, with all payloads intact in blocks."""
    if not checked:
        monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    with closing(Database(path)) as database:
        first, *_ = accepted(database, 6, 3)
        database.commit([Settle(batch(*first.jobs[1:3], sealed=False))])
        image = killed(path, "killed")
    lose_table(image, "jobs")
    assert {one.table for one in verified(image)} == {"file", "jobs"}
    with closing(Database(image)) as again:
        assert seqs(again) == [1, 4, 5, 6, 7, 8, 9]
        assert (again.totals.jobs, again.damaged_payloads) == (7, 0)
        assert "no job that waits" in " ".join(one.reason for one in new_findings(again))
        again.commit([append(10)])
        assert seqs(again) == [1, *range(4, 11)]
    assert len(damaged_files(image.parent)) == 1
    assert verified(image) == []


def _wait(database: Database) -> None:
    """Have jobs with rows that wait."""
    accepted(database, 2)
    unpack(database)


def _bury(database: Database) -> None:
    """Have a dead letter, whose jobs have rows."""
    (request,) = accepted(database, 2)
    database.commit([Bury(batch(*request.jobs, sealed=False), "InvalidArgument", "refused")])


@pytest.mark.parametrize(
    ("fill", "damage"),
    [
        (_wait, "SELECT 1"),
        (_bury, "SELECT 1"),
        # The two jobs of the lost range would take the places of the two that are lost.
        (_wait, "UPDATE stored SET first = 'x'"),
        (_bury, "UPDATE dead SET last = 'x'"),
        (len, "UPDATE blocks SET head = zeroblob(length(head)) WHERE number = 7"),
        (len, "UPDATE totals SET accepted = 'x'"),
        (len, "UPDATE totals SET jobs = 6, crc = NULL"),
        (len, "UPDATE totals SET crc = NULL"),
    ],
)
def test_a_lost_table_jobs_that_may_have_had_rows_refuses_the_start(
    path: Path, fill: Callable[[Any], object], damage: str
) -> None:
    """Payloads would be missing silently, or stored twice, where a snapshot still has them."""
    with closing(Database(path)) as database:
        if fill is not len:
            fill(database)
        first, *_ = accepted(database, 6, 1, first=3)
        database.commit([Settle(batch(*first.jobs[1:3], sealed=False))])
        image = killed(path, "killed")
    change(image, damage)
    lose_table(image, "jobs")
    before = image.read_bytes()[PAGE:]
    with pytest.raises(StartError, match="table jobs can be read"):
        Database(image)
    assert damaged_files(image.parent) == []
    assert image.read_bytes()[PAGE:] == before


def test_a_running_daemon_notices_that_a_table_jobs_without_rows_is_lost(path: Path) -> None:
    """The next large payload would be refused, and so would a start after rows were written."""
    with closing(Database(path)) as database:
        accepted(database, 3)
        lose_table(path, "jobs")
        database._connection.execute("PRAGMA shrink_memory")
        assert database.oldest() is not None
        assert verified(path) == []
        assert (seqs(database), database.damaged_payloads) == ([1, 2, 3], 0)


def test_a_truncated_file_keeps_its_first_jobs(tmp_path: Path) -> None:
    """SQLite reads nothing of a truncated file, so the whole backlog would be lost."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        for number in range(1, 4001, 100):
            database.commit([append(number, count=100)])
            unpack(database)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)
    with closing(Database(path)) as database:
        jobs = database.page(0, 9999, 10**7)
        assert 500 < len(jobs) < 4000
        assert sum(one.payloads for one in new_findings(database)) == 4000 - len(jobs)


def test_an_index_without_its_rows_deletes_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_large: None
) -> None:
    """A segment with waiting payloads would be deleted."""
    del all_large
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=3)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        select = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (root,) = connection.execute(select, ("jobs_segment",)).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        # An empty leaf of an index: https://www.sqlite.org/fileformat.html, section 1.6.
        file.write(b"\x0a\0\0\0\0\x10\0\0" + bytes(4088))
    with closing(Database(path)) as database:
        assert "index" in new_findings(database)[0].reason
        assert [one.seq for one in database.page(0, 9, 99)] == [1, 2, 3]
