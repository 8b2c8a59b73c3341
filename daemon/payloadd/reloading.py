"""Read files again after SIGHUP: certificates, tokens, credentials of the store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from payloadd.config.settings import Settings
    from payloadd.storage.api import Store


class ReloadedPart(Protocol):
    """A part of the daemon that has read files."""

    def reload(self) -> None:
        """Read them again. Blocks."""


@asynccontextmanager
async def reloading(
    settings: Settings,
    files: Sequence[ReloadedPart],
    requests: trio.MemoryReceiveChannel[None],
    store: Store,
) -> AsyncIterator[None]:
    """Reload files on request while the body runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_reload, settings, files, requests, store)
        yield
        nursery.cancel_scope.cancel()


async def _reload(
    settings: Settings,
    files: Sequence[ReloadedPart],
    requests: trio.MemoryReceiveChannel[None],
    store: Store,
) -> None:
    """Read TLS files, tokens and credentials again after each SIGHUP.

    Files are read in threads: a file system may hang. Credentials come first and have a limit, so
    neither waits for the other for ever.
    """
    async for _ in requests:
        with trio.move_on_after(settings.upload_timeout):
            await store.reload()
        for part in files:
            await trio.to_thread.run_sync(part.reload, abandon_on_cancel=True)
