"""Rows of stored batches are deleted a few at a time, and do not count before that."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite.compaction import Compaction
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Clear, Seal, Settle
from payloadd.journal.sqlite.schema import FILE, MIGRATIONS, migrate
from payloadd.journal.sqlite.segments import FOLDER
from tests.support.journal import (
    TEST_TIMEOUT,
    FaultyConnection,
    append,
    batch,
    compact_segments,
    contents,
    disk_full,
    id_of,
    job,
    open_rig,
    unpack,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.journal import JournalRig

_LARGE: Final = 1000


def rows_of(path: Path) -> int:
    """Return how many rows ``jobs`` has, as another process sees it.

    Without any, ``stored`` has to be empty.
    """
    with closing(sqlite3.connect(path)) as other:
        (jobs,) = other.execute("SELECT count(*) FROM jobs").fetchone()
        (covered,) = other.execute(
            "SELECT coalesce(sum(last - first + 1), 0) FROM stored"
        ).fetchone()
        assert jobs or not covered, "a range without rows is kept for ever"
        return int(jobs)


def store(database: Database, first: int, last: int) -> None:
    """Append the jobs ``first`` to ``last`` as rows, seal them as a batch and settle it."""
    request = append(first, count=last - first + 1)
    database.commit([request])
    unpack(database)
    stored = batch(*request.jobs)
    database.commit([Seal(stored)])
    database.commit([Settle(stored)])


def test_a_commit_deletes_some_rows_of_a_large_batch(path: Path) -> None:
    """All requests of a commit would wait for the deletion of a thousand rows."""
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
        left = [rows_of(path)]
        while left[-1]:
            database.commit([Clear()])
            left.append(rows_of(path))
        assert [before - after for before, after in pairwise(left)] == [*[64] * 15, 40]
        assert database.deletion.ranges == ()


def test_a_small_batch_is_deleted_by_the_commit_that_settles_it(path: Path) -> None:
    """To note it and to delete it later would be more work."""
    with closing(Database(path)) as database:
        store(database, 1, 64)
        assert (rows_of(path), database.deletion.ranges) == (0, ())


def test_more_rows_are_deleted_per_commit_where_more_wait(path: Path) -> None:
    """The disk would fill up with rows where batches are stored faster than rows are deleted."""
    with closing(Database(path)) as database:
        most = 0
        for number in range(60):
            store(database, 1 + number * _LARGE, (number + 1) * _LARGE)
            most = max(most, rows_of(path))
        assert most < 10 * _LARGE


def test_rows_do_not_pile_up_with_several_batches_per_commit(path: Path) -> None:
    """Workers store batches in any order, and many before the next commit."""
    request = append(1, count=20 * _LARGE)
    with closing(Database(path)) as database:
        database.commit([request])
        unpack(database)
        batches = [batch(*jobs) for jobs in zip(*[iter(request.jobs)] * 100, strict=True)]
        database.commit([Seal(one) for one in batches])
        for some in zip(*[iter(batches[::2] + batches[1::2])] * 5, strict=True):
            before = waiting(database)
            database.commit([Settle(one) for one in some])
            assert waiting(database) <= before * 15 / 16 + 501
        assert waiting(database) < 8000
        left = waiting(database)
        while database.deletion.ranges:
            database.commit([Clear()])
            assert waiting(database) <= max(0, left - 64)
            left = waiting(database)
        assert rows_of(path) == 0


def waiting(database: Database) -> int:
    """Return how many rows wait for deletion."""
    return sum(last - first + 1 for first, last in database.deletion.ranges)


def test_free_space_deletes_all_waiting_rows(path: Path) -> None:
    """After a full disk, requests would be refused until all rows were deleted step by step."""
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
        database.free_space()
        assert (rows_of(path), database.deletion.ranges) == (0, ())


def test_totals_do_not_count_waiting_rows(path: Path) -> None:
    """Requests would be refused because of payloads that are stored already."""
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
        assert rows_of(path) == _LARGE
        assert (database.totals.jobs, database.totals.payloads, database.totals.bytes) == (0, 0, 0)


def test_a_clean_end_leaves_no_rows(path: Path) -> None:
    """The next start would have to delete them."""
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
    assert rows_of(path) == 0
    with closing(Database(path)) as database:
        assert database.deletion.ranges == ()


@pytest.mark.parametrize("steps", [0, 1, 15, 16])
def test_a_crash_revives_no_stored_job(path: Path, tmp_path: Path, steps: int) -> None:
    """Stored payloads would be stored once more."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    with closing(Database(path)) as database:
        database.commit([append(1)])
        store(database, 2, _LARGE + 1)
        database.commit([append(_LARGE + 2)])
        for _ in range(steps):
            database.commit([Clear()])
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", crashed)
    with closing(Database(crashed / FILE)) as again:
        assert again.sealed_after({}) == []
        expected = contents([job(1), job(_LARGE + 2)])
        assert contents(again.page(0, 2 * _LARGE, 10**6)) == expected
        for _ in range(20):
            again.commit([Clear()])
        unpack(again)
        assert rows_of(crashed / FILE) == 2
        assert contents(again.page(0, 2 * _LARGE, 10**6)) == expected


