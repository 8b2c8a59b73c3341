"""What a store is, and how one is opened.

Nothing here knows of jobs: a store takes a key and the bytes of one object.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

from payloadd.config.parsers import FileUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.config.settings import Settings
    from payloadd.model.formats.ndjson import Encoded

_CLOSE_SECONDS: Final = 2.0


class Store(Protocol):
    """Where objects go.

    The contract, the same for every store:

    * ``put`` returns only after the object is durable under its key. It makes
      one attempt; whoever calls decides about the next one, and how long this one may
      take: a store that hangs is cancelled.
    * ``put`` is idempotent: the same key and bytes may be put again after any
      error or crash, and one object is there afterwards.
    * Everything that goes wrong is a :class:`~payloadd.errors.StoreError`: one of
      ``TransientStoreError``, ``OperatorStoreError``, ``InvalidObjectError``.
    * Any number of calls may run at once, and each may be cancelled.
    """

    async def put(self, key: str, body: Encoded) -> None:
        """Store one object; raises StoreError."""
        ...

    async def delete(self, key: str) -> None:
        """Take one object away, for ``payloadd check``; raises StoreError."""
        ...

    async def identify(self) -> str:
        """Return whom the store takes us for, without secrets; raises StoreError if nobody."""
        ...

    async def aclose(self) -> None:
        """Give connections back. No ``put`` may be under way."""
        ...


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store that ``STORE_URL`` names for the time of the block; raises StartError."""
    # Imported here: the pipeline takes the protocol from this room, and must not get httpx
    # and botocore with it.
    store: Store
    if isinstance(settings.store_url, FileUrl):
        from payloadd.storage.file import open_file_store  # noqa: PLC0415

        store = await open_file_store(settings.store_url.path)
    else:
        from payloadd.storage.s3.store import open_s3_store  # noqa: PLC0415

        store = await open_s3_store(settings, settings.store_url)
    try:
        yield store
    finally:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await store.aclose()
