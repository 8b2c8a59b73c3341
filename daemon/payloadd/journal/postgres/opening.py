"""Open the journal of JOURNAL_URL, and try it for ``payloadd check``."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg
import trio

from payloadd.errors import StartError
from payloadd.journal.postgres import connection as connecting
from payloadd.journal.postgres import schema
from payloadd.journal.postgres.holding import KnownStreams
from payloadd.journal.postgres.journal import PostgresJournal
from payloadd.journal.postgres.keys import SharedClock
from payloadd.journal.postgres.session import Session
from payloadd.journal.postgres.times import DEFAULT_TIMES, LeaseTimes
from payloadd.model.layout import Layout, Layouts
from payloadd.observe.logs import get_logger
from payloadd.observe.status import JournalFigures

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from payloadd.config.settings import Settings
    from payloadd.journal.api import JournalListener
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics

log = get_logger(__name__)

_START_TIMEOUT: Final = 60.0
"""Seconds in which a start has to get its lane: a server may hang without a sign."""


class OpenedPostgres(NamedTuple):
    """An open journal, the layouts of its jobs, and the names of its streams by number."""

    journal: PostgresJournal
    layouts: Layouts
    names: dict[int, str]


@asynccontextmanager
async def open_postgres(
    settings: Settings,
    stream_names: Sequence[str],
    listener: JournalListener,
    health: Health,
    metrics: Metrics,
    read_uptime: Callable[[], int] | None = None,
    tuning: LeaseTimes = DEFAULT_TIMES,
) -> AsyncIterator[OpenedPostgres]:
    """Open the journal of JOURNAL_URL while the body runs. Raises StartError."""
    url = str(settings.journal_url)
    session = Session(url, SharedClock(read_uptime), watermarks=settings.watermark == "on")
    new = {name: Layout.of(settings, name) for name in stream_names}
    try:
        own = None
        with trio.move_on_after(_START_TIMEOUT):
            own = await trio.to_thread.run_sync(_open, session, url, new, abandon_on_cancel=True)
        if own is None:
            raise cannot_open(url, TimeoutError(f"no answer within {_START_TIMEOUT:g} s"))
        layouts = Layouts(own.layouts)
        log.info("lane_leased", lane=session.own.number, server=connecting.address(url))
        health.journal_figures = lambda: figures(session)
        listener.opened(session.own.newest(), session.own.payloads)
        maximum = settings.journal_max_bytes
        known = KnownStreams(
            layouts, own.names, stream_names if settings.watermark == "on" else None
        )
        journal = PostgresJournal(session, listener, health, metrics, maximum, known, tuning)
        async with journal.running():
            yield OpenedPostgres(journal, layouts, own.names)
    finally:
        with trio.move_on_after(connecting.ANSWER_TIMEOUT, shield=True):
            await trio.to_thread.run_sync(session.disconnect, abandon_on_cancel=True)
        held = sum([lane.payloads for lane in session.lanes.values()])
        listener.closed(session.left + held)


class _Own(NamedTuple):
    layouts: list[tuple[int, Layout]]
    names: dict[int, str]


def _open(session: Session, url: str, layouts: dict[str, Layout]) -> _Own:
    try:
        session.open(layouts)
        return _Own(session.layouts_of(session.own), session.stream_names(session.own))
    except (psycopg.Error, StartError) as error:
        raise cannot_open(url, error) from None


def cannot_open(url: str, error: Exception) -> StartError:
    """Return the error of a journal that cannot be opened, without a password."""
    where = connecting.address(url)
    return StartError(f"cannot open the journal {where}: {connecting.reason(error)}")


def figures(session: Session) -> JournalFigures:
    """Return the contents of the held lanes for a snapshot of the process.

    The bytes are those of the own lane, which JOURNAL_MAX_BYTES bounds.
    """
    lanes = list(session.lanes.values())
    size = session.own.bytes + session.own.dead_bytes if session.has_own else 0
    jobs, payloads = sum([one.jobs for one in lanes]), sum([one.payloads for one in lanes])
    return JournalFigures(jobs, payloads, size, session.keys.count)


class Tried(NamedTuple):
    """What ``payloadd check`` says of the journal."""

    found: str
    notes: list[str]


def try_postgres(url: str, *, create: bool) -> Tried:
    """Connect, and make the tables where they are missing and ``create`` is true.

    Raises StartError where a start would fail.
    """
    try:
        with closing(connecting.connect(url)) as connection:
            connecting.prepare(connection)
            made = create and schema.make(connection)
            version = schema.version_of(connection)
            schema.check_version(version)
            lanes = _count_lanes(connection) if version is not None else 0
            if version is None:
                _check_rights(connection)
            found = f"{connecting.address(url)}, PostgreSQL {_version(connection)}, {lanes} lanes"
            if made:
                found += ", tables made"
            elif version is None:
                found += ", no tables yet: the first start makes them"
            return Tried(found, _promises(connection))
    except (psycopg.Error, StartError) as error:
        raise cannot_open(url, error) from None


def _count_lanes(connection: psycopg.Connection[tuple[object, ...]]) -> object:
    row = connection.execute("SELECT count(*) FROM payloadd.lanes").fetchone()
    return row[0] if row else 0


def _check_rights(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Raise StartError unless the role may make the tables."""
    row = connection.execute(
        "SELECT has_database_privilege(current_database(), 'CREATE')"
    ).fetchone()
    if not (row and row[0]):
        raise StartError(
            "it has no tables, and the role may not make them;"
            " `payloadd check --create` with another role does"
        )


def _version(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    row = connection.execute("SHOW server_version").fetchone()
    return str(row[0]).partition(" ")[0] if row else "?"


def _promises(connection: psycopg.Connection[tuple[object, ...]]) -> list[str]:
    """Return what a 2xx means with the settings of the server, and which of them are dangerous."""
    row = connection.execute(
        "SELECT current_setting('synchronous_commit'), current_setting('fsync'),"
        " current_setting('full_page_writes'), current_setting('synchronous_standby_names'),"
        " (SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum'))"
    ).fetchone()
    commit, fsync, full_pages, standbys, connected = row if row is not None else ("", "", "", "", 0)
    if commit == "off":
        promise = "a 2xx is lost if the server crashes soon after: synchronous_commit is off"
    elif standbys and commit != "local":
        where = {"remote_apply": "has applied it", "remote_write": "has received it"}
        does = where.get(str(commit), "has it on disk")
        promise = (
            f"a 2xx is on the server's disk, and a standby {does}"
            f" (synchronous_commit {commit}; {connected} synchronous standbys are connected)"
        )
    else:
        promise = "a 2xx is on the disk of one server: no synchronous standby"
    notes = [promise]
    for name, value in (("fsync", fsync), ("full_page_writes", full_pages)):
        if value == "off":
            notes.append(f"warning: {name} is off: a crash of the server's machine loses payloads")
    return notes
