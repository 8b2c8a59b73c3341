"""Damaged and lost blocks: each job is stored, or listed as DAMAGED."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING
from unittest.mock import Mock, patch

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import block_rows, file_check, salvage
from payloadd.journal.sqlite.damage import CODE, corrupt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Clear, Seal, Settle
from payloadd.journal.sqlite.segments import FOLDER, WORTH_A_SYNC
from payloadd.model.job import Part
from tests.journal.sqlite.damaging import (
    PAGE,
    change,
    lose_pages,
    new_findings,
    repair_without_pause,
    verified,
    zero_pages,
)
from tests.journal.sqlite.in_blocks import accepted, counts, jobs_of, killed, seqs
from tests.support.journal import (
    append,
    batch,
    contents,
    disk_full,
    id_of,
    job,
    sealed,
    unpack,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_a_damaged_line_damages_one_job(path: Path, database: Database) -> None:
    """A payload would be stored altered, or the others of its commit would be lost."""
    accepted(database, 5)
    image = killed(path, "killed")
    change(image, "UPDATE blocks SET lines = replace(CAST(lines AS TEXT), '3', '4')")
    change(image, "UPDATE blocks SET lines = CAST(lines AS BLOB)")
    (finding,) = verified(image)
    assert (finding.table, finding.first, finding.last) == ("jobs", 3, 3)
    with closing(Database(image)) as again:
        assert seqs(again) == [1, 2, 4, 5]
        (found,) = new_findings(again)
        assert (found.first, found.last, found.jobs, found.payloads) == (3, 3, 1, 1)
        assert again.totals.jobs == 4
    with Inspection.open(image.parent) as other:
        (letter,) = other.dead()
        assert (letter.code, other.lines(letter.id)) == (CODE, b"4\n")
        assert str(id_of(3)) in letter.reason


@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_head_is_listed(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, *, checked: bool
) -> None:
    """Payloads would be missing silently."""
    if not checked:
        monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    accepted(database, 2, 3, 2)
    image = killed(path, "killed")
    change(image, "UPDATE blocks SET head = zeroblob(length(head)) WHERE number = 3")
    assert {one.table for one in verified(image)} == {"blocks", "totals"}
    with closing(Database(image)) as again:
        assert seqs(again) == [1, 2, 6, 7]
        assert again.page(7, 9, 99) == []
        assert again.totals.jobs == 4
        assert again.damaged_payloads == 3
        assert "list of the jobs" in new_findings(again)[0].reason
    with Inspection.open(image.parent) as other:
        letters = other.dead()
        assert {one.code for one in letters} == {CODE}
        assert sum(one.payloads for one in letters) == 3
        assert b"".join(other.lines(one.id) for one in letters) == b"3\n4\n5\n"
        other.drop([one.id for one in letters])
    assert verified(image) == []


def test_a_head_that_is_damaged_in_a_running_daemon_is_listed_by_numbers(
    path: Path, database: Database
) -> None:
    """It is known which jobs were in it."""
    accepted(database, 2, 3)
    database.commit([Settle(batch(job(4), sealed=False))])
    change(path, "UPDATE blocks SET head = zeroblob(length(head)) WHERE number = 3")
    assert seqs(database) == [1, 2]
    found = new_findings(database)
    assert [(one.first, one.last) for one in found] == [(3, 3), (5, 5)]
    assert database.totals.jobs == 2


def test_a_damaged_block_is_written_again_from_memory(path: Path, database: Database) -> None:
    """Payloads that a worker is about to store would be reported as damaged."""
    requests = accepted(database, 2, 3)
    change(path, "UPDATE blocks SET lines = zeroblob(length(lines)) WHERE number = 3")
    database.jobs_in_memory = lambda: requests[1].jobs[1:]
    assert seqs(database) == [1, 2, 4, 5]
    assert [(one.first, one.last) for one in new_findings(database)] == [(3, 3)]
    database.commit([Settle(batch(*requests[1].jobs[1:], sealed=False))])
    assert (database.totals.jobs, seqs(database)) == (2, [1, 2])


def test_a_damaged_row_gives_no_rows_to_jobs_in_blocks(path: Path, database: Database) -> None:
    """Jobs with a row and a block would be stored twice after a crash."""
    requests = accepted(database, 3)
    unpack(database)
    requests += accepted(database, 3, first=4)
    change(path, "UPDATE jobs SET payloads = 7 WHERE seq = 2")
    database.jobs_in_memory = lambda: [*requests[0].jobs[2:], *requests[1].jobs]
    assert seqs(database) == [1, 3, 4, 5, 6]
    assert counts(path) == (3, 1, 0)
    assert {one.table for one in verified(path)} == {"dead"}
    database._recount()
    assert counts(path) == (3, 1, 0)


def test_a_journal_that_is_written_again_has_all_jobs_once(path: Path, database: Database) -> None:
    """Jobs in blocks would be lost with a deleted file, or be there twice."""
    requests = accepted(database, 3, 3)
    database.commit([Settle(batch(*requests[0].jobs[:2], sealed=False))])
    path.unlink()
    assert database.restore_files(immediately=True)
    assert (seqs(database), database.totals.jobs) == ([3, 4, 5, 6], 4)
    database.commit([append(7), Settle(batch(*requests[1].jobs, sealed=False))])
    while database.deletion_waits:
        database.commit([Clear()])
    assert seqs(database) == [3, 7]
    assert verified(path) == []
    # The first page had no error that a second repair has hidden.
    assert new_findings(database) == []


def test_blocks_that_cannot_be_deleted_are_damage(path: Path, database: Database) -> None:
    """A start would unpack the same blocks for ever."""
    accepted(database, 2)
    image = killed(path, "killed")
    with (
        closing(sqlite3.connect(image, isolation_level=None)) as connection,
        patch.object(block_rows, "delete", return_value=0),
        pytest.raises(sqlite3.DatabaseError, match="where they should be"),
    ):
        block_rows.unpack_all(connection)
    assert counts(image) == (0, 1, 0)


def test_a_member_that_is_lost_beside_a_block_is_the_only_one(
    path: Path, database: Database
) -> None:
    """The members in blocks would be reported as lost, and stored."""
    requests = accepted(database, 3)
    unpack(database)
    requests += accepted(database, 3, first=4)
    jobs = jobs_of(requests)
    database.commit([Seal(batch(*jobs))])
    change(path, "DELETE FROM jobs WHERE seq = 2")
    found = sealed(database, 1)
    assert contents(found.jobs) == contents([jobs[0], *jobs[2:]])
    assert (database.totals.jobs, database.damaged_payloads) == (5, 1)


def test_a_repair_keeps_the_stored_ranges_of_blocks(path: Path, database: Database) -> None:
    """Stored payloads would be stored again where their ranges are lost in the file."""
    database._hidden.sound = True
    requests = accepted(database, 6)
    database.commit([Settle(batch(*requests[0].jobs[1:3], sealed=False))])
    change(path, "DELETE FROM stored")
    assert database._repair(corrupt("malformed"))
    assert seqs(database) == [1, 4, 5, 6]
    with closing(Database(killed(path, "killed"))) as again:
        assert seqs(again) == [1, 4, 5, 6]


def test_lost_segments_give_no_rows_to_jobs_in_blocks(path: Path, database: Database) -> None:
    """Jobs with a row and a block would be stored twice after a crash."""
    (small,) = accepted(database, 3)
    big = append(4)
    big.parts = [Part(id_of(4), b"x" * WORTH_A_SYNC + b"\n", 1)]
    database.commit([big])
    database.jobs_in_memory = lambda: [*small.jobs, *big.jobs]
    shutil.rmtree(path.parent / FOLDER)
    assert database.restore_files(immediately=True)
    assert counts(path) == (1, 1, 0)
    assert seqs(database) == [1, 2, 3, 4]


def test_of_two_rows_with_one_number_the_sound_one_is_kept(database: Database) -> None:
    """A misplaced page of another table would hide a job behind a row that is none."""
    (request,) = accepted(database, 1)
    unpack(database)
    query = f"SELECT {salvage._JOB_COLUMNS} FROM jobs"
    (sound,) = database._connection.execute(query).fetchall()
    altered = (*sound[:3], b"other", *sound[4:])
    for rows in ([altered, sound], [sound, altered], [sound, sound]):
        database._connection.execute("DELETE FROM jobs")
        salvage._fill_jobs(database._connection, iter(rows))
        assert contents(database.page(0, 9, 99)) == contents(request.jobs)


def test_a_lost_block_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads would be missing silently, or a worker's payloads after a crash."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    with closing(Database(path)) as database:
        repair_without_pause(database)
        requests = accepted(database, 2, 3, 2)
        database._hidden.sound = False
        monkeypatch.setattr(file_check, "find_problem", lambda _: "misplaced")
        change(path, "DELETE FROM blocks WHERE number = 3")
        database.jobs_in_memory = lambda: requests[1].jobs[1:]
        assert seqs(database) == [1, 2, 4, 5, 6, 7]
        assert database.damaged_payloads == 1
        assert database.totals.jobs == 6
        assert database.blocks.noted() == []


@pytest.mark.parametrize("page", ["first", "others"])
def test_damaged_pages_of_blocks_lose_only_their_jobs(
    path: Path, database: Database, page: str
) -> None:
    """The daemon would not start, or payloads would be missing silently."""
    accepted(database, 3)
    unpack(database)
    sizes = (1, 3000, 20_000)
    for number, size in enumerate(sizes, 4):
        one = append(number)
        one.parts = [Part(id_of(number), b"x" * size + b"\n", 1)]
        database.commit([one])
    image = killed(path, "killed")
    change(image, "PRAGMA wal_checkpoint(TRUNCATE)")
    with closing(sqlite3.connect(image)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'blocks'"
        (root,) = connection.execute(query).fetchone()
    content = image.read_bytes()
    pages = [content[start : start + PAGE] for start in range(0, len(content), PAGE)]
    overflow = [number for number, one in enumerate(pages, 1) if one.count(b"x") > 4000]
    assert len(overflow) >= 4
    zero_pages(image, [root] if page == "first" else overflow[2:])
    assert "file" in {one.table for one in verified(image)}
    with closing(Database(image)) as again:
        assert seqs(again) == ([1, 2, 3] if page == "first" else [1, 2, 3, 4, 5])
        found = [one for one in new_findings(again) if one.payloads]
        assert sum(one.payloads for one in found) == again.damaged_payloads == 6 - len(seqs(again))
        if page == "others":
            assert [(one.first, one.last) for one in found] == [(6, 6)]
        again.commit([append(7)])
        assert seqs(again)[-1] == 7


def test_a_damaged_block_behind_rows_is_repaired(path: Path, database: Database) -> None:
    """Every page would fail until a restart: its own statement would lock the log."""
    (request,) = accepted(database, 3)
    unpack(database)
    accepted(database, 2, 2, first=4)
    lose_pages(database, path, [id_of(4)])
    # Without a commit in the log no statement locks it.
    database.commit([Seal(batch(*request.jobs))])
    left = seqs(database)
    assert left[:3] == [1, 2, 3]
    assert database.damaged_payloads == 7 - len(left) > 0
    assert {one.table for one in verified(path)} == {"dead"}


def test_a_repair_that_fails_revives_no_stored_job(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored payloads would be stored again after a crash."""
    (request,) = accepted(database, 6)
    database.commit([Settle(batch(*request.jobs[1:3], sealed=False))])
    monkeypatch.setattr("payloadd.journal.sqlite.repair.make_sound", Mock(side_effect=disk_full()))
    assert not database._repair(corrupt("malformed"))
    for _ in range(3):
        database.commit([Clear()])
    assert seqs(database) == [1, 4, 5, 6]
    with closing(Database(killed(path, "killed"))) as again:
        assert seqs(again) == [1, 4, 5, 6]
    ends = [batch(request.jobs[0], sealed=False), batch(*request.jobs[3:], sealed=False)]
    database.commit([Settle(one) for one in ends])
    assert counts(path) == (0, 0, 0)


def test_lost_ranges_of_stored_jobs_refuse_the_start(path: Path, database: Database) -> None:
    """Stored payloads in blocks would be stored once more."""
    requests = accepted(database, 6)
    database.commit([Settle(batch(*requests[0].jobs[1:3], sealed=False))])
    image = killed(path, "killed")
    change(image, "UPDATE stored SET first = 'x' WHERE last = 3")
    with pytest.raises(StartError, match="stored already"):
        Database(image)
    assert counts(image) == (0, 1, 1)
    change(image, "UPDATE totals SET jobs = 7")
    with pytest.raises(StartError, match="which jobs are stored"):
        Database(image)


def test_a_flipped_bit_of_a_stored_range_is_repaired_first(path: Path, database: Database) -> None:
    """Jobs that are stored would get rows again."""
    requests = accepted(database, 6)
    database.commit([Settle(batch(*requests[0].jobs[1:3], sealed=False))])
    image = killed(path, "killed")
    change(image, "UPDATE stored SET first = 0 WHERE last = 3")
    with closing(Database(image)) as again:
        assert seqs(again) == [1, 4, 5, 6]
