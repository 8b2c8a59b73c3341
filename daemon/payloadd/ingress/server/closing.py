"""The end of a connection.

A socket that is closed with unread bytes in it resets the connection, and what was said last
is lost with it (RFC 9112, section 9.6). So this side ends first, and what still comes is read
and dropped, within bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from payloadd.ingress.server.socket_stream import NonBlockingStream

_SECONDS: Final = 2.0
_BYTES: Final = 16 * 2**20
_READ_BYTES: Final = 65_536


async def close_gracefully(transport: NonBlockingStream, words: bytes, *, waits: bool) -> None:
    """Send ``words``, let the client read them, close. Takes 2 s at most.

    ``waits``: there is something that was said before and that the client has to read.
    """
    try:
        with trio.move_on_after(_SECONDS):
            await transport.flush()
            if words:
                await transport.send_all(words)
            if words or waits:
                await _linger(transport)
            else:
                transport.send_close()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the client is gone, or the connection was closed for another one
    transport.socket.close()


async def _linger(transport: NonBlockingStream) -> None:
    await transport.send_eof()
    left = _BYTES
    while left > 0 and (data := await transport.receive_some(_READ_BYTES)):
        left -= len(data)
