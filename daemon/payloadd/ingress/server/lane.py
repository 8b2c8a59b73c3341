"""The fast path as the server sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.submission import Submitter


class Lane(Protocol):
    """Serves connections for as long as their requests are plain."""

    submitter: Submitter

    def awaits_commit(self) -> bool:
        """Return whether requests wait for the journal."""
        ...

    async def run(self) -> None:
        """Serve until cancelled."""
        ...

    def enter(self, stream: ClientStream, leave: Callable[[ClientStream], object]) -> None:
        """Serve a new connection; call ``leave`` when it needs Hypercorn, or ends.

        Raises OSError where the system can watch no more connections.
        """
        ...
