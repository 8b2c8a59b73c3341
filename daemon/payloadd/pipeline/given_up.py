"""Drop jobs whose requests were given up (``DURABILITY=store``).

Such a request had an error for an answer, so its jobs were not promised and take memory for
nothing. Jobs in the channel and batches that wait for another attempt are dropped at once, an
upload under way is cancelled. A batch that has one wanted job is uploaded whole if it was tried
before: a repetition must have the same bytes. Before the first attempt the others are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.journal.api import UnstoredRequests
    from payloadd.model.job import Batch, Job
    from payloadd.pipeline.put_back import PutBackBatches
    from payloadd.pipeline.queue import JobChannel


class GivenUpJobs:
    """Knows which jobs are wanted, and drops the others."""

    def __init__(
        self,
        requests: UnstoredRequests,
        channel: JobChannel,
        put_back: PutBackBatches,
        cancel_uploads: Callable[[Callable[[Batch], bool]], None],
    ) -> None:
        """Drop jobs whenever ``requests`` gives some up.

        ``cancel_uploads`` cancels those of the batches for which its argument returns False.
        """
        self._wants = requests.wants
        self._channel = channel
        self._put_back = put_back
        self._accounting = put_back.accounting
        self._cancel_uploads = cancel_uploads
        requests.given_up = self.drop_all

    def is_wanted(self, batch: Batch) -> bool:
        """Return whether a request waits for one of the jobs of a batch."""
        return any(map(self._wants, batch.jobs))

    def drop_all(self) -> None:
        """Drop all jobs and batches in memory that are not wanted."""
        for queue in self._channel.streams.values():
            if queue.jobs:
                self._accounting.drop(self._channel.drop_first(queue, self._wants))
        for batch in self._put_back.withdraw(self.is_wanted):
            self.drop(batch.jobs)
        self._cancel_uploads(self.is_wanted)

    def drop(self, jobs: Sequence[Job]) -> None:
        """Drop received jobs."""
        self._accounting.drop(jobs)
        self._channel.release(sum([len(job.lines) for job in jobs]))

    def left_of(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs of a new batch without the first ones that are not wanted; drop these.

        Requests are given up in the order in which they came, so the others are wanted.
        """
        count = next((index for index, job in enumerate(jobs) if self._wants(job)), len(jobs))
        if count:
            self.drop(jobs[:count])
        return jobs[count:]
