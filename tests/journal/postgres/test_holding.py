"""Lanes change hands: a process dies, is stopped and wakes, or ends with a backlog."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio

from payloadd.errors import LaneLostError, RefusedError
from payloadd.journal.postgres.inspection import PostgresInspection
from payloadd.model.streams import MOST_NUMBERS, STREAM_BITS, count_of, first_seq, stream_of
from tests.journal.postgres.rig import QUICK, Member, member
from tests.support.databases import new_database, server
from tests.support.journal import batch, until

if TYPE_CHECKING:
    from payloadd.journal.postgres.leases import SeenLane
    from payloadd.journal.postgres.session import Session
    from payloadd.model.job import Job


@pytest.fixture
def url() -> str:
    """Return the URL of a new journal."""
    return new_database()


def lines(jobs: list[Job]) -> list[bytes]:
    """Return the payloads of jobs."""
    return [job.lines for job in jobs]


async def rest_of(one: Member) -> list[Job]:
    """Return the jobs that a process reads from lanes that it has taken."""
    await one.pipeline.read_pages(one.journal)
    return [job for job in one.pipeline.received if stream_of(job.seq) >= MOST_NUMBERS]


async def test_the_lane_of_a_dead_process_is_taken_with_its_sealed_batches(url: str) -> None:
    """Payloads with a 2xx would be lost with a machine, or be stored twice."""
    async with member(url) as dead:
        receipt = await dead.accept(1, count=9, key=b"key")
        jobs = list(dead.pipeline.received)
        await dead.journal.seal(batch(*jobs[1:4]))
        dead.journal.settle(batch(jobs[4], sealed=False))
        await dead.journal.pulse()
        dead.die()
    async with member(url) as heir:
        assert heir.lanes == [2]
        assert await heir.accept(31, 9, key=b"key", like=1) == receipt
        assert heir.pipeline.received == []
        await until(lambda: heir.pipeline.payloads.get("taken_over") == 8)
        assert heir.lanes == [2, 1]
        sealed = await heir.journal.sealed()
        assert sealed is not None
        assert (sealed.key, lines([*sealed.jobs])) == ("k2", lines(jobs[1:4]))
        assert await heir.journal.sealed() is None
        left = await rest_of(heir)
        assert lines(left) == lines([jobs[0], *jobs[5:]])
        assert heir.layouts.batch(left[:1]).key == dead.layouts.batch(jobs[:1]).key
        for one in (sealed, batch(left[0], sealed=False), batch(*left[1:], sealed=False)):
            heir.journal.settle(one)
        await until(lambda: heir.lanes == [2])
        async with member(url) as third:
            assert third.lanes == [1]
            assert (await third.accept(50)).payloads == 1
            assert count_of(third.pipeline.received[0].seq) == 10


async def test_a_process_that_was_stopped_finds_its_lane_lost_and_gets_another(url: str) -> None:
    """It would store payloads a second time, or delete those of the new owner."""
    async with member(url) as zombie, member(url) as heir:
        await zombie.accept(1, count=6)
        jobs = list(zombie.pipeline.received)
        await zombie.journal.seal(batch(*jobs[:2]))
        await zombie.journal.pulse()
        zombie.stop_beating()
        async with zombie.shared.calls.lock:  # stopped within a round of its maintenance
            await until(lambda: heir.pipeline.payloads.get("taken_over") == 6)
        sealed = await heir.journal.sealed()
        assert sealed is not None
        left = await rest_of(heir)
        assert lines([*sealed.jobs, *left]) == lines(jobs)
        zombie.journal.settle(batch(*jobs[:2]))
        with pytest.raises(LaneLostError):
            await zombie.journal.seal(batch(*jobs[2:4]))
        assert zombie.pipeline.payloads["taken_away"] == 6
        assert (await zombie.accept(20, 2)).payloads == 2
        assert 1 not in zombie.lanes
        assert [job.seq >> STREAM_BITS for job in zombie.pipeline.received] == [MOST_NUMBERS] * 2
        assert await zombie.journal.page(first_seq(0), 10, 10**6) == []
        # What the zombie has done had no effect on the lane.
        sealed_again = await heir.journal.sealed()
        assert sealed_again is None
        heir.pipeline.replayed_jobs.clear()
        again = await heir.journal.sealed()
        assert again is not None
        assert lines([*again.jobs]) == lines(jobs[:2])


async def test_the_backlog_of_a_process_that_ends_is_taken_at_once(url: str) -> None:
    """The payloads of a drained process would wait until it is started again."""
    # No lease ends during the test.
    patient = replace(QUICK, lease=3600.0)
    async with member(url, patient) as other:
        async with member(url, patient) as first:
            assert first.lanes == [2]
            await first.accept(1, count=3)
            first.journal.settle(batch(first.pipeline.received[0], sealed=False))
        await until(lambda: other.pipeline.payloads.get("taken_over") == 2)
        assert other.lanes == [1, 2]
        assert lines(await rest_of(other)) == [b"2\n", b"3\n"]


async def test_a_dead_letter_of_a_lane_without_an_owner_is_tried_again(url: str) -> None:
    """`payloadd journal dead retry` would wait for a process that never comes back."""
    async with member(url) as other:
        async with member(url) as first:
            await first.accept(1, count=2)
            first.journal.bury(batch(first.pipeline.received[0], sealed=False), "C", "r")
            first.journal.settle(batch(first.pipeline.received[1], sealed=False))
        with PostgresInspection.open(url) as inspection:
            assert inspection.retry([]) == 1
        await until(lambda: other.pipeline.payloads.get("revived") == 1)
        sealed = await other.journal.sealed()
        assert sealed is not None
        assert (sealed.key, lines([*sealed.jobs])) == ("k1", [b"1\n"])
        other.journal.settle(sealed)
        await until(lambda: other.lanes == [1])


async def test_a_retry_is_noticed_on_a_lane_that_was_seen_empty_before(url: str) -> None:
    """`payloadd journal dead retry` would wait for ever: an operator is slower than one round."""
    async with member(url) as other:
        session = other.shared.session
        seen: list[SeenLane] = []
        read_others = session.others

        def others() -> list[SeenLane]:
            found = read_others()
            seen.extend(found)
            return found

        session.others = others  # type: ignore[method-assign]
        async with member(url) as first:
            await first.accept(1)
            first.journal.bury(batch(first.pipeline.received[0], sealed=False), "C", "r")
        await until(lambda: any(lane.free and lane.empty for lane in seen))
        async with other.shared.calls.lock:  # the round that has seen the empty lane is over
            with PostgresInspection.open(url) as inspection:
                assert inspection.retry([]) == 1
        await until(lambda: other.pipeline.payloads.get("revived") == 1)


async def rounds(process: Member, count: int) -> None:
    """Wait until a process has looked at the lanes of others so many times."""
    session = process.shared.session
    looked: list[SeenLane] = []
    times = [0]
    read_others = session.others

    def others() -> list[SeenLane]:
        looked[:] = read_others()
        times[0] += 1
        return looked

    session.others = others  # type: ignore[method-assign]
    await until(lambda: times[0] > count)  # the last of them may have begun before


async def test_two_processes_do_not_take_one_lane(url: str) -> None:
    """Each payload of the lane would be stored by both."""
    async with member(url) as dead:
        await dead.accept(1, count=5)
        dead.die()
    async with member(url) as one, member(url) as two:
        await until(lambda: 1 in one.lanes + two.lanes)
        for process in (one, two):
            await rounds(process, 3)
        assert sorted(one.lanes + two.lanes) == [1, 2, 3]


async def test_a_batch_that_is_stored_does_not_come_back_before_the_next_checkpoint(
    url: str,
) -> None:
    """It would be stored twice, and counted twice."""
    async with member(url, replace(QUICK, maintenance_interval=10**6)) as one:
        await one.accept(1, count=4)
        jobs = one.pipeline.received
        first, second = batch(*jobs[:2]), batch(*jobs[2:])
        for each in (first, second):
            await one.journal.seal(each)
        one.pipeline.received = []
        await one.journal.pulse()  # a checkpoint, so that the next one is not due
        one.journal.settle(first)
        await one.accept(10)
        found = await one.journal.sealed()
        assert found is not None
        assert found.key == second.key
        assert await one.journal.sealed() is None


async def test_the_first_request_after_the_lease_goes_into_another_lane(url: str) -> None:
    """It would be added to a lane of which another process has read everything, and be lost."""
    async with member(url) as zombie, member(url) as heir:
        await zombie.accept(1, count=2)
        await zombie.journal.pulse()
        zombie.stop_beating()
        async with zombie.shared.calls.lock:
            await until(lambda: heir.pipeline.payloads.get("taken_over") == 2)
        # Its backend was ended: it may hear of that before, or by the request.
        while True:
            try:
                assert (await zombie.accept(20)).payloads == 1
                break
            except RefusedError:
                await trio.sleep(0.05)
        assert not {1, heir.lanes[0]} & set(zombie.lanes)
        assert lines(await rest_of(heir)) == [b"1\n", b"2\n"]


async def test_a_former_owner_whose_backend_lives_on_can_write_nothing(url: str) -> None:
    """Requests with a 2xx would be in a lane that another process has read to its end."""
    name = url.rpartition("/")[2]
    async with member(url, replace(QUICK, maintenance_interval=10**6)) as one:
        await one.accept(1, count=4)
        jobs = list(one.pipeline.received)
        await one.journal.pulse()  # a checkpoint: the next commit has a row and nothing else
        for step in (1, 2):
            number = one.shared.session.own.number
            # As another process takes it that has no right to end the backend.
            server().execute(
                f"UPDATE payloadd.lanes SET epoch = epoch + 1, owner = 'x' WHERE lane = {number}",
                name,
            )
            before = server().execute(f"SELECT * FROM payloadd.rows_{number}_0", name)
            if step == 1:
                assert (await one.accept(10)).payloads == 1
            else:
                one.journal.settle(batch(one.pipeline.received[-1], sealed=False))
                with pytest.raises(LaneLostError):
                    await one.journal.seal(batch(*one.pipeline.received[-1:]))
                await one.journal.pulse()
            assert one.shared.session.own.number != number
            assert server().execute(f"SELECT * FROM payloadd.rows_{number}_0", name) == before
            assert server().execute("SELECT count(*) FROM payloadd.batches", name) == [(0,)]
        assert one.pipeline.payloads["taken_away"] == 4
        assert [job.lines for job in jobs] == [b"1\n", b"2\n", b"3\n", b"4\n"]


def fail_once(session: Session, method: str) -> None:
    """Let the next call of a method fail once it has done its work: its answer is lost."""
    work = getattr(session, method)

    def work_and_fail(*arguments: object) -> object:
        setattr(session, method, work)
        work(*arguments)
        raise psycopg.OperationalError("the connection is gone")

    setattr(session, method, work_and_fail)


async def test_a_lane_that_is_kept_after_a_lost_answer_is_stored(url: str) -> None:
    """Its payloads would wait until the process that holds it is started again."""
    async with member(url) as other:
        fail_once(other.shared.session, "layouts_of")
        async with member(url) as first:
            await first.accept(1, count=3)
        await until(lambda: other.pipeline.payloads.get("taken_over") == 3)
        assert other.lanes == [1, 2]
        assert lines(await rest_of(other)) == [b"1\n", b"2\n", b"3\n"]


@pytest.mark.parametrize("method", ["get_own", "stream_names"])
async def test_an_own_lane_whose_answer_was_lost_is_used(url: str, method: str) -> None:
    """The layouts of its jobs would not be known; with watermarks it would never be open."""
    patient = replace(QUICK, lease=3600.0)
    async with member(url, patient, WATERMARK="on") as one:
        promises = one.shared.promises
        assert promises is not None
        changed = trio.Event()

        async def wait() -> None:
            while promises.own is None or promises.own.number == 1:
                await promises.wait_for_change()
            changed.set()

        async with trio.open_nursery() as nursery, one.shared.calls.lock:
            fail_once(one.shared.session, method)
            server().execute(
                "UPDATE payloadd.lanes SET epoch = epoch + 1, owner = 'x'", url.rpartition("/")[2]
            )
            nursery.start_soon(wait)
        await until(changed.is_set)
        own = promises.own
        assert own is not None
        assert stream_of(one.layouts.next_change(1)) == stream_of(own.base(0))
