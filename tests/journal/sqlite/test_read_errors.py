"""Unreadable sectors: their jobs become dead letters, and jobs after them are stored."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.journal.sqlite import file_check, segments
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Seal, Settle
from payloadd.journal.sqlite.read_errors import ReadErrors
from payloadd.journal.sqlite.segments import FOLDER
from tests.journal.sqlite.damaging import PAGE, leaves, new_findings, verified
from tests.support.journal import (
    append,
    batch,
    compact_segments,
    contents,
    id_of,
    job,
    open_rig,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.bad_sectors import BadSectors

_QUICK = Tuning(retry_interval=0.02)

pytestmark = pytest.mark.usefixtures("quick_read_errors")


def segment(path: Path) -> Path:
    """Return the only segment."""
    return segments.path_of(path.parent / FOLDER, 1)


def fill(path: Path, count: int) -> None:
    """Make a journal of so many jobs, with all of it in its files."""
    with closing(Database(path)) as database:
        database.commit([append(1, count=count)])


def letters(path: Path) -> list[tuple[str, str, int]]:
    """Return code, id and payloads of each dead letter."""
    with Inspection.open(path.parent) as inspection:
        return [(one.code, one.id, one.payloads) for one in inspection.dead()]


@pytest.mark.usefixtures("all_large")
async def test_a_job_that_stays_unreadable_becomes_a_dead_letter(
    path: Path, bad: BadSectors
) -> None:
    """One bad sector would keep all payloads after it from being stored."""
    fill(path, 9)
    bad.add(segment(path), 2 * 4, 1)  # two bytes a job: number 5
    async with open_rig(path, tuning=_QUICK) as rig:
        found = await rig.journal.page(0, 99, 9999)
        assert contents(found) == contents([job(n) for n in range(1, 10) if n != 5])
        assert bad.errors >= 5
        assert not rig.health.troubles
        assert rig.database.totals.payloads == 8
    assert letters(path) == [(CODE, str(id_of(5)), 1)]
    (finding,) = new_findings(rig.database)
    assert (finding.first, finding.last) == (5, 5)
    assert "EIO" in finding.reason


@pytest.mark.usefixtures("all_large")
async def test_a_job_that_is_unreadable_for_a_moment_is_stored(
    path: Path, bad: BadSectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loose cable would cost payloads that are on the disk."""
    monkeypatch.setattr(ReadErrors, "seconds", 60.0)
    fill(path, 9)
    bad.add(segment(path), 0, 4)
    pages: list[int] = []
    async with open_rig(path, tuning=_QUICK) as rig, trio.open_nursery() as nursery:

        async def page() -> None:
            pages.append(len(await rig.journal.page(0, 99, 9999)))

        nursery.start_soon(page)
        await until(lambda: bad.errors > 10)
        assert "journal_read" in rig.health.troubles
        bad.clear()
        await until(lambda: pages)
        assert pages == [9]
        assert not rig.health.troubles
    assert letters(path) == []


