"""Signs of life, the status line, and a drain that asks for time: what systemd hears, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import structlog
import trio

from payloadd.config import settings as config
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.queue import JobChannel
from payloadd.systemd.watchdog import Monitored, monitoring, status_line
from tests.support.journal import batch, job

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.journal.api import Journal
    from payloadd.systemd.notify import Notifier

PERIOD: Final = 20.0
WORKERS: Final = 2


@dataclass
class Manager:
    """Stands in for systemd, and for the Notifier that tells it."""

    heard: bool = True
    watchdog_seconds: float | None = PERIOD
    signs: int = 0
    statuses: list[str] = field(default_factory=list)
    extensions: list[float] = field(default_factory=list)

    def alive(self) -> None:
        """Count."""
        self.signs += 1

    def status(self, text: str) -> None:
        """Keep."""
        self.statuses.append(text)

    def extend(self, seconds: float) -> None:
        """Keep."""
        self.extensions.append(seconds)


class FakeJournal:
    """Has a pulse for as long as it is not told to hang."""

    def __init__(self) -> None:
        self.hangs = False

    async def pulse(self) -> None:
        """Return, or not."""
        if self.hangs:
            await trio.sleep_forever()


@dataclass
class Rig:
    """A daemon as the watch sees it."""

    monitored: Monitored
    journal: FakeJournal
    manager: Manager = field(default_factory=Manager)

    def monitoring(self, clock: MockClock) -> Any:  # noqa: ANN401 - a context manager with fakes in it
        """Watch, and tell the manager; hours pass at once."""
        assert clock.autojump_threshold == 0
        return monitoring(self.monitored, cast("Notifier", self.manager))


@pytest.fixture
def rig() -> Rig:
    """Return one that serves, with nothing to do."""
    settings = config.load({"MAX_WORKERS": str(WORKERS), "UPLOAD_TIMEOUT": "60s"})
    metrics, journal, health = Metrics(), FakeJournal(), Health()
    health.phase = "serving"
    channel = JobChannel(10, 1000)
    accounting = Accounting(metrics)
    return Rig(
        Monitored(settings, health, metrics, accounting, channel, cast("Journal", journal)), journal
    )


async def test_a_daemon_with_nothing_to_do_lives(rig: Rig, autojump_clock: MockClock) -> None:
    """Every quiet night the watchdog would end it."""
    async with rig.monitoring(autojump_clock):
        await trio.sleep(10 * PERIOD)
    assert rig.manager.signs >= 20  # two in each period, so that one may be lost
    assert rig.manager.statuses == [status_line(rig.monitored)]


async def test_a_journal_that_hangs_is_no_sign_of_life(rig: Rig, autojump_clock: MockClock) -> None:
    """No POST would ever be answered again, and systemd would think that all is well."""
    async with rig.monitoring(autojump_clock):
        await trio.sleep(PERIOD)
        rig.journal.hangs = True
        before = rig.manager.signs
        with structlog.testing.capture_logs() as lines:
            await trio.sleep(10 * PERIOD)
        assert rig.manager.signs <= before + 1
        rig.journal.hangs = False
        await trio.sleep(2 * PERIOD)  # it looks in the same moments, before or after
        assert rig.manager.signs > before + 1
    assert lines[0].items() >= {"event": "no_sign_of_life", "part": "journal"}.items()


async def test_a_dispatcher_that_hangs_is_no_sign_of_life(
    rig: Rig, autojump_clock: MockClock
) -> None:
    """Payloads would be taken in for ever, and none would be uploaded."""
    async with rig.monitoring(autojump_clock):
        await trio.sleep(PERIOD)
        rig.monitored.channel.send_nowait([job(1), job(2)])
        before = rig.manager.signs
        with structlog.testing.capture_logs() as lines:
            for number in range(10):
                await trio.sleep(PERIOD)
                rig.monitored.accounting.accept(number)  # clients go on
        silent = rig.manager.signs
        assert silent <= before + 2
        # It takes a job: it is alive, and only slow.
        rig.monitored.channel.receive_nowait()
        await trio.sleep(PERIOD / 2)
        assert rig.manager.signs > silent
    assert lines[0].items() >= {"event": "no_sign_of_life", "part": "dispatcher"}.items()


@pytest.mark.parametrize("reason", ["workers", "disk", "hands"])
async def test_a_dispatcher_that_waits_for_somebody_lives(
    rig: Rig, reason: str, autojump_clock: MockClock
) -> None:
    """A store or a disk that is down for an hour would have the daemon ended all the time."""
    rig.monitored.channel.send_nowait([job(1)])
    if reason == "workers":
        rig.monitored.metrics.workers_busy.set(WORKERS)
    elif reason == "hands":
        rig.monitored.channel.paused = True
    else:
        rig.monitored.health.report("journal", "SQLITE_IOERR", "disk I/O error")
    async with rig.monitoring(autojump_clock):
        await trio.sleep(10 * PERIOD)
    assert rig.manager.signs >= 20


@pytest.mark.parametrize(("heard", "period"), [(False, PERIOD), (True, None)])
async def test_what_nobody_asked_for_is_not_done(
    rig: Rig,
    heard: bool,  # noqa: FBT001 - a parameter of the test
    period: float | None,
    autojump_clock: MockClock,
) -> None:
    """Without a manager a daemon that hangs for a moment would fill the log."""
    rig.manager.heard, rig.manager.watchdog_seconds = heard, period
    rig.journal.hangs = True
    with structlog.testing.capture_logs() as lines:
        async with rig.monitoring(autojump_clock):
            await trio.sleep(10 * PERIOD)
    assert (rig.manager.signs, lines) == (0, [])
    assert bool(rig.manager.statuses) is heard


def test_the_status_line_says_what_is_waited_for(rig: Rig) -> None:
    """An administrator would look at a service that runs and does nothing."""
    monitored = rig.monitored
    monitored.channel.send_nowait([job(1)])
    monitored.metrics.journal_jobs.set(7)
    assert status_line(monitored) == "serving: 0 payloads stored, 1 jobs queued, 7 jobs journaled"
    monitored.health.report("store", "AccessDenied", "AccessDenied: no")
    assert status_line(monitored).endswith("; waiting for the store: AccessDenied: no")


async def test_a_drain_asks_for_time_while_it_progresses(
    rig: Rig, autojump_clock: MockClock
) -> None:
    """Systemd would kill a drain that is almost through; or wait for ever for one that is not."""
    accounting = rig.monitored.accounting
    async with rig.monitoring(autojump_clock):
        await trio.sleep(5)
        assert rig.manager.extensions == []
        rig.monitored.health.phase = "draining"
        await trio.sleep(2)
        begun = len(rig.manager.extensions)
        await trio.sleep(100)
        assert len(rig.manager.extensions) == begun == 1
        for number in range(1, 4):
            accounting.settle(batch(job(number)))
            await trio.sleep(2)
    assert len(rig.manager.extensions) == begun + 3
    # Until the next upload may have ended: UPLOAD_TIMEOUT.
    assert min(rig.manager.extensions) > 60
    assert rig.manager.statuses[-1].startswith("draining: 3 payloads stored")


async def test_the_start_keeps_its_own_status(rig: Rig, autojump_clock: MockClock) -> None:
    """The line of the last run, or zeros, would say that the daemon serves before it does."""
    rig.monitored.health.phase = "starting"
    async with rig.monitoring(autojump_clock):
        await trio.sleep(5)
    assert rig.manager.statuses == []
