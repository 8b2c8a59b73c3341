"""A fleet of daemons with one journal in PostgreSQL, which events of all kinds happen to."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import httpx
import psycopg
import trio
from botocore.exceptions import BotoCoreError

from payloadd.journal.postgres.inspection import PostgresInspection
from payloadd.journal.postgres.opening import try_postgres
from tests.crash import fleet_watermarks
from tests.support.clients import WholeBody, body_of
from tests.support.daemon import START_WITHIN, Daemon, started
from tests.support.loopback import http_client
from tests.support.postgres import PostgresServer
from tests.support.tcp_proxy import TcpProxy, tcp_proxy

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from payloadd.observe.status import JournalStatus
    from tests.crash.fleet_watermarks import FleetWatermarks
    from tests.crash.store_faults import StoreFaults

MEMBERS: Final = 3
CLIENTS: Final = 16
PAST_THE_LEASE: Final = 13.0
"""Seconds after which another daemon has the lane of one that shows no sign of life."""
_DATABASE: Final = "fleet"
_SYNCHRONOUS: Final = {"synchronous_standby_names": "standby"}
_SMALL: Final = {
    "MAX_WORKERS": "4",
    "BATCH_LINGER": "200ms",
    "BATCH_MAX_PAYLOADS": "40",
    "UPLOAD_TIMEOUT": "2s",
    "DRAIN_TIMEOUT": "10s",
    "REQUEST_TIMEOUT": "20s",
    # A system under test with three daemons, two servers and a store on two cores is slow.
    "MAX_QUEUE": "2000",
}


class DatabasePair:
    """A primary with a synchronous standby; daemons reach it through a proxy each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self.primary = self._new()
        self._standby = self._new()
        self.proxies: list[TcpProxy] = []

    def _new(self) -> PostgresServer:
        self._number += 1
        return PostgresServer(self._folder / f"server{self._number}")

    def start(self) -> None:
        """Start both servers."""
        self.primary.create()
        self.primary.start()
        self.primary.execute(f"CREATE DATABASE {_DATABASE}")
        try_postgres(self.primary.url(_DATABASE), create=True)
        self._add_standby()

    def _add_standby(self) -> None:
        self._standby.copy_of(self.primary)
        self._standby.start()
        self.primary.reconfigure(_SYNCHRONOUS)

    async def fail_over(self) -> None:
        """Kill the primary, promote the standby, and make a new standby."""
        await trio.to_thread.run_sync(self.primary.kill)
        for proxy in self.proxies:
            proxy.reset()
        await trio.to_thread.run_sync(self._standby.promote)
        self.primary, self._standby = self._standby, self._new()
        for proxy in self.proxies:
            proxy.target = self.primary.port
        await trio.to_thread.run_sync(self._add_standby)

    def stop(self) -> None:
        """Stop both servers."""
        for server in (self.primary, self._standby):
            server.stop()

    def status(self) -> JournalStatus:
        """Return what is in the journal."""
        with PostgresInspection.open(self.primary.url(_DATABASE)) as inspection:
            return inspection.status()

    def owners(self) -> dict[int, str | None]:
        """Return the owners of the lanes."""
        with PostgresInspection.open(self.primary.url(_DATABASE)) as inspection:
            return inspection.owners()

    def url(self, proxy: TcpProxy) -> str:
        """Return the URL of the journal behind a proxy."""
        return self.primary.url(_DATABASE, proxy.port)


