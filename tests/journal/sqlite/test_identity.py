"""A start notices files of two different journals in one STATE_DIR."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
import structlog.testing

from payloadd.errors import StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import high_water_record, identity, segments
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection, try_journal
from payloadd.journal.sqlite.operations import Append, Settle
from payloadd.journal.sqlite.schema import FILE, open_existing
from tests.fixtures.version_3.journals import unpack
from tests.support.journal import append, batch, id_of, make_rig, part

if TYPE_CHECKING:
    from pathlib import Path

HIGH_WATER: Final = "journal.high"


def make(folder: Path, count: int, first: int = 1) -> Path:
    """Return the folder of a journal with ``count`` jobs, as after a killed process."""
    folder.mkdir()
    left = folder.with_name(f"{folder.name}-left")
    with closing(Database(folder / FILE)) as database:
        for number in range(first, first + count):
            database.commit([append(number)])
        shutil.copytree(folder, left)
    return left


def identity_of(folder: Path) -> bytes | None:
    """Return the identity in journal.db, None where it is damaged."""
    with closing(open_existing(folder / FILE)) as connection:
        return identity.read(connection)


def replace_database(folder: Path, other: Path) -> None:
    """Replace journal.db and its log in ``folder`` by those of ``other``."""
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    for path in other.glob(f"{FILE}*"):
        shutil.copy(path, folder)


def verified(folder: Path) -> list[tuple[str, int]]:
    """Return reason and payloads of each finding of ``payloadd journal verify``."""
    with Inspection.open(folder) as inspection:
        return [(one.reason, one.payloads) for one in inspection.verify()]


def test_the_identity_of_a_journal_never_changes(tmp_path: Path) -> None:
    """Each start would report the record of the previous run as that of another journal."""
    left = make(tmp_path / "one", 3)
    known = identity_of(left)
    assert known is not None
    for _ in range(2):
        with closing(Database(left / FILE)) as database:
            assert database.high_water.damage is None
        record = high_water_record.read(left / FILE)
        assert record is not None
        assert record.journal == identity_of(left) == known
    assert identity_of(make(tmp_path / "two", 3)) != known


@pytest.mark.parametrize("name", ["killed", "stopped"])
def test_a_journal_of_version_3_gets_an_identity(name: str, tmp_path: Path) -> None:
    """After an upgrade, a replaced file would not be noticed."""
    path = unpack(name, tmp_path)
    with closing(Database(path)) as database:
        assert database.findings.pop_all() == []
        known = identity.read(database._connection)
    assert known is not None
    with closing(Database(path)) as database:
        assert database.high_water.damage is None
        assert identity.read(database._connection) == known


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM identity",
        "UPDATE identity SET id = x'00'",
        "UPDATE identity SET id = randomblob(16)",
        "INSERT INTO identity SELECT randomblob(16), crc FROM identity",
    ],
)
def test_a_damaged_identity_is_restored_from_the_record(tmp_path: Path, statement: str) -> None:
    """Damage of one row would be reported as the loss of the whole journal."""
    left = make(tmp_path / "one", 3)
    known = identity_of(left)
    with closing(sqlite3.connect(left / FILE)) as connection, connection:
        connection.execute(statement)
    with closing(Database(left / FILE)) as database:
        assert database.high_water.damage is None
        assert database.totals.jobs == 3
    assert identity_of(left) == known


@pytest.mark.parametrize("count", [2, 7, 20])
def test_the_record_of_another_journal_is_noticed(tmp_path: Path, count: int) -> None:
    """Lost commits would be counted with the numbers of another journal."""
    left, other = make(tmp_path / "one", 7), make(tmp_path / "two", count)
    shutil.copy(other / HIGH_WATER, left / HIGH_WATER)
    assert (f"{identity.FOREIGN}: at least so many payloads are missing", count) in verified(left)
    with pytest.raises(StartError, match="two different journals"):
        try_journal(left)
    with closing(Database(left / FILE)) as database:
        damage = database.high_water.damage
        assert damage is not None
        assert (damage.foreign, str(damage)) == (True, f"at least {count}")
        assert (database.totals.jobs, database.totals.next) == (7, 8)
        assert [job.seq for job in database.page(0, 99, 9999)] == list(range(1, 8))


@pytest.mark.parametrize("count", [2, 7, 20])
def test_a_database_of_another_journal_is_noticed(tmp_path: Path, count: int) -> None:
    """All payloads of the journal would be lost without a message."""
    left, other = make(tmp_path / "one", 7), make(tmp_path / "two", count, first=100)
    replace_database(left, other)
    with closing(Database(left / FILE)) as database:
        damage = database.high_water.damage
        assert damage is not None
        assert (damage.foreign, str(damage)) == (True, "at least 7")
        assert database.totals.jobs == count


def test_the_loss_is_reported_until_the_daemon_is_stopped_in_order(tmp_path: Path) -> None:
    """A second crash would hide the loss from the operator."""
    left, other = make(tmp_path / "one", 0), make(tmp_path / "two", 3, first=100)
    replace_database(left, other)
    for number in range(3):
        database = Database(left / FILE)
        damage = database.high_water.damage
        assert damage is not None
        # The record of the empty journal counts no payloads, but it is only a lower bound.
        assert (damage.foreign, str(damage)) == (True, "at least 0")
        if number:
            assert [reason for reason, _ in verified(left)] == [
                "payloads were missing at an earlier start (PAYLOADS_MISSING)"
            ]
        database.high_water.acknowledged = number == 2
        database.close()
    with closing(Database(left / FILE)) as database:
        assert database.high_water.damage is None
    assert verified(left) == []


def test_a_new_journal_with_the_record_of_an_emptied_journal_is_no_damage(tmp_path: Path) -> None:
    """A new journal would report payloads as missing that were stored long ago."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        request = append(1)
        database.commit([request])
        database.commit([Settle(batch(request.jobs[0], sealed=False))])
    path.unlink()
    with closing(Database(path)) as database:
        assert database.high_water.damage is None


