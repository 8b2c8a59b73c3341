"""Damage beside the jobs is repaired, or costs what an operator is told."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.api import Bury
from payloadd.journal.sqlite import small_tables
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.database import Database
from payloadd.model.layout import Layout
from tests.journal.sqlite.damaging import change, told, verified
from tests.support.journal import append, sealed

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.usefixtures("nine_jobs")

_LAYOUT: Final = Layout("{id}.ndjson", "", "none", alone=True)


_OTHER: Final = Layout("other/{id}.ndjson", "", "none", alone=True)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE batches SET last = last + 16", "batches"),
        ("UPDATE batches SET key = 'c2'", "batches"),
        ("UPDATE batches SET crc = crc + 1", "batches"),
        ("UPDATE totals SET next = next + 64", "totals"),
        ("UPDATE totals SET payloads = payloads + 32", "totals"),
    ],
)
def test_one_flipped_bit_beside_the_jobs_is_repaired(
    path: Path, statement: str, table: str
) -> None:
    """Batches would be sent under other keys, which doubles what is in the store already."""
    change(path, statement)
    assert table in {one.table for one in verified(path)}
    with closing(Database(path)) as database:
        assert [(one.table, one.payloads) for one in told(database)] == [(table, 0)]
        one = sealed(database, 2)
        assert ([each.seq for each in one.jobs], one.key) == ([2, 3, 4], "k2")
        assert (database.totals.next, database.totals.payloads) == (10, 9)
    assert verified(path) == []


def test_a_batch_that_is_lost_is_sent_as_new(path: Path) -> None:
    """Its payloads would never be stored."""
    change(path, "UPDATE batches SET last = 9, key = 'something else'")
    with closing(Database(path)) as database:
        assert [one.table for one in told(database)] == ["batches"]
        assert database.sealed_firsts == []
        assert [one.seq for one in database.page(0, 99, 9999)] == [*range(1, 10)]


def test_a_dead_letter_that_is_lost_is_tried_again(path: Path) -> None:
    """Its payloads would lie in the journal for ever, and nothing would show them."""
    with closing(Database(path)) as database:
        database.commit([Bury(sealed(database, 2), "C", "r")])
    change(path, "UPDATE dead SET last = 9, reason = 'something else'")
    with closing(Database(path)) as database:
        assert [one.table for one in told(database)][:1] == ["dead"]
        assert [one.seq for one in database.page(0, 99, 9999)] == [*range(1, 10)]
        assert database.totals.jobs == 9


def test_damaged_rows_whose_dead_letter_is_lost_get_another(path: Path) -> None:
    """What is left of them would lie in the journal for ever, and nothing would show it."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    with closing(Database(path)) as database:
        database.page(0, 99, 9999)
    change(path, "DELETE FROM dead")
    with closing(Database(path)) as database:
        (finding,) = told(database)
        assert "dead letter that is gone" in finding.reason
    assert len(verified(path)) == 1


def test_totals_that_are_lost_are_counted(path: Path) -> None:
    """The daemon would not start, or take a new job for an old one."""
    change(path, "UPDATE totals SET next = 3, jobs = 1, payloads = 77, bytes = 8")
    with closing(Database(path)) as database:
        assert [one.table for one in told(database)] == ["totals"]
        assert (database.totals.next, database.totals.jobs, database.totals.payloads) == (10, 9, 9)
    change(path, "DELETE FROM totals")
    with closing(Database(path)) as database:
        assert database.totals.bytes == 18 + 9 * 64
    assert verified(path) == []


def test_a_layout_that_is_damaged_is_replaced_by_that_of_now(path: Path) -> None:
    """The daemon would not start, or send objects under keys that no setting asks for."""
    change(path, "UPDATE layouts SET template = 'no field', host = 'x'")
    with closing(Database(path)) as database:
        ((_, layout),) = database.layouts(_OTHER)
        assert layout == _OTHER
        assert [one.table for one in told(database)] == ["layouts"]


def test_idempotency_keys_that_are_damaged_are_found(path: Path) -> None:
    """A request that is tried again would be stored twice, and nothing would say why."""
    with closing(Database(path)) as database:
        database.commit([append(10, key=b"k" * 16)])
    change(path, "UPDATE answers SET id = 'no id', payloads = 'x'")
    assert [one.table for one in verified(path)] == ["answers"]
    with closing(Database(path)) as database:
        request = append(11, key=b"k" * 16)
        database.commit([request])
        # The key is known, which matters most.
        assert request.earlier == request.receipt
        assert request.jobs == []


def test_a_flipped_bit_is_found_in_every_column() -> None:
    """A repair that guesses wrong would be worse than none."""
    row = (5, 17, "dt=2026-01-01/x.ndjson", "none", "ndjson-1")
    crc = of_values(row)
    wrong = [
        (4, *row[1:]),
        (row[0], 17 - 128, *row[2:]),
        (*row[:2], "dt=2026-01-01/y.ndjson", *row[3:]),
        (*row[:3], "nonm", row[4]),
    ]
    for one in wrong:
        assert small_tables._before_a_flip(small_tables.BATCHES, one, crc) == row
    assert small_tables._before_a_flip(small_tables.BATCHES, row, crc ^ 64) == row
    assert small_tables._before_a_flip(small_tables.BATCHES, (4, 18, *row[2:]), crc) is None
