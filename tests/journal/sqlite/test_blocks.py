"""Blocks: the small jobs of a commit in one row, until they are settled or get rows."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import pytest

from payloadd.journal.sqlite import block_rows
from payloadd.journal.sqlite.blocks import Blocks
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Bury, Clear, Revive, Seal, Settle
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import LARGE, WORTH_A_SYNC
from payloadd.model.job import Part
from payloadd.model.layout import Layout
from payloadd.model.streams import first_seq
from tests.journal.opener import ALL
from tests.journal.sqlite.damaging import new_findings, verified
from tests.journal.sqlite.in_blocks import accepted, counts, jobs_of, killed, request, seqs
from tests.support.journal import (
    TEST_TIMEOUT,
    FaultyConnection,
    append,
    batch,
    contents,
    disk_full,
    id_of,
    jobs_in_file,
    open_rig,
    sealed,
    unpack,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from payloadd.model.job import Job


def test_the_small_jobs_of_a_commit_are_one_row(path: Path, database: Database) -> None:
    """Each stream would write a page of its own in each commit."""
    database.open_streams(("default", "a", "b"))
    requests = [request(10 * stream + 1, 2, stream) for stream in (2, 0, 1)]
    database.commit([*requests, request(50, stream=2)])
    assert counts(path) == (0, 1, 0)
    assert database.totals.jobs == 7
    for stream, numbers in ((0, [1, 2]), (1, [11, 12]), (2, [21, 22, 50])):
        jobs = database.page(first_seq(stream), 99, 10**6)
        assert [one.id for one in jobs] == [id_of(number) for number in numbers or [1]]


def test_a_commit_of_many_streams_writes_few_pages(path: Path, database: Database) -> None:
    """With 16 streams each request would cost nearly twice as much."""
    names = [f"s{number}" for number in range(1, 16)]
    database.open_streams(("default", *names))
    log = path.with_name(f"{FILE}-wal")
    before = 0
    for first in (1, 101):
        before = log.stat().st_size
        database.commit([request(first + stream, stream=stream) for stream in range(16)])
    pages = (log.stat().st_size - before) // 4120
    assert pages <= 6


def test_a_large_commit_is_several_blocks(path: Path, database: Database) -> None:
    """A damaged page would damage up to three MiB of jobs."""
    many = append(1, count=60)
    many.parts = [Part(one.id, b"x" * 3999 + b"\n", 1) for one in many.parts]
    database.commit([many])
    assert counts(path) == (0, 4, 0)
    assert contents(database.page(*ALL)) == contents(many.jobs)
    database.commit([Settle(batch(*many.jobs[:20]))])
    assert seqs(database) == [*range(21, 61)]
    assert counts(path) == (0, 3, 1)


def test_a_block_is_deleted_with_its_last_job(path: Path, database: Database) -> None:
    """Disk space of stored payloads would never be freed, or they would be stored again."""
    (nine,) = accepted(database, 9)
    first, second, third = (batch(*nine.jobs[start : start + 3]) for start in (0, 3, 6))
    database.commit([Seal(one) for one in (first, second, third)])
    database.commit([Settle(second)])
    assert (counts(path), database.blocks.noted()) == ((0, 1, 1), [(4, 6)])
    assert jobs_in_file(path) == database.totals.jobs == 6
    database.commit([Settle(third)])
    assert (counts(path), seqs(database)) == ((0, 1, 2), [1, 2, 3])
    image = killed(path, "killed")
    database.commit([Settle(first)])
    assert (counts(path), database.totals.jobs, verified(path)) == ((0, 0, 0), 0, [])
    assert not database.deletion_waits
    with closing(Database(image)) as again:
        assert contents(sealed(again, 1).jobs) == contents(first.jobs)
        assert seqs(again) == []
        assert again.totals.jobs == 3


def test_blocks_of_a_large_batch_are_deleted_a_few_at_a_time(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All requests of a commit would wait for the deletion of a thousand blocks."""
    monkeypatch.setattr(Blocks, "deleted_per_commit", 4)
    requests = accepted(database, *[2] * 11)
    database.commit([Settle(batch(*jobs_of(requests)))])
    left = [counts(path)]
    while database.deletion_waits:
        assert seqs(database) == []
        with closing(Database(killed(path, str(left[-1][1])))) as again:
            assert (seqs(again), again.totals.jobs) == ([], 0)
        database.commit([Clear()])
        left.append(counts(path))
    assert left == [(0, 7, 1), (0, 3, 1), (0, 0, 0)]


