"""The clock by which Idempotency-Keys expire: it does not follow steps of the system's clock.

A machine without a battery for its clock starts with a wrong time and sets it when a time server
answers. With the system's clock a step forward would end all keys, and a request that is repeated
would be stored twice.

* While the daemon runs, the clock counts the time since boot (CLOCK_BOOTTIME, clock_gettime(2)),
  which no one sets and which goes on while the machine is suspended.
* ``journal.high`` keeps its reading. The next run on the same boot adds the exact time in between.
* After a reboot the time in between is known from the system's clock only. The clock moves forward
  by at most MOST_STEP then: a key may live longer by the time that the machine was off, and no key
  is forgotten because the system's clock was wrong.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

KEEP: Final = 24 * 3600
"""Seconds for which an Idempotency-Key is known."""
MOST_STEP: Final = 3600
"""Seconds by which the clock moves forward at most between two runs on different boots."""
EARLIEST: Final = 10**11
"""The earliest time of the clock, in milliseconds, a day in 1973. Earlier versions have written
times in seconds into the journal: these numbers are smaller."""


class ClockReading(NamedTuple):
    """A reading of the clock, in milliseconds."""

    time: int
    """Time of the clock."""
    uptime: int
    """Time since the machine was booted."""


class KeyClock:
    """A clock in Unix time, as it was when the clock was first started, but not before 1973."""

    def __init__(
        self,
        last: ClockReading | None,
        *,
        rebooted: bool,
        read_uptime: Callable[[], int] | None = None,
    ) -> None:
        """Go on from the last reading; ``rebooted``: it is from before the machine was booted.

        Without a reading, the clock starts with the system's time. ``read_uptime`` returns the
        milliseconds since boot; the default is ``uptime``.
        """
        self._uptime = read_uptime or uptime
        now = self._uptime()
        self._ahead = max(EARLIEST, _start(last, now, rebooted=rebooted)) - now
        """Milliseconds by which Unix time is ahead of the time since boot."""

    def now(self) -> int:
        """Return the time in milliseconds."""
        return self._ahead + self._uptime()

    def reading(self) -> ClockReading:
        """Return a reading for ``journal.high``."""
        up = self._uptime()
        return ClockReading(self._ahead + up, up)


def uptime() -> int:
    """Return the milliseconds since the machine was booted."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _start(last: ClockReading | None, now: int, *, rebooted: bool) -> int:
    system = int(time.time() * 1000)
    if last is None:
        return system
    step = min(system - last.time, MOST_STEP * 1000) if rebooted else now - last.uptime
    return last.time + max(0, step)