@pytest.mark.usefixtures("all_large")
async def test_a_bad_area_of_many_jobs_delays_the_backlog_once(
    path: Path, bad: BadSectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad area of a MiB would delay the backlog by seconds for each of its payloads."""
    # Errors last from the fifth on: at the beginning of a page, which is read in halves each time.
    monkeypatch.setattr(ReadErrors, "seconds", 0.0)
    fill(path, 9)
    bad.add(segment(path), 0, 2 * 7)
    async with open_rig(path, tuning=_QUICK) as rig:
        assert contents(await rig.journal.page(0, 2, 9999)) == contents([job(8), job(9)])
    found = [(id_, payloads) for _, id_, payloads in sorted(letters(path))]
    assert found == [(str(id_of(first)), min(2, 8 - first)) for first in (1, 3, 5, 7)]


@pytest.mark.usefixtures("all_large")
async def test_readable_members_of_a_sealed_batch_keep_their_key(
    path: Path, bad: BadSectors
) -> None:
    """A replay would wait for ever for one member, and all jobs after it too."""
    with closing(Database(path)) as database:
        database.commit([append(1, count=9), Seal(batch(job(2), job(3), job(4)))])
    bad.add(segment(path), 2 * 2, 1)
    async with open_rig(path, tuning=_QUICK) as rig:
        found = await rig.journal.sealed()
        assert found is not None
        assert (found.key, contents(found.jobs)) == ("k2", contents([job(2), job(4)]))
    assert letters(path) == [(CODE, str(id_of(3)), 1)]


@pytest.mark.usefixtures("all_large")
def test_compaction_leaves_unreadable_jobs(path: Path, bad: BadSectors) -> None:
    """A read that takes seconds to fail would delay a commit each second."""
    with closing(Database(path)) as database:
        request = append(1, count=20)
        database.commit([request])
        database.commit([Settle(batch(one, sealed=False)) for one in request.jobs[1:]])
    bad.add(segment(path), 0, 1)
    with closing(Database(path)) as database:
        database.compaction.recheck_all()
        for _ in range(4):
            compact_segments(database)
        assert bad.errors
        assert not database.compaction.has_work


@pytest.mark.usefixtures("all_large")
def test_a_short_segment_does_not_stop_compaction(path: Path) -> None:
    """The disk space of stored jobs would never be freed."""
    fill(path, 20)
    content = segment(path).read_bytes()
    segment(path).write_bytes(content[:-3])
    with closing(Database(path)) as database:
        jobs = database.page(0, 99, 99)
        assert [one.seq for one in jobs] == [*range(1, 20)]
        database.commit([Settle(batch(one, sealed=False)) for one in jobs[:-1]])
        database.compaction.recheck_all()
        for _ in range(4):
            compact_segments(database)
        assert not database.compaction.has_work
        assert contents(database.page(18, 9, 99)) == [(19, id_of(19), b"19\n", 1)]
    assert [one.table for one in verified(path)] == ["dead"]


async def test_a_page_that_stays_unreadable_costs_its_own_rows_only(
    path: Path, bad: BadSectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad sector of journal.db would keep the backlog from being stored."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    fill(path, 2000)
    (page,) = leaves(path, [id_of(1000)])
    bad.add(path, (page - 1) * PAGE, PAGE)
    async with open_rig(path, tuning=_QUICK) as rig:
        jobs = await rig.journal.page(0, 9999, 10**7)
        assert bad.errors >= 5
        assert 1700 < len(jobs) < 2000
        await rig.accept(2001)
        await until(lambda: not rig.health.troubles)
        assert rig.database.totals.payloads == len(jobs) + 1
    assert sum(payloads for _, _, payloads in letters(path)) == 2000 - len(jobs)
    assert {one.table for one in verified(path)} == {"dead"}


async def test_a_page_that_is_unreadable_for_a_moment_is_read(
    path: Path, bad: BadSectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite reports it as damaged: its rows would be given up at the first error."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    monkeypatch.setattr(ReadErrors, "seconds", 60.0)
    fill(path, 2000)
    (page,) = leaves(path, [id_of(1000)])
    bad.add(path, (page - 1) * PAGE, PAGE)
    async with open_rig(path, tuning=_QUICK) as rig, trio.open_nursery() as nursery:
        counts: list[int] = []

        async def read() -> None:
            counts.append(len(await rig.journal.page(0, 9999, 10**7)))

        nursery.start_soon(read)
        await until(lambda: bad.errors > 10)
        bad.clear()
        await until(lambda: counts)
        assert counts == [2000]
    assert letters(path) == []


@pytest.mark.parametrize("small", [True, False])
def test_a_start_gives_up_the_rows_of_an_unreadable_page(
    path: Path, bad: BadSectors, monkeypatch: pytest.MonkeyPatch, *, small: bool
) -> None:
    """The daemon would not start, or give rows up at the first error."""
    if not small:
        monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    fill(path, 2000)
    (page,) = leaves(path, [id_of(1000)])
    bad.add(path, (page - 1) * PAGE, PAGE)
    assert any(one.table == "jobs" for one in verified(path))
    bad.errors = 0
    with closing(Database(path)) as database:
        if small:
            assert bad.errors >= 5
            jobs = database.page(0, 9999, 10**7)
            assert 1700 < len(jobs) < 2000
            assert database.damaged_payloads == 2000 - len(jobs)


@pytest.mark.usefixtures("all_large")
def test_verify_lists_unreadable_jobs(path: Path, bad: BadSectors) -> None:
    """An operator would get one error, without the jobs that are affected."""
    fill(path, 9)
    bad.add(segment(path), 8, 1)
    found = verified(path)
    assert [(one.table, one.first) for one in found] == [("jobs", 5)]
    assert "EIO" in found[0].reason
