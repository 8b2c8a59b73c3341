"""A new segment takes the file of a dead one: only once no row refers to its bytes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.journal.sqlite import dead_letters, segments
from payloadd.journal.sqlite.operations import Bury
from payloadd.journal.sqlite.segments import FOLDER, LARGE
from tests.journal.sqlite.in_segments import alone, commit_each, segments_of
from tests.support.journal import (
    FaultyConnection,
    append,
    batch,
    compact_segments,
    contents,
    id_of,
    job,
)

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.journal.sqlite.database import Database

pytestmark = pytest.mark.usefixtures("all_large")


def test_a_new_segment_takes_the_file_of_a_dead_one(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To make and to unlink files of 16 MiB is a large part of the cost of large payloads."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 2)
    requests = commit_each(database, range(1, 4))
    folder = path.parent / FOLDER
    inodes = {name: segments.path_of(folder, name).stat().st_ino for name in segments_of(path)}
    database.commit([*alone(requests[0].jobs), Bury(batch(requests[1].jobs[0]), "C", "r")])
    database.commit([append(4)])
    assert segments_of(path) == [2, 3, 4]
    assert segments.path_of(folder, 4).stat().st_ino == inodes[1]
    database.commit([append(5)])
    assert segments_of(path) == [2, 3, 4, 5], "a dead letter needs its segment"
    compact_segments(database)
    assert segments_of(path) == [2, 3, 4, 5]
    assert contents(database.page(2, 9, 99)) == contents([job(3), job(4), job(5)])
    assert not database.findings.pop_all()


@pytest.mark.parametrize("is_found", [False, True])
def test_small_jobs_that_leave_a_segment_full_cost_no_search(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, *, is_found: bool
) -> None:
    """Each commit would search for a segment without jobs until the next large one."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 2)
    requests = commit_each(database, range(1, 5))
    if is_found:
        database.commit(alone(requests[0].jobs))
    monkeypatch.setattr("payloadd.journal.sqlite.segments.LARGE", LARGE)
    statements: list[str] = []
    database._connection.set_trace_callback(statements.append)
    for number in range(5, 9):
        small = append(number)
        database.commit([small])
        database.commit(alone(small.jobs))
    assert segments_of(path) == [1, 2, 3, 4]
    assert len(statements) > 8
    assert not [one for one in statements if "segment =" in one]


def test_one_dead_segment_is_left_for_a_second_while_segments_are_written(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that the next segment needs would be unlinked, or be kept by an idle daemon."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 2)
    requests = commit_each(database, range(1, 5))
    database.commit([*alone(requests[0].jobs), *alone(requests[1].jobs)])
    compact_segments(database)
    assert segments_of(path) == [1, 3, 4]
    compact_segments(database)
    assert segments_of(path) == [3, 4]


@pytest.mark.parametrize("statement", ["INSERT INTO jobs", "COMMIT"])
def test_a_failed_commit_costs_no_bytes_of_the_jobs_that_it_settled(
    database: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """Jobs that are waiting again would find the payloads of another client in their segment."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 2)
    first, _ = commit_each(database, (1, 2))
    faulty = FaultyConnection(database._connection)
    monkeypatch.setattr(database, "_connection", faulty)
    faulty.fails = statement
    for number in (3, 4):
        with pytest.raises(sqlite3.OperationalError):
            database.commit([*alone(first.jobs), append(number)])
        faulty.fails = None
        database.probe()
        faulty.fails = statement
    assert contents(database.page(0, 9, 99)) == contents([job(1), job(2)])
    faulty.fails = None
    for number in (3, 4):
        database.commit([*alone(first.jobs if number == 3 else []), append(number)])
    assert contents(database.page(1, 9, 99)) == contents([job(2), job(3), job(4)])


def test_a_segment_with_rows_that_the_index_misses_is_not_written_over(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged index would have payloads replaced by those of another client."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 2)
    monkeypatch.setattr("payloadd.journal.sqlite.compaction._ANY", "SELECT 1 WHERE ? < 0")
    first = append(1, count=2)
    database.commit([first])
    database.commit([append(3)])
    database.commit([*alone(first.jobs[:1]), append(4)])
    database.commit([append(5)])
    assert segments_of(path) == [1, 3, 4, 5]
    assert contents(database.page(1, 9, 99)) == contents([job(2), job(3), job(4), job(5)])
    assert "was built anew" in database.findings.pop_all()[0].reason


def test_a_dead_letter_is_not_read_from_a_file_that_has_other_payloads(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`payloadd journal dead show` would print payloads of other requests."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    request = append(1)
    database.commit([request])
    database.commit([Bury(batch(*request.jobs, sealed=False), "C", "r")])
    inode = segments.path_of(path.parent / FOLDER, 1).stat().st_ino
    read = segments._read_neighbours

    def read_late(*arguments: object) -> list[bytes]:
        """Read after the daemon has moved the payloads, and used the file again."""
        monkeypatch.setattr(segments, "_read_neighbours", read)
        database.compaction.recheck_all()
        assert database.compaction._move_some(1) == 2
        database.commit([append(2)])
        database.commit([append(3)])
        assert segments.path_of(path.parent / FOLDER, 3).stat().st_ino == inode
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(segments, "_read_neighbours", read_late)
    with closing(sqlite3.connect(path)) as other:
        assert dead_letters.lines(other, path.parent, str(id_of(1))) == b"1\n"
