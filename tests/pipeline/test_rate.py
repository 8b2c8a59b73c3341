"""The limit on the uploads to one throttled part of the store."""

from __future__ import annotations

import pytest

from payloadd.pipeline.limits import UploadLimits
from payloadd.pipeline.rate import RateLimit


def make_limit(rate: float = 100.0, *, worked: bool = True) -> RateLimit:
    """Return a limit that has found its rate."""
    return RateLimit(0.0, rate, 30.0, worked=worked)


def store(limit: RateLimit, count: int, now: float) -> None:
    """Store uploads."""
    for _ in range(count):
        limit.store(now, now)


def settled() -> RateLimit:
    """Return a limit that was refused at 1.0 and has found 100 uploads a second."""
    limit = make_limit(25.0)
    store(limit, 100, 0.3)
    limit.refuse(0.3, 0.2, 0.0)
    store(limit, 70, 1.0)
    limit.refuse(1.0, 0.9, 0.0)
    return limit


def test_the_stored_uploads_between_two_refusals_are_the_rate() -> None:
    """The limit would wander off, because requests that were refused counted."""
    limit = settled()
    store(limit, 120, 2.0)
    limit.refuse(2.2, 2.1, 0.0)
    assert 90 <= limit.rate(2.2) <= 100
    assert limit.rate(3.2) == pytest.approx(limit.rate(2.2) / 0.92)


def test_refusals_of_uploads_that_had_started_before_lower_nothing() -> None:
    """One moment without tokens would count once for each upload in progress."""
    limit = settled()
    before = limit.rate(1.1)
    for _ in range(30):
        limit.refuse(1.1, 0.95, 0.0)
    assert limit.rate(1.1) == before


def test_the_limit_rises_until_it_is_over_and_only_with_stored_uploads() -> None:
    """Uploads would be slow for ever, or a slow store be asked at full speed after some seconds."""
    limit = settled()
    assert limit.rate(50.0) < 130
    store(limit, 23, 3.0)
    assert limit.rate(6.0) == pytest.approx(limit.rate(2.0) * 2**5)
    assert not limit.is_over(6.0)
    store(limit, 20, 6.0)
    assert limit.is_over(7.5)
    assert settled().is_over(62.0)


def test_starts_are_spread_and_a_late_start_loses_nothing() -> None:
    """Each pause of the event loop would lower the rate."""
    limit = settled()
    starts = 0
    for step in range(1000, 3000, 20):
        while limit.start(step / 1000):
            starts += 1
    assert 180 <= starts <= 210


def test_a_store_that_refuses_all_is_asked_less_and_less_and_again_when_it_works() -> None:
    """A store in need would be asked as often as before, or hardly ever afterwards."""
    limit = make_limit()
    now = 0.0
    for _ in range(12):
        now = limit.next_start
        assert limit.start(now)
        limit.refuse(now + 0.01, now, 0.0)
    assert limit.refuses_all
    assert limit.rate(now) == pytest.approx(0.2, abs=0.05)
    assert 4 < limit.next_start - now < 6
    limit.store(now + 1, now)
    assert limit.next_start <= now + 2.01


@pytest.mark.parametrize(("worked", "waits"), [(False, True), (True, False)])
def test_the_wait_that_the_store_asks_for_holds_while_it_stores_nothing(
    worked: bool,  # noqa: FBT001 - a parameter of the test
    waits: bool,  # noqa: FBT001 - as above
) -> None:
    """A store would get requests it asked to delay, or each refusal stop all others."""
    assert (make_limit(worked=worked).next_start >= 30.0) is waits


def test_limits_are_those_of_folders_and_bounded_in_number() -> None:
    """A throttled shard would slow all others, or a folder for each object take all memory."""
    limits = UploadLimits()
    for number in range(1500):
        limits.refuse(f"{number}/x", 1.0, started=0.0, retry_after=0.0, stored=0)
    assert len(limits.by_prefix) <= 1001
    assert limits.find("7/other", 1.0) is limits.find("7/x", 1.0)
    assert limits.find("7/other", 1.0) is not limits.find("8/x", 1.0)
    assert limits.find("1400/x", 1.0) is limits.find("1401/x", 1.0)
    limits.drop_over(100.0)
    assert limits.find("7/x", 100.0) is None
    assert limits.lowest_rate(100.0) == float("inf")


def test_a_first_limit_begins_with_the_rate_of_all_uploads() -> None:
    """Uploads would search for the rate from nearly zero."""
    limits = UploadLimits()
    limits.sample(10.0, 1000)
    assert not limits.refuse("a/x", 10.5, started=10.4, retry_after=0.0, stored=1100)
    assert limits.lowest_rate(10.5) == pytest.approx(200, rel=0.1)
