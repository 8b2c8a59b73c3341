"""A fleet of daemons with one journal in PostgreSQL, which events of all kinds happen to."""

from __future__ import annotations

import signal
import sys
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import psycopg
import trio
from botocore.exceptions import BotoCoreError

from tests.crash import fleet_watermarks
from tests.crash.database_pair import DatabasePair
from tests.crash.fleet_clients import FleetClients
from tests.support.daemon import Daemon, started
from tests.support.tcp_proxy import tcp_proxy

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.crash.fleet_clients import Crowd
    from tests.crash.fleet_watermarks import FleetWatermarks
    from tests.crash.store_faults import StoreFaults
    from tests.support.tcp_proxy import TcpProxy

MEMBERS: Final = 3
MORE: Final = 100
"""Payloads that are acknowledged before each event, and after the last one."""
PAST_THE_LEASE: Final = 13.0
"""Seconds after which another daemon has the lane of one that shows no sign of life."""
_WITHIN: Final = 120.0
"""Seconds in which what has to happen has happened, on a busy machine too."""
_FOR_EVER: Final = 10.0**6
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
        while not self._is_ending():
            async with started(self._folder, self._environ, self._command) as daemon:
                self.daemon = daemon
                if self._is_ending():  # while the process was being started
                    self.signal(signal.SIGTERM)
                with suppress(AssertionError):  # killed before
                    await daemon.wait_for_event("listening", _FOR_EVER)
                    self.url = daemon.url
                await daemon.wait(_FOR_EVER)
                self.url = self.daemon = None
                self.output += daemon.output.decode()
            await trio.sleep(self.absence)
            self.absence = 0.1

    def _is_ending(self) -> bool:
        return self._ended

    def log(self) -> str:
        """Return its log of all runs, the present one included."""
        return self.output + (self.daemon.output.decode() if self.daemon else "")

    def signal(self, number: int) -> None:
        """Send a signal to the daemon, if it runs."""
        if self.daemon is not None:
            with suppress(ProcessLookupError):
                self.daemon.signal(number)

    def end(self) -> None:
        """Drain the daemon for good."""
        self._ended = True
        self.signal(signal.SIGTERM)


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
        self._last: FleetDaemon | None = None
        """The one that the last event happened to."""
        self.events: Mapping[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "kill for long": self._kill_for_long,
            "stop past the lease": self._stop,
            "kill one and stop one while the store lies": self._kill_and_stop,
            "cut": self._cut,
            "cut past the lease": self._cut_for_long,
            "freeze": self._freeze,
            "fail over": database.fail_over,
            "promote": database.promote,
            "drain": self._drain,
            "store hangs": self._store_hangs,
            "store lies": self._store_lies,
            "store refuses": self._store_refuses,
        }

    def _member(self) -> FleetDaemon:
        """Choose another one than for the last event, so that events happen to several."""
        self._last = self._rng.choice([one for one in self._members if one is not self._last])
        return self._last

    async def _kill(self) -> None:
        self._member().signal(signal.SIGKILL)
        await trio.sleep(1)

    async def _kill_for_long(self) -> None:
        one = self._member()
        one.absence = PAST_THE_LEASE
        one.signal(signal.SIGKILL)
        await trio.sleep(PAST_THE_LEASE)

    async def _kill_and_stop(self) -> None:
        """Do three things at once, because the lease takes long."""
        await self._faults.set_state("stores and fails")
        await self._faults.failed_once_more()
        self._member().signal(signal.SIGKILL)
        await self._stop(self._faults.end)

    async def _stop(
        self, meanwhile: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    ) -> None:
        """Stop one until others have its lanes, and wait until it has noticed that."""
        one = self._member()
        await until(lambda: one.url is not None)
        daemon = one.daemon
        assert daemon is not None
        lost = len(daemon.events("lane_lost"))
        daemon.signal(signal.SIGSTOP)
        try:
            await meanwhile()
            with trio.fail_after(_WITHIN):
                while daemon.pid in await self._owners():  # noqa: ASYNC110 - rows can only be polled
                    await trio.sleep(0.5)
        finally:
            daemon.signal(signal.SIGCONT)
        await until(lambda: len(daemon.events("lane_lost")) > lost)

    async def _owners(self) -> set[int]:
        return await trio.to_thread.run_sync(self._database.owners)

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
        await trio.sleep(2)
        await self._faults.failed_once_more()
        await self._faults.set_state("works")


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds. Raises TooSlowError."""
    with trio.fail_after(_WITHIN):
        while not condition():  # noqa: ASYNC110 - no event reports the change
            await trio.sleep(0.05)


async def torture_fleet(
    folder: Path,
    environ: Mapping[str, str],
    faults: StoreFaults,
    plan: Sequence[str],
    rng: random.Random,
    crowd: Crowd,
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

            def listening() -> list[str]:
                return [one.url for one in members if one.url is not None]

            clients = FleetClients(listening, rng, crowd)
            fleet = Fleet(database, members, faults, rng)
            stack.enter_context(_explained(clients, members))
            async with trio.open_nursery() as nursery:
                for one in members:
                    nursery.start_soon(one.run)
                async with trio.open_nursery() as posting, trio.open_nursery() as looking:
                    posting.start_soon(clients.run)
                    if watermarks is not None:
                        looking.start_soon(_look_repeatedly, watermarks, database)
                    for name in plan:
                        await clients.accepted(MORE)
                        await trio.sleep(rng.random() / 2)
                        print(f"{trio.current_time():.1f} {name}", flush=True)  # noqa: T201
                        await fleet.events[name]()
                    await faults.end()
                    await clients.accepted(MORE)
                    clients.stop()
                    looking.cancel_scope.cancel()
                await until(lambda: len(listening()) == MEMBERS)
                await _wait_until_empty(database, members)
                for one in members:
                    one.end()
            _check_logs(members)
            assert not await trio.to_thread.run_sync(database.owners)
            if watermarks is not None:
                url = database.direct_url()
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
            wrong = await trio.to_thread.run_sync(watermarks.look, database.direct_url())
            assert not wrong, "\n".join([f"{len(wrong)} watermarks wrong:", *wrong[:20]])


@contextmanager
def _explained(clients: FleetClients, members: list[FleetDaemon]) -> Iterator[None]:
    """Print what there is to know of a failure of the body."""
    try:
        yield
    except BaseException:
        print(clients.answers, len(clients.acknowledged), *map(FleetDaemon.log, members), sep="\n")  # noqa: T201
        raise


async def _wait_until_empty(database: DatabasePair, members: list[FleetDaemon]) -> None:
    """Return once nothing is left to store, and no daemon that was killed owns a lane."""
    with trio.move_on_after(_WITHIN):
        while True:
            status = await trio.to_thread.run_sync(database.status)
            assert status.dead_letters == 0
            owners = await trio.to_thread.run_sync(database.owners)
            dead = owners - {one.daemon.pid for one in members if one.daemon is not None}
            if not (status.jobs or status.sealed_batches or dead):
                return
            await trio.sleep(0.5)
    raise AssertionError(f"{status}, {database.owners()}")


def _check_logs(members: list[FleetDaemon]) -> None:
    """Raise AssertionError if a daemon has failed by itself."""
    for one in members:
        assert "internal_failure" not in one.output, one.output
        assert "Traceback" not in one.output, one.output
