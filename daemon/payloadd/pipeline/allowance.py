"""Bound the uploads that fail: their rate must not grow with the number of failing batches."""

from __future__ import annotations

import math
from typing import Final

_WHOLE: Final = 1 - 1e-6
"""A token, but for the error of adding parts of it."""


class UploadAllowance:
    """Tokens for uploads: time gives a few, and each success gives several.

    While most uploads fail, as many start as time gives tokens. While most of them succeed, there
    are always tokens, and uploads have full speed again after a few successes.

    Times are of trio's clock.
    """

    def __init__(self, most: float, per_second: float, per_success: float) -> None:
        """Begin with ``most`` tokens, the largest number."""
        self._most = most
        self._per_second = per_second
        self._per_success = per_success
        self._tokens = most
        self._as_of = -math.inf

    def take(self, now: float) -> bool:
        """Take a token; return False if there is none."""
        if not self.has_token(now):
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True

    def has_token(self, now: float) -> bool:
        """Return whether there is a token."""
        if now > self._as_of:
            if self._tokens < self._most:
                gained = (now - self._as_of) * self._per_second
                self._tokens = min(self._most, self._tokens + gained)
            self._as_of = now
        return self._tokens >= _WHOLE

    def spend(self, now: float) -> None:
        """Take a token for an upload that has failed, if there is one."""
        self.has_token(now)
        self._tokens = max(0.0, self._tokens - 1)

    def succeed(self) -> None:
        """Add tokens for an upload that was stored."""
        self._tokens = min(self._most, self._tokens + self._per_success)

    def next_token(self, now: float) -> float:
        """Return the time at which there is a token; ``now`` if there is one."""
        if self.has_token(now):
            return now
        return now + (1 - self._tokens) / self._per_second

    def is_full(self, now: float) -> bool:
        """Return whether no more tokens fit: nothing has failed for a while."""
        self.has_token(now)
        return self._tokens >= self._most
