"""The connections of one address, of which there are only so many.

When all slots are taken, a new connection takes the place of one that can be spared: one that is
being closed anyway, else the one that has been idle longest, else the one whose client sends or
reads most slowly (see ``Standing.eviction_rank``). A connection that waits for our answer keeps its
slot. So clients that hold connections and send nothing, or a byte a second, cannot keep others
out. Nor can clients that send a small request a few times a second: where no connection could be
spared for a moment, one that has been idle for less than a quarter of a second goes too.

To look for such connections means to look at all of them. One look finds enough for many new
connections, each of which is looked at again before it is closed.
"""

from __future__ import annotations

from collections import Counter
from heapq import nsmallest
from operator import itemgetter
from typing import TYPE_CHECKING, Final

import trio

from payloadd.ingress.server.log_limit import LogLimit
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, ItemsView, Iterator

    from hypercorn.trio.worker_context import WorkerContext

    from payloadd.ingress.server.activity import EvictionRank
    from payloadd.ingress.server.client_stream import ClientStream

log = get_logger(__name__)

_VICTIMS: Final = 64
"""Connections that one look chooses, at least."""
_SHARE: Final = 16
"""One of so many connections is chosen: the look costs each new connection the same."""
_FRESH: Final = 1.0
"""Seconds for which a choice is good."""
_PAUSE: Final = 0.1
"""Seconds between two looks of which the first found nothing."""
_LONG: Final = 0.3
"""Seconds in which no connection can be spared, behind which a short idle time is enough."""
_SAME: Final = 0.3
"""Seconds by which ``EvictionRank.value`` of a connection that stayed idle may differ."""


class Slots:
    """The open connections of one address: ``most``, and ``most_per_client`` for an IP address."""

    def __init__(self, most: int, most_per_client: int | None) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._streams: dict[ClientStream, WorkerContext] = {}
        self._clients: Counter[str] = Counter()
        self._victims: list[tuple[EvictionRank, ClientStream]] = []
        """The next one last."""
        self._chosen_at = 0.0
        self._asked_at = 0.0
        self._in_vain_since: float | None = None
        """Since when no connection can be spared, None if the last new one found its place."""
        self._freed = trio.Event()
        self._refusals = LogLimit()
        self._evictions = LogLimit()
        self.on_evict: Callable[[ClientStream], object] = lambda _: None
        """Called with a connection that has just been closed for another one."""

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[ClientStream]:
        return iter(self._streams)

    def __contains__(self, stream: ClientStream) -> bool:
        return stream in self._streams

    def items(self) -> ItemsView[ClientStream, WorkerContext]:
        """Return the connections, each with what Hypercorn knows of it."""
        return self._streams.items()

    def context(self, stream: ClientStream) -> WorkerContext:
        """Return what Hypercorn knows of a connection."""
        return self._streams[stream]

    def refuses(self, client: str | None) -> bool:
        """Return whether the client with this address has as many connections as it may have."""
        most = self._most_per_client
        if most is None or client is None or self._clients[client] < most:
            return False
        if self._refusals.allows():
            suppressed = self._refusals.suppressed()
            log.warning("client_connections_refused", client=client, suppressed=suppressed)
        return True

    def has_room(self) -> bool:
        """Return whether there is a slot, for which another connection may have been closed."""
        return len(self._streams) < self._most or self._evict(trio.current_time())

    async def wait_for_room(self) -> None:
        """Return when there may be a slot: a connection has ended, or another look is due."""
        with trio.move_on_after(_PAUSE):
            await self._freed.wait()

    def add(self, stream: ClientStream, context: WorkerContext, client: str | None) -> None:
        """Give a connection a slot."""
        self._streams[stream] = context
        if self._most_per_client is not None and client is not None:
            stream.client = client
            self._clients[client] += 1

    def remove(self, stream: ClientStream) -> None:
        """Free the slot of a connection that has ended, if it was not taken from it before."""
        if self._streams.pop(stream, None) is None:
            return
        client = stream.client
        if client is not None:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]
        if len(self._streams) + 1 >= self._most:
            self._freed.set()
            self._freed = trio.Event()

    def clear(self) -> None:
        """Forget all connections."""
        self._streams.clear()

    # -------------------------------------------------------------------------------------------

    def _evict(self, now: float) -> bool:
        """Close the connection that can best be spared; returns False if there is none."""
        if now - self._asked_at > _FRESH:
            self._in_vain_since = None
        self._asked_at = now
        if now - self._chosen_at > _FRESH:
            self._victims.clear()
        since = self._in_vain_since
        brief = since is not None and now - since >= _LONG
        if self._evict_chosen(now, brief=brief):
            return True
        if since is not None and not brief and now - self._chosen_at < _PAUSE:
            return False
        self._choose(now, brief=brief)
        if self._evict_chosen(now, brief=brief):
            return True
        self._in_vain_since = now if since is None else since
        return False

    def _evict_chosen(self, now: float, *, brief: bool) -> bool:
        while self._victims:
            was, stream = self._victims.pop()
            if stream not in self._streams:
                continue
            if _is_still(was, stream.activity.eviction_rank(now, brief=brief), stream):
                if stream.activity.eviction_rank(now) is not None:
                    self._in_vain_since = None
                stream.evict()
                self.remove(stream)
                self.on_evict(stream)
                if self._evictions.allows():
                    suppressed = self._evictions.suppressed()
                    log.warning("connections_full", most=self._most, suppressed=suppressed)
                return True
        return False

    def _choose(self, now: float, *, brief: bool) -> None:
        found = [
            (eviction_rank, stream)
            for stream in self._streams
            if (eviction_rank := stream.activity.eviction_rank(now, brief=brief)) is not None
        ]
        most = max(_VICTIMS, len(self._streams) // _SHARE)
        self._victims = nsmallest(most, found, key=itemgetter(0))
        self._victims.reverse()
        self._chosen_at = now


def _is_still(was: EvictionRank, now: EvictionRank | None, stream: ClientStream) -> bool:
    """Return whether a connection is as it was when it was chosen, and the loop not behind it."""
    if now is None or now.order != was.order or stream.keeps_up:
        return False
    return now.order != 1 or now.value - was.value < _SAME
