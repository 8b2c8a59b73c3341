"""The database is gone, hangs, fails over or refuses: requests are refused, and nothing is lost."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from tests.journal.opener import ALL
from tests.journal.postgres.rig import QUICK, Member, member
from tests.support.databases import new_database, server
from tests.support.journal import append, batch, contents, until
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def proxy() -> AsyncIterator[TcpProxy]:
    """Return a proxy in front of the server."""
    async with tcp_proxy(server().port) as one:
        yield one


def through(proxy: TcpProxy) -> str:
    """Return the URL of a new journal behind a proxy."""
    return server().url(new_database().rpartition("/")[2], proxy.port)


async def try_to_accept(one: Member, number: int, key: bytes | None = None) -> object:
    """PendingRequest a request of two jobs; return its outcome."""
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
    server().execute(
        f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$"
    )
    server().execute(f"DROP SCHEMA payloadd CASCADE; ALTER DATABASE {name} OWNER TO {role}", name)
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
