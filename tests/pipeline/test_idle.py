"""The workers without a batch, and which task gets the next one."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.pipeline.idle import IdleWorkers, Inbox
from payloadd.pipeline.waiting_batch import WaitingBatch


def inbox() -> Inbox:
    """Return the sending end of a worker's channel."""
    return trio.open_memory_channel[WaitingBatch](0)[0]


async def test_a_batch_that_was_put_back_gets_the_next_worker(nursery: trio.Nursery) -> None:
    """While new batches are always ready, no failed batch would ever be tried again."""
    idle = IdleWorkers(2)
    got: list[tuple[str, Inbox]] = []

    async def new() -> None:
        got.append(("new", await idle.take_for_new()))

    async def put_back() -> None:
        got.append(("put back", await idle.claim()))

    nursery.start_soon(new)
    await wait_all_tasks_blocked()
    nursery.start_soon(put_back)
    await wait_all_tasks_blocked()
    first, second = inbox(), inbox()
    idle.register(first)
    await wait_all_tasks_blocked()
    idle.register(second)
    await wait_all_tasks_blocked()
    assert got == [("put back", first), ("new", second)]


async def test_fewer_workers_get_batches_with_less_concurrency(nursery: trio.Nursery) -> None:
    """A slow line would be shared by so many uploads that none progresses."""
    idle = IdleWorkers(3)
    for _ in range(3):
        idle.register(inbox())
    idle.concurrency = 2
    await idle.take_for_new()
    await idle.take_for_new()
    nursery.start_soon(idle.take_for_new)
    await wait_all_tasks_blocked()
    assert (idle.busy, len(nursery.child_tasks)) == (2, 1)
    idle.concurrency = 3
    idle.wake()
    await wait_all_tasks_blocked()
    assert (idle.busy, len(nursery.child_tasks)) == (3, 0)


async def test_all_workers_are_dismissed_when_they_become_idle(nursery: trio.Nursery) -> None:
    """The drain would hang, or end under a worker that uploads."""
    idle = IdleWorkers(2)
    first, second = inbox(), inbox()
    idle.register(first)
    nursery.start_soon(idle.dismiss_all)
    await wait_all_tasks_blocked()
    assert nursery.child_tasks
    idle.register(second)
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks
