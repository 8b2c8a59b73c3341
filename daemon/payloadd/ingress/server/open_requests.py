"""The requests that Hypercorn has under way, on all connections of one address together.

An open request costs some 40 KiB: two tasks, Quart's contexts, a stream of h2. A connection may
have 16 of them over HTTP/2 and a thousand connections 16,000, which is 600 MiB. So one request of
each connection is always taken, and those beyond that share a number of places. Where all places
are taken, a further HTTP/2 stream is refused with REFUSED_STREAM, which tells the client that
nothing of it was processed and that it may be sent again (RFC 9113, section 8.7).

Rejected alternatives: not to read the connection until there is a place would keep the bodies of
its open requests from coming; to answer 503 would need a handler for each stream. A place for
each request, first ones included, would let clients that open requests and send no body shut all
others out until REQUEST_TIMEOUT.
"""

from __future__ import annotations

from typing import Final

from payloadd.ingress.server.log_limit import LogLimit
from payloadd.observe.logs import get_logger

log = get_logger(__name__)

SHARED_PLACES: Final = 512
"""20 MiB."""


class OpenRequests:
    """Counts the requests that are under way."""

    def __init__(self, shared_places: int = SHARED_PLACES) -> None:
        self.count = 0
        self._shared_places = shared_places
        self._limit = LogLimit()

    def refuses(self, of_connection: int) -> bool:
        """Return whether a connection with so many open requests may have no other one now."""
        if not of_connection or self.count < self._shared_places:
            return False
        if self._limit.allows():
            suppressed = self._limit.suppressed()
            log.warning("http2_streams_refused", open=self.count, suppressed=suppressed)
        return True
