"""How the process is, in words: for ``/readyz``, the log and systemd's status line.

Its own room on the ground floor, because those who know (a worker that waits for
the store, the service that drains) and those who tell (the admin address, systemd)
do not know each other.

A part (``store``, ``journal``) can be in trouble for several causes at once: two batches that the
store does not take, each for a reason of its own. Each cause ends by itself, when what it names
works again; the trouble of the part ends with its last cause. If any success ended it, one batch
without rights beside many that are stored would start and end a trouble several times a second.
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
        self._causes: dict[str, dict[str, Trouble]] = {}
        """By part and cause. The cause that was reported last is the last; no part is empty."""
        self._told: set[tuple[str, str]] = set()

    @property
    def troubles(self) -> dict[str, Trouble]:
        """What is wrong now, by part (``store``); empty when all is well.

        Of several causes the one that was reported last is shown, since when the first began.
        """
        return {part: _shown(causes) for part, causes in self._causes.items()}

    def trouble(self, part: str) -> Trouble | None:
        """Return what is wrong with ``part``, None if nothing is."""
        causes = self._causes.get(part)
        return None if causes is None else _shown(causes)

    def report(self, part: str, code: str, reason: str, cause: str = "") -> bool:
        """Say that ``part`` waits because of ``cause``; returns whether to log that.

        Each code is news once until the part works again: workers that fail in different ways
        take turns.
        """
        causes = self._causes.setdefault(part, {})
        known = causes.pop(cause, None)
        since = time.time() if known is None else known.since
        causes[cause] = Trouble(code, reason, since)
        news = (part, code) not in self._told
        self._told.add((part, code))
        return news

    def clear(self, part: str, cause: str = "") -> Trouble | None:
        """Say that ``cause`` is over; returns the trouble of ``part`` if that is over with it."""
        causes = self._causes.get(part)
        if causes is None or cause not in causes:
            return None
        over = _shown(causes)
        del causes[cause]
        if causes:
            return None
        del self._causes[part]
        self._told = {told for told in self._told if told[0] != part}
        return over


def _shown(causes: dict[str, Trouble]) -> Trouble:
    *_, last = causes.values()
    return Trouble(last.code, last.reason, min(one.since for one in causes.values()))
