"""Let a client read its last answer before the connection is closed, without a task.

A socket that is closed with unread input resets the connection, and the client loses the last
answer (RFC 9112, section 9.6). So this side closes its sending side first, and discards the input
that still arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from payloadd.ingress.server.client_connection import do_nothing
from payloadd.ingress.server.poller import Watched
from payloadd.ingress.server.socket_stream import CLOSE_SECONDS, MOST_DISCARDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.poller import Watcher


class Lingering(Watched):
    """A connection whose sending side is closed: its deadline ends it, or its client does."""

    __slots__ = ("_done", "_left", "_stream")

    def __init__(
        self, watcher: Watcher, stream: ClientStream, done: Callable[[ClientStream], object]
    ) -> None:
        """Prepare to discard the input of ``stream``; ``done`` is called once it is closed."""
        super().__init__(watcher, stream.socket.fileno())
        self._stream = stream
        self._left = MOST_DISCARDED
        self._done = done

    def start(self) -> None:
        """Begin to read the socket."""
        self._stream.on_end = self._end
        try:
            self.watch()
        except OSError:  # no more sockets can be watched
            self._end()

    def on_readable(self) -> None:
        """Discard some input."""
        try:
            size = self._stream.transport.discard_now()
        except trio.BrokenResourceError:
            size = 0
        if size is None:
            return
        self._left -= size
        if not size or self._left <= 0:
            self._end()
        elif self._stream.waits_to_close():
            self._stream.state.deadline = trio.current_time() + CLOSE_SECONDS

    def _end(self) -> None:
        self._stream.on_end = do_nothing
        self.unwatch()
        self._stream.transport.close()
        self._done(self._stream)
