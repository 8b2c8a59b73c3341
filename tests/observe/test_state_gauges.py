"""The gauges of troubles, limits and costs."""

from __future__ import annotations

import platform

from payloadd import __version__
from payloadd.observe.metrics import Metrics
from payloadd.observe.state_gauges import StateGauges
from payloadd.observe.status import JournalFigures, Status, Trouble


def scrape(status: Status, limit: int | None = 100) -> list[str]:
    """Return the samples of a scrape, without those of other metrics."""
    metrics = Metrics()
    before = set(metrics.render().decode().splitlines())
    metrics.registry.register(StateGauges(lambda: status, limit))
    lines = metrics.render().decode().splitlines()
    return [
        line
        for line in lines
        if not line.startswith("#") and line not in before and not line.startswith("process_")
    ]


def test_each_trouble_has_a_sample() -> None:
    """An alert could not say what is wrong."""
    troubles = {
        "store": Trouble("AccessDenied", "no", 0.0),
        "journal": Trouble('SQLITE_"FULL"', "full", 0.0),
    }
    found = scrape(Status(troubles=troubles))
    assert 'payloadd_trouble{code="AccessDenied",part="store"} 1.0' in found
    assert 'payloadd_trouble{code="SQLITE_\\"FULL\\"",part="journal"} 1.0' in found


def test_limits_costs_and_version_have_samples() -> None:
    """Alerts on them would never fire."""
    status = Status(
        journal=JournalFigures(bytes=30),
        credentials_expire_seconds=60.5,
        put_cost_dollars_per_day=2.5,
    )
    python = platform.python_version()
    labels = f'commit="",python="{python}",version="{__version__}"'
    assert scrape(status) == [
        "payloadd_journal_free_bytes 70.0",
        "payloadd_credentials_expire_seconds 60.5",
        "payloadd_put_cost_dollars_per_day 2.5",
        f"payloadd_build_info{{{labels}}} 1.0",
    ]


def test_what_does_not_exist_has_no_sample() -> None:
    """An alert would take the lack of a journal for a full one."""
    assert [line.partition("{")[0].partition(" ")[0] for line in scrape(Status(), None)] == [
        "payloadd_put_cost_dollars_per_day",
        "payloadd_build_info",
    ]


def test_a_journal_above_its_limit_has_no_bytes_left() -> None:
    """The figure would be negative after JOURNAL_MAX_BYTES was lowered."""
    found = scrape(Status(journal=JournalFigures(bytes=300)))
    assert "payloadd_journal_free_bytes 0.0" in found
