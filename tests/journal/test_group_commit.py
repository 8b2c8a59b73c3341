"""The queues of operations that share commits, of every journal that has one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.journal.api import Receipt
from payloadd.journal.postgres.operations import PendingRequest, StoredBatch
from payloadd.journal.postgres.pending import PendingOperations
from payloadd.journal.sqlite.commit_queue import CommitQueue
from payloadd.journal.sqlite.operations import Append, Expire
from payloadd.model.job import Part
from tests.support.journal import batch, id_of, job
from tests.support.turns import turns_of

if TYPE_CHECKING:
    from trio.testing import MockClock


class SqliteQueue:
    """The queue of the journal in SQLite."""

    def __init__(self) -> None:
        self.queue = CommitQueue()

    def append(self, number: int, rows: int = 1) -> None:
        """Add a request."""
        some = [Part(id_of(number), b"", 1)] * rows
        self.queue.append(Append(Receipt(id_of(number), rows), some, size=66 * rows))

    def add(self) -> None:
        """Add an operation that is not urgent."""
        self.queue.add(Expire())


class PostgresQueue:
    """The queue of the journal in PostgreSQL."""

    def __init__(self) -> None:
        self.queue = PendingOperations()

    def append(self, number: int, rows: int = 1) -> None:
        """Add a request."""
        some = [Part(id_of(number), b"", 1)] * rows
        receipt = Receipt(id_of(number), rows)
        self.queue.append(PendingRequest(receipt, some, None, None, 66 * rows, 0))

    def add(self) -> None:
        """Add an operation that is not urgent."""
        self.queue.end(StoredBatch(batch(job(1))))


Groups = SqliteQueue | PostgresQueue


@pytest.fixture(params=[SqliteQueue, PostgresQueue])
def groups(request: pytest.FixtureRequest) -> Groups:
    """Return a queue of each journal that has one."""
    made: Groups = request.param()
    return made


async def test_large_requests_are_not_prepared_while_many_jobs_wait(groups: Groups) -> None:
    """Otherwise 1,000 requests of 64 bytes of zstd, 10,000 jobs each, fill the memory."""
    queue = groups.queue
    for number in range(10):
        groups.append(number, 1000)
    await queue.wait_for_room()
    groups.append(10, 100)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(queue.wait_for_room)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        while queue.requests_wait:
            queue.take_group()
    for number in range(20):
        groups.append(number, 1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(queue.wait_for_room)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        queue.take_requests()


async def test_an_operation_that_is_not_urgent_waits_a_short_time_for_requests(
    groups: Groups, autojump_clock: MockClock
) -> None:
    """Otherwise each stored object costs an fsync of its own; or its row is never deleted."""
    assert autojump_clock.autojump_threshold == 0
    groups.add()
    start = trio.current_time()
    await groups.queue.wait_until_due()
    assert trio.current_time() - start == pytest.approx(0.05)
    groups.append(1)
    await groups.queue.wait_until_due()
    assert trio.current_time() - start == pytest.approx(0.05)


@pytest.mark.parametrize("before", [1, 2])
async def test_a_commit_after_a_shared_one_waits_a_turn_for_requests(
    groups: Groups, before: int
) -> None:
    """Otherwise half of the clients that are answered together miss the next commit."""
    groups.queue.long_turn = math.inf
    for number in range(before):
        groups.append(number)
    groups.queue.take_group()
    groups.append(9)
    assert await turns_of(groups.queue.wait_until_due) == before


async def test_a_commit_waits_for_one_long_turn_only(groups: Groups) -> None:
    """Requests that wait already would wait for another turn of milliseconds."""
    groups.queue.long_turn = 0.0
    for number in range(2):
        groups.append(number)
    groups.queue.take_group()
    groups.append(9)
    assert await turns_of(groups.queue.wait_until_due) == 1
