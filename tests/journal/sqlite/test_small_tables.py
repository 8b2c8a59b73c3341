"""Damage of the small tables is repaired or reported."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import StartError
from payloadd.journal.sqlite import file_check, small_tables
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Bury, Settle
from payloadd.journal.sqlite.schema import ABOVE_ALL
from payloadd.model.layout import Layout
from tests.journal.sqlite.damaging import change, new_findings, verified
from tests.journal.sqlite.in_blocks import accepted, killed
from tests.support.journal import append, batch, sealed, unpack

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("nine_jobs")

_LAYOUT: Final = Layout("{id}.ndjson", "", "none", alone=True)


_OTHER: Final = Layout("other/{id}.ndjson", "", "none", alone=True)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE batches SET last = last + 16 WHERE first = 2", "batches"),
        ("UPDATE batches SET key = 'c2' WHERE first = 2", "batches"),
        ("UPDATE batches SET crc = crc + 1 WHERE first = 2", "batches"),
        ("UPDATE totals SET next = next + 64", "totals"),
        ("UPDATE totals SET payloads = payloads + 32", "totals"),
    ],
)
def test_a_flipped_bit_in_a_small_table_is_repaired(path: Path, statement: str, table: str) -> None:
    """Batches would be sent under other keys, and their payloads stored twice."""
    change(path, statement)
    assert table in {one.table for one in verified(path)}
    with closing(Database(path)) as database:
        assert [(one.table, one.payloads) for one in new_findings(database)] == [(table, 0)]
        one = sealed(database, 2)
        assert ([each.seq for each in one.jobs], one.key) == ([2, 3, 4], "k2")
        assert (database.totals.next, database.totals.payloads) == (10, 9)
    assert verified(path) == []


def test_a_lost_batch_refuses_the_start(path: Path) -> None:
    """Its object may be in the store: with other jobs its members would get another key."""
    change(path, "UPDATE batches SET last = 9, key = 'something else' WHERE first = 2")
    for _ in range(2):
        with pytest.raises(StartError, match="not known which jobs are sealed"):
            Database(path)
    assert "batches" in {one.table for one in verified(path)}


@pytest.mark.parametrize(
    ("table", "altered"),
    [
        ("batches", "last = 9, key = 'x' WHERE first = 0"),
        ("stored", "first = -77 WHERE last = 0"),
        ("stored", f"first = 77 WHERE last = {ABOVE_ALL}"),
    ],
)
def test_an_altered_first_or_last_row_hides_nothing(path: Path, table: str, altered: str) -> None:
    """A start would be refused although all other rows are there."""
    with closing(Database(path)) as database:
        accepted(database, 300, first=10)
        unpack(database)
        database.commit([Settle(batch(*database.page(9, 300, 99_999), sealed=False))])
        image = killed(path, "killed")
    change(image, f"UPDATE {table} SET {altered}", "UPDATE totals SET keys = keys + 3")
    with closing(Database(image)) as again:
        assert table in {one.table for one in new_findings(again)}
        assert [one.seq for one in again.page(0, 99, 9999)] == [1, *range(5, 10)]
        assert sealed(again, 2).key == "k2"
    assert verified(image) == []


def test_a_row_of_another_table_is_no_altered_first_row(path: Path) -> None:
    """Its page may hide others: payloads that are in the store would be stored again."""
    change(path, "UPDATE stored SET first = 'default' WHERE last = 0", "DELETE FROM totals")
    with pytest.raises(StartError, match="stored already"):
        Database(path)


def test_jobs_of_a_lost_dead_letter_wait_again(path: Path) -> None:
    """Its payloads would stay in the journal for ever, and no command would show them."""
    with closing(Database(path)) as database:
        database.commit([Bury(sealed(database, 2), "C", "r")])
    change(path, "UPDATE dead SET last = 9, reason = 'something else'")
    with closing(Database(path)) as database:
        assert [one.table for one in new_findings(database)][:1] == ["dead"]
        assert [one.seq for one in database.page(0, 99, 9999)] == [*range(1, 10)]
        assert database.totals.jobs == 9


def test_the_start_after_a_dead_letter_is_lost_is_not_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large file the totals counted its jobs only at the end of the backlog."""
    with closing(Database(path)) as database:
        database.commit([Bury(sealed(database, 2), "C", "r")])
    change(path, "UPDATE dead SET last = 9, reason = 'something else'")
    with monkeypatch.context() as large:
        large.setattr(file_check, "MOST_CHECKED", 0)
        Database(path).close()
    with closing(Database(path)) as database:
        assert new_findings(database) == []
        assert database.totals.jobs == 9
    assert verified(path) == []


def test_damaged_rows_without_a_dead_letter_get_a_new_one(path: Path) -> None:
    """The rows would stay in the journal for ever, and no command would show them."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    with closing(Database(path)) as database:
        database.page(0, 99, 9999)
    change(path, "DELETE FROM dead")
    with closing(Database(path)) as database:
        (finding,) = new_findings(database)
        assert "dead letter that is lost" in finding.reason
    assert len(verified(path)) == 1


def test_lost_totals_are_counted_again(path: Path) -> None:
    """The daemon would not start, or give a new job the number of an old one."""
    change(path, "UPDATE totals SET next = 3, jobs = 1, payloads = 77, bytes = 8")
    with closing(Database(path)) as database:
        assert [one.table for one in new_findings(database)] == ["totals"]
        assert (database.totals.next, database.totals.jobs, database.totals.payloads) == (10, 9, 9)
    change(path, "DELETE FROM totals")
    with closing(Database(path)) as database:
        assert database.totals.bytes == 18 + 9 * 64
    assert verified(path) == []


def test_a_damaged_layout_is_replaced_by_the_current_settings(path: Path) -> None:
    """The daemon would not start, or send objects under keys that no setting defines."""
    change(path, "UPDATE layouts SET template = 'no field', host = 'x'")
    with closing(Database(path)) as database:
        ((_, layout),) = database.layouts(_OTHER)
        assert layout == _OTHER
        assert [one.table for one in new_findings(database)] == ["layouts"]


def test_damaged_idempotency_keys_are_reported_and_still_known(path: Path) -> None:
    """A retried request would be stored twice without a message."""
    with closing(Database(path)) as database:
        database.commit([append(10, key=b"k" * 16)])
    change(path, "UPDATE answers SET id = 'no id', payloads = 'x'")
    assert [one.table for one in verified(path)] == ["answers"]
    with closing(Database(path)) as database:
        request = append(11, key=b"k" * 16, like=10)
        database.commit([request])
        # The key itself is intact, so the request is recognized.
        assert request.earlier == request.receipt
        assert request.jobs == []


def test_a_flipped_bit_is_found_in_every_column() -> None:
    """A wrong repair would be worse than none."""
    row = (5, 17, "dt=2026-01-01/x.ndjson", "none", "ndjson-1")
    crc = of_values(row)
    wrong = [
        (4, *row[1:]),
        (row[0], 17 - 128, *row[2:]),
        (*row[:2], "dt=2026-01-01/y.ndjson", *row[3:]),
        (*row[:3], "nonm", row[4]),
    ]
    for one in wrong:
        assert small_tables.without_flipped_bit(small_tables.BATCHES, one, crc) == row
    assert small_tables.without_flipped_bit(small_tables.BATCHES, row, crc ^ 64) == row
    assert small_tables.without_flipped_bit(small_tables.BATCHES, (4, 18, *row[2:]), crc) is None
