"""Errors that a full or failing disk and a damaged file have in common."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.errors import RefusedError, StartError
from payloadd.journal.sqlite import disk_probe, segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.disk_probe import fails_to_read, has_room, read_descriptor
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.read_errors import ReadErrors
from payloadd.journal.sqlite.salvage import damaged_files
from payloadd.journal.sqlite.segments import FOLDER
from tests.journal.sqlite.damaging import PAGE, repair_without_pause
from tests.support.journal import append, contents, job, open_rig, until

if TYPE_CHECKING:
    from tests.support.bad_sectors import BadSectors

_QUICK = Tuning(retry_interval=0.02, maintenance_interval=0.02)

pytestmark = pytest.mark.usefixtures("quick_read_errors")


def limit_pages(database: Database) -> None:
    """Let SQLite report a full disk for every page that the file does not have yet."""
    database._connection.execute("PRAGMA max_page_count = 1").fetchone()


async def test_a_full_disk_that_has_room_is_a_damaged_file(path: Path) -> None:
    """A damaged page would keep the journal from accepting anything, on an empty disk."""
    async with open_rig(path, tuning=_QUICK) as rig:
        repair_without_pause(rig.database)
        await rig.accept(1)
        limit_pages(rig.database)
        with pytest.raises(RefusedError):
            await rig.accept(2, count=400)
        # The first error is no proof: the space may have been freed since.
        assert damaged_files(path.parent) == []
        with trio.fail_after(60):
            while True:
                await until(lambda: not rig.health.troubles)
                try:
                    await rig.accept(2, count=400)
                    break
                except RefusedError:
                    pass
        assert len(damaged_files(path.parent)) == 1
    with closing(Database(path)) as database:
        assert len(database.page(0, 999, 9999)) == 401


def test_a_disk_without_room_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would be filled with copies of the journal."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with closing(Database(path)) as database:
        repair_without_pause(database)
        database.commit([append(1)])
        limit_pages(database)
        monkeypatch.setattr(ReadErrors, "seconds", 0.0)
        for _ in range(10):
            with pytest.raises(sqlite3.OperationalError, match="full"):
                database.commit([append(2, count=400)])
        assert damaged_files(path.parent) == []
        assert contents(database.page(0, 9, 99)) == contents([job(1)])


def test_the_probe_for_room_leaves_no_file(tmp_path: Path) -> None:
    """The probe itself would fill the disk."""
    assert has_room(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not has_room(tmp_path / "missing")


def test_a_page_number_beyond_all_limits_is_damage(path: Path) -> None:
    """A start with such a page would be refused for ever, as if the disk were full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    with closing(Database(path)) as database:
        database.commit([append(1, count=3)])
    with pytest.MonkeyPatch.context() as patches:
        read = Database._read
        calls = []

        def fail_once(self: Database, gaps: object) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise error
            read(self, gaps)  # type: ignore[arg-type]

        patches.setattr(Database, "_read", fail_once)
        with closing(Database(path)) as database:
            assert contents(database.page(0, 9, 99)) == contents([job(1), job(2), job(3)])
    assert len(damaged_files(path.parent)) == 1


def fill_segments(path: Path, count: int) -> None:
    """Make a journal of so many jobs, each in a segment of its own."""
    with closing(Database(path)) as database:
        for number in range(1, count + 1):
            database.commit([append(number)])


def spoil_segments(path: Path, bad: BadSectors, numbers: range) -> None:
    """Let reads of these segments fail."""
    for number in numbers:
        bad.add(segments.path_of(path.parent / FOLDER, number), 0, 100)


def spoil_database(path: Path, bad: BadSectors) -> None:
    """Let reads of the database file fail."""
    bad.add(path, 0, path.stat().st_size)


@pytest.mark.usefixtures("all_large")
async def test_a_disk_that_reads_nothing_costs_no_payload(
    path: Path, bad: BadSectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that fails for a minute would make dead letters of the whole backlog."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    fill_segments(path, 9)
    pages: list[int] = []
    async with open_rig(path, tuning=_QUICK) as rig, trio.open_nursery() as nursery:
        spoil_segments(path, bad, range(1, 10))
        spoil_database(path, bad)

        async def page() -> None:
            pages.append(len(await rig.journal.page(0, 99, 9999)))

        nursery.start_soon(page)
        await until(lambda: "journal_read" in rig.health.troubles)
        start = trio.current_time()
        await until(lambda: trio.current_time() - start > 1.0)
        assert pages == []
        bad.clear()
        await until(lambda: pages)
        assert pages == [9]
        assert not rig.health.troubles
    with Inspection.open(path.parent) as inspection:
        assert inspection.dead() == []


def test_a_start_is_refused_while_the_disk_reads_nothing(path: Path, bad: BadSectors) -> None:
    """A start would replace the journal by an empty one."""
    with closing(Database(path)) as database:
        for number in range(1, 200):
            database.commit([append(number)])
    bad.add(path, PAGE, path.stat().st_size)  # all but the first page
    with pytest.raises(StartError, match="cannot be read"):
        Database(path)
    bad.clear()
    with closing(Database(path)) as database:
        assert len(database.page(0, 999, 9999)) == 199


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize(("unreadable", "expected"), [(2, False), (9, True)])
def test_most_places_have_to_fail(
    path: Path,
    bad: BadSectors,
    monkeypatch: pytest.MonkeyPatch,
    unreadable: int,
    expected: bool,  # noqa: FBT001 - a parameter
) -> None:
    """One bad sector would keep all payloads behind it from being stored."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(disk_probe, "_PLACES", 9)
    fill_segments(path, 9)
    if expected:
        spoil_database(path, bad)
    spoil_segments(path, bad, range(1, unreadable + 1))
    assert fails_to_read(path.parent) is expected


def test_a_read_of_the_file_keeps_the_locks_of_sqlite(path: Path) -> None:
    """Another process that opens the journal would delete its log."""
    with closing(Database(path)) as database:
        database.commit([append(1)])
        first = read_descriptor(path)
        assert read_descriptor(path) == first
        assert not fails_to_read(path.parent)
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        inode = str(path.stat().st_ino)
        assert any(
            line[1] == "POSIX" and int(line[4]) == os.getpid() and line[5].endswith(f":{inode}")
            for line in locks
            if "->" not in line
        )
