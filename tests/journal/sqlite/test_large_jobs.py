"""Large jobs: in segments where that pays, never overwritten in doubt, and gone when stored."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeVar

import pytest

from payloadd.errors import RefusedError, StartError
from payloadd.journal.api import Append, Bury, Receipt, Revive, Seal, Settle
from payloadd.journal.sqlite import compaction, dead_letters, segment_files
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.dead_letters import mark
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.schema import MIGRATIONS, migrate
from payloadd.journal.sqlite.segment_files import FOLDER
from payloadd.journal.sqlite.segments import LARGE, WORTH_A_SYNC
from payloadd.model.job import Part
from tests.support.journal import (
    MoodyConnection,
    a_round,
    append,
    batch,
    contents,
    id_of,
    job,
    open_rig,
    sealed,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.segment_files import SegmentSpan
    from payloadd.model.job import Job

T = TypeVar("T")

_STORED: Final = "SELECT seq, length(lines), segment, start, size FROM jobs ORDER BY seq"


def of_sizes(*sizes: int) -> list[Append]:
    """Return requests of one job of each size, with the ids 1, 2, ..."""
    return [
        Append(Receipt(id_of(number), 1), [Part(id_of(number), b"%d" % number * size, 1)])
        for number, size in enumerate(sizes, 1)
    ]


def stored(path: Path) -> list[tuple[int | None, ...]]:
    """Return, of each row, how much is in it and where the rest is."""
    with closing(sqlite3.connect(path)) as other:
        return other.execute(_STORED).fetchall()


def segments_of(path: Path) -> list[int]:
    """Return the segments that there are."""
    return segment_files.names(path.parent / FOLDER)


def alone(jobs: Sequence[Job]) -> list[Settle]:
    """Settle each by itself."""
    return [Settle(batch(one, sealed=False)) for one in jobs]


def test_few_or_small_ones_stay_in_their_rows(path: Path, database: Database) -> None:
    """A lone request would wait for two syncs, and each small one cost as much as a large one."""
    database.commit(of_sizes(LARGE, LARGE - 1))
    assert segments_of(path) == []
    database.commit(of_sizes(LARGE - 1, WORTH_A_SYNC, LARGE))
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
def test_what_is_stored_leaves_no_segment_behind(path: Path, database: Database) -> None:
    """The disk would fill up with what is in the bucket already."""
    requests = [append(number) for number in range(1, 4)]
    database.commit(requests)
    jobs = [one.jobs[0] for one in requests]
    database.commit([Seal(batch(*jobs[:2])), Settle(batch(*jobs[:2]))])
    a_round(database)
    assert segments_of(path) == [1]
    database.commit(alone(jobs[2:]))
    a_round(database)
    # Not worth a new file yet; and it is still written.
    assert segments_of(path) == [1]
    database.close()
    assert segments_of(path) == []


@pytest.mark.usefixtures("all_large")
def test_a_dead_segment_makes_way_under_load(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that is never stopped would keep 16 MiB of every hour of load."""
    monkeypatch.setattr(compaction, "_WORTH_A_FILE", 2)
    request = append(1)
    database.commit([request])
    database.commit(alone(request.jobs))
    a_round(database)
    assert segments_of(path) == []
    database.commit([append(2)])
    assert contents(database.page(0, 9, 99)) == contents([job(2)])
    assert segments_of(path) == [2]


@pytest.mark.usefixtures("all_large")
def test_a_few_that_stay_do_not_keep_a_segment(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dead letter would keep 16 MiB of a disk for as long as nobody looks at it."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    monkeypatch.setattr(compaction, "_MOVED_AT_ONCE", 3)
    request = append(1, count=16)
    database.commit([request])
    database.commit([append(17)])
    jobs = request.jobs
    database.commit([*alone(jobs[5:]), Bury(batch(jobs[0], jobs[1]), "C", "r")])
    a_round(database)
    a_round(database)
    assert segments_of(path) == [1, 17], "more than a quarter of it is alive"
    database.commit(alone(jobs[4:5]))
    a_round(database)
    assert segments_of(path) == [1, 17], "it still empties by itself"
    a_round(database)
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
def test_a_segment_that_cannot_be_moved_is_left_as_it_is(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector would cost the payloads that the other sectors hold."""
    request = append(1, count=9)
    database.commit([request])
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    database.commit([append(10)])
    database.commit(alone(request.jobs[1:]))
    a_round(database)
    before = stored(path)
    with monkeypatch.context() as disk:
        disk.setattr(os, "pread", lambda *_: b"")
        a_round(database)
    assert stored(path) == before
    assert segments_of(path) == [1, 10]
    # A sector that is bad would be tried each second, and hold up every commit for as long.
    assert not database.compaction.waits
    database.compaction.look_at_all()
    a_round(database)
    a_round(database)
    assert segments_of(path) == [10]


@pytest.mark.usefixtures("all_large")
def test_bytes_of_which_nobody_knows_are_not_written_over(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash that brings back a commit would bring it back with the payloads of another client."""
    database.commit([append(1)])
    moody = MoodyConnection(database._connection)
    monkeypatch.setattr(database, "_connection", moody)
    (segment,) = (path.parent / FOLDER).iterdir()

    moody.fails = "COMMIT"
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(2)])
    assert segment.read_bytes() == b"1\n2\n"
    moody.fails = "PRAGMA user_version"
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(3)])
    a_round(database)
    assert segment.read_bytes() == b"1\n2\n"

    moody.fails = "INSERT INTO jobs"
    with pytest.raises(sqlite3.OperationalError):
        database.commit([append(4)])
    assert segment.read_bytes() == b"1\n", "there is no doubt before COMMIT"
    moody.fails = None
    database.commit([append(2)])
    assert segment.read_bytes() == b"1\n2\n"
    assert contents(database.page(0, 9, 99)) == contents([job(1), job(2)])


