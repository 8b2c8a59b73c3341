"""Group commit: one fsync for many, in order, and nothing lost when the disk says no."""

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
from tests.support.journal import PATIENCE, QUICK, batch, disk_full, make_rig, open_rig, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("anywhere")


async def test_many_requests_share_a_commit_and_keep_their_order(tmp_path: Path) -> None:
    """One fsync a request would allow a few hundred a second; disorder would mix the ids up."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.take, 1)
            await rig.database.held()
            for number in range(2, 102):
                nursery.start_soon(rig.take, number)
            await wait_all_tasks_blocked()
            assert rig.answered == []
            rig.database.let_go()
        appends = [[one for one in ops if isinstance(one, Append)] for ops in rig.database.commits]
        assert [len(ops) for ops in appends if ops] == [1, 100]
        ids = [job.id for ops in appends for one in ops for job in one.jobs]
        assert rig.shown() == list(range(1, 102))
        assert sorted(ids) == sorted(rig.answered)
        assert rig.accounting.accepted == 101


async def test_a_request_of_many_jobs_is_shown_in_turns_and_in_order(tmp_path: Path) -> None:
    """10,000 jobs that are shown at once hold the event loop; out of order they mix up objects."""
    tuning = replace(QUICK, offered_jobs=3)
    async with open_rig(tmp_path / "j", tuning=tuning) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.feeder.refill, rig.journal)
        rig.database.hold()
        nursery.start_soon(rig.take, 1)
        await rig.database.held()
        nursery.start_soon(rig.take, 1000, None, 100)
        for number in range(2, 20):
            nursery.start_soon(rig.take, number)
        await wait_all_tasks_blocked()
        rig.database.let_go()
        await until(lambda: rig.accounting.accepted == 119 and len(rig.answered) == 20)
        assert rig.shown() == list(range(1, 120))
        nursery.cancel_scope.cancel()


async def test_a_full_disk_refuses_requests_and_keeps_the_rest(tmp_path: Path) -> None:
    """A 202 that is not on disk; or a settled row that comes back for ever."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.take(1, count=4)
        jobs = [rig.channel.receive_nowait() for _ in range(4)]
        rig.database.write_error = disk_full
        with pytest.raises(RefusedError) as caught:
            await rig.take(5)
        assert caught.value.code == "DISK_ERROR"
        assert rig.health.troubles["journal"].code == "OperationalError"
        refusal = rig.journal.refusal()
        assert refusal is not None
        assert refusal.code == "DISK_ERROR"
        with pytest.raises(RefusedError, match="disk is full"):
            await rig.take(6)
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
        assert (await rig.take(7)).payloads == 1
        assert rig.accounting.accepted == 5


async def test_a_read_that_fails_is_tried_again_and_the_trouble_ends(tmp_path: Path) -> None:
    """An idle daemon would refuse everything after one bad read, until somebody restarts it."""

    def broken() -> Exception:
        return sqlite3.OperationalError("disk I/O error")

    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.take(1)
        rig.database.read_error = broken
        await until(lambda: rig.health.troubles)
        rig.database.read_error = None
        await until(lambda: not rig.health.troubles)
        assert len(await rig.journal.page(0, 10, 10**6)) == 1
        assert (await rig.take(2)).payloads == 1


async def test_a_client_that_leaves_is_counted_all_the_same(tmp_path: Path) -> None:
    """The journal and the count would differ by it, and `lost 0` mean nothing."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.hold()
        with trio.CancelScope() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.take, 1)
                await rig.database.held()
                client.cancel()
        rig.database.let_go()
        await until(lambda: rig.accounting.accepted == 1)
        assert rig.shown() == [1]


async def test_a_full_journal_refuses_until_there_is_room(tmp_path: Path) -> None:
    """The disk would fill until nothing on the machine works."""
    async with open_rig(tmp_path / "j", max_bytes=200, tuning=QUICK) as rig:
        await rig.take(1)
        await rig.take(2)
        with pytest.raises(RefusedError) as caught:
            await rig.take(3, count=2)
        assert caught.value.code == "JOURNAL_FULL"
        assert 1 <= caught.value.retry_after <= 90
        jobs = [rig.channel.receive_nowait() for _ in range(2)]
        for job in jobs:
            rig.journal.settle(batch(job, sealed=False))
        await until(lambda: rig.database.totals.jobs == 0)
        await rig.take(3)


async def test_what_waits_for_a_commit_fills_the_journal_too(tmp_path: Path) -> None:
    """A burst during one slow fsync would be taken whole, however far past JOURNAL_MAX_BYTES."""
    most = 3 * (ROW_BYTES + len(b"1\n"))
    async with open_rig(tmp_path / "j", max_bytes=most, tuning=QUICK) as rig:
        refused: list[str] = []

        async def take(number: int) -> None:
            try:
                await rig.take(number)
            except RefusedError as error:
                refused.append(error.code)

        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.take, 1)
            await rig.database.held()
            for number in range(2, 10):
                nursery.start_soon(take, number)
            await wait_all_tasks_blocked()
            rig.database.let_go()
        # Three, and at most the one that was being written when they came.
        assert 3 <= rig.accounting.accepted <= 4
        assert refused == ["JOURNAL_FULL"] * (9 - rig.accounting.accepted)


async def test_what_never_fits_is_told_so(tmp_path: Path) -> None:
    """A client that is told to come back would come back for ever."""
    async with open_rig(tmp_path / "j", max_bytes=200, tuning=QUICK) as rig:
        with pytest.raises(TooLargeError, match="JOURNAL_MAX_BYTES"):
            await rig.take(1, count=4)


async def test_dead_letters_take_room(tmp_path: Path) -> None:
    """A store that refuses everything for good would fill the disk."""
    async with open_rig(tmp_path / "j", max_bytes=200, tuning=QUICK) as rig:
        await rig.take(1, count=2)
        for _ in range(2):
            job = rig.channel.receive_nowait()
            rig.journal.bury(batch(job, sealed=False), "C", "r")
        await until(lambda: rig.database.totals.jobs == 0)
        with pytest.raises(RefusedError, match="132 bytes of it dead letters") as caught:
            await rig.take(3, count=2)
        assert caught.value.code == "JOURNAL_FULL"


@pytest.mark.parametrize("together", [True, False], ids=["one-group", "two-groups"])
async def test_a_key_is_answered_once(tmp_path: Path, together: bool) -> None:  # noqa: FBT001 - a parameter
    """A client that repeats blindly would have its payloads twice."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        receipts = []

        async def take(number: int) -> None:
            receipts.append(await rig.take(number, b"key"))

        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.take, 1)
            await rig.database.held()
            nursery.start_soon(take, 2)
            if not together:
                rig.database.let_go()
                await until(lambda: receipts)
            nursery.start_soon(take, 3)
            await wait_all_tasks_blocked()
            rig.database.let_go()
        assert receipts[0] == receipts[1]
        assert rig.accounting.accepted == 2
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        assert (await rig.take(9, b"key")) == receipts[0]


