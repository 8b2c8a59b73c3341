"""The operations of both addresses: what a client sends, and the codes that it may get. No I/O.

``/openapi.json`` is made of this table, of the routes of an app and of the settings. The tests
compare each answer that they see with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from payloadd.ingress.problem import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from payloadd.config.settings import Settings

OPENAPI_PATH: Final = "/openapi.json"
METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus's text format. Not prometheus_client's constant, which changes with its version."""


class Operation(NamedTuple):
    """What the methods of one path do."""

    name: str
    """The end of the ``operationId``, after the method."""
    summary: str
    description: str
    codes: frozenset[str]
    """The codes of problems besides those of every request."""
    answer: Literal["Receipt", "Health", "Readiness", "Metrics", "Figures", "Description"]
    """The schema of an answer that is no problem."""
    body: Literal["collection", "document"] | None = None
    """The form of the body of a request; None: it has none."""
    problem: Literal["Problem", "Unready"] = "Problem"
    """The schema of a problem."""


EVERY_REQUEST: Final = frozenset({"MALFORMED", "TIMEOUT", "INTERNAL", "DRAINING"})
"""Codes that a request of every operation may get: invalid HTTP, slow input, a bug, a drain."""
NO_OPERATION: Final = frozenset({"NOT_FOUND", "METHOD_NOT_ALLOWED"})
"""Codes of requests with an unknown path, or a method that the path does not have."""
_JOURNAL: Final = frozenset({"QUEUE_FULL", "JOURNAL_FULL", "DISK_ERROR", "STORE_UNAVAILABLE"})
_POST: Final = _JOURNAL | {
    "STORE_REFUSED",
    *("UNAUTHENTICATED", "FORBIDDEN", "RATE_LIMITED", "UNKNOWN_STREAM", "BUSY"),
    *("TOO_LARGE", "UNSUPPORTED_TYPE", "UNSUPPORTED_ENCODING", "KEY_REUSED"),
}

OPERATIONS: Final[Mapping[str, Operation]] = {
    "/v1/payloads": Operation(
        "Collection",
        "Store the payloads of a collection",
        "The request is accepted whole or not at all. After the answer the payloads are durable,"
        " and each of them will be in the store once. PUT does the same as POST.",
        _POST | {"NOT_A_COLLECTION"},
        "Receipt",
        "collection",
    ),
    "/v1/payload": Operation(
        "Document",
        "Store a JSON document as one payload",
        "After the answer the payload is durable, and it will be in the store once. PUT does the"
        " same as POST.",
        _POST,
        "Receipt",
        "document",
    ),
    "/healthz": Operation("Health", "Learn whether the process works", "", frozenset(), "Health"),
    "/readyz": Operation(
        "Readiness",
        "Learn whether payloads are accepted",
        "A trouble is a condition that an operator has to fix. A trouble of the store alone causes"
        " no 503: requests are still accepted, but with DURABILITY=store.",
        _JOURNAL | {"STARTING"},
        "Readiness",
        problem="Unready",
    ),
    "/metrics": Operation(
        "Metrics", "Read the metrics in Prometheus's text format", "", frozenset(), "Metrics"
    ),
    "/status.json": Operation(
        "Figures",
        "Read the figures of the status page",
        "With `since`, a Unix time in seconds, the answer has the samples of the plots after it.",
        frozenset(),
        "Figures",
    ),
    OPENAPI_PATH: Operation("Description", "Read this description", "", frozenset(), "Description"),
}
"""The operations by their path; those of the default stream are those of all streams."""


def is_file_of_page(path: str) -> bool:
    """Return whether a path is the status page or a file of it, which programs do not read."""
    return path == "/" or path.startswith("/page/")


_CONDITIONS: Final[Mapping[str, Callable[[Settings], bool]]] = {
    "UNAUTHENTICATED": lambda settings: settings.auth_tokens is not None,
    "FORBIDDEN": lambda settings: settings.auth_tokens is not None,
    "RATE_LIMITED": lambda settings: settings.rate_limit is not None,
    "QUEUE_FULL": lambda settings: settings.durability != "disk",
    "JOURNAL_FULL": lambda settings: settings.durability == "disk",
    "DISK_ERROR": lambda settings: settings.durability == "disk",
    "STORE_UNAVAILABLE": lambda settings: settings.durability == "store",
    "STORE_REFUSED": lambda settings: settings.durability == "store",
}
"""Whether a code is possible with these settings; codes without an entry always are."""


def possible_codes(operation: Operation, settings: Settings, *, of_stream: bool) -> list[str]:
    """Return the codes of problems that an operation may have, in the order of ``KINDS``.

    ``of_stream``: the path names a stream.
    """
    codes = operation.codes | EVERY_REQUEST
    return [
        code
        for code in KINDS
        if code in codes
        and (of_stream or code != "UNKNOWN_STREAM")
        and (code not in _CONDITIONS or _CONDITIONS[code](settings))
    ]
