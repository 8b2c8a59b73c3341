"""Opens the journal that the settings ask for, and closes it after the last settle."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from payloadd.errors import StartError
from payloadd.journal.memory import MemoryJournal
from payloadd.journal.sqlite.damage_report import DamageReport
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import SqliteJournal
from payloadd.journal.sqlite.lock import lock
from payloadd.journal.sqlite.schema import FILE, waiting_payloads
from payloadd.model.layout import Layout, Layouts
from payloadd.observe.logs import get_logger
from payloadd.observe.status import JournalFigures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal, JournalAccounts, JournalListener, QueueRoom
    from payloadd.journal.sqlite.totals import Totals
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedJournal:
    """A journal with what goes with it."""

    journal: Journal
    layouts: Layouts


@asynccontextmanager
async def open_journal(
    settings: Settings,
    channel: QueueRoom,
    feeder: JournalListener,
    accounting: JournalAccounts,
    health: Health,
    metrics: Metrics,
) -> AsyncIterator[OpenedJournal]:
    """Open the journal; behind the body, what was settled last is written. Raises StartError."""
    layout = Layout.of(settings)
    path = settings.state_dir / FILE
    if settings.durability == "memory":
        await trio.to_thread.run_sync(_name_what_is_left_alone, path)
        yield OpenedJournal(MemoryJournal(channel, feeder, accounting), Layouts([(0, layout)]))
        return
    lock_file = await trio.to_thread.run_sync(lock, settings.state_dir)
    try:
        database, layouts = await trio.to_thread.run_sync(
            _open_database, path, layout, settings.max_length
        )
        report = DamageReport(database, accounting, metrics)
        accounting.found = database.totals.payloads + database.damaged_payloads
        health.journal_figures = lambda: _figures(database.totals)
        feeder.resume(database.totals.next - 1)
        most_bytes = settings.journal_max_bytes
        journal = SqliteJournal(database, feeder, accounting, health, metrics, most_bytes)
        try:
            async with report.running(), journal.at_work():
                yield OpenedJournal(journal, layouts)
        finally:
            await journal.aclose()
            report.report_new()
            accounting.journaled = database.totals.payloads
    finally:
        os.close(lock_file)


def _figures(totals: Totals) -> JournalFigures:
    """Return the content of the journal for a snapshot of the process."""
    return JournalFigures(totals.jobs, totals.payloads, totals.all_bytes)


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
