"""Keys of objects: the template of ``KEY_TEMPLATE`` and the keys it makes.

A key depends on the id of a job alone, which contains the time of acceptance: the same job gets the
same key again after a crash. The store puts the prefix of ``STORE_URL`` before the key;
:mod:`payloadd.model.layout` puts the suffix of the object's format behind it.
"""

from __future__ import annotations

import re
import socket
import zlib
from datetime import UTC, datetime
from string import Formatter
from typing import TYPE_CHECKING, Any, Final

from payloadd.config.daemon_settings import KEY_TEMPLATE
from payloadd.config.parsers import S3Url
from payloadd.config.reasons import is_unicode
from payloadd.config.stream_names import DEFAULT_STREAM
from payloadd.model.formats import FORMATS
from payloadd.model.job import accepted_at, id_text

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Mapping

_FIELDS: Final = {
    "stream": 63,
    "date": 10,
    "hour": 2,
    "minute": 2,
    "shard": 2,
    "id": 36,
    "host": 64,
}
"""The fields of a template, and the most bytes that the value of each has."""
_PERIODS: Final = {"date": 86_400_000, "hour": 3_600_000, "minute": 60_000}
"""The fields of time, and the milliseconds for which the value of each stays the same."""
_ALLOWED: Final = ", ".join(f"{{{name}}}" for name in _FIELDS)
_LONGEST_KEY: Final = 1024  # bytes of UTF-8: S3, "Object key naming guidelines"
_SUFFIX: Final = ".ndjson"  # the default template has none with OBJECT_FORMAT=parquet
_LONGEST_SEGMENT: Final = 240  # NAME_MAX is 255; FileStore's temporary name takes five more
_LONGEST_SUFFIX: Final = max(len(one.suffix) for one in FORMATS.values())
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class KeyTemplate:
    """A checked template of keys; :meth:`parse` makes one."""

    def __init__(self, parts: list[tuple[str, str | None]], host: str, stream: str) -> None:
        self._parts = parts
        self._host = host
        self._stream = stream
        self._sharded = any(name == "shard" for _, name in parts)
        self.period = min((_PERIODS[name] for _, name in parts if name in _PERIODS), default=0)
        """Milliseconds after which keys have another time in them; 0 if they have none.

        Counted from 1970 on: days, hours and minutes in UTC have no leap seconds.
        """
        self._minute = -1.0
        self._format = ""

    @classmethod
    def parse(
        cls, text: str, *, host: str | None = None, stream: str = DEFAULT_STREAM
    ) -> KeyTemplate:
        """Return the template in ``text``, in which ``{{`` and ``}}`` stand for braces.

        ``host`` is this machine's name by default, and ``stream`` the name of the stream. Raises
        ValueError, whose message names the allowed values.
        """
        parts = _split(text)
        name = re.sub(r"[^A-Za-z0-9._-]", "-", host or socket.gethostname())
        template = cls(parts, name[: _FIELDS["host"]], stream)
        _check(template._longest(), "")
        return template

    @property
    def names_stream(self) -> bool:
        """Whether the keys contain the name of the stream."""
        return any(name == "stream" for _, name in self._parts)

    def render(self, job_id: uuid.UUID) -> str:
        """Return the key of a job; date, hour and minute are those of its id, in UTC."""
        minute = accepted_at(job_id) // 60
        if minute != self._minute:
            # Most keys have the minute of the key before: its text is made once.
            self._format, self._minute = self._for_minute(minute), minute
        fields = {"id": id_text(job_id.int)}
        if self._sharded:
            fields["shard"] = f"{zlib.crc32(job_id.bytes) & 0xFF:02x}"
        return self._format % fields

    def probe_keys(self, job_id: uuid.UUID, prefix: str) -> list[str]:
        """Return the keys at which ``payloadd check`` may write an object, the best one first.

        The first is outside of the folders of dates, hours, shards and streams, where a reader
        could take it for data. The second begins in the same way as all keys do, such as ``dt=``:
        rights may be limited to that beginning. Both are left out if they are too long with the
        store's ``prefix``. The last is the key of a job with this id.
        """
        beginning = self._shared_beginning()
        folder = beginning[: beginning.rfind("/") + 1]
        keys = [f"{start}payloadd-check-{job_id}.ndjson" for start in (folder, beginning)]
        return [*dict.fromkeys(key for key in keys if _fits(key, prefix)), self.render(job_id)]

    def _shared_beginning(self) -> str:
        """Return the text at the beginning of every key of this machine."""
        beginning = ""
        for text, name in self._parts:
            beginning += text
            if name == "host":
                beginning += self._host
            elif name is not None:  # braces that stand for themselves are a part without a field
                break
        return beginning

    def _for_minute(self, minute: float) -> str:
        """Return a format string for the keys of a minute, which is counted from 1970 on."""
        moment = datetime.fromtimestamp(minute * 60, UTC)
        return self._fill(
            {
                "date": moment.strftime("%Y-%m-%d"),
                "hour": moment.strftime("%H"),
                "minute": moment.strftime("%M"),
                "host": self._host,
                "stream": self._stream,
                "shard": "%(shard)s",
                "id": "%(id)s",
            }.__getitem__,
            lambda literal: literal.replace("%", "%%"),
        )

    def _longest(self) -> str:
        """Return a key of the largest length; only the template's own text has ``.`` and ``/``."""
        values = {name: "x" * size for name, size in _FIELDS.items()} | {"host": self._host}
        return self._fill(values.__getitem__, str)

    def _fill(self, value: Callable[[str], str], literal: Callable[[str], str]) -> str:
        return "".join(
            literal(text) + ("" if name is None else value(name)) for text, name in self._parts
        )


