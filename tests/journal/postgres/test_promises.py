"""What watermarks of a lane have promised holds for all of its owners."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import psycopg
import pytest
import trio

from payloadd.errors import RefusedError
from payloadd.journal.api import LanePromise, Receipt
from payloadd.journal.postgres import lane as lanes
from payloadd.journal.postgres import leases, tables
from payloadd.model.streams import MOST_NUMBERS, STREAM_BITS
from tests.journal.postgres.rig import Member, member
from tests.support.databases import new_database, server
from tests.support.journal import batch, id_of, parts, until

if TYPE_CHECKING:
    from payloadd.journal.postgres.lane import Lane
    from payloadd.journal.postgres.promises import LanePromises

AT: int = id_of(0).int >> 80
"""The time of all jobs of these tests, in milliseconds."""


@pytest.fixture
def url() -> str:
    """Return the URL of a new journal."""
    return new_database()


def promises_of(one: Member) -> LanePromises:
    """Return the promises of a process with WATERMARK=on."""
    return cast("LanePromises", one.shared.promises)


async def open_lane(one: Member, until: int = AT) -> Lane:
    """Promise ``until`` of the default stream in the own lane, and let requests go into it."""
    promises = promises_of(one)
    own = promises.own
    assert own is not None
    assert await promises.promise(own, {"default": until}, "open")
    promises.open(own)
    return own


async def refused(one: Member, number: int) -> str:
    """Return why a request is refused."""
    outcome = await one.outcome_of(Receipt(id_of(number), 1), parts(number))
    assert isinstance(outcome, RefusedError)
    return str(outcome)


async def test_requests_wait_for_an_open_lane_and_are_not_before_its_promise(url: str) -> None:
    """Payloads would be accepted for which no reader waits, or into hours that are complete."""
    async with member(url, WATERMARK="on") as one:
        assert one.shared.refusal() is not None
        assert "the store does not know" in await refused(one, 1)
        await open_lane(one)
        assert one.shared.refusal() is None
        await one.accept(1)
        one.journal.settle(batch(one.pipeline.received[0], sealed=False))
        await open_lane(one, AT + 1)
        assert "another process has taken the lane" in await refused(one, 2)
    async with member(url, WATERMARK="on") as one:
        own = promises_of(one).own
        assert own is not None
        assert (own.number, own.promise) == (1, LanePromise({"default": AT + 1}, "open"))
        assert promises_of(one).names(own) == {0: "default"}
        assert (own.newest(), own.found) == ({}, {0: 1})


async def test_a_former_owner_promises_nothing(url: str) -> None:
    """A process that was stopped would change what the new owner has promised."""
    async with member(url, WATERMARK="on") as zombie, member(url, WATERMARK="on") as heir:
        lane = await open_lane(zombie)
        await open_lane(heir)
        await zombie.accept(1)
        promised: list[bool] = []

        async def promise_more() -> None:
            promised.append(await promises_of(zombie).promise(lane, {"default": AT + 9}, "closing"))

        zombie.stop_beating()
        outcomes: list[object] = []

        async def post() -> None:
            outcomes.append(await zombie.outcome_of(Receipt(id_of(7), 1), parts(7)))

        # Stopped within a round of its maintenance.
        async with trio.open_nursery() as nursery, zombie.shared.calls.lock:
            nursery.start_soon(post)
            await until(lambda: heir.pipeline.payloads.get("taken_over") == 1)
            (taken,) = [one for one in heir.shared.session.lanes.values() if one.number == 1]
            assert taken.promise == LanePromise({"default": AT}, "open")
            assert promises_of(heir).unclosed() == []
            with psycopg.connect(url, autocommit=True) as connection:
                assert not leases.promise(connection, lane, LanePromise({}, "closing"))
            nursery.start_soon(promise_more)
        # The request has a time that watermarks of the next lane may have passed.
        (outcome,) = outcomes
        assert isinstance(outcome, RefusedError)
        assert zombie.pipeline.payloads["accepted"] == 1
        assert promised == [False]
        await until(lambda: promises_of(zombie).own not in {None, lane})
        assert not await promises_of(zombie).promise(lane, {"default": AT + 9}, "closing")
        assert lane.promise == LanePromise({"default": AT}, "open")
        assert "the store does not know" in await refused(zombie, 8)
        await open_lane(zombie, AT + 1)
        assert "another process has taken the lane" in await refused(zombie, 9)
        await open_lane(zombie, AT)
        await zombie.accept(10)
        assert zombie.pipeline.received[-1].seq >> STREAM_BITS >= MOST_NUMBERS


async def test_a_lane_that_is_not_closed_is_held_until_it_is(url: str) -> None:
    """Readers would wait for ever for the process that has ended."""
    async with member(url, WATERMARK="on") as heir:
        async with member(url, WATERMARK="on") as first:
            assert first.lanes == [2]
            await open_lane(first)
        await until(lambda: heir.lanes == [1, 2])
        promises = promises_of(heir)
        await until(promises.unclosed)
        (lane,) = promises.unclosed()
        assert lane.promise == LanePromise({"default": AT}, "open")
        assert await promises.promise(lane, {"default": AT}, "closing")
        assert promises.unclosed() == [lane]
        assert await promises.promise(lane, {"default": AT}, "closed")
        await until(lambda: heir.lanes == [1])
        # It is used again, with what was promised.
        async with member(url, WATERMARK="on") as third:
            own = promises_of(third).own
            assert own is not None
            assert (own.number, own.promise.floor, own.promise.marked) == (2, AT, "closed")


async def test_a_lane_that_may_still_be_closed_is_not_used_again(url: str) -> None:
    """A late upload of its former owner would say that nothing is accepted there."""
    async with member(url, WATERMARK="on") as first:
        lane = await open_lane(first)
        assert await promises_of(first).promise(lane, {"default": AT}, "closing")
    async with member(url, WATERMARK="on") as heir:
        assert heir.lanes[0] == 2
        await until(lambda: heir.lanes == [2, 1])
        promises = promises_of(heir)
        await until(promises.unclosed)
        (taken,) = promises.unclosed()
        assert await promises.promise(taken, {"default": AT}, "retired")
        await until(lambda: heir.lanes == [2])
        async with member(url, WATERMARK="on") as third:
            assert third.lanes == [3]
            # Without watermarks no lane is taken because of them.
            await open_lane(third)
        await until(lambda: heir.lanes == [2, 3])


async def test_streams_that_another_process_has_added_are_known(url: str) -> None:
    """A process would fail, or leave readers of the stream waiting."""
    async with member(url, WATERMARK="on") as heir:
        async with member(url, WATERMARK="on", STREAMS="clicks") as first:
            own = promises_of(first).own
            assert own is not None
            assert await promises_of(first).promise(own, {"default": AT, "clicks": AT}, "open")
        await until(promises_of(heir).unclosed)
        (lane,) = promises_of(heir).unclosed()
        assert set(promises_of(heir).names(lane).values()) == {"default", "clicks"}


async def test_a_process_without_watermarks_uses_no_lane_that_has_some(url: str) -> None:
    """They would say that all is stored, or that nothing is accepted."""
    async with member(url, WATERMARK="on") as first:
        await open_lane(first)
    async with member(url) as without:
        await without.accept(50)
        await until(lambda: without.pipeline.oldest)
        assert without.pipeline.oldest_by_stream is None
        assert without.lanes == [2]
    async with member(url, WATERMARK="on") as last:
        assert last.lanes[0] == 2
        own = promises_of(last).own
        assert own is not None
        assert (own.jobs, own.promise) == (1, LanePromise({}, "open"))


async def test_the_oldest_job_of_each_stream_is_reported(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watermark would pass jobs whose payloads are copied out of their rows."""
    monkeypatch.setattr(lanes, "_MOST_RANGES", 3)
    async with member(url, WATERMARK="on", STREAMS="clicks") as one:
        own = promises_of(one).own
        assert own is not None
        assert promises_of(one).names(own) == {0: "default", 1: "clicks"}
        assert await promises_of(one).promise(own, {"default": AT, "clicks": AT}, "open")
        promises_of(one).open(own)
        await until(lambda: one.pipeline.oldest_by_stream == {})
        for number in range(20):
            await one.accept(10 + number)
        await one.accept(70, stream=1)
        jobs = [job for job in one.pipeline.received if job.seq >> STREAM_BITS == 0]
        (other,) = [job for job in one.pipeline.received if job.seq >> STREAM_BITS]
        await one.journal.seal(batch(jobs[1]))
        one.journal.settle(batch(jobs[0], sealed=False))
        for job in jobs[2::2]:
            one.journal.settle(batch(job, sealed=False))
        expected = {0: (jobs[1].seq, AT), 1: (other.seq, AT)}
        await until(lambda: one.pipeline.oldest_by_stream == expected)
        await until(lambda: own.stream(0).settled.low >= 2)  # its payloads are copied
        await one.journal.pulse()
        await trio.sleep(0.5)
        assert one.pipeline.oldest_by_stream == expected
        one.journal.settle(batch(jobs[1]))
        one.journal.settle(batch(other, sealed=False))
        expected = {0: (jobs[3].seq, AT)}
        await until(lambda: one.pipeline.oldest_by_stream == expected)


