"""A bound on how often one kind of line is logged."""

from __future__ import annotations

from time import monotonic


class LogLimit:
    """Lets one line through in each ``seconds``, and counts the others."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._next = 0.0
        self._suppressed = 0

    def allows(self) -> bool:
        """Return whether a line may be logged now; one that may not is counted."""
        if monotonic() < self._next:
            self._suppressed += 1
            return False
        self._next = monotonic() + self._seconds
        return True

    def suppressed(self) -> int:
        """Return how many lines were left out since this was last asked."""
        count, self._suppressed = self._suppressed, 0
        return count
