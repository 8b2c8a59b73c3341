"""The age of the oldest payload, whether a worker has seen it or not."""

from __future__ import annotations

import sqlite3
import time
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.oldest_row import OldestRow
from payloadd.journal.sqlite.operations import Append, Bury, Revive, Settle
from payloadd.model.job import Part
from tests.support.journal import (
    batch,
    open_rig,
    unpack,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 1_704_067_200


def request(second: int, count: int = 1) -> Append:
    """Return a request of ``count`` jobs that was accepted at that second."""
    ids = [uuid.UUID(int=((NOW + second) * 1000 << 80) + index) for index in range(count)]
    return Append(Receipt(ids[0], count), [Part(one, b"1\n", 1) for one in ids])


def test_stored_and_dead_jobs_are_skipped(tmp_path: Path) -> None:
    """A backlog that is stuck would have the age of a dead letter, or none."""
    with closing(Database(tmp_path / "j")) as database:
        assert database.oldest() is None
        requests = [request(0, 200), request(1), request(2), request(3)]
        database.commit(list(requests))
        assert database.oldest() == NOW
        unpack(database)
        assert database.oldest() == NOW
        database.commit([Settle(batch(*requests[0].jobs, sealed=False))])
        assert database.deletion.ranges  # the rows of stored jobs are deleted a few at a time
        assert database.oldest() == NOW + 1
        database.commit([Bury(batch(requests[1].jobs[0], sealed=False), "C", "r")])
        assert database.oldest() == NOW + 2
        database.commit([Settle(batch(requests[2].jobs[0], sealed=False))])
        assert database.oldest() == NOW + 3
        database._connection.execute("UPDATE dead SET retry = 1")
        database.commit([Revive()])
        assert database.oldest() == NOW + 1


@pytest.mark.parametrize("in_blocks", [False, True])
def test_the_oldest_job_of_each_stream_is_found(tmp_path: Path, *, in_blocks: bool) -> None:
    """A watermark of one stream would pass its jobs, or wait for those of another."""
    with closing(Database(tmp_path / "j")) as database:
        names = database.open_streams(["default", "clicks"])
        (clicks,) = [number for number, name in names.items() if name == "clicks"]
        if not in_blocks:
            database.in_rows = frozenset(names)
        database.oldest()
        assert database.oldest_row.by_stream == {}
        ours, theirs = [request(5), request(1)], [request(9, 3), request(7)]
        for one in theirs:
            one.stream = clicks
        for pair in zip(ours, theirs, strict=True):
            database.commit(list(pair))
        seqs = [one.jobs[0].seq for one in (*ours, *theirs)]
        assert database.blocks.has(seqs[0]) is in_blocks
        database.oldest()
        wanted = {0: (seqs[0], (NOW + 5) * 1000), clicks: (seqs[2], (NOW + 9) * 1000)}
        assert database.oldest_row.by_stream == wanted
        database.commit([Settle(batch(*theirs[0].jobs, sealed=False))])
        database.commit([Bury(batch(ours[0].jobs[0], sealed=False), "C", "r")])
        database.oldest()
        wanted = {0: (seqs[1], (NOW + 1) * 1000), clicks: (seqs[3], (NOW + 7) * 1000)}
        assert database.oldest_row.by_stream == wanted
        # One job of a stream in a row, a later one in a block.
        later = request(8)
        database.in_rows = frozenset()
        database.commit([later])
        database.oldest()
        assert database.oldest_row.by_stream == wanted
        settled = (ours[1], theirs[1], later)
        database.commit([Settle(batch(one.jobs[0], sealed=False)) for one in settled])
        database.oldest()
        assert database.oldest_row.by_stream == {}


def test_a_call_continues_where_the_last_one_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred thousand dead letters would hold up the journal's thread once a second."""
    monkeypatch.setattr(OldestRow, "most_ranges", 2)
    with closing(Database(tmp_path / "j")) as database:
        requests = [request(number) for number in range(5)]
        database.commit(list(requests))
        letters = [Bury(batch(one.jobs[0], sealed=False), "C", "r") for one in requests[:4]]
        database.commit(list(letters))
        assert [database.oldest() for _ in range(3)] == [None, None, NOW + 4]


def test_a_revived_dead_letter_is_the_oldest(tmp_path: Path) -> None:
    """Its age would be missing where another batch became a dead letter in the same second."""
    with closing(Database(tmp_path / "j")) as database:
        requests = [request(number) for number in range(3)]
        database.commit(list(requests))
        database.commit([Bury(batch(requests[0].jobs[0], sealed=False), "C", "r")])
        assert database.oldest() == NOW + 1
        database._connection.execute("UPDATE dead SET retry = 1")
        database.commit([Revive(), Bury(batch(requests[1].jobs[0], sealed=False), "C", "r")])
        assert database.oldest() == NOW


def test_a_job_before_a_revived_dead_letter_is_found(tmp_path: Path) -> None:
    """A backlog that is stuck would have no age once a newer dead letter was tried again."""
    with closing(Database(tmp_path / "j")) as database:
        wanted = request(0, 2)
        database.commit([wanted])
        letter = Bury(batch(wanted.jobs[1], sealed=False), "C", "r")
        database.commit([letter])
        assert database.oldest() == NOW
        database._connection.execute("UPDATE dead SET retry = 1")
        database.commit([Revive()])
        assert database.oldest() == NOW
        database.commit([letter])
        assert database.oldest() == NOW


def test_a_damaged_id_is_skipped(tmp_path: Path) -> None:
    """One altered byte in the file would end the daemon."""
    with closing(Database(tmp_path / "j")) as database:
        database.commit([request(0), request(1)])
        unpack(database)
        database._connection.execute("UPDATE jobs SET id = 7 WHERE seq = 1")
        assert database.oldest() == NOW + 1


@pytest.mark.parametrize("most", [2, 1000])
def test_the_oldest_job_is_that_of_all_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A backlog of one stream would be hidden by another, or delay every commit."""
    monkeypatch.setattr(OldestRow, "most_ranges", most)
    seconds = {1: 5, 2: 3, 3: 9}
    with closing(Database(tmp_path / "j")) as database:
        database.open_streams(("default", "a", "b", "c"))
        requests = {stream: request(second) for stream, second in seconds.items()}
        for stream, one in requests.items():
            one.stream = stream
        database.commit([request(7), *requests.values()])
        for stream in (2, 1):
            assert oldest(database) == NOW + seconds[stream]
            database.commit([Bury(batch(requests[stream].jobs[0], sealed=False), "C", "r")])
        assert oldest(database) == NOW + 7
        database._connection.execute("UPDATE dead SET retry = 1 WHERE first < 2 << 48")
        database.commit([Revive()])
        assert oldest(database) == NOW + 5


def oldest(database: Database) -> float | None:
    """Return the time of the oldest job, asked for as often as needed."""
    found = database.oldest()
    while database.oldest_row.unfinished:
        found = database.oldest()
    return found


def make_job_behind_dead_letters(path: Path) -> None:
    """Make a journal with eight dead letters, and a job that was accepted at ``NOW + 8``."""
    with closing(Database(path)) as database:
        requests = [request(number) for number in range(9)]
        database.commit(list(requests))
        database.commit([Bury(batch(one.jobs[0], sealed=False), "C", "r") for one in requests[:8]])


async def test_the_age_is_right_after_many_dead_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog behind a thousand dead letters would have the age 0 for as many seconds."""
    monkeypatch.setattr(OldestRow, "most_ranges", 2)
    make_job_behind_dead_letters(tmp_path / "j")
    async with open_rig(tmp_path / "j", tuning=Tuning(maintenance_interval=60.0)) as rig:
        await rig.journal._maintenance._report_oldest()
        assert rig.accounting.kept_since == NOW + 8


async def test_a_commit_behind_a_search_that_goes_on_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of an earlier search would count as a new one, and watermarks would rise."""
    monkeypatch.setattr(OldestRow, "most_ranges", 2)
    make_job_behind_dead_letters(tmp_path / "j")
    async with open_rig(tmp_path / "j", tuning=Tuning(maintenance_interval=60.0)) as rig:
        thread, write = rig.journal._thread, rig.journal._thread.write

        async def write_and_commit(function: Callable[[], object]) -> object:
            found = await write(function)
            # As the next commit does in the thread, before this task runs again.
            rig.database.oldest_row.reconsider([1])
            monkeypatch.setattr(thread, "write", write)
            return found

        monkeypatch.setattr(thread, "write", write_and_commit)
        await rig.journal._maintenance._report_oldest()
        assert rig.accounting.kept_since == NOW + 8
        assert rig.accounting.oldest_jobs.by_stream == {0: (9, (NOW + 8) * 1000)}


async def test_an_unreadable_backlog_has_its_age(tmp_path: Path) -> None:
    """The usual alert would see an age of 0 while nothing is stored."""
    with closing(Database(tmp_path / "j")) as database:
        database.commit([request(0)])
    age = time.time() - NOW
    async with open_rig(tmp_path / "j", tuning=Tuning(maintenance_interval=0.02)) as rig:
        rig.accounting.found = 1
        rig.database.read_error = lambda: sqlite3.OperationalError("disk I/O error")
        await until(lambda: rig.accounting.oldest_age() >= age)


async def test_an_unreadable_age_counts_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a damaged first page, a backlog would have no age."""
    async with open_rig(tmp_path / "j", tuning=Tuning(maintenance_interval=0.02)) as rig:

        def broken() -> float:
            raise sqlite3.DatabaseError("database disk image is malformed")

        monkeypatch.setattr(rig.database, "oldest", broken)
        await rig.accept(1)
        rig.accounting._in_memory.clear()
        await until(lambda: rig.accounting.oldest_age() > 0)
        assert rig.accounting.oldest_age() < 60


@pytest.mark.parametrize("settled", [False, True])
def test_a_job_that_leaves_its_block_is_in_front_of_what_was_skipped(
    tmp_path: Path, *, settled: bool
) -> None:
    """A watermark would pass it; and the age of the backlog would be too low."""
    with closing(Database(tmp_path / "j")) as database:
        requests = [request(0), request(1, 200), request(2)]
        for one in requests:
            database.commit([one])
        second = batch(*requests[1].jobs, sealed=False)
        if settled:
            database.blocks.unpack(database._connection, [(2, 2)])
        database.commit([Settle(second) if settled else Bury(second, "C", "r")])
        assert bool(database.deletion.ranges) == settled
        assert database.oldest() == NOW
        database.blocks.unpack_oldest(database._connection)
        assert database.oldest() == NOW
        assert database.oldest_row.by_stream == {0: (1, NOW * 1000)}


def test_a_job_that_leaves_its_block_between_two_calls_is_found(tmp_path: Path) -> None:
    """A search that begins anew with each unpacked block may never end."""
    with closing(Database(tmp_path / "j")) as database:
        requests = [request(second) for second in range(9)]
        for one in requests:
            database.commit([one])
        for one in requests[1:8]:
            database.commit([Bury(batch(*one.jobs, sealed=False), "C", "r")])
        database.oldest_row.most_ranges = 5
        assert database.oldest() is None
        assert database.oldest_row.unfinished
        database.blocks.unpack_oldest(database._connection)
        for _ in range(3):
            assert database.oldest() == NOW
            assert database.oldest_row.by_stream == {0: (1, NOW * 1000)}
