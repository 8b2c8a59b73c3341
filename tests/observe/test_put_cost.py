"""The cost of uploads."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from payloadd.config import settings as config
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.observe.put_cost import PutCost, put_cost_of

A_DOLLAR_A_DAY: float = 1 / 0.000005 / 86_400
"""Uploads a second that cost a dollar a day."""


class Uploads:
    """A number of uploads that rises at a rate, and a clock."""

    def __init__(self, dollars: float) -> None:
        self.now = 0.0
        self.done = 0.0
        self.dollars = dollars
        self.cost = PutCost(lambda: round(self.done), 0.000005, lambda: self.now)

    def run(self, seconds: int) -> list[float]:
        """Let time pass; return the costs that are logged."""
        with capture_logs() as logs:
            for _ in range(seconds // 10):
                self.now += 10
                self.done += 10 * self.dollars * A_DOLLAR_A_DAY
                self.cost.take()
        assert all("BATCH_MAX_PAYLOADS" in line["note"] for line in logs)
        return [line["dollars_per_day"] for line in logs]


def test_the_cost_is_the_rate_of_ten_minutes_for_a_day() -> None:
    """An operator would get a bill that no figure has announced."""
    uploads = Uploads(dollars=3)
    assert uploads.cost.dollars_per_day() == 0
    uploads.run(60)
    assert uploads.cost.dollars_per_day() == pytest.approx(3, rel=0.05)
    uploads.run(1200)
    uploads.dollars = 6
    uploads.run(300)
    assert uploads.cost.dollars_per_day() == pytest.approx(4.5, rel=0.01)
    uploads.run(300)
    assert uploads.cost.dollars_per_day() == pytest.approx(6, rel=0.01)
    uploads.dollars = 0
    uploads.run(600)
    assert uploads.cost.dollars_per_day() == 0


def test_a_high_cost_is_logged_after_ten_minutes_and_once_a_day() -> None:
    """A short burst would warn, or a warning would fill the log."""
    uploads = Uploads(dollars=12)
    assert uploads.run(590) == []
    assert uploads.run(10) == [pytest.approx(12, rel=0.01)]
    assert uploads.run(86_000) == []
    assert len(uploads.run(86_400)) == 1


def test_a_low_cost_is_not_logged() -> None:
    """Nine dollars a day are what an operator expects."""
    assert Uploads(dollars=9).run(100_000) == []


async def test_samples_are_taken_every_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The cost would stay zero."""
    counts = iter(range(1000))
    cost = PutCost(lambda: next(counts), 1.0, trio.current_time)
    with trio.move_on_after(25):
        await cost.run()
    assert cost.dollars_per_day() == pytest.approx(8640)


@pytest.mark.parametrize(("url", "cost"), [("s3://bucket", 4320.0), ("file:///x", 0.0)])
def test_only_uploads_to_s3_cost(url: str, cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files in a folder would seem to cost money."""
    now = 0.0
    monkeypatch.setattr(PutCost.__init__, "__defaults__", (lambda: now,))
    settings = config.load({"STORE_URL": url, "PUT_PRICE": "0.5"})
    metrics, health = Metrics(), Health()
    found = put_cost_of(settings, metrics, health)
    metrics.upload_seconds.observe(0.1)
    now = 10.0
    found.take()
    assert health.snapshot().put_cost_dollars_per_day == cost
