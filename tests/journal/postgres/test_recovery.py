"""The database is gone, hangs, fails over or refuses: requests are refused, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from tests.journal.opener import ALL
from tests.journal.postgres.rig import QUICK, Member, member
from tests.support.databases import new_database, server
from tests.support.journal import append, batch, contents, until
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """Return a proxy in front of the server."""
    async with tcp_proxy(server().port) as one:
        yield one


def through(proxy: TcpProxy) -> str:
    """Return the URL of a new journal behind a proxy."""
    return server().url(new_database().rpartition("/")[2], proxy.port)


async def try_to_accept(one: Member, number: int, key: bytes | None = None) -> object:
    """Append a request of two jobs; return its outcome."""
    wanted = append(number, key, 2)
    return await one.outcome_of(wanted.receipt, wanted.parts, key)


def backends(url: str) -> list[int]:
    """Return the process ids of the server's backends for a database."""
    name = url.rpartition("/")[2]
    found = server().execute("SELECT datname, pid FROM pg_stat_activity")
    return [int(str(pid)) for database, pid in found if database == name]


async def test_a_connection_that_breaks_between_commits_is_replaced(proxy: TcpProxy) -> None:
    """Every restart of a balancer in front of the database would be an outage."""
    async with member(through(proxy)) as one:
        await one.accept(1, count=3)
        proxy.reset()
        assert isinstance(await try_to_accept(one, 10), Receipt)
        await until(lambda: one.journal.refusal() is None)
        assert one.lanes == [1]
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)


@pytest.mark.parametrize("key", [None, b"key"])
async def test_a_commit_whose_answer_is_lost_is_found_and_not_repeated(
    proxy: TcpProxy, key: bytes | None
) -> None:
    """The payloads of a request would be stored twice, or lost with a 2xx."""
    url = through(proxy)
    async with member(url) as one:
        await one.accept(1, count=3)
        await one.shared.calls.lock.acquire()  # until maintenance is not under way
        proxy.loses_answers = proxy.refuses = key is None
        one.shared.calls.lock.release()
        outcomes: list[object] = []
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                outcomes.append(await try_to_accept(one, 10, key))

            nursery.start_soon(accept)
            if key is not None:
                # The answer to the last part of the transaction, its COMMIT.
                sent = proxy.requests
                await until(lambda: proxy.requests > sent)
                proxy.loses_answers = proxy.refuses = True
            await trio.sleep(0.2)
            proxy.reset()
            await until(lambda: one.shared.state.in_trouble)
            refused = await try_to_accept(one, 20)
            assert isinstance(refused, RefusedError)
            assert refused.code == "DISK_ERROR"
            proxy.restore()
        assert isinstance(outcomes[0], Receipt)
        await until(lambda: one.journal.refusal() is None)
        assert isinstance(await try_to_accept(one, 30), Receipt)
        ids = [job.id for job in one.pipeline.received]
        assert len(ids) == len(set(ids)) == 7
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)


async def test_requests_in_doubt_are_answered_in_time(proxy: TcpProxy) -> None:
    """A client would wait for as long as the database is gone."""
    async with member(through(proxy)) as one:
        await one.accept(1, count=3)
        proxy.loses_answers = proxy.refuses = True
        sent = proxy.requests
        outcome: list[object] = []
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                outcome.append(await try_to_accept(one, 10))

            nursery.start_soon(accept)
            await until(lambda: proxy.requests > sent)
            proxy.reset()
        (refused,) = outcome
        assert isinstance(refused, RefusedError)
        assert "not known yet" in refused.detail
        await one.journal.pulse()  # the watchdog sees that the journal does not hang
        proxy.restore()
        await until(lambda: one.journal.refusal() is None)
        # It was committed, and is stored: a repetition with its key would get its receipt.
        await until(lambda: len(one.pipeline.received) in (3, 5))
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)


async def test_a_server_that_hangs_is_left_after_a_while() -> None:
    """A machine that is stopped, and not dead, would stop the journal for ever."""
    url = new_database()
    async with member(url, replace(QUICK, answer_timeout=1.0)) as one:
        await one.accept(1)
        (backend,) = backends(url)
        os.kill(backend, signal.SIGSTOP)
        try:
            # Its end waits for the backend to continue.
            with trio.move_on_after(3):
                await try_to_accept(one, 10)
            assert one.shared.state.in_trouble
        finally:
            os.kill(backend, signal.SIGCONT)
        await until(lambda: one.journal.refusal() is None)
        assert isinstance(await try_to_accept(one, 20), Receipt)
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)


