"""The one door into the pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from daemon.errors import RefusedError


class Intake:
    """Takes requests, whole or not at all."""

    async def accept(self, payloads: Sequence[bytes]) -> uuid.UUID:
        """Take all payloads of one request and return the id that names it.

        Raises RefusedError (nothing was taken): QUEUE_FULL, DRAINING; and TooLargeError when
        the request could never be taken, however empty the queue.
        """
        raise NotImplementedError

    def refusal(self) -> RefusedError | None:
        """Return what a request of one small payload would be refused with now, or None."""
        raise NotImplementedError
