"""One timeout for all that is under way, kept by one task.

All of them take as long, so what began first runs out first, and nothing has to be sorted. A
cancel scope with a deadline for each upload was 20 us of CPU; to begin and end here is 1.
"""

from __future__ import annotations

import trio


class Timer:
    """A cancel scope, and whether its time has run out: then it is used up."""

    __slots__ = ("ran_out", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ran_out = False


class SharedTimeout:
    """Cancels what takes longer than ``seconds``, for as long as ``run`` runs."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # In the order in which they began.
        self._begun: dict[Timer, float] = {}

    def begin(self, timer: Timer, now: float) -> None:
        """Have the timer's scope cancelled unless ``end`` comes in time."""
        self._begun[timer] = now

    def end(self, timer: Timer) -> None:
        """Leave it alone; it may begin again, unless it ran out."""
        self._begun.pop(timer, None)

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            # What begins while this sleeps is not due before it wakes.
            oldest = next(iter(self._begun.values()), trio.current_time())
            await trio.sleep_until(oldest + self.seconds)
            now = trio.current_time()
            late = [one for one, begun in self._begun.items() if begun + self.seconds <= now]
            for timer in late:
                del self._begun[timer]
                timer.ran_out = True
                timer.scope.cancel()
