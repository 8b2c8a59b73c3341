"""A journal whose disk fails, and a daemon that stops while the disk fails."""

from __future__ import annotations

import sqlite3
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final
from unittest.mock import Mock

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError
from payloadd.journal.sqlite.blocks import Blocks
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.operations import Append, Seal, Settle
from tests.support.journal import (
    TEST_TIMEOUT,
    append,
    batch,
    disk_full,
    make_rig,
    open_rig,
    unpack,
    until,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.journal import JournalRig

pytestmark = pytest.mark.usefixtures("anywhere")


_TUNING: Final = Tuning(retry_interval=0.02)


def io_error() -> Exception:
    """Return the error that SQLite raises when the disk is broken."""
    return sqlite3.OperationalError("disk I/O error")


def written(rig: JournalRig) -> list[type]:
    """Return the types of the committed operations, in order, without maintenance."""
    wanted = (Append, Seal, Settle)
    return [type(one) for ops in rig.database.commits for one in ops if isinstance(one, wanted)]


async def repair_disk(rig: JournalRig) -> None:
    """Let the disk work again, and return once the journal has noticed."""
    rig.database.write_error = rig.database.read_error = None
    await until(lambda: not rig.health.troubles)


@pytest.mark.parametrize("end", ["cancelled", "raised", "left"])
async def test_operations_behind_a_read_are_committed_at_the_end(tmp_path: Path, end: str) -> None:
    """Otherwise a drain leaves stored payloads in the journal, and they are uploaded again."""
    rig = make_rig(tmp_path / "j", tuning=_TUNING)
    with trio.fail_after(TEST_TIMEOUT), trio.CancelScope() as scope:
        try:
            async with rig.journal.running(), trio.open_nursery() as nursery:
                await rig.accept(1, count=2)
                jobs = [rig.channel.receive_nowait() for _ in range(2)]
                rig.database.hold_reads()
                nursery.start_soon(rig.journal.page, 0, 10, 100)
                await rig.database.held()
                rig.journal.settle(batch(jobs[0], sealed=False))
                nursery.start_soon(rig.accept, 3)  # its group waits for the thread
                await wait_all_tasks_blocked()
                rig.journal.bury(batch(jobs[1], sealed=False), "C", "r")
                trio.lowlevel.current_trio_token().run_sync_soon(rig.database.release_gate)
                if end == "raised":
                    raise ZeroDivisionError  # noqa: TRY301 - an error in the body
                (scope if end == "cancelled" else nursery.cancel_scope).cancel()
        except* ZeroDivisionError:
            assert end == "raised"
    assert rig.accounting.accepted == 3
    unpack(rig.database)
    rows = rig.database._connection.execute("SELECT seq FROM jobs").fetchall()
    assert rows == [(2,), (3,)]
    assert rig.database.totals.payloads == 1
    dead = rig.database._connection.execute("SELECT count(*) FROM dead").fetchone()
    assert dead == (1,)
    rig.database.close()


async def test_operations_of_a_failed_commit_precede_new_ones(tmp_path: Path) -> None:
    """Otherwise a batch is settled before it is sealed, and comes back without its jobs."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1, count=3)
        jobs = [rig.channel.receive_nowait() for _ in range(3)]
        rig.database.write_error = disk_full
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.journal.seal, batch(jobs[0]))
            await until(lambda: rig.database.failures > 1)
            nursery.start_soon(rig.journal.seal, batch(jobs[1]))
            await until(lambda: rig.database.failures > 3)
            rig.journal.settle(batch(jobs[2], sealed=False))
            failures = rig.database.failures
            await until(lambda: rig.database.failures > failures + 1)
            await repair_disk(rig)
        assert written(rig) == [Append, Seal, Seal, Settle]
        assert rig.database.totals.jobs == 2


async def test_a_failed_commit_refuses_requests_and_delays_seals(tmp_path: Path) -> None:
    """Otherwise a request in the commit of a seal hangs, or an upload begins without its seal."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1)
        job = rig.channel.receive_nowait()
        sealed = trio.Event()

        async def seal() -> None:
            await rig.journal.seal(batch(job))
            sealed.set()

        async def take(number: int) -> None:
            with pytest.raises(RefusedError) as caught:
                await rig.accept(number)
            refused.append((caught.value.code, caught.value.retry_after > 0))

        refused: list[tuple[str, bool]] = []
        rig.database.hold()
        rig.database.write_error = disk_full
        async with trio.open_nursery() as nursery:
            for number in range(2, 5):
                nursery.start_soon(take, number)
            await rig.database.held()
            nursery.start_soon(seal)
            for number in range(5, 8):
                nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
            rig.database.release_gate()
            await until(lambda: len(refused) == 6)
            await until(lambda: rig.database.failures > 5)
            assert not sealed.is_set()
            await repair_disk(rig)
        assert refused == [("DISK_ERROR", True)] * 6
        assert (rig.accounting.accepted, rig.database.totals.jobs) == (1, 1)
        assert written(rig) == [Append, Seal]


def _has_jobs(rig: JournalRig, jobs: int) -> bool:
    return rig.database.totals.jobs == jobs


async def test_a_dead_letter_without_space_does_not_keep_batches_from_being_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would stay full: what is stored could not be deleted."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1, count=3)
        jobs = [rig.channel.receive_nowait() for _ in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(Blocks, "unpack", Mock(side_effect=disk_full()))
            rig.journal.bury(batch(jobs[0], sealed=False), "C", "r")
            for one in jobs[1:]:
                jobs_left = rig.database.totals.jobs - 1
                rig.journal.settle(batch(one, sealed=False))
                await until(partial(_has_jobs, rig, jobs_left))
                assert 1 in rig.journal._in_memory.ending()
                # Otherwise ever more refused batches would be in memory.
                assert not rig.journal._disk.writable
        await until(lambda: not rig.health.troubles)
        assert (rig.database.totals.jobs, rig.database.totals.dead_payloads) == (0, 1)
    assert rig.accounting.accepted == 3


async def test_a_postponed_dead_letter_is_known_to_repairs(tmp_path: Path) -> None:
    """Its jobs would be reported as damaged, or read as a batch that no worker has."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1, count=2)
        one, two = (rig.channel.receive_nowait() for _ in range(2))
        rig.database.write_error = disk_full
        rig.journal.bury(batch(one, sealed=False), "C", "r")
        rig.journal.settle(batch(two, sealed=False))
        await until(lambda: bool(rig.journal._commit_queue.postponed))
        assert rig.journal._in_memory.ending() == {1, 2}
        assert {held.seq for held in rig.journal._in_memory.collect()} == {1, 2}
        await repair_disk(rig)
        await until(lambda: not rig.database.totals.jobs)


async def test_a_trouble_is_logged_once_and_so_is_its_end(tmp_path: Path) -> None:
    """Otherwise two log lines a second hide all others."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        with structlog.testing.capture_logs() as lines:
            rig.database.write_error = disk_full
            with pytest.raises(RefusedError):
                await rig.accept(1)
            await until(lambda: rig.database.failures > 5)
            await repair_disk(rig)
            await rig.accept(2)
        assert [line["event"] for line in lines] == ["journal_unavailable", "journal_available"]
        assert lines[0]["reason"] == "database or disk is full"


async def test_an_idle_journal_notices_that_the_disk_works_again(tmp_path: Path) -> None:
    """A load balancer sends no requests, so without a probe the trouble would never end."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        rig.database.write_error = io_error
        with pytest.raises(RefusedError):
            await rig.accept(1)
        await until(lambda: rig.database.failures > 3)
        await repair_disk(rig)
        assert rig.journal.refusal() is None
        assert (await rig.accept(2)).payloads == 1


async def test_no_page_is_read_while_the_disk_refuses_writes(tmp_path: Path) -> None:
    """Otherwise the whole backlog waits in memory to be settled."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1, count=3)
        rig.database.write_error = disk_full
        with pytest.raises(RefusedError):
            await rig.accept(4)
        pages: list[int] = []

        async def page() -> None:
            pages.append(len(await rig.journal.page(0, 10, 100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(page)
            await until(lambda: rig.database.failures > 4)
            rig.database.write_error = io_error
            await until(lambda: rig.health.troubles["journal"].reason == "disk I/O error")
            assert pages == []
            await repair_disk(rig)
        assert pages == [3]


async def test_an_unreadable_page_is_returned_once_it_can_be_read(tmp_path: Path) -> None:
    """Otherwise one failed read ends the daemon, or the backlog is never uploaded."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1, count=3)
        rig.database.read_error = io_error
        pages: list[int] = []

        async def page() -> None:
            pages.append(len(await rig.journal.page(0, 10, 100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(page)
            await until(lambda: rig.health.troubles)
            assert pages == []
            rig.database.read_error = None
        assert pages == [3]
        await until(lambda: not rig.health.troubles)


async def test_a_bug_ends_the_journal_and_is_no_disk_trouble(tmp_path: Path) -> None:
    """Otherwise a daemon with a bug answers 503 for ever and is not restarted."""
    rig = make_rig(tmp_path / "j", tuning=_TUNING)

    def bug() -> Exception:
        rig.database.write_error = None
        return ZeroDivisionError()

    async def run() -> None:
        async with rig.journal.running():
            rig.database.write_error = bug
            await rig.accept(1)

    with trio.fail_after(TEST_TIMEOUT), pytest.raises(BaseExceptionGroup) as caught:
        await run()
    assert caught.group_contains(ZeroDivisionError, depth=1)
    assert rig.database.totals.jobs == 0
    rig.database.close()


async def test_a_failing_disk_does_not_delay_the_end(tmp_path: Path) -> None:
    """Otherwise systemd kills the daemon before the `drained` line."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        await rig.accept(1)
        rig.database.write_error = disk_full
        rig.journal.settle(batch(rig.channel.receive_nowait(), sealed=False))
    assert rig.database.totals.jobs == 1


async def test_an_unreadable_page_does_not_refuse_requests(tmp_path: Path) -> None:
    """Otherwise one bad sector makes POSTs fail and succeed by turns, with two log lines each."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig, trio.open_nursery() as nursery:
        rig.database.read_error = io_error
        with structlog.testing.capture_logs() as lines:
            nursery.start_soon(rig.journal.page, 0, 9, 99)
            await until(lambda: "journal_read" in rig.health.troubles)
            for number in range(1, 6):
                await rig.accept(number)
            rig.database.read_error = None
            await until(lambda: not rig.health.troubles)
    assert [line["event"] for line in lines] == ["journal_unreadable", "journal_readable"]


async def test_other_reads_do_not_end_the_trouble_of_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the log reports twice a second that the journal is readable and unreadable."""
    tuning = Tuning(retry_interval=0.005, maintenance_interval=0.005)
    looks: list[int] = []
    async with open_rig(tmp_path / "j", tuning=tuning) as rig, trio.open_nursery() as nursery:
        rig.database.page_error = io_error
        count_dead = rig.database.count_dead

        def look() -> None:
            looks.append(1)
            count_dead()

        monkeypatch.setattr(rig.database, "count_dead", look)
        with structlog.testing.capture_logs() as lines:
            nursery.start_soon(rig.journal.page, 0, 9, 99)
            await until(lambda: "journal_read" in rig.health.troubles)
            for _ in range(5):
                rig.journal._maintenance.check_other_processes()
                before = len(looks)
                await until(lambda before=before: len(looks) > before)  # type: ignore[misc]
            rig.database.page_error = None
            await until(lambda: not rig.health.troubles)
    assert [line["event"] for line in lines] == ["journal_unreadable", "journal_readable"]


async def test_all_waiting_requests_are_refused_when_the_disk_fails(tmp_path: Path) -> None:
    """Otherwise requests behind a failed commit are refused later, one group at a time."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        refused: list[str] = []

        async def take(number: int, count: int) -> None:
            with pytest.raises(RefusedError) as caught:
                await rig.accept(number, count=count)
            refused.append(caught.value.detail)

        rig.database.hold()
        rig.database.write_error = disk_full
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, 1, 1)
            await rig.database.held()
            for number in range(10):
                nursery.start_soon(take, 10_000 * (number + 1), 3000)
            await wait_all_tasks_blocked()
            failures = rig.database.failures
            rig.database.release_gate()
            await until(lambda: len(refused) == 11)
            assert rig.database.failures <= failures + 2
        assert all("nothing of this request was accepted" in detail for detail in refused)
        assert rig.journal._bytes == 0
        await repair_disk(rig)


async def test_committed_requests_do_not_stay_in_memory(tmp_path: Path) -> None:
    """Otherwise the bodies of requests stay in memory until the next request."""
    async with open_rig(tmp_path / "j", tuning=_TUNING) as rig:
        held: list[weakref.ref[object]] = []

        async def take() -> None:
            wanted = append(1, count=3)
            answered = trio.Event()

            def done(_: object) -> None:
                answered.set()

            held.append(weakref.ref(done))
            rig.journal.append(wanted.receipt, wanted.parts, None, done)
            await answered.wait()

        await take()
        for _ in range(3):
            rig.channel.receive_nowait()
        rig.database.commits.clear()
        await until(lambda: held[0]() is None)
