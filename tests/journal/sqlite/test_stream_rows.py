"""Streams in the file: they keep their numbers, and no damage loses their jobs."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import stream_rows
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Append, Bury, Seal, Settle, Stage
from payloadd.model.streams import MOST_NUMBERS, count_of, first_seq, stream_of
from tests.journal.opener import Opener
from tests.journal.sqlite.damaging import (
    PAGE,
    change,
    leaves,
    lose_pages,
    new_findings,
    repair_without_pause,
    verified,
    zero_pages,
)
from tests.support.journal import (
    append,
    batch,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from payloadd.journal.sqlite.jobs_in_memory import JobsInMemory
    from payloadd.model.job import Job

_NAMES: Final = ("default", "clicks", "errors")


def request(number: int, stream: int, count: int = 1) -> Append:
    """Return a request of a stream."""
    one = append(number, count=count)
    one.stream = stream
    return one


def jobs_of(database: Database, stream: int) -> list[Job]:
    """Return the jobs of a stream."""
    return database.page(first_seq(stream), 1000, 10**6)


@pytest.fixture
def three_streams(path: Path) -> None:
    """Make a journal with three jobs in each of three streams: 1, 2, 3; 11, ...; 21, ..."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        database.commit([request(10 * stream + 1, stream, 3) for stream in range(3)])


def ids(jobs: list[Job]) -> list[int]:
    """Return the numbers of the ids of jobs."""
    return [one.id.int & (2**62 - 1) for one in jobs]


def page_of(path: Path, table: str) -> int:
    """Return the number of the only page of a table."""
    with closing(sqlite3.connect(path)) as other:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = other.execute(query, (table,)).fetchone()
        return int(page)


def test_numbers_do_not_depend_on_the_order_of_the_settings(path: Path) -> None:
    """Jobs would be stored under the name of another stream after a change of STREAMS."""
    for wanted, names in (
        (("default", "a", "b"), {0: "default", 1: "a", 2: "b"}),
        (("default", "b"), {0: "default", 1: "a", 2: "b"}),
        (("default", "c", "b"), {0: "default", 1: "a", 2: "b", 3: "c"}),
        (("default", "a"), {0: "default", 1: "a", 2: "b", 3: "c"}),
    ):
        with closing(Database(path)) as database:
            assert database.open_streams(wanted) == names
            assert new_findings(database) == []


@pytest.mark.usefixtures("three_streams")
def test_no_number_is_used_twice_after_a_restart(path: Path) -> None:
    """A batch could be stored with a job of another one."""
    seen: set[int] = set()
    for number in range(100, 500, 100):
        with closing(Database(path)) as database:
            database.open_streams(_NAMES)
            requests = [request(number + 10 * stream, stream, 2) for stream in range(3)]
            database.commit(requests)
            new = [one.seq for each in requests for one in each.jobs]
            assert seen.isdisjoint(new)
            seen.update(new)
            database.commit([Settle(batch(*each.jobs, sealed=False)) for each in requests[1:]])


@pytest.mark.usefixtures("three_streams")
def test_jobs_of_a_stream_without_a_name_are_stored_under_its_number(path: Path) -> None:
    """A damaged row of a few bytes would lose all payloads of its stream."""
    change(path, "UPDATE streams SET name = 'zzzzzz', crc = 1 WHERE number = 1")
    assert [one.table for one in verified(path)] == ["streams"]
    with closing(Database(path)) as database:
        names = database.open_streams(_NAMES)
        assert names == {0: "default", 1: "stream-1", 2: "errors", 3: "clicks"}
        assert {one.table for one in new_findings(database)} == {"streams"}
        assert database.newest().keys() == {0, 1, 2}
        assert ids(jobs_of(database, 1)) == [11, 12, 13]
        new = request(31, 1)
        database.commit([new])
        assert count_of(new.jobs[0].seq) == 10
    assert verified(path) == []
    with closing(Database(path)) as database:
        assert database.open_streams((*_NAMES, "stream-1"))[1] == "stream-1"
        assert new_findings(database) == []


@pytest.mark.usefixtures("three_streams")
def test_a_lost_name_does_not_become_that_of_another_stream(path: Path) -> None:
    """Two streams would have one name, and an operator could not tell them apart."""
    change(path, "DELETE FROM streams WHERE number = 1")
    with closing(Database(path)) as database:
        names = database.open_streams(("default", "stream-1", "errors"))
        assert names == {0: "default", 1: "stream-1-", 2: "errors", 3: "stream-1"}


@pytest.mark.usefixtures("three_streams")
def test_a_flipped_bit_in_a_name_is_repaired(path: Path) -> None:
    """Objects would be stored under a wrong name."""
    change(path, "UPDATE streams SET name = 'clickr' WHERE number = 1")
    with closing(Database(path)) as database:
        assert database.open_streams(_NAMES) == dict(enumerate(_NAMES))
        assert [one.table for one in new_findings(database)] == ["streams"]
    assert verified(path) == []


