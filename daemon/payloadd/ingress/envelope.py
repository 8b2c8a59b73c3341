"""Make the envelope of a request (ENVELOPE): where its payloads came from. No I/O.

A header with credentials is never part of it. A pattern with ``*`` leaves out the headers that
often contain a secret, too; to store such a header, the operator has to write its whole name.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from msgspec.json import encode

from payloadd.config.envelope import is_credential
from payloadd.escaping import escape_controls_in_json
from payloadd.model.envelope import Envelope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from payloadd.config.envelope import EnvelopeFields

_SECRET: Final = re.compile(r"token|secret|passw|api-?key|credential|session")
"""Parts of the names of headers that often contain a secret."""


class HeaderPatterns:
    """The headers that become a part of the envelope."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Match the names of headers, in lower case, in which ``*`` stands for any characters."""
        names = [pattern for pattern in patterns if "*" not in pattern]
        self._names = frozenset(names)
        wild = [
            ".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns if "*" in pattern
        ]
        self._wild = re.compile("|".join(wild)) if wild else None

    def matches(self, name: str) -> bool:
        """Return whether the header ``name``, in lower case, is a part of the envelope."""
        if name in self._names:
            return True
        return (
            self._wild is not None
            and self._wild.fullmatch(name) is not None
            and not is_credential(name)
            and _SECRET.search(name) is None
        )

    def select(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the matching ones of ``headers``, names in lower case, as a JSON object.

        Their order stays. A value that is not UTF-8 is read as Latin-1.
        """
        found = {
            text: _text(value)
            for name, value in headers.items()
            if self.matches(text := name.decode("latin-1"))
        }
        return escape_controls_in_json(encode(found)) if found else b"{}"


class EnvelopeMaker:
    """Makes the envelopes of all requests."""

    def __init__(self, fields: EnvelopeFields, clock: Callable[[], int] = time.time_ns) -> None:
        """Include ``fields``; ``clock`` returns Unix time in nanoseconds."""
        self._fields = fields
        self._clock = clock
        self.headers = HeaderPatterns(fields.headers) if fields.headers else None
        """The headers that are included, None without any."""

    def make(
        self,
        address: Callable[[], str | None],
        name: str | None,
        stream: str,
        headers: bytes | None,
    ) -> Envelope:
        """Return the envelope of a request that is received now.

        ``address`` returns the client's address. ``name`` is the name of the client's token or
        certificate, and ``headers`` is the result of ``HeaderPatterns.select``.
        """
        fields = self._fields
        text = b"{"
        if fields.received_at:
            milliseconds = self._clock() // 1_000_000
            text += b'"received_at":"%b.%03dZ",' % (
                _second(milliseconds // 1000),
                milliseconds % 1000,
            )
        if fields.client:
            text += b'"client":%b,' % _json(address())
        if fields.name:
            text += b'"name":%b,' % _json(name)
        if fields.stream:
            text += b'"stream":%b,' % _json(stream)
        if fields.headers:
            text += b'"headers":%b,' % (headers or b"{}")
        return Envelope(text + b'"payload":')


@lru_cache(maxsize=1024)
def _json(text: str | None) -> bytes:
    """Return a text as JSON, its invisible characters escaped."""
    return escape_controls_in_json(encode(text))


@lru_cache(maxsize=2)
def _second(second: int) -> bytes:
    """Return a second of Unix time as in RFC 3339, without an offset."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode("ascii")


def _text(value: bytes) -> str:
    value = value.strip(b" \t")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
