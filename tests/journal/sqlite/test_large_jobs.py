"""Large jobs: in segments where that is cheaper, never overwritten in doubt, freed when stored."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from payloadd.errors import RefusedError, StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import dead_letters, segments
from payloadd.journal.sqlite.compaction import Compaction
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.dead_letters import mark
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Append, Bury, Revive, Seal, Settle
from payloadd.journal.sqlite.schema import MIGRATIONS, migrate
from payloadd.journal.sqlite.segments import FOLDER, LARGE, WORTH_A_SYNC
from payloadd.model.job import Part
from tests.journal.sqlite.in_segments import alone, commit_each, segments_of
from tests.support.journal import (
    FaultyConnection,
    append,
    batch,
    compact_segments,
    contents,
    id_of,
    job,
    open_rig,
    sealed,
    unpack,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.segments import SegmentSpan

T = TypeVar("T")

_STORED: Final = "SELECT seq, length(lines), segment, start, size FROM jobs ORDER BY seq"


def of_sizes(*sizes: int) -> list[Append]:
    """Return requests of one job of each size, with the ids 1, 2, ..."""
    return [
        Append(Receipt(id_of(number), 1), [Part(id_of(number), b"%d" % number * size, 1)])
        for number, size in enumerate(sizes, 1)
    ]


def stored(path: Path) -> list[tuple[int | None, ...]]:
    """Return, of each row, the length of its lines and their place in a segment."""
    with closing(sqlite3.connect(path)) as other:
        return other.execute(_STORED).fetchall()


def test_few_or_small_jobs_stay_in_their_rows(path: Path, database: Database) -> None:
    """A lone request would wait for two syncs, and a small job cost as much as a large one."""
    database.commit(of_sizes(LARGE, LARGE - 1))
    assert segments_of(path) == []
    database.commit(of_sizes(LARGE - 1, WORTH_A_SYNC, LARGE))
    unpack(database)
    assert stored(path) == [
        (1, LARGE, None, None, None),
        (2, LARGE - 1, None, None, None),
        (3, LARGE - 1, None, None, None),
        (4, 0, 3, 0, WORTH_A_SYNC),
        (5, 0, 3, WORTH_A_SYNC, LARGE),
    ]
    assert [len(one.lines) for one in database.page(0, 9, 10**9)] == [
        *(LARGE, LARGE - 1, LARGE - 1),
        *(WORTH_A_SYNC, LARGE),
    ]
    assert [one.seq for one in database.page(2, 9, WORTH_A_SYNC + LARGE)] == [3, 4]


@pytest.mark.usefixtures("all_large")
def test_stored_jobs_leave_no_segment(path: Path, database: Database) -> None:
    """The disk would fill up with payloads that are in the bucket already."""
    requests = [append(number) for number in range(1, 4)]
    database.commit(requests)
    jobs = [one.jobs[0] for one in requests]
    database.commit([Seal(batch(*jobs[:2])), Settle(batch(*jobs[:2]))])
    compact_segments(database)
    assert segments_of(path) == [1]
    database.commit(alone(jobs[2:]))
    compact_segments(database)
    # The current segment is too small to be replaced by a new file.
    assert segments_of(path) == [1]
    database.close()
    assert segments_of(path) == []


@pytest.mark.usefixtures("all_large")
def test_the_current_segment_is_unlinked_once_dead(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is never stopped would keep 16 MiB of every hour of load."""
    monkeypatch.setattr(Compaction, "least_file_bytes", 2)
    request = append(1)
    database.commit([request])
    database.commit(alone(request.jobs))
    compact_segments(database)
    assert segments_of(path) == []
    database.commit([append(2)])
    assert contents(database.page(0, 9, 99)) == contents([job(2)])
    assert segments_of(path) == [2]


