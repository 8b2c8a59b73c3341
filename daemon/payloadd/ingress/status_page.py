"""The status page of the admin address, and the figures that it polls.

A page asks for ``/status.json`` every three seconds, and is told when to ask again. Pages beyond
ten are told ten seconds. All pages of a kind get the same document, which is rendered at most once
a second, or every ten seconds. Polls are answered before they reach Quart, which costs more than
all the rest.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from msgspec.json import encode
from quart import Response, request

from payloadd.escaping import escape_controls_in_json
from payloadd.ingress.problem import Problem
from payloadd.observe.status_document import status_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from payloadd.errors import RefusedError
    from payloadd.observe.dead_letter_figures import DeadLetterFigures
    from payloadd.observe.health import Health
    from payloadd.observe.history import History
    from payloadd.observe.status_document import Facts

_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
_STATUS: Final = "/status.json"
_FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", _STYLE),
    "/page/page.js": ("page.js", _SCRIPT),
    "/page/uplot.css": ("uplot.css", _STYLE),
    "/page/uplot.js": ("uplot.js", _SCRIPT),
}
"""The name and the media type of each file, by its path."""
_SECURITY: Final = {
    # uPlot sets styles of elements by script, which style-src does not forbid.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STATUS_HEADERS: Final = {
    **_SECURITY,
    "Cache-Control": "no-store",
    "Content-Type": "application/json",
}
_FEW_PAGES: Final = 10
_POLL_SECONDS: Final = 3
_POLL_SECONDS_OF_MANY: Final = 10
_LARGEST_AGE: Final = {_POLL_SECONDS: 1.0, _POLL_SECONDS_OF_MANY: 10.0}
"""Seconds for which a document is sent, by the seconds after which its pages poll."""
_FORGET_AFTER: Final = 30.0
_MOST_PAGES: Final = 1000
_LONGEST_ID: Final = 40


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows besides the state of the process."""

    history: History
    facts: Facts
    dead_letters: DeadLetterFigures


class StatusPage:
    """Answers the requests of the page."""

    def __init__(
        self,
        health: Health,
        shown: Shown,
        refusal: Callable[[], RefusedError | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show ``shown``; ``refusal`` returns why POSTs are refused."""
        self._health = health
        self._shown = shown
        self._history = shown.history
        self._refusal = refusal
        self._clock = clock
        self._files = {
            name: resources.files("payloadd.ingress").joinpath("page", name).read_bytes()
            for name, _ in _FILES.values()
        }
        self._pages: dict[str, float] = {}
        """The time of the last poll by the id of each open page, in the order of these times."""
        self._frequent: set[str] = set()
        """The ids of the pages that poll every three seconds."""
        self._rendered: dict[int, tuple[float, bytes]] = {}
        """The time and the text of the last document, by the seconds after which its pages poll."""

    def routes(self) -> dict[str, Callable[[], Awaitable[Response]]]:
        """Return the handler of each path."""
        files = {
            path: partial(self._file, name, media_type)
            for path, (name, media_type) in _FILES.items()
        }
        return {**files, _STATUS: self.status}

    async def status(self) -> Response:
        """Answer with the figures, and with the history after the moment ``since``, if given.

        Raises Problem MALFORMED for a ``since`` that is no time.
        """
        return Response(await self._answer(request.query_string), 200, _STATUS_HEADERS)

    def answer_directly(self, app: Any) -> Callable[..., Awaitable[None]]:  # noqa: ANN401 - ASGI
        """Return an ASGI app that answers plain polls itself, and passes the rest to ``app``."""
        headers = [(name.lower().encode(), text.encode()) for name, text in _STATUS_HEADERS.items()]

        async def call(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
            if not self._is_plain_poll(scope):
                await app(scope, receive, send)
                return
            try:
                body = await self._answer(scope["query_string"])
            except Problem:  # Quart has the handler for it
                await app(scope, receive, send)
                return
            await receive()  # the empty body: Hypercorn ends no request before the app has it
            length = (b"content-length", b"%d" % len(body))
            start = {"type": "http.response.start", "status": 200, "headers": [*headers, length]}
            await send(start)
            await send({"type": "http.response.body", "body": body})

        return call

    def _is_plain_poll(self, scope: Any) -> bool:  # noqa: ANN401 - ASGI
        """Return whether nothing but the document has to be sent: no end of the connection."""
        return (
            scope["type"] == "http"
            and scope["path"] == _STATUS
            and scope["method"] == "GET"
            and self._health.phase == "serving"
            and not any(
                name in {b"content-length", b"transfer-encoding"} for name, _ in scope["headers"]
            )
        )

    async def _file(self, name: str, media_type: str) -> Response:
        headers = _SECURITY | {"Cache-Control": "no-cache"}
        return Response(self._files[name], 200, headers, content_type=media_type)

    async def _answer(self, query_string: bytes) -> bytes:
        """Return the document for a query. Raises Problem MALFORMED."""
        query = parse_qs(query_string.decode(errors="replace"))
        since = _moment(query["since"][-1]) if "since" in query else None
        page = query.get("page", [""])[-1][:_LONGEST_ID]
        poll_seconds = self._count_page(page) if page else _POLL_SECONDS
        await self._shown.dead_letters.refresh()
        body = self._document_of_pages(poll_seconds) if page else self._document(poll_seconds)
        if since is not None:
            body = body[:-1] + b',"history":' + encode(self._history.since(since)) + b"}"
        return body

    def _document_of_pages(self, poll_seconds: int) -> bytes:
        """Return the document that all pages get which poll after so many seconds."""
        now = self._clock()
        made, body = self._rendered.get(poll_seconds, (-math.inf, b""))
        if now >= made + _LARGEST_AGE[poll_seconds]:
            body = self._document(poll_seconds)
            self._rendered[poll_seconds] = now, body
        return body

    def _document(self, poll_seconds: int) -> bytes:
        """Return the document of this moment."""
        document = status_document(
            self._health.snapshot(),
            self._shown.facts,
            self._refusal(),
            self._history.since(0),
            self._shown.dead_letters.groups,
        )
        document["poll_seconds"] = poll_seconds
        document["now"] = self._history.now()
        # Numbers that are not finite become null.
        return escape_controls_in_json(encode(document))

    def _count_page(self, page: str) -> int:
        """Note a poll of a page; return the seconds after which it should poll again."""
        now = self._clock()
        self._pages.pop(page, None)
        if len(self._pages) < _MOST_PAGES:
            self._pages[page] = now
        while self._pages and next(iter(self._pages.values())) < now - _FORGET_AFTER:
            closed = next(iter(self._pages))
            del self._pages[closed]
            self._frequent.discard(closed)
        if page in self._pages and len(self._frequent) < _FEW_PAGES:
            self._frequent.add(page)
        return _POLL_SECONDS if page in self._frequent else _POLL_SECONDS_OF_MANY


def _moment(text: str) -> float:
    """Return a Unix time. Raises Problem MALFORMED."""
    try:
        moment = float(text)
    except ValueError:
        moment = math.nan
    if not math.isfinite(moment):
        raise Problem("MALFORMED", "since has to be a Unix time in seconds")
    return moment
