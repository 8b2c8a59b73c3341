"""Commits of one kind of operation at a time, in cases that random tests do not reach."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from payloadd.journal.sqlite import dead_letters
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.dead_letters import REVIVED_PER_COMMIT, drop
from payloadd.journal.sqlite.operations import Bury, Expire, Revive, Seal, Settle
from payloadd.journal.sqlite.schema import ROW_BYTES
from tests.support.journal import append, batch, disk_full, id_of, job, sealed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("anywhere")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return a new journal file."""
    with closing(Database(tmp_path / "j")) as one:
        yield one


def mark(path: Path, *numbers: int) -> None:
    """Mark dead letters to be tried again, as another process does."""
    with closing(sqlite3.connect(path)) as other, other:
        dead_letters.mark(other, [str(id_of(number)) for number in numbers])


def with_dead_letters(database: Database, count: int) -> None:
    """Add requests, each of which the store has refused for good."""
    requests = [append(number) for number in range(1, count + 1)]
    database.commit(requests)
    database.commit([Bury(batch(one.jobs[0], sealed=False), "C", "r") for one in requests])


def test_only_marked_dead_letters_are_revived(tmp_path: Path, database: Database) -> None:
    """Otherwise `dead retry ID` uploads letters that the operator did not name, or one twice."""
    with_dead_letters(database, 4)
    mark(tmp_path / "j", 4, 2)
    first, second = Revive(), Revive()
    database.commit([first, second])
    assert (first.firsts, first.payloads, first.more) == ([2, 4], 2, False)
    assert second.firsts == []
    assert [
        (one.key, b"".join(job.lines for job in one.jobs))
        for one in (sealed(database, number) for number in first.firsts)
    ] == [
        (batch(job(2)).key, b"2\n"),
        (batch(job(4)).key, b"4\n"),
    ]


def test_a_dead_letter_can_be_revived_several_times(tmp_path: Path, database: Database) -> None:
    """Otherwise a letter is lost if the operator repairs the wrong thing first."""
    with_dead_letters(database, 1)
    for _ in range(3):
        mark(tmp_path / "j", 1)
        revive = Revive()
        database.commit([revive])
        again = sealed(database, *revive.firsts)
        assert b"".join(job.lines for job in again.jobs) == b"1\n"
        database.commit([Seal(again)])
        database.commit([Bury(again, "C", "r")])
    assert database.totals.jobs == 0


def test_a_revival_whose_commit_failed_is_repeated_once(tmp_path: Path, database: Database) -> None:
    """Otherwise a full disk makes two objects of a dead letter."""
    with_dead_letters(database, 2)
    mark(tmp_path / "j", 1)
    revive = Revive()
    before = replace(database.totals)
    with (
        patch.object(database, "_write", side_effect=disk_full()),
        pytest.raises(sqlite3.OperationalError),
    ):
        database.commit([revive])
    assert database.totals == before
    database.commit([revive])
    assert revive.firsts == [1]
    database.commit([revive])
    assert revive.firsts == []


def test_many_dead_letters_are_revived_in_several_commits(
    tmp_path: Path, database: Database
) -> None:
    """Otherwise every request waits while 10,000 dead letters are revived."""
    with_dead_letters(database, REVIVED_PER_COMMIT + 1)
    mark(tmp_path / "j", *range(1, REVIVED_PER_COMMIT + 2))
    first, second = Revive(), Revive()
    database.commit([first])
    database.commit([second])
    assert (len(first.firsts), first.more) == (REVIVED_PER_COMMIT, True)
    assert (len(second.firsts), second.more) == (1, False)


