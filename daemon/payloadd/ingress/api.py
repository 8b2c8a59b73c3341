"""The Quart-Trio app of the public address: routes, and errors as problem+json."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from msgspec.json import encode
from quart import Response, g, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from payloadd.escaping import escape_controls_in_json
from payloadd.ingress.large_bodies import busy
from payloadd.ingress.problem import CONTENT_TYPE, Problem, refused, too_large
from payloadd.ingress.submission import PostHeaders, bug, closes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager

    from payloadd.ingress.refusal_log import RefusalLog
    from payloadd.ingress.server.hypercorn_app import ReceivedBody
    from payloadd.ingress.submission import Submitter
    from payloadd.observe.health import Health


def make_app(submitter: Submitter, health: Health, refusals: RefusalLog) -> QuartTrio:
    """Return the app of the public address."""
    app = bare_app(health)
    handler = _Handler(submitter)
    add_route(app, "POST", "/v1/payloads", handler.post_payloads)
    add_route(app, "GET", "/healthz", healthz)

    @app.after_request
    async def note_refusal(response: Response) -> Response:
        problem: Problem | None = g.pop("problem", None)
        if problem is not None:
            agent = _header("User-Agent")
            refusals.note(problem, _client(), agent, request.method, _path())
        return response

    return app


async def healthz() -> Response:
    """Answer that the process works."""
    return json_response(200, {"status": "ok"})


class _Handler:
    """``POST /v1/payloads`` by way of Quart."""

    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter

    async def post_payloads(self) -> Response:
        """Take the payloads of one request, whole or not at all; 202 with the request's id."""
        headers = PostHeaders(
            _header("Content-Type"), _header("Content-Encoding"), _header("Idempotency-Key")
        )
        if {"Transfer-Encoding", "Content-Length"} <= set(request.headers.keys()):
            # h11 believes the first; a proxy that believes the other is smuggled a request.
            detail = "Transfer-Encoding and Content-Length are both there"
            raise Problem("MALFORMED", detail, {"Connection": "close"})
        self._submitter.check(headers)
        if (request.content_length or 0) > self._submitter.max_length:
            raise too_large(self._submitter.max_length)
        body = await self._read_body()
        answer = await self._submitter.take(headers, body, _client())
        return Response(answer, 202, content_type="application/json")

    async def _read_body(self) -> bytes:
        """Return the body; raises Problem TOO_LARGE, TIMEOUT or BUSY.

        Quart's own limit and timeout are not used: a chunked body passes the first, and the
        second starts anew with the body. The server says by when the whole request is due.
        """
        pieces: list[bytes] = []
        left = self._submitter.max_length
        state = request.scope.get("state", {})
        body: ReceivedBody | None = state.get("body")
        reading = trio.CancelScope() if body is None else body.reading
        within: Callable[[trio.CancelScope], AbstractContextManager[object, bool]]
        within = state.get("until_due", self._in_time)
        with within(reading):
            async for piece in request.body:
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise too_large(self._submitter.max_length)
            return b"".join(pieces)
        if body is not None and body.refused:
            problem = refused(busy("too many request bodies at once (MAX_REQUEST_BYTES)"))
            if request.http_version != "2":
                problem.headers["Connection"] = "close"  # the rest of the body is not read
            raise problem
        raise self._submitter.too_slow()

    @contextmanager
    def _in_time(self, scope: trio.CancelScope) -> Iterator[None]:
        """Run the body in ``scope`` where no server of ours keeps the time."""
        scope.deadline = trio.current_time() + self._submitter.timeout
        with scope:
            yield


# --- what both addresses share -----------------------------------------------------------------


def bare_app(health: Health) -> QuartTrio:
    """Return an app without routes: every path is an error, every error problem+json."""
    app = QuartTrio("payloadd.ingress", static_folder=None)
    app.url_map.merge_slashes = False  # by default `//healthz` redirects
    app.config["MAX_CONTENT_LENGTH"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["RESPONSE_TIMEOUT"] = None  # bounded below, send by send
    app.register_error_handler(Problem, _on_problem)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_bug)

    @app.after_request
    async def close_where_due(response: Response) -> Response:
        # HTTP/2 has no such header, and h2 refuses to send it (RFC 9113, section 8.2.2).
        if request.http_version != "2" and closes(
            health, response.status_code, has_body=_request_has_body()
        ):
            response.headers["Connection"] = "close"
        return response

    return app


def add_route(
    app: QuartTrio, method: str, path: str, handler: Callable[[], Awaitable[Response]]
) -> None:
    """Route one method of one path; OPTIONS is not answered by itself."""
    app.add_url_rule(
        path,
        endpoint=f"{method} {path}",
        view_func=handler,
        methods=[method],
        provide_automatic_options=False,
    )


def json_response(status: int, document: object) -> Response:
    """Return an answer with a JSON document."""
    body = escape_controls_in_json(encode(document))
    return Response(body, status, content_type="application/json")


def _header(name: str) -> str | None:
    """Return a request header, all its lines joined (RFC 9110, section 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _client() -> str | None:
    """Return the client's address; Quart's is ``<local>`` on a Unix socket."""
    address = request.remote_addr
    return "unix" if address == "<local>" else address


def _path() -> str | None:
    """Return the path; None where the target is a whole URL, which may have a password in it."""
    path: str = request.scope["path"]
    return path if path.startswith("/") else None


def _request_has_body() -> bool:
    headers = request.headers
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


async def _on_problem(error: Problem) -> Response:
    g.problem = error  # for the log
    return Response(error.document(), error.status, error.headers, content_type=CONTENT_TYPE)


async def _on_http_exception(error: HTTPException) -> Response:
    """Turn what Quart itself says into ours."""
    if isinstance(error, MethodNotAllowed):
        allowed = ", ".join(sorted(error.valid_methods or ()))
        return await _on_problem(
            Problem("METHOD_NOT_ALLOWED", f"allowed here: {allowed}", {"Allow": allowed})
        )
    if isinstance(error, NotFound):
        return await _on_problem(Problem("NOT_FOUND", "see the documentation for what there is"))
    return await _on_problem(Problem("MALFORMED", error.description or error.name))


async def _on_bug(error: Exception) -> Response:
    return await _on_problem(bug(error))
