"""Let browsers post from pages of other origins (CORS_ORIGINS). No I/O.

Source: the Fetch standard, section "HTTP CORS protocol" (fetch.spec.whatwg.org).

A listed origin is repeated in the answer, with ``Vary: Origin``, and may send credentials: browsers
send ``navigator.sendBeacon`` with a JSON Blob only to such a server. ``*`` allows every origin,
without credentials.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_METHODS: Final = "POST, PUT"
_HEADERS: Final = "content-type, content-encoding, idempotency-key, authorization, prefer"
_EXPOSED: Final = "Retry-After, Preference-Applied, WWW-Authenticate"
TEXT_TYPE: Final = "text/plain"
_ORIGIN: Final = re.compile(rb"(?i)\norigin:[ \t]*([!-~]+)[ \t]*\r?\n")
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_MAX_AGE: Final = "7200"
"""Seconds for which a browser may keep the answer to a preflight: 2 h, the limit of Chromium."""


class Cors:
    """The headers for browsers, by the origin of the page."""

    def __init__(self, origins: Sequence[str]) -> None:
        """Allow pages of ``origins``, or of all origins for ``*``."""
        self._any = "*" in origins
        vary = {"Vary": "Origin"}
        self._headers: dict[str, dict[str, str]] = {
            origin: {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Credentials": "true",
                "Access-Control-Expose-Headers": _EXPOSED,
                **vary,
            }
            for origin in origins
        }
        self._of_any = {
            "Access-Control-Allow-Origin": "*",
            "Access-Control-Expose-Headers": _EXPOSED,
        }
        self._of_others = vary
        self._lines = {origin: _lines(headers) for origin, headers in self._headers.items()}
        self._lines_of_any, self._lines_of_others = _lines(self._of_any), _lines(vary)

    def headers(self, origin: str | None) -> Mapping[str, str]:
        """Return the headers of an answer to a page of ``origin``, or to no page.

        An origin that is not listed gets only ``Vary``: the browser then hides the answer.
        """
        if self._any:
            return self._of_any
        return self._headers.get(origin or "", self._of_others)

    def lines(self, origin: str | None) -> bytes:
        """Return the same headers as lines of HTTP/1.1."""
        if self._any:
            return self._lines_of_any
        return self._lines.get(origin or "", self._lines_of_others)

    def preflight(self, origin: str | None) -> Mapping[str, str]:
        """Return the headers of the 204 that answers a preflight (an OPTIONS request)."""
        headers = self.headers(origin)
        if "Access-Control-Allow-Origin" not in headers:
            return headers
        return {
            **headers,
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _HEADERS,
            "Access-Control-Max-Age": _MAX_AGE,
        }


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {text}\r\n" for name, text in headers.items()).encode("ascii")


def origin_in(head: bytes) -> str | None:
    """Return the origin of a request that could not be parsed, None if none has arrived.

    ``head`` is the beginning of the request, which may be incomplete, or longer than its head.
    """
    end = _HEAD_END.search(head)
    found = _ORIGIN.search(head, 0, len(head) if end is None else end.end())
    return None if found is None else found[1].decode("ascii")


def json_for_text(content_type: str | None) -> str | None:
    """Return the type as which a body is read: ``text/plain`` is JSON.

    A browser sends no JSON type without a preflight, and ``navigator.sendBeacon`` with a text has
    the type ``text/plain;charset=UTF-8``. Parameters stay.
    """
    if content_type is None or content_type[: len(TEXT_TYPE)].lower() != TEXT_TYPE:
        return content_type
    return "application/json" + content_type[len(TEXT_TYPE) :]
