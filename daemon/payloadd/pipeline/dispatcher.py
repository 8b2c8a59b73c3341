"""Give batches to idle workers.

Each worker has a channel of its own without a buffer. An idle worker puts the sending end of it
into the channel of idle workers; the dispatcher takes one, forms a batch and sends it. So a job
stays in the bounded channel, where it is counted, until a worker can upload it, and an upload that
hangs blocks one worker alone. While each job has its own object and more jobs are ready, workers
that finish get the next job without the dispatcher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from payloadd.pipeline.worker import Inbox

if TYPE_CHECKING:
    from payloadd.pipeline.batching import Batcher
    from payloadd.pipeline.worker import Worker


async def dispatch(
    batcher: Batcher,
    worker: Worker,
    count: int,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run ``count`` workers and give them batches; return when all is uploaded.

    Each worker is a task that runs ``worker.run``.
    """
    # The capacity is one entry for each worker, so that registering never waits.
    register, idle = trio.open_memory_channel[Inbox](count)
    async with trio.open_nursery() as timers:
        timers.start_soon(worker.timeout.run)
        async with register, idle, trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(worker.run, register, batcher.next_batch_nowait)
            task_status.started()
            await _distribute(batcher, idle, count)
        timers.cancel_scope.cancel()


async def _distribute(batcher: Batcher, idle: trio.MemoryReceiveChannel[Inbox], count: int) -> None:
    """Send all batches, then close the inbox of each worker."""
    dismissed = 0
    while dismissed < count:
        inbox = await _next_idle(idle)
        # A single job that is ready needs no waiting: fewer calls.
        batch = batcher.next_batch_nowait() or await batcher.next_batch()
        if batch is None:
            # Each worker registers once more after its last upload.
            await inbox.aclose()
            dismissed += 1
        else:
            # The worker waits on its inbox by now: between registering and waiting no other task
            # runs, unless everything is cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            inbox.send_nowait(batch)
        del batch  # else it stays in memory while this task waits for the next one


async def _next_idle(idle: trio.MemoryReceiveChannel[Inbox]) -> Inbox:
    """Return the inbox of an idle worker; without a task switch if one has registered."""
    try:
        return idle.receive_nowait()
    except trio.WouldBlock:
        return await idle.receive()
