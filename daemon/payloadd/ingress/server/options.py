"""The options of one address, and the fast path as the server calls it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from payloadd.ingress.server.open_requests import OpenRequests
from payloadd.ingress.server.poller import Watcher
from payloadd.observe.request_metrics import CountAnswer, RequestMetrics, count_nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from payloadd.ingress.cors import Cors
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.request_memory import RequestMemory
    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.tls import Certificates
    from payloadd.ingress.submission import Submitter


class FastPathService(Watcher, Protocol):
    """The methods of the fast path that the server calls."""

    submitter: Submitter

    def awaits_commit(self) -> bool:
        """Return whether requests wait for the journal."""
        ...

    async def run(self) -> None:
        """Serve until cancelled."""
        ...

    def enter(self, stream: ClientStream, leave: Callable[[ClientStream], object]) -> None:
        """Serve a new connection; call ``leave`` when Hypercorn has to serve it, or when it ends.

        Raises OSError if the system can watch no further connection.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """The options of one address."""

    max_connections: int
    fast_path: FastPathService | None = None
    """Serves HTTP/1.x; None: Hypercorn and the app serve it, too."""
    certificates: Certificates | None = None
    """With certificates, all connections use TLS."""
    memory: RequestMemory | None = None
    """The memory for the bodies that Hypercorn reads."""
    count: CountAnswer = count_nothing
    """Called for each answer that the fast path does not send."""
    refusals: RefusalLog | None = None
    """The log of requests that are refused by neither the app nor the fast path: slow heads."""
    max_connections_per_client: int | None = None
    proxies: Container[str] = ()
    """Addresses of trusted proxies, to which ``max_connections_per_client`` does not apply."""
    proxy_headers: bool = False
    """Whether each connection of ``proxies`` begins with a PROXY header, which states its
    client."""
    cors: Cors | None = None
    """The headers for browsers of answers that come neither from the app nor the fast path."""
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    """Gets the number of connections, and counts the bytes of bodies that Hypercorn reads."""
    open_requests: OpenRequests = field(default_factory=OpenRequests)
    """The requests that Hypercorn has in progress."""
    accept_seconds: float = 0.002
    """Seconds in which connections are accepted before other tasks run."""
    drain_margin: float = 5.0
    """Seconds, in addition to REQUEST_TIMEOUT, in which clients can read the last answers."""
