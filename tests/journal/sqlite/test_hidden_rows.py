"""Misplaced pages hide rows without an error of SQLite, and show others twice."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import file_check
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection, try_journal
from payloadd.journal.sqlite.operations import Bury, Revive, Seal, Settle
from payloadd.journal.sqlite.schema import FILE, open_existing
from payloadd.journal.sqlite.verify import verify
from payloadd.model.job import Batch
from tests.journal.sqlite import fuzz
from tests.support.journal import append, batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Finding
    from payloadd.model.job import Job

_JOBS: Final = 3000


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be checked as a whole at a start."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a journal with many jobs, without a log."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=_JOBS)])
    return path


def leaves(path: Path) -> list[int]:
    """Return the pages that hold rows of ``jobs``, in the order of their rows."""
    with closing(sqlite3.connect(path)) as connection:
        try:
            query = "SELECT pageno FROM dbstat WHERE name = 'jobs' AND pagetype = 'leaf'"
            return [page for (page,) in connection.execute(query)]
        except sqlite3.OperationalError:
            pytest.skip("this SQLite has no dbstat")


def copy_page(path: Path, source: int, target: int) -> None:
    """Write one page over another."""
    with path.open("r+b") as file:
        file.seek((source - 1) * 4096)
        page = file.read(4096)
        file.seek((target - 1) * 4096)
        file.write(page)


def walk(database: Database) -> list[Job]:
    """Store all jobs as the daemon does, those of a page as one object."""
    stored: list[Job] = []
    after = 0
    while page := database.page(after, 100, 10**6):
        after = page[-1].seq
        whole = Batch(tuple(page), f"k{page[0].seq}", "none", sealed=True)
        database.commit([Seal(whole)])
        database.commit([Settle(whole)])
        stored += page
    return stored


def listed(found: Sequence[Finding]) -> int:
    """Return how many payloads are dead letters because of damage."""
    return sum(one.payloads for one in found if one.id is not None)


@pytest.mark.parametrize(("source", "target"), [(10, 3), (3, 10), (12, 11)])
def test_rows_under_a_copy_of_another_page_are_listed(path: Path, source: int, target: int) -> None:
    """Payloads would be neither stored nor listed, and those of the copy be stored twice."""
    pages = leaves(path)
    copy_page(path, pages[source], pages[target])
    stored: list[Job] = []
    found: list[Finding] = []
    for _ in range(2):
        with closing(Database(path)) as database:
            stored += walk(database)
            found += database.findings.pop_all()
            assert database.totals.jobs == 0
    numbers = [job.seq for job in stored]
    assert len(numbers) == len(set(numbers))
    assert len(numbers) < _JOBS
    assert len(numbers) + listed(found) == _JOBS


def test_a_sound_file_is_not_read_as_a_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large journal would do nothing for seconds after each start."""

    def check(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(file_check, "find_problem", check)
    with closing(Database(path)) as database:
        first = database.page(0, 100, 10**6)
        database.commit([Settle(batch(*first))])
        left = path.with_name("left")
        left.mkdir()
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", left)
        shutil.copy(path.with_name("journal.high"), left)
    with closing(Database(left / FILE)) as database:  # behind a crash, with stored rows
        assert len(walk(database)) == _JOBS - 100
        assert database.findings.pop_all() == []
        assert database.totals.jobs == 0


def test_a_start_is_refused_where_stored_jobs_are_unknown(path: Path) -> None:
    """Payloads that are in the store would be stored a second time, under other keys."""
    with closing(Database(path)) as database:
        database.commit([Settle(batch(*database.page(0, 100, 10**6)))])
        left = path.with_name("left")
        shutil.copytree(path.parent, left, ignore=shutil.ignore_patterns("left"))
    with closing(sqlite3.connect(left / FILE)) as connection, connection:
        connection.execute("UPDATE stored SET first = first + 7, crc = crc + 5")
    for _ in range(2):
        with pytest.raises(StartError, match=r"stored already .* it is not known which"):
            Database(left / FILE)
    with Inspection.open(left) as inspection:
        assert {one.table for one in inspection.verify()} >= {"stored"}


def test_missing_members_of_a_dead_letter_are_listed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead letter would be tried again without some of its payloads, without a message."""
    with closing(Database(path)) as database:
        jobs = database.page(0, 20, 10**6)
        database.commit([Bury(batch(*jobs[:10], sealed=False), "C", "r")])
        database.commit([Bury(batch(*jobs[10:], sealed=False), "C", "r")])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM jobs WHERE seq BETWEEN 4 AND 6 OR seq BETWEEN 11 AND 20")
    monkeypatch.undo()
    with closing(Database(path)) as database:
        assert [one.payloads for one in database.findings.pop_all()] == [3, 10]
    with Inspection.open(path.parent) as inspection:
        assert sorted((one.code, one.payloads) for one in inspection.dead()) == [
            *(("C", 7), (CODE, 3), (CODE, 10))
        ]
        # The missing payloads have a dead letter of their own by now.
        assert all(one.reason.startswith("dead letter") for one in inspection.verify())


def test_missing_members_of_a_sealed_batch_are_listed(path: Path) -> None:
    """An object would be stored without some of its payloads, without a message."""
    with closing(Database(path)) as database:
        jobs = database.page(0, 20, 10**6)
        database.commit([Seal(batch(*jobs[:10])), Seal(batch(*jobs[10:]))])
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM jobs WHERE seq BETWEEN 4 AND 6 OR seq BETWEEN 11 AND 20")
    with closing(Database(path)) as database:
        first = database.sealed(1)
        assert first is not None
        assert len(first.jobs) == 7
        assert database.sealed(11) is None
        assert [one.payloads for one in database.findings.pop_all()] == [3, 10]
        assert database.totals.jobs == _JOBS - 13
        database.commit([Revive()])
        assert database.sealed(11) is None
        assert database.findings.pop_all() == []


@pytest.mark.parametrize("seed", range(3))
def test_a_row_lost_together_with_the_totals_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Without the totals, only journal.high tells that a row is missing."""
    monkeypatch.undo()
    base = fuzz.make_base(tmp_path / "base", random.Random(seed))  # noqa: S311 - no secret
    with closing(sqlite3.connect(base.folder / FILE)) as connection, connection:
        connection.execute("DELETE FROM jobs WHERE seq = 115")
        connection.execute("UPDATE totals SET jobs = 77, payloads = 88")
    with closing(Database(base.folder / FILE)) as database:
        assert [(one.table, one.payloads) for one in database.findings.pop_all()] == [
            ("totals", 0),
            ("jobs", 1),
        ]


def test_a_start_is_refused_where_the_schema_is_not_text(path: Path) -> None:
    """The start would end with a traceback, which does not help an operator."""
    with path.open("r+b") as file:
        page = bytearray(file.read(4096))
        place = page.index(b"CREATE TABLE jobs")
        page[place : place + 12] = b"CREATE\xce ABLE"
        file.seek(0)
        file.write(page)
    with pytest.raises(StartError, match="journal verify"):
        Database(path)
    with pytest.raises(StartError, match="cannot keep a journal"):
        try_journal(path.parent)
    with closing(open_existing(path)) as connection:
        assert [one.table for one in verify(connection, path.parent)] == ["file"]
