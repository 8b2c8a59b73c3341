"""Time the attempts at an upload: how long one may take, and when the next one begins.

There are two loops of attempts. The inner one is AWS's standard retry mode as of 2026-11-10 (three
attempts, full jitter, a quota of tokens): it gets over a short failure without adding load to an
overloaded store. Around it a batch waits and starts again without a limit, because acknowledged
payloads are never dropped.
"""

from __future__ import annotations

from typing import Final

import trio

MAX_ATTEMPTS: Final = 3
"""Attempts in one round."""

_BASE_TRANSIENT: Final = 0.05
_BASE_THROTTLED: Final = 1.0
_LONGEST_DELAY: Final = 20.0

_QUOTA: Final = 500
_COST_TRANSIENT: Final = 14
_COST_THROTTLED: Final = 5

FIRST_PAUSE: Final = 1.0
"""Seconds; the shortest wait between two rounds is half of it."""
_LONGEST_PAUSE: Final = 15.0


def backoff(attempt: int, fraction: float, *, throttled: bool, at_least: float = 0.0) -> float:
    """Return the seconds to wait after the failed attempt number ``attempt`` (1, 2, ...).

    ``fraction`` is a random number from [0, 1): full jitter. ``at_least`` is the wait that the
    store asked for.
    """
    base = _BASE_THROTTLED if throttled else _BASE_TRANSIENT
    return max(at_least, fraction * min(_LONGEST_DELAY, base * _doubled(attempt)))


def pause(round_: int, fraction: float) -> float:
    """Return the seconds between two rounds of attempts at one batch, 0.5 to 15.

    ``round_`` counts from 1, ``fraction`` is a random number from [0, 1). Half of the pause is
    jitter: workers that failed together start again apart, and none starts again at once.
    """
    return min(_LONGEST_PAUSE, FIRST_PAUSE * _doubled(round_)) * (0.5 + 0.5 * fraction)


def _doubled(times: int) -> float:
    # A batch may wait for weeks: the bound keeps the power within the range of a float.
    return float(2 ** min(times - 1, 30))


class RetryBudget:
    """The token quota of AWS's standard retry mode, one for the whole process.

    When most attempts fail the quota becomes empty, and retries stop until some attempts succeed:
    the load on a store in trouble falls to one attempt a round.
    """

    def __init__(self) -> None:
        self.tokens = _QUOTA

    def spend(self, *, throttled: bool) -> int | None:
        """Pay for one retry; return its cost in tokens, or None if too few are left."""
        cost = _COST_THROTTLED if throttled else _COST_TRANSIENT
        if cost > self.tokens:
            return None
        self.tokens -= cost
        return cost

    def refund(self, last_cost: int | None) -> None:
        """Add tokens after a success: the cost of the last retry, or 1 if there was no retry."""
        self.tokens = min(_QUOTA, self.tokens + (1 if last_cost is None else last_cost))


class Timer:
    """A cancel scope for the attempts of one worker. Once ``expired``, it cannot be used again."""

    __slots__ = ("expired", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.expired = False


class SharedTimeout:
    """Cancel operations that take longer than ``seconds``, while ``run`` runs.

    One task watches all operations, because a deadline on a cancel scope for each upload costs
    much more. All operations have the same timeout, so the one that began first expires first and
    nothing has to be sorted.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # In the order in which the operations began.
        self._started: dict[Timer, float] = {}

    def begin(self, timer: Timer, now: float) -> None:
        """Start the timeout at ``now`` (trio's clock): ``timer.scope`` is cancelled after it."""
        self._started[timer] = now

    def end(self, timer: Timer) -> None:
        """Stop the timeout; the timer may begin again, unless it has expired."""
        self._started.pop(timer, None)

    async def run(self) -> None:
        """Cancel the operations whose time is over, without end."""
        while True:
            # An operation that begins during the sleep does not expire before its end.
            oldest = next(iter(self._started.values()), trio.current_time())
            await trio.sleep_until(oldest + self.seconds)
            now = trio.current_time()
            late = [timer for timer, start in self._started.items() if start + self.seconds <= now]
            for timer in late:
                del self._started[timer]
                timer.expired = True
                timer.scope.cancel()
