"""The gauges, rendered from a snapshot of the process (``observe.status``)."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from payloadd import __version__
from payloadd.build_info import recorded_commit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.observe.status import Status


class StatusGauges(Collector):
    """The gauges that a snapshot of the process has, one snapshot for each scrape."""

    def __init__(self, snapshot: Callable[[], Status]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the families for a scrape."""
        return render_gauges(self._snapshot())


def render_gauges(status: Status) -> Iterator[Metric]:
    """Yield the gauges of a snapshot."""
    draining = status.phase in ("leaving", "draining", "drained")
    for name, doc, value in (
        (
            "queue_jobs",
            "Jobs in memory that wait for a worker, or for another attempt",
            status.queue.jobs + status.queue.forming + status.queue.put_back,
        ),
        (
            "queue_bytes",
            "Payload bytes in memory that wait for a worker",
            status.queue.bytes + status.queue.forming_bytes,
        ),
        ("journal_jobs", "Jobs in the journal", status.journal.jobs),
        (
            "journal_bytes",
            "Bytes that jobs, dead letters and Idempotency-Keys take",
            status.journal.bytes,
        ),
        ("idempotency_keys", "Idempotency-Keys that are known", status.journal.idempotency_keys),
        (
            "payloads_missing",
            "Accepted payloads that a damaged journal has lost",
            status.journal.missing_payloads,
        ),
        ("workers_busy", "Workers that have a batch", status.busy_workers),
        (
            "oldest_payload_seconds",
            "Age of the oldest accepted payload that is not stored",
            status.payloads.oldest_seconds,
        ),
        (
            "upload_rate_limit",
            "Uploads a second that the most throttled key prefix accepts; +Inf without a limit",
            status.uploads.rate_limit,
        ),
        (
            "upload_concurrency",
            "Uploads that may be in progress at the same time",
            status.uploads.concurrency,
        ),
        ("draining", "1 while the daemon drains, else 0", int(draining)),
    ):
        yield GaugeMetricFamily(f"payloadd_{name}", doc, value)


class StateGauges(Collector):
    """Troubles by part and code, the rest of the journal, expiry of credentials, cost, version."""

    def __init__(self, snapshot: Callable[[], Status], journal_max_bytes: int | None) -> None:
        """Render ``snapshot``; ``journal_max_bytes`` is None without a journal on disk."""
        self._snapshot = snapshot
        self._journal_max_bytes = journal_max_bytes
        self._commit = recorded_commit() or ""

    def collect(self) -> Iterator[Metric]:
        """Yield the families for a scrape."""
        status = self._snapshot()
        troubles = GaugeMetricFamily(
            "payloadd_trouble",
            "1 while an operator has something to fix, absent otherwise",
            labels=["part", "code"],
        )
        for part, trouble in status.troubles.items():
            troubles.add_metric([part, trouble.code], 1)
        yield troubles
        if self._journal_max_bytes is not None:
            yield GaugeMetricFamily(
                "payloadd_journal_free_bytes",
                "Bytes until JOURNAL_MAX_BYTES, past which requests are refused",
                max(0, self._journal_max_bytes - status.journal.bytes),
            )
        if status.credentials_expire_seconds is not None:
            yield GaugeMetricFamily(
                "payloadd_credentials_expire_seconds",
                "Seconds until the keys of the store expire; absent if they do not",
                status.credentials_expire_seconds,
            )
        yield GaugeMetricFamily(
            "payloadd_put_cost_dollars_per_day",
            "What a day of uploads costs at the rate of the last ten minutes",
            status.put_cost_dollars_per_day,
        )
        build = GaugeMetricFamily(
            "payloadd_build_info",
            "Version, commit (empty if the build did not record it), Python",
            labels=["version", "commit", "python"],
        )
        build.add_metric([__version__, self._commit, platform.python_version()], 1)
        yield build
