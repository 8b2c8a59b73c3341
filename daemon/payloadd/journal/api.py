"""The journal: what makes a 2xx a promise.

Intake, filler and workers know this protocol and nothing of SQLite: a queue that machines
share could take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from payloadd.journal.operations import Done, Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.errors import RefusedError
    from payloadd.model.job import Batch, Job, Part

__all__ = [
    "Done",
    "DrainEstimate",
    "Journal",
    "JournalAccounts",
    "JournalListener",
    "QueueRoom",
    "Receipt",
]


class Journal(Protocol):
    """What intake, filler and workers need of a journal."""

    def append(
        self, receipt: Receipt, parts: Sequence[Part], key: bytes | None, done: Done
    ) -> None:
        """Take in a request; ``done`` hears what to answer it with, once it is durable.

        That is ``receipt``, or the earlier one where the hash ``key`` of an Idempotency-Key is
        known; or a RefusedError where it could not be written. Raises RefusedError or
        TooLargeError at once where that is known by now. Refused is: nothing was taken in.
        """
        ...

    async def wait_for_room(self) -> None:
        """Return once few large requests wait for a commit.

        The parts of a request may take many times the memory of its body.
        """
        ...

    def refusal(self) -> RefusedError | None:
        """Return why a small request would be refused now, or None."""
        ...

    async def seal(self, batch: Batch) -> None:
        """Return once the members and the key of ``batch`` are durable; never fails."""
        ...

    def settle(self, batch: Batch) -> None:
        """Forget a batch that the store confirmed, soon."""
        ...

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """Keep a batch that the store refused for good as a dead letter, soon."""
        ...

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next unsealed jobs behind ``after``, in order; empty at the end."""
        ...

    async def pulse(self) -> None:
        """Return once what a request waits for has come round: a sign of life."""
        ...

    async def sealed(self) -> Batch | None:
        """Return the next batch that was sealed before a crash, whole; None after the last."""
        ...


class JournalListener(Protocol):
    """What a journal tells the pipeline, always from the event loop.

    The jobs of one journal have ascending ``seq``, and those of one commit neighbouring ones. Each
    is offered once, in order, after it is durable; jobs found at the start are not offered.
    """

    def resume(self, newest: int) -> None:
        """Note the newest job of a journal that was just opened: ``page`` returns it."""
        ...

    def offer(self, jobs: Sequence[Job]) -> None:
        """Take jobs that were just committed, or leave them for ``page``."""
        ...

    def leave(self, newest: int) -> None:
        """Note that committed jobs up to ``newest`` are not offered: ``page`` returns them."""
        ...

    def nudge(self) -> None:
        """Call ``sealed`` again: dead letters were made sealed batches."""
        ...


class DrainEstimate(Protocol):
    """How fast payloads leave the pipeline."""

    def seconds_for(self, payloads: int) -> int:
        """Return the whole seconds in which ``payloads`` leave at the present rate."""
        ...


class JournalAccounts(Protocol):
    """The counts of payloads that a journal keeps up to date."""

    kept_since: float | None
    """When the oldest job in the journal was accepted, in Unix time."""
    found: int
    """Payloads that were in the journal when it was opened."""
    journaled: int
    """Payloads that were in the journal when it was closed."""
    dead: int
    """Payloads in dead letters."""
    unkept: int
    """Payloads that the store refused for good and that no journal keeps."""

    @property
    def rate(self) -> DrainEstimate:
        """The rate at which payloads leave."""
        ...

    @property
    def open(self) -> int:
        """Payloads that are neither stored nor dead."""
        ...

    def accept(self, payloads: int) -> None:
        """Count payloads that are durable."""
        ...

    def revive(self, payloads: int) -> None:
        """Count dead letters that are tried again."""
        ...

    def jobs(self) -> list[Job]:
        """Return the jobs that were offered or entered and are not settled."""
        ...

    def enter(self, jobs: Sequence[Job]) -> None:
        """Note jobs that go to a worker without being offered."""
        ...


class QueueRoom(Protocol):
    """The bounds of the memory channel, for a journal that keeps nothing itself."""

    max_bytes: int

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether so many jobs of ``size`` bytes together fit now."""
        ...
