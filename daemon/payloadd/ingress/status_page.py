"""The status page of the admin address, and the figures that it polls.

A page asks for ``/status.json`` every two seconds, and is told when to ask again: beyond ten open
pages every ten seconds, from a document that is rendered once for all of them.
"""

from __future__ import annotations

import time
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Final

from msgspec.json import encode
from quart import Response, request

from payloadd.ingress.problem import Problem
from payloadd.observe.status_document import status_document

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from payloadd.errors import RefusedError
    from payloadd.observe.health import Health
    from payloadd.observe.history import History
    from payloadd.observe.status_document import Facts

_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
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
_FEW_PAGES: Final = 10
_POLL_SECONDS: Final = 2
_POLL_SECONDS_OF_MANY: Final = 10
_FORGET_AFTER: Final = 30.0
_MOST_PAGES: Final = 1000
_LONGEST_ID: Final = 40


class StatusPage:
    """Answers the requests of the page."""

    def __init__(
        self,
        health: Health,
        history: History,
        facts: Facts,
        refusal: Callable[[], RefusedError | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show ``history`` and ``facts``; ``refusal`` returns why POSTs are refused."""
        self._health = health
        self._history = history
        self._facts = facts
        self._refusal = refusal
        self._clock = clock
        self._files = {
            name: resources.files("payloadd.ingress").joinpath("page", name).read_bytes()
            for name, _ in _FILES.values()
        }
        self._pages: dict[str, float] = {}
        """The time of the last poll by the id of each open page."""
        self._rendered: tuple[float, bytes] = (float("-inf"), b"")

    def routes(self) -> dict[str, Callable[[], Awaitable[Response]]]:
        """Return the handler of each path."""
        files = {
            path: partial(self._file, name, media_type)
            for path, (name, media_type) in _FILES.items()
        }
        return {**files, "/status.json": self.status}

    async def status(self) -> Response:
        """Answer with the figures, and with the history after the moment ``since``, if given."""
        poll_after = self._count_page(request.args.get("page", "")[:_LONGEST_ID])
        body = self._document(poll_after)
        since = request.args.get("since")
        if since is not None:
            try:
                samples = self._history.since(float(since))
            except ValueError:
                raise Problem("MALFORMED", "since has to be a Unix time in seconds") from None
            body = body[:-1] + b',"history":' + encode(samples) + b"}"
        return Response(body, 200, _SECURITY | {"Cache-Control": "no-store"}, "application/json")

    async def _file(self, name: str, media_type: str) -> Response:
        headers = _SECURITY | {"Cache-Control": "no-cache"}
        return Response(self._files[name], 200, headers, content_type=media_type)

    def _document(self, poll_after: int) -> bytes:
        """Return the document; for many pages the one that was rendered up to 10 s ago."""
        now = self._clock()
        made, body = self._rendered
        if not body or now - made >= (poll_after if poll_after > _POLL_SECONDS else 0):
            document = status_document(
                self._health.snapshot(), self._facts, self._refusal(), self._history.since(0)
            )
            document["poll_seconds"] = poll_after
            document["now"] = self._history.now()
            body = encode(document)
            self._rendered = now, body
        return body

    def _count_page(self, page: str) -> int:
        """Note a poll of a page; return the seconds after which it should poll again."""
        now = self._clock()
        if page:
            self._pages.pop(page, None)
            if len(self._pages) < _MOST_PAGES:
                self._pages[page] = now
        while self._pages and next(iter(self._pages.values())) < now - _FORGET_AFTER:
            del self._pages[next(iter(self._pages))]
        return _POLL_SECONDS if len(self._pages) <= _FEW_PAGES else _POLL_SECONDS_OF_MANY
