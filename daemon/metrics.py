"""What the process counts, in the names of the contract (prefix ``payloadd_``).

One instance for a process, handed to who counts; no module-level registry, so a
test can run two daemons side by side.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

# From one payload of a few bytes to a full BATCH_MAX_BYTES.
_OBJECT_BYTES = tuple(float(2**power) for power in range(6, 26, 2))
_UPLOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class Metrics:
    """The process's counters, gauges and histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._counter("requests", "Answers given, by HTTP status", "code")
        self._answers: dict[int, Counter] = {}
        self.accepted = self._counter("payloads_accepted", "Payloads answered with a 2xx")
        self.stored = self._counter("payloads_stored", "Payloads that the store confirmed")
        self.dead = self._counter("payloads_dead", "Payloads that the store refused for good")
        self.objects_stored = self._counter("objects_stored", "Objects that the store confirmed")
        self.object_bytes = self._histogram("object_bytes", "Size of stored objects", _OBJECT_BYTES)
        self.queue_jobs = self._gauge("queue_jobs", "Jobs in the memory channel")
        self.queue_bytes = self._gauge("queue_bytes", "Payload bytes in the memory channel")
        self.journal_jobs = self._gauge("journal_jobs", "Jobs in the journal")
        self.journal_bytes = self._gauge("journal_bytes", "Bytes that the journal's jobs take")
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
        """Count an answer. Its child is looked up once: `labels` costs more than counting."""
        child = self._answers.get(status)
        if child is None:
            child = self._answers[status] = self.requests.labels(code=str(status))
        child.inc()

    def render(self) -> bytes:
        """Return the exposition in Prometheus's text format 0.0.4."""
        return generate_latest(self.registry)

    def _counter(self, name: str, doc: str, *labels: str) -> Counter:
        return Counter(f"payloadd_{name}", doc, labels, registry=self.registry)

    def _gauge(self, name: str, doc: str) -> Gauge:
        return Gauge(f"payloadd_{name}", doc, registry=self.registry)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"payloadd_{name}", doc, buckets=buckets, registry=self.registry)
