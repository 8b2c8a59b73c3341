"""The Quart-Trio app of the public address: routes, and errors as problem+json."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from msgspec.json import encode
from quart import Response, current_app, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from payloadd.config.stream_names import DEFAULT_STREAM
from payloadd.escaping import escape_controls_in_json
from payloadd.ingress.asgi import App
from payloadd.ingress.auth import token_digest
from payloadd.ingress.body import ACCEPTED_TYPES
from payloadd.ingress.http_grammar import path_of_target
from payloadd.ingress.large_bodies import busy_error
from payloadd.ingress.openapi import render
from payloadd.ingress.operations import OPENAPI_PATH
from payloadd.ingress.problem import (
    CONTENT_TYPE,
    Problem,
    method_not_allowed,
    not_found,
    refusal_problem,
    too_large,
)
from payloadd.ingress.routes import (
    ALLOWED_ON_PAGES,
    ALLOWED_ON_PAYLOADS,
    COLLECTIONS,
    DEFAULT,
    DOCUMENTS,
    METHODS,
    has_odd_slashes,
)
from payloadd.ingress.submission import PostHeaders, closes_connection, internal_error
from payloadd.ingress.waiting_submission import do_nothing, submit_and_wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator
    from contextlib import AbstractContextManager

    from quart_trio import QuartTrio

    from payloadd.config.settings import Settings
    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.routes import Stream
    from payloadd.ingress.server.hypercorn_app import ReceivedBody
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health


def make_app(
    submitter: Submitter, health: Health, refusals: RefusalLog, settings: Settings
) -> QuartTrio:
    """Return the app of the public address.

    ``submitter`` receives the POSTs, ``health`` knows whether the daemon drains, and ``refusals``
    logs the refused requests.
    """
    app = bare_app(health)
    handler = _Handler(submitter)
    for path, post in (
        (COLLECTIONS, handler.post_collection),
        (DOCUMENTS, handler.post_document),
    ):
        for route in (path, f"{path}/<stream>"):
            add_route(app, METHODS, route, post)
            add_route(app, ("OPTIONS",), route, handler.options)
    add_route(app, ("GET",), "/healthz", healthz)
    for path in ("/healthz", OPENAPI_PATH):
        add_route(app, ("OPTIONS",), path, _allow_reads)
    # With AUTH_TOKENS only clients with a token learn which streams there are.
    add_openapi(app, settings, () if submitter.needs_tokens else submitter.routes.names)

    @app.after_request
    async def note_refusal(response: Response) -> Response:
        problem: Problem | None = g.pop("problem", None)
        if problem is not None:
            agent = _header("User-Agent")
            refusals.note(problem, handler.client(), agent, request.method, _path())
        if submitter.cors is not None:
            response.headers.update(submitter.cors.headers(_header("Origin")))
        return response

    return app


async def _allow_reads() -> Response:
    return _no_content({"Allow": ALLOWED_ON_PAGES})


async def healthz() -> Response:
    """Answer 200: the process works."""
    return json_response(200, {"status": "ok"})


class _Handler:
    """Handles the requests with payloads in Quart."""

    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter

    async def post_collection(self, stream: str = DEFAULT_STREAM) -> Response:
        """Accept the payloads of one request, whole or not at all; answer 202, or 201 if stored."""
        return await self._post(stream, document=False)

    async def post_document(self, stream: str = DEFAULT_STREAM) -> Response:
        """Accept a request whose body is one payload."""
        return await self._post(stream, document=True)

    async def options(self, stream: str = DEFAULT_STREAM) -> Response:
        """Answer OPTIONS (RFC 9110, section 9.3.7), which may be the preflight of a browser.

        A stream that is not known gets the same answer: a page sees the 404 of its POST only if the
        browser has sent the POST.
        """
        _refuse_odd_slashes()
        del stream
        headers = {"Allow": ALLOWED_ON_PAYLOADS, "Accept-Post": ACCEPTED_TYPES}
        cors = self._submitter.cors
        if cors is not None:
            headers.update(cors.preflight(_header("Origin")))
        return _no_content(headers)

    async def _post(self, stream: str, *, document: bool) -> Response:
        _refuse_odd_slashes()
        found = self._submitter.routes.stream(stream)
        joined = _joined_headers()
        headers = self._post_headers(joined, document=document, stream=found)
        length = joined.get(b"content-length", b"")
        certificate_name = request.scope.get("state", {}).get("certificate_name")
        name = self._submitter.check(
            headers, token_digest(_text(joined, b"authorization")), certificate_name, self.client
        )
        if length.isdigit() and int(length) > self._submitter.max_length:
            raise too_large(self._submitter.max_length)
        # The body is no local variable: a request that waits for its upload must not keep it.
        answer = await submit_and_wait(
            self._submitter, headers, await self._read_body(), self.client, name, _releasing_body()
        )
        applied = {}
        if answer.waited is not None:
            applied["Preference-Applied"] = f"wait={answer.waited}"
        return Response(answer.body, answer.status, applied, content_type="application/json")

    def client(self) -> str | None:
        """Return the address of the client."""
        peer = _peer()
        if not self._submitter.behind_proxies:
            return peer
        headers = self._post_headers(_joined_headers(), document=False)
        return self._submitter.client_address(peer, headers)

    def _post_headers(
        self, joined: dict[bytes, bytes], *, document: bool, stream: Stream = DEFAULT
    ) -> PostHeaders:
        patterns = self._submitter.kept_headers
        return PostHeaders(
            _text(joined, b"content-type"),
            _text(joined, b"content-encoding"),
            _text(joined, b"idempotency-key"),
            document,
            _text(joined, b"origin"),
            _text(joined, b"x-forwarded-for"),
            _text(joined, b"forwarded"),
            stream,
            self._submitter.waits.seconds_to_wait(_text(joined, b"prefer")),
            None if patterns is None else patterns.select(joined),
        )

    async def _read_body(self) -> bytes:
        """Return the body. Raises Problem TOO_LARGE, TIMEOUT or BUSY.

        Quart's own limit and timeout are not used: a chunked body passes the limit, and the timeout
        starts again with the body. The server sets one deadline for the whole request.
        """
        pieces: list[bytes] = []
        left = self._submitter.max_length
        state = request.scope.get("state", {})
        body: ReceivedBody | None = state.get("body")
        whole = None if body is None else body.receive_whole()
        if whole is not None:
            if len(whole) > left:
                raise too_large(left)
            g.body_is_read = True
            return whole
        reading = trio.CancelScope() if body is None else body.reading
        within: Callable[[trio.CancelScope], AbstractContextManager[object, bool]]
        within = state.get("until_due", self._until_timeout)
        with within(reading):
            async for piece in request.body:
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise too_large(self._submitter.max_length)
            g.body_is_read = True
            return b"".join(pieces)
        if body is not None and body.refused:
            raise refusal_problem(busy_error("too many request bodies at once (MAX_REQUEST_BYTES)"))
        raise self._submitter.timeout_problem()

    @contextmanager
    def _until_timeout(self, scope: trio.CancelScope) -> Iterator[None]:
        """Bound the reading in ``scope`` where the app runs without our server."""
        scope.deadline = trio.current_time() + self._submitter.timeout
        with scope:
            yield


# --- shared by the public and the admin app -----------------------------------------------------


def bare_app(health: Health) -> QuartTrio:
    """Return an app without routes that answers every error with problem+json."""
    app = App("payloadd.ingress", static_folder=None)
    # By default `//healthz` and a trailing slash redirect.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = None
    app.config["PATHS"] = []
    app.config["BODY_TIMEOUT"] = None
    app.config["RESPONSE_TIMEOUT"] = None  # the server bounds each send
    app.register_error_handler(Problem, _on_problem)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_unexpected_error)

    @app.after_request
    async def close_if_last(response: Response) -> Response:
        # HTTP/2 has no such header, and h2 refuses to send it (RFC 9113, section 8.2.2).
        if request.http_version != "2":
            unread_body = _request_has_body() and "body_is_read" not in g
            if closes_connection(health, unread_body=unread_body):
                response.headers["Connection"] = "close"
        return response

    return app


def add_route(
    app: QuartTrio,
    methods: tuple[str, ...],
    path: str,
    handler: Callable[..., Awaitable[Response]],
) -> None:
    """Add a handler for methods of one path; GET includes HEAD, and nothing includes OPTIONS.

    A part ``<name>`` of the path is passed to the handler, percent-decoded, by this name.
    """
    shown = path.replace("<", "{").replace(">", "}")
    if shown not in app.config["PATHS"]:
        app.config["PATHS"].append(shown)
    app.add_url_rule(
        path,
        endpoint=f"{methods[0]} {path}",
        view_func=handler,
        methods=methods,
        provide_automatic_options=False,
    )


def add_openapi(app: QuartTrio, settings: Settings, streams: Collection[str] = ()) -> None:
    """Add the description of all routes that ``app`` has now; it is rendered once.

    ``streams`` are the names of the streams; empty if clients must not learn them.
    """

    async def describe() -> Response:
        return Response(document, 200, content_type="application/json")

    add_route(app, ("GET",), OPENAPI_PATH, describe)
    document = app.config["DESCRIPTION"] = render(app, settings, streams)


def description_of(app: QuartTrio) -> bytes:
    """Return the description that ``add_openapi`` has added."""
    document: bytes = app.config["DESCRIPTION"]
    return document


def json_response(status: int, document: object) -> Response:
    """Return an answer with ``document`` as JSON, invisible characters escaped."""
    body = escape_controls_in_json(encode(document))
    return Response(body, status, content_type="application/json")


def _no_content(headers: dict[str, str]) -> Response:
    """Return a 204, which describes no content (RFC 9110, sections 8.3 and 8.6)."""
    response = Response("", 204, headers)
    for name in ("Content-Type", "Content-Length"):
        response.headers.pop(name, None)
    return response


def _header(name: str) -> str | None:
    """Return a request header, all its lines joined (RFC 9110, section 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _text(joined: dict[bytes, bytes], name: bytes) -> str | None:
    value = joined.get(name)
    return None if value is None else value.decode("latin-1")


def _joined_headers() -> dict[bytes, bytes]:
    """Return all request headers, names in lower case, the lines of each joined."""
    joined: dict[bytes, bytes] = {}
    for name, line in request.scope["headers"]:
        lower = name.lower()
        joined[lower] = b"%b, %b" % (joined[lower], line) if lower in joined else line
    return joined


def _releasing_body() -> Callable[[], object]:
    """Return a function that releases the memory of the request's body.

    It is called outside the context of the request.
    """
    body: ReceivedBody | None = request.scope.get("state", {}).get("body")
    return do_nothing if body is None else body.release


def _peer() -> str | None:
    """Return the address of the peer, or of the client that it states in a PROXY header."""
    stated: str | None = request.scope.get("state", {}).get("stated_address")
    # Quart's address is ``<local>`` on a Unix socket.
    return stated or ("unix" if request.remote_addr == "<local>" else request.remote_addr)


def _path() -> str | None:
    """Return the path; None if the target is a whole URL, which may contain a password."""
    path: str = request.scope["path"]
    return path if path.startswith("/") else None


def _refuse_odd_slashes() -> None:
    """Raise NotFound if the path may mean another one to a proxy (see ``has_odd_slashes``)."""
    if has_odd_slashes(path_of_target(request.scope.get("raw_path", b""))):
        raise NotFound


def _request_has_body() -> bool:
    headers = request.headers
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


async def _on_problem(error: Problem) -> Response:
    g.problem = error  # for the log
    return Response(error.document(), error.status, error.headers, content_type=CONTENT_TYPE)


async def _on_http_exception(error: HTTPException) -> Response:
    """Convert an error of Quart itself into a Problem."""
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        return await _on_problem(method_not_allowed(allowed))
    if isinstance(error, NotFound):
        return await _on_problem(not_found(current_app.config["PATHS"]))
    return await _on_problem(Problem("MALFORMED", error.description or error.name))


async def _on_unexpected_error(error: Exception) -> Response:
    return await _on_problem(internal_error(error))
