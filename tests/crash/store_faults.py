"""Change the state of S3 in a torture; it works again afterwards, for the tests that follow."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from tests.support.s3 import wait_until_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.crash.plan import StoreState
    from tests.crash.proxy import Proxy
    from tests.support.s3 import S3Server
    from tests.support.weed import SeaweedProcess


_WITHIN: Final = 60.0


class StoreFaults:
    """An S3 server and the proxy in front of it, in one state at a time.

    The states "hangs" and "stopped" need SeaweedFS.
    """

    def __init__(self, server: S3Server, proxy: Proxy, nursery: trio.Nursery) -> None:
        self._server = server
        self._proxy = proxy
        self._nursery = nursery
        self._store_state: StoreState = "works"
        self._back = trio.Event()
        self._back.set()

    @property
    def _process(self) -> SeaweedProcess:
        assert self._server.process is not None
        return self._server.process

    async def failed_once_more(self) -> None:
        """Wait until a PUT is answered with 500 after its object was stored."""
        before = self._proxy.failed_after_storing
        with trio.fail_after(_WITHIN):
            while self._proxy.failed_after_storing == before:  # noqa: ASYNC110 - it is counted
                await trio.sleep(0.02)

    async def set_state(self, store_state: StoreState) -> None:
        """Change the state; a server that was stopped works again some seconds later."""
        if store_state == self._store_state:
            return
        await self._clear()
        if store_state != "works":
            await self.wait_until_working()
        self._store_state = store_state
        match store_state:
            case "stores and fails":
                self._proxy.fails_after_storing = True
            case "refuses batches":
                self._proxy.refuses_batches = True
            case "hangs":
                self._process.pause()
            case "stopped":
                await trio.to_thread.run_sync(self._process.stop)

    async def wait_until_working(self) -> None:
        """Wait until a server that was started again accepts objects."""
        await self._back.wait()

    async def end(self) -> None:
        """Make the store work, and wait until it does."""
        await self._clear()
        await self.wait_until_working()

    async def _clear(self) -> None:
        store_state, self._store_state = self._store_state, "works"
        match store_state:
            case "stores and fails":
                self._proxy.fails_after_storing = False
            case "refuses batches":
                self._proxy.refuses_batches = False
            case "hangs":
                self._process.resume()
            case "stopped":
                self._back = trio.Event()
                self._process.start()
                self._nursery.start_soon(self._wait_until_back)

    async def _wait_until_back(self) -> None:
        # Shielded: the tests after a cancelled one need the server.
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(wait_until_ready, self._server, self._process)
            finally:
                # Also if it does not come back: the error ends the test, and ``end`` does not wait.
                self._back.set()


@asynccontextmanager
async def open_store_faults(server: S3Server, proxy: Proxy) -> AsyncIterator[StoreFaults]:
    """Yield control of the store's state; the store works again after the body."""
    async with trio.open_nursery() as nursery:
        faults = StoreFaults(server, proxy, nursery)
        try:
            yield faults
        finally:
            with trio.CancelScope(shield=True):
                await faults.end()
