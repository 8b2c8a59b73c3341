"""Run a request in Quart within the task that the server has started for it.

Quart-Trio starts two tasks for each request, one that receives messages and one that runs the
handler, and sends a small answer in three messages. Here the handler receives the messages itself
as it reads the body, and an answer is two messages. That halves the CPU time that Quart takes.
The server ends the task when the client has left.

Quart also prepares what no handler here uses for each request: a session, an adapter that finds
routes by the host of the request, blueprints, signals, functions before a request and functions
that a handler adds for after it. The app omits them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from quart.ctx import RequestContext
from quart.sessions import NullSession
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from werkzeug.exceptions import HTTPException

if TYPE_CHECKING:
    from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
    from quart.wrappers.base import BaseRequestWebsocket
    from werkzeug.routing import MapAdapter

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
    # Properties of Quart that search the name of the route, several times for each request.
    blueprint = None
    blueprints: ClassVar[list[str]] = []


_SESSION: Final = NullSession()
"""The session of all requests: there are no cookies."""


class _Context(RequestContext):
    """The context of one request."""

    def match_request(self) -> None:
        """Find the route by method and path alone, as the fast path does."""
        request = self.request
        adapter: MapAdapter = self.url_adapter  # type: ignore[assignment] # never None, see App
        try:
            request.url_rule, request.view_args = adapter.match(  # type: ignore[assignment]
                request.path, request.method, return_rule=True, query_args=""
            )
        except HTTPException as error:
            request.routing_exception = error


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
        sent = response.response
        whole = isinstance(sent, DataBody)
        content = sent.data if whole else await response.get_data(as_text=False)
        await send({"type": "http.response.body", "body": content, "more_body": False})


class App(QuartTrio):
    """A Quart-Trio app whose handlers, and functions after a request, are all asynchronous."""

    asgi_http_class = _Connection
    request_class = _Request
    _adapter: MapAdapter | None = None

    def create_url_adapter(self, request: BaseRequestWebsocket | None) -> MapAdapter | None:
        """Return an adapter for all requests: their hosts decide nothing."""
        if request is None:
            return super().create_url_adapter(None)
        if self._adapter is None:
            self._adapter = self.url_map.bind("")
        return self._adapter

    def request_context(self, request: Any) -> RequestContext:  # noqa: ANN401 - Quart's own types
        """Return the context of a request."""
        return _Context(self, request, _SESSION)

    def ensure_async(self, function: F) -> F:
        """Return ``function``: Quart would inspect it at each call."""
        return function

    async def full_dispatch_request(self, request_context: RequestContext | None = None) -> Any:  # noqa: ANN401 - Quart's own types
        """Return the response of the handler, or of the handler of its error.

        All of them return responses, and only the functions after each request are called.
        """
        response: Any
        try:
            response = await self.dispatch_request(request_context)
        except Exception as error:  # noqa: BLE001 - each has a handler, or is raised again there
            response = await self.handle_user_exception(error)
        for function in reversed(self.after_request_funcs[None]):
            response = await function(response)
        return response
