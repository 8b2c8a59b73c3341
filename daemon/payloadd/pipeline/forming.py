"""A batch that is formed: its members so far, and which job may be the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from payloadd.model.job import Job
    from payloadd.model.layout import Layouts


class FormingBatch:
    """The members of a batch that has no worker yet.

    A *spilled* batch does not have its members in memory: only their number, their bytes and the
    range of ``seq`` that the journal has them under.
    """

    __slots__ = (
        "_end",
        "_high",
        "_low",
        "_next",
        "bytes",
        "bytes_left",
        "ended",
        "first",
        "jobs",
        "members",
        "payloads_left",
        "spilled",
    )

    def __init__(self, first: Job, layouts: Layouts, max_payloads: int, max_bytes: int) -> None:
        """Begin without a member; the first one has to be ``first``, however large it is."""
        self.first = first.seq
        self.jobs: list[Job] = []
        """The members; none if the batch is spilled."""
        self.members = 0
        self.bytes = 0
        self.spilled = False
        if layouts.layout_of(first.seq).alone:
            max_payloads = max_bytes = 0
        self.payloads_left = max(max_payloads, first.payloads)
        """The number of payloads that still fit."""
        self.bytes_left = max(max_bytes, len(first.lines))
        """The number of bytes that still fit."""
        self._next = first.seq
        self._end = layouts.next_change(first.seq)
        self._low, self._high = layouts.ids_beside(first)
        self.ended = False
        """Whether no further job may be a member."""

    @property
    def last(self) -> int:
        """The ``seq`` of the last member."""
        return self._next - 1

    @property
    def wants_more(self) -> bool:
        """Whether another job may fit."""
        return not self.ended and self.payloads_left > 0 and self.bytes_left > 0

    def count_fitting(self, ready: Iterable[Job]) -> int:
        """Return how many of the jobs fit, one after the other, and count them as members.

        The journal names the members by a range of ``seq``, so a gap ends the batch. So does a job
        with another time in its key, or with another layout.
        """
        if self.ended:
            return 0
        following, end, low, high = self._next, self._end, self._low, self._high
        payloads, size = self.payloads_left, self.bytes_left
        for job in ready:
            if (
                (payloads_left := payloads - job.payloads) < 0
                or (bytes_left := size - len(job.lines)) < 0
                or job.seq != following
                or following == end
                or not low <= job.id.int < high
            ):
                self.ended = True
                break
            payloads, size = payloads_left, bytes_left
            following += 1
        count = following - self._next
        self.members += count
        self.bytes += self.bytes_left - size
        self.payloads_left, self.bytes_left, self._next = payloads, size, following
        return count

    def spill(self) -> list[Job]:
        """Forget the members, and return them."""
        jobs, self.jobs = self.jobs, []
        self.spilled = True
        return jobs
