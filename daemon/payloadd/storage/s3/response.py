"""The response of S3, and the values that the store reads from it.

An error document is a few elements of XML. Its sender may be broken, or may not be S3 at all. A few
bounded patterns read it: an XML parser would add entities, encodings and errors of its own for five
strings.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import TYPE_CHECKING, Final

import httpx

from payloadd.redaction import hide_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ERROR: Final = re.compile(rb"<Error[\s>]")
_CODE: Final = re.compile(rb"<Code>\s*([A-Za-z0-9._:-]{1,64})\s*</Code>")
_MESSAGE: Final = re.compile(rb"<Message>([^<]{1,1000})</Message>")
_REGION: Final = re.compile(rb"<Region>\s*([^<]{1,64}?)\s*</Region>")
_SERVER_TIME: Final = re.compile(rb"<ServerTime>\s*([0-9TZ:.-]{20,32})\s*</ServerTime>")
_REGION_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}[a-z0-9]")
"""A region becomes a part of a host name: nothing else may match."""
_LONGEST_MESSAGE: Final = 300
_LONGEST_WAIT: Final = 300.0
"""Seconds that a store may ask to wait at most: a proxy that sends 86400 must not stop uploads for
a day."""


@dataclass
class S3Response:
    """The status, the header lines and the beginning of the body of a response."""

    status: int
    header_lines: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The secrets that signed the request; no message may repeat them."""
    repeated: bool = False
    """Whether the transport sent the request twice; the first one may have been carried out."""

    @property
    def successful(self) -> bool:
        """Whether the status says success; of a PUT that alone is no confirmation."""
        return 200 <= self.status < 300  # noqa: PLR2004 - RFC 9110, "Successful 2xx"

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers; names are in lower case."""
        return httpx.Headers(self.header_lines)

    @cached_property
    def code(self) -> str | None:
        """The error code of S3; None if the body is no error document of S3."""
        return _text(_CODE, self.body) if _ERROR.search(self.body) else None

    @property
    def message(self) -> str:
        """Status, message and request id for the operator: one line of bounded length."""
        text = html.unescape(_text(_MESSAGE, self.body) or "") if self.code else ""
        text = "".join(char for char in text if char.isprintable())
        text = hide_secrets(text, self.secrets)[:_LONGEST_MESSAGE]
        request_id = self.headers.get("x-amz-request-id", "")[:64]
        parts = (f"HTTP {self.status}", text, request_id and f"request id {request_id}")
        return ", ".join(part for part in parts if part)

    @property
    def region(self) -> str | None:
        """The region of the bucket; None if the response does not name it."""
        name = self.headers.get("x-amz-bucket-region") or _text(_REGION, self.body) or ""
        return name if _REGION_NAME.fullmatch(name) else None

    @property
    def server_time(self) -> float | None:
        """The clock of the server as Unix time in seconds; None if the response has no time."""
        exact = _text(_SERVER_TIME, self.body)
        try:
            if exact is not None:
                return datetime.fromisoformat(exact).astimezone(UTC).timestamp()
            return parsedate_to_datetime(self.headers.get("date", "")).timestamp()
        except (ValueError, OverflowError):
            return None

    @property
    def retry_after(self) -> float | None:
        """The seconds to wait, at most 300; None if the response does not ask for a wait.

        S3 sends ``x-amz-retry-after`` in milliseconds, a proxy ``retry-after`` in seconds (RFC
        9110, section 10.2.3; its form with a date is ignored).
        """
        for name, unit in (("x-amz-retry-after", 0.001), ("retry-after", 1.0)):
            text = self.headers.get(name, "")
            if re.fullmatch(r"[0-9]{1,12}", text):
                return min(int(text) * unit, _LONGEST_WAIT)
        return None


def _text(pattern: re.Pattern[bytes], body: bytes) -> str | None:
    match = pattern.search(body)
    return match[1].decode("utf-8", "replace") if match else None
