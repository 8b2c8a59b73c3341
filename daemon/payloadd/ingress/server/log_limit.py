"""Limit how often one kind of line is logged."""

from __future__ import annotations

from time import monotonic


class LogLimit:
    """Allow one log line per ``seconds``, and count the others."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._allowed_at = 0.0
        self._suppressed = 0

    def allows(self) -> bool:
        """Return whether a line may be logged now; if not, count it as suppressed."""
        if monotonic() < self._allowed_at:
            self._suppressed += 1
            return False
        self._allowed_at = monotonic() + self._seconds
        return True

    def suppressed(self) -> int:
        """Return how many lines were suppressed since the last call of this method."""
        count, self._suppressed = self._suppressed, 0
        return count
