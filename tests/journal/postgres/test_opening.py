"""Open the journal of JOURNAL_URL, or say why that is not possible."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
import structlog.testing

from payloadd.config.settings import load
from payloadd.errors import StartError
from payloadd.journal import open as opening
from payloadd.journal.open import check_journal
from payloadd.journal.postgres.opening import open_postgres, try_postgres
from tests.journal.opener import Opener
from tests.journal.postgres.rig import member
from tests.support.databases import new_database, server
from tests.support.postgres import unprivileged
from tests.support.processes import free_ports
from tests.support.tcp_proxy import tcp_proxy
from tests.support.tools import find_tool, need_tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def bare_database(owner: str = "postgres") -> str:
    """Make a database without a journal; return its URL for its owner."""
    url = new_database()
    name = url.rpartition("/")[2]
    server().execute("DROP SCHEMA payloadd CASCADE", name)
    if owner != "postgres":
        server().execute(
            f"DO $$ BEGIN CREATE ROLE {owner} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL;"
            " END $$"
        )
    return url.replace("postgres@", f"{owner}@")


@pytest.fixture
def pooler(tmp_path: Path) -> Iterator[int]:
    """Return the port of a pgbouncer in transaction mode in front of the server."""
    need_tools("pgbouncer")
    server()
    (port,) = free_ports(1)
    config = server().folder / f"pgbouncer{port}.ini"
    config.write_text(
        f"[databases]\n* = host=127.0.0.1 port={server().port} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
        "pool_mode = transaction\nunix_socket_dir =\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    with (tmp_path / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(
            unprivileged([find_tool("pgbouncer"), str(config)]), stdout=log, stderr=log
        )
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres").close()
            break
        except psycopg.Error:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield port
    process.terminate()
    process.wait()


async def test_a_pooler_that_shares_backends_is_refused_with_a_reason(pooler: int) -> None:
    """Its lane would belong to a backend that other processes use, too."""
    name = new_database().rpartition("/")[2]
    with pytest.raises(StartError, match="a connection pooler, such as pgbouncer"):
        async with member(f"postgresql://postgres@127.0.0.1:{pooler}/{name}"):
            pass


async def test_the_first_start_makes_the_tables() -> None:
    """An operator would have to run SQL before the first start."""
    url = bare_database()
    async with member(url) as one:
        assert one.lanes == [1]
        assert (await one.accept(1)).payloads == 1


async def test_a_role_without_rights_is_told_to_run_check() -> None:
    """The daemon would not start, with an error of SQL."""
    url = bare_database("without_rights")
    with pytest.raises(StartError, match=r"payloadd check --create.* .CREATE on the database"):
        async with member(url):
            pass
    with pytest.raises(StartError, match="payloadd check --create"):
        try_postgres(url, create=False)


async def test_check_says_what_is_promised() -> None:
    """An operator would not know whether a 2xx survives the machine of the database."""
    url = bare_database()
    tried = try_postgres(url, create=False)
    assert "no tables yet" in tried.found
    assert "tables made" in try_postgres(url, create=True).found
    tried = try_postgres(url, create=True)
    assert "PostgreSQL 1" in tried.found
    assert "0 lanes" in tried.found
    first, *others = tried.notes
    assert "synchronous_commit is off" in first
    assert [one.split(":")[1].strip() for one in others] == [
        "fsync is off",
        "full_page_writes is off",
    ]
    notes: list[str] = []
    found = await check_journal(load({"JOURNAL_URL": url}), notes.append)
    assert (found, notes) == (tried.found, list(tried.notes))


def _wait_for_standby_names(names: str) -> None:
    """Wait until new connections have this setting: the server reads it after a signal."""
    deadline = time.monotonic() + 60
    while str(server().execute("SHOW synchronous_standby_names")[0][0]) != names:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"synchronous_commit": "on"}, "on the disk of one server"),
        (
            {"synchronous_commit": "remote_apply", "synchronous_standby_names": "x"},
            "a standby has applied it",
        ),
        ({"synchronous_commit": "local", "synchronous_standby_names": "x"}, "of one server"),
    ],
)
def test_the_promise_depends_on_the_server(settings: dict[str, str], text: str) -> None:
    """An operator would believe that a standby has what only one disk has."""
    url = new_database()
    name = url.rpartition("/")[2]
    commit = settings["synchronous_commit"]
    server().execute(f"ALTER DATABASE {name} SET synchronous_commit = {commit}")
    try:
        if "synchronous_standby_names" in settings:
            # Read only: no commit waits for a standby that is not there.
            server().reconfigure({"synchronous_standby_names": "x"})
            _wait_for_standby_names("x")
        assert text in try_postgres(url, create=False).notes[0]
    finally:
        with psycopg.connect(server().url(), autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            connection.execute("SELECT pg_reload_conf()")
        _wait_for_standby_names("")


def test_a_journal_of_a_newer_version_is_refused() -> None:
    """An older daemon would damage it."""
    url = new_database()
    server().execute("UPDATE payloadd.meta SET version = 99", url.rpartition("/")[2])
    with pytest.raises(StartError, match=r"newer payloadd .schema version 99"):
        try_postgres(url, create=True)


def test_the_password_is_not_shown() -> None:
    """Every reader of the log would have it."""
    (port,) = free_ports(1)
    url = f"postgresql://someone:very-secret@127.0.0.1:{port}/journal"
    with pytest.raises(StartError, match=rf"127\.0\.0\.1:{port}/journal") as caught:
        try_postgres(url, create=False)
    assert "very-secret" not in str(caught.value)
    assert "very-secret" not in repr(load({"JOURNAL_URL": url}))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would see an ImportError."""
    for name in [one for one in sys.modules if one.startswith("payloadd.journal.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StartError, match=r"payloadd\[postgres\]"):
        opening._postgres("opening")


async def test_a_server_that_hangs_keeps_no_start_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Systemd would wait for a daemon that never becomes ready, without a reason."""
    names = inspect.unwrap(open_postgres).__globals__
    monkeypatch.setitem(names, "_START_TIMEOUT", 0.3)
    url = new_database()
    async with tcp_proxy(server().port) as proxy:
        proxy.freeze()
        with pytest.raises(StartError, match=r"no answer within 0\.3 s"):
            async with member(server().url(url.rpartition("/")[2], proxy.port)):
                pass


async def test_a_backlog_in_the_state_folder_is_not_forgotten(tmp_path: Path) -> None:
    """The payloads of a machine that gets a shared journal would wait for ever, unseen."""
    async with Opener(tmp_path / "state", {"DURABILITY": "disk"}).run() as run:
        await run.accept(1, count=3)
    shared = Opener(tmp_path / "state", {"JOURNAL_URL": new_database()})
    with structlog.testing.capture_logs() as lines:
        async with shared.run():
            pass
    (line,) = [one for one in lines if one["event"] == "journal_left_alone"]
    assert line["payloads"] == 3
    assert "a start without JOURNAL_URL does" in line["note"]
