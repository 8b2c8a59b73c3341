"""The jobs that are in memory and not settled: a repair of the file keeps their rows.

Such a job can be in several places: on its way from the journal's thread to the event loop, in the
memory channel, in a batch that a worker uploads, or in an operation that waits for its commit. The
event loop knows these places, and the journal's thread needs the jobs. So ``collect`` is called in
that thread and waits for the event loop, which never waits for the thread in turn.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import outcome
import trio

from payloadd.journal.sqlite.operations import Append, Bury, Settle
from payloadd.model.streams import stream_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from payloadd.journal.api import JournalListener
    from payloadd.journal.sqlite.commit_queue import CommitQueue
    from payloadd.journal.sqlite.database import Database
    from payloadd.journal.sqlite.operations import Operation
    from payloadd.model.job import Job

T = TypeVar("T")


class JobsInMemory:
    """Collects the jobs in memory of one journal."""

    def __init__(
        self, database: Database, listener: JournalListener, commit_queue: CommitQueue
    ) -> None:
        self._database = database
        self._listener = listener
        self._commit_queue = commit_queue
        self._operations: Sequence[Operation] = ()
        self._committed = False
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        """Have the database call ``collect`` from now on. Call it in the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        self._database.jobs_in_memory = self.collect

    def begin_commit(self, operations: Sequence[Operation]) -> None:
        """Note the operations that are about to be committed and published."""
        self._operations = operations
        self._committed = False

    def committed(self) -> None:
        """Note that the operations of ``begin_commit`` are durable. Called in the thread."""
        self._committed = True

    def end_commit(self) -> None:
        """Note that the jobs of the commit were published, or its operations queued again."""
        self._operations = ()

    def ending(self) -> set[int]:
        """Return the first ``seq`` of each batch that is settled or buried by the next commits."""
        found: set[int] = set()
        for operation in (*self._operations, *self._queued()):
            if isinstance(operation, Settle | Bury):
                found.add(operation.batch.jobs[0].seq)
        return found

    def _queued(self) -> list[Operation]:
        """Return the operations of the commits after this one."""
        return [*self._commit_queue.next_group.operations, *self._commit_queue.postponed]

    def collect(self) -> list[Job]:
        """Return the jobs, some of them twice; none before ``start``. Called in the thread."""
        return (_call_in_loop(self._token, self._collect) or []) if self._token else []

    def _collect(self) -> list[Job]:
        jobs = self._listener.jobs_in_memory()
        for handed in list(self._database.handed.values()):
            jobs += handed
        jobs += _unsettled(self._queued())
        if self._committed:
            for operation in self._operations:
                if isinstance(operation, Append):
                    jobs += operation.jobs
        else:
            jobs += _unsettled(self._operations)
        # A commit that failed has given numbers to jobs that were not accepted.
        following = self._database.following
        return [job for job in jobs if job.seq < following.get(stream_of(job.seq), 0)]


def _unsettled(operations: Iterable[Operation]) -> list[Job]:
    """Return the jobs of the batches that these operations settle or bury."""
    jobs: list[Job] = []
    for operation in operations:
        if isinstance(operation, Settle | Bury):
            jobs += operation.batch.jobs
    return jobs


def _call_in_loop(token: trio.lowlevel.TrioToken, function: Callable[[], T]) -> T | None:
    """Call a function in the event loop, from any thread, and return its result.

    Returns None once the trio run has ended.
    """
    if trio.lowlevel.in_trio_run():
        return function()
    answer: SimpleQueue[outcome.Outcome[T]] = SimpleQueue()
    try:
        token.run_sync_soon(lambda: answer.put(outcome.capture(function)))
    except trio.RunFinishedError:
        return None
    return answer.get().unwrap()