@pytest.mark.usefixtures("all_large")
def test_a_few_waiting_jobs_do_not_keep_a_segment(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dead letter would keep 16 MiB of the disk for as long as it exists."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    monkeypatch.setattr(Compaction, "bytes_per_move", 3)
    request = append(1, count=16)
    database.commit([request])
    database.commit([append(17)])
    jobs = request.jobs
    database.commit([*alone(jobs[5:]), Bury(batch(jobs[0], jobs[1]), "C", "r")])
    compact_segments(database)
    compact_segments(database)
    assert segments_of(path) == [1, 17], "more than a quarter of it is alive"
    database.commit(alone(jobs[4:5]))
    compact_segments(database)
    assert segments_of(path) == [1, 17], "it still empties by itself"
    compact_segments(database)
    assert segments_of(path) == [17]
    assert [row[:3] for row in stored(path)] == [
        *((1, 2, None), (2, 2, None), (3, 2, None), (4, 2, None)),
        (17, 0, 17),
    ]
    assert contents(database.page(2, 9, 99)) == contents([job(3), job(4), job(17)])
    with closing(sqlite3.connect(path)) as other, other:
        assert dead_letters.lines(other, path.parent, str(id_of(1))) == b"1\n2\n"
        assert mark(other, []) == 1
    revive = Revive()
    database.commit([revive])
    assert contents(sealed(database, *revive.firsts).jobs) == contents([job(1), job(2)])


@pytest.mark.usefixtures("all_large")
def test_an_unreadable_segment_is_left_as_it_is(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector would cost the payloads that the other sectors hold."""
    request = append(1, count=9)
    database.commit([request])
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    database.commit([append(10)])
    database.commit(alone(request.jobs[1:]))
    compact_segments(database)
    before = stored(path)
    with monkeypatch.context() as disk:
        disk.setattr(os, "pread", lambda *_: b"")
        compact_segments(database)
    assert stored(path) == before
    assert segments_of(path) == [1, 10]
    # Otherwise a bad sector would be tried each second, and delay every commit.
    assert not database.compaction.has_work
    database.compaction.recheck_all()
    compact_segments(database)
    compact_segments(database)
    assert segments_of(path) == [10]


@pytest.mark.usefixtures("all_large")
def test_bytes_of_a_commit_in_doubt_are_not_overwritten(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash that brings back a commit would combine it with the payloads of another client."""
    database.commit([append(1)])
    faulty = FaultyConnection(database._connection)
    monkeypatch.setattr(database, "_connection", faulty)
    (segment,) = (path.parent / FOLDER).iterdir()

    faulty.fails = "COMMIT"
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(2)])
    assert segment.read_bytes() == b"1\n2\n"
    faulty.fails = "PRAGMA user_version"
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(3)])
    compact_segments(database)
    assert segment.read_bytes() == b"1\n2\n"

    faulty.fails = "INSERT INTO jobs"
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(4)])
    assert segment.read_bytes() == b"1\n", "there is no doubt before COMMIT"
    faulty.fails = None
    database.commit([append(2)])
    assert segment.read_bytes() == b"1\n2\n"
    assert contents(database.page(0, 9, 99)) == contents([job(1), job(2)])


