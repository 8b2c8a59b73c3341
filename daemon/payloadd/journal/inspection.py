"""What ``payloadd journal`` can do with a journal that a running daemon may have open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.observe.status import DeadLetterGroup, JournalStatus


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter, as ``payloadd journal dead`` lists it."""

    id: str
    at: int
    """Unix time in seconds."""
    code: str
    reason: str
    key: str
    payloads: int
    bytes: int
    retry: int
    """1 if it is marked to be tried again, else 0."""
    stream: str | None
    """The name of the stream; None for lost jobs of which it is not known."""


class JournalInspection(Protocol):
    """A durable journal as another process sees it; ``open.inspect_journal`` returns it.

    Every method raises PayloaddError where the journal cannot be read, and for an unknown id.
    """

    def status(self) -> JournalStatus:
        """Return the current counts, bytes and ages."""
        ...

    def dead(self) -> list[DeadLetter]:
        """Return the dead letters, the oldest first."""
        ...

    def dead_groups(self) -> list[DeadLetterGroup]:
        """Return the numbers of dead letters by stream and code."""
        ...

    def verify(self) -> Sequence[Any]:
        """Read and check everything; return a dataclass for each piece of damage."""
        ...

    def lines(self, id_: str) -> bytes:
        """Return the payloads of a dead letter as NDJSON."""
        ...

    def retry(self, ids: Sequence[str]) -> int:
        """Mark dead letters (all, if ``ids`` is empty) for a retry; return their number.

        The daemon reports them with ``JournalListener.revived``, and ``Journal.sealed`` returns
        them as the batches that they were.
        """
        ...

    def drop(self, ids: Sequence[str]) -> int:
        """Delete dead letters with their payloads; return their number."""
        ...
