"""Let requests wait for the upload of their payloads (``Prefer: wait``), within bounds."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from payloadd.ingress.preferences import accepted

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.ingress.preferences import Accepted
    from payloadd.pipeline.intake import Intake, Receipt, StoredObjects


_MOST_TASKS: Final = 256
"""Requests that wait in a task each: half of those that share ``OpenRequests``."""


class UploadWaits:
    """The requests that wait for the store, on both ways in.

    At most half of MAX_CONNECTIONS wait at a time: each of them keeps a connection, or a part of
    one. A further request is answered at once.
    """

    def __init__(self, intake: Intake, settings: Settings) -> None:
        self._uploads = intake.uploads
        self._longest = settings.request_timeout
        self._most = max(1, settings.max_connections // 2)
        self._tasks = 0
        """Requests that wait in a task each."""

    async def run(self) -> None:
        """Answer requests that have waited long enough, until cancelled."""
        await self._uploads.run()

    def begin(
        self, receipt: Receipt, seconds: int, answer: Callable[[Accepted], object], tasks: int = 0
    ) -> Callable[[], None]:
        """Call ``answer`` with a 201 once all payloads of a request are stored, else with the 202.

        Returns a function that ends the wait: ``answer`` is called with the 202, if it was not
        called before.

        Must be called by the callback that gets ``receipt``. ``seconds`` is what the client
        prefers; no request waits longer than REQUEST_TIMEOUT. ``tasks`` is the number of tasks that
        wait for the answer, 0 or 1: their number has a smaller bound.
        """
        granted = min(seconds, max(1, int(self._longest)))
        tasks_in_all = self._tasks + tasks
        may_wait = self._uploads.waiting < self._most and tasks_in_all <= _MOST_TASKS
        self._tasks = tasks_in_all

        def finish(objects: StoredObjects | None) -> None:
            self._tasks -= tasks
            answer(accepted(receipt, objects, granted))

        self._uploads.wait(receipt, min(granted, self._longest) if may_wait else 0, finish)
        return partial(self._uploads.end_wait, receipt, finish)
