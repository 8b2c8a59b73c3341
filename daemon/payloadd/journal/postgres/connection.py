"""Connect to PostgreSQL for the journal, and say why that is not possible.

Every wait of the server for this process, or for a lock, ends before the lease of a lane: see
``LEASE``. A connection pooler that gives each transaction another backend is refused: the journal
ends the backend of a former owner by its process id, and keeps settings for its session.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from payloadd.errors import StartError
from payloadd.journal.postgres.schema import first_line
from payloadd.redaction import hide_userinfo_in_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.errors import Diagnostic

LEASE: Final = 10.0
"""Seconds without a sign of life of its owner after which another process takes a lane."""
ANSWER_TIMEOUT: Final = 6.0
"""Seconds after which a call without an answer is given up: the machine may be gone, or stopped."""
_OLDEST_SERVER: Final = 150_000
_CONNECT_TIMEOUT: Final = 3
_SESSION: Final = {
    # All of them below the lease, and below ANSWER_TIMEOUT.
    "statement_timeout": "5s",
    "lock_timeout": "4s",
    "idle_in_transaction_session_timeout": "4s",
    "tcp_user_timeout": "5s",
    "client_connection_check_interval": "1s",
    # Sent as it is written, whatever the database's encoding is.
    "client_encoding": "UTF8",
    # A plan for each value costs more than all the rest of a small statement.
    "plan_cache_mode": "force_generic_plan",
    "search_path": "pg_catalog",
}
_CLIENT: Final = {
    "connect_timeout": _CONNECT_TIMEOUT,
    "tcp_user_timeout": 5000,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
}
_CUT_OFF: Final = "57014"
"""The SQLSTATE of the warning that a commit did not wait for the standby; see README.md."""


class JournalDatabaseError(psycopg.Error):
    """The server takes no writes now: it is a standby, or read-only."""


def connect(url: str) -> Connection[Any]:
    """Return a connection with autocommit, for ``prepare``. Raises psycopg.Error."""
    return psycopg.connect(_conninfo(url), autocommit=True)


def prepare(connection: Connection[Any], cut_off: Callable[[], None] | None = None) -> None:
    """Check that the journal may work on a connection, and set what holds for its session.

    ``cut_off`` is called where a commit ended without its standby. Raises psycopg.Error, and
    StartError where another attempt cannot help.
    """
    _check(connection)
    names = ", ".join(f"set_config('{name}', %s, false)" for name in _SESSION)
    connection.execute(f"SELECT {names}".encode(), [*_SESSION.values()])
    if cut_off is not None:

        def notice(diagnostic: Diagnostic) -> None:
            if diagnostic.sqlstate == _CUT_OFF:
                cut_off()

        connection.add_notice_handler(notice)


def _conninfo(url: str) -> str:
    given = conninfo_to_dict(url)
    wanted: dict[str, Any] = {**_CLIENT}
    wanted["application_name"] = f"payloadd {socket.gethostname()} {os.getpid()}"
    # Of several hosts one is the primary.
    if "," in str(given.get("host", "")) and "target_session_attrs" not in given:
        wanted["target_session_attrs"] = "read-write"
    return make_conninfo(url, **{name: one for name, one in wanted.items() if name not in given})


def _check(connection: Connection[Any]) -> None:
    version = connection.info.server_version
    if version < _OLDEST_SERVER:
        raise StartError(
            f"JOURNAL_URL: the server is PostgreSQL {version // 10_000}; allowed is 15 or newer"
        )
    row = connection.execute(
        "SELECT pg_backend_pid(), pg_is_in_recovery(),"
        " current_setting('default_transaction_read_only')::boolean"
    ).fetchone()
    backend, standby, read_only = row if row is not None else (0, False, False)
    if backend != connection.info.backend_pid:
        raise StartError(
            "JOURNAL_URL: a connection pooler, such as pgbouncer, is between payloadd and the"
            " server; not allowed, because a lane of the journal belongs to one backend. Name the"
            " server itself: each payloadd needs one connection"
        )
    if standby or read_only:
        what = "a standby" if standby else "read-only"
        raise JournalDatabaseError(f"the server is {what}, and takes no writes")


def reason(error: BaseException) -> str:
    """Return one line that says what is wrong, without a password."""
    return hide_userinfo_in_sentence(first_line(error))


def code(error: BaseException) -> str:
    """Return the name of an error, such as DiskFull (errors of psycopg are named by SQLSTATE)."""
    return type(error).__name__


def shut(connection: Connection[Any]) -> None:
    """End a call that waits for an answer in another thread: it raises an error."""
    with suppress(OSError, psycopg.Error):
        duplicate = os.dup(connection.fileno())
        with socket.socket(fileno=duplicate) as end:
            end.shutdown(socket.SHUT_RDWR)


def address(url: str) -> str:
    """Return host, port and database of a URL, for people: without user and password."""
    given = conninfo_to_dict(url)
    host = str(given.get("host") or given.get("hostaddr") or "localhost")
    port = given.get("port")
    where = host + (f":{port}" if port else "")
    return f"postgresql://{where}/{given.get('dbname') or ''}"