async def test_a_key_whose_commit_failed_is_free(tmp_path: Path) -> None:
    """The retry of a refused request would be answered with a receipt for nothing."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.write_error = disk_full
        with pytest.raises(RefusedError):
            await rig.take(1, b"key")
        rig.database.write_error = None
        await until(lambda: not rig.health.troubles)
        await rig.take(2, b"key")
        assert rig.accounting.accepted == 1


async def test_what_was_settled_last_is_written_behind_the_body(tmp_path: Path) -> None:
    """A drain that stored everything would leave rows for the next start."""
    rig = make_rig(tmp_path / "j", tuning=QUICK)
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with rig.journal.running():
            await rig.take(1)
            rig.journal.settle(batch(rig.channel.receive_nowait(), sealed=False))
            scope.cancel()
            await trio.sleep_forever()
    assert rig.database.totals.jobs == 0
    rig.database.close()


async def test_dead_letters_come_back_when_an_operator_says_so(tmp_path: Path) -> None:
    """`payloadd journal dead retry` on a running daemon would do nothing."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.take(1, count=3)
        for _ in range(3):
            job = rig.channel.receive_nowait()
            rig.journal.bury(batch(job, sealed=False), "InvalidRequest", "no")
        await until(lambda: rig.database.totals.jobs == 0)
        with closing(sqlite3.connect(tmp_path / "j")) as other, other:
            assert mark(other, []) == 3
        with pytest.raises(NudgedError):
            await rig.channel.wait()
        assert rig.accounting.found == 3
        back = [await rig.journal.sealed() for _ in range(4)]
        assert [one and b"".join(one.pieces) for one in back] == [b"1\n", b"2\n", b"3\n", None]


async def test_space_comes_back_by_itself_and_keys_expire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file would stay as large as its longest outage, and keys would fill it for ever."""
    monkeypatch.setattr("payloadd.journal.sqlite.vacuum._WORTH_IT", 4)
    monkeypatch.setattr("payloadd.journal.sqlite.idempotency.KEEP", -1)
    monkeypatch.setattr("payloadd.journal.sqlite.idempotency._KEYS_PER_COMMIT", 1)
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        await rig.take(1, b"key", count=900)
        await rig.take(901, b"another")
        for _ in range(901):
            rig.journal.settle(batch(rig.channel.receive_nowait(), sealed=False))
        await until(lambda: rig.database.totals.jobs == 0)
        one = rig.database._connection.execute
        await until(lambda: one("SELECT count(*) FROM answers").fetchone() == (0,))
        await until(lambda: one("PRAGMA freelist_count").fetchone()[0] < 4)


async def test_a_pulse_comes_with_a_commit(tmp_path: Path) -> None:
    """A journal that hangs would seem to live, and systemd would leave it so."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        with trio.fail_after(PATIENCE):
            await rig.journal.pulse()
        rig.database.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.take, 1)
            await rig.database.held()
            nursery.start_soon(rig.journal.pulse)
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2
            rig.database.let_go()


async def test_a_full_disk_has_a_pulse(tmp_path: Path) -> None:
    """A daemon that waits for room on its disk would be ended by systemd's watchdog."""
    async with open_rig(tmp_path / "j", tuning=QUICK) as rig:
        rig.database.write_error = disk_full
        with trio.fail_after(PATIENCE):
            await rig.journal.pulse()
            await rig.journal.pulse()
        assert rig.journal.refusal() is not None
        rig.database.write_error = None