def test_more_blocks_are_deleted_per_commit_where_more_wait(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk would fill up where batches are stored faster than blocks are deleted."""
    monkeypatch.setattr(Blocks, "deleted_per_commit", 1)
    requests = accepted(database, *[1] * 64)
    database.commit([Settle(batch(*jobs_of(requests), sealed=False))])
    assert counts(path) == (0, 60, 1)


async def test_deletion_of_blocks_continues_without_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last request the last batches would keep their disk space."""
    monkeypatch.setattr(Blocks, "deleted_per_commit", 1)
    async with open_rig(path, tuning=Tuning(maintenance_interval=TEST_TIMEOUT)) as rig:
        for number in range(1, 9):
            await rig.accept(number)
        jobs = [rig.channel.receive_nowait() for _ in range(8)]
        rig.journal.settle(batch(*jobs, sealed=False))
        await until(lambda: counts(path) == (0, 0, 0))
        # An idle daemon does not write.
        assert not rig.journal._commit_queue.next_group.operations


def test_free_space_deletes_all_blocks_that_wait(path: Path, database: Database) -> None:
    """After a full disk, requests would be refused until all were deleted step by step."""
    requests = accepted(database, *[1] * 100)
    database.commit([Settle(batch(*jobs_of(requests[:-1]), sealed=False))])
    assert counts(path)[1] > 1
    database.free_space()
    assert counts(path) == (0, 1, 0)


def test_the_oldest_blocks_get_rows(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory and the time of a start would grow with the backlog."""
    monkeypatch.setattr(Blocks, "most_blocks", 4)
    monkeypatch.setattr(Blocks, "jobs_at_a_time", 5)
    requests = accepted(database, *[3] * 20)
    rows, blocks, _ = counts(path)
    assert rows == 60 - 3 * blocks
    assert blocks <= 4
    assert contents(database.page(*ALL)) == contents(jobs_of(requests))
    database.commit([Settle(batch(*jobs_of(requests)[10:50]))])
    while database.deletion_waits:
        database.commit([Clear()])
    assert seqs(database) == [*range(1, 11), *range(51, 61)]
    assert verified(path) == []


@pytest.mark.parametrize(("limit", "most"), [("most_runs", 6), ("most_bytes", 400)])
def test_runs_and_bytes_of_blocks_are_bounded(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """Many streams, or many bytes, would take memory or disk space without end."""
    monkeypatch.setattr(Blocks, limit, most)
    monkeypatch.setattr(Blocks, "jobs_at_a_time", 1)
    database.open_streams(("default", "a"))
    for number in range(0, 60, 2):
        database.commit([append(number + 1), request(number + 2, stream=1)])
    assert counts(path)[1] <= 4
    assert [len(seqs(database, stream)) for stream in (0, 1)] == [30, 30]


def test_pages_have_rows_and_blocks_in_order(path: Path, database: Database) -> None:
    """Jobs would be skipped, or sent in another order."""
    big = append(3)
    big.parts = [Part(id_of(3), b"x" * WORTH_A_SYNC, 1)]
    database.commit([append(1, count=2), big, append(4, count=2)])
    unpack(database)
    accepted(database, 2, 1, first=6)
    few = append(9)
    few.parts = [Part(id_of(9), b"x" * LARGE, 1)]
    database.commit([few, append(10)])
    assert counts(path) == (5, 3, 0)
    pages = []
    after = 0
    while page := database.page(after, 2, 10**9):
        pages.append([one.seq for one in page])
        after = page[-1].seq
    assert pages == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]


def test_a_sealed_batch_has_its_jobs_from_rows_and_blocks(database: Database) -> None:
    """A batch that was put back would be sent without some of its members."""
    requests = accepted(database, 3)
    unpack(database)
    requests += accepted(database, 3, first=4)
    wanted = batch(*jobs_of(requests))
    database.commit([Seal(wanted)])
    found = sealed(database, 1)
    assert contents(found.jobs) == contents(wanted.jobs)


def test_a_dead_letter_has_rows(path: Path, database: Database) -> None:
    """`dead show` would print nothing, and a retry would send nothing."""
    requests = accepted(database, 3, 2)
    letter = batch(*jobs_of(requests)[1:4], sealed=False)
    database.commit([Bury(letter, "C", "r")])
    assert counts(path) == (5, 0, 0)
    with Inspection.open(path.parent) as other:
        assert other.lines(str(letter.id)) == b"2\n3\n4\n"
        other.retry([])
    database.commit([Revive()])
    assert contents(sealed(database, 2).jobs) == contents(letter.jobs)
    assert verified(path) == []


def test_jobs_that_are_stored_one_by_one_get_rows(path: Path, database: Database) -> None:
    """Each job would be noted as stored until its whole block is deleted."""
    alone = Layout("{id}", "", "none", alone=True)
    together = Layout("{id}", "", "none", alone=False)
    database.open_streams(("default", "a"))
    database.layouts(alone, {1: together})
    few = append(9)
    few.parts = [Part(id_of(9), b"x" * LARGE, 1)]
    database.commit([append(1, count=2), request(5, 3, stream=1), few])
    assert counts(path) == (3, 1, 0)
    assert (seqs(database), len(seqs(database, 1))) == ([1, 2, 3], 3)


_FAILS: Final = (
    *("INSERT INTO blocks", "INSERT INTO stored", "DELETE FROM blocks", "DELETE FROM stored"),
    *("UPDATE totals", "COMMIT", "INSERT OR REPLACE INTO jobs"),
)


@pytest.mark.parametrize("fails", _FAILS)
def test_a_failed_commit_changes_nothing(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Jobs of a refused request would be stored, or those of another one forgotten."""
    requests = accepted(database, *[4] * 5)
    jobs = jobs_of(requests)
    database.commit([Settle(batch(*jobs[1:7], sealed=False))])
    before = seqs(database), database.totals
    ends: list[Settle | Bury] = [
        Settle(batch(*jobs[7:15], sealed=False)),
        Bury(batch(jobs[18], sealed=False), "C", "r"),
    ]
    monkeypatch.setattr(Blocks, "most_blocks", 5)
    monkeypatch.setattr(Blocks, "jobs_at_a_time", 1)
    with monkeypatch.context() as patched:
        faulty = FaultyConnection(database._connection)
        faulty.fails = fails
        patched.setattr(database, "_connection", faulty)
        with pytest.raises(sqlite3.OperationalError):
            database.commit([append(21, count=3), *ends])
    database.probe()
    assert (seqs(database), database.totals) == before
    assert jobs_in_file(path) == 14
    database.commit([append(21, count=3), *ends])
    assert database.totals.jobs == 8
    with closing(Database(killed(path, "killed"))) as again:
        assert seqs(again) == [1, 16, 17, 18, 20, 21, 22, 23]


def test_stored_jobs_are_deleted_although_no_rows_can_be_written(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would stay full: stored payloads would keep their space."""
    (four,) = accepted(database, 4)
    monkeypatch.setattr(Blocks, "most_blocks", 1)
    with monkeypatch.context() as patched:
        faulty = FaultyConnection(database._connection)
        faulty.fails = "INSERT OR REPLACE INTO jobs"
        patched.setattr(database, "_connection", faulty)
        with pytest.raises(sqlite3.OperationalError):
            database.commit([append(5)])
        assert counts(path) == (0, 1, 0)
        database.commit([Settle(batch(*four.jobs, sealed=False))])
    assert counts(path) == (0, 0, 0)
    database.commit([append(5)])
    assert seqs(database) == [5]


def test_a_kill_at_any_moment_loses_and_repeats_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accepted payloads would be lost by a crash, or stored twice."""
    monkeypatch.setattr(Blocks, "most_blocks", 6)
    monkeypatch.setattr(Blocks, "jobs_at_a_time", 7)
    monkeypatch.setattr(Blocks, "deleted_per_commit", 1)
    chance = random.Random(5)  # noqa: S311 - no secret
    waiting: dict[int, list[Job]] = {0: [], 1: [], 2: []}
    images: list[tuple[Path, list[object]]] = []

    def take_image() -> None:
        jobs = sorted(one for some in waiting.values() for one in some)
        images.append((killed(path, str(len(images))), [*contents(jobs)]))

    with closing(Database(path)) as database:
        database._connection.execute("PRAGMA synchronous = OFF")
        database.open_streams(("default", "a", "b"))
        for number in range(1, 40):
            if database.blocks.is_full:
                database.blocks.unpack_oldest(database._connection)
                take_image()
            requests = [
                request(3 * number + one, stream=one) for one in chance.sample((0, 1, 2), 2)
            ]
            ends = []
            for jobs in waiting.values():
                if len(jobs) > 4 and chance.random() < 0.7:
                    first = chance.randrange(3)
                    ends.append(Settle(batch(*jobs[first : first + 3], sealed=False)))
                    del jobs[first : first + 3]
            database.commit([*requests, *ends])
            for one in requests:
                waiting[one.stream] += one.jobs
            take_image()
    assert len(images) > 40
    for image, wanted in images:
        assert verified(image) == []
        with closing(Database(image)) as again:
            found = [
                one for stream in (0, 1, 2) for one in again.page(first_seq(stream), 999, 10**6)
            ]
            assert contents(found) == wanted
            assert again.totals.jobs == len(wanted)
            assert new_findings(again) == []


def test_a_start_unpacks_in_small_transactions(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start on a nearly full disk would need space for all blocks at once."""
    monkeypatch.setattr(block_rows, "_BYTES_AT_A_TIME", 10)
    requests = accepted(database, 6, 6, 6, 6)
    database.commit([Settle(batch(*jobs_of(requests)[2:15]))])
    image = killed(path, "killed")
    delete, calls = block_rows.delete, iter(range(2))

    def fail_at_the_third(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
        if next(calls, None) is None:
            raise disk_full()
        return delete(connection, numbers)

    with (
        patch.object(block_rows, "delete", fail_at_the_third),
        pytest.raises(sqlite3.OperationalError, match="full"),
    ):
        Database(image)
    assert 0 < counts(image)[1] < 3
    assert jobs_in_file(image) == 11
    with closing(Database(image)) as again:
        assert seqs(again) == [1, 2, *range(16, 25)]
        assert new_findings(again) == []
    assert verified(image) == []
