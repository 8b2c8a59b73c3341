"""Collects the jobs that are in memory and not settled, so that a repair of the file keeps them.

Such a job can be in several places: on its way from the journal's thread to the event loop, in the
channel, in a batch that a worker uploads, or in an operation that waits for its commit. The event
loop knows the places, the journal's thread needs the jobs: ``collect`` is called in that thread
and asks the event loop, which never waits for the thread.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import outcome
import trio

from payloadd.journal.api import Append, Bury, Settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from payloadd.journal.api import JournalListener, Operation
    from payloadd.journal.sqlite.commit_queue import CommitQueue
    from payloadd.journal.sqlite.database import Database
    from payloadd.model.job import Job

T = TypeVar("T")


class InMemory:
    """The jobs in memory of one journal."""

    def __init__(self, database: Database, listener: JournalListener, groups: CommitQueue) -> None:
        self._database = database
        self._listener = listener
        self._commit_queue = groups
        self._operations: Sequence[Operation] = ()
        self._committed = False
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        """Let the database collect the jobs from now on. Call it in the event loop."""
        self._token = trio.lowlevel.current_trio_token()
        self._database.jobs_in_memory = self.collect

    def begin_commit(self, operations: Sequence[Operation]) -> None:
        """Note which operations are being committed and published."""
        self._operations = operations
        self._committed = False

    def committed(self) -> None:
        """Note, in the journal's thread, that these operations are durable."""
        self._committed = True

    def end_commit(self) -> None:
        """Note that the jobs of the commit were published, or its operations carried over."""
        self._operations = ()

    def collect(self) -> list[Job]:
        """Return the jobs, some of them twice. Call it in the journal's thread."""
        return (_call_in_loop(self._token, self._collect) or []) if self._token else []

    def _collect(self) -> list[Job]:
        jobs = self._listener.jobs_in_memory()
        for handed in list(self._database.handed.values()):
            jobs += handed
        jobs += _unsettled(self._commit_queue.next_group.operations)
        if self._committed:
            for operation in self._operations:
                if isinstance(operation, Append):
                    jobs += operation.jobs
        else:
            jobs += _unsettled(self._operations)
        # A commit that failed has given numbers to jobs that are not accepted.
        following = self._database.totals.next
        return [job for job in jobs if job.seq < following]


def _unsettled(operations: Iterable[Operation]) -> list[Job]:
    """Return the jobs of batches that these operations are about to settle or to bury."""
    jobs: list[Job] = []
    for operation in operations:
        if isinstance(operation, Settle | Bury):
            jobs += operation.batch.jobs
    return jobs


def _call_in_loop(token: trio.lowlevel.TrioToken, function: Callable[[], T]) -> T | None:
    """Run a function in the event loop, from any thread; None once the run has ended."""
    if trio.lowlevel.in_trio_run():
        return function()
    answer: SimpleQueue[outcome.Outcome[T]] = SimpleQueue()
    try:
        token.run_sync_soon(lambda: answer.put(outcome.capture(function)))
    except trio.RunFinishedError:
        return None
    return answer.get().unwrap()
