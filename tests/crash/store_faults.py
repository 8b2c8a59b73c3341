"""The weather of the torture: what S3 is like. It always ends fair, for the tests that follow."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.support.s3 import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.crash.plan import Weather
    from tests.crash.proxy import Proxy
    from tests.support.s3 import S3Server
    from tests.support.weed import SeaweedProcess


class StoreFaults:
    """SeaweedFS with the proxy in front of it, in one mood at a time."""

    def __init__(self, server: S3Server, proxy: Proxy, nursery: trio.Nursery) -> None:
        assert server.process is not None
        self._server = server
        self._process: SeaweedProcess = server.process
        self._proxy = proxy
        self._nursery = nursery
        self._weather: Weather = "fair"
        self._back = trio.Event()
        self._back.set()

    async def turn(self, weather: Weather) -> None:
        """Change the weather. A server that was stopped takes seconds until it is back."""
        if weather == self._weather:
            return
        await self._clear()
        if weather != "fair":
            await self.wait_until_fair()
        self._weather = weather
        match weather:
            case "lie":
                self._proxy.lies = True
            case "freeze":
                self._process.pause()
            case "stop":
                await trio.to_thread.run_sync(self._process.stop)

    async def wait_until_fair(self) -> None:
        """Return once the server takes objects, if it was told to."""
        await self._back.wait()

    async def end(self) -> None:
        """Make it fair, and wait until it is."""
        await self._clear()
        await self.wait_until_fair()

    async def _clear(self) -> None:
        weather, self._weather = self._weather, "fair"
        match weather:
            case "lie":
                self._proxy.lies = False
            case "freeze":
                self._process.resume()
            case "stop":
                self._back = trio.Event()
                self._process.start()
                self._nursery.start_soon(self._come_back)

    async def _come_back(self) -> None:
        # Not for a cancelled test to leave without a server the ones that follow.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(wait_until_ready, self._server)
        self._back.set()


@asynccontextmanager
async def open_store_faults(server: S3Server, proxy: Proxy) -> AsyncIterator[StoreFaults]:
    """Have the weather in hand for the time of the block."""
    async with trio.open_nursery() as nursery:
        faults = StoreFaults(server, proxy, nursery)
        try:
            yield faults
        finally:
            with trio.CancelScope(shield=True):
                await faults.end()
