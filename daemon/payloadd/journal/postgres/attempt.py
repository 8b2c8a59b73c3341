"""The commit of one group: how far it has come, and the reports and answers that follow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.postgres.lane import slot_of
from payloadd.journal.postgres.session import CommitOutcome
from payloadd.journal.postgres.state import outcome_unknown
from payloadd.journal.postgres.transaction import Commit
from payloadd.model.streams import DEFAULT, stream_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.api import JournalListener
    from payloadd.journal.postgres.lane import Lane
    from payloadd.journal.postgres.operations import PendingRequest
    from payloadd.journal.postgres.pending import CommittedTogether
    from payloadd.model.job import Job

_TURN: Final = 0.002
"""Seconds for which responses may occupy the event loop without a pause."""
_CLOCK_MASK: Final = 7
"""The clock is read before every eighth response."""
_OFFERED: Final = 8000
"""Jobs that the pipeline gets in one call."""


class Attempt:
    """A group, and how far its commit has come."""

    def __init__(self, group: CommittedTogether) -> None:
        self.group = group
        self.commit = Commit(group.appends, [seal.batch for seal in group.seals])
        self.committed = False
        self.failures = 0
        """Errors so far."""

    def note(self, outcome: CommitOutcome) -> None:
        """Note what became of the commit; it is not asked again once it is committed."""
        if outcome is CommitOutcome.COMMITTED:
            self.committed = True
        elif outcome is CommitOutcome.UNKNOWN:
            self.refuse(outcome_unknown("another process has taken the lane"))

    def refuse(self, refusal: RefusedError) -> None:
        """Answer all requests that have no answer yet."""
        for append in self.commit.appends:
            if append.done is not None:
                append.done(refusal)
                append.done = None

    def drop_refused(self) -> None:
        """Do not commit requests that have been refused."""
        self.commit.appends = [one for one in self.commit.appends if one.done is not None]


async def publish(attempt: Attempt, listener: JournalListener, lanes: Mapping[int, Lane]) -> None:
    """Report a commit to the pipeline, in the order of acceptance, then answer its requests.

    ``lanes``: the held lanes by slot. Jobs of a lane that was lost meanwhile are in the journal,
    and another process stores them.
    """
    accepted = 0
    of_stream: dict[int, list[Job]] = {DEFAULT: []}
    for append in attempt.commit.appends:
        if append.earlier is None:
            accepted += append.receipt.payloads
            of_stream.setdefault(append.stream, []).extend(append.jobs)
    listener.accepted(accepted)
    for stream, jobs in of_stream.items():
        if stream != DEFAULT:
            listener.accepted_in(stream, sum([job.payloads for job in jobs]))
        if jobs and slot_of(jobs[0].seq) not in lanes:
            listener.taken_away([stream_of(jobs[0].seq)], sum([job.payloads for job in jobs]))
        else:
            await _offer(jobs, listener)
    for seal in attempt.group.seals:
        seal.ended.set()
    await _answer(attempt.commit.appends)


async def _offer(jobs: Sequence[Job], listener: JournalListener) -> None:
    for start in range(0, len(jobs), _OFFERED):
        if start:
            await trio.lowlevel.checkpoint()
        listener.committed(jobs[start : start + _OFFERED])


async def _answer(appends: Sequence[PendingRequest]) -> None:
    end = time.perf_counter() + _TURN
    for index, append in enumerate(appends):
        if append.done is None:
            continue
        # A callback writes to a socket: those of a full commit would hold up the event loop.
        if index & _CLOCK_MASK == _CLOCK_MASK and time.perf_counter() > end:
            await trio.lowlevel.checkpoint()
            end = time.perf_counter() + _TURN
        append.done(append.earlier or append.receipt)
