"""The interface of stores, and ``open_store``, which opens the store of the settings.

A store knows nothing of jobs: it is given a key and the bytes of one object. To add a store: write
a module that implements :class:`Store`, open it in ``open_store``, accept its URL in
``config/parsers.py``, and add a fixture to ``tests/storage/test_contract.py``.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

from payloadd.config.parsers import FileUrl
from payloadd.storage.http1.progress import Progress, watched_progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.config.settings import Settings
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

__all__ = ["Progress", "Store", "open_store", "watched_progress"]

_CLOSE_SECONDS: Final = 2.0


class Store(Protocol):
    """A place for objects. Every store keeps these rules, which ``test_contract.py`` checks.

    * ``put`` returns only after the object is durable under its key. It makes one attempt. The
      caller decides about the next attempt, and cancels a ``put`` that takes too long.
    * ``put`` is idempotent: after any error, cancellation or crash the same key and bytes may be
      put again, and one object is there afterwards.
    * A reader of the store never sees a part of an object.
    * Every failure is a :class:`~payloadd.errors.StoreError`: ``TransientStoreError``,
      ``OperatorStoreError`` or ``InvalidObjectError``.
    * The bytes of an upload may be watched (``watched_progress``), where the store has a socket of
      its own. Without that an upload has no progress until it ends.
    * Any number of calls may be in progress at the same time, and each may be cancelled.
    """

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Store one object. Raises StoreError.

        ``members`` is the identity of the batch; a store may keep it beside the object. ``repeat``
        is True if the store may have the object already: after an attempt with an unknown outcome,
        in this process or in an earlier one. An object with the same key is replaced, or kept if it
        is the object of the same batch.
        """
        ...

    async def replace(self, key: str, body: EncodedObject) -> None:
        """Store one object in place of any other one under the key, whatever it is.

        For objects of the daemon that are no batches. One attempt, as ``put``. Raises StoreError,
        also where an earlier request of the same attempt may be carried out later.
        """
        ...

    async def delete(self, key: str) -> None:
        """Delete one object, for ``payloadd check``; a missing object is no error.

        Raises StoreError.
        """
        ...

    async def read_back(self, key: str, body: EncodedObject, members: Members) -> bool:
        """Return whether the store has the object, for ``payloadd check``.

        False means that it cannot be asked, for want of rights. Raises StoreError if the object is
        missing, or is another one.
        """
        ...

    async def create(self) -> bool:
        """Create the bucket or the folder, for ``payloadd check --create``.

        Returns whether it was missing. Raises StoreError.
        """
        ...

    def learnt(self) -> list[str]:
        """Return what answers of the store have corrected (a region, a clock), one line each."""
        ...

    async def identify(self) -> str:
        """Return the identity that the store sees, without secrets, in one line.

        Raises StoreError if there are no credentials.
        """
        ...

    def credentials_expire(self) -> float | None:
        """Return when the held credentials expire, in Unix time; None if never or not known."""
        ...

    async def reload(self) -> None:
        """Read files with credentials again; called after SIGHUP."""
        ...

    async def aclose(self) -> None:
        """Close connections; no call may be in progress."""
        ...


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Open the store of ``STORE_URL`` for the time of the block.

    Raises StartError or SettingsError.
    """
    # Imported here: the pipeline imports this module for the protocol, and must not import httpx
    # with it.
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
