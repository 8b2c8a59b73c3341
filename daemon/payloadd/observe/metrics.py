"""The metrics of the process, in Prometheus's format (all names begin with ``payloadd_``).

There is one instance in a process and no module-level registry, so that a test can run two daemons
side by side. Counters and histograms are plain numbers, see ``observe.instruments``; those of
answers are in ``observe.request_metrics``. Gauges are rendered from a snapshot of the process, see
``observe.state_gauges``.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from payloadd.observe.history import Timings
from payloadd.observe.instruments import CounterValue, PlainCounter, PlainHistogram
from payloadd.observe.logs import get_logger
from payloadd.observe.request_metrics import RequestMetrics
from payloadd.observe.state_gauges import StatusGauges
from payloadd.observe.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

log = get_logger(__name__)

# From one payload of a few bytes to a full BATCH_MAX_BYTES.
_OBJECT_BYTES = tuple(float(2**power) for power in range(6, 26, 2))
_UPLOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_MISFIT_NOTE = (
    "the column is null there; _payload has the value, unless PARQUET_SCHEMA switches it off"
)


class PayloadCounts(Protocol):
    """The number of payloads by outcome, since the start of the process."""

    accepted: int
    stored: int
    dead: int
    stored_bytes: int


class PayloadCounters(Collector):
    """The counters of payloads; with STREAMS one sample for each stream."""

    def __init__(self) -> None:
        self.accepted = CounterValue()
        self.stored = CounterValue()
        self.dead = CounterValue()
        self.stored_bytes = CounterValue()
        self.names: Mapping[int, str] = {}
        """The names of streams by their numbers; empty without STREAMS."""
        self.by_stream: Callable[[], Mapping[int, PayloadCounts]] = dict
        """The function that returns the counts of streams, as far as they had payloads."""

    def collect(self) -> Iterator[Metric]:
        """Yield the families for a scrape.

        There is no sum beside the streams: a query that adds all samples up would count each
        payload twice.
        """
        counts = self.by_stream() if self.names else {}
        for name, doc, total, of_stream in (
            ("payloads_accepted", "Payloads answered with a 2xx", self.accepted, _accepted),
            ("payloads_stored", "Payloads that the store confirmed", self.stored, _stored),
            ("payloads_dead", "Payloads that the store refused for good", self.dead, _dead),
            (
                "stored_bytes",
                "Bytes of the objects that the store confirmed, as stored",
                self.stored_bytes,
                _stored_bytes,
            ),
        ):
            labels = ["stream"] if self.names else []
            family = CounterMetricFamily(f"payloadd_{name}", doc, labels=labels)
            if not self.names:
                family.add_metric((), total.value)
            for number, stream in self.names.items():
                found = counts.get(number)
                family.add_metric((stream,), 0 if found is None else of_stream(found))
            yield family


_accepted = attrgetter("accepted")
_stored = attrgetter("stored")
_dead = attrgetter("dead")
_stored_bytes = attrgetter("stored_bytes")


class Metrics:
    """The process's counters, gauges and histograms."""

    def __init__(self, snapshot: Callable[[], Status] = Status) -> None:
        """Create all metrics; ``snapshot`` returns the state of the process at a scrape."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(StatusGauges(snapshot))
        self.requests = RequestMetrics()
        self.registry.register(self.requests)
        self._payloads = PayloadCounters()
        self.registry.register(self._payloads)
        self.accepted = self._payloads.accepted
        self.stored = self._payloads.stored
        self.dead = self._payloads.dead
        self.stored_bytes = self._payloads.stored_bytes
        self.objects_stored = self._counter(
            "objects_stored", "Objects that the store confirmed"
        ).labelled()
        self.object_bytes = self._histogram("object_bytes", "Size of stored objects", _OBJECT_BYTES)
        self.keys_evicted = self._counter(
            "idempotency_keys_evicted", "Idempotency-Keys forgotten before their time"
        ).labelled()
        self.commit_seconds = self._histogram(
            "commit_seconds", "Time of one group commit of the journal", _COMMIT_SECONDS
        )
        self._misfits = self._counter(
            "parquet_misfits", "Values of stored payloads that do not fit their column", "column"
        )
        self.uploads = self._counter("uploads", "Attempts at objects, by outcome", "outcome")
        self.upload_seconds = self._histogram(
            "upload_seconds", "Time of one attempt at an object", _UPLOAD_SECONDS
        )

    def name_streams(
        self, names: Mapping[int, str], counts: Callable[[], Mapping[int, PayloadCounts]]
    ) -> None:
        """Give the counters of payloads the label ``stream``.

        ``names`` are the names of the streams by their numbers; ``counts`` returns their counts.
        """
        self._payloads.names, self._payloads.by_stream = names, counts

    def count_misfits(self, misfits: Mapping[str, int]) -> None:
        """Count the values of an object that do not fit their columns, and are null there."""
        for column, values in misfits.items():
            counter = self._misfits.labelled(column)
            if not counter.value:
                log.warning("parquet_misfit", column=column, values=values, note=_MISFIT_NOTE)
            counter.inc(values)

    def timings(self) -> Timings:
        """Return the numbers and durations of commits and of stored objects so far."""
        commits, uploads = self.commit_seconds, self.upload_seconds
        return Timings(
            commits.count,
            commits.total,
            uploads.count,
            uploads.total,
            round(self.object_bytes.total),
        )

    def render(self) -> bytes:
        """Return the exposition in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)

    def render_openmetrics(self) -> bytes:
        """Return the exposition in the text format of OpenMetrics 1.0."""
        text: bytes = openmetrics.generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return text

    def _counter(self, name: str, doc: str, label: str | None = None) -> PlainCounter:
        counter = PlainCounter(f"payloadd_{name}", doc, label)
        self.registry.register(counter)
        return counter

    def _histogram(self, name: str, doc: str, bounds: tuple[float, ...]) -> PlainHistogram:
        histogram = PlainHistogram(f"payloadd_{name}", doc, bounds)
        self.registry.register(histogram)
        return histogram
