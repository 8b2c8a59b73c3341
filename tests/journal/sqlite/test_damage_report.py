"""Damage is reported once, in the log and in the counters."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import structlog

from payloadd.config.settings import load
from payloadd.journal.open import open_journal
from payloadd.journal.sqlite import damage, file_check
from payloadd.journal.sqlite.damage_report import DamageReport
from payloadd.journal.sqlite.database import Database
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from tests.journal.sqlite.damaging import change
from tests.support.journal import open_rig, until

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.journal.api import Journal

pytestmark = pytest.mark.usefixtures("nine_jobs")


async def test_a_damaged_row_does_not_stop_the_journal(path: Path) -> None:
    """Later jobs would not be stored, or `/readyz` would name a trouble that cannot be fixed."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    async with open_rig(path) as rig:
        jobs = await rig.journal.page(0, 99, 9999)
        assert [one.seq for one in jobs] == [1, 5, 6, 8, 9]
        assert not rig.health.troubles


def test_findings_are_reported_once() -> None:
    """The log would repeat the same line twice a second."""
    found = damage.Findings()
    calls: list[int] = []
    found.on_new = lambda: calls.append(1)
    found.add()
    assert calls == []
    found.add(damage.Finding("jobs", "x"))
    assert len(found.pop_all()) == len(calls) == 1
    assert found.pop_all() == []


async def test_damage_is_logged_once_and_counted_as_dead(path: Path) -> None:
    """The `drained` line would count damaged payloads as lost, or the log would not name them."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    metrics = Metrics()
    accounting = Accounting(metrics)
    settings = load({"STATE_DIR": str(path.parent)})
    channel = JobChannel(100, 10**6)
    feeder = QueueFeeder(channel, accounting)
    listener = PipelineListener(channel, feeder, accounting, metrics)
    opening = open_journal(settings, listener, Health(), metrics)
    with structlog.testing.capture_logs() as lines:
        async with opening as opened:
            await _read_twice(opened.journal, accounting)
    assert (accounting.journaled, accounting.lost) == (8, 0)
    (logged,) = [line for line in lines if line["event"] == "payloads_damaged"]
    assert (logged["log_level"], logged["first"], logged["last"]) == ("error", 7, 7)


async def _read_twice(journal: Journal, accounting: Accounting) -> None:
    assert accounting.open == 13  # with the 5 payloads that the altered row claims
    jobs = await journal.page(0, 99, 9999)
    assert [one.seq for one in jobs] == [1, 5, 6, 8, 9]
    await until(lambda: accounting.dead)
    assert accounting.open == 8
    await journal.page(6, 99, 9999)


async def test_the_counter_of_dead_payloads_never_decreases(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter that decreases makes every rate of it wrong."""
    monkeypatch.setattr(file_check, "MOST_CHECKED", 0)
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq IN (5, 9)")
    seen: list[int] = []
    with closing(Database(path)) as database:
        metrics = Metrics()
        channel, accounting = JobChannel(100, 10**6), Accounting(metrics)
        feeder = QueueFeeder(channel, accounting)
        report = DamageReport(database, PipelineListener(channel, feeder, accounting, metrics))
        for after in (0, 5):
            database.page(after, 2, 9999)
            report.report_new()
            seen.append(metrics.dead.value)
        database.page(7, 9, 9999)
        report.report_new()
    assert (seen, metrics.dead.value) == ([0, 0], 2)
