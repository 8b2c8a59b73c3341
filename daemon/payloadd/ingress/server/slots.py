"""Limit the open connections of one address, and evict connections when all slots are taken.

A new connection then replaces an open one: one that is being closed, else the one that has been
idle longest, else the one whose client sends or reads most slowly (see
``ConnectionState.eviction_rank``). A connection whose client waits for an answer keeps its slot. So
clients that hold connections and send nothing, or one byte per second, cannot keep others out.
Clients that send a small request a few times per second cannot either: after a short time in which
no connection could be evicted, connections that have been idle for less than a quarter of a second
can be evicted, too.

To find such connections, they are ranked, some thousand at a time: a ranking of ten thousand would
hold the event loop for ten milliseconds. One ranking chooses enough of them for many new
connections, and each one is checked again before it is closed.
"""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.server.accept import has_left
from payloadd.ingress.server.connection_state import EvictionRank
from payloadd.ingress.server.log_limit import LogLimit
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from payloadd.ingress.server.client_stream import ClientStream

log = get_logger(__name__)

_LEAST_CHOSEN: Final = 64
"""Connections that one ranking chooses, at least."""
_RANKED_AT_ONCE: Final = 2048
"""Connections that one ranking compares, at most: about 2 ms."""
_CHOSEN_SHARE: Final = 16
"""One of this many connections is chosen, so that the cost of the ranking per new connection does
not grow with their number."""
_CHOICE_SECONDS: Final = 1.0
"""Seconds for which a choice is valid."""
_PAUSE: Final = 0.1
"""Seconds in which all connections are ranked, at most once, while none can be evicted."""
_BRIEF_AFTER: Final = 0.3
"""Seconds without a connection to evict, after which a short idle time is enough."""
_IDLE_TOLERANCE: Final = 0.3
"""Seconds by which two values of ``EvictionRank.value`` of a connection that stayed idle may
differ."""


