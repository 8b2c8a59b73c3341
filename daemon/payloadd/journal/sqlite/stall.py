"""Distinguish a disk that hangs from an event loop that is late.

The journal's thread marks where each call begins and ends. The event loop checks the marks once a
second. The time between two checks counts against the disk only if all of this holds:

* The same call was running at both checks. A call that has ended is no stall, even if the event
  loop is informed late.
* The check was in time. If the process was stopped (SIGSTOP, a suspended machine), or the event
  loop was busy, the checks show nothing about the thread.
* The thread could get the interpreter's lock. A thread that waits for the disk uses no CPU time. A
  thread that waits for the lock wakes up every few milliseconds to request it, which its CPU clock
  shows. If the event loop was busy for half of the time as well, the thread counts as starved.

The plain duration of a write was rejected as a measure: it counts against the disk in all of these
cases.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_LATE: Final = 0.5
"""Share of the interval by which a check may be late."""
_BUSY: Final = 0.5
"""Share of the interval for which the event loop is busy when it may have starved the thread."""


class CallMarks:
    """Counters of the calls in the journal's thread; only that thread changes them."""

    def __init__(self) -> None:
        self.begun = 0
        """Calls that have begun."""
        self.ended = 0
        """Calls that have ended: equal to ``begun``, or one less while a call is running."""
        self._clock: int | None = None

    def use_clock_of_this_thread(self) -> None:
        """Measure the CPU time of the calling thread from now on."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the thread has used; 0.0 before it has started."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)


class StallDetector:
    """Measure for how long the running call has not been answered by the disk."""

    def __init__(
        self, marks: CallMarks, loop_cpu_seconds: Callable[[], float] = time.thread_time
    ) -> None:
        """Watch the calls of ``marks``; ``loop_cpu_seconds`` is the event loop's CPU clock."""
        self._marks = marks
        self._loop_cpu_seconds = loop_cpu_seconds
        self._call = 0
        self._seconds = 0.0
        self._thread_cpu = 0.0
        self._loop_cpu = 0.0

    def check(self, interval: float, late: float) -> float:
        """Check the marks, in the event loop's thread; return the seconds of the stall so far.

        ``interval`` are the seconds between two checks, ``late`` the seconds by which this one is
        late.
        """
        call = self._marks.begun if self._marks.begun > self._marks.ended else 0
        thread_before, self._thread_cpu = self._thread_cpu, self._marks.cpu_seconds()
        loop_before, self._loop_cpu = self._loop_cpu, self._loop_cpu_seconds()
        if not call or call != self._call:
            self._call, self._seconds = call, 0.0
            return 0.0
        used_cpu = self._thread_cpu > thread_before
        starved = used_cpu and self._loop_cpu - loop_before > _BUSY * interval
        if late <= _MOST_LATE * interval and not starved:
            self._seconds += interval
        return self._seconds
