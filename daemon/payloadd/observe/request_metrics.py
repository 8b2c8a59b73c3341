"""Count the answers to requests, by status and route, and the time that they take.

Each answer is counted once, by the part that sends it: the fast path, the app behind Hypercorn,
Hypercorn itself, or the server for a connection that ends before its request is complete.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate
from time import perf_counter
from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

PAYLOADS: Final = "payloads"
"""The route of collections."""
PAYLOAD: Final = "payload"
"""The route of single documents."""
OTHER: Final = "other"
"""The route of unknown paths, and of requests that could not be parsed."""

_SECONDS: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
_OK: Final = 202
_UNAVAILABLE: Final = 503

CountAnswer = Callable[[int, str, float | None], object]
"""A function that counts an answer, see ``RequestMetrics.count``."""


def count_nothing(_status: int, _route: str, _began: float | None) -> None:
    """Count no answer."""


class RequestMetrics(Collector):
    """The counts of one process: answers of both addresses, bodies of the public one."""

    def __init__(self) -> None:
        # A rate cannot be computed from a series that begins with its first event.
        self._answers = defaultdict[tuple[int, str], int](
            int, {(_OK, PAYLOADS): 0, (_UNAVAILABLE, PAYLOADS): 0}
        )
        self._in_buckets = [0] * (len(_SECONDS) + 1)
        self._seconds = 0.0
        self.body_bytes = 0
        """Bytes of bodies received, those of refused requests too."""
        self.connections: Callable[[], int] = int
        """Returns the number of open connections of the public address; the server sets it."""

    def count(self, status: int, route: str = OTHER, began: float | None = None) -> None:
        """Count an answer with this HTTP status.

        ``route`` is one of a fixed set of names. ``began`` is the time of ``perf_counter`` at which
        the head was complete; None: the time of this request is not measured.
        """
        self._answers[status, route] += 1
        if began is not None:
            seconds = perf_counter() - began
            self._in_buckets[bisect_left(_SECONDS, seconds)] += 1
            self._seconds += seconds

    def collect(self) -> Iterator[Metric]:
        """Yield the families for a scrape."""
        answers = CounterMetricFamily(
            "payloadd_requests", "Answers by HTTP status and route", labels=["code", "route"]
        )
        for (status, route), number in self._answers.items():
            answers.add_metric([str(status), route], number)
        yield answers
        seconds = HistogramMetricFamily(
            "payloadd_request_seconds",
            "Time of a request with payloads, from its complete head to its answer",
        )
        names = [*map(str, _SECONDS), "+Inf"]
        buckets = zip(names, accumulate(self._in_buckets), strict=True)
        seconds.add_metric([], list(buckets), self._seconds)
        yield seconds
        yield CounterMetricFamily(
            "payloadd_request_bytes", "Bytes of request bodies, as received", self.body_bytes
        )
        yield GaugeMetricFamily(
            "payloadd_connections",
            "Open connections of clients, without those of ADMIN_BIND",
            self.connections(),
        )
