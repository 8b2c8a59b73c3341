"""Give batches to idle workers: new batches, and batches that were put back.

Each worker has a channel of its own without a buffer. An idle worker registers the sending end of
it; a task here that has a batch sends it there. So a job stays in the bounded channel, where it is
counted, until a worker can upload it, and an upload that hangs blocks one worker alone. While each
job has its own object, more jobs are ready and nothing fails, workers that finish get the next job
without the dispatcher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from payloadd.pipeline.waiting_batch import WaitingBatch

if TYPE_CHECKING:
    from payloadd.pipeline.batching import Batcher
    from payloadd.pipeline.worker import Worker


async def dispatch(
    batcher: Batcher,
    worker: Worker,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the workers and give them batches.

    Returns when all is uploaded, or left to the journal because the store does not take it.
    """
    admission = worker.admission
    idle, put_back = admission.idle, admission.put_back
    async with trio.open_nursery() as timers:
        timers.start_soon(worker.timeout.run)
        timers.start_soon(admission.run)
        async with trio.open_nursery() as nursery:
            for _ in range(idle.count):
                nursery.start_soon(worker.run, idle.register, batcher.next_batch_nowait)
            async with trio.open_nursery() as senders:
                senders.start_soon(_send_put_back, worker)
                task_status.started()
                await _send_new(batcher, worker)
                put_back.finish()
            await idle.dismiss_all()
        admission.finish()
        timers.cancel_scope.cancel()


async def _send_new(batcher: Batcher, worker: Worker) -> None:
    """Give all new batches to workers, as far as they are admitted."""
    admission = worker.admission
    idle = admission.idle
    while True:
        await idle.wait_for_new()
        # A single job that is ready needs no waiting: fewer calls.
        batch = batcher.next_batch_nowait() or await batcher.next_batch()
        if batch is None:
            return
        if admission.direct or await admission.admit(batch):
            inbox = await idle.take_for_new()
            # The worker waits on its inbox by now: between registering and waiting no other task
            # runs, unless everything is cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            inbox.send_nowait(WaitingBatch(batch))
        del batch  # else it stays in memory while this task waits for the next one


async def _send_put_back(worker: Worker) -> None:
    """Give batches that were put back to workers when they may be tried again."""
    admission = worker.admission
    while (waiting := await admission.put_back.next_ready()) is not None:
        admission.direct = False
        inbox = await admission.idle.claim()
        admission.update()
        await trio.lowlevel.checkpoint_if_cancelled()  # as above
        inbox.send_nowait(waiting)
        del waiting  # as above
