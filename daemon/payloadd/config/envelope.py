"""The setting ENVELOPE: what is stored around each payload."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_FIELDS: Final = ("received_at", "client", "name", "stream")
_HEADERS: Final = "headers:"
_PATTERN: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,256}")
"""The name of a header (RFC 9110, section 5.1) in lower case, or a pattern with ``*``."""
_CREDENTIALS: Final = re.compile(r"(.*authorization|(set-)?cookie2?)")
"""Headers that contain credentials by their definition, and their usual copies by proxies."""
_ALLOWED: Final = (
    "a comma list of received_at, client, name, stream and headers:PATTERN"
    " (a header's name; * in it stands for any characters)"
)


@dataclass(frozen=True, slots=True)
class EnvelopeFields:
    """The members of the envelope; ``payload`` is always the last one."""

    received_at: bool
    client: bool
    name: bool
    stream: bool
    headers: tuple[str, ...]
    """Patterns of the names of headers, in lower case; none: there is no member ``headers``."""


def envelope(text: str) -> EnvelopeFields:
    """Parse a comma list of the members of the envelope."""
    found: list[str] = []
    patterns: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        if item in found:
            raise ValueError(f"{_ALLOWED}, each once; {item!r} is there twice")
        if item.startswith(_HEADERS):
            patterns.append(_header_pattern(item.removeprefix(_HEADERS).strip().lower()))
        elif item not in _FIELDS:
            raise ValueError(f"{_ALLOWED}; {item!r} is none of them")
        found.append(item)
    return EnvelopeFields(
        received_at="received_at" in found,
        client="client" in found,
        name="name" in found,
        stream="stream" in found,
        headers=tuple(patterns),
    )


def _header_pattern(pattern: str) -> str:
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(f"{_ALLOWED}; {pattern!r} cannot be a header's name")
    if is_credential(pattern):
        raise ValueError(
            f"any header but {pattern}, which contains credentials: they would be stored with each"
            " payload, where others may read them (headers:* leaves it out)"
        )
    return pattern


def is_credential(header: str) -> bool:
    """Return whether a header, in lower case, always contains credentials."""
    return _CREDENTIALS.fullmatch(header) is not None