class Slots:
    """The open connections of one address."""

    def __init__(
        self, most: int, most_per_client: int | None, not_counted: Container[str] = ()
    ) -> None:
        """Allow ``most`` connections, and ``most_per_client`` of them from one IP address.

        The addresses ``not_counted`` are of proxies: their connections are of many clients.
        """
        self._not_counted = not_counted
        self._most = most
        self._most_per_client = most_per_client
        self._streams: dict[ClientStream, None] = {}
        self._clients: Counter[str] = Counter()
        self._chosen: list[tuple[EvictionRank, ClientStream]] = []
        """Connections to evict; the last one is evicted first."""
        self._chosen_at = 0.0
        self._unranked: list[ClientStream] = []
        """Connections that the next rankings compare; the last ones are ranked first."""
        self._pause = _PAUSE
        """Seconds until the next ranking if the last one found no connection."""
        self._asked_at = 0.0
        self._in_vain_since: float | None = None
        """Since when no connection could be evicted; None if the last new one got a slot."""
        self._freed = trio.Event()
        self._refusals = LogLimit()
        self._evictions = LogLimit()
        self.on_evict: Callable[[ClientStream], object] = lambda _: None
        """Called with each evicted connection."""

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[ClientStream]:
        return iter(self._streams)

    def __contains__(self, stream: ClientStream) -> bool:
        return stream in self._streams

    def refuses(self, client: str | None) -> bool:
        """Return whether the client with this IP address may open no further connection."""
        most = self._most_per_client
        if most is None or client is None or self._clients[client] < most:
            return False
        if client in self._not_counted:
            return False
        if self._refusals.allows():
            suppressed = self._refusals.suppressed()
            log.warning("client_connections_refused", client=client, suppressed=suppressed)
        return True

    @property
    def half_full(self) -> bool:
        """Whether half of the slots are taken."""
        return 2 * len(self._streams) > self._most

    def has_room(self) -> bool:
        """Return whether a slot is free; this may evict another connection."""
        return len(self._streams) < self._most or self._evict(trio.current_time())

    async def wait_for_room(self) -> None:
        """Wait until a connection has ended, or until the next ranking is due (0.1 s or less)."""
        with trio.move_on_after(self._pause):
            await self._freed.wait()

    def add(self, stream: ClientStream, client: str | None) -> None:
        """Add a connection; call this only after ``has_room`` has returned True."""
        self._streams[stream] = None
        self.count(stream, client)

    def count(self, stream: ClientStream, client: str | None) -> None:
        """Count a connection for its client; None: for no client.

        A client that a PROXY header states is known later than its connection.
        """
        if self._most_per_client is not None and client is not None:
            stream.client = client
            self._clients[client] += 1

    def remove(self, stream: ClientStream) -> None:
        """Free the slot of a connection that has ended; an evicted one has no slot any more."""
        if stream not in self._streams:
            return
        del self._streams[stream]
        client = stream.client
        if client is not None:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
        if len(self._streams) + 1 >= self._most:
            self._freed.set()
            self._freed = trio.Event()

    def clear(self) -> None:
        """Remove all connections."""
        self._streams.clear()

    # -------------------------------------------------------------------------------------------

    def _evict(self, now: float) -> bool:
        """Close the connection with the lowest rank; return False if none can be closed."""
        if now - self._asked_at > _CHOICE_SECONDS:
            self._in_vain_since = None
        self._asked_at = now
        if now - self._chosen_at > _CHOICE_SECONDS:
            self._chosen.clear()
        since = self._in_vain_since
        brief = since is not None and now - since >= _BRIEF_AFTER
        if self._evict_chosen(now, brief=brief):
            return True
        if since is not None and not brief and now - self._chosen_at < self._pause:
            return False
        self._choose(now, brief=brief)
        if self._evict_chosen(now, brief=brief):
            return True
        self._in_vain_since = now if since is None else since
        return False

    def _evict_chosen(self, now: float, *, brief: bool) -> bool:
        while self._chosen:
            was, stream = self._chosen.pop()
            if stream not in self._streams:
                continue
            if _is_unchanged(was, _rank(stream, now, brief=brief), stream):
                if _rank(stream, now) is not None:
                    self._in_vain_since = None
                stream.evict()
                self.remove(stream)
                self.on_evict(stream)
                # A connection that is being closed is no loss to its client.
                if was.order and self._evictions.allows():
                    suppressed = self._evictions.suppressed()
                    log.warning("connections_full", most=self._most, suppressed=suppressed)
                return True
        return False

    def _choose(self, now: float, *, brief: bool) -> None:
        if not self._unranked:
            self._unranked = list(reversed(self._streams))  # the oldest connections are last
        part = self._unranked[-_RANKED_AT_ONCE:]
        del self._unranked[-_RANKED_AT_ONCE:]
        found = [
            (eviction_rank, stream)
            for stream in part
            if stream in self._streams
            and (eviction_rank := _rank(stream, now, brief=brief)) is not None
        ]
        most = max(_LEAST_CHOSEN, len(part) // _CHOSEN_SHARE)
        self._chosen = nsmallest(most, found, key=itemgetter(0))
        self._chosen.reverse()
        self._chosen_at = now
        self._pause = _PAUSE * len(part) / max(1, len(self._streams))


def _rank(stream: ClientStream, now: float, *, brief: bool = False) -> EvictionRank | None:
    """Return the rank of a connection for eviction; None if the connection must stay open.

    An HTTP/2 client that has ended its side before its first frame is processed counts as a
    connection that is being closed: clients that connect, send and leave would fill all slots
    faster than Hypercorn can serve them.
    """
    state = stream.state
    if state.awaits_turn and state.begins_http2 and has_left(stream.socket.fileno()):
        return EvictionRank(0, 0.0)
    return state.eviction_rank(now, brief=brief)


def _is_unchanged(was: EvictionRank, now: EvictionRank | None, stream: ClientStream) -> bool:
    """Return whether a chosen connection is still idle or slow, and the event loop not late."""
    if now is None or now.order != was.order:
        return False
    if was.order == 0 and stream.state.begins_http2:
        return True
    if stream.has_unread_input:
        return False
    return now.order != 1 or now.value - was.value < _IDLE_TOLERANCE
