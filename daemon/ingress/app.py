"""The Quart-Trio app of the public address: routes, and errors as problem+json."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Final

import trio
from msgspec.json import encode
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from daemon.errors import RefusedError, TooLargeError
from daemon.ingress import body
from daemon.ingress.problem import CONTENT_TYPE, Problem, refused
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prometheus_client import Counter

    from daemon.config import Settings
    from daemon.health import Health
    from daemon.metrics import Metrics
    from daemon.pipeline.intake import Intake

log = get_logger(__name__)

# Errors that can be known before the body has been read. A connection on which the rest of a
# body may still come is of no use for another request.
_EARLY: Final = frozenset({404, 405, 408, 413, 415})
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def make_app(intake: Intake, health: Health, metrics: Metrics, settings: Settings) -> QuartTrio:
    """Return the app of the public address."""
    app = bare_app(health)
    door = _Door(intake, health, settings)
    add_route(app, "POST", "/v1/payloads", door.post_payloads)
    add_route(app, "GET", "/healthz", healthz)
    # One child per status is looked up once: `labels` costs more than all else here.
    counter_of = cache(lambda status: metrics.requests.labels(code=str(status)))

    @app.after_request
    async def count(response: Response) -> Response:
        counter: Counter = counter_of(response.status_code)
        counter.inc()
        return response

    return app


async def healthz() -> Response:
    """Answer that the process works."""
    return json_response(200, {"status": "ok"})


class _Door:
    """What ``POST /v1/payloads`` needs beside the request."""

    def __init__(self, intake: Intake, health: Health, settings: Settings) -> None:
        self._intake = intake
        self._health = health
        self._durable = settings.durability == "disk"
        self._max_length = settings.max_length
        self._timeout = settings.request_timeout

    async def post_payloads(self) -> Response:
        """Take the payloads of one request, whole or not at all; 202 with the request's id."""
        content = _header("Content-Type"), _header("Content-Encoding")
        self._refuse_early(*content)
        payloads = body.decode(await self._read_body(), *content, self._max_length)
        receipt = await self._intake.accept(payloads, _idempotency_key())
        return json_response(202, {"id": str(receipt.id), "accepted": receipt.payloads})

    def _refuse_early(self, content_type: str | None, content_encoding: str | None) -> None:
        """Raise what is known before the body has been read."""
        # What is on disk outlives the drain: nobody has to be turned away for a restart.
        draining = self._health.phase == "draining"
        if draining and not self._durable and (refusal := self._intake.refusal()):
            raise refusal
        if {"Transfer-Encoding", "Content-Length"} <= set(request.headers.keys()):
            # h11 believes the first; a proxy that believes the other is smuggled a request.
            detail = "Transfer-Encoding and Content-Length are both there"
            raise Problem("MALFORMED", detail, {"Connection": "close"})
        body.check_headers(content_type, content_encoding)
        if (request.content_length or 0) > self._max_length:
            raise body.too_large(self._max_length)

    async def _read_body(self) -> bytes:
        """Return the body; raises Problem TOO_LARGE or TIMEOUT.

        Quart's own limit and timeout are not used: a chunked body passes the first, and the
        second starts anew with the body. The server says by when the whole request is due.
        """
        pieces: list[bytes] = []
        left = self._max_length
        due = request.scope.get("state", {}).get("due", trio.current_time() + self._timeout)
        with trio.move_on_at(due):
            async for piece in request.body:
                pieces.append(piece)
                left -= len(piece)
                if left < 0:
                    raise body.too_large(self._max_length)
            return b"".join(pieces)
        raise Problem("TIMEOUT", f"the request took longer than {self._timeout:g} seconds")


# --- what both addresses share -----------------------------------------------------------------


def bare_app(health: Health) -> QuartTrio:
    """Return an app without routes: every path is an error, every error problem+json."""
    app = QuartTrio("daemon.ingress", static_folder=None)
    app.url_map.merge_slashes = False  # by default `//healthz` redirects
    app.config["MAX_CONTENT_LENGTH"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["RESPONSE_TIMEOUT"] = None  # the stream below bounds every send
    app.register_error_handler(Problem, _on_problem)
    app.register_error_handler(RefusedError, _on_refused)
    app.register_error_handler(TooLargeError, _on_too_large)
    app.register_error_handler(HTTPException, _on_http_exception)
    app.register_error_handler(Exception, _on_bug)

    @app.after_request
    async def close_where_due(response: Response) -> Response:
        # HTTP/2 has no such header, and h2 refuses to send it (RFC 9113, section 8.2.2).
        if request.http_version != "2" and (health.phase == "draining" or _body_may_come(response)):
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
    return Response(encode(document), status, content_type="application/json")


def _header(name: str) -> str | None:
    """Return a request header, all its lines joined (RFC 9110, section 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


def _idempotency_key() -> str | None:
    """Return the request's Idempotency-Key, None without one; raises Problem MALFORMED."""
    key = _header("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise Problem("MALFORMED", "Idempotency-Key: allowed are 1 to 255 visible ASCII characters")
    return key


def _body_may_come(response: Response) -> bool:
    headers = request.headers
    return response.status_code in _EARLY and (
        "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"
    )


async def _on_problem(error: Problem) -> Response:
    return Response(error.document(), error.status, error.headers, content_type=CONTENT_TYPE)


async def _on_refused(error: RefusedError) -> Response:
    return await _on_problem(refused(error))


async def _on_too_large(error: TooLargeError) -> Response:
    return await _on_problem(Problem("TOO_LARGE", str(error)))


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
    log.error("request_failed", exc_info=error)
    return await _on_problem(Problem("INTERNAL", "this is a bug; the log has more"))
