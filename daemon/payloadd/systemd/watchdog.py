"""Report the state of the daemon to systemd: status line, watchdog, progress of a drain.

WATCHDOG=1 is sent only after a check, because the process can stay alive while the event loop, the
journal's thread or the dispatcher hangs. The task that sends it runs on the event loop. Before each
message it has waited for a commit of the journal, as a request does, and has checked that no job
waited for longer than one interval while a worker was idle.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from payloadd.observe.logs import get_logger
from payloadd.observe.status import status_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal
    from payloadd.observe.health import Health
    from payloadd.observe.status import Status
    from payloadd.systemd.notify import Notifier

log = get_logger(__name__)

_STATUS_INTERVAL: Final = 1.0
"""Seconds."""
_MESSAGES_IN_A_PERIOD: Final = 4
"""One message may be late, and one may be lost, before systemd ends the daemon."""
_LAST_COMMIT: Final = 15.0
"""Seconds that the journal may need to close after the last progress of a drain."""


@dataclass(frozen=True, slots=True)
class WatchedParts:
    """The parts of the daemon that the watchdog reads."""

    settings: Settings
    health: Health
    journal: Journal


@asynccontextmanager
async def reporting_to_systemd(parts: WatchedParts, notifier: Notifier) -> AsyncIterator[None]:
    """Report the state of ``parts`` to systemd for as long as the body runs."""
    async with trio.open_nursery() as nursery:
        if notifier.enabled:
            nursery.start_soon(_report_status, parts, notifier)
            if notifier.watchdog_seconds is not None:
                nursery.start_soon(_feed_watchdog, parts, notifier, notifier.watchdog_seconds)
        yield
        nursery.cancel_scope.cancel()


async def _report_status(parts: WatchedParts, notifier: Notifier) -> None:
    """Send the status line when it changes, and ask for time while a drain progresses."""
    sent, seen = "", None
    while True:
        status = parts.health.snapshot()
        line = status_line(status)
        if status.phase != "starting" and line != sent:
            sent = line
            notifier.status(line)
        if status.phase in ("leaving", "draining") and seen != (now := _progress(status)):
            # First the time that the settings allow for the drain. Later the next progress may be
            # one slow upload away. systemd never shortens an extension that it has granted.
            settings = parts.settings
            whole = settings.drain_delay + settings.request_timeout + settings.drain_timeout
            notifier.extend((whole if seen is None else settings.upload_timeout) + _LAST_COMMIT)
            seen = now
        await trio.sleep(_STATUS_INTERVAL)


async def _feed_watchdog(parts: WatchedParts, notifier: Notifier, period: float) -> None:
    interval = period / _MESSAGES_IN_A_PERIOD
    before = None
    while True:
        # Time for the commit that is under way and for the next one: a slow disk is not a dead one.
        with trio.move_on_after(period / 2) as commit:
            await parts.journal.pulse()
        stalled = _stalled_at(parts.health.snapshot(), parts.settings.max_workers)
        if commit.cancelled_caught:
            log.error("no_sign_of_life", part="journal", seconds=interval)
        elif stalled is not None and stalled == before:
            log.error("no_sign_of_life", part="dispatcher", seconds=interval)
        else:
            notifier.alive()
        before = stalled
        await trio.sleep(interval)


def _stalled_at(status: Status, max_workers: int) -> int | None:
    """Return how many jobs the dispatcher has received, or None if it has no reason to receive.

    The same number twice means that the dispatcher hangs. It has a reason when jobs are queued and
    a worker is idle, unless it is blocked: on errors of the disk, or on workers that hold as many
    bytes as memory allows.
    """
    blocked = status.queue.paused or "journal" in status.troubles
    if status.queue.jobs and status.busy_workers < max_workers and not blocked:
        return status.queue.received
    return None


def _progress(status: Status) -> tuple[int, ...]:
    payloads = status.payloads
    return payloads.accepted, payloads.stored, payloads.dead
