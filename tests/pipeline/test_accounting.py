"""The counts behind the snapshot of the process, and the rate behind Retry-After."""

from __future__ import annotations

import uuid

from payloadd.model.job import Batch, Job
from payloadd.model.streams import first_seq
from payloadd.observe.metrics import Metrics
from payloadd.observe.status import PayloadFigures
from payloadd.pipeline.accounting import Accounting, DrainRate, StreamCounts


def job(milliseconds: int, payloads: int = 1) -> Job:
    """Return a job accepted at ``milliseconds`` since the epoch."""
    return Job(milliseconds, uuid.UUID(int=milliseconds << 80), b"1\n" * payloads, payloads)


def batch(*jobs: Job) -> Batch:
    """Return the object of these jobs."""
    return Batch(jobs, "key", "none", sealed=True)


def test_what_was_accepted_is_stored_dead_or_open() -> None:
    """A wrong sum would hide lost payloads behind `lost 0`."""
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
    assert (metrics.accepted.value, metrics.stored.value, metrics.dead.value) == (6, 2, 1)


def test_a_snapshot_has_all_counts() -> None:
    """`/readyz`, the gauges and the `drained` line would show other figures."""
    accounting = Accounting(Metrics(), wall_clock=lambda: 10.0)
    accounting.rate = DrainRate(lambda: 100.0)
    accounting.found = 1
    accounting.accept(6)
    jobs = [job(4_000, 3), job(5_000, 2), job(6_000)]
    accounting.enter(jobs)
    accounting.settle(batch(jobs[1]))
    accounting.bury(batch(jobs[2]))
    accounting.journaled, accounting.unkept = 3, 1
    figures = accounting.figures()
    assert figures == PayloadFigures(
        accepted=6,
        stored=2,
        dead=1,
        open=4,
        journaled=3,
        unkept=1,
        oldest_seconds=6.0,
        drained_per_second=3.0,
    )
    assert figures.lost_when_closed == accounting.lost == 2


def test_the_age_is_that_of_the_oldest_open_payload() -> None:
    """An alert on a backlog that does not move would not fire."""
    now = 1010.0
    accounting = Accounting(Metrics(), wall_clock=lambda: now)
    assert accounting.oldest_age() == 0.0
    jobs = [job(1_000_000), job(1_005_000)]
    accounting.enter(jobs)
    assert accounting.oldest_age() == 10.0
    accounting.settle(batch(jobs[0]))
    assert accounting.oldest_age() == 5.0
    now = 0.0  # the clock was set back
    assert accounting.oldest_age() == 0.0


def test_retry_after_follows_from_the_measured_rate() -> None:
    """Clients would come back far too early or too late."""
    now = 100.0
    rate = DrainRate(lambda: now)
    assert rate.seconds_for(1) == 60
    for second in range(5):
        now = 100.0 + second
        rate.count(50)
        rate.count(50)
    now = 105.0
    assert rate.per_second() == 100.0
    assert rate.seconds_for(1000) == 10
    assert rate.seconds_for(0) == 1
    assert rate.seconds_for(10**9) == 60
    now = 120.0
    assert rate.per_second() == 0.0


def test_payloads_are_counted_for_their_streams() -> None:
    """The metrics of one stream would contain the payloads of another."""
    accounting = Accounting(Metrics())
    accounting.accept(5)
    accounting.accept_in(3, 2)
    accounting.settle(batch(job(1)), 50)
    accounting.settle(batch(job(1)._replace(seq=first_seq(3) + 1)), 70)
    accounting.bury(batch(job(2)))
    accounting.bury(batch(job(2)._replace(seq=first_seq(3) + 2)))
    assert accounting.streams() == {0: StreamCounts(3, 1, 1, 50), 3: StreamCounts(2, 1, 1, 70)}


def test_payloads_that_were_not_acknowledged_are_not_lost() -> None:
    """A daemon that is stopped at once would report lost payloads that no client was promised."""
    metrics = Metrics()
    accounting = Accounting(metrics)
    accounting.take(6)
    first, second, third = job(1, 3), job(2, 2), job(3)._replace(seq=first_seq(1) + 1)
    accounting.enter([first, second, third])
    assert (accounting.open, accounting.accepted, accounting.lost) == (6, 0, 0)
    accounting.acknowledge(third.seq, 1)
    accounting.settle(batch(third))
    accounting.drop([second])
    assert (accounting.open, accounting.accepted, accounting.stored) == (3, 1, 1)
    assert accounting.lost == 0
    assert accounting.jobs() == [first]
    assert accounting.streams()[1] == StreamCounts(accepted=1, stored=1)
    accounting.bury(batch(first))
    assert (accounting.open, accounting.dead, accounting.lost) == (0, 3, 0)
    assert metrics.accepted.value == 1
