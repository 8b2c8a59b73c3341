"""Requests that are written in several commits: accepted whole or not at all, and in order."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest

from payloadd.errors import KeyReusedError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Abandon, Append, Clear, Seal, Settle, Stage
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER, LARGE, WORTH_A_SYNC
from payloadd.model.job import Part
from tests.journal.opener import ALL
from tests.support.journal import (
    append,
    batch,
    contents,
    disk_full,
    id_of,
    job,
    jobs_in_file,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.damage import Finding


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a journal that does not exist yet."""
    return tmp_path / "state" / FILE


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    """Return a new journal."""
    path.parent.mkdir()
    with closing(Database(path)) as one:
        yield one


def commit_step(database: Database, request: Append, end: int) -> None:
    """Commit the parts of a request up to ``end``, as the journal does."""
    database.commit([Stage(request, request.staged, end)])
    request.staged = end


def seqs(database: Database) -> list[int]:
    """Return the numbers of all jobs that can be read."""
    return [one.seq for one in database.page(*ALL)]


def verified(path: Path) -> Sequence[Finding]:
    """Return the damage that another process finds in the journal."""
    with Inspection.open(path.parent) as looking:
        return looking.verify()


def killed(path: Path, name: str) -> Path:
    """Return the journal as a kill at this moment would leave it."""
    return shutil.copytree(path.parent, path.parent.parent / name) / FILE


def test_a_staged_request_is_accepted_by_its_last_commit(path: Path, database: Database) -> None:
    """Otherwise half of a request is stored and counted although its client was refused."""
    request = append(1, count=6)
    for end in (2, 5):
        commit_step(database, request, end)
        assert jobs_in_file(path) == end
        assert (database.totals.jobs, database.totals.accepted, seqs(database)) == (0, 0, [])
        with Inspection.open(path.parent) as looking:
            assert looking.status().payloads == 0
        assert verified(path) == []
    database.commit([request])
    assert seqs(database) == [*range(1, 7)]
    assert contents(request.jobs) == contents(job(seq) for seq in range(1, 7))
    assert (database.totals.jobs, database.totals.accepted) == (6, 6)
    assert verified(path) == []


def test_jobs_behind_a_staged_request_are_not_read_before_it(database: Database) -> None:
    """Otherwise the jobs of the request are never read: a page begins behind the previous one."""
    database.commit([append(1)])
    request = append(2, count=4)
    commit_step(database, request, 2)
    database.commit([append(6)])
    assert seqs(database) == [1]
    database.commit([request, append(7)])
    assert seqs(database) == [*range(1, 8)]


