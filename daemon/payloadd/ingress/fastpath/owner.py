"""What a connection on the fast path needs of the task that serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health


class Readable(Protocol):
    """A connection that is called when its socket has input."""

    def readable(self) -> None:
        """Read what has come."""
        ...


class Owner(Protocol):
    """Watches connections and calls them."""

    submitter: Submitter
    health: Health
    refusals: RefusalLog
    waiting: int
    """Requests that wait for the journal."""

    @property
    def count(self) -> Callable[[int], object]:
        """What is called with the status of each answer."""
        ...

    def come_back(self, step: Callable[[], None]) -> None:
        """Call ``step``, which continues a connection, in a later turn."""
        ...

    def defer(self, work: Callable[[], None]) -> None:
        """Call ``work``, which takes up to some milliseconds, after all small requests."""
        ...

    def listen(self, fd: int, connection: Readable, *, bulk: bool = False) -> None:
        """Call ``connection`` when ``fd`` has input; ``bulk``: of a large body."""
        ...

    def ignore(self, fd: int, *, bulk: bool) -> None:
        """Call it no more."""
        ...

    def head(self) -> bytes:
        """Return the head of a 202 up to its length."""
        ...