@pytest.mark.usefixtures("all_large")
def test_the_bytes_are_on_the_disk_before_the_row(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut would leave rows whose payloads are nowhere: a 202 that was a lie."""
    moody = MoodyConnection(database._connection)
    monkeypatch.setattr(database, "_connection", moody)
    for name in ("pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, _noted(name, moody.statements, getattr(os, name)))
    database.commit([append(1)])
    steps = [one.split()[0] for one in moody.statements]
    assert steps == ["BEGIN", "pwritev", "fdatasync", "INSERT", "UPDATE", "COMMIT"]


def _noted(name: str, notes: list[str], function: Callable[..., T]) -> Callable[..., T]:
    def noted(*arguments: object) -> T:
        notes.append(name)
        return function(*arguments)

    return noted


@pytest.mark.usefixtures("all_large")
def test_a_start_goes_on_behind_what_a_crash_has_left(path: Path) -> None:
    """The torn end of a segment would be sent as somebody's payload."""
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
def test_a_journal_of_the_first_version_is_read_on(path: Path) -> None:
    """What was acknowledged before an upgrade would be gone after it."""
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
def test_segments_without_their_journal_stop_a_start(path: Path) -> None:
    """Who moves a damaged journal.db aside would lose the payloads that it refers to."""
    with closing(Database(path)) as old:
        old.commit([append(1)])
    with closing(Database(path)) as old:
        old.commit([append(2)])
    path.rename(path.with_name("aside.db"))
    with pytest.raises(StartError, match="belongs to another journal"):
        Database(path)
    assert segments_of(path) == [1, 2]


@pytest.mark.usefixtures("all_large")
def test_a_dead_letter_that_a_daemon_moves_meanwhile_is_shown(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`payloadd journal dead show` would fail now and then, on a letter that is there."""
    request = append(1, count=9)
    database.commit([request])
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    database.commit([append(10)])
    database.commit([*alone(request.jobs[1:]), Bury(batch(job(1)), "C", "r")])
    a_round(database)
    read = segment_files.read

    def read_late(state_dir: Path, places: Sequence[SegmentSpan]) -> list[bytes]:
        monkeypatch.setattr(segment_files, "read", read)
        a_round(database)
        return read(state_dir, places)

    monkeypatch.setattr(segment_files, "read", read_late)
    with Inspection.open(path.parent) as inspection:
        assert inspection.lines(str(id_of(1))) == b"1\n"
        assert inspection.status().file_bytes == path.stat().st_size + len(b"10\n")


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("broken", ["pwritev", "fdatasync"])
async def test_a_segment_that_cannot_be_written_refuses_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A 202 for payloads whose bytes are nowhere; or a daemon that does not find out it is over."""

    def fail(*_arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async with open_rig(path, tuning=Tuning(retry_interval=0.02)) as rig:
        await rig.take(1)
        with monkeypatch.context() as disk:
            disk.setattr(os, broken, fail)
            with pytest.raises(RefusedError, match="Input/output error") as caught:
                await rig.take(2, b"key")
            assert caught.value.code == "DISK_ERROR"
            assert rig.health.troubles["journal"].code == "EIO"
            assert rig.database.totals.payloads == 1
        await until(lambda: rig.journal.refusal() is None)
        await rig.take(3, b"key")
        page = await rig.journal.page(0, 9, 99)
        assert [one.lines for one in page] == [b"1\n", b"3\n"]


@pytest.mark.usefixtures("all_large")
async def test_a_missing_segment_holds_up_nothing(path: Path) -> None:
    """One file that is gone would keep half a million good payloads from being uploaded."""
    async with open_rig(path) as rig:
        await rig.take(1)
        (segment,) = (path.parent / FOLDER).iterdir()
        segment.unlink()
        rig.database.commit([append(2)])
        assert await rig.journal.page(0, 9, 99) == []
        assert not rig.health.troubles
        await rig.take(3)
    found = rig.database.findings.take()
    assert [(one.first, one.last, one.payloads) for one in found] == [(1, 2, 2)]
    assert "segment 1, which is missing" in found[0].reason


@pytest.mark.usefixtures("all_large")
@pytest.mark.parametrize("missing", range(1, 6))
def test_all_but_a_missing_segment_is_read(
    path: Path, database: Database, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """Payloads would be lost because their neighbours are."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    for number in range(1, 6):
        database.commit([append(number)])
    segment_files.path_of(path.parent / FOLDER, missing).unlink()
    left = [number for number in range(1, 6) if number != missing]
    assert contents(database.page(0, 9, 99)) == contents(map(job, left))
    (finding,) = database.findings.take()
    assert (finding.first, finding.last, finding.payloads) == (missing, missing, 1)
    assert (database.totals.jobs, database.totals.payloads) == (4, 4)


@pytest.mark.usefixtures("all_large")
async def test_segments_go_by_themselves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk would stay as full as in the longest outage; also of letters that were dropped."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    async with open_rig(path, tuning=Tuning(maintenance_interval=0.02)) as rig:
        for number in range(1, 5):
            await rig.take(number)
        jobs = [rig.channel.receive_nowait() for _ in range(4)]
        for one in jobs[:2]:
            rig.journal.settle(batch(one, sealed=False))
        rig.journal.bury(batch(jobs[2], sealed=False), "C", "r")
        await until(lambda: segments_of(path) == [3, 4])
        with Inspection.open(path.parent) as inspection:
            assert inspection.lines(str(id_of(3))) == b"3\n"
            assert inspection.drop([str(id_of(3))]) == 1
        await until(lambda: segments_of(path) == [4])