async def test_a_batch_whose_copy_is_not_written_yet_is_not_passed_over(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watermark would pass it: it is in no row that is not settled, and has no payloads."""
    monkeypatch.setattr(lanes, "_MOST_RANGES", 3)
    async with member(url, WATERMARK="on") as one:
        own = await open_lane(one)
        for number in range(20):
            await one.accept(10 + number)
        jobs = list(one.pipeline.received)
        await one.journal.seal(batch(jobs[0]))
        await until(lambda: one.pipeline.oldest_by_stream == {0: (jobs[0].seq, AT)})
        reports: list[object] = []
        monkeypatch.setattr(
            one.pipeline, "oldest_accepted", lambda _since, found=None: reports.append(found)
        )
        # As where the row of the lane is locked for some seconds.
        monkeypatch.setattr(tables, "empty", lambda *_: None)
        for job in jobs[1::2]:
            one.journal.settle(batch(job, sealed=False))
        await until(lambda: own.stream(0).settled.low)
        seen = len(reports)
        await until(lambda: len(reports) > seen + 2)
        assert {0: (jobs[0].seq, AT)} in reports[seen:]
        assert all(one in (None, {0: (jobs[0].seq, AT)}) for one in reports)


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_job_whose_row_is_lost_is_not_stored(url: str, lost: int) -> None:
    """A watermark would pass a payload that is lost: the server has set a damaged page to zeros."""
    async with member(url, WATERMARK="on") as one:
        own = await open_lane(one)
        for number in range(1, 3):
            await one.accept(number)
        await until(lambda: one.pipeline.oldest_by_stream == {0: (1, AT)})
        if lost == 2:
            one.journal.settle(batch(one.pipeline.received[0], sealed=False))
        server().execute(
            f"DELETE FROM payloadd.rows_{own.number}_0 WHERE last = {lost}", url.rpartition("/")[2]
        )
        await until(lambda: one.pipeline.oldest_by_stream == {0: (lost, 0)})
