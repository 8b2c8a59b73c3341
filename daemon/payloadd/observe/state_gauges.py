"""The gauges of troubles, limits and costs, rendered from a snapshot of the process."""

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
