"""Paths of POSTs, and the streams that they name. No I/O.

Both ways in go by the same table: the fast path by whole first lines, so that a request costs one
look-up in a dictionary, and Quart by the name in the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.config.stream_names import DEFAULT_STREAM, NAME_RULE, is_stream_name
from payloadd.ingress.problem import Problem
from payloadd.model.streams import DEFAULT as DEFAULT_NUMBER
from payloadd.observe.request_metrics import OTHER, PAYLOAD, PAYLOADS

if TYPE_CHECKING:
    from collections.abc import Mapping

COLLECTIONS: Final = "/v1/payloads"
DOCUMENTS: Final = "/v1/payload"
METHODS: Final = ("POST", "PUT")
ALLOWED_ON_PAYLOADS: Final = "OPTIONS, POST, PUT"
"""The header Allow of the paths of POSTs."""
ALLOWED_ON_PAGES: Final = "GET, HEAD, OPTIONS"
"""The header Allow of all other paths of the public address."""
_UNKNOWN: Final = -1
_LABELS: Final = {
    COLLECTIONS: PAYLOADS,
    DOCUMENTS: PAYLOAD,
    "/healthz": "healthz",
    "/readyz": "readyz",
    "/metrics": "metrics",
    "/openapi.json": "openapi",
    "": "page",
    "/status.json": "page",
}
"""The labels ``route`` of metrics by path."""
_LABELS_BELOW: Final = {COLLECTIONS: PAYLOADS, DOCUMENTS: PAYLOAD, "/page": "page"}
"""Those of all paths that have one part more."""
_SHOWN_NAME: Final = 80
"""Characters of a stream's name that an answer and a line of the log repeat."""


class Stream(NamedTuple):
    """The stream that a request names; ``number`` is negative for a stream that is not known."""

    name: str
    number: int


DEFAULT: Final = Stream(DEFAULT_STREAM, DEFAULT_NUMBER)


class Route(NamedTuple):
    """A path of POSTs: whether the body is one payload, and the stream."""

    document: bool
    stream: Stream


class Routes:
    """The paths of POSTs for a set of streams; ``streams`` has their numbers by their names."""

    def __init__(self, streams: Mapping[str, int] | None = None) -> None:
        """Make the table; None: the default stream alone."""
        numbers = {DEFAULT_STREAM: 0} if streams is None else streams
        self._streams = {name: Stream(name, number) for name, number in numbers.items()}
        self.first_lines: Mapping[bytes, Route] = {
            f"{method} {path}{name}{slash} HTTP/1.1\r\n".encode("ascii"): Route(
                path == DOCUMENTS, stream
            )
            for name, stream in [("", DEFAULT), *((f"/{one}", self.stream(one)) for one in numbers)]
            for path in (COLLECTIONS, DOCUMENTS)
            for method in METHODS
            for slash in ("", "/")
        }
        """The routes by the first lines of their HTTP/1.1 requests."""

    @property
    def names(self) -> frozenset[str]:
        """The names of the streams."""
        return frozenset(self._streams)

    def stream(self, name: str) -> Stream:
        """Return the stream with a name, which may be any text."""
        return self._streams.get(name) or Stream(name, _UNKNOWN)


def has_odd_slashes(raw_path: bytes) -> bool:
    """Return whether a path has a percent-encoded slash, or begins with two slashes.

    An encoded slash is data and no delimiter (RFC 3986, section 2.2), but it is decoded before the
    path is compared, and further slashes at the beginning are ignored. So the path would mean
    another one than to a proxy that checks paths.
    """
    return b"%2f" in raw_path.lower() or raw_path.startswith(b"//")


def route_label(path: str) -> str:
    """Return the label ``route`` of a path in metrics, one of a fixed set.

    The path may be any text. All streams have the label of the path without a stream.
    """
    path = path.removesuffix("/")
    return _LABELS.get(path) or _LABELS_BELOW.get(path.rpartition("/")[0], OTHER)


def unknown_stream(name: str) -> Problem:
    """Return the 404 for a stream that is not known; ``name`` may be any text."""
    detail = f"there is no stream {name[:_SHOWN_NAME]!r}"
    if is_stream_name(name):
        detail += "; to add it, the operator lists it in STREAMS and restarts the daemon"
    else:
        detail += f", and no stream can have this name ({NAME_RULE})"
    return Problem("UNKNOWN_STREAM", detail)
