"""Opens the journal that the settings ask for, and closes it after the last settle."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import StartError
from daemon.pipeline.database import Database
from daemon.pipeline.group_commit import SqliteJournal
from daemon.pipeline.layout import Layout, Layouts
from daemon.pipeline.memory import MemoryJournal
from daemon.pipeline.window import Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from daemon.config import Settings
    from daemon.health import Health
    from daemon.metrics import Metrics
    from daemon.pipeline.channel import JobChannel
    from daemon.pipeline.journal import Journal
    from daemon.pipeline.ledger import Ledger

FILE: Final = "journal.db"
_LOCK: Final = "journal.lock"


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
    if settings.durability == "memory":
        window = Window(channel, ledger, newest=0)
        yield Opened(MemoryJournal(channel, window, ledger), window, Layouts([(0, layout)]))
        return
    with _locked(settings.state_dir):
        path = settings.state_dir / FILE
        database, layouts = await trio.to_thread.run_sync(_open_database, path, layout)
        try:
            ledger.found = database.totals.payloads
            metrics.journal_jobs.set_function(lambda: database.totals.jobs)
            metrics.journal_bytes.set_function(lambda: database.totals.bytes)
            window = Window(channel, ledger, newest=database.totals.next - 1)
            most_bytes = settings.journal_max_bytes
            journal = SqliteJournal(database, window, ledger, health, metrics, most_bytes)
            async with journal.at_work():
                yield Opened(journal, window, layouts)
        finally:
            ledger.journaled = database.totals.payloads
            database.close()


def _open_database(path: Path, layout: Layout) -> tuple[Database, Layouts]:
    try:
        database = Database(path)
        try:
            return database, Layouts(database.layouts(layout))
        except BaseException:
            database.close()
            raise
    except (OSError, sqlite3.Error, StartError) as error:
        raise StartError(f"cannot open the journal {path}: {error}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep every other process out of the journal in ``folder``, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot use STATE_DIR {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(file, 20).decode(errors="replace").strip() or "unknown"
            raise StartError(
                f"STATE_DIR {folder} is in use by another payloadd (process {owner});"
                " each process needs one of its own"
            ) from None
        # No more than a help for whoever is refused: on a full disk it is left out.
        with suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def owner(folder: Path) -> int | None:
    """Return the process that has the journal in ``folder`` open, None if there is none."""
    try:
        file = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(file, 20).decode(errors="replace").strip()
        return int(text) if text.isdigit() else None
    else:
        return None
    finally:
        os.close(file)
