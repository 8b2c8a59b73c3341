"""The methods of a store that tests of the pipeline do not use."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members


class InertStore:
    """Base of stores in memory: everything but ``put`` does nothing."""

    async def replace(self, key: str, body: EncodedObject) -> None:
        """Do nothing."""
        del key, body

    async def delete(self, key: str) -> None:
        """Do nothing."""

    async def read_back(self, key: str, body: EncodedObject, members: Members) -> bool:
        """Return False: objects are not compared."""
        del key, body, members
        return False

    async def create(self) -> bool:
        """Return False: it exists."""
        return False

    def learnt(self) -> list[str]:
        """Return nothing."""
        return []

    async def identify(self) -> str:
        """Return a name: every client may write."""
        return "anonymous"

    def credentials_expire(self) -> float | None:
        """Return None: there are no credentials."""
        return None

    async def reload(self) -> None:
        """Do nothing: there are no credentials."""

    async def aclose(self) -> None:
        """Do nothing: there are no connections."""
