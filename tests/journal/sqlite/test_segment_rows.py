"""Segments with jobs of several streams: each is unlinked with its last job, and not before."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.journal.sqlite import file_check, segments
from payloadd.journal.sqlite.compaction import Compaction
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.deletion import RowDeletion
from payloadd.journal.sqlite.operations import Append, Stage
from payloadd.model.streams import first_seq, last_seq
from tests.journal.sqlite.damaging import change, new_findings, verified
from tests.journal.sqlite.in_segments import alone, segments_of
from tests.support.journal import append

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.model.job import Job

pytestmark = pytest.mark.usefixtures("all_large")

_NAMES = ("default", "clicks", "errors")
_EMPTY_INDEX = (
    "DROP INDEX jobs_segment",
    "CREATE INDEX jobs_segment ON jobs (segment, size) WHERE segment IS NOT NULL AND segment < 0",
    "PRAGMA writable_schema = ON",
    "UPDATE sqlite_schema SET sql = replace(sql, ' AND segment < 0', '')",
)
"""Makes an index that has lost all rows."""


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a segment with each commit, and unlink even a small one."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)
    monkeypatch.setattr(Compaction, "least_file_bytes", 1)


def request(number: int, stream: int, count: int = 1) -> Append:
    """Return a request of a stream."""
    one = append(number, count=count)
    one.stream = stream
    return one


def commit(database: Database, number: int, *streams: int) -> list[Job]:
    """Commit a request of two jobs in each of these streams; return the jobs."""
    requests = [request(number + 10 * stream, stream, 2) for stream in streams]
    database.commit(requests)
    return [one for each in requests for one in each.jobs]


def settle(database: Database, *jobs: Job) -> None:
    """Settle jobs and compact what they have left."""
    database.commit(alone(jobs))
    while database.deletion.ranges:
        database.commit([])
    for _ in range(2):
        database.compaction.begin()
        while database.compaction.step():
            pass


def all_jobs(database: Database) -> list[Job]:
    """Return the jobs of all streams."""
    return [
        one for stream in database.streams for one in database.page(first_seq(stream), 1000, 10**6)
    ]


@pytest.mark.parametrize("rows", [1, 64], ids=["deleted-later", "deleted-at-once"])
def test_a_segment_goes_with_its_last_job_of_any_stream(
    path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """The disk would fill with segments, or payloads of another stream would be lost."""
    monkeypatch.setattr(RowDeletion, "small_range", rows)
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        first = commit(database, 100, 0, 1, 2)
        second = commit(database, 200, 2, 1)
        third = commit(database, 300, 1)
        assert segments_of(path) == [1, 7, 11]
        settle(database, *second)
        assert segments_of(path) == [1, 11]
        settle(database, *third)
        assert segments_of(path) == [1]
        assert [one.lines for one in all_jobs(database)] == [one.lines for one in first]
        settle(database, *first[1:])
        assert [one.lines for one in all_jobs(database)] == [first[0].lines]
        settle(database, first[0])
        assert segments_of(path) == []
    assert verified(path) == []


def test_jobs_that_the_index_misses_are_found_before_a_segment_goes(path: Path) -> None:
    """A damaged index would lose payloads of all streams."""
    with closing(Database(path)) as database:
        commit(database, 1, 0)
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        for number in range(100, 600, 100):
            commit(database, number, 0, 1, 2)
        before = segments_of(path)
        wanted = all_jobs(database)
        change(path, *_EMPTY_INDEX)
        database.compaction.recheck_all()
        compaction = database.compaction
        for name in before:
            compaction._unlink(name)
        assert segments_of(path) == before
        assert all_jobs(database) == wanted
        assert {one.table for one in new_findings(database)} == {"jobs"}


def test_a_start_searches_the_rows_of_all_streams(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged index would lose payloads of all streams at a start."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)  # as for a large file
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        for number in range(100, 600, 100):
            commit(database, number, 2, 1)
        before, wanted = segments_of(path), all_jobs(database)
    change(path, *_EMPTY_INDEX)
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        assert segments_of(path) == before
        assert all_jobs(database) == wanted


def test_ranges_of_a_segment_are_narrow_and_complete(path: Path) -> None:
    """The search for its jobs would read the whole backlog, or miss some."""
    with closing(Database(path)) as database:
        commit(database, 1, 0)
    with closing(Database(path)) as database:
        database.open_streams(("default", "clicks"))
        jobs = {number: commit(database, number, 0, 1) for number in (100, 200, 300)}
        found = segments_of(path)
        assert found == [1, 3, 7, 11]
        ranges = {name: database.compaction._ranges_of(name)[:-1] for name in found}
        clicks = first_seq(1)
        assert ranges[1] == [(1, 2), (clicks + 1, clicks + 2)]
        assert ranges[3] == [(3, 4), (clicks + 3, clicks + 4)]
        assert ranges[7] == [(5, 6), (clicks + 5, clicks + 6)]
        assert (ranges[11][0][0], ranges[11][1][0]) == (7, clicks + 7)
        assert ranges[11][1][1] >= last_seq(8191)
        change(path, "UPDATE segments SET firsts = x'6400000000000000' WHERE name IN (3, 7)")
        for name, number in ((3, 100), (7, 200)):
            wide = database.compaction._ranges_of(name)
            assert all(any(low <= one.seq <= high for low, high in wide) for one in jobs[number])


def test_a_staged_request_has_a_segment_beside_other_streams(path: Path) -> None:
    """Jobs of the request, or those committed meanwhile, would be lost with their segment."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        commit(database, 100, 1)
        large = request(1000, 2, 6)
        database.commit([Stage(large, 0, 2), request(1, 1, 2), request(11, 2, 1)])
        large.staged = 2
        database.commit([Stage(large, 2, 4), request(21, 0, 2)])
        large.staged = 4
        database.commit([large])
        more = commit(database, 200, 2, 0)
        found = segments_of(path)
        assert found == sorted(set(found))
        for name in found:
            ranges = database.compaction._ranges_of(name)
            query = "SELECT seq FROM jobs WHERE segment = ?"
            for (seq,) in database._connection.execute(query, (name,)):
                assert any(low <= seq <= high for low, high in ranges)
        settle(database, *large.jobs, *more)
        assert len(all_jobs(database)) == 7
    assert verified(path) == []
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        assert len(all_jobs(database)) == 7


def test_rows_of_segments_that_are_gone_are_forgotten(path: Path) -> None:
    """The table would grow for ever."""
    with closing(Database(path)) as database:
        database.open_streams(_NAMES)
        for number in range(100, 2000, 100):
            settle(database, *commit(database, number, 1))
        commit(database, 5000, 1)
        (count,) = database._connection.execute("SELECT count(*) FROM segments").fetchone()
        assert count <= 2