async def test_files_of_two_journals_are_reported_in_log_health_and_metric(tmp_path: Path) -> None:
    """An operator would not learn that payloads are missing."""
    left, other = make(tmp_path / "one", 5), make(tmp_path / "two", 9, first=100)
    replace_database(left, other)
    with structlog.testing.capture_logs() as lines:
        rig = make_rig(left / FILE)
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("journal_damaged", "error")
    assert (line["missing"], line["at_least"]) == (5, True)
    assert identity.FOREIGN in line["reason"]
    trouble = rig.health.troubles["journal_data"]
    assert trouble.code == "PAYLOADS_MISSING"
    assert "at least 5" in trouble.reason
    assert rig.metrics.registry.get_sample_value("payloadd_payloads_missing") == 5
    await rig.journal.aclose()


def with_segments(folder: Path, text: bytes) -> Path:
    """Return the folder of a journal with three jobs in one segment."""
    folder.mkdir()
    left = folder.with_name(f"{folder.name}-left")
    with closing(Database(folder / FILE)) as database:
        parts = [part(number) for number in (1, 2, 3)]
        parts = [one._replace(lines=text + one.lines) for one in parts]
        database.commit([Append(Receipt(id_of(1), 3), parts)])
        shutil.copytree(folder, left)
    return left


@pytest.mark.usefixtures("all_large")
def test_segments_of_another_journal_do_not_match_their_checksums(tmp_path: Path) -> None:
    """Payloads of one journal would be stored as those of another."""
    left, other = with_segments(tmp_path / "one", b"1"), with_segments(tmp_path / "two", b"2")
    shutil.rmtree(left / segments.FOLDER)
    shutil.copytree(other / segments.FOLDER, left / segments.FOLDER)
    with closing(Database(left / FILE)) as database:
        assert database.page(0, 9, 9999) == []
        (finding,) = database.findings.pop_all()
        assert (finding.first, finding.last, finding.payloads) == (1, 3, 3)
    with Inspection.open(left) as inspection:
        assert [one.code for one in inspection.dead()] == [CODE]


@pytest.mark.usefixtures("all_large")
def test_segments_of_a_replaced_journal_are_kept(tmp_path: Path) -> None:
    """The start would delete payloads that can be restored with their journal.db."""
    left, other = with_segments(tmp_path / "one", b"1"), make(tmp_path / "two", 3, first=100)
    shutil.rmtree(other / segments.FOLDER)
    with closing(sqlite3.connect(other / FILE)) as connection, connection:
        connection.execute("DELETE FROM jobs")
    replace_database(left, other)
    with closing(Database(left / FILE)) as database:
        damage = database.high_water.damage
        assert damage is not None
        assert damage.files == (f"{1:020}.ndjson.lost",)
    assert (left / segments.FOLDER / damage.files[0]).read_bytes() == b"11\n12\n13\n"


@pytest.mark.usefixtures("all_large")
def test_segments_after_the_last_record_are_counted_as_lost_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut with a lost log each start would be refused."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    left = tmp_path / "left"
    (tmp_path / "one").mkdir()
    with closing(Database(tmp_path / "one" / FILE)) as database:
        database.commit([append(1)])
        database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        record = (tmp_path / "one" / HIGH_WATER).read_bytes()
        database.commit([append(2)])
        database.commit([append(3)])
        shutil.copytree(tmp_path / "one", left)
    (left / HIGH_WATER).write_bytes(record)
    (left / f"{FILE}-wal").unlink()
    with closing(Database(left / FILE)) as database:
        damage = database.high_water.damage
        assert damage is not None
        assert (str(damage), damage.foreign) == ("at least 1", False)
        assert damage.files == tuple(f"{number:020}.ndjson.lost" for number in (2, 3))
        assert (database.totals.jobs, database.totals.next) == (1, 3)
