"""Operations: a class for each kind of change to the journal in SQLite.

Operations of many tasks are committed together, in one transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from payloadd.model.streams import DEFAULT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.errors import RefusedError
    from payloadd.journal.api import OutcomeCallback, Receipt
    from payloadd.model.job import Batch, Job, Part


@dataclass(slots=True)
class Append:
    """Accept one request.

    The commit sets ``jobs``. If the request's Idempotency-Key (its hash is ``key``) is known, it
    sets ``earlier``, the outcome for the request, and accepts nothing. ``done`` is called with the
    outcome.
    """

    receipt: Receipt
    parts: Sequence[Part]
    key: bytes | None = None
    done: OutcomeCallback | None = None
    size: int = 0
    """Bytes that count towards JOURNAL_MAX_BYTES."""
    stream: int = DEFAULT
    """The number of the request's stream."""
    jobs: list[Job] = field(default_factory=list)
    earlier: Receipt | RefusedError | None = None
    staged: int = 0
    """The number of parts, from the first on, that earlier commits have written; see ``Stage``."""
    first: int = 0
    """The ``seq`` of the first part, if parts were staged."""
    marks: bytes | None = None
    """The fingerprint of the request, if it is not that of ``parts``."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Write the parts ``start`` to ``end`` of a request with too many parts for one commit.

    The rows become part of the journal when the request itself is committed.
    """

    append: Append
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Delete the rows that were staged for a request, because the request was refused."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Fix the members, the key and the compression of an object before its first upload."""

    batch: Batch


@dataclass(slots=True)
class Settle:
    """Remove a batch that the store has confirmed."""

    # Not frozen: a frozen dataclass takes longer to build, and each object needs this operation.
    batch: Batch


@dataclass(frozen=True, slots=True)
class Bury:
    """Make a dead letter of a batch that the store refused for good."""

    batch: Batch
    code: str
    reason: str


@dataclass(slots=True)
class Revive:
    """Turn dead letters that an operator has marked into sealed batches, a bounded number of them.

    The commit sets the first ``seq`` of each, the payloads of all, and whether more are marked.
    """

    firsts: list[int] = field(default_factory=list)
    payloads: int = 0
    more: bool = False


@dataclass(slots=True)
class Expire:
    """Delete expired Idempotency-Keys, a bounded number; the commit sets whether there are more."""

    more: bool = False


@dataclass(frozen=True, slots=True)
class Clear:
    """Ask for a commit: each commit deletes some rows of stored batches."""


Operation = Append | Stage | Abandon | Seal | Settle | Bury | Revive | Expire | Clear
