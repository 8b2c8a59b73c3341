"""How the process is, in words: for ``/readyz``, the log and systemd's status line.

Its own room on the ground floor, because those who know (a worker that waits for
the store, the service that drains) and those who tell (the admin address, systemd)
do not know each other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

Phase = Literal["starting", "serving", "draining"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something an operator can mend, and since when (Unix time in seconds)."""

    code: str
    reason: str
    since: float


class Health:
    """The phase of the process's life and the troubles it waits for, by who has them."""

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self._troubles: dict[str, Trouble] = {}
        self._told: set[tuple[str, str]] = set()

    @property
    def troubles(self) -> dict[str, Trouble]:
        """What is wrong now, by part (``store``); empty when all is well."""
        return dict(self._troubles)

    def report(self, part: str, code: str, reason: str) -> bool:
        """Say that ``part`` waits; returns whether that is news (worth a log line).

        Each code is news once until the part works again: workers that fail in different ways
        take turns.
        """
        known = self._troubles.get(part)
        self._troubles[part] = Trouble(code, reason, time.time() if known is None else known.since)
        news = (part, code) not in self._told
        self._told.add((part, code))
        return news

    def clear(self, part: str) -> Trouble | None:
        """Say that ``part`` works again; returns the trouble that is over, if there was one."""
        if part not in self._troubles:
            return None
        self._told = {told for told in self._told if told[0] != part}
        return self._troubles.pop(part)
