"""What the process counts, in the names of the contract (prefix ``payloadd_``).

One instance for a process, handed to who counts; no module-level registry, so a
test can run two daemons side by side. Counting is adding to plain ints, which become
Prometheus's families when somebody asks: all counters belong to the one thread that trio
runs in, and the library's take a lock each time (for one object, 5 us in all).
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# From one payload of a few bytes to a full BATCH_MAX_BYTES.
_OBJECT_BYTES = tuple(float(2**power) for power in range(6, 26, 2))
_UPLOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Tally:
    """A number that rises."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Count."""
        self.value += by


class TallyCounter(Collector):
    """A counter: one tally, or one for each value of its label."""

    def __init__(self, name: str, doc: str, label: str | None = None) -> None:
        self._name = name
        self._doc = doc
        self._labels = [] if label is None else [label]
        self._tallies: dict[tuple[str, ...], Tally] = {}

    def at(self, *value: str) -> Tally:
        """Return the tally for this value of the label; to keep, where it is counted often."""
        return self._tallies.setdefault(value, Tally())

    def collect(self) -> Iterator[Metric]:
        """Return what a scrape shows."""
        family = CounterMetricFamily(self._name, self._doc, labels=self._labels)
        for value, tally in self._tallies.items():
            family.add_metric(value, tally.value)
        yield family


class Spread(Collector):
    """A histogram."""

    def __init__(self, name: str, doc: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._doc = doc
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, amount: float) -> None:
        """Count an amount in the bucket that it falls into."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def collect(self) -> Iterator[Metric]:
        """Return what a scrape shows: each bucket with all below it."""
        names = [*map(str, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._doc)
        family.add_metric([], list(zip(names, accumulate(self._counts), strict=True)), self._sum)
        yield family


class Metrics:
    """The process's counters, gauges and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Answers given, by HTTP status", "code")
        self._answers: dict[int, Tally] = {}
        self.accepted = self._counter("payloads_accepted", "Payloads answered with a 2xx").at()
        self.stored = self._counter("payloads_stored", "Payloads that the store confirmed").at()
        self.dead = self._counter("payloads_dead", "Payloads that the store refused for good").at()
        self.objects_stored = self._counter(
            "objects_stored", "Objects that the store confirmed"
        ).at()
        self.object_bytes = self._histogram("object_bytes", "Size of stored objects", _OBJECT_BYTES)
        self.queue_jobs = self._gauge("queue_jobs", "Jobs in the memory channel")
        self.queue_bytes = self._gauge("queue_bytes", "Payload bytes in the memory channel")
        self.journal_jobs = self._gauge("journal_jobs", "Jobs in the journal")
        self.journal_bytes = self._gauge(
            "journal_bytes", "Bytes that jobs, dead letters and Idempotency-Keys take"
        )
        self.idempotency_keys = self._gauge("idempotency_keys", "Idempotency-Keys that are known")
        self.keys_evicted = self._counter(
            "idempotency_keys_evicted", "Idempotency-Keys forgotten before their time"
        ).at()
        self.payloads_missing = self._gauge(
            "payloads_missing", "Accepted payloads that a damaged journal has lost"
        )
        self.commit_seconds = self._histogram(
            "commit_seconds", "Time of one group commit of the journal", _COMMIT_SECONDS
        )
        self.workers_busy = self._gauge("workers_busy", "Workers that have a batch in hand")
        self.uploads = self._counter("uploads", "Attempts at objects, by outcome", "outcome")
        self.upload_seconds = self._histogram(
            "upload_seconds", "Time of one attempt at an object", _UPLOAD_SECONDS
        )
        self.oldest_payload_seconds = self._gauge(
            "oldest_payload_seconds", "Age of the oldest accepted payload that is not stored"
        )
        self.draining = self._gauge("draining", "1 while the daemon drains, else 0")

    def count_request(self, status: int) -> None:
        """Count an answer."""
        tally = self._answers.get(status)
        if tally is None:
            tally = self._answers[status] = self.requests.at(str(status))
        tally.inc()

    def render(self) -> bytes:
        """Return the exposition in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, doc: str, label: str | None = None) -> TallyCounter:
        counter = TallyCounter(f"payloadd_{name}", doc, label)
        self.registry.register(counter)
        return counter

    def _gauge(self, name: str, doc: str) -> Gauge:
        return Gauge(f"payloadd_{name}", doc, registry=self.registry)

    def _histogram(self, name: str, doc: str, bounds: tuple[float, ...]) -> Spread:
        spread = Spread(f"payloadd_{name}", doc, bounds)
        self.registry.register(spread)
        return spread