@pytest.mark.usefixtures("three_streams")
def test_jobs_survive_the_loss_of_the_page_of_all_names(path: Path) -> None:
    """A damaged page of the table would lose the payloads of all streams, or refuse the start."""
    zero_pages(path, [page_of(path, "streams")])
    with closing(Database(path)) as database:
        names = database.open_streams(_NAMES)
        assert [names[number] for number in (1, 2)] == ["stream-1", "stream-2"]
        assert [ids(jobs_of(database, stream)) for stream in (1, 2)] == [
            [11, 12, 13],
            [21, 22, 23],
        ]
        assert database.totals.jobs == 9


@pytest.mark.usefixtures("three_streams")
def test_a_repair_of_the_open_file_keeps_names_and_jobs(path: Path) -> None:
    """Payloads that a running daemon has in memory would be lost with the file."""
    with closing(Database(path)) as database:
        repair_without_pause(database)
        names = database.open_streams(_NAMES)
        more = [request(100 * stream + 100, stream, 50) for stream in range(3)]
        database.commit(more)
        unpack(database)
        jobs = [one for each in more for one in each.jobs]
        database.jobs_in_memory = lambda: jobs
        assert lose_pages(database, path, [one.id for one in jobs])
        zero_pages(path, [page_of(path, "streams")])
        database._connection.execute("PRAGMA shrink_memory")
        for stream in range(3):
            found = ids(jobs_of(database, stream))
            assert {one for one in found if one >= 100} == set(ids(more[stream].jobs))
        assert stream_rows.read(database._connection) == names
    with closing(Database(path)) as database:
        assert database.open_streams(_NAMES) == names


@pytest.mark.usefixtures("three_streams")
def test_lost_totals_are_counted_over_all_streams(path: Path) -> None:
    """Numbers of a stream would be given to other jobs again."""
    change(path, "DELETE FROM totals")
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        assert (database.totals.jobs, database.totals.next) == (9, 10)
        assert {count_of(seq) for seq in database.following.values()} == {10}


def test_a_lost_log_lets_no_stream_use_a_number_twice(path: Path) -> None:
    """A segment, or a batch that is in memory, would have jobs of another one."""
    used: set[int] = set()
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        database.commit([request(1, 1)])
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        before = path.read_bytes()
        requests = [request(10 * number, number % 3, 4) for number in range(1, 10)]
        for one in requests:
            database.commit([one])
            used.update(job.seq for job in one.jobs)
        mark = path.with_suffix(".high").read_bytes()
    lost = path.parent / "lost"
    lost.mkdir()
    (lost / path.name).write_bytes(before)
    (lost / path.with_suffix(".high").name).write_bytes(mark)
    with closing(Database(lost / path.name)) as database:
        database.open_streams(_NAMES)
        assert database.high_water.damage is not None
        assert database.high_water.damage.payloads == 36
        requests = [request(1000 * stream, stream, 40) for stream in range(3)]
        database.commit(requests)
        assert used.isdisjoint(job.seq for one in requests for job in one.jobs)


def test_numbers_run_out_only_if_all_have_jobs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that renames its streams each day could not start any more after some years."""
    monkeypatch.setattr(stream_rows, "MOST_NUMBERS", 4)
    with closing(Database(path)) as database:
        database.open_streams(("default", "a", "b", "c"))
        database.commit([request(1, 2), request(11, 3)])
    with closing(Database(path)) as database:
        assert database.open_streams(("default", "d"))[1] == "d"
        database.commit([request(21, 1)])
    with closing(Database(path)) as database:
        with pytest.raises(StartError, match="STREAMS: the journal has jobs of 3 streams"):
            database.open_streams(("default", "e"))
        assert ids(jobs_of(database, 1)) == [21]


@pytest.mark.usefixtures("three_streams")
def test_rows_with_numbers_that_no_job_has_become_dead_letters(path: Path) -> None:
    """Commits would fail at such a number, or a stream without a name would come of it."""
    move = "UPDATE jobs SET seq = %d WHERE seq = %d"
    wrong = [first_seq(1) + 10, first_seq(2), first_seq(MOST_NUMBERS) + 3]
    change(path, *[move % (seq, 1 + index) for index, seq in enumerate(wrong)])
    with closing(Database(path)) as database:
        assert [one.first for one in new_findings(database)] == wrong
        assert [*database.open_streams(_NAMES)] == [0, 1, 2]
        assert database.totals.jobs == 6
    with Inspection.open(path.parent) as inspection:
        assert sorted(str(one.stream) for one in inspection.dead()) == ["None", "clicks", "errors"]


@pytest.mark.usefixtures("three_streams")
def test_damaged_jobs_are_dead_letters_of_their_stream(path: Path) -> None:
    """An operator could not tell which payloads have to be sent again."""
    change(path, f"UPDATE jobs SET payloads = 7 WHERE seq = {first_seq(2) + 2}")
    (finding,) = [one for one in verified(path) if one.table == "jobs"]
    assert finding.first == first_seq(2) + 2
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        assert ids(jobs_of(database, 2)) == [21, 23]
        assert ids(jobs_of(database, 1)) == [11, 12, 13]
        (finding,) = new_findings(database)
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
    assert (letter.stream, letter.id) == ("errors", finding.id)
    assert "number 2 of stream 2" in letter.reason


@pytest.mark.usefixtures("three_streams")
def test_missing_jobs_are_missed_when_all_streams_have_been_read(path: Path) -> None:
    """Jobs would become dead letters although a page with them comes later."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        database._counted = False  # as in a file that is too large for a check of the start
        change(path, f"DELETE FROM jobs WHERE seq = {first_seq(1) + 2}")
        for stream in range(3):
            assert new_findings(database) == []
            while page := database.page(first_seq(stream), 1000, 10**6):
                database.commit([Settle(batch(one, sealed=False)) for one in page])
        assert [one.jobs for one in new_findings(database)] == [1]
        assert database._counted


