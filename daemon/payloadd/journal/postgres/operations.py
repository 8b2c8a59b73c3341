"""Operations: a class for each kind of change to the journal in PostgreSQL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.api import OutcomeCallback, Receipt
    from payloadd.model.job import Batch, Job, Part


@dataclass(slots=True, eq=False)
class PendingRequest:
    """Accept one request.

    The commit sets ``jobs``, or ``earlier`` where the request's Idempotency-Key is known.
    """

    receipt: Receipt
    parts: Sequence[Part]
    key: bytes | None
    done: OutcomeCallback | None
    """Called once with the outcome; None afterwards."""
    size: int
    """Bytes that count towards JOURNAL_MAX_BYTES."""
    stream: int
    marks: bytes | None = None
    """The fingerprint of the request, if it is not that of ``parts``."""
    jobs: list[Job] = field(default_factory=list)
    earlier: Receipt | RefusedError | None = None


@dataclass(slots=True, eq=False)
class PendingSeal:
    """Fix the members, the key and the format of an object before its first upload."""

    batch: Batch
    ended: trio.Event = field(default_factory=trio.Event)
    """Set when the batch is sealed, or lost."""
    lost: bool = False
    """Whether another process has the lane of the batch."""


@dataclass(slots=True, eq=False)
class StoredBatch:
    """Remove a batch that the store has confirmed."""

    batch: Batch


@dataclass(slots=True, eq=False)
class RefusedBatch:
    """Make a dead letter of a batch that the store refused for good."""

    batch: Batch
    code: str
    reason: str
