"""Times of the journal in PostgreSQL, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from payloadd.journal.postgres.connection import ANSWER_TIMEOUT, LEASE


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """They are no settings: the daemon uses the defaults, and tests use smaller values."""

    retry_interval: float = 0.5
    """Time between two attempts to reach the server."""
    doubt_timeout: float = 5.0
    """Time for which a request waits for the outcome of a commit whose answer was lost."""
    last_commit_timeout: float = 10.0
    """Time for the last writes when the daemon ends."""
    maintenance_interval: float = 1.0
    beat_interval: float = 2.0
    """Time between two signs of life."""
    lease: float = LEASE
    """Time without a sign of life after which a lane is taken."""
    answer_timeout: float = ANSWER_TIMEOUT


DEFAULT_TIMES: Final = LeaseTimes()
