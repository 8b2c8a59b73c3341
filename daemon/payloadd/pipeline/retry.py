"""When to try again: pure functions and the budget that all workers share.

Two loops. The inner one is AWS's standard retry mode as of 2026-11-10 (three attempts,
full jitter, a quota of tokens): it rides out a blip without making an overload worse.
Around it a batch waits and starts over for as long as it takes, because what was
acknowledged is never dropped.
"""

from __future__ import annotations

from typing import Final

MAX_ATTEMPTS: Final = 3

_BASE_TRANSIENT: Final = 0.05
_BASE_THROTTLED: Final = 1.0
_LONGEST_DELAY: Final = 20.0

_QUOTA: Final = 500
_COST_TRANSIENT: Final = 14
_COST_THROTTLED: Final = 5

FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 15.0


def backoff(attempt: int, fraction: float, *, throttled: bool, at_least: float = 0.0) -> float:
    """Return the seconds to wait after the failed attempt number ``attempt`` (1, 2, ...).

    ``fraction`` is random from [0, 1): full jitter. ``at_least`` is what the store asked for.
    """
    base = _BASE_THROTTLED if throttled else _BASE_TRANSIENT
    return max(at_least, fraction * min(_LONGEST_DELAY, base * _doubled(attempt)))


def pause(round_: int, fraction: float) -> float:
    """Return the seconds between two rounds of attempts at one batch, 0.5 s to 15 s.

    Half of it is jitter: workers that failed together do not come back together, and none
    comes back at once.
    """
    return min(_LONGEST_PAUSE, FIRST_PAUSE * _doubled(round_)) * (0.5 + 0.5 * fraction)


def _doubled(times: int) -> float:
    # A batch may wait for weeks: the exponent stays within what a float holds.
    return float(2 ** min(times - 1, 30))


class RetryBudget:
    """The token quota of AWS's standard retry mode, one for the whole process.

    When most attempts fail it runs dry and retries stop until some succeed: the load on a
    store in trouble falls to one attempt a round.
    """

    def __init__(self) -> None:
        self.tokens = _QUOTA

    def spend(self, *, throttled: bool) -> int | None:
        """Pay for one retry; returns its cost, or None when there is not enough left."""
        cost = _COST_THROTTLED if throttled else _COST_TRANSIENT
        if cost > self.tokens:
            return None
        self.tokens -= cost
        return cost

    def refund(self, last_cost: int | None) -> None:
        """Give back after a success: the last retry's cost, or 1 when there was no retry."""
        self.tokens = min(_QUOTA, self.tokens + (1 if last_cost is None else last_cost))
