"""The trouble of the store as operators see it: one change of state at a time.

While nine of ten uploads fail, each success is the end of something and each failure a beginning.
So a trouble ends only when no batch waits because of it and nothing has failed for some seconds,
and for a minute where it came back within a minute.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from payloadd.observe.health import Health

log = get_logger(__name__)

_PART: Final = "store"
_QUIET: Final = 2.0
"""Seconds without a failure after which a trouble ends."""
_QUIET_AFTER_RELAPSE: Final = 60.0
"""The same for a trouble that began within this time after the last one."""


class StoreTrouble:
    """Reports the failures of uploads to ``Health`` and to the log. Times are of trio's clock."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self.last_failed = -math.inf
        """The time of the last failure."""
        self._ended = -math.inf
        """The time at which the last trouble ended."""
        self._quiet = _QUIET
        self.present = False
        """Whether the store is in trouble."""

    def report(self, now: float, code: str, reason: str, key: str) -> None:
        """Note that the upload of ``key`` has failed, or does not progress."""
        self.last_failed = now
        if not self.present:
            self.present = True
            relapsed = now < self._ended + _QUIET_AFTER_RELAPSE
            self._quiet = _QUIET_AFTER_RELAPSE if relapsed else _QUIET
        if self._health.report(_PART, code, reason):
            log.warning("store_unavailable", code=code, reason=reason, key=key)

    def end_if_quiet(self, now: float) -> None:
        """End the trouble if nothing has failed for long enough; no batch waits because of it."""
        if now >= self.last_failed + self._quiet:
            self.end(now)

    def end(self, now: float) -> None:
        """End the trouble."""
        trouble = self._health.clear(_PART)
        if trouble is not None:
            log.info("store_available", waited=round(time.time() - trouble.since, 1))
        self.present = False
        self._ended = now
