"""The messages that systemd gets while the daemon runs, and when it gets them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import structlog
import trio

from payloadd.config import settings as config
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.observe.status import status_line
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.queue import JobChannel
from payloadd.systemd.watchdog import WatchedParts, reporting_to_systemd
from tests.support.journal import batch, job

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.journal.api import Journal
    from payloadd.systemd.notify import Notifier

PERIOD: Final = 20.0
WORKERS: Final = 2


@dataclass
class FakeNotifier:
    """Keep the messages instead of sending them to systemd."""

    enabled: bool = True
    watchdog_seconds: float | None = PERIOD
    alive_count: int = 0
    statuses: list[str] = field(default_factory=list)
    extensions: list[float] = field(default_factory=list)

    def alive(self) -> None:
        """Count the message."""
        self.alive_count += 1

    def status(self, text: str) -> None:
        """Keep the text."""
        self.statuses.append(text)

    def extend(self, seconds: float) -> None:
        """Keep the number."""
        self.extensions.append(seconds)


class FakeJournal:
    """A journal whose commits end at once, or never while ``hangs`` is true."""

    def __init__(self) -> None:
        self.hangs = False

    async def pulse(self) -> None:
        """Return, or hang."""
        if self.hangs:
            await trio.sleep_forever()


@dataclass
class Rig:
    """The parts of a daemon that the watchdog reads."""

    parts: WatchedParts
    health: Health
    accounting: Accounting
    channel: JobChannel
    journal: FakeJournal
    notifier: FakeNotifier = field(default_factory=FakeNotifier)

    def reporting(self, clock: MockClock) -> Any:  # noqa: ANN401 - a context manager with fakes in it
        """Report the rig to the fake notifier; hours pass at once."""
        assert clock.autojump_threshold == 0
        return reporting_to_systemd(self.parts, cast("Notifier", self.notifier))


@pytest.fixture
def rig() -> Rig:
    """Return a daemon that serves, with an empty queue."""
    settings = config.load({"MAX_WORKERS": str(WORKERS), "UPLOAD_TIMEOUT": "60s"})
    journal, health = FakeJournal(), Health()
    health.phase = "serving"
    channel = JobChannel(10, 1000)
    accounting = Accounting(Metrics())
    health.payload_figures, health.queue_figures = accounting.figures, channel.figures
    parts = WatchedParts(settings, health, cast("Journal", journal))
    return Rig(parts, health, accounting, channel, journal)


async def test_an_idle_daemon_feeds_the_watchdog(rig: Rig, autojump_clock: MockClock) -> None:
    """The watchdog would end it in every quiet night."""
    async with rig.reporting(autojump_clock):
        await trio.sleep(10 * PERIOD)
    assert rig.notifier.alive_count >= 20  # two in each period, so that one may be lost
    assert rig.notifier.statuses == [status_line(rig.health.snapshot())]


async def test_the_watchdog_is_not_fed_while_the_journal_hangs(
    rig: Rig, autojump_clock: MockClock
) -> None:
    """No POST would ever be answered again, and systemd would not restart the daemon."""
    async with rig.reporting(autojump_clock):
        await trio.sleep(PERIOD)
        rig.journal.hangs = True
        before = rig.notifier.alive_count
        with structlog.testing.capture_logs() as lines:
            await trio.sleep(10 * PERIOD)
        assert rig.notifier.alive_count <= before + 1
        rig.journal.hangs = False
        await trio.sleep(2 * PERIOD)  # the check runs in the same moments, before or after
        assert rig.notifier.alive_count > before + 1
    assert lines[0].items() >= {"event": "no_sign_of_life", "part": "journal"}.items()


async def test_the_watchdog_is_not_fed_while_the_dispatcher_hangs(
    rig: Rig, autojump_clock: MockClock
) -> None:
    """Payloads would be accepted for ever, and none would be uploaded."""
    async with rig.reporting(autojump_clock):
        await trio.sleep(PERIOD)
        rig.channel.send_nowait([job(1), job(2)])
        before = rig.notifier.alive_count
        with structlog.testing.capture_logs() as lines:
            for number in range(10):
                await trio.sleep(PERIOD)
                rig.accounting.accept(number)  # clients continue
        during = rig.notifier.alive_count
        assert during <= before + 2
        # The dispatcher receives a job: it works, and is only slow.
        rig.channel.receive_nowait()
        await trio.sleep(PERIOD / 2)
        assert rig.notifier.alive_count > during
    assert lines[0].items() >= {"event": "no_sign_of_life", "part": "dispatcher"}.items()


@pytest.mark.parametrize("reason", ["workers", "disk", "memory"])
async def test_a_dispatcher_that_is_blocked_feeds_the_watchdog(
    rig: Rig, reason: str, autojump_clock: MockClock
) -> None:
    """During an outage of the store or the disk systemd would restart the daemon repeatedly."""
    rig.channel.send_nowait([job(1)])
    if reason == "workers":
        rig.health.busy_workers = lambda: WORKERS
    elif reason == "memory":
        rig.channel.paused = True
    else:
        rig.health.report("journal", "SQLITE_IOERR", "disk I/O error")
    async with rig.reporting(autojump_clock):
        await trio.sleep(10 * PERIOD)
    assert rig.notifier.alive_count >= 20


@pytest.mark.parametrize(("enabled", "period"), [(False, PERIOD), (True, None)])
async def test_without_a_watchdog_nothing_is_checked(
    rig: Rig,
    enabled: bool,  # noqa: FBT001 - a parameter of the test
    period: float | None,
    autojump_clock: MockClock,
) -> None:
    """A daemon that hangs for a moment would fill the log although no manager watches it."""
    rig.notifier.enabled, rig.notifier.watchdog_seconds = enabled, period
    rig.journal.hangs = True
    with structlog.testing.capture_logs() as lines:
        async with rig.reporting(autojump_clock):
            await trio.sleep(10 * PERIOD)
    assert (rig.notifier.alive_count, lines) == (0, [])
    assert bool(rig.notifier.statuses) is enabled


async def test_the_status_line_is_sent_when_it_changes(rig: Rig, autojump_clock: MockClock) -> None:
    """An administrator would see a service that runs and stores nothing, without a reason."""
    async with rig.reporting(autojump_clock):
        await trio.sleep(5)
        rig.health.report("store", "AccessDenied", "AccessDenied: no")
        await trio.sleep(5)
    figures = "serving: 0 payloads stored, 0 jobs queued, 0 jobs journaled"
    trouble = "; waiting for the store: AccessDenied: no"
    assert rig.notifier.statuses == [figures, figures + trouble]


async def test_a_drain_asks_for_time_while_it_progresses(
    rig: Rig, autojump_clock: MockClock
) -> None:
    """Systemd would kill a drain that is nearly complete, or wait for ever for one that hangs."""
    async with rig.reporting(autojump_clock):
        await trio.sleep(5)
        assert rig.notifier.extensions == []
        rig.health.phase = "draining"
        await trio.sleep(2)
        begun = len(rig.notifier.extensions)
        await trio.sleep(100)
        assert len(rig.notifier.extensions) == begun == 1
        for number in range(1, 4):
            rig.accounting.settle(batch(job(number)))
            await trio.sleep(2)
    assert len(rig.notifier.extensions) == begun + 3
    # Until the next upload may have ended: UPLOAD_TIMEOUT.
    assert min(rig.notifier.extensions) > 60
    assert rig.notifier.statuses[-1].startswith("draining: 3 payloads stored")


async def test_no_status_line_is_sent_during_the_start(rig: Rig, autojump_clock: MockClock) -> None:
    """The line would claim figures before the daemon serves."""
    rig.health.phase = "starting"
    async with rig.reporting(autojump_clock):
        await trio.sleep(5)
    assert rig.notifier.statuses == []
