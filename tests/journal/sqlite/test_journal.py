"""Group commit: one fsync for many requests, in order, and no loss when the disk fails."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError, TooLargeError
from payloadd.journal.api import Append, Bury, Seal, Settle
from payloadd.journal.sqlite.dead_letters import mark
from payloadd.journal.sqlite.schema import ROW_BYTES
from payloadd.pipeline.queue import NudgedError
from tests.support.journal import QUICK, TEST_TIMEOUT, batch, disk_full, make_rig, open_rig, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("anywhere")


async def test_many_requests_share_a_commit_and_keep_their_order(tmp_path: Path) -> None:
    """Otherwise the disk allows a few hundred requests a second; or ids name wrong payloads."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.accept, 1)
            await rig.database.held()
            for number in range(2, 102):
                nursery.start_soon(rig.accept, number)
            await wait_all_tasks_blocked()
            assert rig.answered == []
            rig.database.release_gate()
        appends = [[one for one in ops if isinstance(one, Append)] for ops in rig.database.commits]
        assert [len(ops) for ops in appends if ops] == [1, 100]
        ids = [job.id for ops in appends for one in ops for job in one.jobs]
        assert rig.receive_all() == list(range(1, 102))
        assert sorted(ids) == sorted(rig.answered)
        assert rig.accounting.accepted == 101


async def test_many_jobs_are_offered_in_portions_and_in_order(tmp_path: Path) -> None:
    """Otherwise 10,000 jobs hold up the event loop; or objects contain wrong jobs."""
    tuning = replace(QUICK, offered_jobs=3)
    async with open_rig(tmp_path / "j", tuning=tuning) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.feeder.refill, rig.journal)
        rig.database.hold()
        nursery.start_soon(rig.accept, 1)
        await rig.database.held()
        nursery.start_soon(rig.accept, 1000, None, 100)
        for number in range(2, 20):
            nursery.start_soon(rig.accept, number)
        await wait_all_tasks_blocked()
        rig.database.release_gate()
        await until(lambda: rig.accounting.accepted == 119 and len(rig.answered) == 20)
        assert rig.receive_all() == list(range(1, 120))
        nursery.cancel_scope.cancel()


async def test_a_full_disk_refuses_requests_and_delays_the_other_operations(tmp_path: Path) -> None:
    """Otherwise a 202 is not on disk; or a settled batch is stored again after each restart."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.accept(1, count=4)
        jobs = [rig.channel.receive_nowait() for _ in range(4)]
        rig.database.write_error = disk_full
        with pytest.raises(RefusedError) as caught:
            await rig.accept(5)
        assert caught.value.code == "DISK_ERROR"
        assert rig.health.troubles["journal"].code == "OperationalError"
        refusal = rig.journal.refusal()
        assert refusal is not None
        assert refusal.code == "DISK_ERROR"
        with pytest.raises(RefusedError, match="disk is full"):
            await rig.accept(6)
        rig.journal.settle(batch(jobs[0], sealed=False))
        rig.journal.bury(batch(jobs[1], sealed=False), "KeyTooLongError", "too long")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.journal.seal, batch(*jobs[2:]))
            failures = rig.database.failures
            await until(lambda: rig.database.failures > failures + 3)
            assert nursery.child_tasks
            rig.database.write_error = None
        await until(lambda: rig.journal.refusal() is None)
        kinds = {type(one) for operations in rig.database.commits for one in operations}
        assert {Settle, Bury, Seal} <= kinds
        assert rig.database.totals.jobs == 2
        assert (await rig.accept(7)).payloads == 1
        assert rig.accounting.accepted == 5


async def test_a_failed_read_is_repeated_until_it_succeeds(tmp_path: Path) -> None:
    """Otherwise an idle daemon refuses all requests after one failed read, until a restart."""

    def broken() -> Exception:
        return sqlite3.OperationalError("disk I/O error")

    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.accept(1)
        rig.database.read_error = broken
        await until(lambda: rig.health.troubles)
        rig.database.read_error = None
        await until(lambda: not rig.health.troubles)
        assert len(await rig.journal.page(0, 10, 10**6)) == 1
        assert (await rig.accept(2)).payloads == 1


async def test_a_request_whose_client_has_gone_is_counted(tmp_path: Path) -> None:
    """Otherwise the count differs from the journal, and `lost 0` is not true."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.hold()
        with trio.CancelScope() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.accept, 1)
                await rig.database.held()
                client.cancel()
        rig.database.release_gate()
        await until(lambda: rig.accounting.accepted == 1)
        assert rig.receive_all() == [1]


