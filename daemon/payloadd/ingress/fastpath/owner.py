"""The task that serves the fast path, as one of its connections sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.fastpath.head import HeadParser
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health
    from payloadd.observe.request_metrics import RequestMetrics


class Readable(Protocol):
    """A connection that is called when its socket has input."""

    def on_readable(self) -> None:
        """Read the input."""
        ...


class Owner(Protocol):
    """The task that polls the connections of the fast path and calls them."""

    submitter: Submitter
    health: Health
    refusals: RefusalLog
    requests: RequestMetrics
    heads: HeadParser
    unanswered: int
    """Requests that were submitted and are not answered yet."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in a later pass of the event loop."""
        ...

    def defer(self, work: Callable[[], None]) -> None:
        """Call ``work``, which may take some milliseconds, after all small requests."""
        ...

    def register(self, fd: int, connection: Readable, *, bulk: bool = False) -> None:
        """Call ``connection`` when ``fd`` has input; ``bulk``: the input is part of a large body.

        Raises OSError if the system can poll no more sockets.
        """
        ...

    def unregister(self, fd: int, *, bulk: bool) -> None:
        """Stop polling ``fd``."""
        ...

    def accepted_head(self, status: int) -> bytes:
        """Return the head of a 202 or 201 up to its Content-Length."""
        ...
