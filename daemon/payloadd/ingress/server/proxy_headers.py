"""Read the PROXY headers of the connections of trusted proxies (CLIENT_ADDRESS=proxy)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from payloadd.ingress.server.client_connection import do_nothing
from payloadd.ingress.server.log_limit import LogLimit
from payloadd.ingress.server.proxy_protocol import ProxyHeader, ProxyHeaderError, ProxyHeaderReader
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from payloadd.ingress.server.client_stream import ClientStream

log = get_logger(__name__)


class ProxyHeaders:
    """Reads the headers of the PROXY protocol, and logs connections without a valid one."""

    def __init__(self, proxies: Container[str] = ()) -> None:
        """Expect a header from the peers ``proxies``: IP addresses, ``unix`` for Unix sockets."""
        self._proxies = proxies
        self._limit = LogLimit()

    def are_sent_by(self, peer: str | None) -> bool:
        """Return whether the connections of a peer begin with a header; None: a Unix socket.

        A header of any other peer is not read: it is no HTTP, and gets a 400.
        """
        return bool(self._proxies) and (peer or "unix") in self._proxies

    async def read(self, stream: ClientStream, peer: str | None) -> ProxyHeader | None:
        """Return the header of a connection within REQUEST_TIMEOUT; None if it has to be closed."""
        try:
            return await _read_proxy_header(stream)
        except ProxyHeaderError as error:
            if self._limit.allows():
                suppressed = self._limit.suppressed()
                reason = str(error)
                log.warning(
                    "proxy_header_refused",
                    proxy=peer or "unix",
                    reason=reason,
                    suppressed=suppressed,
                )
            return None


async def _read_proxy_header(stream: ClientStream) -> ProxyHeader | None:
    """Return the header; None if the connection ends before it without a fault of the proxy.

    Raises ProxyHeaderError.
    """
    reader = ProxyHeaderReader()
    header = None
    stream.transport.awaited = True
    with _before_requests(stream, reader.received) as scope:
        try:
            header = await reader.read(trio.socket.from_stdlib_socket(stream.socket))
        except (OSError, trio.ClosedResourceError):
            return None
    if scope.cancelled_caught and not (stream.evicted or stream.state.draining):
        raise ProxyHeaderError("the PROXY header was not complete within REQUEST_TIMEOUT")
    # The connection may have been closed for another one after its header was read.
    return None if stream.closed else header


@contextmanager
def _before_requests(
    stream: ClientStream, received: Callable[[], int]
) -> Iterator[trio.CancelScope]:
    """Run the ``with`` block within REQUEST_TIMEOUT; it is cancelled when the connection ends.

    ``received`` returns how many bytes of what the block reads have arrived.
    """
    state = stream.state
    with trio.CancelScope() as scope:
        stream.on_end = scope.cancel
        if stream.closed:
            scope.cancel()
        state.handshaking = True
        state.count_received = received
        state.expect_within(state.request_timeout)
        try:
            yield scope
        finally:
            state.handshaking = False
            state.count_received = None
            state.wait_for_request()
    stream.on_end = do_nothing
