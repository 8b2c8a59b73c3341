"""Whether the database takes writes: reports to the log, to ``/readyz`` and to requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.journal.postgres.connection import code, reason
from payloadd.journal.refusals import in_doubt, not_written
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from payloadd.errors import RefusedError
    from payloadd.observe.health import Health

log = get_logger(__name__)

_PART: Final = "journal"


class DatabaseState:
    """Record failures of the database and their end."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self.in_trouble = False
        """Whether POSTs are refused."""

    def failed(self, error: Exception) -> None:
        """Record an attempt that failed."""
        self.in_trouble = True
        why = reason(error)
        if self._health.report(_PART, code(error), why):
            log.error("journal_unavailable", code=code(error), reason=why)

    def succeeded(self) -> None:
        """Record that the database takes writes."""
        if self.in_trouble:
            self.in_trouble = False
            self._health.clear(_PART)
            log.info("journal_available")

    def refusal(self) -> RefusedError | None:
        """Return the error that requests are refused with, or None if they are accepted."""
        trouble = self._health.trouble(_PART) if self.in_trouble else None
        return None if trouble is None else not_written(trouble.reason)


def outcome_unknown(why: str) -> RefusedError:
    """Return the refusal of a request that may be in the journal all the same."""
    return in_doubt(
        why,
        "whether this request is in it is not known yet. With an Idempotency-Key it can be"
        " repeated safely",
    )
