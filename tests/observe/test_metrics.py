"""The exposition for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from payloadd.observe.metrics import Metrics
from payloadd.observe.state_gauges import render_gauges
from payloadd.observe.status import (
    JournalFigures,
    PayloadFigures,
    QueueFigures,
    Status,
    UploadFigures,
)
from payloadd.pipeline.accounting import StreamCounts

if TYPE_CHECKING:
    from payloadd.observe.status import Phase


def scrape(metrics: Metrics) -> dict[str, float]:
    """Return the samples without labels of a scrape by name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.labels
    }


def test_gauges_are_rendered_from_a_snapshot() -> None:
    """Monitoring and `/readyz` would show different figures."""
    status = Status(
        "serving",
        PayloadFigures(oldest_seconds=1.5),
        QueueFigures(jobs=1, bytes=2),
        JournalFigures(jobs=3, payloads=4, bytes=5, idempotency_keys=7, missing_payloads=8),
        busy_workers=6,
        uploads=UploadFigures(concurrency=9, rate_limit=10.5),
    )
    samples = [sample for family in render_gauges(status) for sample in family.samples]
    assert {sample.name: sample.value for sample in samples} == {
        "payloadd_queue_jobs": 1,
        "payloadd_queue_bytes": 2,
        "payloadd_journal_jobs": 3,
        "payloadd_journal_bytes": 5,
        "payloadd_idempotency_keys": 7,
        "payloadd_payloads_missing": 8,
        "payloadd_workers_busy": 6,
        "payloadd_upload_concurrency": 9,
        "payloadd_upload_rate_limit": 10.5,
        "payloadd_oldest_payload_seconds": 1.5,
        "payloadd_draining": 0,
    }


def test_payloads_have_the_names_of_their_streams() -> None:
    """An operator of one stream would not see whether its payloads are stored."""
    metrics = Metrics()
    metrics.accepted.inc(6)
    assert scrape(metrics)["payloadd_payloads_accepted_total"] == 6
    assert "stream=" not in metrics.render().decode()
    counts = {0: StreamCounts(5, 4, 1, 60), 7: StreamCounts(1)}
    metrics.name_streams({0: "default", 7: "clicks", 8: "errors"}, lambda: counts)
    lines = [line for line in metrics.render().decode().splitlines() if "stream=" in line]
    assert lines == [
        'payloadd_payloads_accepted_total{stream="default"} 5.0',
        'payloadd_payloads_accepted_total{stream="clicks"} 1.0',
        'payloadd_payloads_accepted_total{stream="errors"} 0.0',
        'payloadd_payloads_stored_total{stream="default"} 4.0',
        'payloadd_payloads_stored_total{stream="clicks"} 0.0',
        'payloadd_payloads_stored_total{stream="errors"} 0.0',
        'payloadd_payloads_dead_total{stream="default"} 1.0',
        'payloadd_payloads_dead_total{stream="clicks"} 0.0',
        'payloadd_payloads_dead_total{stream="errors"} 0.0',
        'payloadd_stored_bytes_total{stream="default"} 60.0',
        'payloadd_stored_bytes_total{stream="clicks"} 0.0',
        'payloadd_stored_bytes_total{stream="errors"} 0.0',
    ]
    assert "payloadd_payloads_accepted_total" not in scrape(metrics)


@pytest.mark.parametrize(
    ("phase", "draining"),
    [
        ("starting", 0),
        ("serving", 0),
        ("leaving", 1),
        ("draining", 1),
        ("drained", 1),
    ],
)
def test_the_gauge_of_a_drain_follows_the_phase(phase: Phase, draining: int) -> None:
    """An alert could not distinguish a drain from a daemon that accepts requests."""
    assert scrape(Metrics(lambda: Status(phase)))["payloadd_draining"] == draining


def test_each_scrape_has_a_snapshot_of_its_own() -> None:
    """The figures of the start would be shown for ever."""
    jobs = iter((1, 2))
    metrics = Metrics(lambda: Status(queue=QueueFigures(next(jobs))))
    assert [scrape(metrics)["payloadd_queue_jobs"] for _ in range(2)] == [1, 2]


def test_counters_and_histograms_are_in_the_exposition() -> None:
    """Rates and percentiles would be missing or wrong."""
    metrics = Metrics()
    metrics.accepted.inc(3)
    for seconds in (0.004, 0.006, 99.0):
        metrics.upload_seconds.observe(seconds)
    values = scrape(metrics)
    assert values["payloadd_payloads_accepted_total"] == 3
    assert values["payloadd_upload_seconds_count"] == 3
    assert values["payloadd_upload_seconds_sum"] == pytest.approx(99.01)
    text = metrics.render().decode()
    assert 'payloadd_upload_seconds_bucket{le="0.005"} 1.0' in text
    assert 'payloadd_upload_seconds_bucket{le="60.0"} 2.0' in text
    assert 'payloadd_upload_seconds_bucket{le="+Inf"} 3.0' in text
