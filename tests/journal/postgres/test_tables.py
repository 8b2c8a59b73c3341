"""Rows are never deleted one by one: tables are emptied, and do not grow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from payloadd.journal.api import Receipt
from payloadd.journal.postgres import lane as lanes
from payloadd.journal.postgres.inspection import PostgresInspection
from tests.journal.opener import ALL
from tests.journal.postgres.rig import member
from tests.support.databases import new_database, server
from tests.support.journal import batch, contents, id_of, part, until

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def url() -> str:
    """Return the URL of a new journal."""
    return new_database()


def rows(url: str) -> list[int]:
    """Return how many rows each table of lane 1 has."""
    name = url.rpartition("/")[2]
    found: list[Sequence[object]] = []
    for number in range(3):
        found += server().execute(f"SELECT count(*) FROM payloadd.rows_1_{number}", name)
    return [int(str(count)) for (count,) in found]


async def test_tables_of_stored_jobs_are_emptied_in_turns(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database would grow with every payload, or lose those of a table that is emptied."""
    monkeypatch.setattr(lanes, "PART_BYTES", 20_000)
    async with member(url) as one:
        kept = []
        for number in range(1, 40):
            lines = [part(10 * number)._replace(lines=b"%03000d\n" % number)]
            await one.outcome_of(Receipt(id_of(10 * number), 1), lines)
            if number % 13 == 0:
                kept.append(one.pipeline.received[-1])
            else:
                one.journal.settle(batch(one.pipeline.received[-1], sealed=False))
            own = one.shared.session.own
            await until(lambda: own.part_bytes < 20_000)  # noqa: B023
            if number == 20:
                await one.journal.pulse()
                assert contents(await one.journal.page(*ALL)) == contents(kept)
                one.journal.settle(batch(kept.pop(0), sealed=False))
        # A table is full with 7 of these rows, and is emptied before it is used again.
        assert rows(url) == [7, 7, 4]
        assert contents(await one.journal.page(*ALL)) == contents(kept)
    async with member(url) as one:
        assert contents(await one.journal.page(*ALL)) == contents(kept)
        assert one.pipeline.payloads["opened"] == len(kept)


async def test_jobs_of_a_damaged_row_become_a_dead_letter(url: str) -> None:
    """Wrong bytes would be stored, or the backlog would stop at the damage."""
    name = url.rpartition("/")[2]
    async with member(url) as one:
        await one.accept(1, count=2)
        await one.accept(10, count=3)
        await one.accept(20, count=2)
    server().execute(
        "UPDATE payloadd.rows_1_0 SET body = set_byte(body, length(body) - 2, 88) WHERE last = 5",
        name,
    )
    with PostgresInspection.open(url) as inspection:
        (found,) = inspection.verify()
        assert (found.first, found.last) == (3, 5)
        assert "does not match" in str(found)
    async with member(url) as one:
        seqs = [job.seq for job in await one.journal.page(*ALL)]
        assert seqs == [1, 2, 6, 7]
        assert one.pipeline.payloads["damaged"] == 3
    with PostgresInspection.open(url) as inspection:
        (letter,) = inspection.dead()
        assert (letter.code, letter.payloads) == ("DAMAGED", 3)
        assert inspection.lines(letter.id) == b"10\n11\n1X\n"
        assert inspection.status().payloads == 4
        assert inspection.retry([]) == 0
        assert inspection.drop([letter.id]) == 1


async def test_large_requests_are_cut_into_rows(url: str) -> None:
    """A page of the backlog would take more memory than the queue allows."""
    lines = [part(number)._replace(lines=b"%0400000d\n" % number) for number in range(1, 7)]
    async with member(url) as one:
        await one.outcome_of(Receipt(id_of(1), 6), lines)
        jobs = one.pipeline.received
        assert rows(url) == [3, 0, 0]
        page = await one.journal.page(2, 100, 500_000)
        assert contents(page) == contents(jobs[2:3])
        assert contents(await one.journal.page(*ALL)) == contents(jobs)


async def test_a_few_old_jobs_do_not_keep_a_table(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that the store does not take for a week would keep the payloads of the week."""
    monkeypatch.setattr(lanes, "PART_BYTES", 20_000)
    async with member(url) as one:
        await one.accept(1, count=6)
        kept = list(one.pipeline.received)
        await one.journal.seal(batch(*kept[1:3]))
        for number in range(1, 50):
            lines = [part(10 * number)._replace(lines=b"%05000d\n" % number)]
            await one.outcome_of(Receipt(id_of(10 * number), 1), lines)
            one.journal.settle(batch(one.pipeline.received[-1], sealed=False))
            own = one.shared.session.own
            await until(lambda: own.part_bytes < 20_000)  # noqa: B023
        await one.journal.pulse()
        assert rows(url) == [1, 5, 4]
        assert contents(await one.journal.page(*ALL)) == contents(kept)
    async with member(url) as one:
        sealed = await one.journal.sealed()
        assert sealed is not None
        assert contents(sealed.jobs) == contents(kept[1:3])
        assert contents(await one.journal.page(*ALL)) == contents([kept[0], *kept[3:]])


async def test_thousands_of_old_batches_take_no_memory(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch that the store does not take would cost memory, in each process that has it."""
    monkeypatch.setattr(lanes, "_MOST_RANGES", 10)
    async with member(url) as one:
        await one.accept(1, count=80)
        jobs = list(one.pipeline.received)
        old = [batch(job) for job in jobs[::2]]
        for each in old:
            await one.journal.seal(each)
        for job in jobs[1::2]:
            one.journal.settle(batch(job, sealed=False))
        one.pipeline.received.clear()
        stream = one.shared.session.own.stream(0)
        await until(lambda: stream.settled.low == 80)
        assert one.shared.session.own.payloads == 40
        found = [await one.journal.sealed() for _ in old]
        assert [each and contents(each.jobs) for each in found] == [
            contents(each.jobs) for each in old
        ]
        one.journal.settle(old[0])
        one.journal.bury(old[1], "C", "r")
    async with member(url) as one:
        assert one.pipeline.payloads["opened"] == 38
        found = [await one.journal.sealed() for _ in old[2:]]
        assert [each and contents(each.jobs) for each in found] == [
            contents(each.jobs) for each in old[2:]
        ]
        assert await one.journal.sealed() is None
        assert await one.journal.page(*ALL) == []
