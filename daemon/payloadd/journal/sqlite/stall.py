"""Tells a disk that hangs from a daemon that is late.

The journal's thread marks where each call begins and ends. The event loop looks at the marks once
a second. The time between two looks counts against the disk only if all of this holds:

* The same call was running at both looks. A call that has ended is no stall, even if the loop
  comes to hear of it late.
* The look came in time. A process that was stopped (SIGSTOP, a suspended machine), or a loop that
  was busy with something else, has not seen what the thread did meanwhile.
* The thread was not starved of the interpreter's lock. A thread that waits for the disk uses no
  CPU time at all. A thread that waits for the lock wakes up every few milliseconds to ask for it,
  which shows on its CPU clock; with a loop that was busy for half of the time that is taken for
  starving.

Wall time between asking for a write and its end, which was used before, counts against the disk in
all of these cases.
"""

from __future__ import annotations

import threading
import time
from typing import Final

_MOST_LATE: Final = 0.5
"""Part of the time between two looks by which a look may be late."""
_BUSY: Final = 0.5
"""Part of the time between two looks for which a busy loop may have starved the thread."""


class Marks:
    """What the thread says of itself: plain numbers, which its one writer only counts up."""

    def __init__(self) -> None:
        self.begun = 0
        """Calls that have begun."""
        self.ended = 0
        """Calls that have ended: as many, or one less while one is running."""
        self._clock: int | None = None

    def enter(self) -> None:
        """Note the CPU clock of the calling thread, whose marks these are."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def cpu_seconds(self) -> float:
        """Return the CPU time that the thread has used so far, 0.0 before its begin."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)


class Stall:
    """For how long the call that is running has been seen to hang."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self._call = 0
        self._seconds = 0.0
        self._thread_cpu = 0.0
        self._loop_cpu = 0.0

    def look(self, interval: float, late: float) -> float:
        """Look, in the loop's thread; returns for how many seconds the disk has not answered.

        ``interval`` is the time in seconds between two looks, ``late`` by how much this one is.
        """
        call = self._marks.begun if self._marks.begun > self._marks.ended else 0
        thread_before, self._thread_cpu = self._thread_cpu, self._marks.cpu_seconds()
        loop_before, self._loop_cpu = self._loop_cpu, time.thread_time()
        if not call or call != self._call:
            self._call, self._seconds = call, 0.0
            return 0.0
        moved = self._thread_cpu > thread_before
        starved = moved and self._loop_cpu - loop_before > _BUSY * interval
        if late <= _MOST_LATE * interval and not starved:
            self._seconds += interval
        return self._seconds