async def test_a_full_journal_refuses_requests_until_batches_are_settled(tmp_path: Path) -> None:
    """Otherwise the journal fills the disk of the machine."""
    async with open_rig(tmp_path / "j", max_bytes=200, tuning=QUICK) as rig:
        await rig.accept(1)
        await rig.accept(2)
        with pytest.raises(RefusedError) as caught:
            await rig.accept(3, count=2)
        assert caught.value.code == "JOURNAL_FULL"
        assert 1 <= caught.value.retry_after <= 90
        jobs = [rig.channel.receive_nowait() for _ in range(2)]
        for job in jobs:
            rig.journal.settle(batch(job, sealed=False))
        await until(lambda: rig.database.totals.jobs == 0)
        await rig.accept(3)


async def test_requests_that_wait_for_a_commit_count_towards_the_limit(tmp_path: Path) -> None:
    """Otherwise a burst during one slow fsync exceeds JOURNAL_MAX_BYTES without a bound."""
    most = 3 * (ROW_BYTES + len(b"1\n"))
    async with open_rig(tmp_path / "j", max_bytes=most, tuning=QUICK) as rig:
        refused: list[str] = []

        async def take(number: int) -> None:
            try:
                await rig.accept(number)
            except RefusedError as error:
                refused.append(error.code)

        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.accept, 1)
            await rig.database.held()
            for number in range(2, 10):
                nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
            rig.database.release_gate()
        # Three, and perhaps the request that was being written when the others arrived.
        assert 3 <= rig.accounting.accepted <= 4
        assert refused == ["JOURNAL_FULL"] * (9 - rig.accounting.accepted)


async def test_a_request_larger_than_the_journal_is_too_large(tmp_path: Path) -> None:
    """Otherwise the client repeats the request for ever."""
    async with open_rig(tmp_path / "j", max_bytes=200, tuning=QUICK) as rig:
        with pytest.raises(TooLargeError, match="JOURNAL_MAX_BYTES"):
            await rig.accept(1, count=4)


async def test_dead_letters_count_towards_the_limit(tmp_path: Path) -> None:
    """Otherwise a store that refuses every object for good fills the disk."""
    async with open_rig(tmp_path / "j", max_bytes=200, tuning=QUICK) as rig:
        await rig.accept(1, count=2)
        for _ in range(2):
            job = rig.channel.receive_nowait()
            rig.journal.bury(batch(job, sealed=False), "C", "r")
        await until(lambda: rig.database.totals.jobs == 0)
        with pytest.raises(RefusedError, match="132 of them by dead letters") as caught:
            await rig.accept(3, count=2)
        assert caught.value.code == "JOURNAL_FULL"