def test_a_restart_does_not_upload_dead_letters(tmp_path: Path) -> None:
    """Otherwise every start uploads the objects that S3 refuses for good."""
    path = tmp_path / "j"
    with closing(Database(path)) as old:
        with_dead_letters(old, 3)
        dead_bytes = old.totals.dead_bytes
        assert (old.totals.jobs, old.totals.bytes) == (0, 0)
        assert dead_bytes == 3 * (2 + ROW_BYTES)
    with closing(Database(path)) as new:
        assert new.page(0, 9, 99) == []
        assert new.sealed_after({}) == []
        assert new.totals.dead_bytes == dead_bytes
        with closing(sqlite3.connect(path)) as other, other:
            assert drop(other, [str(id_of(2))]) == 1
        new.count_dead()
        assert new.totals.dead_bytes == 2 * (2 + ROW_BYTES)


def test_a_commit_succeeds_after_a_transaction_was_left_open(database: Database) -> None:
    """Otherwise every commit fails after a failed rollback, until a restart."""
    database._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(1)])
    database.commit([append(1)])
    assert database.totals.jobs == 1
    assert len(database.page(0, 9, 99)) == 1


def test_an_idempotency_key_is_deleted_when_it_expires(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a key that is deleted is still valid when it is looked up, or the reverse."""
    now = 1000
    with closing(Database(path, read_uptime=lambda: now)) as database:
        monkeypatch.setattr("payloadd.journal.sqlite.idempotency.KEEP", 1)
        database.commit([append(number, b"key%d" % number) for number in range(1, 4)])
        monkeypatch.setattr("payloadd.journal.sqlite.idempotency.KEEP", 1000)
        now += 1000
        again = append(4, b"key1")
        database.commit([again, Expire()])
        assert again.earlier is None
        assert database._connection.execute("SELECT count(*) FROM answers").fetchone() == (1,)


def test_expired_keys_are_deleted_a_bounded_number_per_commit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the table of keys grows without end, or one commit delays all requests."""
    monkeypatch.setattr("payloadd.journal.sqlite.idempotency.KEEP", -1)
    database.commit([append(n, b"%d" % n) for n in range(1, 201)])
    for expected in (72, 0):
        database.commit([Expire()])
        left = database._connection.execute("SELECT count(*) FROM answers").fetchone
        assert left() == (expected,)
        assert database.totals.keys == expected


def test_job_numbers_continue_after_a_restart(tmp_path: Path) -> None:
    """Otherwise jobs of two runs have the same number, and the second cannot be written."""
    path = tmp_path / "j"
    for seq in (1, 2, 3):
        with closing(Database(path)) as one:
            one.commit([append(seq)])
            one.commit([Settle(batch(job(seq), sealed=False))])
            assert one.totals == type(one.totals)(seq + 1, 0, 0, 0, accepted=seq)


def test_a_job_larger_than_a_page_is_returned_alone(database: Database) -> None:
    """Otherwise the backlog stops at the first large job after MAX_QUEUE_BYTES was lowered."""
    database.commit([append(1, count=12)])
    assert [one.seq for one in database.page(9, 9, 1)] == [10]
    assert [one.seq for one in database.page(8, 9, 5)] == [9, 10]
    assert [one.seq for one in database.page(10, 1, 99)] == [11]
    assert database.page(12, 9, 99) == []


def test_pages_leave_out_batches_that_were_sealed_before_the_start(tmp_path: Path) -> None:
    """Otherwise a crash during several uploads stores some payloads twice or never."""
    path = tmp_path / "j"
    with closing(Database(path)) as old:
        request = append(1, count=8)
        old.commit([request])
        jobs = request.jobs
        old.commit([Seal(batch(*jobs[a:b])) for a, b in ((1, 3), (3, 4), (5, 7))])
        assert [one.seq for one in old.page(0, 9, 99)] == list(range(1, 9))
    with closing(Database(path)) as new:
        assert [one.seq for one in new.page(0, 9, 99)] == [1, 5, 8]
        assert [one.seq for one in new.page(1, 1, 99)] == [5]
        found = [sealed(new, first) for first in new.sealed_after({})]
        assert [[one.seq for one in each.jobs] for each in found] == [[2, 3], [4], [6, 7]]
        new.commit([Settle(each) for each in found])
        assert [one.seq for one in new.page(0, 9, 99)] == [1, 5, 8]
