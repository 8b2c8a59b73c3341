"""Opens the journal that the settings ask for, and closes it after the last settle."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from daemon.errors import StartError
from daemon.logs import get_logger
from daemon.pipeline.damage_report import DamageReport
from daemon.pipeline.database import Database
from daemon.pipeline.group_commit import SqliteJournal
from daemon.pipeline.layout import Layout, Layouts
from daemon.pipeline.lock import lock
from daemon.pipeline.memory import MemoryJournal
from daemon.pipeline.schema import FILE, waiting_payloads
from daemon.pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from daemon.config import Settings
    from daemon.health import Health
    from daemon.metrics import Metrics
    from daemon.pipeline.channel import JobChannel
    from daemon.pipeline.journal import Journal
    from daemon.pipeline.ledger import Ledger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A journal with what goes with it."""

    journal: Journal
    window: Window
    layouts: Layouts


@asynccontextmanager
async def open_journal(
    settings: Settings,
    channel: JobChannel,
    ledger: Ledger,
    health: Health,
    metrics: Metrics,
) -> AsyncIterator[Opened]:
    """Open the journal; behind the body, what was settled last is written. Raises StartError."""
    layout = Layout.of(settings)
    path = settings.state_dir / FILE
    if settings.durability == "memory":
        await trio.to_thread.run_sync(_name_what_is_left_alone, path)
        window = Window(channel, ledger, newest=0)
        yield Opened(MemoryJournal(channel, window, ledger), window, Layouts([(0, layout)]))
        return
    lock_file = await trio.to_thread.run_sync(lock, settings.state_dir)
    try:
        database, layouts = await trio.to_thread.run_sync(
            _open_database, path, layout, settings.max_length
        )
        report = DamageReport(database, ledger, metrics)
        ledger.found = database.totals.payloads + database.damaged_payloads
        metrics.journal_jobs.set_function(lambda: database.totals.jobs)
        metrics.journal_bytes.set_function(lambda: database.totals.all_bytes)
        window = Window(channel, ledger, newest=database.totals.next - 1)
        most_bytes = settings.journal_max_bytes
        journal = SqliteJournal(database, window, ledger, health, metrics, most_bytes)
        try:
            async with report.running(), journal.at_work():
                yield Opened(journal, window, layouts)
        finally:
            await journal.aclose()
            report.tell()
            ledger.journaled = database.totals.payloads
    finally:
        os.close(lock_file)


def _open_database(path: Path, layout: Layout, max_length: int) -> tuple[Database, Layouts]:
    try:
        database = Database(path, max_length)
        try:
            return database, Layouts(database.layouts(layout))
        except BaseException:
            database.close()
            raise
    except (OSError, sqlite3.Error, StartError) as error:
        raise StartError(f"cannot open the journal {path}: {error}") from None


def _name_what_is_left_alone(path: Path) -> None:
    """Warn of payloads that wait in a journal which this daemon will not look into."""
    with suppress(sqlite3.Error, StartError):
        if waiting := waiting_payloads(path):
            log.warning(
                "journal_left_alone",
                path=str(path),
                payloads=waiting,
                note="DURABILITY=memory does not store them; a start with disk does",
            )
