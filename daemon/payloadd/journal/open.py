"""Open the journal that the settings name."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import trio

from payloadd.errors import PayloaddError, StartError
from payloadd.journal.memory import MemoryJournal
from payloadd.journal.sqlite.damage import Finding
from payloadd.journal.sqlite.damage_report import DamageReport
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import SqliteJournal
from payloadd.journal.sqlite.lock import StateDirLock
from payloadd.journal.sqlite.offline import Inspection, try_journal
from payloadd.journal.sqlite.schema import FILE, waiting_payloads
from payloadd.journal.sqlite.verify import format_finding
from payloadd.journal.store import StoreJournal
from payloadd.model.layout import Layout, Layouts
from payloadd.model.streams import DEFAULT, DEFAULT_NAME, first_seq
from payloadd.observe.logs import get_logger
from payloadd.observe.status import JournalFigures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal, JournalListener, SharedLanes, UnstoredRequests
    from payloadd.journal.inspection import JournalInspection
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.observe.status import DeadLetterGroup

log = get_logger(__name__)

NO_JOURNAL: Final = (
    "there is no journal with DURABILITY=store: what was answered with 201 is in the store, and"
    " nothing else is kept"
)


@dataclass(frozen=True, slots=True)
class OpenedJournal:
    """A journal, its streams, and the object layouts that its jobs were accepted under."""

    journal: Journal
    layouts: Layouts
    streams: Mapping[str, int]
    """The numbers of the streams of the settings and of the default stream, by name."""
    names: Mapping[int, str]
    """The names of all streams that the journal knows, by number."""
    unstored: UnstoredRequests | None = None
    """The requests that wait for the store, with ``DURABILITY=store``."""
    lanes: SharedLanes[Any] | None = None
    """The lanes of a shared journal, with ``WATERMARK=on``."""


@asynccontextmanager
async def open_journal(
    settings: Settings,
    listener: JournalListener,
    health: Health,
    metrics: Metrics,
    read_uptime: Callable[[], int] | None = None,
) -> AsyncIterator[OpenedJournal]:
    """Open the journal while the body runs; commit the last operations after the body.

    ``read_uptime``: the clock by which Idempotency-Keys expire, in milliseconds; None for the
    machine's. Raises StartError if STATE_DIR cannot be used, the journal is in use by another
    process, or its file cannot be opened.
    """
    if settings.journal_url is not None:
        await trio.to_thread.run_sync(_report_unused_journal, settings)
        wanted = _stream_names(settings)
        arguments = (settings, wanted, listener, health, metrics, read_uptime)
        async with _postgres("opening").open_postgres(*arguments) as shared:
            active = _active(shared.names, wanted)
            yield OpenedJournal(
                shared.journal, shared.layouts, active, shared.names, lanes=shared.journal.promises
            )
        return
    if settings.durability != "disk":
        await trio.to_thread.run_sync(_report_unused_journal, settings)
        listener.opened({}, 0)
        yield _without_disk(settings, listener, health, read_uptime)
        listener.closed(0)
        return
    lock = await trio.to_thread.run_sync(StateDirLock, settings.state_dir)
    try:
        async with _open_sqlite(settings, lock, listener, health, metrics, read_uptime) as opened:
            yield opened
    finally:
        lock.close()


def _without_disk(
    settings: Settings,
    listener: JournalListener,
    health: Health,
    read_uptime: Callable[[], int] | None,
) -> OpenedJournal:
    """Return the journal of DURABILITY=memory or DURABILITY=store."""
    names = dict(enumerate(_stream_names(settings)))
    layouts = [(first_seq(one), Layout.of(settings, name)) for one, name in names.items()]
    of_settings = Layouts(layouts), _active(names, names.values()), names
    if settings.durability == "memory":
        return OpenedJournal(MemoryJournal(listener, read_uptime=read_uptime), *of_settings)
    timeout = settings.request_timeout
    journal = StoreJournal(listener, health, timeout, read_uptime=read_uptime)
    health.journal_figures = journal.figures
    return OpenedJournal(journal, *of_settings, unstored=journal)


async def check_journal(
    settings: Settings, note: Callable[[str], None], *, create: bool = False
) -> str | None:
    """Try a journal without changing it; return a description, or None if none would be used.

    ``note`` is called with what an operator may want to know. ``create``: make the tables of a
    shared journal. Raises PayloaddError if a start with these settings would fail at the journal.
    """
    if settings.journal_url is not None:
        try_postgres = partial(_postgres("opening").try_postgres, create=create)
        tried = await trio.to_thread.run_sync(try_postgres, settings.journal_url)
        for line in tried.notes:
            note(line)
        return str(tried.found)
    if settings.durability == "memory":
        return None
    if settings.durability == "store":
        return NO_JOURNAL
    return await trio.to_thread.run_sync(try_journal, settings.state_dir)


@contextmanager
def inspect_journal(settings: Settings, lane: int | None = None) -> Iterator[JournalInspection]:
    """Open the durable journal of the settings for a look from another process than the daemon's.

    With another DURABILITY, STATE_DIR may have a journal of an earlier run. ``lane``: the only lane
    of a shared journal that is looked into, None for all. Raises PayloaddError if there is no
    journal, or it cannot be read.
    """
    if settings.journal_url is not None:
        opened = _postgres("inspection").PostgresInspection.open(settings.journal_url, lane)
        with opened as inspection:
            yield inspection
        return
    if lane is not None:
        raise PayloaddError("a journal in STATE_DIR has no lanes: JOURNAL_URL is not set")
    if settings.durability == "store" and not (settings.state_dir / FILE).exists():
        raise PayloaddError(NO_JOURNAL)
    with Inspection.open(settings.state_dir) as inspection:
        yield inspection


def damage_line(found: object) -> str:
    """Return a piece of damage, as ``JournalInspection.verify`` finds it, as a line of text."""
    return format_finding(found) if isinstance(found, Finding) else str(found)


def dead_letter_groups(settings: Settings, lane: int | None = None) -> list[DeadLetterGroup]:
    """Return the dead letters of the journal in use, by stream and code. Raises PayloaddError.

    ``lane``: those of one lane of a shared journal.
    """
    if settings.durability != "disk":
        return []
    with inspect_journal(settings, lane) as journal:
        return journal.dead_groups()


@asynccontextmanager
async def _open_sqlite(
    settings: Settings,
    lock: StateDirLock,
    listener: JournalListener,
    health: Health,
    metrics: Metrics,
    read_uptime: Callable[[], int] | None,
) -> AsyncIterator[OpenedJournal]:
    database, layouts = await trio.to_thread.run_sync(_open_database, settings, read_uptime)
    database.lock = lock
    report = DamageReport(database, listener)
    health.journal_figures = lambda: journal_figures(database)
    payloads = database.totals.payloads + database.damaged_payloads
    listener.opened(database.newest(), payloads)
    journal = SqliteJournal(database, listener, health, metrics, settings.journal_max_bytes)
    wanted = _stream_names(settings)
    try:
        async with report.running(), journal.running():
            names = database.streams
            yield OpenedJournal(journal, layouts, _active(names, wanted), names)
    finally:
        await journal.aclose()
        report.report_new()
        listener.closed(database.totals.payloads)


def journal_figures(database: Database) -> JournalFigures:
    """Return the contents of the journal for a snapshot of the process."""
    totals, damage = database.totals, database.high_water.damage
    missing = 0 if damage is None else damage.payloads
    return JournalFigures(totals.jobs, totals.payloads, totals.all_bytes, totals.keys, missing)


def _open_database(
    settings: Settings, read_uptime: Callable[[], int] | None
) -> tuple[Database, Layouts]:
    path = settings.state_dir / FILE
    try:
        database = Database(path, settings.max_length, read_uptime)
        try:
            names = database.open_streams(_stream_names(settings))
            layouts = {number: Layout.of(settings, name) for number, name in names.items()}
            return database, Layouts(database.layouts(layouts.pop(DEFAULT), layouts))
        except BaseException:
            database.close()
            raise
    except (OSError, sqlite3.Error, StartError) as error:
        raise StartError(f"cannot open the journal {path}: {error}") from None


def _postgres(module: str) -> Any:  # noqa: ANN401 - a module
    """Return a module of the journal in PostgreSQL. Raises StartError without its library."""
    try:
        return import_module(f"payloadd.journal.postgres.{module}")
    except ImportError as error:
        raise StartError(
            f"JOURNAL_URL needs the extra `postgres` (pip install 'payloadd[postgres]'): {error}"
        ) from None


def _stream_names(settings: Settings) -> Sequence[str]:
    """Return the name of the default stream and those of the settings."""
    return (DEFAULT_NAME, *(settings.streams or ()))


def _active(names: Mapping[int, str], wanted: Collection[str]) -> dict[str, int]:
    """Return the numbers of the streams that requests may name, by name."""
    those = set(wanted)
    return {name: number for number, name in names.items() if name in those}


def _report_unused_journal(settings: Settings) -> None:
    """Log a warning if payloads wait in a journal that this daemon does not open."""
    path = settings.state_dir / FILE
    with suppress(sqlite3.Error, StartError):
        if waiting := waiting_payloads(path):
            shared = settings.journal_url is not None
            present = "JOURNAL_URL" if shared else f"DURABILITY={settings.durability}"
            other = "without JOURNAL_URL" if shared else "with DURABILITY=disk"
            log.warning(
                "journal_left_alone",
                path=str(path),
                payloads=waiting,
                note=f"{present} does not store them; a start {other} does",
            )
