"""Processes of a fleet: each is a journal with a recording pipeline, in the process of the test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, cast

import trio

from payloadd.config.settings import load
from payloadd.journal.postgres.opening import open_postgres
from payloadd.journal.postgres.times import LeaseTimes
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from tests.journal.opener import Run
from tests.support.journal import TEST_TIMEOUT
from tests.support.listener import RecordingListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from payloadd.journal.postgres.journal import PostgresJournal

QUICK: Final = LeaseTimes(
    retry_interval=0.05, maintenance_interval=0.15, beat_interval=0.3, lease=1.5, doubt_timeout=2.0
)


class Member(Run):
    """One process of a fleet."""

    health: Health
    metrics: Metrics

    @property
    def shared(self) -> PostgresJournal:
        """The journal by its own type."""
        return cast("PostgresJournal", self.journal)

    @property
    def lanes(self) -> list[int]:
        """The numbers of the lanes that it holds, its own first."""
        session = self.shared.session
        own = session.own.number
        return [own, *sorted({one.number for one in list(session.lanes.values())} - {own})]

    def die(self) -> None:
        """Let it end without a word to the database, as after SIGKILL."""
        self.shared.session.finish = lambda: None  # type: ignore[method-assign]

    def stop_beating(self) -> None:
        """Let it show no sign of life, as after SIGSTOP; it does not know."""
        self.shared.calls.tuning = replace(
            self.shared.calls.tuning, maintenance_interval=10**6, beat_interval=10**6
        )


@asynccontextmanager
async def member(
    url: str,
    tuning: LeaseTimes = QUICK,
    read_uptime: Callable[[], int] | None = None,
    **environ: str,
) -> AsyncIterator[Member]:
    """Run one process of a fleet at the journal ``url``; a test that hangs fails."""
    settings = load({"JOURNAL_URL": url, "BATCH_MAX_PAYLOADS": "9", **environ})
    pipeline = RecordingListener(100_000, 10**8)
    health, metrics = Health(), Metrics()
    names = ("default", *(settings.streams or ()))
    with trio.fail_after(TEST_TIMEOUT):
        opening = open_postgres(settings, names, pipeline, health, metrics, read_uptime, tuning)
        async with opening as (journal, layouts, known):
            numbers = {name: number for number, name in known.items()}
            one = Member(journal, layouts, pipeline, numbers, known)
            one.health, one.metrics = health, metrics
            yield one
