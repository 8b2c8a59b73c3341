"""Databases for tests of the shared journal: one server for all tests of a process."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg

from payloadd.journal.postgres import schema
from tests.support.postgres import PostgresServer, need_postgres

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEMPLATE: Final = "journal"
_number = itertools.count(1)


@cache
def server() -> PostgresServer:
    """Return a server without syncs, which runs until the process ends."""
    need_postgres()
    folder = Path(tempfile.mkdtemp(prefix="payloadd-postgres-"))
    folder.chmod(0o755)
    one = PostgresServer(folder / "server", fast=True)
    one.create()
    one.start()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(one.stop)
    one.execute(f"CREATE DATABASE {_TEMPLATE}")
    with psycopg.connect(one.url(_TEMPLATE), autocommit=True) as connection:
        schema.make(connection)
        schema.make_lane(connection)
    return one


def new_database() -> str:
    """Make a database with the tables of a journal; return its URL."""
    name = f"t{next(_number)}"
    server().execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} STRATEGY file_copy")
    return server().url(name)


def environ_of(environ: Mapping[str, str]) -> dict[str, str]:
    """Return settings with the URL of a new database in place of JOURNAL_URL."""
    return {name: new_database() if name == "JOURNAL_URL" else one for name, one in environ.items()}


def killed_copy(url: str) -> str:
    """Copy a database as a kill of its daemons would leave it once their leases are over."""
    old, new = url.rpartition("/")[2], f"t{next(_number)}"
    server().copy_database(old, new)
    server().execute("UPDATE payloadd.lanes SET owner = NULL, empty = false", new)
    return server().url(new)