def key_problems(values: Mapping[str, Any]) -> list[str]:
    """Return the problems of the setting ``KEY_TEMPLATE``, for ``config.settings.load``."""
    text, url = values.get("key_template"), values.get("store_url")
    if text is None:
        return []
    prefix = url.prefix if isinstance(url, S3Url) else ""
    try:
        template = KeyTemplate.parse(text)
    except ValueError as error:
        return [f"KEY_TEMPLATE: {text!r} is not allowed; allowed is {error}"]
    if not _fits(template._longest(), prefix):  # noqa: SLF001 - of this module
        is_default = text.removesuffix(_SUFFIX).endswith(KEY_TEMPLATE.removesuffix(_SUFFIX))
        names = "STORE_URL" if is_default else "STORE_URL, KEY_TEMPLATE"
        problem = (
            f"{names}: the prefix has {len(prefix.encode())} bytes; allowed are"
            f" {_LONGEST_KEY} bytes with the longest key and the longest suffix behind it"
        )
        return [problem]
    if values.get("streams") and not template.names_stream:
        problem = (
            f"KEY_TEMPLATE: {text!r} is not allowed with STREAMS; allowed is a template with"
            " {stream}: otherwise nothing would tell the objects of one stream from another's"
        )
        return [problem]
    return []


def _split(text: str) -> list[tuple[str, str | None]]:
    """Return pairs of literal text and the name of the field behind it (None: no field).

    Raises ValueError, as :meth:`KeyTemplate.parse` does.
    """
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{_ALLOWED}, and {{{{ }}}} for braces ({error})") from None
    for _, name, spec, conversion in parsed:
        if name is not None and (name not in _FIELDS or spec or conversion):
            wrong = (
                f"{{{name}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
            )
            raise ValueError(f"the fields {_ALLOWED}; {wrong} is none of them")
    if not any(name == "id" for _, name, _, _ in parsed):
        raise ValueError("a template with {id}: without it objects would overwrite each other")
    return [(literal, name) for literal, name, _, _ in parsed]


def _fits(key: str, prefix: str) -> bool:
    """Return whether S3 and file systems take a key below the store's ``prefix``."""
    try:
        _check(key, prefix)
    except ValueError:
        return False
    return True


def _check(longest: str, prefix: str) -> None:
    """Raise ValueError if S3 or a file system would refuse the longest key of a template."""
    segments = longest.split("/")
    if not {"", ".", ".."}.isdisjoint(segments):
        where = next(one for one in segments if one in {"", ".", ".."})
        found = repr(where) if where else _odd_slash(longest)
        raise ValueError(
            "a key with no / at its ends or doubled, and no . or .. between slashes;"
            f" this one has {found}"
        )
    if not is_unicode(prefix + longest) or _CONTROL.search(longest):
        raise ValueError("UTF-8 without control characters")
    sizes = [len(segment.encode()) for segment in segments]
    total = len(f"{prefix}/{longest}".lstrip("/").encode()) + _LONGEST_SUFFIX
    if max(sizes) > _LONGEST_SEGMENT or total > _LONGEST_KEY:
        raise ValueError(
            f"at most {_LONGEST_SEGMENT} bytes between slashes and {_LONGEST_KEY} bytes in all,"
            " the prefix of STORE_URL and the longest suffix counted;"
            f" this one has up to {max(sizes)} and {total}"
        )


def _odd_slash(key: str) -> str:
    """Return which slash of a key has nothing before or after it."""
    if key.startswith("/"):
        return "one at its beginning"
    return "one at its end" if key.endswith("/") else "a doubled one"
