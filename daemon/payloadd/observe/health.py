"""Hold the phase and the troubles of the process, and make the snapshot of all its figures.

The parts that report (a worker that waits for the store, the service that drains) do not know the
parts that show the state (the admin address, systemd). Both know Health.

A part (``store``, ``journal``) can be in trouble for several causes at once, such as two kinds of
errors of the disk. Each cause ends when the operation that it names succeeds; the trouble of the
part ends with its last cause. ``pipeline/trouble.py`` decides when the trouble of the store ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from payloadd.observe.status import (
    JournalFigures,
    PayloadFigures,
    Phase,
    QueueFigures,
    Status,
    Trouble,
    UploadFigures,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class Health:
    """The state of one process.

    Each of the attributes ``payload_figures``, ``queue_figures``, ``journal_figures``,
    ``upload_figures``, ``busy_workers``, ``credentials_expire`` (Unix time, or None) and
    ``put_cost`` is a function that returns the figures of one part. The part, or the service, sets
    it; the default returns zeros. The functions are called in the event loop for every snapshot,
    also after their part was closed.
    """

    def __init__(self) -> None:
        self.phase: Phase = "starting"
        self.payload_figures: Callable[[], PayloadFigures] = PayloadFigures
        self.queue_figures: Callable[[], QueueFigures] = QueueFigures
        self.journal_figures: Callable[[], JournalFigures] = JournalFigures
        self.upload_figures: Callable[[], UploadFigures] = UploadFigures
        self.busy_workers: Callable[[], int] = int
        self.credentials_expire: Callable[[], float | None] = lambda: None
        self.put_cost: Callable[[], float] = float
        self._causes: dict[str, dict[str, Trouble]] = {}
        """By part and cause. The cause that was reported last is the last; no part is empty."""
        self._reported: set[tuple[str, str]] = set()
        """Part and code of each trouble that was reported since the part last worked."""

    def snapshot(self) -> Status:
        """Return the state of the process now."""
        expire = self.credentials_expire()
        return Status(
            self.phase,
            self.payload_figures(),
            self.queue_figures(),
            self.journal_figures(),
            self.busy_workers(),
            self.troubles,
            self.upload_figures(),
            None if expire is None else expire - time.time(),
            self.put_cost(),
        )

    @property
    def troubles(self) -> dict[str, Trouble]:
        """The present troubles by part; empty when everything works.

        Of several causes of one part the one that was reported last is shown, with the time at
        which the first began.
        """
        return {part: _combined(causes) for part, causes in self._causes.items()}

    def trouble(self, part: str) -> Trouble | None:
        """Return the trouble of ``part``, or None."""
        causes = self._causes.get(part)
        return None if causes is None else _combined(causes)

    def report(self, part: str, code: str, reason: str, cause: str = "") -> bool:
        """Note that ``part`` is in trouble because of ``cause``; return whether to log it.

        Each code is logged once until the part works again: workers that fail in different ways
        report in turns.
        """
        # A reason may name a file whose name is not UTF-8, and no JSON document could contain it.
        reason = reason.encode(errors="backslashreplace").decode()
        causes = self._causes.setdefault(part, {})
        known = causes.pop(cause, None)
        since = time.time() if known is None else known.since
        causes[cause] = Trouble(code, reason, since)
        new = (part, code) not in self._reported
        self._reported.add((part, code))
        return new

    def clear(self, part: str, cause: str = "") -> Trouble | None:
        """Note that ``cause`` is over.

        Returns the trouble of ``part`` if this was its last cause, else None.
        """
        causes = self._causes.get(part)
        if causes is None or cause not in causes:
            return None
        over = _combined(causes)
        del causes[cause]
        if causes:
            return None
        del self._causes[part]
        self._reported = {reported for reported in self._reported if reported[0] != part}
        return over


def _combined(causes: dict[str, Trouble]) -> Trouble:
    """Return the trouble of a part: its latest cause, since its first one began."""
    *_, last = causes.values()
    return Trouble(last.code, last.reason, min(cause.since for cause in causes.values()))
