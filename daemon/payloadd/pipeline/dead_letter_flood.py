"""Stop a flood of dead letters.

A store that refuses one object for good is believed. A store that refuses more than a hundred
objects in a minute for the same reason has a setting that is wrong, whatever its error says: dead
letters would need an operator for each batch, and a trouble needs one once.
"""

from __future__ import annotations

from collections import deque
from typing import Final

_MOST: Final = 100
"""Dead letters with one code in a minute."""
_SECONDS: Final = 60.0
_MOST_CODES: Final = 64
"""Codes that are remembered: the store chooses them. Further codes count together."""
_OTHERS: Final = ""


class DeadLetterFlood:
    """Counts refusals for good by their code. Times are of trio's clock."""

    def __init__(self) -> None:
        self._refused: dict[str, deque[float]] = {}

    def refuse(self, now: float, code: str) -> bool:
        """Note a refusal with ``code``; return whether its batch may become a dead letter.

        Refusals of batches that did not become dead letters count as well: the flood lasts for as
        long as the store refuses the batches that were kept.
        """
        if code not in self._refused and len(self._refused) >= _MOST_CODES:
            code = _OTHERS
        times = self._refused.setdefault(code, deque(maxlen=_MOST))
        full = len(times) == _MOST and times[0] > now - _SECONDS
        times.append(now)
        return not full
