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

from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from prometheus_client import Gauge

    from daemon.config import Settings
    from daemon.health import Health
    from daemon.metrics import Metrics
    from daemon.pipeline.channel import JobChannel
    from daemon.pipeline.journal import Journal
    from daemon.pipeline.ledger import Ledger
    from daemon.systemd import Notifier

log = get_logger(__name__)

_BETWEEN_STATUS: Final = 1.0
_SIGNS_IN_A_PERIOD: Final = 4
"""One may come late, and one be lost, before systemd ends the daemon."""
_LAST_COMMIT: Final = 15.0
"""Seconds that the journal may need to close after the last progress of a drain."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at."""

    settings: Settings
    health: Health
    metrics: Metrics
    ledger: Ledger
    channel: JobChannel
    journal: Journal


@asynccontextmanager
async def watching(watched: Watched, notifier: Notifier) -> AsyncIterator[None]:
    """Tell systemd how ``watched`` is for as long as the body runs."""
    async with trio.open_nursery() as nursery:
        if notifier.heard:
            nursery.start_soon(_tell, watched, notifier)
            if notifier.watchdog_seconds is not None:
                nursery.start_soon(_feed_watchdog, watched, notifier, notifier.watchdog_seconds)
        yield
        nursery.cancel_scope.cancel()


def status_line(watched: Watched) -> str:
    """Return what ``systemctl status`` shows: the phase, the numbers, what is waited for."""
    health = watched.health
    line = (
        f"{health.phase}: {watched.ledger.stored} payloads stored,"
        f" {watched.channel.jobs} jobs queued,"
        f" {_value(watched.metrics.journal_jobs)} jobs journaled"
    )
    for part, trouble in health.troubles.items():
        line += f"; waiting for the {part}: {trouble.reason}"
    return line


async def _tell(watched: Watched, notifier: Notifier) -> None:
    """Keep the status line, and while a drain progresses systemd's patience."""
    told, seen = "", None
    while True:
        line = status_line(watched)
        if watched.health.phase != "starting" and line != told:
            told = line
            notifier.status(line)
        if watched.health.phase == "draining" and seen != (now := _progress(watched)):
            # At first what the settings allow it; then the next may be one slow upload away.
            # systemd takes no time back that it has given.
            settings = watched.settings
            whole = settings.request_timeout + settings.drain_timeout
            notifier.extend((whole if seen is None else settings.upload_timeout) + _LAST_COMMIT)
            seen = now
        await trio.sleep(_BETWEEN_STATUS)


async def _feed_watchdog(watched: Watched, notifier: Notifier, period: float) -> None:
    interval = period / _SIGNS_IN_A_PERIOD
    before = None
    while True:
        # A commit that is under way, and the one behind it: a slow disk is not a dead one.
        with trio.move_on_after(period / 2) as commit:
            await watched.journal.pulse()
        stalled = _stalled(watched)
        if commit.cancelled_caught:
            log.error("no_sign_of_life", part="journal", seconds=interval)
        elif stalled is not None and stalled == before:
            log.error("no_sign_of_life", part="dispatcher", seconds=interval)
        else:
            notifier.alive()
        before = stalled
        await trio.sleep(interval)


def _stalled(watched: Watched) -> int | None:
    """Return how many jobs the dispatcher has taken, None where it has nothing to do.

    While the disk gives errors, or workers hold all that memory allows, it waits for them.
    """
    idle = _value(watched.metrics.workers_busy) < watched.settings.max_workers
    waits = watched.channel.paused or "journal" in watched.health.troubles
    if watched.channel.jobs and idle and not waits:
        return watched.channel.taken
    return None


def _progress(watched: Watched) -> tuple[int, ...]:
    ledger = watched.ledger
    return ledger.accepted, ledger.stored, ledger.dead


def _value(gauge: Gauge) -> int:
    """Return what a scrape would show."""
    (family,) = gauge.collect()
    return int(family.samples[0].value)
