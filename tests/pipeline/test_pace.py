"""How many workers upload where their own work makes the turns of the event loop long."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from payloadd.observe.instruments import CounterValue
from payloadd.pipeline import pace
from payloadd.pipeline.idle import IdleWorkers, Inbox
from payloadd.pipeline.pace import LEAST, UploadPace
from payloadd.pipeline.waiting_batch import WaitingBatch
from tests.pipeline.rig import FaultyStore, Pipeline

if TYPE_CHECKING:
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members


def workers(count: int) -> IdleWorkers:
    """Return workers that all have a batch."""
    return IdleWorkers(count)


def inbox() -> Inbox:
    """Return the sending end of a worker's channel."""
    return trio.open_memory_channel[WaitingBatch](0)[0]


def test_long_turns_of_uploads_leave_fewer_workers() -> None:
    """A request would wait for an upload of each worker in each of the turns of its commit."""
    idle = workers(64)
    upload_pace = UploadPace(idle, CounterValue())
    upload_pace.adapt(0.004, 64)
    assert idle.paced == 64 - 48
    upload_pace.adapt(1, 64)
    assert idle.paced == 64 - 24  # a single measurement halves them
    upload_pace.adapt(1, 64)
    upload_pace.adapt(1, 64)
    assert idle.paced == 64 - LEAST


@pytest.mark.parametrize(("seconds", "uploads"), [(0.0029, 64), (1, LEAST - 1)])
def test_short_turns_and_a_slow_store_leave_all_workers(seconds: float, uploads: int) -> None:
    """Uploads that wait for the store would be fewer than it can take."""
    idle = workers(64)
    upload_pace = UploadPace(idle, CounterValue())
    upload_pace.adapt(seconds, uploads)
    assert idle.paced == 0
    idle.paced = 48
    found = []
    while idle.paced:
        upload_pace.adapt(seconds, uploads)
        found.append(idle.paced)
    assert found == [46, 44, 42, 40, 37, 34, 31, 27, 23, 18, 13, 7, 0]


def test_few_workers_all_upload() -> None:
    """MAX_WORKERS may be small."""
    idle = workers(LEAST)
    UploadPace(idle, CounterValue()).adapt(1, LEAST)
    assert idle.paced == 0


async def test_no_turn_is_measured_while_few_workers_upload(nursery: trio.Nursery) -> None:
    """An idle daemon would wake up a hundred times a second."""
    idle = workers(20)
    for _ in range(20):
        idle.register(inbox())
    nursery.start_soon(idle.wait_until_busy, LEAST)
    for _ in range(LEAST):
        await idle.take_for_new()
    await wait_all_tasks_blocked()
    assert nursery.child_tasks
    await idle.take_for_new()
    await wait_all_tasks_blocked()
    assert not nursery.child_tasks


class BusyStore(FaultyStore):
    """A store whose uploads are all work of the event loop: 0.2 ms each, in one turn."""

    clock: MockClock

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object."""
        self.clock.jump(0.0002)
        await super().put(key, body, members, repeat=repeat)


async def test_workers_share_short_turns(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with all parts: 64 workers would make turns of 13 ms."""
    monkeypatch.setattr(pace, "thread_time", trio.current_time)
    store = BusyStore()
    store.clock = mock_clock
    pipeline = Pipeline(store, 64, MAX_QUEUE="20000")
    times: list[float] = []
    async with pipeline.open():
        await pipeline.intake.accept([b"1"] * 4000)
        while len(store.objects) < 4000:
            times.append(trio.current_time())
            await trio.lowlevel.checkpoint()
    assert (times[-1] - times[-201]) / 200 < 0.006
