"""What S3 answered, and what can be read out of it.

Error bodies are a few elements of XML from a machine that may be broken, or may not be S3
at all. A handful of bounded patterns reads them; an XML parser would bring entities,
encodings and errors of its own for five strings.
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
# A region becomes part of a host name: nothing else may pass.
_REGION_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,30}[a-z0-9]")
_LONGEST_MESSAGE: Final = 300
# A minute more than a store may ask for: a proxy that says 86400 is not obeyed for a day.
_LONGEST_WAIT: Final = 300.0


@dataclass
class Answer:
    """Status, header lines and the beginning of the body."""

    status: int
    lines: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What the request was signed with and no message may repeat."""

    @property
    def stored(self) -> bool:
        """Whether S3 did as asked."""
        return 200 <= self.status < 300  # noqa: PLR2004 - RFC 9110, "Successful 2xx"

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, to be looked up in lower case."""
        return httpx.Headers(self.lines)

    @cached_property
    def code(self) -> str | None:
        """S3's error code; None when the body is not an error of S3's."""
        return _text(_CODE, self.body) if _ERROR.search(self.body) else None

    @property
    def message(self) -> str:
        """What an operator has to know, in one bounded line without control characters."""
        said = html.unescape(_text(_MESSAGE, self.body) or "") if self.code else ""
        said = "".join(char for char in said if char.isprintable())
        said = hide_secrets(said, self.secrets)[:_LONGEST_MESSAGE]
        request_id = self.headers.get("x-amz-request-id", "")[:64]
        parts = (f"HTTP {self.status}", said, request_id and f"request id {request_id}")
        return ", ".join(part for part in parts if part)

    @property
    def region(self) -> str | None:
        """The region that the bucket is in, if the answer says."""
        name = self.headers.get("x-amz-bucket-region") or _text(_REGION, self.body) or ""
        return name if _REGION_NAME.fullmatch(name) else None

    @property
    def time(self) -> float | None:
        """The server's clock as Unix time in seconds, if the answer says."""
        exact = _text(_SERVER_TIME, self.body)
        try:
            if exact is not None:
                return datetime.fromisoformat(exact).astimezone(UTC).timestamp()
            return parsedate_to_datetime(self.headers.get("date", "")).timestamp()
        except (ValueError, OverflowError):
            return None

    @property
    def retry_after(self) -> float | None:
        """The seconds that S3 (x-amz-retry-after, milliseconds) or a proxy asks to wait."""
        for name, unit in (("x-amz-retry-after", 0.001), ("retry-after", 1.0)):
            text = self.headers.get(name, "")
            if re.fullmatch(r"[0-9]{1,12}", text):
                return min(int(text) * unit, _LONGEST_WAIT)
        return None


def _text(pattern: re.Pattern[bytes], body: bytes) -> str | None:
    match = pattern.search(body)
    return match[1].decode("utf-8", "replace") if match else None
