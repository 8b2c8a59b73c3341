"""What a store is, and how one is opened.

Nothing here knows of jobs: a store takes a key and the bytes of one object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from daemon.storage.encoding import Encoded


class Store(Protocol):
    """Where objects go.

    The contract, the same for every store:

    * ``put`` returns only after the object is durable under its key. It makes
      one attempt; whoever calls decides about the next one.
    * ``put`` is idempotent: the same key and bytes may be put again after any
      error or crash, and one object is there afterwards.
    * Everything that goes wrong is a :class:`~daemon.errors.StoreError`: one of
      ``TransientStoreError``, ``OperatorStoreError``, ``InvalidObjectError``.
    * Any number of calls may run at once, and each may be cancelled.
    """

    async def put(self, key: str, body: Encoded) -> None:
        """Store one object; raises StoreError."""
        ...

    async def delete(self, key: str) -> None:
        """Take one object away, for ``payloadd check``; raises StoreError."""
        ...

    async def aclose(self) -> None:
        """Give connections back. No ``put`` may be under way."""
        ...
