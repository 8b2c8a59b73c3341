"""A page in the place of another one, or an older page, has nothing stored twice."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import file_check
from payloadd.journal.sqlite.damage import corrupt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Seal, Settle
from payloadd.journal.sqlite.salvage import damaged_files
from tests.journal.sqlite.damaging import (
    PAGE,
    change,
    lose_table,
    new_findings,
    verified,
    zero_pages,
)
from tests.journal.sqlite.in_blocks import accepted, killed, seqs
from tests.support.journal import batch, unpack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ALL: Final = {*range(1, 1001)}
_LARGE: Final = 300
"""Jobs of a batch whose rows are deleted some at a time."""


@pytest.fixture(params=["checked-at-start", "too-large-for-that"], autouse=True)
def _size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each start check the whole file, or none."""
    if request.param == "too-large-for-that":
        monkeypatch.setattr(file_check, "MOST_CHECKED", 0)


def root(path: Path, table: str) -> int:
    """Return the first page of a table; SQLite's log is checkpointed before."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    return int(page)


def children(path: Path, table: str) -> list[int]:
    """Return the pages below the first page of a table, in the order of their rows.

    See https://www.sqlite.org/fileformat.html, section 1.6.
    """
    page = read(path, root(path, table))
    assert page[0] == 5  # an interior page of a table
    count = int.from_bytes(page[3:5])
    cells = [int.from_bytes(page[12 + 2 * index :][:2]) for index in range(count)]
    return [*(int.from_bytes(page[cell : cell + 4]) for cell in cells), int.from_bytes(page[8:12])]


def read(path: Path, page: int) -> bytes:
    """Return a page."""
    return path.read_bytes()[(page - 1) * PAGE : page * PAGE]


def write(path: Path, page: int, content: bytes) -> None:
    """Write a page over another one."""
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(content)


def swap(path: Path, one: int, other: int) -> None:
    """Exchange two pages."""
    first, second = read(path, one), read(path, other)
    write(path, one, second)
    write(path, other, first)


def store_all(path: Path) -> list[int]:
    """Start from a journal and store all of it, twice; return the numbers of the stored jobs."""
    stored = []
    for _ in range(2):
        with closing(Database(path)) as database:
            for first in database.sealed_after({}):
                sealed = database.sealed(first)
                assert sealed is not None
                database.commit([Settle(sealed)])
                stored += [one.seq for one in sealed.jobs]
            after = 0
            while jobs := database.page(after, 100, 10**6):
                after = jobs[-1].seq
                whole = batch(*jobs)
                database.commit([Seal(whole)])
                database.commit([Settle(whole)])
                stored += [one.seq for one in jobs]
    return stored


def _ranges_of_rows(database: Database) -> None:
    """Have a stored batch whose rows wait for deletion, in front of and behind other jobs."""
    (request,) = accepted(database, len(_ALL))
    unpack(database)
    database.commit([Settle(batch(*request.jobs[100 : 100 + _LARGE], sealed=False))])


def _ranges_of_blocks(database: Database) -> None:
    """Have many stored jobs in a block with others."""
    (request,) = accepted(database, 2 * len(_ALL))
    database.commit([Settle(batch(one, sealed=False)) for one in request.jobs[::2]])


def left_by_a_kill(path: Path, fill: Callable[[Database], None]) -> Path:
    """Fill a new journal; return a copy of its file, as a killed process leaves it."""
    with closing(Database(path)) as database:
        fill(database)
        return killed(path, "killed")


@pytest.mark.parametrize("fill", [_ranges_of_rows, _ranges_of_blocks])
def test_an_empty_page_in_the_place_of_stored_ranges_refuses_the_start(
    path: Path, fill: Callable[[Database], None]
) -> None:
    """Payloads that are in the store would be stored a second time."""
    image = left_by_a_kill(path, fill)
    write(image, root(image, "stored"), read(image, root(image, "streams")))
    with pytest.raises(StartError, match=r"stored already"):
        Database(image)
    assert "the first row is missing" in " ".join(one.reason for one in verified(image))


@pytest.mark.parametrize("place", ["first", "middle", "root"])
def test_a_copy_of_a_page_of_stored_ranges_refuses_the_start(path: Path, place: str) -> None:
    """The ranges that it hides would be stored a second time."""
    image = left_by_a_kill(path, _ranges_of_blocks)
    pages = children(image, "stored")
    assert len(pages) > 2
    hidden = {"first": pages[0], "middle": pages[1], "root": root(image, "stored")}[place]
    write(image, hidden, read(image, pages[-1]))
    with pytest.raises(StartError, match=r"stored already"):
        Database(image)


def test_swapped_pages_of_stored_ranges_are_repaired(path: Path) -> None:
    """A start would be refused, or payloads be stored a second time."""
    image = left_by_a_kill(path, _ranges_of_blocks)
    swap(image, *children(image, "stored")[:2])
    assert Counter(store_all(image)) == Counter(range(2, 2 * len(_ALL) + 1, 2))


@pytest.mark.parametrize("end", [101, 100 + _LARGE], ids=["first", "last"])
def test_rows_at_an_end_of_a_stored_range_are_not_stored_again(path: Path, end: int) -> None:
    """A page that hides them at the start shows them when the file is repaired."""
    image = left_by_a_kill(path, _ranges_of_rows)
    pages = children(image, "jobs")
    swap(image, pages[-1], next(page for page in pages if end in _numbers(read(image, page))))
    with closing(Database(image)) as database:
        for _ in range(6):
            database.commit([])
        assert database.deletion.ranges == ()
    assert Counter(store_all(image)) == Counter(_ALL - {*range(101, 101 + _LARGE)})


def _numbers(page: bytes) -> set[int]:
    """Return the numbers of the jobs on a leaf of a table whose rows are small."""
    found = set()
    for index in range(int.from_bytes(page[3:5])):
        cell = int.from_bytes(page[8 + 2 * index :][:2])
        # Two numbers in the format varint, of the payload's length and of the row.
        numbers: list[int] = []
        value = 0
        while len(numbers) < 2:
            value = value << 7 | page[cell] & 127
            if page[cell] < 128:
                numbers.append(value)
                value = 0
            cell += 1
        found.add(numbers[1])
    return found


def _seal_some(database: Database) -> None:
    """Have two sealed batches in the middle of the jobs."""
    (request,) = accepted(database, len(_ALL))
    unpack(database)
    jobs = request.jobs
    database.commit([Seal(batch(*jobs[100:103])), Seal(batch(*jobs[103:300]))])


@pytest.mark.parametrize("kind", ["empty", "members", "zero"])
def test_a_hidden_page_of_sealed_batches_refuses_the_start(path: Path, kind: str) -> None:
    """Their objects may be in the store; other batches of the members would have other keys."""
    image = left_by_a_kill(path, _seal_some)
    page = root(image, "batches")
    if kind == "empty":
        write(image, page, read(image, root(image, "streams")))
    elif kind == "members":
        pages = children(image, "jobs")
        swap(image, page, next(one for one in pages if 103 in _numbers(read(image, one))))
    else:
        lose_table(image, "batches")
    with pytest.raises(StartError, match=r"which jobs are sealed"):
        Database(image)
    assert verified(image)
    assert damaged_files(image.parent) == []


def test_a_running_daemon_makes_no_copy_without_some_sealed_batches(path: Path) -> None:
    """The next start would put their members into other batches."""
    with closing(Database(path)) as database:
        (request,) = accepted(database, 200)
        database.commit([Seal(batch(one)) for one in request.jobs])
        zero_pages(path, children(path, "batches")[1:2])
        assert not database._repair(corrupt("malformed"))
        assert "which jobs are sealed" in new_findings(database)[0].reason
    assert damaged_files(path.parent) == []


@pytest.mark.parametrize("table", ["stored", "batches"])
def test_a_lost_page_without_ranges_is_made_anew(path: Path, table: str) -> None:
    """A start would be refused although the totals show that nothing is lost."""
    with closing(Database(path)) as database:
        requests = accepted(database, 3, 2)
        if table == "batches":
            database.commit([Settle(batch(*one.jobs, sealed=False)) for one in requests])
    lose_table(path, table)
    with closing(Database(path)) as again:
        assert seqs(again) == ([] if table == "batches" else [1, 2, 3, 4, 5])
        assert new_findings(again)
    assert verified(path) == []


def test_an_older_page_of_jobs_refuses_the_start(
    path: Path, request: pytest.FixtureRequest
) -> None:
    """Where the disk had lost a write, rows of stored jobs would be stored again."""
    with closing(Database(path)) as database:
        (one, _) = accepted(database, 20, 5)
        unpack(database)
        page = root(path, "jobs")
        older = read(path, page)
        database.commit([Settle(batch(*one.jobs, sealed=False))])
        image = killed(path, "killed")
    assert root(image, "jobs") == page
    write(image, page, older)
    if "too-large-for-that" in request.node.name:
        # Only the count at the end of the backlog finds it.
        with closing(Database(image)) as again:
            assert seqs(again) == [*range(1, 26)]
            assert again.page(25, 99, 9999) == []
            assert "20 more than the totals count" in new_findings(again)[0].reason
        return
    with pytest.raises(StartError, match="20 jobs are stored already"):
        Database(image)


def test_an_older_page_of_the_totals_refuses_no_start(path: Path) -> None:
    """No stored job has come back: newer jobs have numbers that were not assigned yet."""
    with closing(Database(path)) as database:
        accepted(database, 5)
        page = root(path, "totals")
        older = read(path, page)
        accepted(database, 3, first=6)
        unpack(database)
        image = killed(path, "killed")
    assert root(image, "totals") == page
    write(image, page, older)
    with closing(Database(image)) as again:
        assert seqs(again) == [1, 2, 3, 4, 5]
        assert [one.jobs for one in new_findings(again) if one.first == 6] == [3]
        assert again.page(5, 99, 9999) == []
        assert again.totals.jobs == 5


def test_totals_are_not_counted_while_pages_are_misplaced(path: Path) -> None:
    """Hidden rows would be no part of the journal, and nothing would tell that they are missing."""
    with closing(Database(path)) as database:
        accepted(database, len(_ALL))
    swap(path, *children(path, "jobs")[1:3])
    change(path, "UPDATE totals SET jobs = 3, payloads = 4, bytes = 5")
    assert Counter(store_all(path)) == Counter(_ALL)


def test_the_first_and_the_last_row_are_not_shown(path: Path) -> None:
    """An operator would look for a batch that does not exist."""
    Database(path).close()
    with Inspection.open(path.parent) as inspection:
        assert inspection.status().sealed_batches == 0
        assert inspection.verify() == []
    change(path, "DELETE FROM batches", "DELETE FROM stored WHERE last > 0")
    found = [(one.table, one.reason.partition(" is")[0]) for one in verified(path)]
    assert found == [
        ("batches", "the first row"),
        ("batches", "the last row"),
        ("stored", "the last row"),
    ]
    with closing(Database(path)) as again:
        assert len(new_findings(again)) == 3
    assert verified(path) == []
