"""Layouts: after a crash, an object is sent to the same key, even if the settings have changed."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Settle
from payloadd.model.layout import Layout, Layouts
from tests.support.journal import append, batch, id_of, job

if TYPE_CHECKING:
    from payloadd.model.job import Job

PLAIN = Layout("{date}/{id}", "", "none", alone=True)
BATCHED = Layout("{date}/{id}", "", "none", alone=False)
HOSTED = Layout("{host}/{id}", "web-1", "gzip", alone=True)
MOVED = Layout("{host}/{id}", "web-2", "gzip", alone=True)
ALL = (PLAIN, BATCHED, HOSTED, MOVED)


def test_the_layout_of_a_job_decides_its_key_format_and_seal() -> None:
    """Readers would not find objects by date, host and suffix."""
    layouts = Layouts([(1, PLAIN), (3, HOSTED), (5, BATCHED), (6, MOVED)])
    batches = [layouts.batch([job(seq)]) for seq in range(1, 8)]
    assert [one.key for one in batches] == [
        f"2024-01-01/{id_of(1)}",
        f"2024-01-01/{id_of(2)}",
        f"web-1/{id_of(3)}.gz",
        f"web-1/{id_of(4)}.gz",
        f"2024-01-01/{id_of(5)}",
        f"web-2/{id_of(6)}.gz",
        f"web-2/{id_of(7)}.gz",
    ]
    assert [one.sealed for one in batches] == [False] * 4 + [True] + [False] * 2
    assert [one.format_name for one in batches[2:5]] == ["gzip", "gzip", "none"]


def test_the_key_of_a_batch_depends_on_its_first_job() -> None:
    """A replay with other members would store payloads again under another key."""
    one = Layouts([(1, BATCHED)]).batch([job(4), job(5)])
    assert one.key == f"2024-01-01/{id_of(4)}"
    assert [member.seq for member in one.jobs] == [4, 5]


def all_jobs(database: Database) -> list[Job]:
    """Return all jobs of the journal file."""
    return database.page(0, 1000, 10**6)


runs = st.lists(
    st.tuples(st.sampled_from(ALL), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=6
)


@pytest.mark.no_cover
@settings(max_examples=30)
@given(runs)
def test_a_job_keeps_its_key_when_the_settings_change(
    runs_: list[tuple[Layout, int, int]],
) -> None:
    """After a crash, a new KEY_TEMPLATE or host name would store payloads twice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j"
        keys: dict[int, str] = {}
        number = 0
        for layout, new, stored in runs_:
            with closing(Database(path)) as database:
                layouts = Layouts(database.layouts(layout))
                assert {one.seq: layouts.batch([one]).key for one in all_jobs(database)} == keys
                if new:
                    request = append(number + 1, count=new)
                    number += new
                    database.commit([request])
                    assert all(layouts.layout_of(one.seq) == layout for one in request.jobs)
                    keys |= {one.seq: layouts.batch([one]).key for one in request.jobs}
                # Out of order, as uploads end: the layout of the oldest job that is left is kept.
                for one in all_jobs(database)[::-2][:stored]:
                    database.commit([Settle(batch(one, sealed=False))])
                    del keys[one.seq]


def kept_layouts(path: Path) -> list[int]:
    """Return the first ``seq`` of each layout in the journal file."""
    with closing(sqlite3.connect(path)) as other:
        return [row[0] for row in other.execute("SELECT first FROM layouts ORDER BY first")]


def test_layouts_without_jobs_are_deleted(tmp_path: Path) -> None:
    """Layouts would accumulate if the host name changes with every start."""
    path = tmp_path / "j"
    for number in range(1, 13):
        with closing(Database(path)) as database:
            database.layouts(ALL[number % len(ALL)])
            database.commit([append(number)])
            waiting = all_jobs(database)
            assert kept_layouts(path) == [one.seq for one in waiting]
            if len(waiting) == 4:
                database.commit([Settle(batch(one, sealed=False)) for one in waiting[:3]])


def test_an_unchanged_layout_is_written_once(tmp_path: Path) -> None:
    """Every start would write, and a start on a full disk would fail."""
    path = tmp_path / "j"
    for number in range(1, 4):
        with closing(Database(path)) as database:
            assert database.layouts(PLAIN) == [(1, PLAIN)]
            database.commit([append(number)])
    assert kept_layouts(path) == [1]


def test_a_layout_without_jobs_is_replaced_by_the_next_layout(tmp_path: Path) -> None:
    """One job would have two layouts, and its key would depend on the order of the rows."""
    path = tmp_path / "j"
    for layout in (PLAIN, BATCHED, HOSTED):
        with closing(Database(path)) as database:
            assert database.layouts(layout) == [(1, layout)]
    with closing(Database(path)) as database:
        assert database.layouts(HOSTED) == [(1, HOSTED)]
