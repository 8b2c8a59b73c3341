"""The journal: what makes a 2xx a promise.

Intake, filler and workers know this protocol and nothing of SQLite: a queue that machines
share could take its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.errors import RefusedError
    from daemon.pipeline.job import Batch, Job, Part
    from daemon.pipeline.operations import Done, Receipt


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
