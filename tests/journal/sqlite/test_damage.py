"""A damaged row becomes a dead letter, and all other jobs are stored."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import PayloaddError
from payloadd.journal.sqlite import file_check
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Bury, Revive, Seal, Settle
from payloadd.model.job import Batch
from tests.journal.sqlite.damaging import change, new_findings, verified
from tests.support.journal import append, id_of, sealed

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("nine_jobs")

_CHANGES: Final = {
    "lines": "UPDATE jobs SET lines = x'370b' WHERE seq = 7",
    "lines of another kind": "UPDATE jobs SET lines = 7 WHERE seq = 7",
    "id": "UPDATE jobs SET id = x'00' || substr(id, 2) WHERE seq = 7",
    "short id": "UPDATE jobs SET id = x'00' WHERE seq = 7",
    "payloads": "UPDATE jobs SET payloads = 2 WHERE seq = 7",
    "payloads of another kind": "UPDATE jobs SET payloads = 'x' WHERE seq = 7",
    "segment without an offset": "UPDATE jobs SET segment = 1 WHERE seq = 7",
    "missing segment": "UPDATE jobs SET segment = 1, start = 0, size = 2 WHERE seq = 7",
    "stream": "UPDATE jobs SET stream = 1 WHERE seq = 7",
    "checksum": "UPDATE jobs SET crc = crc + 1 WHERE seq = 7",
}


@pytest.mark.parametrize("changed", _CHANGES)
def test_an_altered_row_becomes_a_dead_letter(path: Path, changed: str) -> None:
    """A flipped bit would be uploaded as if it were data."""
    change(path, _CHANGES[changed])
    assert {one.table for one in verified(path)} & {"jobs", "totals"}
    with closing(Database(path)) as database:
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 6, 8, 9]
        assert database.totals.jobs == 8
        (finding,) = new_findings(database)
        assert (finding.table, finding.first, finding.last, finding.jobs) == ("jobs", 7, 7, 1)
        # Reported once, not at each read.
        assert [one.seq for one in database.page(6, 99, 9999)] == [8, 9]
        assert new_findings(database) == []
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
        assert (letter.code, letter.id) == (CODE, finding.id)
        assert "number 7" in letter.reason
        assert inspection.status().damaged == 1
        inspection.lines(letter.id)
        assert inspection.retry([]) == 0
        with pytest.raises(PayloaddError, match="cannot be tried again"):
            inspection.retry([letter.id])
        (known,) = inspection.verify()
        assert (known.table, known.first, known.id) == ("dead", 7, letter.id)
        assert inspection.drop([letter.id]) == 1
        assert inspection.verify() == []


def test_damaged_neighbours_become_one_dead_letter_with_their_lines(path: Path) -> None:
    """An operator would have to read a thousand dead letters of one damaged page."""
    change(path, "UPDATE jobs SET lines = lines || x'0a' WHERE seq IN (6, 7, 8)")
    with closing(Database(path)) as database:
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 9]
        (finding,) = new_findings(database)
    assert (finding.first, finding.last, finding.payloads) == (6, 8, 3)
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
        assert inspection.lines(letter.id) == b"6\n\n7\n\n8\n\n"
        assert str(id_of(6)) == letter.id
        assert str(id_of(8)) in letter.reason


@pytest.mark.parametrize(
    ("seqs", "left"), [("2", [3, 4]), ("3", [2, 4]), ("4", [2, 3]), ("2, 4", [3]), ("2, 3, 4", [])]
)
def test_a_sealed_batch_with_damaged_members_keeps_its_key(
    path: Path, seqs: str, left: list[int]
) -> None:
    """Its object may be in the store: under another key its payloads would be stored twice."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq IN (%s)" % seqs)  # noqa: UP031 - ours
    for _ in range(2):  # the second time as after a crash
        with closing(Database(path)) as database:
            found = [database.sealed(first) for first in database.sealed_after({})]
            if left:
                (one,) = found
                assert one is not None
                assert ([each.seq for each in one.jobs], one.key) == (left, "k2")
            else:
                assert found in ([None], [])
    with closing(Database(path)) as database:
        for first in database.sealed_after({}):
            database.commit([Settle(sealed(database, first))])
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 6, 7, 8, 9]
        assert (database.totals.jobs, database.totals.payloads) == (6, 6)
    with closing(Database(path)) as again:
        assert again.sealed_after({}) == []
    assert {one.table for one in verified(path)} == {"dead"}