@pytest.mark.parametrize(
    "fails",
    ["COMMIT", "INSERT INTO blocks", "UPDATE totals", "DELETE FROM jobs", "INSERT INTO stored"],
)
def test_a_failed_commit_rolls_its_deletion_back(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Rows that are in no range any more would stay until the next start."""
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
        request = append(_LARGE + 1, count=_LARGE)
        database.commit([request])
        unpack(database)
        second = batch(*request.jobs)
        database.commit([Seal(second)])
        before = database.deletion.ranges
        rows_before = rows_of(path)
        with monkeypatch.context() as patch:
            faulty = FaultyConnection(database._connection)
            faulty.fails = fails
            patch.setattr(database, "_connection", faulty)
            patch.setattr(database.deletion, "_connection", faulty)
            with pytest.raises(sqlite3.OperationalError):
                database.commit([append(2 * _LARGE + 1), Settle(second)])
        assert database.deletion.ranges == before
        assert rows_of(path) == rows_before
        for _ in range(15):
            database.commit([])
        assert rows_of(path) == _LARGE


async def settle_a_batch(rig: JournalRig) -> None:
    """Append a large batch, seal it, and settle it."""
    await rig.accept(1, count=_LARGE)
    unpack(rig.database)
    stored = batch(*[rig.channel.receive_nowait() for _ in range(_LARGE)])
    await rig.journal.seal(stored)
    rig.journal.settle(stored)


async def test_deletion_continues_without_requests(path: Path) -> None:
    """After the last request the last batches would keep their disk space."""
    async with open_rig(path, tuning=Tuning(maintenance_interval=TEST_TIMEOUT)) as rig:
        await settle_a_batch(rig)
        await until(lambda: rows_of(path) == 0)
        assert rig.database.deletion.ranges == ()
        # That was the last of it: an idle daemon does not write.
        assert not rig.journal._commit_queue.next_group.operations


async def test_deletion_continues_after_a_disk_error(path: Path) -> None:
    """The other rows would stay where the disk refused one of the steps."""
    async with open_rig(path, tuning=Tuning(retry_interval=0.01)) as rig:
        await settle_a_batch(rig)
        await until(lambda: rows_of(path) < _LARGE)
        rig.database.write_error = disk_full
        await until(lambda: rig.database.failures > 1)
        assert rows_of(path) > 0
        rig.database.write_error = None
        await until(lambda: not rig.health.troubles)
        # Stored rows are deleted before the first request is accepted again.
        assert rows_of(path) == 0


async def test_deletion_continues_after_a_crash(path: Path, tmp_path: Path) -> None:
    """Rows that a crash has left would stay until there are requests."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", crashed)
    tuning = Tuning(maintenance_interval=TEST_TIMEOUT)
    async with open_rig(crashed / FILE, tuning=tuning) as rig:
        await until(lambda: rows_of(crashed / FILE) == 0)
        assert rig.receive_all() == []


def test_the_status_does_not_count_waiting_rows(path: Path) -> None:
    """An operator would search for payloads that are not there."""
    with closing(Database(path)) as database:
        store(database, 1, _LARGE)
        with Inspection.open(path.parent) as inspection:
            assert inspection.status().oldest_seconds == 0
        database.commit([append(_LARGE + 1)])
        with Inspection.open(path.parent) as inspection:
            status = inspection.status()
        age = time.time() - (id_of(_LARGE + 1).int >> 80) / 1000
        assert status.jobs == 1
        assert status.oldest_seconds == pytest.approx(age, abs=60)


@pytest.mark.usefixtures("all_large")
def test_a_segment_is_unlinked_after_the_deletion_of_its_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start would report a missing segment where a row still refers to it."""
    monkeypatch.setattr(Compaction, "least_file_bytes", 1)
    with closing(Database(path)) as database:
        store(database, 1, 100)
        (segment,) = (path.parent / FOLDER).iterdir()
        for rows_left in (36, 0):
            compact_segments(database)
            assert segment.exists()
            database.commit([Clear()])
            assert rows_of(path) == rows_left
        compact_segments(database)
        assert not segment.exists()


def test_a_journal_of_version_2_is_read(path: Path) -> None:
    """Payloads that were accepted before an upgrade would be lost by it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        migrate(old, MIGRATIONS[:2])
        old.execute(
            "INSERT INTO jobs VALUES (1, ?, 1, ?, NULL, NULL, NULL)", (id_of(1).bytes, b"1\n")
        )
        old.execute("UPDATE totals SET next = 2, jobs = 1, payloads = 1, bytes = 66")
    with closing(Database(path)) as new:
        assert contents(new.page(0, 9, 99)) == contents([job(1)])
        store(new, 2, _LARGE)
        assert new.totals.jobs == 1
