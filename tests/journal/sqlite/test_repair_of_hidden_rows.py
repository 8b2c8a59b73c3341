"""A repair in a running daemon uses the state in memory where pages were misplaced."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite import file_check, identity
from payloadd.journal.sqlite.damage import corrupt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Bury, Seal, Settle
from payloadd.journal.sqlite.schema import FILE
from payloadd.model.job import Batch
from tests.journal.sqlite.damaging import change, new_findings, verified
from tests.support.journal import append, batch, contents, job

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from payloadd.model.job import Job

_JOBS: Final = 60


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the check of the whole file at a start."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return an open journal with _JOBS jobs."""
    with closing(Database(tmp_path / FILE)) as database:
        database.commit([append(1, count=_JOBS)])
        yield database


def repair(database: Database) -> bool:
    """Repair the file as after an error of a damaged page; return whether it succeeded."""
    return database._repair(corrupt("a page"))


def alter(database: Database, statement: str) -> None:
    """Change rows as a misplaced page does, without an operation of the daemon."""
    database._connection.execute(statement)


def store(database: Database, jobs: Sequence[Job]) -> None:
    """Seal and settle jobs as one batch."""
    whole = Batch(tuple(jobs), f"k{jobs[0].seq}", "none", sealed=True)
    database.commit([Seal(whole)])
    database.commit([Settle(whole)])


def test_a_row_that_was_deleted_is_not_stored_again(database: Database) -> None:
    """A stale copy of its page that a repair reads would be stored as a second object."""
    jobs = database.page(0, _JOBS, 10**6)
    alter(database, "CREATE TEMP TABLE copy AS SELECT * FROM jobs WHERE seq <= 10")
    store(database, jobs[:10])
    alter(database, "INSERT INTO jobs SELECT * FROM copy")
    database.jobs_in_memory = lambda: jobs[10:]
    assert repair(database)
    assert [job.seq for job in database.page(0, _JOBS, 10**6)] == list(range(11, _JOBS + 1))
    assert database.totals.jobs == database.totals.payloads == _JOBS - 10
    assert database.damaged_payloads == 0


def test_a_missing_identity_is_restored(database: Database, tmp_path: Path) -> None:
    """The next start would report journal.high as the record of another journal."""
    known = identity.read(database._connection)
    assert known is not None
    alter(database, "DELETE FROM identity")
    assert repair(database)
    assert identity.read(database._connection) == known
    assert verified(tmp_path / FILE) == []


def test_a_missing_dead_letter_is_reported(database: Database) -> None:
    """Its payloads would be missing from every count without a message."""
    jobs = database.page(0, _JOBS, 10**6)
    dead = batch(*jobs[:5])
    database.commit([Bury(dead, "KeyTooLong", "too long")])
    database.jobs_in_memory = lambda: jobs[5:]
    new_findings(database)
    alter(database, "DELETE FROM jobs WHERE seq <= 5")
    alter(database, "DELETE FROM dead")
    assert repair(database)
    (finding,) = [one for one in new_findings(database) if one.payloads]
    assert (finding.table, finding.payloads) == ("jobs", 5)
    assert database.damaged_payloads == 5
    assert database.totals.payloads == _JOBS - 5
    assert database.totals.dead_payloads == 5


def test_a_dropped_dead_letter_is_not_reported(database: Database, tmp_path: Path) -> None:
    """A DAMAGED dead letter would report payloads that an operator has dropped."""
    jobs = database.page(0, _JOBS, 10**6)
    database.commit([Bury(batch(*jobs[:5]), "KeyTooLong", "too long")])
    database.jobs_in_memory = lambda: jobs[5:]
    # As `payloadd journal dead drop` does, before the daemon counts dead letters again.
    change(tmp_path / FILE, "DELETE FROM jobs WHERE seq <= 5", "DELETE FROM dead")
    assert repair(database)
    assert database.damaged_payloads == database.totals.dead_payloads == 0
    with Inspection.open(tmp_path) as inspection:
        assert list(inspection.dead()) == []


def test_a_failed_repair_keeps_the_deleted_ranges(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next repair would find stale copies of deleted rows, which would be stored again."""
    jobs = database.page(0, _JOBS, 10**6)
    store(database, jobs[:10])
    gone = database._hidden.deleted
    assert gone

    def no_room(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("payloadd.journal.sqlite.repair.make_sound", no_room)
        assert not repair(database)
    assert database._hidden.deleted == gone
    assert not database._hidden.sound


@pytest.mark.usefixtures("all_large")
def test_a_segment_whose_rows_come_back_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payloads that are not stored would be lost, although the repair has found their rows."""
    monkeypatch.setattr("payloadd.journal.sqlite.segments.SEGMENT_BYTES", 1)
    with closing(Database(tmp_path / FILE)) as database:
        for number in (1, 2):
            database.commit([append(number)])
        alter(database, "CREATE TEMP TABLE copy AS SELECT * FROM jobs WHERE seq = 1")
        alter(database, "DELETE FROM jobs WHERE seq = 1")
        database.compaction.recheck_all()  # as if another job of the segment had been stored
        database.commit([append(3)])
        # The page is in its place again.
        alter(database, "INSERT INTO jobs SELECT * FROM copy")
        assert repair(database)
        database.commit([append(4)])
        assert contents(database.page(0, 9, 10**6)) == contents(map(job, range(1, 5)))
