"""Let requests wait for the upload of their payloads (``Prefer: wait``), within bounds.

With ``DURABILITY=store`` every request waits, whatever it prefers: it gets a 201 or an error.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from payloadd.ingress.preferences import seconds_to_wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.ingress.preferences import WaitOutcome
    from payloadd.pipeline.intake import Intake, Receipt, StoredObjects

_MOST_TASKS: Final = 256
"""Requests that wait in a task each: half of those that share ``OpenRequests``."""


class UploadCallback(Protocol):
    """Gets the receipt of a request that has waited, the outcome, and the seconds granted.

    No seconds: the preference was not applied.
    """

    def __call__(self, receipt: Receipt, outcome: WaitOutcome, waited: int | None = None) -> object:
        """Answer the request."""


class UploadWaits:
    """The requests that wait for the store, on both ways in.

    At most half of MAX_CONNECTIONS wait at a time: each of them keeps a connection, or a part of
    one. A further request is answered at once. Where all requests wait, the queue bounds them.
    """

    def __init__(self, intake: Intake, settings: Settings) -> None:
        self._uploads = intake.uploads
        self._unstored = intake.unstored
        self.seconds_to_wait: Callable[[str | None], int | None] = (
            seconds_to_wait if self._unstored is None else self._wait_always
        )
        """Returns the seconds that a request waits, by its header Prefer; None or 0: it does not
        wait."""
        self._longest = settings.request_timeout
        self._most = max(1, settings.max_connections // 2)
        self._tasks = 0
        """Requests that wait in a task each."""

    def _wait_always(self, _prefer: str | None) -> int:
        return max(1, int(self._longest))

    async def run(self) -> None:
        """Answer requests that have waited long enough, until cancelled."""
        if self._unstored is None:
            await self._uploads.run()
        else:
            await self._unstored.run()

    def begin(
        self,
        receipt: Receipt,
        seconds: int,
        answer: UploadCallback,
        tasks: int = 0,
    ) -> Callable[[], None] | None:
        """Call ``answer`` once all payloads of a request are stored, or after a time.

        Returns a function that ends the wait: ``answer`` is called without an outcome, unless it
        was called before. Returns None if the wait cannot be ended: without an upload the request
        is not promised.

        Must be called by the callback that gets ``receipt``. ``seconds`` is what the client
        prefers; no request waits longer than REQUEST_TIMEOUT. ``tasks`` is the number of tasks that
        wait for the answer, 0 or 1: their number has a smaller bound.
        """
        if self._unstored is not None:
            self._unstored.wait(answer)
            return None
        granted = min(seconds, max(1, int(self._longest)))
        tasks_in_all = self._tasks + tasks
        may_wait = self._uploads.waiting < self._most and tasks_in_all <= _MOST_TASKS
        self._tasks = tasks_in_all

        def finish(objects: StoredObjects | None) -> None:
            self._tasks -= tasks
            answer(receipt, objects, granted)

        self._uploads.wait(receipt, min(granted, self._longest) if may_wait else 0, finish)
        return partial(self._uploads.end_wait, receipt, finish)
