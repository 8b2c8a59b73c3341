"""Give batches to idle workers: new batches, and batches that were put back.

Each worker has a channel of its own without a buffer. An idle worker registers the sending end of
it; a task here that has a batch sends it there. So a job stays in the bounded channel, or in the
one batch of its stream, where it is counted, until a worker can upload it, and an upload that hangs
blocks one worker alone. While each job has its own object, more jobs are ready and nothing fails,
workers that finish get the next job without the dispatcher.

Streams take turns: with batches each stream has a task, and these tasks queue for idle workers; a
stream with a long backlog queues again behind the others after each batch. With one object a
payload the channel itself hands out the jobs of the streams in turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from payloadd.pipeline.waiting_batch import WaitingBatch

if TYPE_CHECKING:
    from payloadd.model.job import Batch
    from payloadd.pipeline.batching import Batcher
    from payloadd.pipeline.stream_queue import StreamQueue
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
        if admission.probe is not None:
            timers.start_soon(admission.probe)
        async with trio.open_nursery() as nursery:
            for _ in range(idle.count):
                nursery.start_soon(worker.run, idle.register, batcher.next_batch_nowait)
            async with trio.open_nursery() as senders:
                senders.start_soon(_send_put_back, worker)
                task_status.started()
                if batcher.alone:
                    await _send_singles(batcher, worker)
                else:
                    await _send_streams(batcher, worker)
                put_back.finish()
            await idle.dismiss_all()
        admission.finish()
        timers.cancel_scope.cancel()


async def _send_singles(batcher: Batcher, worker: Worker) -> None:
    """Give all new jobs to workers, each as a batch, as far as they are admitted."""
    admission = worker.admission
    idle = admission.idle
    async with trio.open_nursery() as parked:
        while True:
            await idle.wait_for_new()
            # A single job that is ready needs no waiting: fewer calls.
            batch = batcher.next_batch_nowait() or await batcher.next_single()
            if batch is None:
                break
            if admission.direct or (admitted := await admission.admit(batch)):
                inbox = await idle.take_for_new()  # as in _send, without the call for each object
                await trio.lowlevel.checkpoint_if_cancelled()
                inbox.send_nowait(WaitingBatch(batch))
            elif admitted is None:
                queue = batcher.channel.queue_of(batch.jobs[0].seq)
                batcher.channel.park(queue)
                parked.start_soon(_send_parked, batch, queue, batcher, worker)
            del batch  # else it stays in memory while this task waits for the next one


async def _send_parked(batch: Batch, queue: StreamQueue, batcher: Batcher, worker: Worker) -> None:
    """Give a worker the batch of a stream that has to wait for it, and let the stream go on."""
    while (admitted := await worker.admission.admit(batch)) is None:
        await worker.admission.wait_for_limit()
    if admitted:
        await _send(batch, worker)
    batcher.channel.unpark(queue)


async def _send_streams(batcher: Batcher, worker: Worker) -> None:
    """Give all new batches to workers, with a task for each stream that has jobs."""
    channel = batcher.channel
    turn = trio.StrictFIFOLock()
    async with trio.open_nursery() as streams:

        def start(queue: StreamQueue) -> None:
            streams.start_soon(_send_stream, queue, batcher, worker, turn)

        channel.activated = start
        for queue in channel.streams.values():
            if queue.active:
                start(queue)
        await channel.wait_closed()


async def _send_stream(
    queue: StreamQueue, batcher: Batcher, worker: Worker, turn: trio.StrictFIFOLock
) -> None:
    """Give all new batches of a stream to workers, as far as they are admitted."""
    admission = worker.admission
    while await batcher.form(queue) is not None:
        async with turn:
            await admission.idle.wait_for_new()
            batcher.add_ready(queue)  # what came while the others had their turns
            batches = await batcher.finish(queue)
            while batches and await _send_if_admitted(batches[0], worker):
                del batches[0]
        # The others go on while a limit of the prefix holds the rest.
        while batches:
            await admission.wait_for_limit()
            async with turn:
                while batches and await _send_if_admitted(batches[0], worker):
                    del batches[0]


async def _send_if_admitted(batch: Batch, worker: Worker) -> bool:
    """Give a batch to a worker, or have it kept; return False if neither is possible now."""
    admission = worker.admission
    if admission.direct or (admitted := await admission.admit(batch)):
        await _send(batch, worker)
        return True
    return admitted is not None


async def _send(batch: Batch, worker: Worker) -> None:
    inbox = await worker.admission.idle.take_for_new()
    # The worker waits on its inbox by now: between registering and waiting no other task runs,
    # unless everything is cancelled.
    await trio.lowlevel.checkpoint_if_cancelled()
    inbox.send_nowait(WaitingBatch(batch))


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