@pytest.mark.parametrize(
    ("seqs", "whole"), [("9", True), ("1", False), ("2", False), ("3", False), ("1, 3", False)]
)
def test_a_batch_that_has_lost_a_member_says_so(tmp_path: Path, seqs: str, *, whole: bool) -> None:
    """The object in the store would be taken for that of another batch."""
    path = tmp_path / "other.db"
    with closing(Database(path)) as database:
        database.commit([append(number) for number in (1, 2, 3)])
        jobs = database.page(0, 9, 9999)
        database.commit([Seal(Batch(jobs, f"{jobs[0].id}.ndjson", "none", sealed=True))])
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq IN (%s)" % seqs)  # noqa: UP031 - ours
    for _ in range(2):  # the second time as after a crash
        with closing(Database(path)) as database:
            (first,) = database.sealed_after({})
            assert sealed(database, first).members.whole is whole


def test_a_batch_whose_damaged_member_was_dropped_does_not_refuse_the_start(path: Path) -> None:
    """Its missing member would look like a row that has come back."""
    change(path, "UPDATE jobs SET lines = x'00' WHERE seq = 3")
    with closing(Database(path)) as database:
        assert [one.seq for one in sealed(database, 2).jobs] == [2, 4]
    with Inspection.open(path.parent) as inspection:
        inspection.drop([letter.id for letter in inspection.dead()])
    with closing(Database(path)) as again:
        assert [one.seq for one in sealed(again, 2).jobs] == [2, 4]
        assert again.totals.jobs == 8


def test_a_batch_with_gaps_can_be_buried_and_revived(path: Path) -> None:
    """The totals would stay wrong as long as the journal exists."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 3")
    with closing(Database(path)) as database:
        one = sealed(database, 2)
        database.commit([Bury(one, "C", "r")])
        change(path, "UPDATE dead SET retry = 1 WHERE code = 'C'")
        revive = Revive()
        database.commit([revive])
        assert (revive.firsts, revive.payloads, database.totals.jobs) == ([2], 2, 8)
    assert {one.table for one in verified(path)} == {"dead"}


@pytest.mark.parametrize("small", [True, False])
def test_a_missing_row_becomes_a_dead_letter(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, small: bool
) -> None:
    """An accepted payload would be lost without a message."""
    if not small:
        monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    change(path, "DELETE FROM jobs WHERE seq = 7")
    assert [one.table for one in verified(path)] == ["totals"]
    with closing(Database(path)) as database:
        assert bool(new_findings(database)) == small
        after = 0
        while page := database.page(after, 4, 9999):
            after = page[-1].seq
        if not small:
            (finding,) = new_findings(database)
            assert (finding.first, finding.jobs, finding.payloads) == (None, 1, 1)
        assert database.totals.jobs == 8
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
        assert inspection.lines(letter.id) == b""
        assert inspection.drop([letter.id]) == 1


def test_a_row_with_an_unassigned_number_becomes_a_dead_letter(path: Path) -> None:
    """Every commit would fail at the number that the row occupies."""
    move = "UPDATE jobs SET seq = %d WHERE seq = %d"
    change(path, move % (10, 9), move % (2**50, 8))
    with closing(Database(path)) as database:
        assert sorted(one.first or 0 for one in new_findings(database)) == [10, 2**50]
        database.commit([append(10, count=3)])
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 6, 7, 10, 11, 12]
        assert database.totals.jobs == 10
