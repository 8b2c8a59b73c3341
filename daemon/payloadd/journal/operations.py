"""What can be written into a journal: each kind of change as a value.

Operations of many tasks are carried out together in one transaction; see ``api.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from payloadd.errors import RefusedError

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from payloadd.model.job import Batch, Job, Part


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a request is answered with: the id that names it, and how many payloads it had."""

    id: uuid.UUID
    payloads: int


Done = Callable[[Receipt | RefusedError], None]
"""Called once, from the event loop, when a request is durable or cannot become so.

It must neither raise nor take long: all who wait for the same commit wait for it.
"""


@dataclass(slots=True)
class Append:
    """Take in one request.

    The commit fills in ``jobs``; or ``earlier``, where the request's Idempotency-Key (its
    hash in ``key``) has been answered before, and then nothing is taken in. ``done`` hears
    what became of it.
    """

    receipt: Receipt
    parts: Sequence[Part]
    key: bytes | None = None
    done: Done | None = None
    size: int = 0
    """Bytes that count into JOURNAL_MAX_BYTES."""
    jobs: list[Job] = field(default_factory=list)
    earlier: Receipt | None = None
    staged: int = 0
    """Parts, the first ones, that were written by earlier commits; see ``Stage``."""
    first: int = 0
    """The ``seq`` of the first part, if parts were staged."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Write the parts ``start`` to ``end`` of a request with too many parts for one commit.

    The rows are not part of the journal before the request itself is committed.
    """

    append: Append
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Give up the rows that were staged for a request, because the request was refused."""


@dataclass(frozen=True, slots=True)
class Seal:
    """Fix the members, the key and the compression of an object before it is first sent."""

    batch: Batch


@dataclass(slots=True)
class Settle:
    """Forget a batch that the store confirmed. Not frozen, as Batch is not: one an object."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Bury:
    """Make a dead letter of a batch that the store refused for good."""

    batch: Batch
    code: str
    reason: str


@dataclass(slots=True)
class Revive:
    """Bring back some of the dead letters that an operator wants tried again.

    The commit fills in the first ``seq`` of each, the payloads of all, and whether there are more.
    """

    firsts: list[int] = field(default_factory=list)
    payloads: int = 0
    more: bool = False


@dataclass(slots=True)
class Expire:
    """Forget Idempotency-Keys past their time, 5,000 at most; the commit says if there are more."""

    more: bool = False


@dataclass(frozen=True, slots=True)
class Clear:
    """Delete some rows of what is stored: every commit does, this sees to it that there is one."""


Operation = Append | Stage | Abandon | Seal | Settle | Bury | Revive | Expire | Clear
