"""The task that serves the fast path, as one of its connections sees it."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.answers import Answers
    from payloadd.ingress.fastpath.head import HeadParser
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.poller import Readable
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health
    from payloadd.observe.request_metrics import RequestMetrics


class Owner(Protocol):
    """The task that polls the connections of the fast path and calls them."""

    submitter: Submitter
    health: Health
    refusals: RefusalLog
    requests: RequestMetrics
    heads: HeadParser
    answers: Answers
    unanswered: int
    """Requests that were submitted and are not answered yet."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after the reads of the input that has already arrived.

        A callback that is added by another one is called in a later pass of the event loop.
        """
        ...

    def defer(self, work: Callable[[], None]) -> None:
        """Call ``work``, which may take some milliseconds, after all small requests."""
        ...

    def register(
        self, fd: int, connection: Readable, events: int = select.EPOLLIN, *, bulk: bool = False
    ) -> None:
        """Call ``connection`` at ``events`` of ``fd``; ``bulk``: its input is part of a large body.

        Raises OSError if the system can poll no more sockets.
        """
        ...

    def unregister(self, fd: int, *, bulk: bool) -> None:
        """Stop polling ``fd``."""
        ...
