"""The routes and the fixed answers of the public address by request target. No I/O.

The usual first lines of POSTs are found in ``Routes.first_lines``. This module finds all others, in
the way in which Hypercorn, Quart and werkzeug do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from payloadd.config.stream_names import DEFAULT_STREAM
from payloadd.ingress.body import ACCEPTED_TYPES
from payloadd.ingress.fastpath.answers import FixedAnswer
from payloadd.ingress.http_grammar import path_of_target
from payloadd.ingress.operations import OPENAPI_PATH
from payloadd.ingress.problem import Problem, method_not_allowed, not_found
from payloadd.ingress.routes import (
    ALLOWED_ON_PAGES,
    ALLOWED_ON_PAYLOADS,
    COLLECTIONS,
    DOCUMENTS,
    METHODS,
    Route,
    has_odd_slashes,
    route_label,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.ingress.routes import Routes

Reply = FixedAnswer | Callable[[], Problem]
"""The answer to a request whose body is not read: a page, or a function that makes a problem."""

_HEALTH_PATH: Final = "/healthz"
PATHS: Final = (
    *(COLLECTIONS, f"{COLLECTIONS}/{{stream}}", DOCUMENTS, f"{DOCUMENTS}/{{stream}}"),
    *(_HEALTH_PATH, OPENAPI_PATH),
)
"""The paths of the public address, as a 404 names them."""
_JSON: Final = {"Content-Type": "application/json"}
_OPTIONS_OF_PAYLOADS: Final = FixedAnswer(
    204, {"Allow": ALLOWED_ON_PAYLOADS, "Accept-Post": ACCEPTED_TYPES}, b"", preflight=True
)
_OPTIONS_OF_PAGES: Final = FixedAnswer(204, {"Allow": ALLOWED_ON_PAGES}, b"")


class Targets:
    """The targets of the public address; ``description`` is the document of ``/openapi.json``."""

    def __init__(self, routes: Routes, description: bytes) -> None:
        self._routes = routes
        self._pages: Mapping[str, FixedAnswer] = {
            _HEALTH_PATH: FixedAnswer(200, _JSON, b'{"status":"ok"}'),
            OPENAPI_PATH: FixedAnswer(200, _JSON, description),
        }

    def find(self, method: str, target: bytes) -> tuple[Route | Reply, str]:
        """Return the route of a POST, or the answer to any other request; and its label.

        ``method`` is in upper case. The label is that of metrics (see ``route_label``).
        """
        raw = path_of_target(target)
        path = unquote(raw.decode("ascii"))
        return self._find(method, raw, path), route_label(path)

    def _find(self, method: str, raw: bytes, path: str) -> Route | Reply:
        # Werkzeug ignores further slashes at the beginning, and one at the end.
        path = "/" + path.lstrip("/").removesuffix("/")
        page = self._pages.get(path)
        if page is not None:
            return _read_page(page, method)
        head, slash, last = path.rpartition("/")
        if path in _WRITE_PATHS:
            document, stream = path == DOCUMENTS, DEFAULT_STREAM
        elif head in _WRITE_PATHS and last and slash:
            document, stream = head == DOCUMENTS, last
        else:
            return _not_found
        if method not in {*METHODS, "OPTIONS"}:
            return partial(method_not_allowed, ALLOWED_ON_PAYLOADS)
        if has_odd_slashes(raw):
            return _not_found
        if method == "OPTIONS":
            return _OPTIONS_OF_PAYLOADS
        return Route(document, self._routes.stream(stream))


_WRITE_PATHS: Final = frozenset({COLLECTIONS, DOCUMENTS})


def _read_page(page: FixedAnswer, method: str) -> Reply:
    if method in {"GET", "HEAD"}:
        return page
    return (
        _OPTIONS_OF_PAGES if method == "OPTIONS" else partial(method_not_allowed, ALLOWED_ON_PAGES)
    )


def _not_found() -> Problem:
    return not_found(PATHS)