class FleetDaemon:
    """One daemon of the fleet, which is started again when it has ended."""

    def __init__(
        self,
        folder: Path,
        environ: Mapping[str, str],
        proxy: TcpProxy,
        command: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._command = command
        self._environ = environ
        self.proxy = proxy
        self.daemon: Daemon | None = None
        self.url: str | None = None
        """The URL of its public address; None while it does not run."""
        self.absence = 0.0
        """Seconds after which it is started again."""
        self._ended = False
        self.output = ""
        """Its log, of all runs."""

    async def run(self) -> None:
        """Run daemons, one after the other, until ``end``."""
        while not self._ended:
            async with started(self._folder, self._environ, self._command) as daemon:
                self.daemon = daemon
                with suppress(AssertionError):  # killed before
                    await daemon.wait_for_event("listening", START_WITHIN)
                    self.url = daemon.url
                await daemon.wait(within=10**6)
                self.url = self.daemon = None
                self.output += daemon.output.decode()
            await trio.sleep(self.absence)
            self.absence = 0.1

    def signal(self, number: int) -> None:
        """Send a signal to the daemon, if it runs."""
        if self.daemon is not None:
            with suppress(ProcessLookupError):
                self.daemon.signal(number)

    def end(self) -> None:
        """Drain the daemon for good."""
        self._ended = True
        self.signal(signal.SIGTERM)


class FleetClients:
    """FleetClients that repeat each request, with its key, at any daemon until it is accepted."""

    def __init__(self, members: list[FleetDaemon], rng: random.Random) -> None:
        self._members = members
        self._rng = rng
        self._stopping = False
        self.acknowledged: set[bytes] = set()
        self.answers: Counter[str] = Counter()
        self._number = 0

    async def run(self) -> None:
        """Post until ``stop``, and until every request that was begun is accepted."""
        async with trio.open_nursery() as nursery, http_client(64, 25.0) as http:
            async with trio.open_nursery() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(self._client, http)
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Begin no further requests."""
        self._stopping = True

    async def _client(self, http: httpx.AsyncClient) -> None:
        while not self._stopping:
            payloads = []
            for _ in range(self._rng.randint(1, 5)):
                self._number += 1
                payloads.append(b'{"n":%d}' % self._number)
            await self._repeat(http, payloads, f"key-{self._number}")
            await trio.sleep(0.05 * self._rng.random())

    async def _repeat(self, http: httpx.AsyncClient, payloads: list[bytes], key: str) -> None:
        body = body_of(payloads)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Idempotency-Key": key,
        }
        while True:
            urls = [one.url for one in self._members if one.url is not None]
            if not urls:
                await trio.sleep(0.1)
                continue
            url = self._rng.choice(urls)
            patience = self._rng.choice([0.5, 5.0, 25.0])
            answer = None
            with trio.move_on_after(patience), suppress(httpx.HTTPError):
                headers["Host"] = httpx.URL(url).netloc.decode()
                stream = WholeBody(body)
                request = httpx.Request(
                    "POST", f"{url}/v1/payloads", headers=headers, stream=stream
                )
                answer = await http.send(request)
            if answer is not None and answer.is_success:
                self.answers["accepted"] += 1
                self.acknowledged.update(payloads)
                return
            code = "no answer" if answer is None else str(answer.json().get("code"))
            assert code not in {"KEY_REUSED", "MALFORMED"}, answer
            self.answers[code] += 1
            await trio.sleep(0.1 + 0.3 * self._rng.random())


class Fleet:
    """Everything that runs, and the events that happen to it."""

    def __init__(
        self,
        database: DatabasePair,
        members: list[FleetDaemon],
        faults: StoreFaults,
        rng: random.Random,
    ) -> None:
        self._database = database
        self._members = members
        self._faults = faults
        self._rng = rng
        self.events: Mapping[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "kill for long": self._kill_for_long,
            "stop past the lease": self._stop,
            "cut": self._cut,
            "cut past the lease": self._cut_for_long,
            "freeze": self._freeze,
            "fail over": database.fail_over,
            "drain": self._drain,
            "store hangs": self._store_hangs,
            "store lies": self._store_lies,
            "store refuses": self._store_refuses,
        }

    def _member(self) -> FleetDaemon:
        return self._rng.choice(self._members)

    async def _kill(self) -> None:
        self._member().signal(signal.SIGKILL)
        await trio.sleep(1)

    async def _kill_for_long(self) -> None:
        one = self._member()
        one.absence = PAST_THE_LEASE
        one.signal(signal.SIGKILL)
        await trio.sleep(PAST_THE_LEASE)

    async def _stop(self) -> None:
        one = self._member()
        daemon = one.daemon
        one.signal(signal.SIGSTOP)
        await trio.sleep(PAST_THE_LEASE)
        if daemon is not None:
            with suppress(ProcessLookupError):
                daemon.signal(signal.SIGCONT)
        await trio.sleep(1)

    async def _cut(self) -> None:
        await self._cut_off(self._member(), 3.0)

    async def _cut_for_long(self) -> None:
        await self._cut_off(self._member(), PAST_THE_LEASE)

    async def _cut_off(self, one: FleetDaemon, seconds: float) -> None:
        one.proxy.cut()
        await trio.sleep(seconds)
        one.proxy.restore()

    async def _freeze(self) -> None:
        one = self._member()
        one.proxy.freeze()
        await trio.sleep(8)
        one.proxy.restore()

    async def _drain(self) -> None:
        self._member().signal(signal.SIGTERM)
        await trio.sleep(1)

    async def _store_hangs(self) -> None:
        await self._faults.set_state("hangs")
        await trio.sleep(3)
        await self._faults.set_state("works")

    async def _store_refuses(self) -> None:
        await self._faults.set_state("refuses batches")
        await trio.sleep(4)
        await self._faults.set_state("works")

    async def _store_lies(self) -> None:
        await self._faults.set_state("stores and fails")
        await trio.sleep(3)
        await self._faults.set_state("works")


async def torture_fleet(
    folder: Path,
    environ: Mapping[str, str],
    faults: StoreFaults,
    plan: list[str],
    rng: random.Random,
    watermarks: FleetWatermarks | None = None,
) -> FleetClients:
    """Run the events of ``plan``, then let the fleet store everything; returns the clients.

    Raises AssertionError if something stays in the journal, a daemon fails, or one of
    ``watermarks`` is wrong.
    """
    database = DatabasePair(folder)
    command: tuple[str, ...] = ()
    if watermarks is not None:
        script = folder / "daemon_script.py"
        script.write_text(fleet_watermarks.DAEMON)
        command = (sys.executable, str(script))
        environ = {**environ, "WATERMARK": "on"}
    try:
        await trio.to_thread.run_sync(database.start)
        async with AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(tcp_proxy(database.primary.port))
                for _ in range(MEMBERS)
            ]
            database.proxies = proxies
            members = []
            for number, proxy in enumerate(proxies):
                home = folder / f"member{number}"
                home.mkdir()
                own = {**_SMALL, **environ, "JOURNAL_URL": database.url(proxy)}
                members.append(FleetDaemon(home, own, proxy, command))
            clients = FleetClients(members, rng)
            fleet = Fleet(database, members, faults, rng)
            async with trio.open_nursery() as nursery:
                for one in members:
                    nursery.start_soon(one.run)
                async with trio.open_nursery() as posting, trio.open_nursery() as looking:
                    posting.start_soon(clients.run)
                    if watermarks is not None:
                        looking.start_soon(_look_repeatedly, watermarks, database)
                    await _wait_until_serving(members)
                    for name in plan:
                        await trio.sleep(rng.uniform(0.5, 2))
                        print(f"{trio.current_time():.1f} {name}", flush=True)  # noqa: T201
                        await fleet.events[name]()
                    await faults.end()
                    clients.stop()
                    looking.cancel_scope.cancel()
                await _wait_until_empty(database, members)
                for one in members:
                    one.end()
            _check_logs(members)
            owners = await trio.to_thread.run_sync(database.owners)
            assert set(owners.values()) == {None}
            if watermarks is not None:
                url = database.primary.url(_DATABASE)
                assert not await trio.to_thread.run_sync(watermarks.look, url)
            return clients
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.stop)


async def _look_repeatedly(watermarks: FleetWatermarks, database: DatabasePair) -> None:
    """Compare watermarks and journal until cancelled."""
    while True:
        await trio.sleep(0.5)
        # The store hangs, or the database fails over.
        with suppress(psycopg.Error, BotoCoreError):
            url = database.primary.url(_DATABASE)
            wrong = await trio.to_thread.run_sync(watermarks.look, url)
            assert not wrong, "\n".join([f"{len(wrong)} watermarks wrong:", *wrong[:20]])


async def _wait_until_serving(members: list[FleetDaemon]) -> None:
    """Return once all daemons listen: on a busy machine events would come before that."""
    with trio.fail_after(6 * START_WITHIN):
        while any(one.url is None for one in members):  # noqa: ASYNC110 - their logs are read
            await trio.sleep(0.1)


async def _wait_until_empty(database: DatabasePair, members: list[FleetDaemon]) -> None:
    """Return once nothing is left to store."""
    with trio.move_on_after(90):
        while True:
            status = await trio.to_thread.run_sync(database.status)
            assert status.dead_letters == 0
            if not (status.jobs or status.sealed_batches):
                return
            await trio.sleep(0.5)
    logs = [one.output + (one.daemon.output.decode() if one.daemon else "") for one in members]
    raise AssertionError("\n".join([str(status), str(database.owners()), *logs]))


def _check_logs(members: list[FleetDaemon]) -> None:
    """Raise AssertionError if a daemon has failed by itself."""
    for one in members:
        assert "internal_failure" not in one.output, one.output
        assert "Traceback" not in one.output, one.output
