"""Time the attempts at an upload: how long one may take, and when the next one begins.

There are two loops of attempts. The inner one is AWS's standard retry mode as of 2026-11-10 (three
attempts, full jitter, a quota of tokens): it gets over a short failure without adding load to an
overloaded store. Around it a batch is put back and tried again without a limit, because
acknowledged payloads are never dropped. Throttled uploads have no inner loop: see ``rate.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.storage.api import Progress

MAX_ATTEMPTS: Final = 3
"""Attempts in one round."""

_BASE: Final = 0.05
_LONGEST_DELAY: Final = 20.0

_QUOTA: Final = 500
_COST: Final = 14

_FIRST_PAUSE: Final = 1.0
"""Seconds; the shortest wait between two rounds is half of it."""
_LONGEST_PAUSE: Final = 15.0

_STALLED: Final = 10.0
"""Seconds without progress after which an upload is reported, whatever its timeout is."""
_CHECK: Final = 2.0
"""The longest time between two looks at the progress of uploads."""


def backoff(attempt: int, fraction: float) -> float:
    """Return the seconds to wait after the failed attempt number ``attempt`` (1, 2, ...).

    ``fraction`` is a random number from [0, 1): full jitter.
    """
    return fraction * min(_LONGEST_DELAY, _BASE * _doubled(attempt))


def pause(round_: int, fraction: float) -> float:
    """Return the seconds between two rounds of attempts at one batch, 0.5 to 15.

    ``round_`` counts from 1, ``fraction`` is a random number from [0, 1). Half of the pause is
    jitter: workers that failed together start again apart, and none starts again at once.
    """
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * _doubled(round_)) * (0.5 + 0.5 * fraction)


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

    def spend(self) -> int | None:
        """Pay for one retry; return its cost in tokens, or None if too few are left."""
        if self.tokens < _COST:
            return None
        self.tokens -= _COST
        return _COST

    def refund(self, last_cost: int | None) -> None:
        """Add tokens after a success: the cost of the last retry, or 1 if there was no retry."""
        self.tokens = min(_QUOTA, self.tokens + (1 if last_cost is None else last_cost))


class Timer:
    """A cancel scope for the attempts of one worker. Once ``expired``, it cannot be used again."""

    __slots__ = ("expired", "key", "progress", "scope")

    def __init__(self, progress: Progress, key: Callable[[], str]) -> None:
        """Begin with the progress of the worker's uploads; ``key`` returns that of the present."""
        self.key = key
        self.progress = progress
        self.scope = trio.CancelScope()
        self.expired = False


class SharedTimeout:
    """Cancel operations that do not progress for ``seconds``, while ``run`` runs.

    One task watches all operations, because a deadline on a cancel scope for each upload costs
    much more. Progress is looked at from outside, too: nothing is noted while bytes move. All
    operations have the same timeout, so the one that progressed first expires first and nothing has
    to be sorted.
    """

    def __init__(self, seconds: float, report: Callable[[str, float], None]) -> None:
        """Prepare the timeout of ``seconds``.

        ``report`` is called with the key of an upload that has not progressed for ten seconds or
        more, and with these seconds.
        """
        self.seconds = seconds
        self._report = report
        self._interval = min(_CHECK, seconds / 4)
        # The time of the last progress that was seen, in its order; at first the begin.
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
            now = trio.current_time()
            oldest = next(iter(self._started.values()), now)
            await trio.sleep_until(min(oldest + self.seconds, now + self._interval))
            self._check(trio.current_time())

    def _check(self, now: float) -> None:
        longest = 0.0
        for timer, moved in list(self._started.items()):
            if timer.progress.has_moved():
                del self._started[timer]
                self._started[timer] = now
            elif moved + self.seconds <= now:
                del self._started[timer]
                timer.expired = True
                timer.scope.cancel()
            elif now - moved > max(longest, _STALLED):
                longest = now - moved
                self._report(timer.key(), longest)
