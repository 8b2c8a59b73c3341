"""Damage in a running daemon: each payload is stored once or reported, never both."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Settle
from payloadd.journal.sqlite.salvage import damaged_files
from tests.journal.sqlite.damaging import (
    lose_pages,
    new_findings,
    repair_without_pause,
    verified,
)
from tests.support.journal import (
    append,
    batch,
    contents,
    id_of,
    job,
    make_rig,
    open_rig,
    unpack,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.model.job import Batch, Job
    from tests.support.journal import JournalRig

_COUNT: Final = 600


def damaged_payloads(path: Path) -> int:
    """Return the number of payloads in dead letters with the code DAMAGED."""
    with Inspection.open(path.parent) as inspection:
        return sum(one.payloads for one in inspection.dead() if one.code == CODE)


def store(rig: JournalRig, one: Batch) -> None:
    """Settle a batch as a worker does after the upload."""
    rig.journal.settle(one)
    rig.accounting.settle(one)


async def settled(rig: JournalRig) -> None:
    """Wait until all batches that were settled so far are committed."""
    await rig.journal.pulse()


async def fill(rig: JournalRig) -> list[Job]:
    """Accept _COUNT jobs; return the 200 of them that fit into the channel."""
    for number in range(1, _COUNT, 50):
        await rig.accept(number, count=50)
    return [rig.channel.receive_nowait() for _ in range(200)]


async def test_each_payload_is_stored_or_reported_in_every_state(path: Path) -> None:
    """Totals would become negative, and stored payloads would be listed as DAMAGED."""
    rig = make_rig(path, max_jobs=200)
    repair_without_pause(rig.database)
    with trio.fail_after(60):
        async with rig.journal.running():
            jobs = await fill(rig)
            before_seal, in_store, settling = jobs[:20], jobs[20:40], jobs[40:60]
            dying, queued = jobs[60:80], jobs[80:]
            for members in (in_store, settling, dying):
                await rig.journal.seal(batch(*members))
            lost = lose_pages(rig.database, path, map(id_of, (1, 30, 50, 70, 150, 300)))
            assert lost > 2
            # Both are part of the commit that reads a damaged page.
            store(rig, batch(*settling))
            rig.journal.bury(batch(*dying), "KeyTooLong", "too long")
            rig.accounting.bury(batch(*dying))
            await rig.accept(_COUNT + 1)
            await settled(rig)
            missing = rig.database.damaged_payloads
            assert 0 < missing < 400
            totals = rig.database.totals
            assert totals.payloads == totals.jobs == _COUNT + 1 - 40 - missing
            store(rig, batch(*in_store))
            for one in [*before_seal, *queued]:
                store(rig, batch(one, sealed=False))
            for one in await rig.journal.page(200, 1000, 10**6):
                store(rig, batch(one, sealed=False))
            await settled(rig)
            await until(lambda: not rig.database.deletion.ranges)
            totals = rig.database.totals
            assert (totals.jobs, totals.payloads, totals.bytes) == (0, 0, 0)
            assert rig.accounting.stored == _COUNT + 1 - 20 - missing
            assert damaged_payloads(path) == missing == rig.database.damaged_payloads
        await rig.journal.aclose()
    assert {one.table for one in verified(path)} == {"dead"}
    # The rows of the dead letter were restored, so it can be retried.
    with Inspection.open(path.parent) as inspection:
        (letter,) = [one for one in inspection.dead() if one.code != CODE]
        assert inspection.lines(letter.id) == b"".join(one.lines for one in dying)


async def test_jobs_that_the_refill_has_read_are_restored(path: Path) -> None:
    """Payloads that the refill has read would be listed as DAMAGED and stored too."""
    rig = make_rig(path, max_jobs=200)
    repair_without_pause(rig.database)
    with trio.fail_after(60):
        async with rig.journal.running(), trio.open_nursery() as nursery:
            jobs = await fill(rig)
            # The refill reads a page and waits for space: workers hold all bytes.
            rig.channel.max_bytes = rig.channel.bytes_held
            rig.channel.release(rig.channel.bytes_held)
            rig.channel.hold(rig.channel.max_bytes // 2)
            nursery.start_soon(rig.feeder.refill, rig.journal)
            await until(lambda: len(rig.accounting.jobs()) > 200)
            waiting = rig.accounting.jobs()[200:]
            lose_pages(rig.database, path, [one.id for one in waiting])
            for one in jobs:
                store(rig, batch(one, sealed=False))
            await settled(rig)
            await rig.accept(_COUNT + 1)
            nursery.cancel_scope.cancel()
        await rig.journal.aclose()
    with closing(Database(path)) as database:
        found = database.page(0, 1000, 10**6)
        assert contents(waiting) == contents(found[: len(waiting)])
        assert database.totals.payloads == len(found)


async def test_jobs_between_the_thread_and_the_event_loop_are_restored(path: Path) -> None:
    """A job on the way from the journal's thread to the event loop would be reported as lost."""
    async with open_rig(path) as rig:
        await rig.accept(1, count=300)
        rig.receive_all()
        rig.accounting._in_memory.clear()
        jobs = rig.database.page(0, 300, 10**6)  # as in the thread
        lose_pages(rig.database, path, [one.id for one in jobs])
        await rig.accept(301)
        assert damaged_payloads(path) == 0
        assert rig.database.totals.payloads == 301
        assert contents(await rig.journal.page(0, 300, 10**6)) == contents(jobs)
        assert rig.database.handed == {}