@pytest.mark.usefixtures("three_streams")
def test_all_jobs_of_earlier_runs_are_counted_when_they_are_read(path: Path) -> None:
    """A start with a large backlog would read the whole file a second time."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        database.commit([request(100, 1, 2)])
        for stream in range(3):
            assert len(jobs_of(database, stream)) == (5 if stream == 1 else 3)
        assert database._hidden.unread == 0


@pytest.mark.usefixtures("three_streams")
def test_a_staged_request_hides_no_jobs_of_other_streams(path: Path) -> None:
    """A large request of one stream would hold back the backlog of another."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        large = request(100, 1, 8)
        database.commit([Stage(large, 0, 4)])
        database.commit([request(200 + stream, stream) for stream in range(3)])
        assert ids(jobs_of(database, 0)) == [1, 2, 3, 200]
        assert ids(jobs_of(database, 1)) == [11, 12, 13]
        assert ids(jobs_of(database, 2)) == [21, 22, 23, 202]


def test_jobs_between_damaged_pages_of_a_stream_are_read(path: Path) -> None:
    """A few damaged pages would lose a long backlog."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        large = [request(5000 * stream, stream, 3000) for stream in (1, 2)]
        database.commit(list(large))
        wanted = [one.id for each in large for one in each.jobs]
    pages = leaves(path, wanted)
    wrong = pages[len(pages) // 5 :: len(pages) // 5]
    content = path.read_bytes()
    lost = {
        one for one in wanted for page in wrong if one.bytes in content[(page - 1) * PAGE :][:PAGE]
    }
    zero_pages(path, wrong)
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        found = {
            one.id
            for stream in (1, 2)
            for start in range(0, 4000, 900)
            for one in database.page(first_seq(stream) + start, 1000, 10**6)
        }
        assert len(lost) > 100
        assert found == {*wanted} - lost


@pytest.mark.usefixtures("three_streams")
def test_dead_letters_of_streams_come_back_to_their_stream(path: Path) -> None:
    """A dead letter that is tried again would be stored under the name of another stream."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        letters = [batch(*jobs_of(database, stream)[:2], sealed=False) for stream in range(3)]
        database.commit([Bury(one, "C", "r") for one in letters])
    with Inspection.open(path.parent) as inspection:
        found = inspection.dead()
        assert [letter.stream for letter in found] == [*_NAMES]
        assert len({letter.id for letter in found}) == 3
        status = inspection.status().streams
        assert [(one.jobs, one.dead_letters) for one in status.values()] == [(1, 1)] * 3
        inspection.retry([found[1].id])
    with closing(Database(path)) as database:
        assert [stream_of(first) for first in database.sealed_after({})] == []


def test_one_stream_is_known_without_a_row(path: Path) -> None:
    """Every journal without streams would be written to at a start, and cost more."""
    with closing(Database(path)) as database:
        assert database.open_streams(("default",)) == {0: "default"}
        assert database.newest() == {0: 0}
        database.commit([append(1, count=2)])
        assert not database._segments.are_shared
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM streams").fetchone() == (0,)


def test_a_page_does_not_look_at_the_ranges_of_other_streams(path: Path) -> None:
    """A million sealed batches of one stream would delay the pages of all others."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        large = request(1, 1, 200)
        database.commit([large, request(1001, 0, 3)])
        database.commit([Seal(batch(one)) for one in large.jobs[::2]])
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        seen: list[tuple[int, int]] = []
        after = database._excluded.after

        def counted(seq: int) -> Iterator[tuple[int, int]]:
            for range_ in after(seq):
                seen.append(range_)
                yield range_

        database._excluded.after = counted  # type: ignore[method-assign]
        assert ids(jobs_of(database, 0)) == [1001, 1002, 1003]
        assert len(seen) <= 1


async def test_jobs_of_all_streams_count_as_in_memory(tmp_path: Path) -> None:
    """A repair of the open file would make dead letters of jobs that are about to be stored."""
    opener = Opener(tmp_path / "state", {"DURABILITY": "disk"}, streams=("clicks", "errors"))
    async with opener.run() as run:
        for stream in range(3):
            await run.accept(10 * stream + 1, 2, stream=stream)
        in_memory: JobsInMemory = run.journal._in_memory  # type: ignore[attr-defined]
        assert {*ids(in_memory._collect())} == {1, 2, 11, 12, 21, 22}
