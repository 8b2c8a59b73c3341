"""A repair while the daemon runs keeps what memory knows of a file whose pages were mixed up."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.api import Bury, Seal, Settle
from payloadd.journal.sqlite import file_check, identity
from payloadd.journal.sqlite.damage import corrupt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.schema import FILE
from payloadd.model.job import Batch
from tests.journal.sqlite.damaging import change, told, verified
from tests.support.journal import append, batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from payloadd.model.job import Job

_JOBS: Final = 60


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be checked as a whole at a start."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return a journal with some jobs."""
    with closing(Database(tmp_path / FILE)) as database:
        database.commit([append(1, count=_JOBS)])
        yield database


def repair(database: Database) -> bool:
    """Repair the file as for a damaged page."""
    return database._repair(corrupt("a page"))


def alter(database: Database, statement: str) -> None:
    """Change the journal as a page in the wrong place does, behind the back of the daemon."""
    database._connection.execute(statement)


def store(database: Database, jobs: Sequence[Job]) -> None:
    """Store jobs as one object."""
    whole = Batch(tuple(jobs), f"k{jobs[0].seq}", "none", sealed=True)
    database.commit([Seal(whole)])
    database.commit([Settle(whole)])


def test_a_row_that_was_deleted_is_not_stored_again(database: Database) -> None:
    """A copy of its page that a repair comes across would be a second object."""
    jobs = database.page(0, _JOBS, 10**6)
    alter(database, "CREATE TEMP TABLE copy AS SELECT * FROM jobs WHERE seq <= 10")
    store(database, jobs[:10])
    alter(database, "INSERT INTO jobs SELECT * FROM copy")
    database.jobs_in_memory = lambda: jobs[10:]
    assert repair(database)
    assert [job.seq for job in database.page(0, _JOBS, 10**6)] == list(range(11, _JOBS + 1))
    assert database.totals.jobs == database.totals.payloads == _JOBS - 10
    assert database.damaged_payloads == 0


def test_an_identity_that_is_gone_is_written_back(database: Database, tmp_path: Path) -> None:
    """The next start would take journal.high for the record of another journal."""
    known = identity.read(database._connection)
    assert known is not None
    alter(database, "DELETE FROM identity")
    assert repair(database)
    assert identity.read(database._connection) == known
    assert verified(tmp_path / FILE) == []


def test_a_dead_letter_that_is_gone_is_told(database: Database) -> None:
    """Its payloads would be missing from every count, and nothing would say so."""
    jobs = database.page(0, _JOBS, 10**6)
    dead = batch(*jobs[:5])
    database.commit([Bury(dead, "KeyTooLong", "too long")])
    database.jobs_in_memory = lambda: jobs[5:]
    told(database)
    alter(database, "DELETE FROM jobs WHERE seq <= 5")
    alter(database, "DELETE FROM dead")
    assert repair(database)
    (finding,) = [one for one in told(database) if one.payloads]
    assert (finding.table, finding.payloads) == ("jobs", 5)
    assert database.damaged_payloads == 5
    assert database.totals.payloads == _JOBS - 5
    assert database.totals.dead_payloads == 5


def test_a_dead_letter_that_an_operator_dropped_is_not_missed(
    database: Database, tmp_path: Path
) -> None:
    """A dead letter DAMAGED would tell of payloads that an operator has given up."""
    jobs = database.page(0, _JOBS, 10**6)
    database.commit([Bury(batch(*jobs[:5]), "KeyTooLong", "too long")])
    database.jobs_in_memory = lambda: jobs[5:]
    # As `payloadd journal dead drop` does, and before the daemon looks again.
    change(tmp_path / FILE, "DELETE FROM jobs WHERE seq <= 5", "DELETE FROM dead")
    assert repair(database)
    assert database.damaged_payloads == database.totals.dead_payloads == 0
    with Inspection.open(tmp_path) as inspection:
        assert list(inspection.dead()) == []


def test_a_repair_that_fails_forgets_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair after it would find the copies of deleted rows, and have them stored."""
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
