"""Names of objects: the template of ``KEY_TEMPLATE`` and what becomes of it.

A key follows from the id of a job alone (its time of acceptance is in it), so whoever
puts the same job again, after a crash or elsewhere, puts it under the same key. The
prefix of ``STORE_URL`` is added by the store, the compression's suffix by who compresses.
"""

from __future__ import annotations

import re
import socket
import zlib
from datetime import UTC, datetime
from string import Formatter
from typing import TYPE_CHECKING, Any, Final

from payloadd.config.parsers import S3Url
from payloadd.model.formats.ndjson import SUFFIXES

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping

# Field to the most bytes it can take.
_FIELDS: Final = {"date": 10, "hour": 2, "minute": 2, "shard": 2, "id": 36, "host": 64}
_ALLOWED: Final = ", ".join(f"{{{name}}}" for name in _FIELDS)
_LONGEST_KEY: Final = 1024  # bytes of UTF-8: S3, "Object key naming guidelines"
_LONGEST_SEGMENT: Final = 240  # NAME_MAX is 255; FileStore's temporary name takes five more
_LONGEST_SUFFIX: Final = max(map(len, SUFFIXES.values()))
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class KeyTemplate:
    """A key with fields, checked; get one from :meth:`parse`."""

    def __init__(self, parts: list[tuple[str, str | None]], host: str) -> None:
        self._parts = parts
        self._host = host
        self._sharded = any(name == "shard" for _, name in parts)
        self._minute = -1
        self._format = ""

    @classmethod
    def parse(cls, text: str, *, prefix: str = "", host: str | None = None) -> KeyTemplate:
        """Return the template that ``text`` writes; ``{{`` and ``}}`` stand for braces.

        ``prefix`` is the one the store will add: it only counts for the length. ``host`` is
        this machine's name if not given. Raises ValueError that says what is allowed.
        """
        parts = _split(text)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", host or socket.gethostname())
        template = cls(parts, name[: _FIELDS["host"]])
        _check(template._longest(), prefix)
        return template

    def render(self, job_id: uuid.UUID) -> str:
        """Return the key for a UUIDv7; date, hour and minute are its own, in UTC."""
        minute = (job_id.int >> 80) // 60_000
        if minute != self._minute:
            # Nearly all keys of a minute are rendered within it: the time is written once.
            self._format, self._minute = self._for_minute(minute), minute
        fields = {"id": str(job_id)}
        if self._sharded:
            fields["shard"] = f"{zlib.crc32(job_id.bytes) & 0xFF:02x}"
        return self._format % fields

    def _for_minute(self, minute: int) -> str:
        moment = datetime.fromtimestamp(minute * 60, UTC)
        return self._fill(
            {
                "date": moment.strftime("%Y-%m-%d"),
                "hour": moment.strftime("%H"),
                "minute": moment.strftime("%M"),
                "host": self._host,
                "shard": "%(shard)s",
                "id": "%(id)s",
            }.__getitem__,
            lambda literal: literal.replace("%", "%%"),
        )

    def _longest(self) -> str:
        """Return a key as long as any; ``.`` and ``/`` only where the template has them."""
        values = {name: "x" * size for name, size in _FIELDS.items()} | {"host": self._host}
        return self._fill(values.__getitem__, str)

    def _fill(self, value: Callable[[str], str], literal: Callable[[str], str]) -> str:
        return "".join(
            literal(text) + ("" if name is None else value(name)) for text, name in self._parts
        )


def key_problems(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the key template, for ``config.load`` to name with the rest."""
    text, url = values.get("key_template"), values.get("store_url")
    try:
        if text is not None:
            KeyTemplate.parse(text, prefix=url.prefix if isinstance(url, S3Url) else "")
    except ValueError as error:
        return [f"KEY_TEMPLATE: {text!r} is not allowed; allowed is {error}"]
    return []


def is_text(text: str) -> bool:
    """Return whether ``text`` can be written in UTF-8 (no lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(text: str) -> list[tuple[str, str | None]]:
    """Return pairs of literal text and the field after it (None: no field)."""
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{_ALLOWED}, and {{{{ }}}} for braces ({error})") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in _FIELDS or spec or conversion):
            raise ValueError(f"the fields {_ALLOWED}")
    if not any(name == "id" for _, name, _, _ in parsed):
        raise ValueError("a template with {id}: without it objects would overwrite each other")
    return [(literal, name) for literal, name, _, _ in parsed]


def _check(longest: str, prefix: str) -> None:
    segments = longest.split("/")
    if not {"", ".", ".."}.isdisjoint(segments):
        raise ValueError("a key without /, . or .. as a part of its own, at its ends or doubled")
    if not is_text(prefix + longest) or _CONTROL.search(longest):
        raise ValueError("UTF-8 without control characters")
    sizes = [len(segment.encode()) for segment in segments]
    total = len(f"{prefix}/{longest}".lstrip("/").encode()) + _LONGEST_SUFFIX
    if max(sizes) > _LONGEST_SEGMENT or total > _LONGEST_KEY:
        raise ValueError(
            f"at most {_LONGEST_SEGMENT} bytes between slashes and {_LONGEST_KEY} bytes in all,"
            " the prefix of STORE_URL and the longest suffix counted"
        )