async def test_seals_and_settles_wait_for_the_database(proxy: TcpProxy) -> None:
    """A batch would be uploaded with other members after a crash, or never be removed."""
    async with member(through(proxy)) as one:
        await one.accept(1, count=4)
        jobs = one.pipeline.received
        proxy.cut()
        sealed = trio.Event()

        async def seal() -> None:
            await one.journal.seal(batch(*jobs[:2]))
            sealed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(seal)
            one.journal.settle(batch(jobs[3], sealed=False))
            await until(lambda: one.shared.state.in_trouble)
            await trio.sleep(0.1)
            assert not sealed.is_set()
            proxy.restore()
        await until(lambda: one.journal.refusal() is None)
        one.journal.settle(batch(*jobs[:2]))
        await one.journal.pulse()
        assert contents(await one.journal.page(*ALL)) == contents(jobs[2:3])


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        ("ALTER DATABASE {name} CONNECTION LIMIT 0", "too many connections"),
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "read-only"),
        ("ALTER DATABASE {name} ALLOW_CONNECTIONS off", "not currently accepting"),
    ],
)
async def test_a_database_that_refuses_is_used_again_once_it_does_not(
    statement: str, text: str
) -> None:
    """A change at the database would need a restart of all daemons, or lose payloads."""
    url = new_database()
    name = url.rpartition("/")[2]
    role = "ordinary"
    role_of(url, role)
    async with member(url.replace("postgres@", f"{role}@")) as one:
        await one.accept(1, count=2)
        server().execute(statement.format(name=name))
        for pid in backends(url):
            server().execute(f"SELECT pg_terminate_backend({pid})")
        await until(lambda: text in str(one.journal.refusal()))
        refused = await try_to_accept(one, 10)
        assert isinstance(refused, RefusedError)
        assert refused.code == "DISK_ERROR"
        trouble = one.health.trouble("journal")
        assert trouble is not None
        for undo in (
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS on",
            f"ALTER DATABASE {name} CONNECTION LIMIT -1",
            f"ALTER DATABASE {name} RESET default_transaction_read_only",
        ):
            server().execute(undo)
        await until(lambda: one.journal.refusal() is None)
        assert one.health.trouble("journal") is None
        assert isinstance(await try_to_accept(one, 20), Receipt)
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received)


async def test_a_full_disk_of_the_server_refuses_requests_until_there_is_space() -> None:
    """Accepted payloads would be lost, or the daemon would need a restart."""
    url = new_database()
    name = url.rpartition("/")[2]
    async with member(url) as one:
        await one.accept(1, count=2)
        # Any write into the table fails as it does on a full disk.
        server().execute(
            "CREATE FUNCTION payloadd.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'could not extend file: No space left on device'"
            " USING ERRCODE = 'disk_full'; END $$;"
            + "".join(
                f"CREATE TRIGGER no_space BEFORE INSERT ON payloadd.rows_1_{part}"
                " EXECUTE FUNCTION payloadd.full();"
                for part in range(3)
            ),
            name,
        )
        refused = await try_to_accept(one, 10)
        assert isinstance(refused, RefusedError)
        assert "No space left" in refused.detail
        trouble = one.health.trouble("journal")
        assert trouble is not None
        assert trouble.code == "DiskFull"
        one.journal.settle(batch(one.pipeline.received[0], sealed=False))
        server().execute("DROP FUNCTION payloadd.full CASCADE", name)
        await until(lambda: one.journal.refusal() is None)
        assert isinstance(await try_to_accept(one, 20), Receipt)
        await one.journal.pulse()
        assert contents(await one.journal.page(*ALL)) == contents(one.pipeline.received[1:])


@contextmanager
def access(line: str) -> Iterator[None]:
    """Put a line in front of the server's pg_hba.conf while the body runs."""
    path = server().data / "pg_hba.conf"
    before = path.read_text()
    path.write_text(f"{line}\n{before}")
    server().execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        path.write_text(before)
        server().execute("SELECT pg_reload_conf()")


def role_of(url: str, name: str) -> None:
    """Make a role, and give it the journal of ``url``, which must have no tables of another."""
    database = url.rpartition("/")[2]
    server().execute(
        f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    server().execute("DROP SCHEMA payloadd CASCADE", database)
    server().execute(f"ALTER DATABASE {database} OWNER TO {name}")


async def test_a_changed_password_is_read_from_the_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every change of a password would need a restart of all daemons."""
    url = new_database()
    role_of(url, "with_password")
    server().execute("ALTER ROLE with_password PASSWORD 'one'")
    credentials = tmp_path / "journal_url"
    credentials.write_text(url.replace("postgres@", "with_password:one@"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with access("host all with_password 127.0.0.1/32 scram-sha-256"):
        async with member(credentials.read_text()) as one:
            await one.accept(1)
            server().execute("ALTER ROLE with_password PASSWORD 'two'")
            for pid in backends(url):
                server().execute(f"SELECT pg_terminate_backend({pid})")
            await until(lambda: "password authentication failed" in str(one.journal.refusal()))
            assert ":one" not in str(one.journal.refusal())
            credentials.write_text(url.replace("postgres@", "with_password:two@"))
            await until(lambda: one.journal.refusal() is None)
            assert isinstance(await try_to_accept(one, 10), Receipt)


async def test_tls_with_a_client_certificate_works(tmp_path: Path) -> None:
    """The payloads would cross the network for every reader."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    client = authority.issue_cert("with-certificate", common_name="with_certificate")
    folder = server().data
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    own.cert_chain_pems[0].write_to_path(str(folder / "server.crt"))
    own.private_key_pem.write_to_path(str(folder / "server.key"))
    if os.getuid() == 0:
        shutil.chown(folder / "server.key", "postgres")
    (folder / "server.key").chmod(0o600)
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "client.crt"))
    client.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    (tmp_path / "client.key").chmod(0o600)
    server().reconfigure({"ssl": "on", "ssl_ca_file": "ca.pem"})
    url = new_database()
    role_of(url, "with_certificate")
    query = (
        f"?sslmode=verify-full&sslrootcert={folder}/ca.pem"
        f"&sslcert={tmp_path}/client.crt&sslkey={tmp_path}/client.key"
    )
    with access("hostssl all with_certificate 127.0.0.1/32 cert"):
        async with member(url.replace("postgres@", "with_certificate@") + query) as one:
            await one.accept(1)
            encrypted = "SELECT count(*) FROM pg_stat_ssl WHERE ssl AND client_dn IS NOT NULL"
            assert server().execute(encrypted) == [(1,)]