@pytest.mark.parametrize("together", [True, False], ids=["one-group", "two-groups"])
async def test_an_idempotency_key_is_accepted_once(tmp_path: Path, together: bool) -> None:  # noqa: FBT001 - a parameter
    """Otherwise a client that repeats a request stores its payloads twice."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        receipts = []

        async def take(number: int) -> None:
            receipts.append(await rig.accept(number, b"key"))

        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.accept, 1)
            await rig.database.held()
            nursery.start_soon(take, 2)
            if not together:
                rig.database.release_gate()
                await until(lambda: receipts)
            nursery.start_soon(take, 3)
            await wait_all_tasks_blocked()
            rig.database.release_gate()
        assert receipts[0] == receipts[1]
        assert rig.accounting.accepted == 2
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        assert (await rig.accept(9, b"key")) == receipts[0]


async def test_an_idempotency_key_of_a_failed_commit_is_unknown(tmp_path: Path) -> None:
    """Otherwise the retry of a refused request gets a receipt for payloads that are not there."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.write_error = disk_full
        with pytest.raises(RefusedError):
            await rig.accept(1, b"key")
        rig.database.write_error = None
        await until(lambda: not rig.health.troubles)
        await rig.accept(2, b"key")
        assert rig.accounting.accepted == 1


async def test_batches_settled_last_are_written_when_the_journal_closes(tmp_path: Path) -> None:
    """Otherwise a drain that has stored all payloads leaves rows for the next start."""
    rig = make_rig(tmp_path / "j", tuning=QUICK)
    with trio.fail_after(TEST_TIMEOUT), trio.CancelScope() as scope:
        async with rig.journal.running():
            await rig.accept(1)
            rig.journal.settle(batch(rig.channel.receive_nowait(), sealed=False))
            scope.cancel()
            await trio.sleep_forever()
    assert rig.database.totals.jobs == 0
    rig.database.close()


async def test_marked_dead_letters_become_sealed_batches(tmp_path: Path) -> None:
    """Otherwise `payloadd journal dead retry` has no effect on a running daemon."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.accept(1, count=3)
        for _ in range(3):
            job = rig.channel.receive_nowait()
            rig.journal.bury(batch(job, sealed=False), "InvalidRequest", "no")
        await until(lambda: rig.database.totals.jobs == 0)
        with closing(sqlite3.connect(tmp_path / "j")) as other, other:
            assert mark(other, []) == 3
        with pytest.raises(NudgedError):
            await rig.channel.wait_for_job()
        assert rig.accounting.found == 3
        back = [await rig.journal.sealed() for _ in range(4)]
        assert [one and b"".join(job.lines for job in one.jobs) for one in back] == [
            b"1\n",
            b"2\n",
            b"3\n",
            None,
        ]


async def test_the_file_shrinks_and_keys_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the file stays as large as after the longest outage, and keys fill it."""
    monkeypatch.setattr("payloadd.journal.sqlite.deletion.Vacuum.least_pages", 4)
    monkeypatch.setattr("payloadd.journal.sqlite.idempotency.KEEP", -1)
    monkeypatch.setattr("payloadd.journal.sqlite.idempotency.KEYS_PER_COMMIT", 1)
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.accept(1, b"key", count=900)
        await rig.accept(901, b"another")
        for _ in range(901):
            rig.journal.settle(batch(rig.channel.receive_nowait(), sealed=False))
        await until(lambda: rig.database.totals.jobs == 0)
        one = rig.database._connection.execute
        await until(lambda: one("SELECT count(*) FROM answers").fetchone() == (0,))
        await until(lambda: one("PRAGMA freelist_count").fetchone()[0] < 4)


async def test_a_pulse_waits_for_a_commit(tmp_path: Path) -> None:
    """Otherwise systemd does not restart a daemon whose journal hangs."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        with trio.fail_after(TEST_TIMEOUT):
            await rig.journal.pulse()
        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.accept, 1)
            await rig.database.held()
            nursery.start_soon(rig.journal.pulse)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2
            rig.database.release_gate()


async def test_a_pulse_ends_with_a_failed_commit(tmp_path: Path) -> None:
    """Otherwise systemd's watchdog ends a daemon that waits for space on its disk."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.write_error = disk_full
        with trio.fail_after(TEST_TIMEOUT):
            await rig.journal.pulse()
            await rig.journal.pulse()
        assert rig.journal.refusal() is not None
        rig.database.write_error = None
