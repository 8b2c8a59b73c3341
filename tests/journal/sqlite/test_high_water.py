"""A start counts the payloads of a write-ahead log that is missing, cut off or damaged."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio

from payloadd.errors import StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import high_water, high_water_record, segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Append, Bury, Seal, Settle
from payloadd.journal.sqlite.schema import FILE, open_existing
from payloadd.journal.sqlite.transaction import Totals
from payloadd.journal.sqlite.verify import verify
from payloadd.model.job import Job
from tests.journal.sqlite.damaging import cut, flip, zero
from tests.support.journal import append, batch, id_of, make_rig, open_rig, part

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.sqlite.operations import Operation

WAL = f"{FILE}-wal"


def crash(folder: Path, steps: list[list[Operation]], checkpoint_after: int = 0) -> Path:
    """Commit ``steps`` and return a copy of the folder, as after a killed process.

    The log is checkpointed after the first ``checkpoint_after`` steps.
    """
    left = folder.with_name("left")
    with closing(Database(folder / FILE)) as database:
        for number, operations in enumerate(steps, 1):
            database.commit(operations)
            if number == checkpoint_after:
                database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copytree(folder, left)
    return left


def requests(count: int, first: int = 1, payloads: int = 3) -> list[Append]:
    """Return requests of one job each."""
    return [
        Append(Receipt(id_of(number), payloads), [part(number, payloads)])
        for number in range(first, first + count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty STATE_DIR."""
    one = tmp_path / "state"
    one.mkdir()
    return one


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip, zero])
def test_the_count_of_missing_payloads_is_exact_after_a_kill(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    """SQLite drops commits without an error: accepted payloads would be lost silently."""
    left = crash(folder, [[one] for one in requests(40)], checkpoint_after=10)
    damage(left / WAL)
    with closing(Database(left / FILE)) as database:
        found = database.high_water.damage
        assert found is not None
        assert not found.at_least
        assert 10 <= database.totals.jobs < 40
        assert found.payloads == 3 * (40 - database.totals.jobs)
        assert (found.again, found.files) == (0, ())
        # No number is used twice.
        request = requests(1, 100)[0]
        database.commit([request])
        assert [job.seq for job in request.jobs] == [41]


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip, zero])
def test_verify_reports_the_loss_that_the_next_start_finds(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    """A journal without its last commits would be reported as undamaged."""
    left = crash(folder, [[one] for one in requests(40)], checkpoint_after=10)
    copy = shutil.copytree(left, folder.with_name("copy"))
    with closing(open_existing(left / FILE)) as connection:
        assert verify(connection, left) == []
    damage(copy / WAL)
    with closing(open_existing(copy / FILE)) as connection:
        found = verify(connection, copy)
    with closing(Database(copy / FILE)) as database:
        assert database.high_water.damage is not None
        missing = database.high_water.damage.payloads
    assert [one.payloads for one in found if one.table == "file"] == [missing]
    with closing(open_existing(copy / FILE)) as connection:
        (known,) = verify(connection, copy)
    assert known.payloads == missing


def test_a_killed_process_is_no_damage(folder: Path) -> None:
    """An operator would ignore reports of damage that come with each crash."""
    steps: list[list[Operation]] = [[one] for one in requests(10)]
    left = crash(folder, steps, checkpoint_after=5)
    with closing(Database(left / FILE)) as database:
        assert database.high_water.damage is None
        assert database.totals.jobs == 10


def test_a_record_older_than_the_journal_is_no_damage(folder: Path) -> None:
    """A process that is killed between a commit and its record would be reported as damage."""
    with closing(Database(folder / FILE)) as database:
        database.commit(list(requests(3)))
        before = (folder / "journal.high").read_bytes()
        database.commit(list(requests(3, 10)))
        left = folder.with_name("left")
        shutil.copytree(folder, left)
    (left / "journal.high").write_bytes(before)
    with closing(Database(left / FILE)) as database:
        assert database.high_water.damage is None
        assert database.totals.next == 7


def test_stored_payloads_of_lost_commits_are_not_missing(folder: Path) -> None:
    """Payloads that are in the bucket would be reported as missing."""
    early, late = requests(4), requests(6, 10)
    with closing(Database(folder / FILE)) as database:
        database.commit(list(early))
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.commit(list(late))
        database.commit([Settle(batch(*(one.jobs[0] for one in early), sealed=False))])
        database.commit([Settle(batch(late[0].jobs[0], sealed=False))])
        left = folder.with_name("left")
        shutil.copytree(folder, left)
    (left / WAL).unlink()
    with closing(Database(left / FILE)) as database:
        found = database.high_water.damage
        assert found is not None
        assert (found.payloads, found.again) == (15, 12)


def test_a_lost_removal_is_counted_as_stored_again(folder: Path) -> None:
    """Payloads would be stored twice without a message."""
    request = requests(1)[0]
    with closing(Database(folder / FILE)) as database:
        database.commit([request])
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.commit([Seal(batch(request.jobs[0]))])
        database.commit([Settle(batch(request.jobs[0]))])
        left = folder.with_name("left")
        shutil.copytree(folder, left)
    (left / WAL).unlink()
    with closing(Database(left / FILE)) as database:
        found = database.high_water.damage
        assert found is not None
        assert (found.payloads, found.again) == (0, 3)


def test_payloads_of_lost_dead_letters_are_missing(folder: Path) -> None:
    """Dead letters that an operator could retry would be lost without a message."""
    early, late = requests(2), requests(2, 10)
    with closing(Database(folder / FILE)) as database:
        database.commit(list(early))
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.commit(list(late))
        jobs = [one.jobs[0] for one in (*early, *late)]
        database.commit([Bury(batch(one, sealed=False), "C", "r") for one in jobs])
        left = folder.with_name("left")
        shutil.copytree(folder, left)
    (left / WAL).unlink()
    with closing(Database(left / FILE)) as database:
        found = database.high_water.damage
        assert found is not None
        assert (found.payloads, found.again) == (6, 0)


def test_after_a_power_cut_the_count_is_a_lower_bound(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator would take the count of an old record for exact."""
    left = crash(folder, [[one] for one in requests(5)])
    (left / WAL).unlink()
    with closing(sqlite3.connect(left / FILE)) as tables:
        assert tables.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    monkeypatch.setattr(high_water, "BOOT_ID_FILE", folder / "no-such-file")
    with closing(Database(left / FILE)) as database:
        found = database.high_water.damage
        assert found is not None
        assert str(found) == "at least 15"


def test_the_loss_is_reported_until_a_clean_stop(folder: Path) -> None:
    """A second crash would hide the loss from the operator."""
    left = crash(folder, [[one] for one in requests(5)])
    (left / WAL).unlink()
    second = Database(left / FILE)
    assert second.high_water.damage is not None
    again = left.with_name("again")
    shutil.copytree(left, again)
    second.close()
    for ended in (left, again):  # a start that failed, and a crash
        with closing(Database(ended / FILE)) as third:
            assert third.high_water.damage is not None
            assert third.high_water.damage.payloads == 15
            third.high_water.acknowledged = True
        with closing(Database(ended / FILE)) as fourth:
            assert fourth.high_water.damage is None


@pytest.mark.usefixtures("all_large")
def test_segments_of_lost_rows_are_renamed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start would be refused, or would delete payloads that are still readable."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    left = crash(folder, [[one] for one in requests(3)], checkpoint_after=1)
    (left / WAL).unlink()
    with closing(Database(left / FILE)) as database:
        assert database.high_water.damage is not None
        names = [f"{number:020}.ndjson.lost" for number in (2, 3)]
        assert sorted(database.high_water.damage.files) == names
        assert [job.lines for job in database.page(0, 9, 999)] == [b"1\n1\n1\n"]
    assert segments.names(left / segments.FOLDER) == [1]
    assert (left / segments.FOLDER / names[0]).read_bytes() == b"2\n2\n2\n"


@pytest.mark.usefixtures("all_large")
def test_segments_of_lost_rows_have_no_bytes_of_former_segments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To send the lost payloads again by hand would send stored ones with them."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 9)
    first = requests(1, payloads=9)[0]
    settle = Settle(batch(Job(1, *first.parts[0]), sealed=False))
    before: list[Operation] = [first, *requests(2, first=2)]
    after: list[Operation] = [settle, *requests(2, first=4)]
    left = crash(folder, [[one] for one in (*before, *after)], checkpoint_after=3)
    (left / WAL).unlink()
    (lost,) = (left / segments.FOLDER).glob("*4.ndjson")
    assert lost.stat().st_size > 18, "the file of the first segment"
    with closing(Database(left / FILE)) as database:
        assert database.high_water.damage is not None
        (name,) = database.high_water.damage.files
    assert lost.with_name(name).read_bytes() == b"4\n4\n4\n5\n5\n5\n"


@pytest.mark.usefixtures("all_large")
def test_segments_without_a_journal_refuse_the_start(folder: Path) -> None:
    """The start would rename segments, and a restored journal.db could not use them."""
    left = crash(folder, [[one] for one in requests(3)])
    for path in left.glob(f"{FILE}*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(StartError, match="another journal"):
            Database(left / FILE)
    assert segments.names(left / segments.FOLDER) == [1]


def test_a_deleted_journal_that_was_empty_is_no_damage(folder: Path) -> None:
    """A new journal would report payloads as missing that were stored long ago."""
    request = requests(1)[0]
    with closing(Database(folder / FILE)) as database:
        database.commit([request])
        database.commit([Settle(batch(request.jobs[0], sealed=False))])
    (folder / FILE).unlink()
    with closing(Database(folder / FILE)) as database:
        assert database.high_water.damage is None
        assert database.totals.next == 2


def test_a_flipped_bit_in_a_record_reports_no_loss(folder: Path) -> None:
    """Damage of journal.high would be reported as loss of payloads."""
    left = crash(folder, [[one] for one in requests(5)])
    path = left / "journal.high"
    whole = path.read_bytes()
    chances = random.Random(1)  # noqa: S311 - the same choices each time
    for _ in range(60):
        broken = bytearray(whole)
        broken[chances.choice([0, 512]) + chances.randrange(76)] ^= 1 << chances.randrange(8)
        path.write_bytes(broken)
        record = high_water_record.read(left / FILE)
        assert record is not None
        assert record.next in (5, 6)
    path.write_bytes(bytes(1024))
    with closing(Database(left / FILE)) as database:
        assert database.high_water.unreadable
        assert database.high_water.damage is None


@pytest.mark.parametrize("step", ["HighWater.begin", "Totals.write"])
def test_a_killed_start_does_not_hide_the_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A start that fails after the comparison would leave a journal without visible damage."""
    left = crash(folder, [[one] for one in requests(40)], checkpoint_after=10)
    (left / WAL).unlink()

    class KilledError(Exception):
        """Raised in place of a kill of the process."""

    def end(*_: object) -> None:
        raise KilledError

    owner = {"HighWater.begin": high_water.HighWater, "Totals.write": Totals}[step]
    with monkeypatch.context() as patch:
        patch.setattr(owner, step.partition(".")[2], end)
        with pytest.raises(KilledError):
            Database(left / FILE)
    for _ in range(2):
        database = Database(left / FILE)
        found = database.high_water.damage
        assert found is not None
        assert (found.payloads, found.at_least) == (90, False)
        assert (database.totals.jobs, database.totals.next) == (10, 41)
        database.close()  # not acknowledged


def test_a_failed_write_of_the_record_fails_no_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests would be refused because of a file that only detects damage."""

    def refuse(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with closing(Database(folder / FILE)) as database:
        monkeypatch.setattr("payloadd.journal.sqlite.high_water.os.pwrite", refuse)
        database.commit([append(1)])
        assert database.totals.jobs == 1
        monkeypatch.undo()


def test_negative_totals_do_not_end_the_daemon(folder: Path) -> None:
    """A count that damage has made negative would raise after a durable commit."""
    with closing(Database(folder / FILE)) as database:
        database.high_water.write(Totals(5, -2, -2, 0))
        record = high_water_record.read(folder / FILE)
        assert record is not None
        assert (record.next, record.held) == (5, 0)


async def test_the_loss_is_reported_in_log_health_and_metric(folder: Path) -> None:
    """An operator would not learn that payloads are missing."""
    left = crash(folder, [[one] for one in requests(5)])
    (left / WAL).unlink()
    with structlog.testing.capture_logs() as lines:
        rig = make_rig(left / FILE)
    (line,) = lines
    assert (line["event"], line["log_level"], line["missing"]) == ("journal_damaged", "error", 15)
    assert rig.health.troubles["journal_data"].code == "PAYLOADS_MISSING"
    assert rig.health.troubles["journal_data"].reason.startswith("15 accepted payloads")
    assert b"payloadd_payloads_missing 15.0" in rig.metrics.render()
    async with rig.journal.running():
        assert rig.journal.refusal() is None
        await rig.accept(77)
        rig.health.phase = "draining"
    await rig.journal.aclose()
    with structlog.testing.capture_logs() as lines:
        async with open_rig(left / FILE) as rig:
            assert not rig.health.troubles
    assert lines == []


async def test_the_record_is_synced_within_seconds(folder: Path) -> None:
    """After a power cut the lower bound would be as old as the start of the daemon."""
    rig = make_rig(folder / FILE)
    async with rig.journal.running():
        await rig.accept(1)
        high = rig.journal._database.high_water
        with trio.fail_after(60):
            while high._dirty:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.05)
    await rig.journal.aclose()
