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

    @property
    def troubles(self) -> dict[str, Trouble]:
        """What is wrong now, by part (``store``); empty when all is well."""
        return dict(self._troubles)

    def report(self, part: str, code: str, reason: str) -> bool:
        """Say that ``part`` waits; returns whether that is news (worth a log line)."""
        known = self._troubles.get(part)
        if known is not None and known.code == code:
            return False
        since = time.time() if known is None else known.since
        self._troubles[part] = Trouble(code, reason, since)
        return True

    def clear(self, part: str) -> Trouble | None:
        """Say that ``part`` works again; returns the trouble that is over, if there was one."""
        return self._troubles.pop(part, None)
