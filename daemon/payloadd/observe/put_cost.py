"""What uploads cost: the price of a PUT, at the present rate, for a day.

S3 bills each PUT, whatever its size. An object for every payload of a busy client may cost more
than all else, and larger batches cost less: so the log says it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

from payloadd.config.parsers import S3Url
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics

log = get_logger(__name__)

_STEP: Final = 10.0
_WINDOW: Final = 600.0
"""Seconds over which the rate is measured."""
_DAY: Final = 86_400.0
_HIGH: Final = 10.0
"""Dollars a day above which a warning is logged, once a day."""
_NOTE: Final = (
    "each object is one PUT; a larger BATCH_MAX_PAYLOADS (with a longer BATCH_LINGER) makes fewer"
    " objects. PUT_PRICE is the price of one"
)


class PutCost:
    """The number of uploads in the last ten minutes, and their price."""

    def __init__(
        self,
        uploads: Callable[[], int],
        price: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to measure; ``uploads`` returns their number, ``price`` is in dollars."""
        self._uploads = uploads
        self._price = price
        self._clock = clock
        self._samples = deque([(clock(), uploads())], maxlen=round(_WINDOW / _STEP) + 1)
        self._warn_from = clock() + _WINDOW

    async def run(self) -> None:
        """Measure the rate every ten seconds, without end."""
        while True:
            await trio.sleep(_STEP)
            self.take()

    def take(self) -> None:
        """Take a sample; log a warning if a day costs much, at most once a day."""
        now = self._clock()
        self._samples.append((now, self._uploads()))
        cost = self.dollars_per_day()
        if cost > _HIGH and now >= self._warn_from:
            self._warn_from = now + _DAY
            log.warning("uploads_cost", dollars_per_day=round(cost, 2), note=_NOTE)

    def dollars_per_day(self) -> float:
        """Return what a day of uploads costs, at the rate of the last ten minutes.

        The rate is not known in the first ten seconds: the cost is 0 then.
        """
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) * _DAY * self._price if last > first else 0.0


def put_cost_of(settings: Settings, metrics: Metrics, health: Health) -> PutCost:
    """Return the cost of the uploads of this process, and have it shown; files cost nothing."""
    price = settings.put_price if isinstance(settings.store_url, S3Url) else 0.0
    cost = PutCost(lambda: metrics.timings().uploads, price)
    health.put_cost = cost.dollars_per_day
    return cost
