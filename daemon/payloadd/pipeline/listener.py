"""Pass on the reports of the journal to the queue and to the accounting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.pipeline.accounting import OldestJobs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.queue import JobChannel
    from payloadd.pipeline.refill import QueueFeeder


class PipelineListener:
    """The pipeline as a journal sees it; see the protocol ``JournalListener``."""

    def __init__(
        self, channel: JobChannel, feeder: QueueFeeder, accounting: Accounting, metrics: Metrics
    ) -> None:
        self._feeder = feeder
        self._accounting = accounting
        self._metrics = metrics
        self.queue_bytes = channel.max_bytes
        # Bound here and not wrapped in methods: they are called for each commit or each request.
        self.committed = feeder.offer
        self.left_for_page = feeder.leave
        self.accepted = accounting.accept
        self.accepted_in = accounting.accept_in
        self.taken = accounting.take
        self.acknowledged = accounting.acknowledge
        self.seconds_for = accounting.rate.seconds_for
        self.jobs_in_memory = accounting.jobs
        self.holds = accounting.holds
        self.replayed = accounting.enter
        self.has_room = channel.has_room

    def opened(self, newest: Mapping[int, int], payloads: int) -> None:
        """Begin with a journal with these newest jobs, by stream, and with so many payloads."""
        self._accounting.found = payloads
        self._accounting.newest_found = dict(newest)
        self._feeder.resume(newest)

    def taken_over(self, newest: Mapping[int, int], payloads: int) -> None:
        """Begin with the jobs of a lane that another process had."""
        self._accounting.found += payloads
        self._accounting.newest_found.update(newest)
        self._feeder.resume(newest)
        self._feeder.nudge()

    def taken_away(self, streams: Collection[int], payloads: int) -> None:
        """Forget the jobs of streams that another process stores."""
        self._accounting.found -= payloads
        self._feeder.forget(streams)

    def closed(self, payloads: int) -> None:
        """Note the payloads that stay in the journal."""
        self._accounting.journaled = payloads

    def revived(self, payloads: int) -> None:
        """Count dead letters that are tried again, and have their sealed batches uploaded."""
        self._accounting.revive(payloads)
        self._feeder.nudge()

    def damaged(self, payloads: int) -> None:
        """Count payloads that became dead letters because the journal cannot read them."""
        self._accounting.dead += payloads
        self._metrics.dead.inc(payloads)

    def discarded(self, payloads: int) -> None:
        """Count payloads that the store refused for good and that the journal does not keep."""
        self._accounting.unkept += payloads

    def oldest_accepted(
        self, since: float | None, by_stream: Mapping[int, tuple[int, int]] | None = None
    ) -> None:
        """Note when the oldest job in the journal was accepted, of all and of each stream."""
        self._accounting.kept_since = since
        if by_stream is not None:
            self._accounting.oldest_jobs = OldestJobs(
                by_stream, self._accounting.oldest_jobs.number + 1
            )

    @property
    def open_payloads(self) -> int:
        """Accepted payloads that are neither stored nor dead."""
        return self._accounting.open
