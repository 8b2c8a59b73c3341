"""What one connection waits for, and so how well it can be spared where slots are short."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from payloadd.ingress.server.request_clock import NEW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.ingress.server.request_clock import RequestClock

_UNREAD_SECONDS: Final = 1.0
"""Seconds after which a client that does not read its answer counts as slow."""


class EvictionRank(NamedTuple):
    """How well a connection can be spared: the least goes first."""

    order: int
    """0: it is being closed, 1: it is idle, 2: its client is slow."""
    value: float
    """For 0 and 1 since when, in seconds on trio's clock; for 2 bytes a second."""


def no() -> bool:
    """Return False."""
    return False


class ConnectionActivity:
    """What a connection waits for, as far as ``clock`` does not know it.

    Nothing of it is touched by a request that comes in one piece and is answered in one.
    """

    def __init__(self, clock: RequestClock) -> None:
        self._clock = clock
        self.handshaking = False
        self.in_hand = False
        """Whether what the client sent waits for its turn to be parsed."""
        self.waits_for_memory = 0
        """Requests whose body is not read because bodies have all the memory they may have."""
        self.received: Callable[[], int] | None = None
        """Returns how many bytes have come of what is being received; None where the clock counts
        them, or nothing is being received."""
        self.awaits_body: Callable[[], bool] = no
        """Whether Hypercorn waits for more of a request's body."""
        self.blocked_since: float | None = None
        """When the client began not to take what is sent."""
        self.finishing_since: float | None = None
        """When the end of the connection began."""
        self._sending: list[float] = []
        """When the app began to send what it is sending now, of each of its answers."""

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Take note that the body waits for the client to take a part of an answer."""
        began = trio.current_time()
        self._sending.append(began)
        try:
            yield
        finally:
            self._sending.remove(began)

    @property
    def awaits_client(self) -> bool:
        """Whether a part of a request, or of a handshake, has come and the rest has not."""
        if self.handshaking or self.received is not None or self.awaits_body():
            return True
        return self._clock.head_since is not None and not self._clock.requests

    @property
    def bytes_received(self) -> int:
        """Bytes of the request, or the handshake, that is being received."""
        return self._clock.received if self.received is None else self.received()

    @property
    def ignores_client(self) -> bool:
        """Whether what the client sends is not of interest: it has to read, or to go."""
        return self.finishing_since is not None or self.blocked_since is not None

    def is_blocked(self, now: float) -> bool:
        """Return whether all that is under way waits for the client to read, for a second."""
        since = self._blocked_since
        return since is not None and now - since >= _UNREAD_SECONDS

    @property
    def _blocked_since(self) -> float | None:
        requests = self._clock.requests
        return max(self._sending) if 0 < requests == len(self._sending) else self.blocked_since

    def eviction_rank(self, now: float, *, brief: bool = False) -> EvictionRank | None:
        """Return how well the connection can be spared, None if it cannot.

        It cannot while it waits for our answer, or is so new that its request may be on its way;
        with ``brief`` every idle connection can.
        """
        clock = self._clock
        if self.finishing_since is not None:
            over = now - self.finishing_since >= NEW
            return EvictionRank(0, self.finishing_since) if over else None
        if self.in_hand or self.waits_for_memory:
            return None
        if self._blocked_since is not None:
            return EvictionRank(2, 0.0) if self.is_blocked(now) else None
        idle_since = None if self.handshaking else clock.idle_since
        if brief and clock.has_just_answered:
            idle_since = now
        if idle_since is not None:
            return EvictionRank(1, idle_since) if brief or now - idle_since >= NEW else None
        if not self.awaits_client:
            return None
        rate = clock.bytes_a_second(
            now, clock.received if self.received is None else self.received()
        )
        return None if rate is None else EvictionRank(2, rate)
