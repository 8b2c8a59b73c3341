"""Tells systemd how the daemon is: status line, signs of life, progress of a drain.

A sign of life is earned. What can hang and leave the process standing is the event loop, the
journal's thread and the dispatcher. The task that sends WATCHDOG=1 runs on the loop; before
each one it has waited for a commit to come round, as a request does, and has seen no job
wait for longer than one interval while a worker was idle.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import Gauge

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.queue import JobChannel
    from payloadd.systemd.notify import Notifier

log = get_logger(__name__)

_BETWEEN_STATUS: Final = 1.0
_SIGNS_IN_A_PERIOD: Final = 4
"""One may come late, and one be lost, before systemd ends the daemon."""
_LAST_COMMIT: Final = 15.0
"""Seconds that the journal may need to close after the last progress of a drain."""


@dataclass(frozen=True, slots=True)
class Monitored:
    """What is looked at."""

    settings: Settings
    health: Health
    metrics: Metrics
    accounting: Accounting
    channel: JobChannel
    journal: Journal


@asynccontextmanager
async def monitoring(monitored: Monitored, notifier: Notifier) -> AsyncIterator[None]:
    """Tell systemd how ``monitored`` is for as long as the body runs."""
    async with trio.open_nursery() as nursery:
        if notifier.heard:
            nursery.start_soon(_tell, monitored, notifier)
            if notifier.watchdog_seconds is not None:
                nursery.start_soon(_feed_watchdog, monitored, notifier, notifier.watchdog_seconds)
        yield
        nursery.cancel_scope.cancel()


def status_line(monitored: Monitored) -> str:
    """Return what ``systemctl status`` shows: the phase, the numbers, what is waited for."""
    health = monitored.health
    line = (
        f"{health.phase}: {monitored.accounting.stored} payloads stored,"
        f" {monitored.channel.jobs} jobs queued,"
        f" {_value(monitored.metrics.journal_jobs)} jobs journaled"
    )
    for part, trouble in health.troubles.items():
        line += f"; waiting for the {part}: {trouble.reason}"
    return line


async def _tell(monitored: Monitored, notifier: Notifier) -> None:
    """Keep the status line, and while a drain progresses systemd's patience."""
    told, seen = "", None
    while True:
        line = status_line(monitored)
        if monitored.health.phase != "starting" and line != told:
            told = line
            notifier.status(line)
        if monitored.health.phase == "draining" and seen != (now := _progress(monitored)):
            # At first what the settings allow it; then the next may be one slow upload away.
            # systemd takes no time back that it has given.
            settings = monitored.settings
            whole = settings.request_timeout + settings.drain_timeout
            notifier.extend((whole if seen is None else settings.upload_timeout) + _LAST_COMMIT)
            seen = now
        await trio.sleep(_BETWEEN_STATUS)


async def _feed_watchdog(monitored: Monitored, notifier: Notifier, period: float) -> None:
    interval = period / _SIGNS_IN_A_PERIOD
    before = None
    while True:
        # A commit that is under way, and the one behind it: a slow disk is not a dead one.
        with trio.move_on_after(period / 2) as commit:
            await monitored.journal.pulse()
        stalled = _stalled(monitored)
        if commit.cancelled_caught:
            log.error("no_sign_of_life", part="journal", seconds=interval)
        elif stalled is not None and stalled == before:
            log.error("no_sign_of_life", part="dispatcher", seconds=interval)
        else:
            notifier.alive()
        before = stalled
        await trio.sleep(interval)


def _stalled(monitored: Monitored) -> int | None:
    """Return how many jobs the dispatcher has taken, None where it has nothing to do.

    While the disk gives errors, or workers hold all that memory allows, it waits for them.
    """
    idle = _value(monitored.metrics.workers_busy) < monitored.settings.max_workers
    waits = monitored.channel.paused or "journal" in monitored.health.troubles
    if monitored.channel.jobs and idle and not waits:
        return monitored.channel.taken
    return None


def _progress(monitored: Monitored) -> tuple[int, ...]:
    accounting = monitored.accounting
    return accounting.accepted, accounting.stored, accounting.dead


def _value(gauge: Gauge) -> int:
    """Return what a scrape would show."""
    (family,) = gauge.collect()
    return int(family.samples[0].value)
