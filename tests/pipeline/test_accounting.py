"""The numbers that the drained line and Retry-After come from."""

from __future__ import annotations

import uuid
from unittest.mock import patch

from prometheus_client.parser import text_string_to_metric_families

from payloadd.model.job import Batch, Job
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting, DrainRate


def job(milliseconds: int, payloads: int = 1) -> Job:
    """Return a job accepted at ``milliseconds`` since the epoch."""
    return Job(milliseconds, uuid.UUID(int=milliseconds << 80), b"1\n" * payloads, payloads)


def batch(*jobs: Job) -> Batch:
    """Return the object of these jobs."""
    return Batch(jobs, "key", "none", sealed=True)


def test_what_was_accepted_is_stored_dead_or_open() -> None:
    """If this does not add up, `lost 0` means nothing."""
    metrics = Metrics()
    accounting = Accounting(metrics)
    accounting.found = 1
    first, second, third = job(1, 3), job(2, 2), job(3)
    accounting.accept(6)
    accounting.enter([first, second, third])
    accounting.settle(batch(second))
    accounting.bury(batch(third))
    assert (accounting.accepted, accounting.stored, accounting.dead, accounting.open) == (
        6,
        2,
        1,
        4,
    )
    accounting.revive(third.payloads)
    accounting.journaled = 5
    assert (accounting.open, accounting.lost) == (5, 0)
    accounting.journaled = 3
    accounting.unkept = 1
    assert accounting.lost == 3
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    assert values["payloadd_payloads_accepted_total"] == 6
    assert values["payloadd_payloads_stored_total"] == 2
    assert values["payloadd_payloads_dead_total"] == 1


def test_the_oldest_open_payload_has_an_age() -> None:
    """An alert on a backlog that does not move needs it."""
    accounting = Accounting(Metrics())
    assert accounting.oldest_age() == 0.0
    jobs = [job(1_000_000), job(1_005_000)]
    accounting.enter(jobs)
    with patch("payloadd.pipeline.accounting.time.time", return_value=1010.0):
        assert accounting.oldest_age() == 10.0
        accounting.settle(batch(jobs[0]))
        assert accounting.oldest_age() == 5.0
    with patch("payloadd.pipeline.accounting.time.time", return_value=0.0):
        assert accounting.oldest_age() == 0.0


def test_retry_after_follows_from_the_measured_rate() -> None:
    """A made-up Retry-After has clients come back far too early or late."""
    now = 100.0
    rate = DrainRate(lambda: now)
    assert rate.seconds_for(1) == 60
    for second in range(5):
        now = 100.0 + second
        rate.count(50)
        rate.count(50)
    now = 105.0
    assert rate.rate() == 100.0
    assert rate.seconds_for(1000) == 10
    assert rate.seconds_for(0) == 1
    assert rate.seconds_for(10**9) == 60
    now = 120.0
    assert rate.rate() == 0.0