async def test_jobs_that_are_committed_and_not_offered_yet_are_in_memory(path: Path) -> None:
    """A job of a large request would be stored and listed as DAMAGED."""
    async with open_rig(path) as rig:
        request = append(1, count=200)
        rig.database.commit([request])
        rig.journal._in_memory.begin_commit([request, Settle(batch(job(7)))])
        rig.journal._in_memory.committed()
        found = rig.database.jobs_in_memory()
        assert contents(found) == contents(request.jobs)
        rig.journal._in_memory.begin_commit([append(900), Settle(batch(job(7)))])
        assert contents(rig.database.jobs_in_memory()) == contents([job(7)])
        rig.journal._in_memory.end_commit()
        assert list(rig.database.jobs_in_memory()) == []


async def test_a_repair_keeps_the_count_of_evicted_keys(path: Path) -> None:
    """A counter that decreases makes every rate of it wrong."""
    async with open_rig(path) as rig:
        rig.database.most_keys = 2
        for number in range(1, 101):
            await rig.accept(number, key=b"%016d" % number)
        evicted = rig.database.totals.evicted
        assert evicted > 0
        jobs = [rig.channel.receive_nowait() for _ in range(100)]
        assert lose_pages(rig.database, path, [one.id for one in jobs])
        for one in jobs:
            store(rig, batch(one, sealed=False))
        await settled(rig)
        totals = rig.database.totals
        assert (totals.jobs, totals.keys) == (0, 2)
        assert totals.evicted == evicted
        await rig.accept(101)
        assert rig.metrics.keys_evicted.value == evicted


def test_the_newest_damaged_files_are_kept(path: Path) -> None:
    """A second repair would remove the first damaged file, which may have readable payloads."""
    with closing(Database(path)) as database:
        repair_without_pause(database)
        names = []
        for number in range(1, 1 + 5 * 200, 200):
            request = append(number, count=200)
            database.commit([request])
            unpack(database)
            lose_pages(database, path, [one.id for one in request.jobs])
            assert database.page(number - 1, 999, 10**6) == []
            reasons = [one.reason for one in new_findings(database)]
            names.append([one for one in reasons if "kept" in one])
        assert [one.name for one in damaged_files(path.parent)] == [
            f"journal.db.damaged-{number}" for number in (3, 4, 5)
        ]
    assert names[0] == ["the damaged file is kept as journal.db.damaged-1"]
    assert names[4] == [
        "the damaged file is kept as journal.db.damaged-5",
        "journal.db.damaged-2 was removed: 3 damaged files are kept",
    ]
