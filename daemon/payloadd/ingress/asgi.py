"""Run a request in Quart within the task that the server has started for it.

Quart-Trio starts two tasks for each request, one that receives messages and one that runs the
handler, and sends a small answer in three messages. Here the handler receives the messages itself
as it reads the body, and an answer is two messages. That halves the CPU time that Quart takes.
The server ends the task when the client has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from quart.utils import encode_headers
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable

F = TypeVar("F")


class ClientLeftError(Exception):
    """The client has left before the end of the body."""


class IncomingMessages:
    """The body of a request; iterating over it receives the pieces."""

    def __init__(self, *_lengths: object, **_named: object) -> None:
        """Ignore the lengths that Quart passes: the handlers have limits of their own."""
        self.receive: ASGIReceiveCallable | None = None
        self._complete = False

    def __aiter__(self) -> IncomingMessages:
        return self

    async def __anext__(self) -> bytes:
        if self._complete or self.receive is None:
            raise StopAsyncIteration
        message: Any = await self.receive()
        if message["type"] != "http.request":
            raise ClientLeftError
        self._complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


class _Request(TrioRequest):
    body_class = IncomingMessages  # type: ignore[assignment] # it has the part that handlers use


class _Connection(TrioASGIHTTPConnection):
    """One request and its answer."""

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        body: Any = request.body
        body.receive = receive
        response: Any = await self.app.handle_request(request)
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": encode_headers(response.headers),
            }
        )
        content = await response.get_data(as_text=False)
        await send({"type": "http.response.body", "body": content, "more_body": False})


class App(QuartTrio):
    """A Quart-Trio app whose handlers, and functions after a request, are all asynchronous."""

    asgi_http_class = _Connection
    request_class = _Request

    def ensure_async(self, function: F) -> F:
        """Return ``function``: Quart would inspect it at each call."""
        return function