@pytest.mark.usefixtures("all_large")
def test_the_bytes_are_synced_before_the_row_is_written(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would leave rows without payloads: a broken promise of a 202."""
    faulty = FaultyConnection(database._connection)
    monkeypatch.setattr(database, "_connection", faulty)
    for name in ("pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, _noted(name, faulty.statements, getattr(os, name)))
    database.commit([append(1)])
    steps = [one.split()[0] for one in faulty.statements]
    assert steps == ["BEGIN", "pwritev", "fdatasync", "INSERT", "UPDATE", "COMMIT"]


def _noted(name: str, notes: list[str], function: Callable[..., T]) -> Callable[..., T]:
    def noted(*arguments: object) -> T:
        notes.append(name)
        return function(*arguments)

    return noted


@pytest.mark.usefixtures("all_large")
def test_bytes_that_a_crash_has_left_are_not_read(path: Path) -> None:
    """The torn end of a segment would be sent as a payload."""
    with closing(Database(path)) as old:
        old.commit([append(1), append(2)])
        (segment,) = (path.parent / FOLDER).iterdir()
    with segment.open("ab") as file:
        file.write(b"torn")
    (segment.parent / f"{3:020}.ndjson").write_bytes(b"never committed")
    with closing(Database(path)) as new:
        assert segments_of(path) == [1]
        new.commit([append(3)])
        assert segments_of(path) == [1, 3]
        assert contents(new.page(0, 9, 99)) == contents([job(1), job(2), job(3)])


@pytest.mark.usefixtures("all_large")
def test_a_journal_of_version_1_is_read(path: Path) -> None:
    """Payloads that were accepted before an upgrade would be lost by it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        migrate(old, MIGRATIONS[:1])
        old.execute("INSERT INTO jobs VALUES (1, ?, 1, ?)", (id_of(1).bytes, b"1\n"))
        old.execute("UPDATE totals SET next = 2, jobs = 1, payloads = 1, bytes = 66")
    with closing(Database(path)) as new:
        new.commit([append(2)])
        assert contents(new.page(0, 9, 99)) == contents([job(1), job(2)])
        new.commit(alone([job(1), job(2)]))
        assert new.totals.bytes == 0


@pytest.mark.usefixtures("all_large")
def test_a_start_is_refused_where_segments_have_no_database(path: Path) -> None:
    """To move a damaged journal.db away would lose the payloads in its segments."""
    with closing(Database(path)) as old:
        old.commit([append(1)])
    with closing(Database(path)) as old:
        old.commit([append(2)])
    path.rename(path.with_name("aside.db"))
    with pytest.raises(StartError, match="belongs to another journal"):
        Database(path)
    assert segments_of(path) == [1, 2]


@pytest.mark.usefixtures("all_large")
def test_a_dead_letter_is_shown_while_its_bytes_are_moved(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`payloadd journal dead show` would fail now and then on a letter that exists."""
    request = append(1, count=9)
    database.commit([request])
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    database.commit([append(10)])
    database.commit([*alone(request.jobs[1:]), Bury(batch(job(1)), "C", "r")])
    compact_segments(database)
    read = segments.read

    def read_late(state_dir: Path, places: Sequence[SegmentSpan]) -> list[bytes]:
        monkeypatch.setattr(segments, "read", read)
        compact_segments(database)
        return read(state_dir, places)

    monkeypatch.setattr(segments, "read", read_late)
    with Inspection.open(path.parent) as inspection:
        assert inspection.lines(str(id_of(1))) == b"1\n"
        assert inspection.status().file_bytes == path.stat().st_size + len(b"10\n")


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("broken", ["pwritev", "fdatasync"])
async def test_requests_are_refused_where_a_segment_cannot_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A 202 for payloads without bytes; or a daemon that refuses requests for ever."""

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async with open_rig(path, tuning=Tuning(retry_interval=0.02)) as rig:
        await rig.accept(1)
        with monkeypatch.context() as disk:
            disk.setattr(os, broken, fail)
            with pytest.raises(RefusedError, match="Input/output error") as caught:
                await rig.accept(2, b"key")
            assert caught.value.code == "DISK_ERROR"
            assert rig.health.troubles["journal"].code == "EIO"
            assert rig.database.totals.payloads == 1
        await until(lambda: rig.journal.refusal() is None)
        await rig.accept(3, b"key")
        page = await rig.journal.page(0, 9, 99)
        assert [one.lines for one in page] == [b"1\n", b"3\n"]


@pytest.mark.usefixtures("all_large")
async def test_a_missing_segment_stops_no_other_job(path: Path) -> None:
    """One missing file would keep half a million good payloads from being uploaded."""
    async with open_rig(path) as rig:
        await rig.accept(1)
        (segment,) = (path.parent / FOLDER).iterdir()
        segment.unlink()
        rig.database.commit([append(2)])
        assert contents(await rig.journal.page(0, 9, 99)) == contents([job(2)])
        assert not rig.health.troubles
        await rig.accept(3)
    found = rig.database.findings.pop_all()
    assert [(one.first, one.last, one.payloads) for one in found] == [(1, 1, 1)]
    assert "segment 1, which is missing" in found[0].reason


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("missing", range(1, 6))
def test_all_jobs_but_those_of_a_missing_segment_are_read(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Payloads would be lost because their neighbours are."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    commit_each(database, range(1, 6))
    segments.path_of(path.parent / FOLDER, missing).unlink()
    left = [number for number in range(1, 6) if number != missing]
    assert contents(database.page(0, 9, 99)) == contents(map(job, left))
    (finding,) = database.findings.pop_all()
    assert (finding.first, finding.last, finding.payloads) == (missing, missing, 1)
    assert (database.totals.jobs, database.totals.payloads) == (4, 4)


@pytest.mark.usefixtures("all_large")
async def test_dead_segments_are_unlinked_within_seconds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk would stay as full as in the longest outage, also with dropped dead letters."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    async with open_rig(path, tuning=Tuning(maintenance_interval=0.02)) as rig:
        for number in range(1, 5):
            await rig.accept(number)
        jobs = [rig.channel.receive_nowait() for _ in range(4)]
        for one in jobs[:2]:
            rig.journal.settle(batch(one, sealed=False))
        rig.journal.bury(batch(jobs[2], sealed=False), "C", "r")
        await until(lambda: segments_of(path) == [3, 4])
        with Inspection.open(path.parent) as inspection:
            assert inspection.lines(str(id_of(3))) == b"3\n"
            assert inspection.drop([str(id_of(3))]) == 1
        await until(lambda: segments_of(path) == [4])