@pytest.mark.parametrize("size", [3, WORTH_A_SYNC // 2])
def test_a_kill_between_two_commits_leaves_nothing_of_the_request(
    path: Path, database: Database, size: int
) -> None:
    """Otherwise the store has half of a request whose client got no response."""
    parts = [Part(id_of(number), b"%d" % number * size, 1) for number in range(1, 7)]
    request = Append(Receipt(id_of(1), 6), parts)
    images = [killed(path, "0")]
    for end in (2, 4):
        commit_step(database, request, end)
        database.commit([append(10 + end)])
        images.append(killed(path, str(end)))
    database.commit([request])
    images.append(killed(path, "6"))
    found = []
    for image in images:
        with closing(Database(image)) as again:
            found.append(seqs(again))
            assert again.totals.jobs == len(found[-1])
            assert again.high_water.damage is None
            while again.deletion.ranges:
                again.commit([Clear()])
            assert jobs_in_file(image) == len(found[-1])
            again.commit([append(20)])
            assert seqs(again)[-1] == again.totals.next - 1
        assert verified(image) == []
    assert found == [[], [7], [7, 8], [*range(1, 9)]]


def test_a_refused_request_leaves_no_row(path: Path, database: Database) -> None:
    """Otherwise each refused request takes disk space until the next start."""
    request = append(1, count=200)
    commit_step(database, request, 100)
    database.commit([Abandon(), Abandon()])
    assert database.staging.range is None
    database.commit([append(500)])
    while database.deletion.ranges:
        database.commit([Clear()])
    assert jobs_in_file(path) == 1
    assert seqs(database) == [201]
    with pytest.raises(sqlite3.OperationalError, match="are gone"):
        database.commit([request])
    with pytest.raises(sqlite3.OperationalError, match="are gone"):
        database.commit([Stage(request, 100, 150)])


def test_a_refused_request_has_no_jobs_while_its_rows_are_deleted(
    path: Path, database: Database
) -> None:
    """Otherwise payloads of a refused request are stored, and stored again when it is repeated."""
    database.commit([append(1)])
    request = append(2, count=500)
    commit_step(database, request, 400)
    database.commit([Abandon()])
    assert jobs_in_file(path) > 100
    while database.deletion.ranges:
        assert seqs(database) == [1]
        database.commit([Clear()])
    database.commit([append(600)])
    assert seqs(database) == [1, 502]
    assert database.totals.jobs == 2


def test_a_staged_request_is_removed_when_the_journal_closes(path: Path) -> None:
    """Otherwise rows of a refused request are jobs at the next start."""
    path.parent.mkdir()
    with closing(Database(path)) as database:
        stored = append(1, count=100)
        database.commit([stored])
        sealed = batch(*stored.jobs)
        database.commit([Seal(sealed)])
        unpack(database)
        commit_step(database, append(101, count=3), 2)
        database.commit([Settle(sealed)])
        assert database.deletion.ranges
    with closing(Database(path)) as again:
        assert (seqs(again), again.totals.jobs) == ([], 0)


def test_a_large_request_with_a_known_key_is_not_written(path: Path, database: Database) -> None:
    """Otherwise a retry is stored twice, or written in vain."""
    first = append(1, b"k", count=5)
    database.commit([first])
    retry = append(6, b"k", count=5, like=1)
    commit_step(database, retry, 2)
    assert retry.earlier == first.receipt
    assert jobs_in_file(path) == 5
    retry.staged = 0
    database.commit([retry])
    assert (retry.earlier, retry.jobs, seqs(database)) == (first.receipt, [], [1, 2, 3, 4, 5])


def test_a_key_that_becomes_known_meanwhile_ends_a_staged_request(
    path: Path, database: Database
) -> None:
    """Otherwise two requests with one key at the same time are both stored."""
    large = append(1, b"k", count=5)
    commit_step(database, large, 3)
    # The same lines in one part: the client's repetition meets other settings.
    lines = b"".join(part.lines for part in large.parts)
    small = append(9, b"k")
    small.parts = [small.parts[0]._replace(lines=lines)]
    database.commit([small])
    database.commit([large])
    assert (large.earlier, large.jobs, seqs(database)) == (small.receipt, [], [6])
    database.commit([Clear()])
    assert jobs_in_file(path) == 1


def test_a_staged_request_with_the_key_of_another_one_is_refused(
    path: Path, database: Database
) -> None:
    """The client would drop payloads that were never accepted."""
    first = append(1, b"k")
    database.commit([first])
    early = append(11, b"k", count=5)
    commit_step(database, early, 3)
    assert isinstance(early.earlier, KeyReusedError)
    late = append(21, b"l", count=5)
    commit_step(database, late, 3)
    database.commit([append(31, b"l")])
    database.commit([late])
    assert isinstance(late.earlier, KeyReusedError)
    database.commit([Clear()])
    assert jobs_in_file(path) == 2


def test_a_failed_step_is_rolled_back(database: Database) -> None:
    """Otherwise numbers that were not written count as those of a staged request."""
    request = append(1, count=5)
    with (
        patch.object(database.staging, "place", side_effect=disk_full()),
        pytest.raises(sqlite3.OperationalError),
    ):
        database.commit([Stage(request, 0, 2)])
    assert database.staging.range is None
    database.commit([append(9)])
    assert seqs(database) == [1]


def test_a_repair_of_the_file_refuses_the_staged_request(path: Path, database: Database) -> None:
    """Rows of the request may be damaged: it must not be accepted."""
    request = append(1, count=5)
    commit_step(database, request, 2)
    with patch.object(
        database.staging, "stage", side_effect=sqlite3.DatabaseError("malformed")
    ) as failing:
        failing.side_effect.sqlite_errorname = "SQLITE_CORRUPT"
        failing.side_effect.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        with pytest.raises(sqlite3.OperationalError, match="are gone"):
            database.commit([Stage(request, 2, 4)])
    database.commit([append(9)])
    assert seqs(database) == [6]
    while database.deletion.ranges:
        database.commit([Clear()])
    assert jobs_in_file(path) == 1


def places(path: Path) -> list[tuple[int, int | None]]:
    """Return the number of each row and the segment its lines are in."""
    with closing(sqlite3.connect(path)) as other:
        return other.execute("SELECT seq, segment FROM jobs ORDER BY seq").fetchall()


def large(first: int, count: int, size: int) -> Append:
    """Return a request with parts of ``size`` bytes."""
    numbers = range(first, first + count)
    some = [Part(id_of(number), (b"%d\n" % number).rjust(size), 1) for number in numbers]
    return Append(Receipt(id_of(first), count), some)


def test_small_payloads_of_a_large_step_go_into_a_segment(path: Path, database: Database) -> None:
    """Otherwise SQLite writes 16 MiB twice, page by page, while other requests wait."""
    size = LARGE // 4
    many = WORTH_A_SYNC // size
    request = large(1, many + 2, size)
    commit_step(database, request, many)
    assert places(path) == [(seq, 1) for seq in range(1, many + 1)]
    database.commit([request])
    assert places(path)[many:] == [(many + 1, None), (many + 2, None)]
    assert contents(database.page(*ALL)) == contents(request.jobs)


def test_segments_are_in_the_order_of_their_jobs(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a segment is deleted while it contains jobs that are not stored."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    request = large(1, 3, WORTH_A_SYNC)
    commit_step(database, request, 1)
    beside = large(4, 2, WORTH_A_SYNC)
    database.commit([Stage(request, 1, 2), beside])
    request.staged = 2
    between = large(6, 1, WORTH_A_SYNC)
    database.commit([between])
    behind = large(7, 1, WORTH_A_SYNC)
    database.commit([request, behind])
    after = large(8, 1, WORTH_A_SYNC)
    database.commit([after])
    unpack(database)
    assert places(path) == [
        *[(1, 1), (2, 2), (3, 3), (4, None), (5, None), (6, None), (7, None), (8, 8)]
    ]
    for name in segments.names(path.parent / FOLDER):
        first, last = database._segments.seq_range(name)
        assert all(first <= seq <= last for seq, segment in places(path) if segment == name)
    everything = [*request.jobs, *beside.jobs, *between.jobs, *behind.jobs, *after.jobs]
    assert contents(database.page(*ALL)) == contents(everything)
    database.commit([Settle(batch(one, sealed=False)) for one in request.jobs])
    database.compaction.begin()
    while database.compaction.step():
        pass
    assert contents(database.page(*ALL)) == contents(everything[3:])
