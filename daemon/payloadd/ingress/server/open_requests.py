"""Limit the requests that Hypercorn has in progress, on all connections of one address together.

An open request costs tens of KiB: two tasks, Quart's contexts, a stream of h2. An HTTP/2 connection
may have 16 of them, so a thousand connections could take hundreds of MiB. The first request of each
connection is always accepted. Further requests share a number of places. While all places are
taken, a further HTTP/2 stream is refused with REFUSED_STREAM: the client then knows that nothing of
the request was processed, and that it may send it again (RFC 9113, section 8.7).

Rejected alternatives: to stop reading the connection until a place is free would also stop the
bodies of its open requests. To answer 503 would need a handler for each stream. A place for each
request, first ones included, would let clients that open requests and send no body keep all others
out until REQUEST_TIMEOUT.
"""

from __future__ import annotations

from typing import Final

from payloadd.ingress.server.log_limit import LogLimit
from payloadd.observe.logs import get_logger

log = get_logger(__name__)

SHARED_PLACES: Final = 512
"""About 20 MiB."""


class OpenRequests:
    """Count the requests in progress."""

    def __init__(self, shared_places: int = SHARED_PLACES) -> None:
        """Refuse further requests once ``shared_places`` requests are in progress."""
        self.count = 0
        self._shared_places = shared_places
        self._limit = LogLimit()

    def refuses(self, of_connection: int) -> bool:
        """Return whether a connection with ``of_connection`` open requests may open no other."""
        if not of_connection or self.count < self._shared_places:
            return False
        if self._limit.allows():
            suppressed = self._limit.suppressed()
            log.warning("http2_streams_refused", open=self.count, suppressed=suppressed)
        return True
