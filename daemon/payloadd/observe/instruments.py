"""Counters and histograms without locks: plain numbers, which become families at a scrape.

The event loop's thread alone changes them. The counters of prometheus_client take a lock for each
change.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class CounterValue:
    """A number that rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Add ``by``."""
        self.value += by


class PlainCounter(Collector):
    """A Prometheus counter without locks: one value, or one for each value of its label."""

    def __init__(self, name: str, doc: str, label: str | None = None) -> None:
        self._name = name
        self._doc = doc
        self._labels = [] if label is None else [label]
        self._values: dict[tuple[str, ...], CounterValue] = {}

    def labelled(self, *label_value: str) -> CounterValue:
        """Return the counter for a value of the label, the same object at each call.

        A caller that counts often keeps the object. Without a label: no argument.
        """
        return self._values.setdefault(label_value, CounterValue())

    def collect(self) -> Iterator[Metric]:
        """Yield the family for a scrape."""
        family = CounterMetricFamily(self._name, self._doc, labels=self._labels)
        for label_value, counter in self._values.items():
            family.add_metric(label_value, counter.value)
        yield family


class PlainHistogram(Collector):
    """A Prometheus histogram without labels and locks."""

    def __init__(self, name: str, doc: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._doc = doc
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """Count ``amount`` in its bucket."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    @property
    def count(self) -> int:
        """The number of observations so far."""
        return sum(self._counts)

    @property
    def total(self) -> float:
        """The sum of all observations so far."""
        return self._sum

    def collect(self) -> Iterator[Metric]:
        """Yield the family for a scrape, with cumulative buckets."""
        names = [*map(str, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._doc)
        family.add_metric([], list(zip(names, accumulate(self._counts), strict=True)), self._sum)
        yield family
