"""A PostgreSQL server with a synchronous standby, which takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.postgres.inspection import PostgresInspection
from payloadd.journal.postgres.opening import try_postgres
from tests.support.postgres import PostgresServer

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.observe.status import JournalStatus
    from tests.support.tcp_proxy import TcpProxy

_DATABASE: Final = "fleet"
_SYNCHRONOUS: Final = {"synchronous_standby_names": "standby"}


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
        try_postgres(self.direct_url(), create=True)
        self._add_standby()

    def _add_standby(self) -> None:
        self._standby.copy_of(self.primary)
        self._standby.start()
        self.primary.reconfigure(_SYNCHRONOUS)

    async def fail_over(self) -> None:
        """Kill the primary, promote the standby, and make a new standby."""
        await self.promote()
        await trio.to_thread.run_sync(self._add_standby)

    async def promote(self) -> None:
        """Kill the primary, and promote the standby."""
        await trio.to_thread.run_sync(self.primary.kill)
        for proxy in self.proxies:
            proxy.reset()
        await trio.to_thread.run_sync(self._standby.promote)
        self.primary, self._standby = self._standby, self._new()
        for proxy in self.proxies:
            proxy.target = self.primary.port

    def stop(self) -> None:
        """Stop both servers."""
        for server in (self.primary, self._standby):
            if server.data.exists():
                server.stop()

    def status(self) -> JournalStatus:
        """Return what is in the journal."""
        with PostgresInspection.open(self.direct_url()) as inspection:
            return inspection.status()

    def owners(self) -> set[int]:
        """Return the ids of the processes that own lanes."""
        with PostgresInspection.open(self.direct_url()) as inspection:
            return {int(one.split(":")[1]) for one in inspection.owners().values() if one}

    def direct_url(self) -> str:
        """Return the URL of the journal, without a proxy."""
        return self.primary.url(_DATABASE)

    def url(self, proxy: TcpProxy) -> str:
        """Return the URL of the journal behind a proxy."""
        return self.primary.url(_DATABASE, proxy.port)
