"""Limit the requests of each client (RATE_LIMIT): a token bucket per client. No I/O.

The bucket is kept as one number, the time at which it will be full again (the generic cell rate
algorithm of ITU-T I.371, which is equal to a token bucket).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.parsers import Rate

_MOST_CLIENTS: Final = 100_000
"""Clients that are remembered: about 20 MiB. The clients without a request for longest are
forgotten first, and begin with a full bucket again."""
_ROUNDING: Final = 1e-6
"""Seconds by which sums of intervals may be wrong."""


class RateLimiter:
    """The buckets of all clients."""

    def __init__(
        self, rate: Rate, clock: Callable[[], float], most_clients: int = _MOST_CLIENTS
    ) -> None:
        """Allow each client ``rate``; ``clock`` returns monotonic seconds."""
        self._interval = 1 / rate.per_second
        self._tolerance = (rate.burst - 1) / rate.per_second
        self._rate = rate
        self._clock = clock
        self._most_clients = most_clients
        self._full_at: dict[str, float] = {}
        """When the bucket of a client is full, by client, the one without a request for longest
        first."""

    def count(self, client: str) -> None:
        """Count a request of ``client``. Raises Problem RATE_LIMITED if it is one too many."""
        now = self._clock()
        full_at = max(self._full_at.pop(client, now), now)
        wait = full_at - now - self._tolerance
        if wait > _ROUNDING:
            self._full_at[client] = full_at
            detail = f"this client may send {self._rate} (RATE_LIMIT)"
            raise Problem("RATE_LIMITED", detail, {"Retry-After": str(math.ceil(wait))})
        self._full_at[client] = full_at + self._interval
        if len(self._full_at) > self._most_clients:
            del self._full_at[next(iter(self._full_at))]

    def __len__(self) -> int:
        return len(self._full_at)
