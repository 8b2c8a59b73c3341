"""Find the rate of uploads that a throttled part of the store accepts, and start no more than that.

A store that throttles has a bucket of tokens: it serves a burst, then a constant rate, and refuses
the rest. The limit here follows it as TCP's CUBIC follows a link, which is the shape that the
adaptive retry mode of the AWS SDKs has (botocore, ``retries/adaptive.py``): a refusal lowers it,
time raises it again, slowly near the rate that was refused and faster beyond. Two things differ
from botocore. At a refusal the bucket of the store is empty, so the uploads stored between two
refusals, by the time between them, are its rate; botocore uses the rate of its own requests. And
the curve takes the same seconds at every rate, so that uploads have full speed soon after the end
of the throttling, from 5 a second as from 3,500.

Times are of trio's clock, in seconds.
"""

from __future__ import annotations

from typing import Final

_LOWERED: Final = 0.92
"""The part of the refused rate with which uploads go on."""
_RETURN: Final = 1.0
"""Seconds in which the limit is back at the refused rate."""
_DOUBLING: Final = 0.5
"""Seconds in which the limit doubles beyond the refused rate."""
_SEARCH: Final = 0.15
"""Seconds in which it doubles from the first refusal on, while the rate is hardly known."""
_STORED_PER_DOUBLING: Final = 4
"""Uploads that must have been stored since the last refusal for each time the limit doubles."""
_MOST_DOUBLINGS: Final = 10
"""A limit that has doubled so often is over: it is beyond all that was ever uploaded."""
_LONGEST: Final = 60.0
"""Seconds without a refusal after which a limit is over, whatever was uploaded."""
_LEAST_PART: Final = 0.75
"""The least part of its limit that a refusal leaves. A store whose tokens were all there, because
the limit was too low, has a higher rate than it has stored."""
_LEAST_PART_OF_MANY: Final = 0.3
"""The same for the third and further refusals in a row."""
_LEAST_RATE: Final = 0.2
"""Uploads a second: a store that refuses everything is tried every five seconds."""
_RATE_AGAIN: Final = 1.0
"""Uploads a second with which a store that refused everything is used again, at least."""
_SLACK: Final = 0.05
"""Seconds by which starts may be late without a loss: the event loop does other work between."""
_LASTING: Final = 3
"""Refusals in a row after which the store does not throttle but refuses."""
_LONG_WAIT: Final = 5.0
"""Seconds: a store that has stored nothing and asks for a longer wait refuses everything, too. The
second refusal would come too late to report it."""


class RateLimit:
    """The limit on the starts of uploads for one part of the store, from its first refusal on."""

    def __init__(self, now: float, rate: float, retry_after: float, *, worked: bool) -> None:
        """Begin at a first refusal with a guess at the ``rate``, in uploads a second.

        ``retry_after`` is the wait that the store asked for, as for ``refuse``; ``worked`` says
        whether the store has stored anything lately.
        """
        self._base = max(rate, _LEAST_RATE)
        """The rate that was refused last."""
        self._since = now
        """The time of the last refusal."""
        self._stored = 0
        """Uploads stored since the last refusal."""
        self._worked = worked
        """Whether any upload was stored."""
        self._next = now + max(1 / self._base, 0.0 if worked else retry_after)
        """The earliest start of the next upload."""
        self._searching = True
        """Whether the rate of the store is not known at all: nothing was stored in between."""
        self.refusals = 1
        """Refusals in a row, without a stored upload between them."""
        self._long_wait = not worked and retry_after > _LONG_WAIT
        """Whether the store has asked for a long wait, and stored nothing since."""

    def rate(self, now: float) -> float:
        """Return the uploads a second that may start."""
        if doublings := self._doublings(now):
            return float(self._base * 2.0**doublings)
        missing = max(0.0, 1.0 - (now - self._since) / _RETURN)
        return self._base * (1.0 - (1.0 - _LOWERED) * missing**3)

    def _doublings(self, now: float) -> float:
        """Return how often the limit has doubled beyond the rate that was refused."""
        passed = now - self._since
        if self._searching:
            return min(passed / _SEARCH, self._stored, _MOST_DOUBLINGS)
        doublings = max(0.0, passed - _RETURN) / _DOUBLING
        # A slow store has to confirm each step, or the limit would be far beyond its rate.
        return min(doublings, self._stored // _STORED_PER_DOUBLING, _MOST_DOUBLINGS)

    def is_over(self, now: float) -> bool:
        """Return whether nothing was refused for so long that there is no limit any more."""
        return self._doublings(now) >= _MOST_DOUBLINGS or now - self._since > _LONGEST

    def start(self, now: float) -> bool:
        """Start an upload; return False if it has to wait until ``next_start``."""
        if now < self._next:
            return False
        self._next = max(self._next, now - _SLACK) + 1 / self.rate(now)
        return True

    @property
    def next_start(self) -> float:
        """The time at which the next upload may start."""
        return self._next

    @property
    def refuses_all(self) -> bool:
        """Whether the store has stored nothing since several refusals, or asks for a long wait."""
        return self.refusals >= _LASTING or self._long_wait

    def store(self, now: float, started: float) -> None:
        """Note that an upload was stored, which had ``started``."""
        # Those that had started before the last refusal say nothing about the rate since.
        self._stored += started > self._since
        if self.refuses_all:
            self._base = max(self._base, _RATE_AGAIN)
        if self.refuses_all or not self._worked:
            # It does not refuse everything, so its wait is not for all.
            self._next = min(self._next, now + 1 / self._base)
        self._worked = True
        self.refusals = 0
        self._long_wait = False

    def refuse(self, now: float, started: float, retry_after: float) -> None:
        """Note that an upload was refused, which had ``started``; lower the limit.

        Uploads that had started before the last refusal were refused for the same reason, and lower
        nothing. The wait that the store asks for holds for all uploads if it refuses all; a store
        that stores others at the same time asks this one upload to wait.
        """
        if started > self._since:
            self.refusals += 1
            passed = now - self._since
            rate = self.rate(now)
            stored = self._stored / passed if passed > 0 else 0.0
            self._searching &= not self._stored
            least = _LEAST_PART if not self.refuses_all else _LEAST_PART_OF_MANY
            self._base = max(_LEAST_RATE, min(rate, max(stored, least * rate)))
            self._since, self._stored = now, 0
            self._next = max(self._next, now + 1 / self.rate(now))
        if not self._worked or self.refuses_all:
            self._next = max(self._next, now + retry_after)
            self._long_wait = retry_after > _LONG_WAIT
