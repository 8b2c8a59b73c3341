"""The figures of answers in the exposition."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from payloadd.observe.request_metrics import RequestMetrics

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def requests() -> RequestMetrics:
    """Return figures without any answer."""
    return RequestMetrics()


@pytest.fixture
def value(requests: RequestMetrics) -> Callable[..., float | None]:
    """Return a function that returns a sample by its name and labels."""
    registry = CollectorRegistry()
    registry.register(requests)

    def find(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"payloadd_{name}", labels)

    return find


def test_answers_are_counted_by_status_and_route(
    requests: RequestMetrics, value: Callable[..., float | None]
) -> None:
    """Probes of a balancer would look like requests with payloads."""
    for status, route in ((202, "payloads"), (202, "payloads"), (200, "healthz")):
        requests.count(status, route)
    requests.count(400)
    assert value("requests_total", code="202", route="payloads") == 2
    assert value("requests_total", code="200", route="healthz") == 1
    assert value("requests_total", code="400", route="other") == 1


@pytest.mark.parametrize("code", ["202", "503"])
def test_the_answers_of_alerts_are_there_before_the_first_one(
    value: Callable[..., float | None], code: str
) -> None:
    """The first answers would be in no rate: it needs two values of a series."""
    assert value("requests_total", code=code, route="payloads") == 0


def test_durations_are_in_cumulative_buckets(
    requests: RequestMetrics, value: Callable[..., float | None]
) -> None:
    """Percentiles of the latency would be wrong."""
    now = perf_counter()
    for seconds in (0.0, 0.3, 0.3, 3600.0):
        requests.count(202, "payloads", now - seconds)
    requests.count(200, "healthz")
    assert value("request_seconds_bucket", le="0.25") == 1
    assert value("request_seconds_bucket", le="1.0") == 3
    assert value("request_seconds_bucket", le="30.0") == 3
    assert value("request_seconds_bucket", le="+Inf") == value("request_seconds_count") == 4
    total = value("request_seconds_sum")
    assert total is not None
    assert 3600.6 <= total < 3700


def test_the_bound_of_a_bucket_belongs_to_it(
    requests: RequestMetrics,
    value: Callable[..., float | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bucket of Prometheus counts what is less than its bound or equal to it."""
    monkeypatch.setattr("payloadd.observe.request_metrics.perf_counter", lambda: 0.25)
    requests.count(202, "payloads", 0.0)
    assert [value("request_seconds_bucket", le=le) for le in ("0.1", "0.25")] == [0, 1]


def test_bytes_and_connections_are_shown(
    requests: RequestMetrics, value: Callable[..., float | None]
) -> None:
    """An operator would not see how much clients send, and how many there are."""
    assert (value("request_bytes_total"), value("connections")) == (0, 0)
    requests.body_bytes += 7
    requests.connections = lambda: 3
    assert (value("request_bytes_total"), value("connections")) == (7, 3)
