"""Tells a read error that lasts from one that passes.

A sector that cannot be read is tried again for some seconds before its jobs are given up: an error
of a cable or a network passes. What is behind it must not wait for longer than that. Only a disk
that still takes writes has anything given up: a dead letter is a commit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

_TRIES: Final = 5
_SECONDS: Final = 3.0
_FORGET: Final = 60.0
"""Seconds without an error after which the next one is the first."""
_MOST: Final = 64
"""Places that are remembered."""


@dataclass(slots=True)
class _Errors:
    first: float
    last: float
    tries: int = 0


class Patience:
    """Counts the read errors of each place: a segment, or the database file.

    Once a place has failed for long enough, every further error of it counts as one that lasts: a
    damaged area of many records is not waited for once a record.
    """

    def __init__(self) -> None:
        self._errors: dict[str, _Errors] = {}

    def ran_out(self, place: str) -> bool:
        """Note a read error of ``place``; returns whether its errors last."""
        now = time.monotonic()
        known = self._errors.pop(place, None)
        if known is None or now - known.last > _FORGET:
            known = _Errors(now, now)
        known.last = now
        known.tries += 1
        # The place that failed last is the last.
        self._errors[place] = known
        if len(self._errors) > _MOST:
            del self._errors[next(iter(self._errors))]
        return known.tries >= _TRIES and now - known.first >= _SECONDS
